"""What the page keeps of its visitors: a memory of their own, where they have one."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary, WeakValueDictionary

from fewshot_nam.service.teaching import TeachingSession

_VISITORS = 500  # with a memory of their own
_IDLE_SECONDS = 900  # after which a visitor's memory may make room for another's
_TAB = re.compile("[0-9a-f]{32}")
_MOST_TABS, _LOADS_OF_A_TAB = 50_000, 3  # some 200 bytes each


@dataclass
class _Visit:
    session: TeachingSession
    address: str
    used: float  # when


class Sessions:
    """The sessions of the visitors of a page: the same one for all, or one for each.

    Args:
        first: the session that all share, or that those of visitors are made like.
        separate: whether each visitor has one, which is kept once it was changed. Where there are too many, one goes that was not
            used for a quarter of an hour; where there is none, a further visitor has to wait. Visitors from one address, who may be
            one client, have half of the places.
    """

    def __init__(self, first: TeachingSession, separate: bool = False) -> None:
        self.first, self.separate = first, separate
        self._lock = threading.Lock()
        self._by_visitor: OrderedDict[str, _Visit] = OrderedDict()  # the longest unused one first
        self._unchanged: WeakValueDictionary[str, TeachingSession] = WeakValueDictionary()
        self._tabs: dict[str, tuple[str, str]] = {}  # by visitor, the tab and its address; the first noted first
        self._from: WeakKeyDictionary[TeachingSession, str] = WeakKeyDictionary()  # the address that each was made for

    def of(
        self, visitor: str | None, what: Literal["change", "ask", "show"] = "change", address: str = ""
    ) -> TeachingSession:
        """Return the session of a visitor.

        Args:
            visitor: whose.
            what: it is for. Only a change makes a session; before it a visitor sees the first one. To show it is no use, since
                every open tab does so all the time.
            address: which the visitor comes from.

        Raises:
            ValueError: there are too many visitors; or a change by one of whom it is not known yet which tab of a browser it is.
        """
        if not self.separate:
            return self.first
        with self._lock:
            if what == "change" and visitor not in self._tabs:  # it may have a memory already
                raise ValueError("this page is still being loaded: try again in a moment")
            name = self._tabs.get(visitor or "", ("", ""))[0]
            visit = self._by_visitor.get(name)
            if visit is not None:
                if what != "show":
                    visit.used = time.monotonic()
                    self._by_visitor.move_to_end(name)
                return visit.session
            if what != "change":
                return self.first
            if not self._room(address):
                raise ValueError("as many visitors teach at the moment as there is room for: try again later")
            session = self._unchanged.get(name)
            if session is None:
                session = self._unchanged[name] = self.first.copy()
                self._from[session] = address
            return session

    def opened(self, visitor: str | None, tab: str | None, address: str = "") -> None:
        """Note which tab of a browser a visitor is: when it loads the page again, it is another visitor with the same memory.

        Gradio's script loads it again whenever the connection was lost for some seconds.

        Args:
            visitor: as the page's script names the one who has loaded it now.
            tab: 128 random bits, in hexadecimal, that the tab keeps; anything else where it can keep nothing, and ``None`` where it
                is not known yet.
            address: which the visitor comes from. Where there are too many tabs, one goes of the address that has most.
        """
        if not self.separate or not visitor or tab is None:
            return
        name = visitor if _TAB.fullmatch(tab) is None else f"tab {tab}"  # no visitor can be named so
        with self._lock:
            if self._tabs.get(visitor) == (name, address):
                return
            loads = [other for other, (its, _) in self._tabs.items() if its == name and other != visitor]
            for other in loads[: 1 - _LOADS_OF_A_TAB]:
                del self._tabs[other]
            self._tabs.pop(visitor, None)
            self._tabs[visitor] = name, address
            if len(self._tabs) > _MOST_TABS:
                used = {*self._by_visitor, *self._unchanged, name}
                others = {other: of for other, (its, of) in self._tabs.items() if its not in used}
                counts = Counter(others.values())
                if others:
                    del self._tabs[max(others, key=lambda other: counts[others[other]])]  # the first noted of them

    def keep(self, session: TeachingSession) -> None:
        """Keep a session that ``of`` returned for a change, if anything was changed: to ask for one takes no place."""
        with self._lock:
            name = next((name for name, made in self._unchanged.items() if made is session), None)
            if name is None or session.version == 0:
                return
            address = self._from.pop(session)
            places = self._full(address)
            if places and self._idle(places[0]):
                del self._by_visitor[places[0]]
            self._by_visitor[name] = _Visit(session, address, time.monotonic())
            del self._unchanged[name]

    def _room(self, address: str) -> bool:
        """Return whether a further visitor from an address has a place, or one that can go."""
        places = self._full(address)
        return not places or self._idle(places[0])

    def _full(self, address: str) -> list[str]:
        """Return the visitors of whom one must go before another comes from an address, the longest unused one first."""
        same = [name for name, visit in self._by_visitor.items() if visit.address == address]
        if len(same) >= _VISITORS // 2:
            return same
        return list(self._by_visitor) if len(self._by_visitor) >= _VISITORS else []

    def _idle(self, visitor: str) -> bool:
        return time.monotonic() - self._by_visitor[visitor].used > _IDLE_SECONDS

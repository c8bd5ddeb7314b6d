"""Visitors of a page: each has a memory of their own from their first change on, as long as there is room."""

import pytest

from fewshot_nam.service.teaching import TeachingSession

pytest.importorskip("starlette")

from fewshot_nam.service import visitors
from fewshot_nam.service.visitors import Sessions


def test_a_visitor_does_not_lose_a_memory_to_those_who_only_look(digits, monkeypatch):
    monkeypatch.setattr(visitors, "_VISITORS", 3)
    clock = [0.0]
    monkeypatch.setattr(visitors.time, "monotonic", lambda: clock[0])
    sessions = Sessions(TeachingSession.open(backbone="conv4"), separate=True)

    def teach(name, image):
        sessions.opened(name, "")
        session = sessions.of(name, address=name)
        session.learn([image], name)
        sessions.keep(session)

    teach("honest", digits[0][0])
    for i in range(10):
        assert sessions.of(f"looks {i}", "show") is sessions.of(f"asks {i}", "ask") is sessions.first
    for i in range(10):  # who changes nothing takes no place
        sessions.opened(f"undoes {i}", "")
        sessions.keep(sessions.of(f"undoes {i}"))
    for name in ("second", "third"):
        teach(name, digits[1][0])
    sessions.opened("fourth", "")
    with pytest.raises(ValueError, match="as many visitors teach at the moment as there is room for"):
        sessions.of("fourth")
    clock[0] = 2000.0
    sessions.of("honest", "ask")
    clock[0] = 2800.0  # the second and the third were not used for a long time, but for a tab that is open
    assert sessions.of("second", "show").model.classes == ["second"]
    assert sessions.of("fourth").model.classes == []
    assert sessions.of("second", "ask").model.classes == ["second"]  # there was room for one in the place of the third
    teach("fourth", digits[2][0])
    assert sessions.of("third", "show") is sessions.first
    assert sessions.of("honest", "show").model.classes == ["honest"]


def test_visitors_of_one_address_have_half_of_the_places(digits, monkeypatch):
    """One client that changed something under 500 names kept all newcomers out."""
    monkeypatch.setattr(visitors, "_VISITORS", 6)
    clock = [0.0]
    monkeypatch.setattr(visitors.time, "monotonic", lambda: clock[0])
    sessions = Sessions(TeachingSession.open(backbone="conv4"), separate=True)

    def teach(name, address):
        sessions.opened(name, "", address)
        session = sessions.of(name, address=address)
        session.learn([digits[0][0]], name)
        sessions.keep(session)

    teach("other", "b")
    for name in ("one", "two", "three"):
        teach(name, "a")
    sessions.opened("four", "", "a")
    with pytest.raises(ValueError, match="as many visitors"):
        sessions.of("four", address="a")
    teach("another", "b")
    clock[0] = 2000.0
    teach("four", "a")  # in the place of the longest unused of its own address
    assert [sessions.of(name, "show").model.classes for name in ("one", "two", "other")] == [[], ["two"], ["other"]]


def test_two_changes_of_a_new_visitor_at_once_are_of_one_session(digits):
    sessions = Sessions(TeachingSession.open(backbone="conv4"), separate=True)
    sessions.opened("visitor", "")
    one, two = sessions.of("visitor"), sessions.of("visitor")
    assert one is two
    one.learn(digits[0][:1], "zero")
    for session in (one, two):
        sessions.keep(session)
    assert sessions.of("visitor", "show") is one


def test_a_tab_that_is_loaded_again_finds_its_memory(digits, monkeypatch):
    """A connection lost for four seconds, after which the page is loaded again, lost all that a visitor had taught."""
    monkeypatch.setattr(visitors, "_MOST_TABS", 5)
    sessions = Sessions(TeachingSession.open(backbone="conv4"), separate=True)
    mine, other = "0" * 31 + "1", "0" * 31 + "2"
    sessions.opened("first", mine)
    session = sessions.of("first")
    session.learn(digits[0][:1], "zero")
    sessions.opened("meanwhile", mine)  # before the change has ended
    sessions.keep(session)
    for visitor in ("again", "once more"):
        sessions.opened(visitor, mine)
        assert sessions.of(visitor, "show") is sessions.of(visitor) is session
    for visitor, tab in (("another", other), ("none", ""), ("odd", mine[:-1]), (mine, ""), ("tab", "tab " + mine)):
        sessions.opened(visitor, tab)
        assert sessions.of(visitor, "show") is sessions.first
    for i in range(20):  # tabs of others take nothing away
        sessions.opened(f"flood {i}", f"{i + 3:032x}")
    assert sessions.of("once more") is session
    assert len(sessions._tabs) == 5
    for i in range(20):  # a tab has few names at a time
        sessions.opened(f"load {i}", mine)
    assert sessions.of("load 19") is session
    assert sum(name == f"tab {mine}" for name, _ in sessions._tabs.values()) == 3
    shared = Sessions(TeachingSession.open(backbone="conv4"))
    shared.opened("first", mine)
    assert shared.of("first") is shared.first


def test_nothing_is_taught_before_it_is_known_which_tab_a_visitor_is(digits):
    """Where its load was refused for a moment, what a tab was taught then hid its memory, and was lost when it was loaded again."""
    sessions, tab = Sessions(TeachingSession.open(backbone="conv4"), separate=True), "0" * 31 + "1"
    sessions.opened("first", tab)
    session = sessions.of("first")
    session.learn(digits[0][:1], "zero")
    sessions.keep(session)
    sessions.opened("again", None)  # its script does not know yet
    with pytest.raises(ValueError, match="still being loaded: try again"):
        sessions.of("again")
    assert sessions.of("again", "show") is sessions.of("again", "ask") is sessions.first
    sessions.opened("again", tab)
    assert sessions.of("again") is session
    sessions.opened("keeps nothing", "")
    assert sessions.of("keeps nothing") is not sessions.first


def test_tabs_that_one_address_invents_push_out_its_own(digits, monkeypatch):
    monkeypatch.setattr(visitors, "_MOST_TABS", 10)
    sessions = Sessions(TeachingSession.open(backbone="conv4"), separate=True)
    sessions.opened("honest", "0" * 31 + "1", "192.0.2.1")
    for i in range(50):
        sessions.opened(f"flood {i}", f"{i + 2:032x}", "192.0.2.2")
    session = sessions.of("honest", address="192.0.2.1")
    session.learn(digits[0][:1], "zero")
    sessions.keep(session)
    sessions.opened("again", "0" * 31 + "1", "192.0.2.1")
    assert sessions.of("again") is session
    assert len(sessions._tabs) == 10

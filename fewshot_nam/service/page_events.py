"""What happens on the teaching page: each of its events, and what is shown then."""

from __future__ import annotations

import re
import secrets
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import gradio as gr
from gradio.utils import get_upload_folder

from fewshot_nam.heads.validation import as_unicode
from fewshot_nam.service import page_html as html
from fewshot_nam.service.class_names import class_name, known_class
from fewshot_nam.service.downloads import Downloads
from fewshot_nam.service.findings import Check
from fewshot_nam.service.given_images import GivenImage, asked_by, image_files, images_in_folder
from fewshot_nam.service.hosts import is_loopback, neighbourhood
from fewshot_nam.service.page_layout import DOWNLOADS, NO_ANSWER
from fewshot_nam.service.teaching import TeachingSession
from fewshot_nam.service.visitors import Sessions

_VERSION = re.compile("[0-9]{1,18}(?= )")
_VALUES = 6 + len(DOWNLOADS)  # of ``Layout.shared``
_STATES = 3  # what a tab shows that is of a state of the memory: figures, and two answers


class Events:
    """What the page does. Gradio gives each event its inputs, and who asks; most return the values of ``Layout.shared``.

    Args:
        sessions: of the visitors.
        local: the visitors sit at this machine: they may name its folders, and save to the memory's file.
    """

    def __init__(self, sessions: Sessions, local: bool) -> None:
        self._sessions, self._local = sessions, local
        self._downloads = Downloads(get_upload_folder())
        self._named: WeakKeyDictionary[TeachingSession, str] = WeakKeyDictionary()
        # Of which version a download is, and where, by what made it; there is one file for each, and one at a time makes it.
        self._prepared: WeakKeyDictionary[TeachingSession, dict[str, tuple[int, Path]]] = WeakKeyDictionary()
        self._making: WeakKeyDictionary[TeachingSession, dict[str, threading.Lock]] = WeakKeyDictionary()

    def on_load(self, tab: str | None, request: gr.Request) -> list[Any]:
        """Draw a tab that was loaded."""
        self._sessions.opened(request.session_hash, tab, _address(request))
        session = self._session_of(request, "show")
        target = session.target
        return [
            *self._view(session, None, ""),
            gr.skip() if target is None else min(max(round(100 * target, 4), 0.1), 50),
        ]

    def on_tick(
        self,
        shown: str | None,
        wanted: str,
        tab: str | None,
        states: str | None,
        request: gr.Request,
    ) -> list[Any]:
        """Draw a tab anew where something has changed, and show where its figures or its answers are of before.

        Each time: what was asked for once may have been refused.
        """
        self._sessions.opened(request.session_hash, tab, _address(request))
        session = self._session_of(request, "show")
        same = self._shown_of(session, wanted) == shown
        before = {*(states or "").split(",", _STATES)[:_STATES]} - {self._state_of(session, session.version)}
        values = [gr.skip()] * _VALUES if same else self._view(session, None, wanted)
        return [*values, html.style_of_before(before)]

    def on_find(self, wanted: str, request: gr.Request) -> list[Any]:
        """Show the classes that hold a text."""
        return self._view(self._session_of(request, "show"), None, wanted)

    def on_frame(self, image: str | bytes | None, request: gr.Request) -> str:
        """Answer to what a camera sends."""
        return self._answer_of(request, image)

    def on_asked(self, image: str | bytes | None, request: gr.Request) -> str:
        """Answer to an image."""
        return self._answer_of(request, image)

    def on_learn_frame(self, label: str, wanted: str, image: str | bytes | None, request: gr.Request) -> list[Any]:
        """Learn what the camera showed at the click; ``None`` where it showed nothing."""
        session = self._session_of(request)

        def act() -> str:
            if image is None:
                raise ValueError("the camera shows nothing: start it")
            return html.learned_note(session.learn([image], label))

        return self._change(session, wanted, act)

    def on_learn_files(
        self,
        label: str,
        given: list[str] | None,
        whole: list[str] | None,
        wanted: str,
        click: str | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio finds it by the default)
    ) -> list[Any]:
        """Learn files, and those of a folder, as one class; the last value is the click's number, if nothing was wrong."""
        session = self._session_of(request)
        images: list[GivenImage] = list(dict.fromkeys([*(given or []), *image_files(whole or [])]))
        learned: list[str] = []

        def act() -> str:
            said = html.learned_note(session.learn(images, label, _shown(progress, "learning")))
            learned.append(html.learned_html(click or ""))
            return said

        return [*self._change(session, wanted, act), *(learned or [""])]

    def on_learn_path(
        self,
        given: str,
        wanted: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """Learn a folder of this machine, which holds one for each class."""
        session = self._session_of(request)

        def act() -> str:
            _check_local(self._local)
            found = session.learn_classes(images_in_folder(given), _shown(progress, "learning"))
            return html.learned_note(found)

        return self._change(session, wanted, act)

    def on_forget(self, wanted: str, event: gr.EventData, request: gr.Request) -> list[Any]:
        """Forget the class whose button was clicked."""
        session, label = self._session_of(request), str(getattr(event, "label", ""))

        def act() -> str:
            session.forget(label)
            return html.note(f"Forgot {label}.", "good")

        return self._change(session, wanted, act)

    def on_undo(self, shown: str | None, wanted: str, request: gr.Request) -> list[Any]:
        """Take back the last change, if it is what the tab shows."""
        session = self._session_of(request)

        def act() -> str:
            name, _, rest = (shown or "").partition(" ")
            version = _VERSION.match(rest)
            if version is None or name != self._name_of(
                session
            ):  # the tab shows nothing yet, or what another program has served
                raise ValueError("nothing is undone: look at what would be, and undo again")
            return html.note(f"Undone: {session.undo(int(version[0]))}.", "good")

        return self._change(session, wanted, act)

    def on_unknown(
        self,
        given: list[str] | None,
        share: float,
        wanted: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """Add images of unknowns, and set the rate where there are classes."""
        return self._with_unknown(request, given or [], share, wanted, progress)

    def on_unknown_folder(
        self,
        given: list[str] | None,
        share: float,
        wanted: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """As ``on_unknown``, for the images of a folder."""
        return self._with_unknown(request, image_files(given or []), share, wanted, progress)

    def _with_unknown(
        self, request: gr.Request, images: Sequence[GivenImage], share: float, wanted: str, progress: gr.Progress
    ) -> list[Any]:
        session = self._session_of(request)

        def act() -> str:
            count, skipped = session.add_unknown(images, _shown(progress, "reading unknowns"))
            new = f"{count:,} new image{'' if count == 1 else 's'} of unknowns"
            text = f"{new}, {session.unknown_images:,} in all.{html.skipped_text(skipped)}"
            if not session.model.classes:
                return html.note(text, "good")
            target = session.target or share / 100
            try:
                session.calibrate(target)
            except ValueError as error:  # too few images for this rate
                return html.note(text, "good") + html.note(" ".join(str(error).split()), "bad")
            return html.note(f"{text} The false-alarm rate is {100 * target:.4g}%.", "good")

        return [*self._change(session, wanted, act), None]

    def on_calibrate(self, share: float, wanted: str, request: gr.Request) -> list[Any]:
        """Set the rate."""
        session = self._session_of(request)

        def act() -> str:
            session.calibrate(share / 100)
            return html.note(f"False-alarm rate set to {share:g}%.", "good")

        return self._change(session, wanted, act)

    def on_clear(self, wanted: str, request: gr.Request) -> list[Any]:
        """Forget the images of unknowns."""
        session = self._session_of(request)

        def act() -> str:
            session.clear_unknown()
            return html.note("Nothing is refused now.", "good")

        return self._change(session, wanted, act)

    def on_show(
        self,
        label: str,
        images: list[str] | None,
        folder_path: str | None,
        unknown: list[str] | None,
        base: list[str] | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> str:
        """Measure images."""
        session = self._session_of(request)
        try:
            known: list[tuple[GivenImage, str]] = [(image, label) for image in images or []]
            if known and known_class(session.model.classes, name := class_name(label)) is None:
                raise ValueError(f"there is no class {name!r} here: give its name letter for letter")
            if folder_path and folder_path.strip():  # of a box that is not shown, the page's script sends nothing
                _check_local(self._local)
                known += images_in_folder(folder_path)
            found: Check = session.check(known, unknown or [], base or [], _shown(progress, "measuring"))
            return self._of_state(session, found.version, html.check_html(found))
        except (ValueError, OSError) as error:
            return html.note(" ".join(str(error).split()), "bad")

    def on_save(self, wanted: str, request: gr.Request) -> list[Any]:
        """Write the memory's file."""
        session = self._session_of(request)

        def act() -> str:
            _check_local(self._local)
            return html.note(f"Saved to {session.save()}.", "good")

        return self._change(session, wanted, act)

    def on_reload(self, wanted: str, request: gr.Request) -> list[Any]:
        """Read the memory's file."""
        session = self._session_of(request)

        def act() -> str:
            _check_local(self._local)
            session.reload()
            return html.note("Read the file again.", "good")

        return self._change(session, wanted, act)

    def on_make(self, wanted: str, request: gr.Request) -> list[Any]:
        """Make a copy of the memory for a download."""
        return self._made(request, wanted, "copy_to", "The memory can be downloaded.")

    def on_export(
        self,
        wanted: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """Export backbone and memory for a download."""
        progress(0.1, desc="exporting")
        return self._made(request, wanted, "export_to", "The ONNX file can be downloaded.")

    # Parts.

    def _session_of(self, request: gr.Request, what: Literal["change", "ask", "show"] = "change") -> TeachingSession:
        address = _address(request)
        asked_by.set("" if is_loopback(address) else address)  # in the context of this event alone
        try:
            return self._sessions.of(request.session_hash, what, address)
        except ValueError as error:
            raise as_error(str(error)) from None

    def _view(self, session: TeachingSession, said: str | None, wanted: str) -> list[Any]:
        """Return the values of ``shared``; the status stays where nothing is said."""
        shown = self._shown_of(session, wanted)  # first: what changes from here on is drawn by the next tick
        what = session.undoable
        return [
            gr.skip() if said is None else said,
            html.classes_html(session.classes(), session.threshold, wanted),
            gr.update(value="Undo" if what is None else f"Undo: {what}"[:60], interactive=what is not None),
            _about_file(session, self._local),
            html.refusal_html(session.threshold, session.promise, session.not_refusing),
            html.shown_html(shown),
            *(self._offered(session, how) for how in DOWNLOADS),
        ]

    def _shown_of(self, session: TeachingSession, wanted: str) -> str:
        """Return what differs from before whenever a tab is to be drawn anew; it begins with the state.

        Also of the text that classes are found by: it may have changed while an answer was under way.
        """
        version, *rest = session.shown
        downloads = (f"{how}={of}" for how, of in sorted(self._ready(session).items()))
        found = f"find={zlib.crc32(wanted.encode(errors='replace'))}"
        return " ".join([self._state_of(session, version), *map(str, rest), *downloads, found])

    def _offered(self, session: TeachingSession, how: str, path: Path | None = None) -> Any:
        """Return the button of a download, with ``path`` for one that was made now. It says where the memory has changed.

        Another tab may have made the file anew, at the same place.
        """
        of = self._ready(session).get(how)
        if of is None:
            return gr.update(visible=False)
        label = DOWNLOADS[how] + ("" if of == session.version else ", as it was before the last change")
        return gr.update(label=label) if path is None else gr.update(value=str(path), visible=True, label=label)

    def _ready(self, session: TeachingSession) -> dict[str, int]:
        """Return of which version each download is that is there: they are removed after an hour, or where there are too many."""
        made = dict(self._prepared.get(session, {}))
        return {how: version for how, (version, path) in made.items() if path.exists()}

    def _change(self, session: TeachingSession, wanted: str, act: Callable[[], str]) -> list[Any]:
        """Do something, and return the values of ``shared``; what was wrong is said, and nothing else happens."""
        try:
            said = act()
        except (ValueError, OSError, ImportError) as error:
            said = html.note(" ".join(str(error).split()), "bad")
        self._sessions.keep(session)
        return self._view(session, said, wanted)

    def _answer_of(self, request: gr.Request, image: GivenImage | None) -> str:
        session = self._session_of(request, "ask")
        version = session.version  # first: a change meanwhile makes the answer one of before
        found = _answered(session, image)
        return found if image is None else self._of_state(session, version, found)

    def _state_of(self, session: TeachingSession, version: int) -> str:
        return f"{self._name_of(session)} {version}"

    def _name_of(self, session: TeachingSession) -> str:
        return self._named.setdefault(session, secrets.token_hex(8))

    def _of_state(self, session: TeachingSession, version: int, shown: str) -> str:
        return html.of_state(shown, self._state_of(session, version), now=version == session.version)

    def _made(self, request: gr.Request, wanted: str, how: str, said: str) -> list[Any]:
        # A file goes with its session: that of a visitor who changed nothing is the first one, not one made for this request.
        session, path = self._session_of(request, "ask"), None

        def act() -> str:
            nonlocal path
            with self._making.setdefault(session, {each: threading.Lock() for each in DOWNLOADS})[how]:
                version = session.version
                path = getattr(session, how)(self._downloads.place_of(session))
                self._downloads.keep(path, _address(request))
                self._prepared.setdefault(session, {})[how] = version, path
            return html.note(said, "good")

        values = self._change(session, wanted, act)
        if path is not None:
            values[list(DOWNLOADS).index(how) - len(DOWNLOADS)] = self._offered(session, how, path)
        return values


def as_error(text: str) -> gr.Error:
    """Return an error that the visitor alone is shown: the log would get thirty lines each time."""
    return gr.Error(as_unicode(text), print_exception=False)


def _address(request: gr.Request) -> str:
    client = request.client
    return neighbourhood(client.host) if client else ""


def _answered(session: TeachingSession, image: GivenImage | None) -> str:
    if image is None:
        return html.waiting_html(NO_ANSWER)
    try:
        return html.answer_html(session.answer(image), session.score_range())
    except (ValueError, OSError) as error:
        return html.waiting_html(" ".join(str(error).split()))


def _shown(progress: gr.Progress, what: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        progress((done, total), desc=what, unit="images")

    return show


def _check_local(local: bool) -> None:
    if not local:
        raise ValueError(
            "folders and files of this machine cannot be used here: upload images, and download the memory"
        )


def _about_file(session: TeachingSession, local: bool) -> str:
    # Visitors from elsewhere are not shown the folders of this machine.
    where = "no file" if session.path is None else str(session.path.absolute() if local else session.path.name)
    state = "saved" if session.saved else "not saved"
    known = session.model.classes
    return html.note(f"{html.count_of_classes(len(known))}; {where}; {state}.")

"""What the teaching page shows and does: Gradio's blocks over ``TeachingSession``."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import gradio as gr
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder

from fewshot_nam.heads.validation import as_unicode
from fewshot_nam.service import page_html as html
from fewshot_nam.service.class_names import class_name, known_class
from fewshot_nam.service.downloads import Downloads
from fewshot_nam.service.findings import Check
from fewshot_nam.service.given_images import GivenImage, asked_by, image_files, images_in_folder
from fewshot_nam.service.hosts import is_loopback, neighbourhood
from fewshot_nam.service.page_requests import (
    ASKED,
    CAMERAS,
    CHANGES,
    EXPORTS,
    IMAGES,
    MOST_CAMERAS,
)
from fewshot_nam.service.teaching import TeachingSession
from fewshot_nam.service.visitors import Frames, Sessions

TITLE = "fewshot-nam: teach a class from one image"
_WORKS = 16  # with many images, of which two are decoded at a time
_SECONDS_BETWEEN_ANSWERS = 0.5
# A number that a tab of a browser keeps when it loads the page again, in whichever way: within a Space's frame, a browser does not
# tell a reload from a visit. Who duplicates a tab copies its number: the tab that is open holds a lock on it, and the other takes a
# new one. Within another site the page may be allowed to keep nothing; without TLS there are no locks, but reloads are told.
_TAB = """async () => {
    const place = "fewshot-nam-tab";
    const held = number => new Promise(resolve => {
        if (!navigator.locks) return resolve(performance.getEntriesByType("navigation")[0]?.type === "reload");
        const waiting = new AbortController();  // the page that was here before may not have ended yet
        setTimeout(() => waiting.abort(), 1000);
        const until_the_end = () => (resolve(true), new Promise(() => {}));
        navigator.locks.request(`${place} ${number}`, {signal: waiting.signal}, until_the_end).catch(() => resolve(false));
    });
    if (window.fewshotNamTab !== undefined) return window.fewshotNamTab;
    try {
        let number = sessionStorage.getItem(place);
        if (!number || !await held(number)) {
            number = [...crypto.getRandomValues(new Uint8Array(16))].map(b => b.toString(16).padStart(2, "0")).join("");
            sessionStorage.setItem(place, number);
            await held(number);
        }
        return window.fewshotNamTab = number;
    } catch { return window.fewshotNamTab = ""; }
}"""
# The number comes again and again, since what was sent with the load may have been refused or forgotten.
_TICK = "(seen, find) => [seen, find, window.fewshotNamTab ?? null]"
# Which figures and which answer a tab shows, it knows best: Gradio's State is that of the visitors who asked last.
_SHOWN = """() => {
    const of = place => document.querySelector(`${place} [data-of]`)?.dataset.of ?? "";
    return [of("#checked"), of("#answer")];
}"""
_DOWNLOADS = {"copy_to": "Download the memory", "export_to": "Download the ONNX file"}  # by what prepares one
_FORGET = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-forget]');
  if (button) trigger('click', {label: button.dataset.forget});
});
"""


def as_given(payload: ImageData | None) -> str | bytes | None:
    """Return an image as it was given: the name of an uploaded file, or the bytes that the camera sends.

    In place of what Gradio does: it opens and decodes an image with any format of Pillow's, however large, and keeps every frame
    as a file.

    Raises:
        gr.Error: no bytes, or a file that was not uploaded: a program that calls the page can name any file of the machine.
    """
    if payload is None:
        return None
    if not payload.url or not payload.url.startswith("data:"):
        if payload.path is None or not Path(payload.path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
            raise _error("the image was not uploaded")
        return payload.path
    try:
        return base64.b64decode(payload.url.partition(",")[2], validate=True)
    except ValueError:
        raise _error("the image cannot be read") from None


def _error(text: str) -> gr.Error:
    # For the visitor alone: the log would get thirty lines each time.
    return gr.Error(as_unicode(text), print_exception=False)


def build(sessions: Sessions, local: bool = True) -> gr.Blocks:
    """Return the page.

    Args:
        sessions: of its visitors.
        local: the visitors sit at this machine: they may name its folders, and save to the memory's file.
    """
    downloads = Downloads(get_upload_folder())
    frames = Frames()
    named: WeakKeyDictionary[TeachingSession, str] = WeakKeyDictionary()
    prepared: WeakKeyDictionary[TeachingSession, dict[str, int]] = WeakKeyDictionary()  # of which version a download is

    def session_of(request: gr.Request, what: Literal["change", "ask", "show"] = "change") -> TeachingSession:
        address = _address(request)
        asked_by.set("" if is_loopback(address) else address)  # in the context of this event alone
        try:
            return sessions.of(request.session_hash, what, address)
        except ValueError as error:
            raise _error(str(error)) from None

    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(
            "<h1 style='margin:0;font-size:1.5em'>Teach it a class from one image</h1>"
            f"<div class='nam-small'>{_about(sessions.first)}</div>",
            elem_id="about",
        )
        status = gr.HTML(html.note("Ready."), elem_id="status")
        before = gr.HTML(elem_id="before")
        seen = gr.State(())
        tab = gr.Textbox(visible=False)
        figures = gr.Textbox(visible=False)
        answered = gr.Textbox(visible=False)
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Teach"):
                with gr.Row(equal_height=False):
                    with gr.Column(min_width=300):
                        camera = gr.Image(
                            label="Camera",
                            sources=["webcam"],
                            streaming=True,
                            elem_id="camera",
                            height=300,
                        )
                        answer = gr.HTML(html.waiting_html("The answer appears here."), elem_id="answer")
                        asked = gr.Image(
                            label="Or an image",
                            sources=["upload", "clipboard"],
                            elem_id="asked",
                            height=220,
                            buttons=[],
                        )
                    with gr.Column(min_width=300):
                        name = gr.Textbox(label="Name of the class", elem_id="name", max_lines=1, placeholder="mug")
                        learn_frame = gr.Button("Learn what the camera shows", variant="primary", elem_id="learn-frame")
                        files = gr.File(
                            label="Images of this class", file_count="multiple", elem_id="files", height=150
                        )
                        folder = gr.File(
                            label="Or a folder of them", file_count="directory", elem_id="folder", height=130
                        )
                        learn_files = gr.Button("Learn these images", variant="primary", elem_id="learn-files")
                        with gr.Accordion(
                            "A folder on this computer, one folder for each class", open=False, visible=local
                        ):
                            path = gr.Textbox(label="Folder", elem_id="path", max_lines=1, placeholder="photos/")
                            learn_path = gr.Button("Learn all classes", elem_id="learn-path")
                with gr.Row():
                    find = gr.Textbox(label="Find a class", elem_id="find", max_lines=1, scale=3)
                    undo = gr.Button("Undo", interactive=False, elem_id="undo", scale=1)
                classes = gr.HTML(elem_id="classes", js_on_load=_FORGET)
            with gr.Tab("Refuse"):
                gr.HTML(
                    "<div class='nam-small'>Give images of what it is to refuse: what else may come before the camera. "
                    "The more, the smaller the rate of false alarms that can be promised.</div>"
                )
                with gr.Row():
                    unknown_files = gr.File(
                        label="Images of unknowns", file_count="multiple", elem_id="unknown-files", height=150
                    )
                    unknown_folder = gr.File(
                        label="Or a folder of them", file_count="directory", elem_id="unknown-folder", height=150
                    )
                with gr.Row():
                    rate = gr.Slider(
                        0.1,
                        50,
                        value=5,
                        step=0.1,
                        label="False-alarm rate, percent of unknown images",
                        elem_id="rate",
                        scale=3,
                    )
                    calibrate = gr.Button("Set this rate", variant="primary", elem_id="calibrate", scale=1)
                    clear = gr.Button("Forget these images", elem_id="clear", scale=1)
                promise = gr.HTML(elem_id="promise")
            with gr.Tab("Measure"):
                gr.HTML(
                    "<div class='nam-small'>Images that were not learned, to see how well classes are distinguished.</div>"
                )
                with gr.Row():
                    with gr.Column(min_width=220):
                        truth = gr.Textbox(label="Known class", elem_id="truth", max_lines=1)
                        known_files = gr.File(label="Images of it", file_count="multiple", elem_id="known", height=130)
                        known_path = gr.Textbox(
                            label="Or a folder on this computer, one folder for each class",
                            elem_id="known-path",
                            max_lines=1,
                            visible=local,
                        )
                    others = gr.File(label="Images of unknowns", file_count="multiple", elem_id="others", height=230)
                    bases = gr.File(
                        label="Images of base classes, which the backbone was trained on",
                        file_count="multiple",
                        elem_id="bases",
                        height=230,
                    )
                show = gr.Button("Show scores and confusions", variant="primary", elem_id="show")
                checked = gr.HTML(elem_id="checked")
            with gr.Tab("Memory"):
                about_file = gr.HTML(elem_id="about-file")
                with gr.Row():
                    save = gr.Button("Save", variant="primary", elem_id="save", visible=local)
                    reload = gr.Button("Read the file again", elem_id="reload", visible=local)
                    make = gr.Button("Prepare a download", elem_id="make")
                    export = gr.Button("Export to ONNX", elem_id="export")
                download = gr.DownloadButton(_DOWNLOADS["copy_to"], visible=False, elem_id="download")
                download_onnx = gr.DownloadButton(_DOWNLOADS["export_to"], visible=False, elem_id="download-onnx")

        for given in (camera, asked):
            given.preprocess = as_given  # a class of its own would make Gradio write a file of types beside this one

        shared = [status, classes, undo, about_file, promise, seen, download, download_onnx]

        def view(session: TeachingSession, said: str | None, wanted: str) -> list[Any]:
            """Return the values of ``shared``; the status stays where nothing is said."""
            shown = shown_of(session)  # first: what changes from here on is drawn by the next tick
            what = session.undoable
            return [
                gr.skip() if said is None else said,
                html.classes_html(session.classes(), session.threshold, wanted),
                gr.update(value="Undo" if what is None else f"Undo: {what}"[:60], interactive=what is not None),
                _about_file(session, local),
                html.refusal_html(session.threshold, session.promise, session.not_refusing),
                shown,
                *(offered(session, how) for how in _DOWNLOADS),
            ]

        def shown_of(session: TeachingSession) -> tuple[Any, ...]:
            """Return what differs from before whenever a tab is to be drawn anew; its version comes first."""
            return (*session.shown, *sorted(prepared.get(session, {}).items()))

        def offered(session: TeachingSession, how: str, path: Path | None = None) -> Any:
            """Return the button of a download, with ``path`` for one that was made now. It says where the memory has changed.

            Another tab may have made the file anew, at the same place.
            """
            of = prepared.get(session, {}).get(how)
            if of is None:
                return gr.update(visible=False)
            label = _DOWNLOADS[how] + ("" if of == session.version else ", as it was before the last change")
            return gr.update(label=label) if path is None else gr.update(value=str(path), visible=True, label=label)

        def change(session: TeachingSession, wanted: str, act: Callable[[], str]) -> list[Any]:
            """Do something, and return the values of ``shared``; what was wrong is said, and nothing else happens."""
            try:
                said = act()
            except (ValueError, OSError, ImportError) as error:
                said = html.note(" ".join(str(error).split()), "bad")
            sessions.keep(session)
            return view(session, said, wanted)

        def on_load(tab: str | None, request: gr.Request) -> list[Any]:
            sessions.opened(request.session_hash, tab, _address(request))
            session = session_of(request, "show")
            target = session.target
            return [*view(session, None, ""), gr.skip() if target is None else min(max(100 * target, 0.1), 50)]

        def on_tick(shown: tuple[Any, ...], wanted: str, tab: str | None, request: gr.Request) -> list[Any]:
            sessions.opened(request.session_hash, tab, _address(request))
            session = session_of(request, "show")
            if shown_of(session) == shown:
                return [gr.skip()] * len(shared)
            return view(session, None, wanted)  # another tab has changed it

        def on_frame(image: str | bytes | None, request: gr.Request) -> str:
            frames.keep(request.session_hash, image)
            return answer_of(request, image)

        def on_asked(image: str | bytes | None, request: gr.Request) -> str:
            return answer_of(request, image)

        def answer_of(request: gr.Request, image: GivenImage | None) -> str:
            session = session_of(request, "ask")
            version = session.version  # first: a change meanwhile makes the answer one of before
            found = _answered(session, image)
            return found if image is None else of_state(session, version, found)

        def on_learn_frame(label: str, wanted: str, request: gr.Request) -> list[Any]:
            session, image = session_of(request), frames.of(request.session_hash)

            def act() -> str:
                if image is None:
                    raise ValueError("the camera shows nothing yet: start it and press record")
                return html.learned_note(session.learn([image], label))

            return change(session, wanted, act)

        def on_learn_files(
            label: str,
            given: list[str] | None,
            whole: list[str] | None,
            wanted: str,
            request: gr.Request,
            progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio finds it by the default)
        ) -> list[Any]:
            session = session_of(request)
            images: list[GivenImage] = list(dict.fromkeys([*(given or []), *image_files(whole or [])]))

            def act() -> str:
                return html.learned_note(session.learn(images, label, _shown(progress, "learning")))

            found = change(session, wanted, act)
            kept = found[0].startswith(html.note("", "bad").partition(" role")[0])
            return [*found, *([gr.skip(), gr.skip()] if kept else [None, None])]

        def on_learn_path(
            given: str,
            wanted: str,
            request: gr.Request,
            progress: gr.Progress = gr.Progress(),  # noqa: B008
        ) -> list[Any]:
            session = session_of(request)

            def act() -> str:
                _check_local(local)
                found = session.learn_classes(images_in_folder(given), _shown(progress, "learning"))
                return html.learned_note(found)

            return change(session, wanted, act)

        def on_forget(wanted: str, event: gr.EventData, request: gr.Request) -> list[Any]:
            session, label = session_of(request), str(getattr(event, "label", ""))

            def act() -> str:
                session.forget(label)
                return html.note(f"Forgot {label}.", "good")

            return change(session, wanted, act)

        def on_undo(shown: tuple[Any, ...], wanted: str, request: gr.Request) -> list[Any]:
            session = session_of(request)

            def act() -> str:
                if not shown:  # to this tab, or too long ago
                    raise ValueError("nothing is undone: look at what would be, and undo again")
                return html.note(f"Undone: {session.undo(shown[0])}.", "good")

            return change(session, wanted, act)

        def on_unknown(
            given: list[str] | None,
            share: float,
            wanted: str,
            request: gr.Request,
            progress: gr.Progress = gr.Progress(),  # noqa: B008
        ) -> list[Any]:
            session = session_of(request)

            def act() -> str:
                count, skipped = session.add_unknown(image_files(given or []), _shown(progress, "reading unknowns"))
                new = f"{count:,} new image{'' if count == 1 else 's'} of unknowns"
                text = f"{new}, {session.unknown_images:,} in all.{html.skipped_text(skipped)}"
                said = html.note(text, "good")
                if session.model.classes:
                    try:
                        session.calibrate(session.target or share / 100)
                    except ValueError as error:  # too few images for this rate
                        said += html.note(" ".join(str(error).split()), "bad")
                return said

            return [*change(session, wanted, act), None]

        def on_calibrate(share: float, wanted: str, request: gr.Request) -> list[Any]:
            session = session_of(request)

            def act() -> str:
                session.calibrate(share / 100)
                return html.note(f"False-alarm rate set to {share:g}%.", "good")

            return change(session, wanted, act)

        def on_clear(wanted: str, request: gr.Request) -> list[Any]:
            session = session_of(request)

            def act() -> str:
                session.clear_unknown()
                return html.note("Nothing is refused now.", "good")

            return change(session, wanted, act)

        def on_show(
            label: str,
            images: list[str] | None,
            folder_path: str | None,
            unknown: list[str] | None,
            base: list[str] | None,
            request: gr.Request,
            progress: gr.Progress = gr.Progress(),  # noqa: B008
        ) -> str:
            session = session_of(request)
            try:
                known: list[tuple[GivenImage, str]] = [(image, label) for image in images or []]
                if known and known_class(session.model.classes, name := class_name(label)) is None:
                    raise ValueError(f"there is no class {name!r} here: give its name letter for letter")
                if folder_path and folder_path.strip():  # of a box that is not shown, the page's script sends nothing
                    _check_local(local)
                    known += images_in_folder(folder_path)
                found: Check = session.check(known, unknown or [], base or [], _shown(progress, "measuring"))
                return of_state(session, found.version, html.check_html(found))
            except (ValueError, OSError) as error:
                return html.note(" ".join(str(error).split()), "bad")

        def state_of(session: TeachingSession, version: int) -> str:
            return f"{named.setdefault(session, secrets.token_hex(8))} {version}"

        def of_state(session: TeachingSession, version: int, shown: str) -> str:
            return html.of_state(shown, state_of(session, version), now=version == session.version)

        def on_seen(figures: str | None, answer: str | None, request: gr.Request) -> str:
            session = session_of(request, "show")
            return html.style_of_before({figures or "", answer or ""} - {state_of(session, session.version)})

        def on_save(wanted: str, request: gr.Request) -> list[Any]:
            session = session_of(request)

            def act() -> str:
                _check_local(local)
                return html.note(f"Saved to {session.save()}.", "good")

            return change(session, wanted, act)

        def on_reload(wanted: str, request: gr.Request) -> list[Any]:
            session = session_of(request)

            def act() -> str:
                _check_local(local)
                session.reload()
                return html.note("Read the file again.", "good")

            return change(session, wanted, act)

        def on_make(wanted: str, request: gr.Request) -> list[Any]:
            return made(request, wanted, "copy_to", "The memory can be downloaded.")

        def on_export(
            wanted: str,
            request: gr.Request,
            progress: gr.Progress = gr.Progress(),  # noqa: B008
        ) -> list[Any]:
            progress(0.1, desc="exporting")
            return made(request, wanted, "export_to", "The ONNX file can be downloaded.")

        # A file goes with its session: that of a visitor who changed nothing is the first one, not one made for this request.
        def made(request: gr.Request, wanted: str, how: str, said: str) -> list[Any]:
            session, path = session_of(request, "ask"), None

            def act() -> str:
                nonlocal path
                version = session.version
                path = getattr(session, how)(downloads.place_of(session))
                downloads.keep(path, _address(request))
                prepared.setdefault(session, {})[how] = version
                return html.note(said, "good")

            values = change(session, wanted, act)
            if path is not None:
                values[list(_DOWNLOADS).index(how) - len(_DOWNLOADS)] = offered(session, how, path)
            return values

        page.load(on_load, [tab], [*shared, rate], js=_TAB, show_progress="hidden", api_visibility="private")
        gr.Timer(2).tick(on_tick, [seen, find, tab], shared, js=_TICK, show_progress="hidden", api_visibility="private")
        camera.stream(
            on_frame,
            [camera],
            answer,
            stream_every=_SECONDS_BETWEEN_ANSWERS,
            concurrency_id=CAMERAS,
            concurrency_limit=MOST_CAMERAS,  # each that is open holds one
            time_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )
        # Of each kind, an address may have half of what runs, so that others never wait for all of its work.
        quiet: dict[str, Any] = {"api_visibility": "private", "concurrency_id": CHANGES, "concurrency_limit": _WORKS}
        many = quiet | {"concurrency_id": IMAGES}  # what many images may be given to
        asked.change(
            on_asked,
            [asked],
            answer,
            concurrency_id=ASKED,
            concurrency_limit=_WORKS,
            show_progress="hidden",
            api_visibility="private",
        )
        learn_frame.click(on_learn_frame, [name, find], shared, show_progress_on=status, **quiet)
        learn_files.click(
            on_learn_files, [name, files, folder, find], [*shared, files, folder], show_progress_on=status, **many
        )
        learn_path.click(on_learn_path, [path, find], shared, show_progress_on=status, **many)
        classes.click(on_forget, [find], shared, show_progress_on=status, **quiet)
        undo.click(on_undo, [seen, find], shared, show_progress_on=status, **quiet)
        for given in (unknown_files, unknown_folder):
            given.upload(on_unknown, [given, rate, find], [*shared, given], show_progress_on=promise, **many)
        rate.release(on_calibrate, [rate, find], shared, show_progress_on=promise, **quiet)
        calibrate.click(on_calibrate, [rate, find], shared, show_progress_on=promise, **quiet)
        clear.click(on_clear, [find], shared, show_progress_on=promise, **quiet)
        show.click(
            on_show,
            [truth, known_files, known_path, others, bases],
            checked,
            show_progress_on=checked,
            **many,
        )
        seen.change(
            on_seen,
            [figures, answered],
            before,
            js=_SHOWN,
            show_progress="hidden",
            api_visibility="private",
        )
        save.click(on_save, [find], shared, show_progress_on=status, **quiet)
        reload.click(on_reload, [find], shared, show_progress_on=status, **quiet)
        make.click(on_make, [find], shared, show_progress_on=status, **quiet)
        own = quiet | {"concurrency_id": EXPORTS, "concurrency_limit": 1}
        export.click(on_export, [find], shared, show_progress_on=status, **own)

        def on_find(wanted: str, request: gr.Request) -> list[Any]:
            return view(session_of(request, "show"), None, wanted)

        find.change(on_find, [find], shared, show_progress="hidden", api_visibility="private")
    return page


def _address(request: gr.Request) -> str:
    client = request.client
    return neighbourhood(client.host) if client else ""


def _answered(session: TeachingSession, image: GivenImage | None) -> str:
    if image is None:
        return html.waiting_html("The answer appears here.")
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


def _about(session: TeachingSession) -> str:
    backbone = session.model.backbone
    return html.escape(
        f"Backbone {backbone.name}, {backbone.feature_dim} features, frozen; {type(session.model.head).__name__}"
    )


def _about_file(session: TeachingSession, local: bool) -> str:
    # Visitors from elsewhere are not shown the folders of this machine.
    where = "no file" if session.path is None else str(session.path.absolute() if local else session.path.name)
    state = "saved" if session.saved else "not saved"
    known = session.model.classes
    return html.note(f"{html.count_of_classes(len(known))}; {where}; {state}.")

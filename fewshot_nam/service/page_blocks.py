"""The teaching page: which event of which component does what, and how many of each run at a time."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder

from fewshot_nam.service import page_html as html
from fewshot_nam.service.page_events import Events, as_error
from fewshot_nam.service.page_layout import Layout
from fewshot_nam.service.page_requests import (
    ASKED,
    CAMERAS,
    CHANGES,
    EXPORTS,
    IMAGES,
    MOST_CAMERAS,
)
from fewshot_nam.service.teaching import TeachingSession
from fewshot_nam.service.visitors import Sessions

TITLE = "fewshot-nam: teach a class from one image"
_WORKS = 16  # with many images, of which two are decoded at a time
_SECONDS_BETWEEN_ANSWERS = 0.5
# A number that a tab of a browser keeps when it loads the page again, in whichever way: within a Space's frame, a browser does not
# tell a reload from a visit. Who duplicates a tab copies its number: the tab that is open holds a lock on it, and the other takes a
# new one. Within another site the page may be allowed to keep nothing; without TLS there are no locks, but reloads are known.
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
# Over a slow network Gradio's script sends each image of a camera all the same: answers would be older and older, and clicks would
# wait behind images. One of a stream is under way at a time; those meanwhile are dropped. A connection may be lost without a word.
_ONE_FRAME = r"""() => {
    const send = window.fetch, under_way = new Set();
    window.fetch = async (address, options, ...rest) => {
        if (!/\/gradio_api\/stream\/[^/]+$/.test(address)) return send(address, options, ...rest);
        const nothing = () => new Response("{}", {headers: {"Content-Type": "application/json"}});
        if (under_way.has(address)) return nothing();
        under_way.add(address);
        const ended = AbortSignal.timeout(30000);
        try { return await send(address, {...options, signal: ended}, ...rest); }
        catch (error) {
            if (ended.aborted) return nothing();
            throw error;
        } finally { under_way.delete(address); }
    };
}"""
# What is before the camera at the click, whether it is sent or not: images that are sent are up to some seconds old.
_SHOT = """(name, find) => {
    const video = document.querySelector("#camera video");
    if (!video?.srcObject?.active || !video.videoWidth) return [name, find, null];
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    return [name, find, {url: canvas.toDataURL("image/jpeg", 0.95)}];
}"""
# After a first click the next class may lie where the forgotten one was, Undo names the change before, and the camera shows nearly
# the same: of clicks in one place that follow each other within half a second the first counts, and of those of a key that is held.
_ONE_OF_MANY_CLICKS = """() => {
    let last = null;
    const guarded = event => event.target.closest("#undo, #learn-frame, [data-forget]");
    document.addEventListener("keydown", event => {
        if (event.repeat && guarded(event)) event.preventDefault();
    }, true);
    document.addEventListener("click", event => {
        if (!guarded(event)) return;
        const near = last && Math.hypot(event.x - last.x, event.y - last.y) < 40;  // as taps of a finger are
        const again = near && event.timeStamp - last.timeStamp < 500;
        if (again) event.stopImmediatePropagation();
        last = event;
    }, true);
}"""
# The number comes again and again, since what was sent with the load may have been refused or forgotten. What a tab shows, it knows
# best: Gradio's State is that of the visitors who asked last.
_TICK = """(shown, find) => {
    const states = [...document.querySelectorAll("[data-of]")].map(shows => shows.dataset.of);
    shown = document.querySelector("#seen [data-shown]")?.dataset.shown ?? "";
    return [shown, find, window.fewshotNamTab ?? null, states.join()];
}"""
# Once files are learned, the boxes are emptied: unless something was wrong, or they hold those of the next class by now. Each click
# has a number, which comes back when its files were learned.
_GIVEN = """(name, files, folder, find) => {
    const given = window.fewshotNamGiven ??= [];
    given.push(JSON.stringify([files, folder]));
    return [name, files, folder, find, String(given.length - 1)];
}"""
_LEARNED = """(files, folder, learned) => {
    const same = window.fewshotNamGiven[learned.match(/[0-9]+/)?.[0]] === JSON.stringify([files, folder]);
    return same ? [null, null] : [files, folder];
}"""
_UNDO = '(shown, find) => [document.querySelector("#seen [data-shown]")?.dataset.shown ?? "", find]'


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
            raise as_error("the image was not uploaded")
        return payload.path
    try:
        return base64.b64decode(payload.url.partition(",")[2], validate=True)
    except ValueError:
        raise as_error("the image cannot be read") from None


def build(sessions: Sessions, local: bool = True) -> gr.Blocks:
    """Return the page.

    Args:
        sessions: of its visitors.
        local: the visitors sit at this machine: they may name its folders, and save to the memory's file.
    """
    events = Events(sessions, local)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        at = Layout(_about(sessions.first), local)
        for given in (at.camera, at.asked):
            given.preprocess = as_given  # a class of its own would make Gradio write a file of types beside this one
        page.load(
            events.on_load, [at.tab], [*at.shared, at.rate], js=_TAB, show_progress="hidden", api_visibility="private"
        )
        for script in (_ONE_FRAME, _ONE_OF_MANY_CLICKS):
            page.load(js=script, api_visibility="private")
        gr.Timer(2).tick(
            events.on_tick,
            [at.shown, at.find, at.tab, at.states],
            [*at.shared, at.before],
            js=_TICK,
            show_progress="hidden",
            api_visibility="private",
        )
        at.camera.stream(
            events.on_frame,
            [at.camera],
            at.camera_answer,
            stream_every=_SECONDS_BETWEEN_ANSWERS,
            concurrency_id=CAMERAS,
            concurrency_limit=MOST_CAMERAS,  # each that is open holds one
            time_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )
        # Of each kind, an address may have half of what runs, so that others never wait for all of its work.
        quiet: dict[str, Any] = {
            "api_visibility": "private",
            "concurrency_id": CHANGES,
            "concurrency_limit": MOST_CAMERAS,
        }
        many = quiet | {"concurrency_id": IMAGES, "concurrency_limit": _WORKS}  # what many images may be given to
        # What is given while the same is under way: Gradio's default drops it without a word.
        each, last = {"trigger_mode": "multiple"}, {"trigger_mode": "always_last"}
        at.asked.change(
            events.on_asked,
            [at.asked],
            at.answer,
            concurrency_id=ASKED,
            concurrency_limit=_WORKS,
            show_progress="hidden",
            api_visibility="private",
        )
        at.learn_frame.click(
            events.on_learn_frame,
            [at.name, at.find, at.camera],
            at.shared,
            js=_SHOT,
            show_progress_on=at.status,
            **quiet,
            **each,
        )
        at.learn_files.click(
            events.on_learn_files,
            [at.name, at.files, at.folder, at.find, at.click],
            [*at.shared, at.learned],
            js=_GIVEN,
            show_progress_on=at.status,
            **many,
            **each,
        ).success(None, [at.files, at.folder, at.learned], [at.files, at.folder], js=_LEARNED, api_visibility="private")
        at.learn_path.click(events.on_learn_path, [at.path, at.find], at.shared, show_progress_on=at.status, **many)
        at.classes.click(events.on_forget, [at.find], at.shared, show_progress_on=at.status, **quiet, **each)
        at.undo.click(events.on_undo, [at.shown, at.find], at.shared, js=_UNDO, show_progress_on=at.status, **quiet)
        for given, on_given in ((at.unknown_files, events.on_unknown), (at.unknown_folder, events.on_unknown_folder)):
            given.upload(
                on_given, [given, at.rate, at.find], [*at.shared, given], show_progress_on=at.promise, **many, **each
            )
        for set_rate in (at.rate.release, at.calibrate.click):
            set_rate(events.on_calibrate, [at.rate, at.find], at.shared, show_progress_on=at.promise, **quiet, **last)
        at.clear.click(events.on_clear, [at.find], at.shared, show_progress_on=at.promise, **quiet)
        at.show.click(
            events.on_show,
            [at.truth, at.known_files, at.known_path, at.others, at.bases],
            at.checked,
            show_progress_on=at.checked,
            **many,
            **last,
        )
        at.save.click(events.on_save, [at.find], at.shared, show_progress_on=at.status, **quiet)
        at.reload.click(events.on_reload, [at.find], at.shared, show_progress_on=at.status, **quiet)
        at.make.click(events.on_make, [at.find], at.shared, show_progress_on=at.status, **quiet)
        own = quiet | {"concurrency_id": EXPORTS, "concurrency_limit": 1}
        at.export.click(events.on_export, [at.find], at.shared, show_progress_on=at.status, **own)

        at.find.change(events.on_find, [at.find], at.shared, show_progress="hidden", api_visibility="private")
    return page


def _about(session: TeachingSession) -> str:
    backbone = session.model.backbone
    return html.escape(
        f"Backbone {backbone.name}, {backbone.feature_dim} features, frozen; {type(session.model.head).__name__}"
    )

"""Which requests of the page are passed on to Gradio: those that its own script sends, and bodies that cost little to read.

Gradio has more routes than the page needs: some write files that nothing removes, and some send requests elsewhere. Of a file that
is a URL it passes on what another site answers, whose script would then be one of the page. It reads a body as JSON whatever
its size, which takes fifty times its bytes where it holds nothing but empty lists. It fetches what a path that is a URL names, and
keeps answers that are never collected. What is cancelled goes on in its thread, while Gradio takes its place for free.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import monotonic as _now
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from starlette.responses import JSONResponse, PlainTextResponse

from fewshot_nam.service.given_images import MOST_IMAGES
from fewshot_nam.service.hosts import Application, Receive, Scope, Send, client_of
from fewshot_nam.service.page_values import (
    LONGEST_TEXT,
    STRANGE,
    is_click,
    is_host,
    is_long,
    is_short,
    is_used,
    read_json,
    wrong_value,
)

if TYPE_CHECKING:
    import gradio as gr

LONGEST_BODY = 8 * 2**20  # bytes: a frame of a camera in base64
MOST_BODIES = 16 * LONGEST_BODY  # of all that are read at a time
_MOST_PARTS = 100_000  # commas and brackets of a body; 2,000 files of a folder have some 20,000
_SECONDS = 60  # in which a body comes, and in which answers are collected
_SECONDS_OF_PROGRESS = 10  # in which a browser that asks how far an upload is learns that it has ended
_MOST_ANSWERS = 50  # messages of one visitor that wait to be collected: three for a request
_MOST_OF_ALL = 500
_MOST_NAMES = (
    2000  # of visitors who have asked lately; those whose work is done and whose answers are not taken go first
)
IMAGES = "images"
"""What Gradio's queue calls the functions that may be given many images."""
EXPORTS = "exports"
"""What it calls the function that exports."""

ASKED = "asked"
"""What it calls the function that answers to one image, which may be large."""

CHANGES = "changes"
"""What it calls the functions that change a memory, with one image or none."""

CAMERAS = "cameras"
"""What it calls the function that answers to a camera, as long as that is open."""
MOST_CAMERAS = 50
QUEUED = 200
"""Requests that wait for their answer, of all visitors."""

# A visitor's name is of the client's own choice, so that many may be one: of all that there is, an address has half at most.
_MOST_OF_AN_ADDRESS = QUEUED // 2
_MOST_CONNECTIONS = 500
_MOST_WORK = 2  # of these that a visitor has at a time: one that runs, and one that waits
_MOST_CHANGES = 8  # clicks that follow each other quickly
_MOST_WORK_OF_ALL = {
    IMAGES: 16,
    ASKED: 16,
    CHANGES: MOST_CAMERAS,  # a class of pupils learn at once what their cameras show
    EXPORTS: 4,
    CAMERAS: MOST_CAMERAS,
}  # an export takes some 15 seconds
_VISITOR = re.compile(r"[A-Za-z0-9_-]{1,64}")  # Gradio names one by some ten letters, its client by 36
_PREFIX = r"(?:/gradio_api)?"
_POST = re.compile(_PREFIX + r"/(?:queue/join|stream/[\w-]+(?:/close)?|reset)/?")
_FRAME = re.compile(_PREFIX + r"/stream/([\w-]+)")
_UPLOAD = re.compile(_PREFIX + r"/upload")
_ANSWERS = re.compile(_PREFIX + r"/queue/data")
_PROGRESS = re.compile(_PREFIX + r"/upload_progress")
_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:")  # of more than one letter: not a drive
_GET = re.compile(
    r"/|/(?:config/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json|pwa_icon(?:/\d+)?)|/(?:assets|static|svelte)/.*"
    + f"|{_PREFIX}/(?:info/?|startup-events|app_id/?|user/?|token/?|login_check/?|queue/data|upload_progress"
    + r"|heartbeat/[A-Za-z0-9_-]{1,64}|file=(?:/|[A-Za-z]:[\\/]).*)",
    re.DOTALL,
)


class _Refused(Exception):
    """A body that is not read to its end: the status and why."""


class PageRequests:
    """Answer 404 to what the page's script does not send, and 4xx to bodies that are too long, too involved or too slow.

    Args:
        app: what is served.
        blocks: the page, whose answers that wait to be collected are bounded.
        framed_by: a site that may show the page within its own, beside the page itself; ``None`` for none: what a user clicks on
            another site would be a click on the page.
        uploads: the directory of what was uploaded, from which files are taken; ``None`` for any.
        most_connections: of an address.
    """

    def __init__(
        self,
        app: Application,
        blocks: gr.Blocks,
        framed_by: str | None = None,
        uploads: str | os.PathLike[str] | None = None,
        most_connections: int = _MOST_CONNECTIONS,
    ) -> None:
        self.app, self.blocks, self.most_connections = app, blocks, most_connections
        self.uploads = None if uploads is None else Path(uploads).resolve()
        given = (os.path.abspath(uploads), str(self.uploads)) if uploads is not None else ()
        self._deepest = 2 + max((len(Path(path).parts) for path in given), default=0)  # a directory for each file
        sites = "'self'" if framed_by is None else f"'self' {framed_by}"
        self._headers = [(b"content-security-policy", f"frame-ancestors {sites}".encode())]
        if framed_by is None:  # of browsers that do not know the other; it cannot name a site
            self._headers.append((b"x-frame-options", b"SAMEORIGIN"))
        self._coming: Counter[str] = Counter()  # by address, bytes of the bodies that are being read
        self._connections: Counter[str] = Counter()  # by address
        self._collecting: Counter[str] = Counter()  # by visitor, how many connections take answers
        self._asked: dict[str, tuple[float, str]] = {}  # by visitor, when and from which address; the last one last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""

        async def framed(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *self._headers]}
            await send(message)

        if scope["type"] == "http":
            hosts = [value for name, value in scope["headers"] if name.lower() == b"host" and value]
            if not all(map(is_host, hosts)):
                await _said("the request names no host", 400)(scope, receive, framed)
                return
            scope["headers"] = [(name, value) for name, value in scope["headers"] if is_used(name, value)]
        address = client_of(scope)
        if self._connections[address] >= self.most_connections:
            await _said("too many connections of one address", 503)(scope, receive, framed)
            return
        self._connections[address] += 1
        try:
            await self._answer(scope, receive, framed)
        finally:
            self._connections[address] -= 1
            if not self._connections[address]:
                del self._connections[address]

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["method"] in ("GET", "HEAD", "OPTIONS"):
            if _GET.fullmatch(scope["path"]) is None or is_long(scope["path"]):
                await PlainTextResponse("the page has no such address", 404)(scope, receive, send)
            elif scope["path"] in ("/", "/config", "/config/"):  # what stands behind them is for the page's script
                await self.app({**scope, "query_string": b""}, receive, send)
            elif _PROGRESS.fullmatch(scope["path"]):
                await self._upload(scope, receive, _finished(send))
            else:
                await self._collect(scope, receive, send)
        elif scope["method"] == "POST" and _UPLOAD.fullmatch(scope["path"]):
            await self._upload(scope, receive, send)
        elif scope["method"] == "POST" and _POST.fullmatch(scope["path"]):
            await self._pass_on(scope, receive, send)
        else:
            await PlainTextResponse("the page has no such address", 404)(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on an upload, which ``UploadLimit`` looks at, or who asks how far it is; what Gradio notes of it is forgotten."""
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        names = [value for name, value in query if name == "upload_id"]
        if not all(map(_VISITOR.fullmatch, names)):
            await _said("an upload is named by up to 64 letters", 400)(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            asyncio.get_running_loop().call_later(_SECONDS_OF_PROGRESS, _forget_uploads, names)

    async def _collect(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request for an address, and note whose answers it takes meanwhile."""
        visitor = ""
        if _ANSWERS.fullmatch(scope["path"]):
            query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
            visitors = [value for name, value in query if name == "session_hash"]
            visitor = visitors[0] if len(visitors) == 1 else ""  # of two, Gradio takes the other one
            # Gradio begins an answer before it looks.
            if visitor not in self.blocks._queue.pending_messages_per_session:
                await _said("there are no answers for this visitor", 404)(scope, receive, send)
                return
        self._collecting[visitor] += 1
        try:
            await self.app(scope, receive, send)
        except Exception:
            # Of two that take one visitor's answers, the end of one takes their place away, and Gradio fails in the other.
            if not visitor or visitor in self.blocks._queue.pending_messages_per_session:
                raise
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._collecting[visitor] -= 1
            if not self._collecting[visitor]:
                del self._collecting[visitor]

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        held, address = [0], client_of(scope)
        try:
            body = await asyncio.wait_for(self._read(receive, held, address), _SECONDS)
            if body is None:  # the client went away
                return
            self._check(body, scope["path"].rstrip("/"), address)
        except _Refused as refused:
            await _said(refused.args[1], refused.args[0])(scope, receive, send)
            return
        except asyncio.TimeoutError:
            await _said(f"the body did not come within {_SECONDS} seconds", 408)(scope, receive, send)
            return
        finally:
            self._coming[address] -= held[0]
            if not self._coming[address]:
                del self._coming[address]
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return unread.pop() if unread else await receive()

        await self.app(scope, again, send)

    async def _read(self, receive: Receive, held: list[int], address: str) -> bytes | None:
        """Return the body, or None where the client went away; ``held`` counts what is kept meanwhile."""
        chunks: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            chunk = message.get("body", b"")
            if held[0] + len(chunk) > LONGEST_BODY:
                raise _Refused(413, f"a request may have {LONGEST_BODY:,} bytes")
            every, of_address = (len(chunk) + there for there in (self._coming.total(), self._coming[address]))
            if every > MOST_BODIES or of_address > MOST_BODIES // 2:
                raise _Refused(503, "too many large requests at the moment: try again")
            held[0] += len(chunk)
            self._coming[address] += len(chunk)
            chunks.append(chunk)
            if not message.get("more_body"):
                return b"".join(chunks)

    def _check(self, body: bytes, path: str, address: str) -> None:
        """Raise ``_Refused`` for a body that costs too much to read or to answer, or that calls no function of the page."""
        if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_PARTS:
            raise _Refused(413, "a request may not have so many parts")
        try:
            asked = read_json(body)
        except ValueError:
            raise _Refused(400, "the body is not JSON") from None
        parts: list[Any] = [asked]
        files: list[str] = []
        while parts:
            part = parts.pop()
            if isinstance(part, dict):
                if isinstance(part.get("path"), str) and _URL.match(part["path"]):
                    raise _Refused(400, "an image is uploaded, not fetched from another address")
                if "\0" in str(part.get("path")):
                    raise _Refused(400, "a path has no zero character")
                if isinstance(part.get("path"), str) and part["path"]:
                    files.append(part["path"])
                parts.extend(part.values())
            elif isinstance(part, list):
                parts.extend(part)
        if len(files) > MOST_IMAGES:  # Gradio looks at each while nothing else is answered
            raise _Refused(413, f"a request may have {MOST_IMAGES:,} files")
        frame = _FRAME.fullmatch(path)
        if frame is None and not path.endswith("/queue/join"):
            if len(body) > LONGEST_TEXT:
                raise _Refused(413, f"such a request may have {LONGEST_TEXT:,} bytes")
            return
        if not isinstance(asked, dict) or not is_short(asked.get("event_id")):
            raise _Refused(400, "the body names no function of the page")
        # The types are exact: Gradio takes "5" and 5.0 for 5.
        visitor, number = asked.get("session_hash"), asked.get("fn_index")
        if frame is not None:
            event = self.blocks._queue.event_ids_to_events.get(frame[1])
            if event is None:
                raise _Refused(404, "there is no such camera")
            if visitor != event.session_hash:
                raise _Refused(400, STRANGE)
            if wrong := wrong_value(asked.get("data"), event.fn.inputs):
                raise _Refused(400, wrong)
            self._check_uploaded(files)
            return
        function = self.blocks.fns.get(number) if type(number) is int else None
        if function is None or not isinstance(visitor, str) or not _VISITOR.fullmatch(visitor):
            raise _Refused(400, "the body names no function of the page, or no visitor")
        html = {number for number, one in self.blocks.blocks.items() if one.get_block_name() == "html"}
        clicked = any(number in html for number, _ in function.targets)
        if clicked and not is_click(asked.get("event_data")):
            raise _Refused(400, STRANGE)
        if wrong := wrong_value(asked.get("data"), function.inputs):
            raise _Refused(400, wrong)
        self._bound_work(visitor, address, function.concurrency_id)
        self._check_uploaded(files)
        self._bound_answers(visitor, address)

    def _check_uploaded(self, files: Sequence[str]) -> None:
        """Raise ``_Refused`` where a file does not lie among the uploads."""
        if self.uploads is None:
            return
        for file in set(files):
            # To resolve a path takes time with the square of its length, and asks the system for each part.
            if is_long(file) or len(re.findall(r"[\\/]", file)) > self._deepest:
                raise _Refused(400, "the image was not uploaded")
            try:
                found = Path(file).resolve()
                uploaded = found.is_relative_to(self.uploads) and found.is_file()
            except (OSError, RuntimeError):  # too long, say
                uploaded = False
            if not uploaded:
                raise _Refused(400, "the image was not uploaded")

    def _bound_work(self, visitor: str, address: str, kind: str) -> None:
        """Raise ``_Refused`` where too much, of this kind or at all, of this visitor, address or of all runs or waits."""
        queue = self.blocks._queue
        every = [event for one in queue.event_queue_per_concurrency_id.values() for event in one.queue]
        waiting = sum(event.concurrency_id == kind for event in every)
        every += [event for job in queue.active_jobs for event in job or []]
        of_address = [event for event in every if client_of(event.request.scope) == address]
        if len(of_address) >= _MOST_OF_AN_ADDRESS:
            raise _Refused(503, "too much of what your address asked for waits: try again later")
        most = _MOST_WORK_OF_ALL.get(kind)
        if most is None:
            return
        own = sum(event.session_hash == visitor and event.concurrency_id == kind for event in every)
        if own >= (_MOST_CHANGES if kind == CHANGES else _MOST_WORK):
            raise _Refused(503, "what you asked for before is being done: ask for more when it is")
        if waiting >= most or sum(event.concurrency_id == kind for event in of_address) >= most // 2:
            raise _Refused(503, "too much work of others waits: try again later")

    def _bound_answers(self, visitor: str, address: str) -> None:
        """Drop answers that are not collected; raise ``_Refused`` where too many of this visitor wait.

        First those go of the address that has most: who has just asked collects them a moment later.
        """
        now, queue = _now(), self.blocks._queue
        if not isinstance(queue.pending_messages_per_session, _Answers):
            queue.pending_messages_per_session = _Answers(queue.pending_messages_per_session)
        waiting = queue.pending_messages_per_session
        if visitor in waiting and waiting[visitor].qsize() > _MOST_ANSWERS:
            raise _Refused(503, "too many answers wait to be collected: try again later")
        self._asked.pop(visitor, None)
        self._asked[visitor] = now, address
        busy = {visitor, *self._collecting, *(event.session_hash for event in queue.event_ids_to_events.values())}
        over = len(self._asked) - _MOST_NAMES
        for name, (when, _) in list(self._asked.items()):
            if now - when <= _SECONDS and over <= 0:
                break
            if name not in busy:
                self._drop(name)
                over -= 1
        sizes = {name: messages.qsize() for name, messages in list(waiting.items())}
        total, of_address = sum(sizes.values()), Counter[str]()
        asked = {name: self._asked.get(name, (0.0, "")) for name in sizes}
        for name, size in sizes.items():
            of_address[asked[name][1]] += size
        for name in sorted(sizes, key=lambda name: (-of_address[asked[name][1]], asked[name][0])):
            if total <= _MOST_OF_ALL:
                break
            if name != visitor and name not in self._collecting:
                self._drop(name)
                total -= sizes[name]

    def _drop(self, visitor: str) -> None:
        """Forget a visitor, and the answers that are not collected."""
        self._asked.pop(visitor, None)
        self.blocks._queue.pending_event_ids_session.pop(visitor, None)
        self.blocks._queue.pending_messages_per_session.pop(visitor, None)


class _Answers(dict[str, Any]):
    """Answers that wait, by visitor. What comes for a visitor who was dropped is lost.

    Gradio's own holds the 2,000 names that came last, and fails at the next answer for an earlier one: its camera stops, say.
    """

    def __missing__(self, visitor: str) -> asyncio.Queue[Any]:
        return asyncio.Queue()


def _forget_uploads(names: Sequence[str]) -> None:
    """Forget what Gradio notes of how far uploads are: it keeps this for ever where no browser asks for the end."""
    from gradio.routes import file_upload_statuses

    for name in names:
        file_upload_statuses._statuses.pop(name, None)
        file_upload_statuses._signals.pop(name, None)


def _finished(send: Send) -> Send:
    """Return what says that an upload is done where Gradio does not know it: the browser showed 404 for one that begins late."""
    unknown = [False]

    async def passed_on(message: Any) -> None:
        if message["type"] == "http.response.start" and message["status"] == 404:
            unknown[0] = True
            message = {**message, "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        elif unknown[0]:
            message = {**message, "body": b'data: {"msg": "done"}\n\n'}
        await send(message)

    return passed_on


def _said(text: str, status: int) -> JSONResponse:
    """Return an answer that Gradio's script can show."""
    return JSONResponse({"detail": text, "error": text}, status)

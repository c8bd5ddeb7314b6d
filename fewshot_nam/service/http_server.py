"""The server for machines: a thin skin of FastAPI over ``MemoryService``. ``fewshot-nam serve`` starts it.

Images come as the bytes of image files: one as the body of a request, or several as the files of a multipart form. Changes need a
token, ``Authorization: Bearer ...``; without one in the server's environment nothing can be changed. ``/openapi.json`` describes
all of it; there is no page of documentation, since FastAPI's would be fetched from outside.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar
from urllib.parse import unquote_to_bytes

import anyio
import anyio.from_thread
import anyio.to_thread
import h11
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

import fewshot_nam
from fewshot_nam.heads.validation import as_unicode
from fewshot_nam.heap import few_heaps
from fewshot_nam.io.image_io import UnreadableImage
from fewshot_nam.service.forms import boundary_of, few_parts
from fewshot_nam.service.hosts import KnownHosts, check_address, client_of, is_loopback, known_hosts, neighbourhood, url
from fewshot_nam.service.open_files import raise_open_files
from fewshot_nam.service.serving import MOST_SCORES, Limits, MemoryService, Metrics, Overloaded, TooManyPixels, Unusable
from fewshot_nam.service.workers import look_after_workers
from fewshot_nam.vision.image_transform import TransformFailed

TOKEN = "FEWSHOT_NAM_TOKEN"
"""The environment variable with the token that changes need."""

_SETTINGS = "FEWSHOT_NAM_SERVE"  # what a worker is to serve
_MOST_FIELDS = 16  # of a form, which nothing uses
_LAST_SECONDS = 30  # that a server which is stopped has for the answers it works on
_IMAGES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["images"],
                }
            },
        },
    }
}


class Forget(BaseModel):
    """The classes to forget."""

    labels: list[str] = Field(min_length=1, max_length=10_000)


_MOST_JSON = 2_000_000  # bytes of a body that names classes
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": what,
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
            }
        },
    }
    for status, what in (("4XX", "The request is at fault: one line says how."), ("5XX", "The server is: likewise."))
}
_TOP = Query(
    json_schema_extra={"minimum": 1, "maximum": MOST_SCORES}
)  # of others the service says why, in its own words

_NAMES: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": Forget.model_json_schema()}}}
}


class Guard:
    """Measure every request, and refuse one whose body is too large, or does not come, before it is read to the end.

    Args:
        app: what is served.
        most: bytes of a body.
        metrics: where requests are counted.
    """

    BODIES = 8  # of the largest size that may be in memory at once
    SECONDS = 120.0  # in which a body must have come

    def __init__(self, app: ASGIApp, most: int, metrics: Metrics) -> None:
        self.app, self.most, self.metrics = app, most, metrics
        self._bodies: Counter[str] = Counter()  # bytes of the requests that run, by where they come from

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, read, status, whole, client = time.perf_counter(), 0, 0, False, client_of(scope)

        async def counted() -> Message:
            nonlocal read, whole
            if whole:  # the application waits for the client to go away
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self.SECONDS - (time.perf_counter() - started))
            except asyncio.TimeoutError:
                raise _Refused(408, f"the request did not come within {self.SECONDS:g} seconds") from None
            size = len(message.get("body", b""))
            read, whole = read + size, not message.get("more_body", False)
            self._bodies[client] += size
            if read > self.most:
                raise too_large
            together = self.BODIES * self.most  # of which one client may take half, and leaves the others the rest
            if self._bodies.total() > together or self._bodies[client] > together // 2:
                raise _Refused(503, "too many large requests at once: try again later")
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        too_large = _Refused(413, f"the request is larger than {self.most:,} bytes")
        # There are none, and to read what is said to be some takes the square of its length before Python 3.12.6 (CVE-2024-7592).
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
        headers = dict(scope["headers"])
        said = headers.get(b"content-length", b"0")
        try:
            if b"content-length" in headers and b"transfer-encoding" in headers:
                # A proxy that goes by the length would take the rest of the body for a request.
                raise _Refused(400, "the request has both Content-Length and Transfer-Encoding")
            if not _is_utf_8(scope.get("query_string", b"")):
                # Starlette would replace what it cannot read, and two names could become one.
                raise _Refused(400, "the query of the address is not UTF-8")
            if not said.isdigit() or int(said) > self.most:
                raise too_large
            await self.app(scope, counted, noted)
        except _Refused as refused:
            if status:  # the answer has begun
                raise
            more = {"Connection": "close"} | ({"Retry-After": "1"} if refused.status == 503 else {})
            await JSONResponse({"error": str(refused)}, refused.status, more)(scope, receive, noted)
        except ClientDisconnect:  # in the middle of its request: no one is left to answer
            status = 499
        finally:
            self._bodies[client] -= read
            if not self._bodies[client]:
                del self._bodies[client]
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.request(route, status or 500, time.perf_counter() - started)


def _is_utf_8(query: bytes) -> bool:
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        return False
    return True


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _LargeChunks(h11.Connection):
    """A connection that refuses bodies in chunks of few bytes: each byte would cost as much as a kilobyte does otherwise."""

    SMALLEST = 512  # bytes on average, of many that come together
    refused = ""
    """Why, once it has."""
    _chunks = _most = 0

    def receive_data(self, data: bytes) -> None:
        """Take what came."""
        self._chunks, self._most = 0, 16 + len(data) // self.SMALLEST
        super().receive_data(data)

    def next_event(self) -> Any:
        """Return what is next in what came."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = 0
        elif isinstance(event, h11.Data):
            self._chunks += 1
            if self._chunks > self._most:
                self.refused = f"The chunks of a body have {self.SMALLEST} bytes or more on average."
                raise h11.RemoteProtocolError(self.refused)
        return event


class Impatient(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, but connections are closed on which nothing moves, or bodies come in tiny chunks.

    Nothing moves where a client does not send the head of a request, or does not take anything of an answer, in some seconds.
    """

    MOST_OF_AN_ADDRESS = 500  # connections, of the 1,000 that the server takes
    SECONDS = 20.0
    SECONDS_TO_TAKE = 60.0
    _connections: ClassVar[Counter[str]] = Counter()  # by address
    _address = ""
    _timer: asyncio.TimerHandle | None = None
    _untaken: asyncio.TimerHandle | None = None

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self.conn: _LargeChunks = _LargeChunks(h11.SERVER)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, where no answer has begun, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(self.conn.refused or msg)
        else:
            self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._address = neighbourhood((transport.get_extra_info("peername") or ("",))[0])
        self._connections[self._address] += 1
        most = self.MOST_OF_AN_ADDRESS if self.limit_concurrency is None else self.limit_concurrency // 2
        if self._connections[self._address] > min(most, self.MOST_OF_AN_ADDRESS):
            transport.abort()
            return
        transport.set_write_buffer_limits(high=0)  # writing pauses as soon as the client does not take all at once
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait on where this was a part of a head only."""
        super().data_received(data)
        if not self._without_request():
            self._stop()
        elif self._timer is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._connections[self._address] -= 1
        if not self._connections[self._address]:
            del self._connections[self._address]
        self._stop()
        self._taken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for the client to take its answer."""
        super().pause_writing()
        self._untaken = self.loop.call_later(
            self.SECONDS_TO_TAKE, self._end_unless_taken, self.transport.get_write_buffer_size()
        )

    def resume_writing(self) -> None:
        """Wait no more for that."""
        self._taken()
        super().resume_writing()

    def _taken(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

    def _end_unless_taken(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        else:
            self._untaken = self.loop.call_later(self.SECONDS_TO_TAKE, self._end_unless_taken, left)

    def _without_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._timer = self.loop.call_later(self.SECONDS, self._end)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        if self._without_request() and not self.transport.is_closing():
            self.transport.close()


def check_token(token: str | None) -> None:
    """Raise ``ValueError`` for a token that clients could not send in a header: they differ in how they encode other letters."""
    if token and not (token.isascii() and token.isprintable() and token == token.strip()):
        raise ValueError(
            f"{TOKEN} must be printable ASCII letters without spaces around them: clients could not send another"
        )


def build(
    service: MemoryService,
    token: str | None = None,
    hosts: frozenset[str] | None = None,
    proxies: Sequence[str] = (),
    *,
    addresses: bool = False,
) -> FastAPI:
    """Return the application.

    Args:
        service: what is served.
        token: what changes need; ``None`` or empty refuses all changes.
        hosts: the names that it answers to, as ``known_hosts`` gives them; ``None`` for all.
        proxies: those of them that a proxy before it passes on.
        addresses: whether it answers to every address too.

    Raises:
        ValueError: a token that no request could carry.
    """
    check_token(token)
    app = FastAPI(
        title="fewshot-nam", version=fewshot_nam.__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    metrics, limits = Metrics(), service.limits
    # Those that wait for the backbone take no threads from those that only look: the server stays in good health under load.
    # Changes may wait for another program that holds the memory's file, and answers do not wait for them.
    answering, changing = (anyio.CapacityLimiter(limits.waiting + 1) for _ in range(2))

    async def run(
        limiter: anyio.CapacityLimiter, act: Callable[..., dict[str, Any]], *arguments: Any
    ) -> dict[str, Any]:
        return await anyio.to_thread.run_sync(act, *arguments, limiter=limiter)

    def may_change(request: Request) -> None:
        if not token:
            raise HTTPException(403, f"this server answers only: start it with {TOKEN} set to allow changes")
        given = request.headers.get("authorization", "")
        scheme, _, said = given.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(said.lstrip(" ").encode(), token.encode()):
            raise HTTPException(
                401, "changes need the token: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"}
            )

    async def images_of(request: Request) -> list[bytes]:
        """Return the images of a request: the files of its form, or its body."""
        content_type = request.headers.get("content-type", "")
        if not content_type.lower().startswith("multipart/form-data"):
            body = await request.body()
            return [body] if body else []
        try:
            boundary = boundary_of(content_type) or b""
            few = few_parts(request.receive, boundary, limits.images + _MOST_FIELDS + 1)
            async with Request(request.scope, few).form(max_files=limits.images, max_fields=_MOST_FIELDS) as form:
                return [await one.read() for _, one in form.multi_items() if isinstance(one, UploadFile)]
        except (MultiPartException, StarletteHTTPException) as error:
            raise HTTPException(400, f"the form cannot be read: {getattr(error, 'detail', None) or error}") from error

    @app.exception_handler(StarletteHTTPException)
    def known(request: Request, error: StarletteHTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    def misused(request: Request, error: RequestValidationError) -> Response:
        wrong = [f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"error": " ".join("; ".join(wrong[:3]).split())}, 422)

    def failed(status: int) -> Callable[[Request, Exception], Response]:
        def answer(request: Request, error: Exception) -> Response:
            headers = {"Retry-After": "1"} if status == 503 else None
            # It may name a file whose name is not UTF-8.
            return JSONResponse({"error": as_unicode(" ".join(str(error).split()))}, status, headers)

        return answer

    for kind, status in (
        (UnreadableImage, 422),
        (TooManyPixels, 413),
        (TransformFailed, 422),
        (Unusable, 500),
        (ValueError, 400),
        (Overloaded, 503),
        (OSError, 507),
    ):
        app.add_exception_handler(kind, failed(status))

    app.add_middleware(KnownHosts, hosts=hosts, proxies=proxies, addresses=addresses)
    app.add_middleware(Guard, most=limits.body_bytes, metrics=metrics)

    shows_token: dict[str, Any] = {"dependencies": [Depends(HTTPBearer(auto_error=False))], "responses": _ERRORS}

    @app.post("/predict", openapi_extra=_IMAGES, responses=_ERRORS)
    async def predict(request: Request, top: Annotated[int, _TOP] = 5) -> dict[str, Any]:
        """Answer images: for each the class, or null where it is refused as unknown."""
        images = await images_of(request)
        answer = await run(
            answering, service.predict, images, top, lambda: anyio.from_thread.run(request.is_disconnected)
        )
        refused = sum(one["label"] is None for one in answer["predictions"])
        metrics.answers(len(answer["predictions"]) - refused, refused)
        return answer

    @app.post("/learn", openapi_extra=_IMAGES, **shows_token)
    async def learn(request: Request, label: str) -> dict[str, Any]:
        """Learn images of one class; needs the token. The answer comes when it is saved."""
        may_change(request)
        return await run(changing, service.learn, await images_of(request), label)

    @app.post("/forget", openapi_extra=_NAMES, **shows_token)
    async def forget(request: Request) -> dict[str, Any]:
        """Forget classes; needs the token. The answer comes when it is saved."""
        # As a parameter of this function, the body would be read and parsed before the token is.
        may_change(request)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _MOST_JSON:
                raise HTTPException(413, f"the names of classes are larger than {_MOST_JSON:,} bytes")
        try:
            what = Forget.model_validate_json(bytes(body))
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from None
        return await run(changing, service.forget, what.labels)

    @app.post("/calibrate", openapi_extra=_IMAGES, **shows_token)
    async def calibrate(request: Request, target: float = 0.05, confidence: float | None = None) -> dict[str, Any]:
        """Set the threshold from images of unknowns; needs the token. The answer comes when it is saved."""
        may_change(request)
        return await run(changing, service.calibrate, await images_of(request), target, confidence)

    @app.get("/classes", responses=_ERRORS)
    def classes() -> dict[str, Any]:
        """Return the classes, the threshold and the backbone."""
        return service.describe()

    @app.get("/health", responses=_ERRORS)
    def health() -> dict[str, Any]:
        """Say that the server answers; it reads the file again where that has changed."""
        state = service.current()
        return {"status": "ok", "classes": len(state.head.classes), "writes": state.writes, "changes": bool(token)}

    @app.get("/metrics", responses=_ERRORS)
    def measures() -> PlainTextResponse:
        """Return counts and times in Prometheus' text format; each worker counts its own."""
        return PlainTextResponse(metrics.text(service.current()), media_type="text/plain; version=0.0.4")

    return app


def serve(
    memory: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    weights: str | None = None,
    device: str = "cpu",
    workers: int = 1,
    threads: int | None = None,
    limits: Limits | None = None,
    hosts: Sequence[str] = (),
) -> None:
    """Serve a memory's file until the process is asked to stop; requests that have begun are answered first.

    Args:
        memory: the file.
        host: the address to listen on.
        port: its port.
        weights: a file of the backbone's weights, or "random"; ``None`` for those the memory notes.
        device: "cpu" or "cuda".
        workers: processes; each holds the backbone and the memory.
        threads: of torch in each; ``None`` for its choice.
        limits: of requests.
        hosts: names that a proxy before it passes on, or by which others reach it, beside those of the machine; away from the
            loopback it answers to every address too.

    Raises:
        OSError: the memory cannot be read, or the port is taken.
        ImportError, ValueError: it is no memory, or its backbone or weights are not there.
    """
    check_address(host, port)
    check_token(os.environ.get(TOKEN))
    os.environ[_SETTINGS] = json.dumps(
        {
            "memory": memory,
            "weights": weights,
            "device": device,
            "threads": threads,
            "limits": limits or Limits(),
            "hosts": sorted(known_hosts(host, hosts)),
            "proxies": list(hosts),
            "addresses": not is_loopback(host),
        }
    )
    common: dict[str, Any] = {
        "host": host,
        "port": port,
        "log_level": "warning",
        "timeout_graceful_shutdown": _LAST_SECONDS,
        "limit_concurrency": min(1000, raise_open_files() // 2),  # workers inherit the limit
        "http": Impatient,
        "ws": "none",
        "timeout_worker_healthcheck": 60,  # a worker that loads PyTorch on a busy machine is silent for long
        "server_header": False,
    }
    if workers == 1:
        app = from_environment()  # what is wrong with the memory is raised here, not in a worker
        print(f"serving {memory} at {url(host, port)} (Ctrl+C stops it)", file=sys.stderr, flush=True)
        uvicorn.run(app, **common)
    else:
        MemoryService(memory, weights, device)
        look_after_workers()
        print(f"serving {memory} at {url(host, port)} by {workers} processes", file=sys.stderr, flush=True)
        uvicorn.run("fewshot_nam.service.http_server:from_environment", factory=True, workers=workers, **common)


def from_environment() -> FastAPI:
    """Return the application that ``serve`` describes to its workers."""
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    few_heaps()
    given = json.loads(os.environ[_SETTINGS])
    if given["threads"] is not None:
        import torch

        torch.set_num_threads(given["threads"])
    service = MemoryService(given["memory"], given["weights"], given["device"], Limits(*given["limits"]))
    names, proxies, addresses = frozenset(given["hosts"]), given["proxies"], given["addresses"]
    return build(service, os.environ.get(TOKEN), names, proxies, addresses=addresses)


def _end_with(parent: Any) -> None:
    """End this worker when the process that began it has been killed: it would go on with the port, and the old token."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)  # after the answers that it works on
    time.sleep(_LAST_SECONDS)
    os._exit(1)

"""Asking a running ``fewshot-nam serve``, with the standard library alone: what ``fewshot-nam predict --server`` does."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import secrets
import selectors
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from fewshot_nam.io.regular_files import open_regular

_SECONDS = 60.0  # to connect, and of each write
_SECONDS_OF_AN_ANSWER = 300.0  # a large network on a CPU takes seconds for each image
_CHANGES = ("/learn", "/forget", "/calibrate")
_MOST_BYTES = 2**28  # of an answer
LARGEST_SCORE = 1e300  # of a score: what is larger is not a number of a fewshot-nam serve
_ANOTHER = "answers {}, but not as a fewshot-nam serve does"
_LONGEST_NAME = 10_000  # characters of a class
_MOST_SHOWN = 500  # characters of an error of the server


class ServerRefusal(ValueError):
    """The server answered with an error.

    Attributes:
        status: of HTTP, none of 200 to 299.
        retry_after: seconds after which the server asks to try again; ``None`` where it does not say.
    """

    def __init__(self, text: str, status: int, retry_after: int | None = None) -> None:
        super().__init__(text)
        self.status, self.retry_after = status, retry_after


class Client:
    """A connection to a server, kept open between requests; threads that share one take turns.

    Args:
        url: of the server, such as "http://127.0.0.1:8000".
        token: what changes need; ``None`` for answers alone.

    Raises:
        ValueError: ``url`` is no address of a server, or no request could carry ``token``.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        parts = urlsplit(url)
        try:
            port, host = parts.port, parts.hostname or ""
            host.encode("idna")  # as the connection does
        except ValueError:
            port, host = -1, ""
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ValueError("a token has printable ASCII letters alone")
        sendable = parts.path.isascii() and parts.path.isprintable() and " " not in parts.path
        if parts.scheme not in ("http", "https") or not host or port == -1 or not sendable:
            raise ValueError(f"{url!r} is no address of a server: expected one like http://127.0.0.1:8000")
        self.url, self._path, self._token = url, parts.path.rstrip("/"), token
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._lock = threading.Lock()
        try:
            self._connection = kind(host, port, timeout=_SECONDS)
        except http.client.InvalidURL:
            raise ValueError(f"{url!r} is no address of a server: {host!r} is no name of one") from None

    def predict(self, images: Sequence[Path | bytes], top: int = 5) -> dict[str, Any]:
        """Return the answers to images, files or their bytes, as the server gives them.

        Raises:
            OSError: a file cannot be read, or the server cannot be reached.
            ServerRefusal: the server refuses the request; the message is the server's.
            ValueError: what answers is no ``fewshot-nam serve``.
        """
        found = self._send("POST", "/predict", {"top": top}, _form(images))
        answers = found.get("predictions")
        if not isinstance(answers, list) or len(answers) != len(images) or not all(map(_is_prediction, answers)):
            raise ValueError(f"{self.url}: {_ANOTHER.format(200)}")
        return found

    def learn(self, images: Sequence[Path | bytes], label: str) -> dict[str, Any]:
        """Learn images of one class; raises as ``predict``."""
        return self._send("POST", "/learn", {"label": label}, _form(images))

    def forget(self, labels: Sequence[str]) -> dict[str, Any]:
        """Forget classes; raises as ``predict``."""
        body = json.dumps({"labels": list(labels)}).encode()
        return self._send("POST", "/forget", {}, ("application/json", body))

    def calibrate(self, images: Sequence[Path | bytes], target: float = 0.05) -> dict[str, Any]:
        """Set the threshold from images of unknowns; raises as ``predict``."""
        return self._send("POST", "/calibrate", {"target": target}, _form(images))

    def classes(self) -> dict[str, Any]:
        """Return the classes, the threshold and the backbone; raises as ``predict``."""
        return self._send("GET", "/classes", {}, None)

    def close(self) -> None:
        """Close the connection; a later request opens it again."""
        with self._lock:
            self._connection.close()

    def _send(self, method: str, path: str, query: dict[str, Any], body: tuple[str, bytes] | None) -> dict[str, Any]:
        headers = {} if body is None else {"Content-Type": body[0]}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        target = f"{self._path}{path}" + (f"?{urlencode(query)}" if query else "")
        with self._lock:  # of two requests on one connection, one would read the other's answer
            self._close_if_dropped()
            try:
                try:
                    answer, content = self._ask(method, target, body, headers)
                except ConnectionError:  # the server hung up while we were asking
                    if path in _CHANGES:  # it may have been made
                        raise
                    self._connection.close()
                    answer, content = self._ask(method, target, body, headers)
            except (http.client.HTTPException, OSError) as error:
                self._connection.close()
                raise OSError(
                    f"{self.url}: no answer from a fewshot-nam serve ({error or type(error).__name__})"
                ) from error
            except BaseException:  # an interrupt: the answer is still to come, and is not that of the next request
                self._connection.close()
                raise
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not 200 <= answer.status < 300:  # a gateway may send one elsewhere: nothing was done there
            said = (found.get("error") or found.get("detail")) if isinstance(found, dict) else None
            if not isinstance(said, str):
                said = _ANOTHER.format(answer.status)
            text = " ".join(said.split())
            text = text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
            seconds = answer.headers.get("Retry-After", "")
            # A date may stand there too; then we do not know.
            after = int(seconds) if re.fullmatch("[0-9]{1,9}", seconds) else None
            raise ServerRefusal(f"{self.url}: {text}", answer.status, after)
        if not isinstance(found, dict):
            raise ValueError(f"{self.url}: {_ANOTHER.format(answer.status)}")
        return found

    def _ask(
        self, method: str, target: str, body: tuple[str, bytes] | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            self._connection.request(method, target, None if body is None else body[1], headers)
        except ConnectionError:
            if self._connection.sock is None:  # it was never there
                raise
            # A server that refuses a request, as one that is too large, answers and hangs up before it has read it all.
            with contextlib.suppress(OSError, http.client.HTTPException):
                answered = self._answer()
                self._connection.close()
                return answered
            raise
        return self._answer()

    def _answer(self) -> tuple[http.client.HTTPResponse, bytes]:
        """Return the answer. A limit of the connection's own is of each read, and a server may drip."""
        opened, late = self._connection.sock, threading.Event()

        def end() -> None:
            late.set()
            with contextlib.suppress(OSError):  # it was closed meanwhile
                opened.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(_SECONDS_OF_AN_ANSWER, end)
        timer.daemon = True
        timer.start()
        opened.settimeout(None)
        try:
            answer = self._connection.getresponse()
            content = _content(answer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not late.is_set():
                if isinstance(error, ValueError):  # of a chunk with fewer than no bytes
                    raise http.client.HTTPException(str(error)) from error
                raise
        finally:
            timer.cancel()
            with contextlib.suppress(OSError):
                opened.settimeout(_SECONDS)
        if late.is_set():
            raise TimeoutError(
                f"it has not ended within {_SECONDS_OF_AN_ANSWER:g} seconds: give fewer images at a time"
            )
        return answer, content

    def _close_if_dropped(self) -> None:
        """Close a connection that the server has closed, as it does after some idle seconds; the next request opens it again."""
        opened = self._connection.sock
        if opened is None:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(opened, selectors.EVENT_READ)
            if selector.select(0):  # nothing is to be read now but the end
                self._connection.close()


def _content(answer: http.client.HTTPResponse) -> bytes:
    content = answer.read(_MOST_BYTES + 1)
    if answer.length or len(content) > _MOST_BYTES:
        raise http.client.HTTPException(f"it is cut short, or larger than {_MOST_BYTES:,} bytes")
    return content


def _is_prediction(answer: Any) -> bool:
    """Return whether an answer has what is read of it."""
    return (
        isinstance(answer, dict)
        and not isinstance(answer.get("best"), bool)
        and not isinstance(answer.get("score"), bool)
        and isinstance(answer.get("best"), (str, int))
        and len(str(answer["best"])) <= _LONGEST_NAME
        and isinstance(answer.get("score"), (float, int))
        and -LARGEST_SCORE <= answer["score"] <= LARGEST_SCORE
        and isinstance(answer.get("accepted", ""), (bool, type(None)))
    )


def _form(images: Sequence[Path | bytes]) -> tuple[str, bytes]:
    """Return the type and the body of a multipart form with these images."""
    boundary = secrets.token_hex(16)
    parts = []
    for i, image in enumerate(images):
        if isinstance(image, bytes):
            content = image
        else:
            with open_regular(image) as file:
                content = file.read()
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{i}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        parts += [head.encode(), content, b"\r\n"]
    return f"multipart/form-data; boundary={boundary}", b"".join([*parts, f"--{boundary}--\r\n".encode()])

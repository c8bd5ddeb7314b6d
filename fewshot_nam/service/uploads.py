"""Where uploads and downloads of the page lie on the disk: in directories of this user alone, bounded, and removed in the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse

from fewshot_nam.io.atomic import machine_number, process_runs
from fewshot_nam.service.downloads import FOLDER
from fewshot_nam.service.forms import boundary_of, few_parts
from fewshot_nam.service.hosts import Application, Receive, Scope, Send, client_of, is_loopback

MOST_BYTES = 4 * 2**30  # of all uploads that lie there together: some thousand photographs
REMOVED_SECONDS, LOOKED_FOR_SECONDS = 3600.0, 600.0  # how old files become, and how often it is looked for old ones
_KEPT_SECONDS = REMOVED_SECONDS + LOOKED_FOR_SECONDS  # that an upload lies there
_COMING_SECONDS = 60  # in which something more of an upload comes
_SLOWEST = 1024  # bytes a second, after these: an upload keeps each of its files open to its end
_PREFIX = "fewshot-nam-"
_MOST_PARTS = 2100  # a folder of 2,000 images, and the end
_LONGEST_NAME = 255  # bytes, as file systems have them
_LONGEST_HEADER = 8192  # bytes, as Gradio's
_SWEPT_SECONDS = 5.0  # after the end of an upload, what was broken off is removed
_CLOCK_SECONDS = 1.0  # by which the times of files may be off
_BLOCK = 4096  # bytes that the smallest file takes, and each directory


def temporary_directory() -> Path:
    """Return a new directory that only this user can read. Those of processes that were killed are removed."""
    if sys.platform != "win32":  # where there is no way to ask whether a process runs
        _remove_abandoned()
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{machine_number()}-{os.getpid()}-"))


def _remove_abandoned() -> None:
    # Machines may share the directory, such as containers do: their processes cannot be seen from here.
    ours = f"{_PREFIX}{machine_number()}-"
    for found in Path(tempfile.gettempdir()).glob(f"{ours}*"):
        process = re.fullmatch(ours + r"([0-9]{1,9})-\w+", found.name)
        if process and not process_runs(int(process[1])):
            with contextlib.suppress(OSError):  # gone meanwhile
                if not found.is_symlink() and found.stat().st_uid == os.getuid():
                    shutil.rmtree(found)


def remove_old(noted: Iterable[set[str]], kept: Collection[str]) -> None:
    """Remove the files that Gradio has noted, and the notes, of those older than an hour.

    In place of its ``delete_cache``, which ends for good where a file is noted while it looks, and keeps some notes for ever.

    Args:
        noted: sets of paths, to which other threads add.
        kept: paths that stay.
    """
    since = time.time() - REMOVED_SECONDS
    for paths in noted:
        for path in paths.copy():
            if path in kept:
                continue
            with contextlib.suppress(OSError, ValueError):  # gone already, or no path
                if os.lstat(path).st_ctime > since:
                    continue
                os.unlink(path)
                directory = os.path.dirname(path)
                if re.fullmatch("[0-9a-f]{64}", os.path.basename(directory)):  # Gradio's, of this file alone
                    os.rmdir(directory)
            paths.discard(path)


class _FilesOnly:
    """``receive`` of an upload, with an error at a field that is no file: Gradio keeps such a field in memory, however long."""

    def __init__(self, receive: Receive, boundary: bytes, begins: Callable[[], None]) -> None:
        self.receive, self._begins = receive, begins
        self._name, self._value, self._disposition = b"", b"", b""
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_header_field": self._in_name,
            "on_header_value": self._in_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._check,
        }
        self._parser = MultipartParser(boundary, callbacks)

    async def __call__(self) -> Any:
        message = await self.receive()
        if message["type"] == "http.request":
            with contextlib.suppress(MultipartParseError):  # Gradio refuses what is no form
                self._parser.write(message.get("body", b""))
        return message

    def _begin(self) -> None:
        self._begins()
        self._name = self._value = self._disposition = b""

    def _in_name(self, data: bytes, start: int, end: int) -> None:
        self._name = (self._name + data[start:end])[:_LONGEST_HEADER]

    def _in_value(self, data: bytes, start: int, end: int) -> None:
        self._value = (self._value + data[start:end])[:_LONGEST_HEADER]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _check(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"filename")
        if name is None:
            raise MultiPartException("an upload holds files and nothing else")
        if len(name) > _LONGEST_NAME:  # Gradio shortens it letter by letter, in time with the square of its length
            raise MultiPartException(f"the name of a file has up to {_LONGEST_NAME} bytes")


class UploadLimit:
    """Refuse uploads for which there is no room any more, before they are read.

    Args:
        app: what is served.
        directory: where it puts uploads; what lies directly in it are those that have not ended.
        most: bytes that all files in the directory take, each in one of its own.
        most_open: files of all uploads that are being read.
    """

    def __init__(
        self, app: Application, directory: str | os.PathLike[str], most: int = MOST_BYTES, most_open: int = 4096
    ) -> None:
        self.app, self.directory, self.most, self.most_open = app, Path(directory), most, most_open
        self._open: Counter[str] = Counter()  # by address, files of uploads that are being read
        self._coming = 0  # bytes of the uploads that are being read
        self._lying = 0  # bytes of what lies there, as last counted, and of what has ended since
        self._next_count = 0.0  # when they are counted again
        self._running: dict[object, float] = {}  # when each upload that is being read began
        self._given: Counter[str] = Counter()  # by address, bytes of the last hour, also those that are coming
        self._sweep: asyncio.Task[None] | None = None
        self._unswept = False  # whether an upload has ended since
        self._ended: deque[tuple[float, str, int]] = deque()  # when an upload ended, its address and bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 411 (of unknown length) or 507 (no room)."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith("/upload"):
            await self.app(scope, receive, send)
            return
        this = object()
        self._running[this] = time.time()
        try:
            await self._upload(scope, receive, send)
        finally:
            del self._running[this]
            self._unswept = True
            if self._sweep is None or self._sweep.done():
                self._sweep = asyncio.get_running_loop().create_task(self._remove_broken_off())

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = Counter(name.lower() for name, _ in scope["headers"])
        if names[b"content-type"] > 1 or names[b"content-length"] > 1:  # of two, Gradio may read the other one
            await PlainTextResponse("an upload has one type and one length", 400)(scope, receive, send)
            return
        try:
            boundary = boundary_of(dict(scope["headers"]).get(b"content-type", b""))
        except MultiPartException as error:
            await PlainTextResponse(error.message, 400)(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"")
        if not re.fullmatch(rb"[0-9]{1,18}", said):
            await PlainTextResponse("an upload says how long it is", 411)(scope, receive, send)
            return
        length = int(said)
        if time.monotonic() >= self._next_count:
            await self._count()
        if self._lying + self._coming + length > self.most:
            await PlainTextResponse(
                f"no room for {length:,} more bytes: uploads may take {self.most:,} together, and are removed after an hour",
                507,
            )(scope, receive, send)
            return
        address = client_of(scope)
        self._forget_old()
        # What is on this machine may fill its own disk.
        shared = not address or is_loopback(address)
        half = math.inf if shared else self.most // 2
        half_open = self.most_open if shared else self.most_open // 2
        if length > half - self._given[address]:
            await PlainTextResponse(
                f"no room for {length:,} more bytes: uploads from one address may take {half:,} in an hour", 507
            )(scope, receive, send)
            return
        came, received, opened, began = 0, 0, 0, time.monotonic()

        def count(size: int) -> None:
            nonlocal came
            came += size
            self._coming += size  # not what it says that will come: nothing may come
            self._given[address] += size
            if self._lying + self._coming > self.most or self._given[address] > half:
                raise MultiPartException("there is no room for more: uploads are removed after an hour")

        def begun() -> None:
            """Count what a file takes besides its bytes: many small ones took a thousand times as much as they have."""
            nonlocal opened
            count(2 * _BLOCK)
            if self._open.total() >= self.most_open or self._open[address] >= half_open:
                raise MultiPartException(f"too many files at one time: give {half_open:,} at most, or later")
            opened += 1
            self._open[address] += 1

        async def counted() -> Any:
            nonlocal received
            try:
                message = await asyncio.wait_for(receive(), _COMING_SECONDS)
            except asyncio.TimeoutError:
                raise MultiPartException(f"nothing came for {_COMING_SECONDS} seconds") from None
            if message["type"] == "http.disconnect":  # Gradio removes its files after this error alone
                raise MultiPartException("the client broke the upload off")
            received += (size := len(message.get("body", b"")))
            count(size)
            if received < _SLOWEST * (time.monotonic() - began - _COMING_SECONDS):
                raise MultiPartException(f"an upload comes with at least {_SLOWEST:,} bytes a second")
            return message

        answered = False

        async def answer(message: Any) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            files = _FilesOnly(few_parts(counted, boundary, _MOST_PARTS), boundary, begun) if boundary else counted
            await self.app(scope, files, answer)
        except OSError as error:
            if answered or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            self._next_count = 0.0  # what came of it is removed then
            await PlainTextResponse("no room: the disk of temporary files is full, or a file may not be so large", 507)(
                scope, receive, send
            )
        finally:
            self._coming -= came
            self._lying += came
            self._open[address] -= opened
            if not self._open[address]:
                del self._open[address]
            self._ended.append((time.monotonic(), address, came))

    async def _remove_broken_off(self) -> None:
        """Remove what was broken off, also where no further upload comes."""
        while self._unswept:
            await asyncio.sleep(_SWEPT_SECONDS)
            while (wait := self._next_count - time.monotonic()) > 0:
                await asyncio.sleep(min(wait, _SWEPT_SECONDS))
            self._unswept = False
            await self._count()

    def _forget_old(self) -> None:
        """Forget the uploads that ended so long ago that they are removed."""
        since = time.monotonic() - _KEPT_SECONDS
        while self._ended and self._ended[0][0] < since:
            _, address, came = self._ended.popleft()
            self._given[address] -= came
            if not self._given[address]:
                del self._given[address]

    async def _count(self) -> None:
        """Count what lies there, which takes longer the more there is: a tenth of the time at most."""
        self._next_count = math.inf  # others go on with what is known
        before, began = self._lying, time.monotonic()
        try:
            found = await asyncio.to_thread(self._taken)
            self._lying += found - before  # what ended meanwhile counts, perhaps twice
        finally:
            ended = time.monotonic()
            self._next_count = ended + 10 * (ended - began)

    def _taken(self) -> int:
        """Return the bytes of uploads that have ended or were broken off; the latter are removed.

        What was broken off after an upload began that is still being read cannot be told from its files, but by how much there is.
        """
        sizes, read, began = 0, 0, min(self._running.copy().values(), default=time.time()) - _CLOCK_SECONDS
        for root, folders, files in os.walk(self.directory):
            unfinished = root == os.fspath(self.directory)
            if unfinished and FOLDER in folders:
                folders.remove(FOLDER)
            for file in files:
                path = os.path.join(root, file)
                with contextlib.suppress(OSError):  # removed meanwhile
                    found = os.lstat(path)
                    if not unfinished:
                        sizes += _on_disk(found.st_size)
                    elif found.st_mtime < began:
                        os.unlink(path)
                    else:
                        read += _on_disk(found.st_size)
        return sizes + max(0, read - self._coming)  # what is being read counts as it comes


def _on_disk(size: int) -> int:
    """Return the bytes that a file of this size takes, with its directory."""
    return -(-size // _BLOCK) * _BLOCK + _BLOCK

"""Where uploads and downloads of the page lie on the disk: in directories of this user alone, bounded, and removed in the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from starlette.responses import PlainTextResponse

from fewshot_nam.io.atomic import machine_number, process_runs
from fewshot_nam.service.hosts import Application, Receive, Scope, Send

MOST_BYTES = 4 * 2**30  # of all uploads that lie there together: some thousand photographs
_UNFINISHED_SECONDS = 3600  # an upload that nothing was written to for so long has been broken off
_COMING_SECONDS = 60  # in which something more of an upload comes
_PREFIX = "fewshot-nam-"


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


class UploadLimit:
    """Refuse uploads for which there is no room any more, before they are read.

    Args:
        app: what is served.
        directory: where it puts uploads; what lies directly in it are those that have not ended.
        most: bytes of all files in the directory.
    """

    def __init__(self, app: Application, directory: str | os.PathLike[str], most: int = MOST_BYTES) -> None:
        self.app, self.directory, self.most = app, Path(directory), most
        self._coming = 0  # bytes of the uploads that are being read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 411 (of unknown length) or 507 (no room)."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith("/upload"):
            await self.app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"")
        if not re.fullmatch(rb"[0-9]{1,18}", said):
            await PlainTextResponse("an upload says how long it is", 411)(scope, receive, send)
            return
        length = int(said)
        if await asyncio.to_thread(self._taken) + self._coming + length > self.most:
            await PlainTextResponse(
                f"no room for {length:,} more bytes: uploads may take {self.most:,} together, and are removed after an hour",
                507,
            )(scope, receive, send)
            return
        self._coming += length
        try:
            await self.app(scope, receive, send)
        finally:
            self._coming -= length

    def _taken(self) -> int:
        """Return the bytes of uploads that have ended or were broken off; the latter are removed after an hour."""
        sizes, now = 0, time.time()
        for root, _, files in os.walk(self.directory):
            for file in files:
                path = os.path.join(root, file)
                with contextlib.suppress(OSError):  # removed meanwhile
                    found = os.lstat(path)
                    idle = now - found.st_mtime if Path(root) == self.directory else None
                    if idle is not None and idle > _UNFINISHED_SECONDS:
                        os.unlink(path)
                    elif idle is None or idle > _COMING_SECONDS:  # what is being read counts by its length
                        sizes += found.st_size
        return sizes

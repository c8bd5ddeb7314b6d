"""What the page prepares for its visitors to download: each file goes with its session, and all together are bounded."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from weakref import WeakKeyDictionary, finalize

from fewshot_nam.service.hosts import is_loopback
from fewshot_nam.service.teaching import TeachingSession

FOLDER = "downloads"  # in Gradio's directory: of what lies there it makes no further copy at every download
MOST_BYTES = 4 * 2**30


class Downloads:
    """Directories of sessions for their downloads.

    Args:
        directory: the one for temporary files, in which a folder is made.
        most: bytes of all files; those for visitors from one address, who may be one client, take half at most. Where there are
            more, the oldest go.
    """

    def __init__(self, directory: str | os.PathLike[str], most: int = MOST_BYTES) -> None:
        self.directory, self.most = Path(directory) / FOLDER, most
        self.directory.mkdir(parents=True, exist_ok=True)
        self._places: WeakKeyDictionary[TeachingSession, Path] = WeakKeyDictionary()
        self._address_of: OrderedDict[Path, str] = OrderedDict()  # the oldest first
        self._lock = threading.Lock()

    def place_of(self, session: TeachingSession) -> Path:
        """Return the directory of a session's downloads, which goes with the session."""
        with self._lock:
            if session not in self._places:
                self._places[session] = Path(tempfile.mkdtemp(dir=self.directory))
                finalize(session, shutil.rmtree, self._places[session], ignore_errors=True)
            return self._places[session]

    def keep(self, path: Path, address: str) -> None:
        """Keep a file that was written for a visitor from an address, and remove old ones where there are too many bytes."""
        with self._lock:
            self._address_of.pop(path, None)
            self._address_of[path] = address
            shared = not address or is_loopback(address)
            self._bound(address, math.inf if shared else self.most // 2)
            self._bound(None, self.most)

    def _bound(self, address: str | None, most: float) -> None:
        """Remove the oldest files for an address, ``None`` for all of them, but the last one."""
        sizes = {}
        for path in [*self._address_of]:
            try:
                sizes[path] = path.stat().st_size
            except OSError:  # removed after an hour, or with its session
                del self._address_of[path]
        *older, _ = found = [path for path, of in self._address_of.items() if address in (None, of)]
        total = sum(sizes[path] for path in found)
        for path in older:
            if total <= most:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= sizes[path]
            del self._address_of[path]

"""The cache of extracted features: where it is, what in it can be trusted, and whose turn it is to write."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from episodes.features.bank import FeatureBank


def default_cache_dir() -> Path:
    """Return where features are cached unless told otherwise; see ``extract``."""
    if own := os.environ.get("FEWSHOT_NAM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fewshot-nam"


def rows_to_keep(partial: Path, width: int, batch_size: int, n: int, skip_unreadable: bool) -> int:
    """Return how many rows an earlier run left behind that can be trusted: whole batches, up to the first doubtful row.

    Args:
        partial: raw float32 rows, one for each picture in order; all NaN where the picture was skipped.
        width: D, numbers in a row.
        batch_size: rows in a batch; only the last of all may have fewer.
        n: rows when all is done.
        skip_unreadable: whether rows of skipped pictures are welcome.
    """
    written = min(partial.stat().st_size // (4 * width), n)
    for start in range(0, written, batch_size):
        stop = min(start + batch_size, n)
        if stop > written:
            return start
        rows = np.fromfile(partial, dtype="<f4", count=(stop - start) * width, offset=start * width * 4).reshape(
            -1, width
        )
        skipped = np.isnan(rows).all(1)
        # A machine that lost power may leave zeros behind; and a skipped picture is an error in a run that skips none.
        sound = np.isfinite(rows).all(1) & rows.any(1) | (skipped & skip_unreadable)
        if not sound.all():
            return start
    return written


def cached_bank(path: Path, skip_unreadable: bool) -> FeatureBank | None:
    """Return the bank in ``path``, mapped; None where there is none, it is broken, or it left out pictures and must not."""
    if not path.is_file():
        return None
    try:
        bank = FeatureBank.load(path, check=False)  # its rows were checked before it was saved
    except ValueError as error:
        warnings.warn(f"{error}; extracting its features again", stacklevel=4)
        return None
    if bank.skipped and not skip_unreadable:
        return None  # made by a run that was allowed to skip: this one is to name the picture, or to find it mended
    return bank


def writable(folder: Path) -> bool:
    """Return whether files can be made in ``folder``, which is made if need be; warn where they cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        warnings.warn(
            f"extract: cache directory {folder} cannot be written ({error.strerror or error}); features are not cached. "
            "Set FEWSHOT_NAM_CACHE or cache_dir to one that can",
            stacklevel=4,
        )
        return False


@contextlib.contextmanager
def locked(path: Path, progress: bool) -> Iterator[None]:
    """Hold the lock beside ``path``, waiting for a process that has it; say so on stderr if ``progress``."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=1.0)
    except Timeout:
        if progress:
            print("extract: another process is extracting these features; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

"""The cache of extracted features: its directory, which of its files can be trusted, and the lock for writing."""

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
    """Return the directory where features are cached by default; see ``extract``."""
    if own := os.environ.get("FEWSHOT_NAM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fewshot-nam"


def rows_to_keep(partial: Path, width: int, batch_size: int, n: int, skip_unreadable: bool) -> int:
    """Return how many rows of an interrupted run can be used: whole batches, up to the first row that is not sound.

    Args:
        partial: raw float32 rows, one for each image in order; all NaN where the image was skipped.
        width: D, numbers in a row.
        batch_size: rows in a batch; only the last batch may have fewer.
        n: rows of the finished bank.
        skip_unreadable: whether this run skips unreadable images, so that rows of skipped images are sound.
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
        # A loss of power may leave zeros; and a skipped image is an error in a run that must not skip any.
        sound = np.isfinite(rows).all(1) & rows.any(1) | (skipped & skip_unreadable)
        if not sound.all():
            return start
    return written


def cached_bank(path: Path, skip_unreadable: bool) -> FeatureBank | None:
    """Return the bank in ``path``, mapped; None where there is none, it is broken, or it skipped images that this run must read."""
    if not path.is_file():
        return None
    try:
        bank = FeatureBank.load(path, check=False)  # its rows were checked before it was saved
    except ValueError as error:
        warnings.warn(f"{error}; extracting its features again", stacklevel=4)
        return None
    if bank.skipped and not skip_unreadable:
        return None  # extract again: the image is an error in this run, unless its file has been repaired
    return bank


def writable(folder: Path) -> bool:
    """Create ``folder`` if necessary and return whether files can be written there; warn where they cannot."""
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
    """Hold the lock for writing ``path``, waiting for a process that has it; print a line on stderr if ``progress``."""
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

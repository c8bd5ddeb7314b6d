"""Models by the file of their memory: start one, open one with the weights that its file notes, and change one file at a time."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fewshot_nam import heads
from fewshot_nam.io.atomic import remove_abandoned
from fewshot_nam.vision.catalogue import create
from fewshot_nam.vision.model import NAMModel
from fewshot_nam.vision.noted_weights import weights_file, weights_source
from fewshot_nam.vision.rebuilding import rebuild
from fewshot_nam.vision.saving import read_head

_LOCK_SECONDS = 300


def new_model(
    backbone: str,
    memory: str | os.PathLike[str],
    weights: str | None = None,
    *,
    head: str = "nam",
    model_options: Mapping[str, Any] | None = None,
    transform_options: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> tuple[NAMModel, dict[str, Any]]:
    """Return a model that knows no class, and the notes for its file.

    Args:
        backbone: a name, as ``backbones.create`` takes it.
        memory: the file it will be saved to; nothing is written yet.
        weights: a file, "random", or ``None`` for the published weights.
        head: a name, as ``fewshot_nam.heads.create`` takes it.
        model_options: as for ``backbones.create``.
        transform_options: as for ``backbones.create``.
        device: "cpu" or "cuda".

    Raises:
        ImportError, ValueError: as ``backbones.create``.
    """
    source = weights_source(weights, memory) or "published"
    made = create(
        backbone,
        _weights(source, memory),
        model_options=model_options,
        transform_options=transform_options,
        device=device,
    )
    return NAMModel(made, heads.create(head, base=made.base_statistics)), {"weights": source}


def open_model(
    memory: str | os.PathLike[str], weights: str | None = None, device: str = "cpu"
) -> tuple[NAMModel, dict[str, Any]]:
    """Return the model of a memory's file, and the file's notes. What killed processes left beside the file is removed.

    Args:
        memory: the file.
        weights: a file or "random", in place of what the memory notes.
        device: "cpu" or "cuda".

    Raises:
        OSError: the file cannot be read.
        ImportError, ValueError: it is no memory, or its backbone or weights are not there.
    """
    remove_leftovers(memory)
    about, head, _ = read_head(memory)
    notes = dict(about.get("notes") or {})
    source = weights_source(weights, memory) or notes.get("weights", "published")
    found = _weights(source, memory)
    if isinstance(found, Path) and not found.is_file():
        if weights is not None:
            raise ValueError(f"--weights {weights}: there is no such file")
        raise ValueError(
            f"{memory} was learned with the weights in {source}, which does not exist: pass --weights FILE"
        )
    model = NAMModel(rebuild(about, found, device), head).load(memory)
    return model, notes | {"weights": source}


def _weights(source: str, memory: str | os.PathLike[str]) -> bool | Path:
    """Return the weights as ``create`` takes them; random ones are the same every time."""
    if source == "published":
        return True
    if source != "random":
        return weights_file(memory, source)
    torch.manual_seed(0)
    return False


def remove_leftovers(memory: str | os.PathLike[str]) -> None:
    """Remove what killed processes left beside a memory's file: unfinished files and a lock. What cannot be removed stays."""
    remove_abandoned(memory)
    lock = _lock_of(Path(memory))
    with contextlib.suppress(OSError):  # no right to
        if lock.exists() and (held := _try_lock(lock)) is not None:
            held()


@contextlib.contextmanager
def exclusive(path: Path, seconds: float | None = None) -> Iterator[None]:
    """Wait until no other process changes this memory: of two that read and then write, one would undo the other's change.

    The lock is a file beside the memory, which is removed at the end.

    Args:
        path: the memory's file.
        seconds: to wait, at most; ``None`` for five minutes.

    Raises:
        OSError: the directory is missing or cannot be written, or another process holds the lock for so long.
    """
    lock = _lock_of(path)
    if not os.access(lock.parent, os.W_OK):
        raise OSError(f"{path}: the directory {lock.parent} is missing or cannot be written")
    seconds = _LOCK_SECONDS if seconds is None else seconds
    until = time.monotonic() + seconds
    while (held := _try_lock(lock)) is None:
        if time.monotonic() > until:
            raise OSError(
                f"{path}: locked for {seconds:g} seconds: another command is changing it, as {lock.name} beside it says"
            )
        time.sleep(0.05)
    try:
        yield
    finally:
        held()


def _lock_of(path: Path) -> Path:
    path = Path(os.path.realpath(path))  # one lock, whatever links the file is named by
    return path.with_name(f".{path.name}.lock")


def _try_lock(lock: Path) -> Callable[[], None] | None:
    """Lock a file and return what removes and unlocks it; ``None`` where another process holds it.

    Raises:
        OSError: the file cannot be made.
    """
    if sys.platform == "win32":  # there the library removes the file itself
        from filelock import FileLock, Timeout

        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
        except Timeout:
            return None
        return held.release
    import fcntl

    file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last holder may have removed it since we opened it, and another process may hold a new one by now.
        ours, there = os.fstat(file), os.stat(lock)
        current = (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
    except (BlockingIOError, FileNotFoundError):
        current = False
    except OSError:
        os.close(file)
        raise
    if not current:
        os.close(file)
        return None

    def release() -> None:
        lock.unlink(missing_ok=True)  # while we hold it: afterwards it may be another's
        os.close(file)

    return release

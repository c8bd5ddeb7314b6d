"""Published few-shot class-incremental benchmarks: a base session with many images, then sessions of new classes with five each.

After each session a model is tested on all classes seen so far. Published lists say which images belong to which session.
"""

from __future__ import annotations

import importlib
import os
from typing import NamedTuple

from episodes.data.class_names import nearest
from episodes.data.image_dataset import ImageSet

# The function that opens each benchmark. To add a benchmark, write a function and add a line.
_BENCHMARKS = {
    "omniglot-fscil": "episodes.data.omniglot_fscil:omniglot_sessions",
    "cifar100-fscil": "episodes.data.fscil:cifar100_sessions",
    "cub-fscil": "episodes.data.fscil:cub_sessions",
    "mini-imagenet-fscil": "episodes.data.fscil:mini_imagenet_sessions",
}


class Session(NamedTuple):
    """One session of an incremental benchmark.

    Attributes:
        support: images of the new classes, to learn from: many of each class in session 0, the base session; five later.
        queries: test images of all classes seen so far. Its classes begin with those of the session before, in order.
    """

    support: ImageSet
    queries: ImageSet


def benchmarks() -> list[str]:
    """Return the names of the benchmarks."""
    return list(_BENCHMARKS)


def open_sessions(name: str, data_dir: str | os.PathLike[str] | None = None) -> list[Session]:
    """Return the sessions of an incremental benchmark.

    Args:
        name: ``"omniglot-fscil"`` (1,200 base classes, 9 sessions of 47), ``"cifar100-fscil"`` or ``"mini-imagenet-fscil"`` (60
            base classes, 8 sessions of 5), or ``"cub-fscil"`` (100 base classes, 10 sessions of 10).
        data_dir: where the data set is. Default: the environment's ``FEWSHOT_DATA``, else ``data`` in the working directory.

    Raises:
        ValueError: an unknown name, or images that are missing or not those of the lists.
    """
    if name not in _BENCHMARKS:
        raise ValueError(f"open_sessions: {name!r} is none of {', '.join(_BENCHMARKS)}{nearest(name, _BENCHMARKS)}")
    module, _, function = _BENCHMARKS[name].partition(":")
    sessions: list[Session] = getattr(importlib.import_module(module), function)(data_dir)
    return sessions

"""The registry of sequence tasks: one file a family, one registration a task."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from fewshot_nam.sequences.tasks.task import SequenceTask

TaskT = TypeVar("TaskT", bound=type[SequenceTask])

_FAMILIES = (
    "numbers",
    "scan",
    "dyck",
    "chomsky",
    "recognition",
    "recall",
    "groups",
    "retrieval",
    "bits",
    "geometry",
    "graphs",
    "listops",
    "babi",
    "long_range",
    "language",
)
_TASKS: dict[str, tuple[type[SequenceTask], str]] = {}


def register(name: str) -> Callable[[TaskT], TaskT]:
    """Register a task class under a name; the first line of its docstring says in lists what it is.

    Raises:
        ValueError: the name is taken, or the class has no docstring.
    """

    def add(task: TaskT) -> TaskT:
        if name in _TASKS:
            raise ValueError(f"there is a task {name!r} already: {_TASKS[name][0].__qualname__}")
        if not task.__doc__:
            raise ValueError(f"{task.__qualname__} needs a docstring: its first line describes the task in lists")
        task.name = name
        _TASKS[name] = (task, task.__doc__.strip().splitlines()[0].rstrip("."))
        return task

    return add


def available() -> dict[str, str]:
    """Return the names of all tasks, each with a line on what it asks."""
    _load()
    return {name: summary for name, (_, summary) in sorted(_TASKS.items())}


def create(name: str, **options: Any) -> SequenceTask:
    """Return a task by name.

    Args:
        name: one of ``available()``.
        options: of the task, such as ``preset="long"``.

    Raises:
        ValueError: an unknown name, or options that the task does not take.
    """
    _load()
    if name not in _TASKS:
        near = difflib.get_close_matches(name, _TASKS, n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no sequence task {name!r}{hint} There are: {', '.join(sorted(_TASKS))}")
    try:
        return _TASKS[name][0](**options)
    except TypeError as error:
        raise ValueError(f"the task {name!r} cannot take these options: {error}") from None


def _load() -> None:
    for family in _FAMILIES:
        importlib.import_module(f"fewshot_nam.sequences.tasks.{family}")

"""The registry of sequence models: one file a family, one registration a model."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.tasks.task import SequenceTask

ModelT = TypeVar("ModelT", bound=type[SequenceModel])

SIZES = ("tiny", "small", "paper")
"""``tiny`` for tests, ``small`` for two processor cores, ``paper`` as published."""

_FAMILIES = (
    "turing",
    "lsam",
    "nam_transformer",
    "transformer",
    "universal",
    "lstm",
    "stack_rnn",
    "tape_rnn",
    "ibert",
    "xlnet",
    "stm",
    "mann",
    "stm_sentences",
    "forward_lstm",
    "rmc",
    "ntm",
    "dnc",
    "tpr_rnn",
    "linear_transformer",
    "causal_transformer",
)


class _Entry(NamedTuple):
    build: type[SequenceModel]
    sizes: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any]
    summary: str


_MODELS: dict[str, _Entry] = {}


def register(
    name: str, summary: str, sizes: Mapping[str, Mapping[str, Any]], **options: Any
) -> Callable[[ModelT], ModelT]:
    """Register a model class under a name.

    Args:
        name: for ``create``.
        summary: one line for lists.
        sizes: the arguments of the class for every one of ``SIZES``.
        options: arguments that are the same at every size.

    Raises:
        ValueError: the name is taken, or a size is missing.
    """
    if name in _MODELS:
        raise ValueError(f"there is a model {name!r} already: {_MODELS[name].build.__qualname__}")
    missing = [size for size in SIZES if size not in sizes]
    if missing:
        raise ValueError(f"the model {name!r} has no size {missing[0]!r}: give arguments for {', '.join(SIZES)}")

    def add(model: ModelT) -> ModelT:
        _MODELS[name] = _Entry(model, sizes, options, summary)
        return model

    return add


def available() -> dict[str, str]:
    """Return the names of all models, each with a line on what it is."""
    _load()
    return {name: entry.summary for name, entry in sorted(_MODELS.items())}


def create(name: str, task: SequenceTask, size: str = "small", **options: Any) -> SequenceModel:
    """Return a new model for the tokens of a task.

    Args:
        name: one of ``available()``.
        task: whose vocabulary and padding the model has.
        size: one of ``SIZES``.
        options: in place of single arguments of that size, such as ``width=64``.

    Raises:
        ValueError: an unknown name, size or option, or a model that reads ahead for a task that is ``causal``.
    """
    _load()
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no sequence model {name!r}{hint} There are: {', '.join(sorted(_MODELS))}")
    if size not in SIZES:
        raise ValueError(f"no size {size!r}: there are {', '.join(SIZES)}")
    entry = _MODELS[name]
    try:
        model = entry.build(task, **{**entry.sizes[size], **entry.options, **options})
    except TypeError as error:
        raise ValueError(f"the model {name!r} cannot take these options: {error}") from None
    if task.causal and not model.causal:
        raise ValueError(
            f"the model {name!r} reads ahead, where {task.name} has the answers: take one that reads forward"
        )
    return model


def _load() -> None:
    for family in _FAMILIES:
        importlib.import_module(f"fewshot_nam.sequences.models.{family}")

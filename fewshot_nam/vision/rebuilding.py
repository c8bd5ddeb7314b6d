"""Build the backbone of a saved model again, from the description in the file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fewshot_nam.io.yaml_input import shown
from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.catalogue import UnknownBackbone, create
from fewshot_nam.vision.libraries.registry import LIBRARIES

_LARGEST = 8192  # number among the options of a network; depths and widths of those there are stay below it
_MOST_BYTES = 4_000_000_000  # of a network with options; one whose default is larger may have twice the bytes of that
_MOST_TENSORS = 10_000  # the same; networks of hundreds of layers have a few thousand
_MAKERS = ("empty", "empty_strided", "eye", "full", "ones", "rand", "randn", "zeros")


def rebuild(
    about: Mapping[str, Any], weights: bool | str | os.PathLike[str] = True, device: str | torch.device | None = None
) -> Backbone:
    """Return the backbone that ``about`` describes: one of ``backbones.create``, with its options and its transform.

    ``NAMModel.load`` checks that its weights and features match the file.

    Args:
        about: as ``fewshot_nam.vision.saving.read_head`` gives it.
        weights: ``True`` for the published weights, ``False`` for random ones, or a file, as in ``backbones.create``.
        device: where to put it; ``None`` for the CPU.

    Raises:
        LibraryNotInstalled: its library is not installed.
        ValueError: it has no name that ``backbones.create`` knows (a user's own module was attached), or it cannot be built here.
    """
    name = str(about["backbone"])
    own = f"this memory was learned with a model of its own, {name}: attach that model and load the file"
    if "." in name and not name.startswith(tuple(LIBRARIES)):  # the name of a class
        raise ValueError(own)
    model_options = about.get("model_options") or {}
    if not isinstance(model_options, dict):
        raise ValueError(f"this memory's backbone has no options but {shown(model_options)}: the file is damaged")
    if any(number > _LARGEST for number in _numbers(model_options)):
        raise ValueError(
            f"this memory's backbone is larger than any: {shown(model_options)}, and at most {_LARGEST:,} is built"
        )
    if model_options:
        _check_size(name, model_options)
    try:
        return create(
            name,
            weights,
            model_options=model_options,
            transform_options=_transform_options(name, str(about.get("transform", ""))),
            device=device,
        )
    except UnknownBackbone as error:
        raise ValueError(own) from error


class _TooLarge(ValueError):
    """A network is larger than it may be; raised while it is built."""


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this mode is on, tensors that are made are counted, and ``_TooLarge`` is raised when they are too many.

    Args:
        most_bytes: of all tensors together.
        most_tensors: how many of them.
    """

    def __init__(self, most_bytes: float, most_tensors: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes, self.tensors = 0, 0
        self._most_bytes, self._most_tensors = most_bytes, most_tensors

    @property
    def exceeded(self) -> bool:
        """Whether there were too many."""
        return self.bytes > self._most_bytes or self.tensors > self._most_tensors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and func._schema.name.removeprefix("aten::") in _MAKERS:
            self.bytes += made.numel() * made.element_size()
            self.tensors += 1
            if self.exceeded:
                raise _TooLarge("it is larger than any that is built")
        return made


def _check_size(name: str, options: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for options of a file that ask for a network of unbounded size, before any memory is taken."""
    if not _built(name, options, _MOST_BYTES, _MOST_TENSORS).exceeded:
        return
    default = _built(name, {}, float("inf"), float("inf"))  # of the library, and so of a size that has a bound
    if _built(name, options, max(_MOST_BYTES, 2 * default.bytes), max(_MOST_TENSORS, 2 * default.tensors)).exceeded:
        raise ValueError(
            f"this memory's backbone is larger than any: {name} with {shown(options)}, and at most twice the default or "
            f"{_MOST_BYTES // 10**9} GB is built"
        )


def _built(name: str, options: Mapping[str, Any], most_bytes: float, most_tensors: float) -> _Counted:
    """Return the counts of a network that is built, without memory for its weights where it can; errors are left to ``create``."""
    for device in ("meta", "cpu"):
        counted = _Counted(most_bytes, most_tensors)
        with torch.random.fork_rng(devices=[]), torch.device(device), counted:
            try:
                create(name, False, model_options=options)
            except ValueError as error:
                # Some networks compute with numbers of tensors while they are built, and tensors without memory have none.
                if isinstance(error.__cause__, RuntimeError):
                    continue
            except Exception:  # after it was built, or as it will be again
                return counted
        return counted
    return counted


def _numbers(options: Any) -> Iterator[int | float]:
    """Yield all numbers in options, in lists and mappings too."""
    if isinstance(options, int | float):
        yield options
    elif isinstance(options, Mapping):
        for value in options.values():
            yield from _numbers(value)
    elif isinstance(options, list | tuple):
        for value in options:
            yield from _numbers(value)


def _transform_options(name: str, transform: str) -> dict[str, Any]:
    """Return the options that give the same transform: the description of a library's transform ends with them, as JSON."""
    start = transform.find("{")
    if not name.startswith(tuple(LIBRARIES)) or start < 0:
        return {}
    try:
        options = json.loads(transform[start:])
    except ValueError:  # the user's own transform, not a library's
        return {}
    return options if isinstance(options, dict) else {}

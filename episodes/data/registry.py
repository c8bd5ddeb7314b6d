"""The registry of data sets: what ``--dataset`` and ``open_dataset`` accept, with one line about each.

A new data set is one file with a function that opens it and one ``register`` call, here or in the user's own program. The help
text of ``fewshot-nam-eval``, ``open_dataset`` and every error message read this table. Importing it imports no data set.

    >>> from episodes.data import registry
    >>> registry.names()[:3]
    ['digits', 'omniglot', 'cifar10']
    >>> registry.find("folder:photos")[0].form
    'folder:<path>'
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_OPTIONS = ("data_dir", "download")


@dataclass(frozen=True)
class DatasetEntry:
    """One data set, or one family of them, by name.

    Attributes:
        name: what the user writes, or what they write before the colon, as in ``folder:photos``.
        opener: the function that opens it, or where it is, ``"package.module:function"``, to be imported when it is used. It
            returns an ``ImageSet`` of novel classes, or a dictionary of them by role.
        summary: one line for the help text.
        argument: what follows the colon, say ``"path"``; it is passed to the opener first. Empty: there is no colon.
        options: which of ``data_dir`` and ``download`` the opener takes, as keywords.
        holds_features: whether it opens to a ``FeatureBank``, for ``open_bank``, instead of images.
    """

    name: str
    opener: str | Callable[..., Any]
    summary: str
    argument: str = ""
    options: tuple[str, ...] = ()
    holds_features: bool = False

    @property
    def form(self) -> str:
        """How to write it: ``"digits"`` or ``"folder:<path>"``."""
        return f"{self.name}:<{self.argument}>" if self.argument else self.name

    def open(self, argument: str = "", **options: Any) -> Any:
        """Return what the opener returns.

        Args:
            argument: what the user wrote after the colon.
            options: ``data_dir`` and ``download``; those that this data set does not take are left out.

        Raises:
            ValueError: the argument is missing, or the data is missing or damaged.
        """
        if self.argument and not argument:
            raise ValueError(f"dataset {self.name + ':'!r}: no {self.argument} in it; write {self.form}")
        opener = self.opener
        if isinstance(opener, str):
            module, _, function = opener.partition(":")
            opener = getattr(importlib.import_module(module), function)
        arguments = [argument] if self.argument else []
        return opener(*arguments, **{name: value for name, value in options.items() if name in self.options})


_ENTRIES: dict[str, DatasetEntry] = {}


def register(
    name: str,
    opener: str | Callable[..., Any],
    summary: str,
    *,
    argument: str = "",
    options: Sequence[str] = (),
    holds_features: bool = False,
) -> DatasetEntry:
    """Add a data set, and return its entry; see ``DatasetEntry`` for the arguments.

    Raises:
        ValueError: the name is taken or has a colon in it, or an unknown option.
    """
    if not name or ":" in name:
        raise ValueError(f"data set {name!r}: a name needs at least one character, and no colon")
    if name in _ENTRIES:
        raise ValueError(f"data set {name!r} is registered already, as {_ENTRIES[name].opener}; choose another name")
    unknown = [option for option in options if option not in _OPTIONS]
    if unknown:
        raise ValueError(f"data set {name!r}: unknown option {unknown[0]!r}, expected some of {', '.join(_OPTIONS)}")
    entry = DatasetEntry(name, opener, summary, argument, tuple(options), holds_features)
    _ENTRIES[name] = entry
    return entry


def unregister(name: str) -> None:
    """Remove a data set, say one that a test has registered; ``ValueError`` where there is none of this name."""
    if name not in _ENTRIES:
        raise ValueError(f"data set {name!r} is not registered; there are {', '.join(_ENTRIES)}")
    del _ENTRIES[name]


def names() -> list[str]:
    """Return the names of all data sets, in the order in which they were registered."""
    return list(_ENTRIES)


def entries() -> list[DatasetEntry]:
    """Return the entries of all data sets, in the order in which they were registered."""
    return list(_ENTRIES.values())


def taking(option: str) -> list[str]:
    """Return the names of the data sets that take an option, ``"data_dir"`` or ``"download"``."""
    return [entry.name for entry in _ENTRIES.values() if option in entry.options]


def find(spec: str) -> tuple[DatasetEntry, str]:
    """Return the entry that a spec names, and the spec's argument.

    Args:
        spec: ``"digits"``, or ``"folder:photos"`` for a data set that takes an argument.

    Raises:
        ValueError: there is no such data set; the message lists those there are.
    """
    name, colon, argument = spec.partition(":")
    entry = _ENTRIES.get(name)
    if entry is None or bool(colon) != bool(entry.argument):
        forms = [entry.form for entry in _ENTRIES.values()]
        close = difflib.get_close_matches(spec, forms, n=1)
        near = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"dataset {spec!r}: expected one of {', '.join(forms)}{near}")
    return entry, argument


def help_line() -> str:
    """Return all data sets in one line, for the help of an option: ``"digits, ..., folder:PATH (a directory per class)"``."""
    forms = []
    for entry in _ENTRIES.values():
        word = f"{entry.name}:{entry.argument.upper()}" if entry.argument else entry.name
        forms.append(f"{word} ({entry.summary})")
    return ", ".join(forms)


register("digits", "episodes.data.digits:digits", "scikit-learn's handwritten digits, 10 classes")
register(
    "omniglot",
    "episodes.data.omniglot:omniglot",
    "handwritten characters, 1,623 classes",
    options=("data_dir", "download"),
)
register("cifar10", "episodes.data.cifar:cifar10", "the test images, 10 classes", options=("data_dir",))
register("cifar100", "episodes.data.cifar:cifar100", "all images, 100 classes", options=("data_dir",))
register("cifar-fs", "episodes.data.benchmarks:cifar_fs", "64/16/20 classes of CIFAR-100", options=("data_dir",))
register("fc100", "episodes.data.benchmarks:fc100", "60/20/20 classes of CIFAR-100", options=("data_dir",))
register("mini-imagenet", "episodes.data.benchmarks:mini_imagenet", "64/16/20 classes", options=("data_dir",))
register("tiered-imagenet", "episodes.data.benchmarks:tiered_imagenet", "351/97/160 classes", options=("data_dir",))
register("cub", "episodes.data.benchmarks:cub", "birds, 140/30/30 classes", options=("data_dir",))
register(
    "omniglot-fscil",
    "episodes.data.omniglot_fscil:omniglot_fscil",
    "1,200 base and 423 novel characters of the incremental protocol",
    options=("data_dir", "download"),
)
register(
    "torchvision",
    "episodes.data.torchvision_sets:torchvision_dataset",
    "flowers102, aircraft, eurosat, dtd, food101 or pets",
    argument="name",
    options=("data_dir", "download"),
)
register("folder", "episodes.data.folders:folder_by_role", "a directory of images for each class", argument="path")
register(
    "features",
    "episodes.features.bank:open_bank",
    "features that were saved before",
    argument="file",
    holds_features=True,
)

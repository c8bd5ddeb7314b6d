"""A feature bank: a feature vector and a class for each item, checked once, in memory or mapped from a file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from episodes.data.class_names import Label, check_classes, nearest, select_classes
from episodes.features.bank_files import NotABank, read_bank_file, write_bank_file
from fewshot_nam._deprecation import warn_renamed
from fewshot_nam.heads.base_statistics import BaseStatistics
from fewshot_nam.heads.power_norm import power_normalise

_CHUNK_ELEMENTS = 1 << 22  # numbers processed at once: all of them might not fit in memory
_SMALLEST = 1e-12  # a row whose features are all smaller counts as zero, since it cannot be brought to length 1
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class FeatureBank:
    """Features of n items with a class each.

    Args:
        features: ``(n, D)`` floating point, tensor or array; not copied, even if it is mapped from a file.
        labels: ``(n,)`` ints or strings. With ``classes``, ints are positions in it and strings are names from it.
        classes: the names, all ints or all strings; default the sorted distinct labels. A class may have no items.
        provenance: where the features come from, a dictionary of strings; saved with the bank.
        check: whether to search all features for NaN, infinity and zero vectors. False only for features
            checked before.

    Attributes:
        features (Tensor): ``(n, D)``, with the dtype of the argument.
        labels (Tensor): ``(n,)`` long, positions in ``classes``.
        classes (list): C names.
        counts (Tensor): ``(C,)`` long, the number of items of each class.
        order, starts (Tensor): ``(n,)`` and ``(C,)`` long: the items of class c, ascending, are
            ``order[starts[c] : starts[c] + counts[c]]``.
        provenance (dict): as given.

    Raises:
        ValueError: features that are not floats of shape ``(n, D)`` with at least one of each; NaN, infinite or zero rows; labels
            of another length, outside the classes, or neither ints nor strings; or a class listed twice. The message names the
            row and its class.

    Example:
        >>> bank = FeatureBank(torch.eye(3), ["cat", "dog", "cat"])
        >>> bank.classes, bank.labels.tolist(), bank.counts.tolist()
        (['cat', 'dog'], [0, 1, 0], [2, 1])
    """

    def __init__(
        self,
        features: Tensor | np.ndarray,
        labels: Tensor | np.ndarray | Sequence[int] | Sequence[str],
        classes: Iterable[Label] | None = None,
        *,
        provenance: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> None:
        self.features = _as_features(features)
        self.labels, self.classes = _as_labels(labels, classes)
        if len(self.labels) != len(self.features):
            raise ValueError(
                f"FeatureBank: features and labels need equal lengths, got {len(self.features)} and {len(self.labels)}"
            )
        self.counts = torch.bincount(self.labels, minlength=len(self.classes))
        self.order = torch.argsort(self.labels, stable=True)
        self.starts = self.counts.cumsum(0) - self.counts
        self.provenance: dict[str, str] = dict(provenance or {})
        if check:
            self._check_rows()

    @property
    def feature_dim(self) -> int:
        """D, the width of a feature vector."""
        return self.features.shape[1]

    @property
    def num_classes(self) -> int:
        """C, the number of classes, including those without items."""
        return len(self.classes)

    @property
    def skipped(self) -> list[str]:
        """The images that could not be read, and were left out, when the features were extracted."""
        return json.loads(self.provenance.get("skipped", "[]"))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of labels and classes, without features, so that recorded episodes fit the features of any backbone."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        dtype = str(self.features.dtype).removeprefix("torch.")
        return f"FeatureBank({len(self)} items, {self.num_classes} classes, {self.feature_dim} features, {dtype})"

    def select_classes(self, names_or_indices: Iterable[Label]) -> FeatureBank:
        """Return the bank of some classes.

        Args:
            names_or_indices: names of classes; or positions in ``classes``, where names are strings.

        Returns:
            A bank whose classes are in the order given, and whose items are in the order of this bank.

        Raises:
            ValueError: an unknown class, one given twice, no classes given, or none of them has items.

        Example:
            >>> bank = FeatureBank(torch.eye(3), ["cat", "dog", "cat"])
            >>> bank.select_classes(["cat"])
            FeatureBank(2 items, 1 classes, 3 features, float32)
        """
        names, rows, labels = select_classes(self.labels.numpy(), self.classes, names_or_indices, "FeatureBank")
        if not len(rows):
            raise ValueError(f"FeatureBank: none of these classes has items: {', '.join(map(str, names))}")
        if rows[-1] - rows[0] + 1 == len(rows):  # a slice of consecutive rows is no copy: a mapped bank stays mapped
            features = self.features[int(rows[0]) : int(rows[-1]) + 1]
        else:
            features = self.features[torch.from_numpy(rows).to(self.features.device)]
        return FeatureBank(features, labels, names, provenance=self.provenance, check=False)

    def class_means(self, power_norm: bool = False, *, root: bool | None = None) -> Tensor:
        """Return the mean feature of each class, ``(C, D)`` float32, summed in float64.

        Args:
            power_norm: return power means instead: features are replaced by their signed square roots, averaged, and the mean is
                squared with its sign. A few large features influence a power mean less. Heads that power-normalise features use
                power means as base prototypes.
            root: deprecated, use ``power_norm``.

        Raises:
            ValueError: a class without items; it is named.

        Example:
            >>> bank = FeatureBank(torch.tensor([[1.0, 4.0], [9.0, 4.0]]), ["cat", "cat"])
            >>> bank.class_means().tolist(), bank.class_means(power_norm=True).tolist()
            ([[5.0, 4.0]], [[4.0, 4.0]])
        """
        if root is not None:
            warn_renamed("class_means: root=", "power_norm=")
            power_norm = root
        if int(self.counts.min()) == 0:
            raise _no_items(self)
        sums = torch.zeros(self.num_classes, self.feature_dim, dtype=torch.float64)
        for start, chunk in self._chunks():
            items = chunk.cpu().double()
            sums.index_add_(0, self.labels[start : start + len(chunk)], power_normalise(items) if power_norm else items)
        means = sums / self.counts[:, None]
        return (means * means.abs() if power_norm else means).float()

    def mean(self) -> Tensor:
        """Return the mean of all items, ``(D,)`` float32, summed in float64."""
        total = torch.zeros(self.feature_dim, dtype=torch.float64)
        for _, chunk in self._chunks():
            total += chunk.cpu().double().sum(0)
        return (total / len(self)).float()

    def base_statistics(self) -> BaseStatistics:
        """Return what heads may know of these classes as base classes (``BaseStatistics.from_features``).

        Raises:
            ValueError: a class without items; it is named.

        Example:
            >>> bank = FeatureBank(torch.tensor([[1.0, 4.0], [9.0, 4.0]]), ["cat", "cat"])
            >>> bank.base_statistics().power_means
            tensor([[4., 4.]])
        """
        if int(self.counts.min()) == 0:
            raise _no_items(self)
        return BaseStatistics.from_targets(self.features, self.labels, self.num_classes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bank to one safetensors file; a crash leaves the old file or the new one.

        Raises:
            OSError: the directory is missing or cannot be written.
        """
        write_bank_file(Path(path), self.features, self.labels, self.classes, self.provenance)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, check: bool = True) -> FeatureBank:
        """Return the bank in a file.

        Args:
            path: a file of ``save``, which is mapped into memory; or an ``.npz`` with ``features`` (n, D), ``labels`` (n,) ints or
                strings, and perhaps ``classes``, which is read into memory.
            check: whether to check all features, which reads the whole file once.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file of another kind, cut short, of a later format, or with content that ``FeatureBank`` refuses.
        """
        path = Path(path)
        try:
            return cls(**read_bank_file(path), check=check)
        except NotABank:
            raise
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _chunks(self) -> Iterator[tuple[int, Tensor]]:
        rows = max(1, _CHUNK_ELEMENTS // self.feature_dim)
        for start in range(0, len(self), rows):
            yield start, self.features[start : start + rows]

    def _check_rows(self) -> None:
        # Heads square lengths of features and of sums of a few rows; these squares must stay finite.
        largest_allowed = (
            0.1 * (torch.finfo(torch.promote_types(self.features.dtype, torch.float32)).max / self.feature_dim) ** 0.5
        )
        for start, chunk in self._chunks():
            low, high = (
                end.double() for end in torch.aminmax(chunk, dim=1)
            )  # both ends are NaN where a row has NaN; no temporary of the chunk's size is made
            bad = ~((low >= -largest_allowed) & (high <= largest_allowed)) | ((low > -_SMALLEST) & (high < _SMALLEST))
            if bool(bad.any()):
                first = int(bad.nonzero()[0])
                row = start + first
                least, largest = float(low[first]), float(high[first])
                fault = (
                    "holds NaN"
                    if least != least
                    else "is all zeros"
                    if -_SMALLEST < least <= largest < _SMALLEST
                    else "holds infinity"
                    if max(-least, largest) == math.inf
                    else "is too large to be multiplied"
                )
                name = self.classes[int(self.labels[row])]
                raise ValueError(
                    f"FeatureBank: features row {row} (class {name!r}) {fault}; every row must be finite and not zero: "
                    "compute it again or leave it out"
                )


def _no_items(bank: FeatureBank) -> ValueError:
    empty = bank.classes[int(bank.counts.argmin())]
    return ValueError(f"FeatureBank: class {empty!r} has no items and so no mean; leave it out with select_classes")


def open_bank(spec: str | os.PathLike[str]) -> FeatureBank:
    """Return the bank in a file of features.

    Args:
        spec: the file's path, or ``"features:<path>"`` as on the command line; see ``FeatureBank.load``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no path in ``spec``, or the file is not a bank.

    Example:
        >>> FeatureBank(torch.eye(3), ["cat", "dog", "cat"]).save("animals.safetensors")
        >>> open_bank("features:animals.safetensors")
        FeatureBank(3 items, 2 classes, 3 features, float32)
    """
    path = os.fspath(spec).removeprefix("features:")
    if not path:
        raise ValueError(f"features {spec!r}: no path in it; write features:<file>")
    return FeatureBank.load(Path(path).expanduser())


def _as_features(features: Tensor | np.ndarray) -> Tensor:
    if isinstance(features, np.ndarray):
        if features.dtype.kind != "f" or features.dtype.itemsize > 8:
            raise ValueError(
                f"FeatureBank: features must be floating point, got {features.dtype}; convert with .astype"
            )
        if not features.dtype.isnative or any(step < 0 for step in features.strides):
            features = np.ascontiguousarray(features, dtype=features.dtype.newbyteorder("="))
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*not writable"
            )  # a file mapped for reading; features are never written to
            features = torch.from_numpy(features)
    if not isinstance(features, Tensor):
        raise ValueError(f"FeatureBank: features must be a tensor or an array, got {type(features).__name__}")
    if features.dtype not in _FLOATS:
        raise ValueError(f"FeatureBank: features must be floating point, got {features.dtype}; convert with .float()")
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(
            f"FeatureBank: features must be (items, width) with at least one of each, got {tuple(features.shape)}"
        )
    return features.detach()


def _as_labels(labels: Any, classes: Iterable[Label] | None) -> tuple[Tensor, list[Label]]:
    if isinstance(labels, Tensor):
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                f"FeatureBank: labels must be (items,) ints or strings, got {tuple(labels.shape)} of {labels.dtype}"
            )
        labels = labels.detach().cpu().numpy()
    if not isinstance(labels, np.ndarray) or labels.dtype == object:
        given = list(labels)
        # NumPy would silently turn ints among strings into strings.
        if len({isinstance(label, str) for label in given}) > 1:
            raise ValueError("FeatureBank: labels must be all ints or all strings, got a mixture")
        labels = np.asarray(given)
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise ValueError(f"FeatureBank: labels must be (items,) ints or strings, got {labels.shape} of {labels.dtype}")
    if classes is None:
        found, positions = np.unique(labels, return_inverse=True)
        return torch.from_numpy(positions.astype(np.int64)), check_classes(found.tolist(), "FeatureBank")
    names = check_classes(classes, "FeatureBank")
    if labels.dtype.kind == "U":
        found, inverse = np.unique(labels, return_inverse=True)
        position = {name: i for i, name in enumerate(names)}
        for label in found.tolist():
            if label not in position:
                row = int(np.flatnonzero(labels == label)[0])
                raise ValueError(
                    f"FeatureBank: label {label!r} of row {row} is none of the {len(names)} classes{nearest(label, names)}"
                )
        labels = np.asarray([position[label] for label in found.tolist()], dtype=np.int64)[inverse]
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(outside):
        row = int(outside[0])
        raise ValueError(
            f"FeatureBank: label {labels[row]} of row {row} is outside 0..{len(names) - 1}; with classes given, "
            "int labels are positions in them"
        )
    return torch.from_numpy(np.array(labels, dtype=np.int64)), names

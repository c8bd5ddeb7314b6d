"""Datasets by name: digits, Omniglot, CIFAR-10, a folder of pictures, or features computed elsewhere.

A spec is ``digits``, ``omniglot``, ``cifar10``, ``folder:<path>`` or ``features:<file>``, as scripts take it on the command line.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np

from episodes.data.cifar import cifar10
from episodes.data.class_names import ROLES, nearest
from episodes.data.folders import directories, folder
from episodes.data.image_dataset import ArrayPictures, PictureSet
from episodes.data.omniglot import omniglot
from episodes.features.bank import FeatureBank
from fewshot_nam.io.image_io import UnreadablePicture

__all__ = [
    "ROLES",
    "PictureSet",
    "UnreadablePicture",
    "cifar10",
    "digits",
    "folder",
    "omniglot",
    "open_bank",
    "open_dataset",
]

_SPECS = ("digits", "omniglot", "cifar10", "folder:<path>", "features:<file>")


def digits() -> ArrayPictures:
    """Return scikit-learn's 1,797 handwritten digits: 14x14 grey pictures, dark ink on light paper, classes "0" to "9".

    The originals are 8x8 and cropped to the digit. Three pixels of paper are laid around them, so that a digit takes 57% of
    its picture's height, as a handwritten character takes 59% of its picture in Omniglot.
    """
    values = _digit_values()
    levels, labels = values[:, :-1].reshape(-1, 8, 8), values[:, -1].astype(np.int64)
    pixels = (255 - np.rint(levels * (255 / 16))).astype(np.uint8)
    pixels = np.pad(pixels, ((0, 0), (3, 3), (3, 3)), constant_values=255)
    return ArrayPictures("digits", pixels, labels, [str(digit) for digit in range(10)])


def _digit_values() -> np.ndarray:
    """Return ``(1797, 65)``: 64 grey levels 0..16 and the digit.

    Read as ``load_digits`` reads them, from the file that comes with scikit-learn: importing that takes as long as torch.
    """
    found = importlib.util.find_spec("sklearn")
    for place in found.submodule_search_locations or [] if found is not None else []:
        path = Path(place, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    return np.column_stack([data, target])


def open_dataset(
    spec: str, data_dir: str | os.PathLike[str] | None = None, download: bool = False
) -> dict[str, PictureSet]:
    """Return the pictures that a spec names, by role.

    Args:
        spec: ``digits`` or ``folder:<path>``: all classes are ``novel``, until they are split. A folder that holds
            directories called ``novel`` and ``base`` or ``val`` is split already: each of them is a folder of classes.
            ``omniglot``: ``base``, ``val`` and ``novel``. ``cifar10``: its test pictures, all ``novel``.
        data_dir: where Omniglot or CIFAR-10 is; see ``omniglot`` and ``cifar10``.
        download: whether Omniglot may be fetched if it is not there.

    Returns:
        Sets under some of the keys ``base``, ``val`` and ``novel``.

    Raises:
        ValueError: an unknown spec, or data that is not there or not as expected.
    """
    kind, colon, path = spec.partition(":")
    if spec == "digits":
        return {"novel": digits()}
    if spec == "omniglot":
        return dict(omniglot(data_dir, download))
    if spec == "cifar10":
        return {"novel": cifar10(data_dir)}
    if kind == "folder":
        if not path:
            raise ValueError(f"dataset {spec!r}: no path in it; write folder:<path>")
        root = Path(path).expanduser()
        present = set(directories(root)) if root.is_dir() else set()
        if "novel" in present and present & {"base", "val"}:
            return {role: folder(root / role, f"{root.resolve().name}/{role}") for role in ROLES if role in present}
        return {"novel": folder(root)}
    if kind == "features" and colon:
        raise ValueError(f"dataset {spec!r}: it holds features, not pictures; open it with open_bank")
    raise ValueError(f"dataset {spec!r}: expected one of {', '.join(_SPECS)}{nearest(spec, _SPECS)}")


def open_bank(spec: str) -> FeatureBank:
    """Return the bank that ``features:<file>`` names, or a bare path: see ``FeatureBank.load``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no path in ``spec``, or the file is not a bank.
    """
    path = spec.removeprefix("features:")
    if not path:
        raise ValueError(f"features {spec!r}: no path in it; write features:<file>")
    return FeatureBank.load(Path(path).expanduser())

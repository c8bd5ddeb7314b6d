"""Image data sets by name: ``open_dataset`` returns the images that a word on the command line names, by role.

``episodes.data.registry`` lists the names; each data set has a file of its own beside this one.
"""

from __future__ import annotations

import os

from episodes.data import registry
from episodes.data.cifar import cifar10
from episodes.data.class_names import ROLES
from episodes.data.digits import digits
from episodes.data.folders import folder
from episodes.data.image_dataset import ImageSet
from episodes.data.omniglot import omniglot
from fewshot_nam._deprecation import renamed_names
from fewshot_nam.io.image_io import UnreadableImage

__all__ = ["ROLES", "ImageSet", "UnreadableImage", "cifar10", "digits", "folder", "omniglot", "open_dataset"]


def open_dataset(
    spec: str, data_dir: str | os.PathLike[str] | None = None, download: bool = False
) -> dict[str, ImageSet]:
    """Return the images that a spec names, by role.

    Args:
        spec: a name of ``episodes.data.registry``, such as ``"digits"``, ``"omniglot"`` or ``"folder:photos"``.
        data_dir: where the data set's files are, for those that need some. Default: the environment's ``FEWSHOT_DATA``, else
            ``data`` in the working directory.
        download: whether a data set that can be fetched (Omniglot) may be, if it is not there.

    Returns:
        Sets under some of the keys ``"base"``, ``"val"`` and ``"novel"``. A data set without published roles has all classes
        under ``"novel"``, for ``apply_split`` to divide.

    Raises:
        ValueError: an unknown spec, one that names features (``open_bank`` opens these), or data that is missing or damaged.

    Example:
        >>> open_dataset("digits")["novel"].classes
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']
    """
    entry, argument = registry.find(spec)
    if entry.holds_features:
        raise ValueError(f"dataset {spec!r}: it holds features, not images; open it with open_bank")
    opened = entry.open(argument, data_dir=data_dir, download=download)
    return dict(opened) if isinstance(opened, dict) else {"novel": opened}


__getattr__ = renamed_names(
    __name__,
    {
        "PictureSet": "episodes.data.image_dataset.ImageSet",
        "UnreadablePicture": "fewshot_nam.io.image_io.UnreadableImage",
        "open_bank": "episodes.features.bank.open_bank",
    },
)

"""Images in a directory tree, one directory for each class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from episodes.data.class_names import ROLES, odd_name
from episodes.data.image_dataset import FileImages
from fewshot_nam.io.image_folders import EXTENSIONS, directories, images_by_class

__all__ = ["EXTENSIONS", "class_folders", "data_root", "directories", "folder", "folder_by_role"]


def data_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the directory of data sets: ``data_dir``, else the environment's ``FEWSHOT_DATA``, else ``./data``."""
    return Path(data_dir or os.environ.get("FEWSHOT_DATA") or "data").expanduser()


def folder(path: str | os.PathLike[str], name: str | None = None) -> FileImages:
    """Return the images of a directory that holds one directory for each class.

    Args:
        path: the directory. An image's class is the directory directly below ``path`` that contains it, at any depth.
            Names that begin with a dot, and files directly in ``path``, are left out.
        name: for reports; default the directory's own name.

    Returns:
        The set. Classes, and the files of each class, are sorted by code point, the same on every machine.

    Raises:
        ValueError: ``path`` is not a directory, contains no directories, or one of these contains no image; or a link leads to
            the images of another class.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"folder {root}: no such directory; expected one that holds a directory of images for each class"
        )
    classes = directories(root)
    if not classes:
        raise ValueError(f"folder {root}: no class directories in it; expected one directory of images for each class")
    return class_folders(name or root.resolve().name, root, classes)


def folder_by_role(path: str | os.PathLike[str]) -> dict[str, FileImages]:
    """Return the images of a directory by role.

    A directory that holds directories called ``novel`` and ``base`` or ``val`` is split already: each of these is a folder of
    classes. In any other directory all classes are novel.

    Raises:
        ValueError: as ``folder``.
    """
    root = Path(path).expanduser()
    present = set(directories(root)) if root.is_dir() else set()
    if "novel" in present and present & {"base", "val"}:
        return {role: folder(root / role, f"{root.resolve().name}/{role}") for role in ROLES if role in present}
    return {"novel": folder(root)}


def class_folders(name: str, root: Path, classes: list[str]) -> FileImages:
    """Return the images below ``root`` whose classes are the directories ``classes``, given relative to it.

    Raises:
        ValueError: a class directory without images, or whose name no class can have, or a link that leads from one class to
            another or to ``root`` or above it; named.
    """
    if (reason := odd_name(classes)) is not None:  # before images are read: features of such a class cannot be saved
        raise ValueError(f"folder {root}: {reason}; rename the directory")
    found = images_by_class(name, root, classes)
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(files) for files in found.values()])
    return FileImages(name, root, [file for files in found.values() for file in files], labels, classes)

"""The images in a directory tree with one directory for each class: the same list on every machine, links followed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)
"""The endings of image files, in lower case. Not all of them are read everywhere: HEIC takes the package pillow-heif."""


def images_by_class(name: str, root: Path, classes: list[str]) -> dict[str, list[str]]:
    """Return the images of each class, paths relative to ``root`` with forward slashes, sorted as strings of code points.

    Args:
        name: what the set is called, for errors.
        root: the directory of the class directories.
        classes: the class directories, relative to ``root``. Images are found at any depth below them; hidden files and
            directories are left out.

    Raises:
        ValueError: a class directory without images, or a link that leads from one class to another or to ``root`` or above
            it; named.
        OSError: a directory that cannot be read.
    """
    owners = _owners(name, root, classes)
    found = {
        directory: [f"{directory}/{file}" for file in _images_below(name, root, directory, owners)]
        for directory in classes
    }
    empty = [directory for directory, files in found.items() if not files]
    if empty:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise ValueError(
            f"{name}: class directory {root / empty[0]}{more} holds no images; add some or remove it "
            f"(known are {', '.join(EXTENSIONS)})"
        )
    return found


def directories(path: Path) -> list[str]:
    """Return the names of the directories directly in ``path``, sorted, without hidden ones."""
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def other_files(paths: Iterable[Path]) -> Counter[str]:
    """Return how many visible files below directories have each ending that is not an image's.

    Args:
        paths: directories; files among them are not counted.
    """
    found: Counter[str] = Counter()
    for path in paths:
        for _, subdirectories, names in os.walk(path):
            subdirectories[:] = [entry for entry in subdirectories if not entry.startswith(".")]
            endings = (os.path.splitext(name)[1].lower() for name in names if not name.startswith("."))
            found.update(ending or "none" for ending in endings if ending not in EXTENSIONS)
    return found


def _owners(name: str, root: Path, classes: list[str]) -> dict[str, str]:
    """Return the class of each class directory's real path; ``ValueError`` for links that would mix classes."""
    top = os.path.realpath(root)
    real = {directory: os.path.realpath(root / directory) for directory in classes}
    owners: dict[str, str] = {}
    # Links come last, so that the error names the link.
    for directory in sorted(classes, key=lambda directory: real[directory] != os.path.join(top, directory)):
        _check_link(name, root, directory, directory, owners)
        owners[real[directory]] = directory
    return owners


def _check_link(name: str, root: Path, path: str, directory: str, owners: dict[str, str]) -> None:
    """Raise ``ValueError`` where ``path``, in or of class ``directory``, is really ``root``, above it, or another class."""
    real, top = Path(os.path.realpath(root / path)), Path(os.path.realpath(root))
    owner = owners.get(str(real), directory)
    if top.is_relative_to(real):
        what = "which holds all classes"
    elif owner != directory:
        what = f"which is class {owner}"
    else:
        return
    raise ValueError(f"{name}: {root / path} leads to {real}, {what}; remove the link")


def _images_below(name: str, root: Path, directory: str, owners: dict[str, str]) -> list[str]:
    """Return the images of a class: relative paths with forward slashes, sorted, at any depth, without hidden ones.

    Entries with an image's ending that are no files, such as broken links, are kept: reading them names them.
    """
    path = root / directory
    found: list[str] = []
    seen = {os.path.realpath(path)}
    for where, subdirectories, names in os.walk(path, followlinks=True, onerror=_fail):
        below = Path(where).relative_to(path)
        for file in names:
            if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                found.append((below / file).as_posix())
        visible = sorted(entry for entry in subdirectories if not entry.startswith("."))
        subdirectories.clear()
        for subdirectory in visible:
            real = os.path.realpath(os.path.join(where, subdirectory))
            if real not in seen:  # links may form a circle
                _check_link(name, root, (directory / below / subdirectory).as_posix(), directory, owners)
                seen.add(real)
                subdirectories.append(subdirectory)
    return sorted(found)


def _fail(error: OSError) -> NoReturn:
    raise error  # os.walk would skip a directory that it cannot read

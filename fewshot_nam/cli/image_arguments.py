"""The images that a command line names: files, and directories of them."""

from __future__ import annotations

from pathlib import Path

from fewshot_nam.heads.validation import as_labels
from fewshot_nam.io.image_folders import EXTENSIONS, directories, images_by_class


def images_in(paths: list[str]) -> list[Path]:
    """Return files as they are named, and of a directory all images below it, sorted.

    Raises:
        ValueError: a path that does not exist, or a directory without images.
        OSError: a directory that cannot be read.
    """
    found: list[Path] = []
    for given in paths:
        path = _path(given)
        if path.is_dir():
            whole = path.resolve()
            below = images_by_class(given, whole.parent, [whole.name])[whole.name]
            found += [path / Path(file).relative_to(whole.name) for file in below]
        elif path.exists() or path.is_symlink():
            found.append(path)
        else:
            raise ValueError(f"{given}: there is no such file or directory")
    return found


def images_of_classes(paths: list[str], otherwise: str) -> list[tuple[Path, str]]:
    """Return the images of directories that hold a directory for each class, each with the name of its class.

    Args:
        paths: the directories.
        otherwise: how to mend it where there are no class directories, for the error.

    Raises:
        ValueError: a path that is no directory or holds none, images beside the class directories, or a class without images
            or with a name that no class can have.
        OSError: a directory that cannot be read.
    """
    found: list[tuple[Path, str]] = []
    for given in paths:
        root = _path(given)
        if not root.is_dir():
            kind = "a file" if root.exists() else "not there"
            raise ValueError(
                f"{given}: {kind}; expected a directory that holds a directory of images for each class; {otherwise}"
            )
        classes = directories(root)
        loose = sorted(entry.name for entry in root.iterdir() if entry.is_file() and entry.suffix.lower() in EXTENSIONS)
        if loose and classes:
            raise ValueError(
                f"{given}: {loose[0]} stands beside the class directories, so its class is not known: move it into one"
            )
        if not classes:
            raise ValueError(
                f"{given}: holds no class directories, expected one directory of images for each class; {otherwise}"
            )
        as_labels(classes, len(classes))  # before images are read
        by_class = images_by_class(given, root, classes)
        found += [(root / file, label) for label, files in by_class.items() for file in files]
    return found


def _path(given: str) -> Path:
    if not given:  # Path("") would be the current directory
        raise ValueError("the name of a file or directory is empty: a shell variable may not be set")
    return Path(given).expanduser()

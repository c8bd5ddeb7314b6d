"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each, divided into base, validation and novel classes.

The data set comes in two halves, "background" and "evaluation". The evaluation alphabets are ``novel``. Of the background
alphabets the last five by name are ``val`` and the others ``base``.

Source: Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program induction" (2015).
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from episodes.data.folders import class_folders, data_root, directories
from episodes.data.image_dataset import FileImages

_HALVES = ("images_background", "images_evaluation")
_CHARACTERS = (964, 659)
_VAL_ALPHABETS = 5


def omniglot(data_dir: str | os.PathLike[str] | None = None, download: bool = False) -> dict[str, FileImages]:
    """Return Omniglot by role: ``base``, ``val`` and ``novel``, with classes called ``"Greek/character01"``.

    Args:
        data_dir: a directory that contains ``images_background`` and ``images_evaluation``, or has a subdirectory
            ``omniglot-py`` that contains them. Default: the environment's ``FEWSHOT_DATA``, else ``data`` in the working directory.
        download: download Omniglot into ``data_dir``, with torchvision, if it is not there.

    Raises:
        ValueError: it is not there, has too few alphabets, or has a character without drawings.
        OSError: the download failed.
    """
    root = find_omniglot(data_dir, download)
    background = directories(root / "images_background")
    if len(background) <= _VAL_ALPHABETS:
        raise ValueError(
            f"omniglot: {root / 'images_background'} has {len(background)} alphabets, expected 30 (at least "
            f"{_VAL_ALPHABETS + 1}); unpack it again"
        )
    roles = {
        "base": ("images_background", background[:-_VAL_ALPHABETS]),
        "val": ("images_background", background[-_VAL_ALPHABETS:]),
        "novel": ("images_evaluation", directories(root / "images_evaluation")),
    }
    sets = {role: _characters(role, root / half, alphabets) for role, (half, alphabets) in roles.items()}
    found = (len(sets["base"].classes) + len(sets["val"].classes), len(sets["novel"].classes))
    if found != _CHARACTERS:
        warnings.warn(
            f"omniglot: {root} has {found[0]} background and {found[1]} evaluation characters; the whole set has "
            f"{_CHARACTERS[0]} and {_CHARACTERS[1]}, so figures are not comparable with published ones",
            stacklevel=2,
        )
    return sets


def find_omniglot(data_dir: str | os.PathLike[str] | None = None, download: bool = False) -> Path:
    """Return the directory that contains ``images_background`` and ``images_evaluation``; see ``omniglot``."""
    top = data_root(data_dir)
    root = _find(top)
    if root is None and download:
        _download(top)
        root = _find(top)
    if root is None:
        advice = (
            "the download is incomplete: remove its .zip files there and try again"
            if download
            else "name the directory that holds it, or download it there with --download (download=True)"
        )
        raise ValueError(
            f"omniglot: looked for images_background and images_evaluation in {top} and {top / 'omniglot-py'}, "
            f"and did not find both; {advice}"
        )
    return root


def _find(top: Path) -> Path | None:
    for root in (top, top / "omniglot-py"):
        if all((root / half).is_dir() for half in _HALVES):
            return root
    return None


def _characters(role: str, root: Path, alphabets: list[str]) -> FileImages:
    classes = [f"{alphabet}/{character}" for alphabet in alphabets for character in directories(root / alphabet)]
    if not classes:
        raise ValueError(f"omniglot: no alphabets with characters in {root}; unpack it again")
    return class_folders(f"omniglot/{role}", root, classes)


def _download(top: Path) -> None:
    from torchvision.datasets import Omniglot

    for background in (True, False):
        try:
            Omniglot(str(top), background=background, download=True)
        except (OSError, RuntimeError) as error:
            raise OSError(f"omniglot: download into {top} failed: {' '.join(str(error).split())}") from error

"""Omniglot as a few-shot class-incremental benchmark: 1,200 base characters, then nine sessions of 47 new ones.

Which five drawings of a character are its support, and which six are its queries in each session, is fixed: the list
``session_lists/omniglot-fscil.txt`` beside this file says it, and explains its format.

Source: the lists of Hersche et al., "Constrained Few-shot Class-incremental Learning" (2022).
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from episodes.data.folders import directories
from episodes.data.image_dataset import FileImages
from episodes.data.incremental import Session
from episodes.data.omniglot import find_omniglot

_LIST = Path(__file__).with_name("session_lists") / "omniglot-fscil.txt"
_SESSIONS, _DRAWINGS = 10, 20


def omniglot_sessions(data_dir: str | os.PathLike[str] | None = None, download: bool = False) -> list[Session]:
    """Return Omniglot's ten sessions: the base session with 1,200 characters, and nine that add 47 each.

    A support has five drawings of each new character, the base session's too; queries are six drawings of each character seen.

    Args:
        data_dir: where Omniglot is; see ``episodes.data.omniglot``.
        download: likewise.

    Raises:
        ValueError: Omniglot is not there, or a character has not 20 drawings; it is named.
        OSError: the download failed.
    """
    root = find_omniglot(data_dir, download)
    characters = _characters()
    drawings = _drawings(root, list(characters))
    sessions = []
    for session in range(_SESSIONS):
        new = [name for name, character in characters.items() if character.session == session]
        seen = [name for name, character in characters.items() if character.session <= session]
        sessions.append(
            Session(
                _set(f"session{session}/support", root, drawings, {name: characters[name].support for name in new}),
                _set(
                    f"session{session}/queries",
                    root,
                    drawings,
                    {name: characters[name].queries_in(session) for name in seen},
                ),
            )
        )
    return sessions


def omniglot_fscil(data_dir: str | os.PathLike[str] | None = None, download: bool = False) -> dict[str, FileImages]:
    """Return the characters of the protocol by role, without their sessions.

    Args:
        data_dir: where Omniglot is; see ``episodes.data.omniglot``.
        download: likewise.

    Returns:
        ``base``, the support drawings of the 1,200 base characters; ``base_queries``, their query drawings; and ``novel``, all
        drawings of the 423 characters that arrive in sessions.

    Raises:
        ValueError: Omniglot is not there, or a character has not 20 drawings; it is named.
        OSError: the download failed.
    """
    root = find_omniglot(data_dir, download)
    characters = _characters()
    drawings = _drawings(root, list(characters))
    base = {name: character for name, character in characters.items() if character.session == 0}
    novel = {name: list(range(_DRAWINGS)) for name in characters if name not in base}
    return {
        "base": _set("base", root, drawings, {name: character.support for name, character in base.items()}),
        "base_queries": _set(
            "base_queries", root, drawings, {name: character.queries_in(0) for name, character in base.items()}
        ),
        "novel": _set("novel", root, drawings, novel),
    }


class _Character(NamedTuple):
    session: int
    support: list[int]
    queries: list[list[int]]

    def queries_in(self, session: int) -> list[int]:
        return self.queries[min(session - self.session, len(self.queries) - 1)]


@cache
def _characters() -> dict[str, _Character]:
    """Return session and drawings of each character, numbers from 0, in the order of sessions."""
    found = {}
    for line in _LIST.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, session, support, queries = line.split()
            found[name] = _Character(int(session), _numbers(support), [_numbers(part) for part in queries.split(",")])
    return found


def _numbers(letters: str) -> list[int]:
    return [ord(letter) - ord("a") for letter in letters]


def _drawings(root: Path, names: list[str]) -> dict[str, list[str]]:
    """Return the files of each character, relative to ``root``, in the order of their numbers."""
    half_of = {
        alphabet: half for half in ("images_background", "images_evaluation") for alphabet in directories(root / half)
    }
    found = {}
    for name in names:
        directory = f"{half_of.get(name.partition('/')[0], 'images_background')}/{name}"
        path = root / directory
        files = sorted(entry.name for entry in path.glob("[!.]*.png")) if path.is_dir() else []
        if len(files) != _DRAWINGS:
            raise ValueError(
                f"omniglot-fscil: {path} has {len(files)} drawings, expected {_DRAWINGS}; unpack Omniglot again"
            )
        found[name] = [f"{directory}/{file}" for file in files]
    return found


def _set(name: str, root: Path, drawings: dict[str, list[str]], chosen: dict[str, list[int]]) -> FileImages:
    files = [drawings[label][number] for label, numbers in chosen.items() for number in numbers]
    labels = np.repeat(np.arange(len(chosen)), [len(numbers) for numbers in chosen.values()])
    return FileImages(f"omniglot-fscil/{name}", root, files, labels, list(chosen))

"""The one-shot classification task that comes with Omniglot: 20 runs of 20-way 1-shot classification within one alphabet.

The runs are fixed files: ``run01/training/class01.png`` to ``class20.png``, ``run01/test/item01.png`` to ``item20.png``, and in
``run01/class_labels.txt`` a line for each test drawing, with the training drawing of the same character.

Source: Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program induction" (2015).
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import numpy as np
import torch

from episodes.data.folders import EXTENSIONS, data_root, directories
from episodes.data.image_dataset import FileImages
from episodes.sampling.sampler import Episodes

_PLACES = ("omniglot-py/one-shot-classification", "one-shot-classification", "omniglot-py/all_runs", "all_runs")
_LABELS = "class_labels.txt"
_RUNS, _WAYS = 20, 20


def omniglot_runs(data_dir: str | os.PathLike[str] | None = None) -> tuple[FileImages, Episodes]:
    """Return the drawings of the runs, and the runs as episodes over them.

    Args:
        data_dir: a directory that contains ``one-shot-classification`` or ``all_runs``, with a directory for each run in it, or
            contains a directory ``omniglot-py`` that does. Default: the environment's ``FEWSHOT_DATA``, else ``data`` in the
            working directory.

    Returns:
        The drawings, two of each class, with classes called ``"run01/class01"``: a character that is in two runs is two classes.
        And one episode a run, 20-way and 1-shot with one query a class, for ``evaluate(..., "closed", 20, 1, 1, episodes=...)``.

    Raises:
        ValueError: no runs are found, or the labels of a run do not pair each test drawing with one of its training drawings.
    """
    top = data_root(data_dir)
    root = next((top / place for place in _PLACES if (top / place / "run01").is_dir()), None)
    if root is None:
        raise ValueError(
            f"omniglot runs: looked for run01 in {', '.join(_PLACES)} of {top}, and found none; name the directory that "
            "holds one of them, and unpack Omniglot's one-shot runs there"
        )
    runs = [name for name in directories(root) if re.fullmatch(r"run\d+", name)]
    pairs = {run: _pairs(root, run) for run in runs}
    for run in runs:
        if len(pairs[run]) != len(pairs[runs[0]]):
            raise ValueError(
                f"omniglot runs: {root / run} has {len(pairs[run])} classes and {runs[0]} has {len(pairs[runs[0]])}; "
                "unpack the runs again"
            )
    if (len(runs), len(pairs[runs[0]])) != (_RUNS, _WAYS):
        warnings.warn(
            f"omniglot runs: {root} has {len(runs)} runs of {len(pairs[runs[0]])} classes, the whole set has {_RUNS} of "
            f"{_WAYS}, so figures are not comparable with published ones",
            stacklevel=2,
        )
    files = [file for run in runs for pair in pairs[run] for file in pair]
    classes = [f"{run}/{Path(training).stem}" for run in runs for training, _ in pairs[run]]
    number = torch.arange(len(classes)).reshape(len(runs), -1)
    none = torch.empty(len(runs), 0, dtype=torch.int64)
    episodes = Episodes(
        classes=number,
        support=(2 * number).unsqueeze(-1),
        query=(2 * number + 1).unsqueeze(-1),
        unknown_classes=none,
        unknown=none.unsqueeze(-1).expand(-1, -1, 0),
        base_query=none,
        base_classes=none,
    )
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), 2)
    return FileImages("omniglot/one-shot runs", root, files, labels, classes), episodes


def _pairs(root: Path, run: str) -> list[tuple[str, str]]:
    """Return the training and the test drawing of each class, as paths relative to ``root``, in the order of the classes."""
    path = root / run / _LABELS
    try:
        words = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise ValueError(f"omniglot runs: {path} is missing or no text; unpack the runs again") from error
    answers = {pair[1]: pair[0] for pair in words if len(pair) == 2}
    training, test = (_drawings(root, f"{run}/{part}") for part in ("training", "test"))
    if len(answers) != len(words) or sorted(answers) != training or sorted(answers.values()) != test or not answers:
        raise ValueError(
            f"omniglot runs: {path} has {len(words)} lines for {len(training)} training and {len(test)} test drawings; "
            f"expected a line '{run}/test/item01.png {run}/training/class08.png' for each, every drawing once: unpack the "
            "runs again"
        )
    return [(name, answers[name]) for name in training]


def _drawings(root: Path, directory: str) -> list[str]:
    names = (entry.name for entry in (root / directory).glob("[!.]*"))
    return sorted(f"{directory}/{name}" for name in names if name.lower().endswith(EXTENSIONS))

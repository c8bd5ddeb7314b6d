"""SCAN: commands in a small part of English to sequences of actions, by the official splits.

Source: Lake and Baroni, "Generalization without Systematicity" (ICML 2018). The files are those of the data set
(``tasks_train_length.txt`` and so on), looked for below ``data_dir`` or the directory that ``FEWSHOT_DATA`` names.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch, Lengths, SequenceTask, Split

_SPLITS = {
    "length": "length_split/tasks_{part}_length.txt",
    "simple": "simple_split/tasks_{part}_simple.txt",
    "add_jump": "add_prim_split/tasks_{part}_addprim_jump.txt",
}
_WORDS = [
    "after",
    "and",
    "around",
    "jump",
    "left",
    "look",
    "opposite",
    "right",
    "run",
    "thrice",
    "turn",
    "twice",
    "walk",
]
_ACTIONS = ["I_JUMP", "I_LOOK", "I_RUN", "I_TURN_LEFT", "I_TURN_RIGHT", "I_WALK"]

_LONGEST_COMMAND, _BLANKS = 9, 49


@register("scan")
class Scan(SequenceTask):
    """Translate commands such as "jump twice" to actions: the official SCAN splits, from files.

    A sequence is the command, a delimiter and 49 blanks, so that the input does not show how long the answer is; asked for are
    the actions and the end behind them.

    Args:
        split: ``"length"`` (train up to 22 actions, test 24 to 48), ``"simple"`` or ``"add_jump"``.
        data_dir: the directory that holds the files, in it or in a folder ``scan``;
            ``None`` for the one that ``FEWSHOT_DATA`` names.

    Raises:
        ValueError: there is no such split.
        FileNotFoundError: the files are not there.
    """

    given = True

    vocabulary = (*_WORDS, *_ACTIONS, "|", "?", ".", "pad")

    def __init__(self, split: str = "length", data_dir: str | os.PathLike[str] | None = None) -> None:
        if split not in _SPLITS:
            raise ValueError(f"scan: no split {split!r}: there are {', '.join(_SPLITS)}")
        given = data_dir or os.environ.get("FEWSHOT_DATA")
        if not given:
            raise FileNotFoundError("scan: pass data_dir=, or name the directory of the SCAN files in FEWSHOT_DATA")
        self._parts = {part: self._read(Path(given), _SPLITS[split].format(part=part)) for part in ("train", "test")}
        longest = {part: int(batch.mask.sum(dim=1).max()) - 1 for part, batch in self._parts.items()}
        shortest = {part: int(batch.mask.sum(dim=1).min()) - 1 for part, batch in self._parts.items()}
        self.splits = {
            "train": Split((shortest["train"], longest["train"]), len(self._parts["train"].inputs)),
            "ood_hard": Split((shortest["test"], longest["test"]), len(self._parts["test"].inputs)),
        }

    def sample(self, batch_size: int, generator: torch.Generator, lengths: Lengths | None = None) -> Batch:
        """Return training commands, drawn with replacement, whose answers have ``lengths`` actions; see ``SequenceTask.sample``."""
        if batch_size < 1:
            raise ValueError(f"{self.name}: batch_size must be at least 1, got {batch_size}")
        shortest, longest = self._range(self.splits["train"].lengths if lengths is None else lengths)
        train = self._parts["train"]
        actions = train.mask.sum(dim=1) - 1
        fitting = ((actions >= shortest) & (actions <= longest)).nonzero().squeeze(1)
        if not len(fitting):
            raise ValueError(f"scan: no training command has {shortest} to {longest} actions")
        rows = fitting[torch.randint(len(fitting), (batch_size,), generator=generator)]
        return Batch(*(tensor[rows] for tensor in train))

    def split(self, name: str, size: int | None = None) -> Batch:
        """Return the test commands, in the order of the file, or the first ``size`` of them."""
        if name != "ood_hard":
            raise ValueError(f"scan: no test set {name!r}: there is ood_hard, the official test file")
        test = self._parts["test"]
        if size is not None and not 1 <= size <= len(test.inputs):
            raise ValueError(f"scan: the test set has {len(test.inputs)} commands, {size} are asked for")
        return Batch(*(tensor[:size] for tensor in test))

    def _read(self, place: Path, file: str) -> Batch:
        found = next((path for path in (place / "scan" / file, place / file) if path.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"scan: there is no {file} in {place} or {place / 'scan'}")
        number = {token: i for i, token in enumerate(self.vocabulary)}
        inputs, targets, masks = [], [], []
        for i, line in enumerate(found.read_text(encoding="utf-8").splitlines()):
            try:
                command, actions = line.removeprefix("IN: ").split(" OUT: ")
                prompt = [*(number[word] for word in command.split()), number["|"]]
                answer = [*(number[action] for action in actions.split()), number["."]]
            except (KeyError, ValueError):
                raise ValueError(f"{found} line {i + 1}: no command of SCAN with its actions") from None
            left = _BLANKS - len(answer)  # blanks behind the end as well: their number must not tell the length
            padding = _LONGEST_COMMAND + 1 - len(prompt)
            inputs.append([*prompt, *[number["?"]] * _BLANKS, *[self.pad] * padding])
            targets.append([*prompt, *answer, *[number["."]] * left, *[self.pad] * padding])
            masks.append([*[False] * len(prompt), *[True] * len(answer), *[False] * (left + padding)])
        return Batch(torch.tensor(inputs), torch.tensor(targets), torch.tensor(masks))

"""bAbI: questions on short stories, 20 tasks together, from files.

Source: Weston et al., "Towards AI-Complete Question Answering: A Set of Prerequisite Toy Tasks" (2015), English, 10,000
questions of training for each task. The files are those of the data set (``en-10k/qa1_single-supporting-fact_train.txt`` and
so on), looked for in a folder ``babi`` of ``data_dir`` or of the directory that ``FEWSHOT_DATA`` names. Where ``en-10k`` has
no file of training for a task, those of ``en-valid-10k`` and ``en`` that are there take its place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch, Lengths, SequenceTask, Split

_WORDS = re.compile(r"\w+")
_ELSEWHERE = ("en-valid-10k/qa{}_train.txt", "en-valid-10k/qa{}_valid.txt", "en/qa{}_*train.txt")


class _Question(NamedTuple):
    """A question: the sentences before it, its words, and its answer."""

    story: tuple[tuple[str, ...], ...]
    words: tuple[str, ...]
    answer: str


@register("babi")
class Babi(SequenceTask):
    """Answer a question on a short story, by one word: the 20 bAbI tasks together, from files. Length: the sentences of the story.

    A sequence is the story, its sentences ended by ``.``, and the question, ended by ``?``, where the answer is predicted. Of
    a long story, only its end is shown. An answer of several words is one, such as ``n,s``. Every sequence of a batch is of a
    task that is drawn uniformly. The test sets are ``qa1`` to ``qa20``, the official ones.

    Args:
        questions: numbers of the tasks, from 1 to 20.
        sentences: how many sentences of a story are shown.
        data_dir: the directory that holds the files, in it or in a folder ``babi``; ``None`` for the one that
            ``FEWSHOT_DATA`` names.

    Raises:
        ValueError: no such task, or no sentence.
        FileNotFoundError: the files are not there.
    """

    given = True

    def __init__(
        self,
        questions: Sequence[int] = tuple(range(1, 21)),
        sentences: int = 130,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if not questions or not set(questions) <= set(range(1, 21)) or sentences < 1:
            raise ValueError(f"babi: needs tasks from 1 to 20 and sentences, got {list(questions)} and {sentences}")
        given = data_dir or os.environ.get("FEWSHOT_DATA")
        if not given:
            raise FileNotFoundError("babi: pass data_dir=, or name the directory of the bAbI files in FEWSHOT_DATA")
        place = Path(given) / "babi"
        place = place if place.is_dir() else Path(given)
        self.sentences = sentences
        train = [self._read(_files_of_training(place, number)) for number in questions]
        tests = [self._read(_files(place, f"en-10k/qa{number}_*test.txt", number)) for number in questions]
        words = {
            word
            for part in (*train, *tests)
            for question in part
            for word in (*(word for sentence in question.story for word in sentence), *question.words, question.answer)
        }
        self.vocabulary = (*sorted(words), ".", "?", "pad")
        self._number = {word: number for number, word in enumerate(self.vocabulary)}
        self._train = train
        self._tests = {f"qa{number}": test for number, test in zip(questions, tests, strict=True)}
        lengths = [len(question.story) for part in train for question in part]
        self.splits = {"train": Split((min(lengths), max(lengths)), len(lengths))}
        for name, test in self._tests.items():
            lengths = [len(question.story) for question in test]
            self.splits[name] = Split((min(lengths), max(lengths)), len(test))

    def sample(self, batch_size: int, generator: torch.Generator, lengths: Lengths | None = None) -> Batch:
        """Return questions of training, with replacement, on stories of ``lengths`` sentences; see ``SequenceTask.sample``."""
        if batch_size < 1:
            raise ValueError(f"{self.name}: batch_size must be at least 1, got {batch_size}")
        shortest, longest = self._range(self.splits["train"].lengths if lengths is None else lengths)
        fitting = [[q for q in part if shortest <= len(q.story) <= longest] for part in self._train]
        fitting = [part for part in fitting if part]
        if not fitting:
            raise ValueError(f"babi: no story of training has {shortest} to {longest} sentences")
        drawn = torch.rand(batch_size, 2, generator=generator, dtype=torch.float64).tolist()
        parts = [(fitting[int(task * len(fitting))], place) for task, place in drawn]
        return self._batch([part[int(place * len(part))] for part, place in parts])

    def split(self, name: str, size: int | None = None) -> Batch:
        """Return the test questions of a task, in the order of the file, or the first ``size`` of them."""
        if name not in self._tests:
            raise ValueError(f"babi: no test set {name!r}: there are {', '.join(self._tests)}")
        test = self._tests[name]
        if size is not None and not 1 <= size <= len(test):
            raise ValueError(f"babi: the test set {name} has {len(test)} questions, {size} are asked for")
        return Batch(*(tensor[:size] for tensor in self._batch(test)))

    def _batch(self, questions: list[_Question]) -> Batch:
        inputs = pad_sequence([self._tokens(q) for q in questions], batch_first=True, padding_value=self.pad)
        mask = inputs == self._number["?"]
        targets = inputs.clone()
        targets[mask] = torch.tensor([self._number[question.answer] for question in questions])
        return Batch(inputs, targets, mask)

    def _tokens(self, question: _Question) -> Tensor:
        words = [word for sentence in question.story for word in (*sentence, ".")]
        return torch.tensor([self._number[word] for word in (*words, *question.words, "?")])

    def _read(self, files: list[Path]) -> list[_Question]:
        found: list[_Question] = []
        for file in files:
            story: list[tuple[str, ...]] = []
            for line in file.read_text(encoding="utf-8").splitlines():
                number, _, text = line.partition(" ")
                if number == "1":
                    story = []
                text, *rest = text.split("\t")
                words = tuple(_WORDS.findall(text.lower()))
                if rest:
                    found.append(_Question(tuple(story[-self.sentences :]), words, rest[0].lower()))
                else:
                    story.append(words)
        return found


def _files_of_training(place: Path, number: int) -> list[Path]:
    whole = sorted(place.glob(f"en-10k/qa{number}_*train.txt"))
    if whole:
        return whole
    found = [path for pattern in _ELSEWHERE for path in sorted(place.glob(pattern.format(number)))]
    if not found:
        raise FileNotFoundError(f"babi: there is no en-10k/qa{number}_*train.txt in {place}")
    return found


def _files(place: Path, pattern: str, number: int) -> list[Path]:
    found = sorted(place.glob(pattern))
    if not found:
        raise FileNotFoundError(f"babi: there is no {pattern} in {place}, the test of task {number}")
    return found

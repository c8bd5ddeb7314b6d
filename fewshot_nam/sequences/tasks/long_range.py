"""Text and image of the long-range arena: a film review, byte by byte, and a grey image, pixel by pixel, to be classified.

Source: Tay et al., "Long Range Arena" (2021). Reviews are those of IMDb (Maas et al., 2011), cut at 1,000 bytes as in the
code of the NAM paper; images are those of CIFAR-10 (Krizhevsky, 2009). Files are looked for in the folders ``aclImdb``
(``train/pos/*.txt`` and so on) and ``cifar10`` (``train/airplane/*`` and so on, images of any format) of ``data_dir`` or of
the directory that ``FEWSHOT_DATA`` names. Copies of CIFAR-10 as JPEG are lossy, so figures on them are not comparable with
published ones. The test set is ``id``, the official one. Files of training can be held out, to choose settings by.

Departure: the class is predicted at ``?`` behind the sequence, not at a class token.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch, Lengths, SequenceTask, Split

_ASKS = 256


class _File(NamedTuple):
    """A file, its class, and how many tokens it gives."""

    path: Path
    label: int
    length: int


class _FileTask(SequenceTask):
    """Classify files. Bytes or pixels are tokens 0 to 255, ``?`` is 256, and the classes follow."""

    given = True
    pattern = "[!.]*"  # of the names of its files

    def __init__(
        self, folder: str, data_dir: str | os.PathLike[str] | None, classes: dict[str, str], held_out: int
    ) -> None:
        given = data_dir or os.environ.get("FEWSHOT_DATA")
        if not given:
            raise FileNotFoundError(
                f"{folder}: pass data_dir=, or name the directory that holds the folder {folder} in FEWSHOT_DATA"
            )
        place = Path(given) / folder
        self.vocabulary = (*(f"{value:02x}" for value in range(256)), "?", *classes.values(), "pad")
        self._files: dict[str, list[_File]] = {}
        for split, part in (("train", "train"), ("id", "test")):
            found = []
            for number, name in enumerate(classes):
                inside = place / part / name
                if not inside.is_dir():
                    raise FileNotFoundError(f"{folder}: there is no folder {part}/{name} in {place}")
                for path in sorted(inside.glob(self.pattern)):
                    length = self._length(path)
                    if not length:
                        raise ValueError(f"{folder}: {path} is empty")
                    found.append(_File(path, _ASKS + 1 + number, length))
            if not found:
                raise FileNotFoundError(f"{folder}: there are no files in {place / part}")
            self._files[split] = found
        if held_out != 0:
            files = self._shuffled("held_out", self._files["train"])
            if not 0 < held_out < len(files):
                raise ValueError(
                    f"{self.name}: held_out must leave some of the {len(files)} files of training, got {held_out}"
                )
            self._files |= {"held_out": files[:held_out], "train": files[held_out:]}
        # Files stand by class: a part of the test should have all classes.
        self._files["id"] = self._shuffled("id", self._files["id"])
        spans = {split: [file.length for file in files] for split, files in self._files.items()}
        self.splits = {split: Split((min(span), max(span)), len(span)) for split, span in spans.items()}

    def _length(self, path: Path) -> int:
        """Return how many tokens a file gives."""
        raise NotImplementedError

    def _tokens(self, path: Path) -> Tensor:
        """Return the tokens of a file."""
        raise NotImplementedError

    def sample(self, batch_size: int, generator: torch.Generator, lengths: Lengths | None = None) -> Batch:
        """Return files of training, drawn with replacement, of ``lengths`` tokens; see ``SequenceTask.sample``."""
        if batch_size < 1:
            raise ValueError(f"{self.name}: batch_size must be at least 1, got {batch_size}")
        shortest, longest = self._range(self.splits["train"].lengths if lengths is None else lengths)
        fitting = [file for file in self._files["train"] if shortest <= file.length <= longest]
        if not fitting:
            raise ValueError(f"{self.name}: no file of training has {shortest} to {longest} tokens")
        return self._batch([fitting[i] for i in torch.randint(len(fitting), (batch_size,), generator=generator)])

    def split(self, name: str, size: int | None = None) -> Batch:
        """Return a test in a fixed random order, or the first ``size`` of it; see ``SequenceTask.split``."""
        tests = [split for split in self.splits if split != "train"]
        if name not in tests:
            raise ValueError(f"{self.name}: no test set {name!r}: there is {', '.join(tests)}")
        files = self._files[name]
        if size is not None and not 1 <= size <= len(files):
            raise ValueError(f"{self.name}: the test set has {len(files)} files, {size} are asked for")
        return self._batch(files[:size], self.splits[name].lengths)

    def _shuffled(self, split: str, files: list[_File]) -> list[_File]:
        return [files[i] for i in torch.randperm(len(files), generator=self._generator(split))]

    def _batch(self, files: list[_File], lengths: Lengths = 1) -> Batch:
        asks = torch.tensor([_ASKS])
        rows = [torch.cat([self._tokens(file.path), asks]) for file in files]
        inputs = pad_sequence(rows, batch_first=True, padding_value=self.pad)
        mask = inputs == _ASKS
        targets = inputs.clone()
        targets[mask] = torch.tensor([file.label for file in files])
        width = self._range(lengths)[1] + 1
        return self._padded(Batch(inputs, targets, mask), max(width, inputs.shape[1]))


@register("lra_text")
class LongRangeText(_FileTask):
    """Say whether a film review is positive, byte by byte: text of the long-range arena, from files. Length: the bytes.

    Args:
        longest: where reviews are cut; 1,000 in the code of the NAM paper, 4,000 in the long-range arena.
        data_dir: the directory that holds the folder ``aclImdb``; ``None`` for the one that ``FEWSHOT_DATA`` names.
        held_out: reviews of training that are not trained on and make the test ``held_out``, to choose settings by.

    Raises:
        ValueError: a longest review below 1 byte, a review that is empty, or as many held out as there are.
        FileNotFoundError: the files are not there.
    """

    pattern = "*.txt"

    def __init__(self, longest: int = 1000, data_dir: str | os.PathLike[str] | None = None, held_out: int = 0) -> None:
        if longest < 1:
            raise ValueError(f"lra_text: longest must be at least 1, got {longest}")
        self.longest = longest
        super().__init__("aclImdb", data_dir, {"neg": "negative", "pos": "positive"}, held_out)

    def _length(self, path: Path) -> int:
        return min(self.longest, path.stat().st_size)

    def _tokens(self, path: Path) -> Tensor:
        with path.open("rb") as file:
            return torch.from_numpy(np.frombuffer(file.read(self.longest), np.uint8).astype(np.int64))


@register("lra_image")
class LongRangeImage(_FileTask):
    """Say what a grey image shows, pixel by pixel: image of the long-range arena, from files. Length: the pixels, all the same.

    Args:
        size: pixels of a side; 32 as published. Smaller images are shorter sequences.
        data_dir: the directory that holds the folder ``cifar10``; ``None`` for the one that ``FEWSHOT_DATA`` names.
        held_out: images of training that are not trained on and make the test ``held_out``, to choose settings by.

    Raises:
        ValueError: a size below 1, or as many held out as there are.
        FileNotFoundError: the files are not there.
    """

    def __init__(self, size: int = 32, data_dir: str | os.PathLike[str] | None = None, held_out: int = 0) -> None:
        if size < 1:
            raise ValueError(f"lra_image: size must be at least 1, got {size}")
        self.size = size
        names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
        super().__init__("cifar10", data_dir, {name: name for name in names}, held_out)

    def _length(self, path: Path) -> int:
        return self.size**2

    def _tokens(self, path: Path) -> Tensor:
        from PIL import Image

        with Image.open(path) as image:
            grey = image.convert("L")
            if grey.size != (self.size, self.size):
                grey = grey.resize((self.size, self.size), Image.Resampling.BOX)
            return torch.from_numpy(np.asarray(grey).astype(np.int64)).flatten()

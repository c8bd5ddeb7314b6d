"""Film reviews, byte by byte: predict the next byte from those before. For causal models alone.

Reviews are those of IMDb (Maas et al., 2011), looked for as ``long_range`` does. A sequence is cut at random from reviews one after
another, each behind an ``end``. Training draws from the official training reviews, and tests from the official test reviews.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch, SequenceTask, Split

_END = 256


@register("imdb_bytes")
class ReviewBytes(SequenceTask):
    """Predict the next byte of film reviews, from files; for causal models. Length: the bytes.

    Args:
        length: bytes of the sequences of training and of the test ``id``.
        data_dir: the directory that holds the folder ``aclImdb``; ``None`` for the one that ``FEWSHOT_DATA`` names.

    Raises:
        ValueError: a length below 1.
        FileNotFoundError: the files are not there.
    """

    causal = True
    given = True

    def __init__(self, length: int = 128, data_dir: str | os.PathLike[str] | None = None) -> None:
        if length < 1:
            raise ValueError(f"imdb_bytes: length must be at least 1, got {length}")
        given = data_dir or os.environ.get("FEWSHOT_DATA")
        if not given:
            raise FileNotFoundError(
                "imdb_bytes: pass data_dir=, or name the directory that holds the folder aclImdb in FEWSHOT_DATA"
            )
        place = Path(given) / "aclImdb"
        self._files: dict[str, list[str]] = {}
        for part in ("train", "test"):
            folders = [place / part / kind for kind in ("neg", "pos") if (place / part / kind).is_dir()]
            found = [
                os.path.join(one, name) for one in folders for name in sorted(os.listdir(one)) if name.endswith(".txt")
            ]
            if not found:
                raise FileNotFoundError(f"imdb_bytes: there are no files neg/*.txt and pos/*.txt in {place / part}")
            self._files[part] = found
        self.vocabulary = (*(f"{value:02x}" for value in range(256)), "end", "pad")
        self.splits = {"train": Split(length, len(self._files["train"])), "id": Split(length, 1000)}

    def encode(self, text: str) -> Tensor:
        """Return the tokens ``(T,)`` of a text at the begin of a review."""
        return torch.tensor([_END, *text.encode()])

    def decode(self, tokens: Tensor) -> str:
        """Return the text of tokens ``(T,)``, up to the end of the review; bytes that are no text become a replacement mark."""
        found = tokens.tolist()
        if _END in found:
            found = found[: found.index(_END)]
        return bytes(token for token in found if token < _END).decode(errors="replace")

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        return self._cut("train", count, length, generator)

    def split(self, name: str, size: int | None = None) -> Batch:
        """Return sequences of the official test reviews; see ``SequenceTask.split``."""
        if name != "id":
            raise ValueError(f"imdb_bytes: no test set {name!r}: there is id, of the official test")
        lengths, all_of_them = self.splits["id"]
        if size is not None and not 1 <= size <= all_of_them:
            raise ValueError(f"imdb_bytes: the test set has {all_of_them} sequences, {size} are asked for")
        return self._cut("test", size or all_of_them, self._range(lengths)[0], self._generator(name))

    def examples(self, length: int, size: int = 1000) -> Batch:
        """Return ``size`` fixed sequences of one exact length of the official test reviews."""
        return self._cut("test", size, self._range(length)[0], self._generator(f"length {length}"))

    def _cut(self, part: str, count: int, length: int, generator: torch.Generator) -> Batch:
        rows = torch.stack([self._one(self._files[part], length + 1, generator) for _ in range(count)])
        targets = rows[:, 1:].contiguous()
        return Batch(rows[:, :-1].contiguous(), targets, torch.ones_like(targets, dtype=torch.bool))

    def _one(self, files: list[str], length: int, generator: torch.Generator) -> Tensor:
        """Return ``length`` tokens from a random place of a random review on."""
        first, parts, have = True, [], 0
        while have < length:
            path = files[int(torch.randint(len(files), (), generator=generator))]
            text = torch.from_numpy(np.fromfile(path, np.uint8).astype(np.int64))
            tokens = torch.cat([torch.tensor([_END]), text])
            if first:
                tokens = tokens[int(torch.randint(len(tokens), (), generator=generator)) :]
            first = False
            parts.append(tokens)
            have += len(tokens)
        return torch.cat(parts)[:length]

"""Sampling of episodes as index tensors, the same for the same seed everywhere.

Episodes are drawn in blocks of fixed length. Each block has a random stream of its own (Philox, keyed by seed, purpose and block)
and is computed with integers alone. So episode 7 of seed 0 is the same for every batch size, device and machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewshot_nam.io.regular_files import open_regular
from fewshot_nam.io.tensor_files import write_tensors

if TYPE_CHECKING:
    from episodes.data.image_dataset import ImageSet
    from episodes.features.bank import FeatureBank

Integers = npt.NDArray[np.int64]

_BLOCK = 256
_CLASSES, _IMAGES, _BASE, _SHARES, _SHARED = range(5)  # the purposes of random streams
_FORMAT = "fewshot-nam episodes 1"


@dataclass(frozen=True)
class Episodes:
    """Index tensors of ``E`` episodes. Support, known and unknown queries index one bank, base queries another.

    Attributes:
        classes: ``(E, N)``, the known classes; column ``n`` of the scores is ``classes[:, n]``.
        support: ``(E, N, K)``.
        query: ``(E, N, Q)``, known queries; none is in the support. They stand class by class, unless there are ``query_targets``.
        unknown_classes: ``(E, U)``, none of them known.
        unknown: ``(E, U, Q')``, unknown queries.
        base_query: ``(E, Q_b)``, queries of base classes, indices into the bank of base queries.
        base_classes: ``(E, Q_b)``, their classes.
        query_targets: ``(E, N Q)``, the column of the class of each known query, where classes have unequally many; ``(E, 0)``
            where every class has ``Q`` of them.
    """

    classes: Tensor
    support: Tensor
    query: Tensor
    unknown_classes: Tensor
    unknown: Tensor
    base_query: Tensor
    base_classes: Tensor
    query_targets: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if not self.query_targets.shape[-1] and len(self.query_targets) != len(self.classes):
            object.__setattr__(self, "query_targets", self.classes.new_empty(len(self.classes), 0))

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.classes)

    def __getitem__(self, chosen: slice) -> Episodes:
        """Return consecutive episodes."""
        return Episodes(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @staticmethod
    def cat(parts: list[Episodes]) -> Episodes:
        """Return the episodes of all parts, one part after another."""
        return Episodes(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Episodes)))

    def save(self, path: str | os.PathLike[str], fingerprint: str = "") -> None:
        """Write the index tensors to one safetensors file; a crash leaves the old file or the new one.

        Args:
            path: the file.
            fingerprint: of the bank that they index (``FeatureBank.fingerprint``), which ``load`` compares.
        """
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        write_tensors(path, tensors, {"format": _FORMAT, "fingerprint": fingerprint})

    @staticmethod
    def load(path: str | os.PathLike[str], fingerprint: str | None = None) -> Episodes:
        """Return the episodes that ``save`` wrote.

        Args:
            path: the file.
            fingerprint: of the bank that is to be indexed; ``None`` to compare nothing.

        Raises:
            OSError: it cannot be read, or is a pipe or a device.
            ValueError: not a file of ``save``, cut short, or made for other images.
        """
        from safetensors import SafetensorError, safe_open

        open_regular(path).close()  # safetensors would wait for a pipe without end
        names = [field.name for field in fields(Episodes)]
        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in names if name in file.keys()}  # noqa: SIM118
                tensors.setdefault("query_targets", torch.empty(0, 0, dtype=torch.int64))  # the first files are without
        except SafetensorError as error:
            raise ValueError(f"{path} is not a file of episodes, or it is cut short ({error})") from None
        if metadata.get("format") != _FORMAT or len(tensors) != len(names):
            raise ValueError(f"{path} is not a file of episodes of this version: expected {_FORMAT!r}")
        if fingerprint is not None and metadata.get("fingerprint") != fingerprint:
            raise ValueError(
                f"{path} was made for other images or classes than these: sample new episodes, or use that data set"
            )
        return Episodes(**tensors)


class EpisodeSampler:
    """Draws N-way K-shot episodes from a bank, on request with queries of unknown classes and of base classes.

    Classes are drawn uniformly without replacement, known before unknown; images uniformly without replacement within their
    class. The class of each base query is drawn uniformly with replacement, its image without replacement; if all images of the
    class are used, the next class is taken.

    Args:
        bank: support, known and unknown queries are drawn from it; only its labels are used.
        ways: ``N``, known classes an episode.
        shots: ``K``, support images of each.
        queries: ``Q``, known queries of each.
        open_ways: ``U``, unknown classes an episode; 0 for none.
        open_queries: queries of each unknown class; ``None`` for as many as ``queries``.
        base: the bank that base queries are drawn from; ``None`` for none.
        base_queries: base queries an episode; ``None`` for ``ways * queries``.
        seed: any integer from 0.
        dirichlet: ``None`` for equally many known queries of each class. Otherwise the shares of the classes among the ``N Q``
            known queries are drawn from a Dirichlet distribution with this concentration, a number from 0.001 to 1e6: the smaller,
            the more unequal. With 2, as in Veilleux et al., "Realistic Evaluation of Transductive Few-Shot Learning" (2021). A
            class whose images are used up gives way to the next.

    Raises:
        ValueError: the bank has too few classes, or too few images of one class (it is named), or a number is below 1.

    Example:
        >>> from episodes import FeatureBank
        >>> bank = FeatureBank(torch.ones(12, 2), torch.arange(12) % 4)
        >>> episodes = EpisodeSampler(bank, ways=2, shots=1, queries=2, open_ways=1, seed=0).sample(0, 5)
        >>> len(episodes), tuple(episodes.support.shape), tuple(episodes.query.shape), tuple(episodes.unknown.shape)
        (5, (5, 2, 1), (5, 2, 2), (5, 1, 2))
    """

    def __init__(
        self,
        bank: FeatureBank,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        open_ways: int = 5,
        open_queries: int | None = None,
        base: FeatureBank | None = None,
        base_queries: int | None = None,
        seed: int = 0,
        dirichlet: float | None = None,
    ) -> None:
        open_queries = queries if open_queries is None else open_queries
        base_queries = ways * queries if base_queries is None else base_queries
        positive = {
            "ways": ways,
            "shots": shots,
            "queries": queries,
            "open_queries": open_queries,
            "base_queries": base_queries,
        }
        for name, number in positive.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if dirichlet is not None and not 0.001 <= dirichlet <= 1e6:
            raise ValueError(f"dirichlet must be from 0.001 to 1e6, got {dirichlet}")
        for name, number in {"open_ways": open_ways, "seed": seed}.items():
            if number < 0:
                raise ValueError(f"{name} must be at least 0, got {number}")
        check_enough(bank, ways, shots, queries, open_ways, open_queries)
        if base is not None and base_queries > len(base):
            raise ValueError(
                f"{base_queries} base queries an episode need as many base images, and there are {len(base)}"
            )
        self.bank, self.base, self.seed, self.dirichlet = bank, base, seed, dirichlet
        self.ways, self.shots, self.queries = ways, shots, queries
        self.open_ways, self.open_queries = open_ways, open_queries if open_ways else 0
        self.base_queries = base_queries if base is not None else 0
        self._last: tuple[int, Episodes] | None = None

    def sample(self, start: int, stop: int) -> Episodes:
        """Return episodes ``start`` to ``stop - 1`` of the endless sequence that the seed determines."""
        if not 0 <= start < stop:
            raise ValueError(f"needs 0 <= start < stop, got start {start} and stop {stop}")
        parts = []
        for block in range(start // _BLOCK, (stop - 1) // _BLOCK + 1):
            first = block * _BLOCK
            parts.append(self._block(block)[max(start - first, 0) : min(stop - first, _BLOCK)])
        return parts[0] if len(parts) == 1 else Episodes.cat(parts)

    def batches(self, episodes: int, batch_size: int) -> Iterator[Episodes]:
        """Yield the first ``episodes`` episodes, ``batch_size`` at a time (the last batch may be smaller)."""
        for start in range(0, episodes, batch_size):
            yield self.sample(start, min(start + batch_size, episodes))

    def check(self, episodes: Episodes) -> None:
        """Raise ``ValueError`` unless ``episodes`` could come from this sampler: shapes, indices, classes, no image twice."""
        drawn = self.sample(0, 1)
        for field in fields(Episodes):
            wanted, given = getattr(drawn, field.name).shape[1:], getattr(episodes, field.name).shape[1:]
            if given != wanted:
                raise ValueError(
                    f"these episodes have {field.name} of shape {tuple(given)} each, expected {tuple(wanted)}: "
                    "use the ways, shots, queries and protocol that they were drawn with"
                )
            index = getattr(episodes, field.name)
            if index.dtype != torch.int64 or len(index) != len(episodes) or not len(index):
                raise ValueError(
                    f"these episodes have {len(index)} of {field.name}, {index.dtype}, and {len(episodes)} of classes: "
                    "expected int64, as many of each, and at least one"
                )
        for images, classes, bank in (
            (episodes.support, episodes.classes.unsqueeze(-1), self.bank),
            (episodes.query, _classes_of_queries(episodes), self.bank),
            (episodes.unknown, episodes.unknown_classes.unsqueeze(-1), self.bank),
            (episodes.base_query, episodes.base_classes, self.base),
        ):
            if bank is None or not images.numel():
                continue
            if not 0 <= int(images.min()) <= int(images.max()) < len(bank):
                raise ValueError(f"these episodes index images that the bank of {len(bank)} does not have")
            if not bool((bank.labels[images] == classes).all()):
                raise ValueError("these episodes have images that are not of the class they are listed under")
        used = torch.cat([episodes.support.flatten(1), episodes.query.flatten(1), episodes.unknown.flatten(1)], dim=1)
        if bool((used.sort(dim=1).values.diff(dim=1) == 0).any()):
            raise ValueError("these episodes use an image twice: support and queries must not share any")

    def _block(self, block: int) -> Episodes:
        if self._last is None or self._last[0] != block:
            self._last = (block, self._draw_block(block))
        return self._last[1]

    def _draw_block(self, block: int) -> Episodes:
        ways = self.ways + self.open_ways
        raw = self._raw(_CLASSES, block, ways * _BLOCK).reshape(ways, _BLOCK)
        classes = _draw(raw, np.zeros_like(raw), np.full_like(raw, self.bank.num_classes), _ranks(raw))
        draws = self._raw(_IMAGES, block, _BLOCK * (ways * max(self.shots + self.queries, self.open_queries)))
        known, unknown = classes[: self.ways].T, classes[self.ways :].T
        known_images = self._images(known, self.shots + self.queries, draws)
        unknown_images = self._images(unknown, self.open_queries, draws[known_images.size :])
        base_query, base_classes = self._base(block)
        support, query = known_images[:, :, : self.shots], known_images[:, :, self.shots :]
        targets = np.zeros((_BLOCK, 0), dtype=np.int64)
        if self.dirichlet is not None:
            support, query, targets = self._unequal(block, known)
        arrays = (
            known,
            support,
            query,
            unknown,
            unknown_images,
            base_query,
            base_classes,
            targets,
        )
        return Episodes(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    def _images(self, classes: Integers, count: int, raw: Integers) -> Integers:
        """Return ``count`` distinct images of each class, ``(E, ways, count)`` as indices into the bank."""
        raw = raw[: count * classes.size].reshape(count, classes.size)
        starts, counts, order = self.bank.starts.numpy(), self.bank.counts.numpy(), self.bank.order.numpy()
        flat = np.broadcast_to(classes.reshape(-1), raw.shape)
        drawn = _draw(raw, starts[flat], counts[flat], _ranks(raw))
        return order[drawn].T.reshape(*classes.shape, count)

    def _unequal(self, block: int, known: Integers) -> tuple[Integers, Integers, Integers]:
        """Return support ``(E, N, K)``, known queries ``(E, N, Q)``, unequally many of a class, and their columns ``(E, N Q)``.

        The counts come from Polya's urn: it starts with ``dirichlet`` balls of each class, and each ball that is drawn is put back
        with another of its class. Drawn so, they are those of shares from the Dirichlet distribution, with whole numbers alone:
        for 0.5, one ball of each class to begin with, and two more for each that is drawn.
        """
        assert self.dirichlet is not None
        concentration = Fraction(self.dirichlet).limit_denominator(1000)
        taught, queried, episodes = self.ways * self.shots, self.ways * self.queries, np.arange(_BLOCK)
        raw = self._raw(_SHARES, block, queried * _BLOCK).reshape(queried, _BLOCK)
        columns = np.repeat(np.arange(self.ways), self.shots)[:, None] + np.zeros((1, _BLOCK), dtype=np.int64)
        columns = np.concatenate([columns, np.zeros((queried, _BLOCK), dtype=np.int64)])
        ranks = np.concatenate([np.tile(np.arange(self.shots), self.ways), np.zeros(queried, dtype=np.int64)])[:, None]
        ranks = np.broadcast_to(ranks, columns.shape).copy()
        left, drawn = self.bank.counts.numpy()[known] - self.shots, np.zeros((_BLOCK, self.ways), dtype=np.int64)
        for i in range(queried):
            balls = np.cumsum(concentration.numerator + concentration.denominator * drawn, axis=1)
            column = ((raw[i] % balls[:, -1])[:, None] >= balls).sum(axis=1)
            while (used_up := drawn[episodes, column] >= left[episodes, column]).any():
                column = np.where(used_up, (column + 1) % self.ways, column)
            columns[taught + i] = column
            ranks[taught + i] = self.shots + drawn[episodes, column]
            drawn[episodes, column] += 1
        classes: Integers = known[np.broadcast_to(episodes, columns.shape), columns]
        mixed = self._raw(_SHARED, block, columns.size).reshape(columns.shape)
        places = _draw(mixed, self.bank.starts.numpy()[classes], self.bank.counts.numpy()[classes], ranks)
        images = self.bank.order.numpy()[places].T
        shape = (_BLOCK, self.ways, -1)
        return images[:, :taught].reshape(shape), images[:, taught:].reshape(shape), columns[taught:].T

    def _base(self, block: int) -> tuple[Integers, Integers]:
        if self.base is None:
            empty = np.zeros((_BLOCK, 0), dtype=np.int64)
            return empty, empty
        raw = self._raw(_BASE, block, 2 * self.base_queries * _BLOCK).reshape(2, self.base_queries, _BLOCK)
        classes, counts = raw[0] % self.base.num_classes, self.base.counts.numpy()
        ranks = np.zeros_like(classes)  # how many earlier queries of the episode are of the same class
        for i in range(self.base_queries):
            used_up = np.ones(_BLOCK, dtype=bool)
            while used_up.any():
                ranks[i] = (classes[:i] == classes[i]).sum(axis=0)
                used_up = ranks[i] >= counts[classes[i]]
                classes[i] = np.where(used_up, (classes[i] + 1) % self.base.num_classes, classes[i])
        drawn = _draw(raw[1], self.base.starts.numpy()[classes], counts[classes], ranks)
        return self.base.order.numpy()[drawn].T, classes.T

    def _raw(self, purpose: int, block: int, count: int) -> Integers:
        """Return ``count`` random integers from 0 to 2^63 - 1, the same on every machine and numpy release."""
        bits = np.random.Philox(np.random.SeedSequence([*_seed_words(self.seed), purpose, block]))
        raw: Integers = (bits.random_raw(count) >> np.uint64(1)).astype(np.int64)
        return raw


def _seed_words(seed: int) -> list[int]:
    """Return the words that a seed contributes to the key of a random stream.

    NumPy divides integers into words of 32 bits, so the key ``[2**32 + 5, 0, 0]`` would be the words 5, 1, 0, 0, and so the key
    ``[5, 1, 0]``. A large seed contributes eight words of a hash instead, and keys of different lengths differ.
    """
    if seed < 2**32:
        return [seed]
    digest = hashlib.sha256(str(seed).encode()).digest()
    return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, len(digest), 4)]


def _classes_of_queries(episodes: Episodes) -> Tensor:
    """Return the class of each known query, in a shape that fits ``query``."""
    if not episodes.query_targets.shape[1]:
        return episodes.classes.unsqueeze(-1)
    if not bool(((episodes.query_targets >= 0) & (episodes.query_targets < episodes.classes.shape[1])).all()):
        raise ValueError("these episodes have query_targets that are no columns of theirs")
    return episodes.classes.gather(1, episodes.query_targets).reshape(episodes.query.shape)


def _ranks(raw: Integers) -> Integers:
    """Return ``(k, rows)``, the position of each draw in its row, for rows all of whose draws are from one set."""
    return np.broadcast_to(np.arange(len(raw))[:, None], raw.shape)


def _draw(raw: Integers, start: Integers, count: Integers, rank: Integers) -> Integers:
    """Return draws without replacement ``(k, rows)``, by a Fisher-Yates shuffle that never stores the arrays it shuffles.

    A row's draw ``j`` comes from the set ``start[j]`` to ``start[j] + count[j] - 1``; sets of one row are the same or disjoint,
    and ``rank[j]`` is the number of earlier draws from the same set. The shuffle swaps slot ``own = start + rank`` with a random
    slot at or after it; the value in a slot is found by going back through the few swaps made so far.
    """
    own = start + rank
    slot = own + raw % (count - rank)
    drawn, moved = slot.copy(), own.copy()
    for j in range(len(raw)):
        for i in range(j):
            np.copyto(drawn[j], moved[i], where=slot[i] == slot[j])
            np.copyto(moved[j], moved[i], where=slot[i] == own[j])
    return drawn


def check_enough(
    data: FeatureBank | ImageSet,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    open_ways: int = 5,
    open_queries: int | None = None,
) -> None:
    """Raise ``ValueError`` where episodes of this size cannot be drawn from a bank, or from images before their extraction.

    Args:
        data: the bank or the images; only labels are used.
        ways: as in ``EpisodeSampler``, like all that follow.
        shots: support images of each class.
        queries: known queries of each class.
        open_ways: unknown classes.
        open_queries: queries of each unknown class; ``None`` for as many as ``queries``.
    """
    if ways + open_ways > len(data.classes):
        wanted = f"{ways} ways" + (f" and {open_ways} unknown ways" if open_ways else "")
        fewer = "use fewer ways or unknown ways, or the closed protocol" if open_ways else "use fewer ways"
        raise ValueError(f"{wanted} need {ways + open_ways} classes, and there are {len(data.classes)}: {fewer}")
    counts = np.bincount(np.asarray(data.labels), minlength=len(data.classes))
    needed = max(shots + queries, (queries if open_queries is None else open_queries) if open_ways else 0)
    fewest = int(counts.argmin())
    if counts[fewest] < needed:
        raise ValueError(
            f"class {data.classes[fewest]!r} has {counts[fewest]} images, and {shots} shots and {queries} queries need {needed}: "
            "use fewer, or leave the class out"
        )

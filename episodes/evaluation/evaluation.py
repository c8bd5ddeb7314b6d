"""Evaluation of few-shot heads on episodes: every head sees the same ones, so that differences can be told apart.

Protocols. ``closed``: N known classes, known queries only. ``open``: queries of unknown classes as well. ``generalized``: base
classes share the label space with the N novel ones and have queries of their own; unknown queries as well where there are
unknown ways.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from episodes.evaluation.scoring import Scorer, Watch, calibrate, measure
from episodes.features.bank import FeatureBank
from episodes.features.holdout import hold_out
from episodes.metrics.intervals import interval, paired
from episodes.reporting.report import Report
from episodes.sampling.sampler import Episodes, EpisodeSampler
from episodes.training.meta_learning import META_LEARNED, meta_train
from fewshot_nam.heads import Head, create, needs_base
from fewshot_nam.heads.validation import checked_vectors

PROTOCOLS = ("closed", "open", "generalized")

_BATCH_BYTES = 12 << 20  # scores of a head at a time: more would leave the processor's cache
_CALIBRATION_EPISODES = 1000
_TEMPERATURE_EPISODES = 200


def evaluate(
    bank: FeatureBank,
    heads: Sequence[str] | Mapping[str, Head] = ("nam", "cosine"),
    protocol: str = "open",
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    open_ways: int = 5,
    episodes: int | Episodes = 1000,
    seed: int = 0,
    base: FeatureBank | None = None,
    *,
    base_queries: FeatureBank | None = None,
    validation: FeatureBank | None = None,
    mean: Tensor | None = None,
    background: Tensor | None = None,
    episodes_file: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    progress: bool = False,
    watch: Watch | None = None,
) -> Report:
    """Return how well heads do on N-way K-shot episodes, with 95% intervals and paired differences.

    Args:
        bank: features of the classes that episodes are drawn from.
        heads: names from ``fewshot_nam.heads.available()``, or heads by a name of your own. ``maml`` and ``anil``, which need
            learn2learn, are meta-trained on ``base`` first (``episodes.training.meta_learning``).
        protocol: ``"closed"``, ``"open"`` or ``"generalized"``.
        ways: known classes an episode.
        shots: support pictures of each.
        queries: known queries of each, and unknown queries of each unknown class.
        open_ways: unknown classes an episode; not used in the closed protocol.
        episodes: how many, or ``Episodes`` drawn before, whose shapes must be those asked for.
        seed: of the episodes.
        base: features of base classes, for heads that know of them and for the generalized protocol, where every base class
            has the mean of its features for a prototype.
        base_queries: features of other pictures of the base classes, for the generalized protocol; ``None`` holds out a
            quarter of ``base``, of every class, by the seed. With ``validation``, half of them serve to choose the bias.
        validation: features of classes for choosing thresholds, temperature and novel bias, which are then frozen: adds the
            measures that end in ``:frozen``. Without, the temperature is fitted on other episodes of the same classes.
        mean: ``(D,)``, the mean base feature; ``None`` for that of ``base``, or of ``background``.
        background: ``(B, D)``, the mean features of base classes; ``None`` for those of ``base`` (``class_means(root=True)``).
        episodes_file: a file of episodes to use instead; where it is not there, the episodes are written to it.
        device: where to compute.
        batch_size: episodes at a time, at least 1; ``None`` for as many as fit the cache. The episodes are the same whatever it is.
        progress: show a progress bar on stderr.
        watch: is shown every head's scores of every batch; see ``episodes.reporting.collectors``.

    Raises:
        ValueError: an unknown protocol or head, classes or pictures too few for the episodes, banks whose widths differ, a
            missing base bank, episodes of another shape or for other pictures, or a device that is not there.
    """
    began = time.perf_counter()
    if protocol not in PROTOCOLS:
        raise ValueError(f"no protocol {protocol!r}: there are {', '.join(PROTOCOLS)}")
    place = as_device(device)
    open_ways = 0 if protocol == "closed" else open_ways
    if protocol == "open" and open_ways < 1:
        raise ValueError(
            "the open protocol needs open_ways of at least 1; without unknown classes it is the closed protocol"
        )
    _check_banks(bank, base, base_queries, validation)
    choosing_queries = None
    if protocol == "generalized":
        base, base_queries = _base_parts(base, base_queries, seed)
        if validation is not None:  # the bias must not be chosen on the base pictures that are tested on
            base_queries, choosing_queries = hold_out(base_queries, share=0.5, seed=seed)
    else:
        base_queries = None
    if mean is None and base is not None:
        mean = base.mean()
    if background is None and base is not None:
        background = base.class_means(root=True)
    if mean is not None and mean.shape != (bank.feature_dim,):
        raise ValueError(f"mean must be ({bank.feature_dim},) as the bank's features, got shape {tuple(mean.shape)}")
    if background is not None and (background.dim() != 2 or background.shape[1] != bank.feature_dim):
        shape = tuple(background.shape)
        raise ValueError(f"background must be (B, {bank.feature_dim}) as the bank's features, got shape {shape}")
    if background is not None:
        checked_vectors(background, "background")
    names = [heads] if isinstance(heads, str) else heads
    if isinstance(names, Mapping):
        built = dict(names)
    else:
        # Base classes that share the label space are no strangers, so nobody is told that they are who can do without.
        told = {name: background if protocol != "generalized" or needs_base(name) else None for name in names}
        built = {
            name: meta_train(base, name, ways, shots, queries, seed=seed)
            if name in META_LEARNED
            else create(name, mean, told[name])
            for name in names
        }
    if not built:
        raise ValueError("heads is empty: name at least one head")
    # Copies, so that the caller's heads stay in their mode and on their device.
    built = {name: copy.deepcopy(head).to(place).eval() for name, head in built.items()}
    prototypes = None
    if base is not None and base_queries is not None:
        means, power_means = base.class_means(), base.class_means(root=True)
        prototypes = {name: power_means if head.rooted else means for name, head in built.items()}

    def sampler_over(which: FeatureBank, its_base: FeatureBank | None) -> EpisodeSampler:
        return EpisodeSampler(which, ways, shots, queries, open_ways, base=its_base, seed=seed)

    sampler = sampler_over(bank, base_queries)
    drawn, from_file = _drawn(episodes, episodes_file, sampler)
    total = drawn if isinstance(drawn, int) else len(drawn)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    size, pictures = batch_size or _batch_size(sampler), total * _queries(sampler)
    scorer = Scorer(bank, built, place, base_queries, prototypes, pictures)
    if validation is not None:
        try:
            choosing = sampler_over(validation, choosing_queries)
        except ValueError as error:
            raise ValueError(f"validation classes: {error}") from None
        others = choosing.batches(min(total, _CALIBRATION_EPISODES), size)
        validating = Scorer(validation, built, place, choosing_queries, prototypes, pictures)
        frozen = calibrate(validating, others, thresholds=True)
    else:
        later = sampler.sample(total, total + _TEMPERATURE_EPISODES)
        frozen = calibrate(scorer, _slices(later, size), thresholds=False)
    batches = sampler.batches(drawn, size) if isinstance(drawn, int) else _slices(drawn, size)
    values = measure(scorer, _with_bar(batches, total, progress), frozen, watch)

    config = {
        "protocol": protocol,
        "ways": ways,
        "shots": shots,
        "queries": queries,
        "open_ways": open_ways,
        "episodes": total,
        "seed": None if from_file or isinstance(episodes, Episodes) else seed,
        "heads": {name: repr(head) for name, head in built.items()},
        "bank": _described(bank),
        "base": None if base is None else _described(base),
        "validation": None if validation is None else _described(validation),
        "temperature": {name: settings.temperature for name, settings in frozen.items()},
    }
    fitted = (
        "validation classes" if validation is not None else "other episodes of the same classes, so it is optimistic"
    )
    return Report(
        config,
        results={head: {name: interval(v)._asdict() for name, v in found.items()} for head, found in values.items()},
        paired={
            f"{a}-{b}": {name: paired(values[a][name], values[b][name])._asdict() for name in values[a]}
            for a, b in _pairs(list(values))
        },
        seconds=time.perf_counter() - began,
        notes=[f"the temperature of ece is fitted on {fitted}"],
    )


def as_device(name: str | torch.device) -> torch.device:
    """Return the device called ``name``.

    Raises:
        ValueError: there is no such device on this machine.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {str(name)!r} cannot be used here ({reason}): use cpu, or cuda where there is a GPU"
        ) from None
    return device


def usable_heads(names: Sequence[str], has_base: bool) -> tuple[list[str], list[str]]:
    """Return the heads that can be built, and those that need something known of base classes while nothing is."""
    without = [name for name in names if needs_base(name) and not has_base]
    return [name for name in names if name not in without], without


def _check_banks(
    bank: FeatureBank, base: FeatureBank | None, base_queries: FeatureBank | None, validation: FeatureBank | None
) -> None:
    """Raise ``ValueError`` where banks differ in width, or share pictures that they must not."""
    for name, other in (("base", base), ("base_queries", base_queries), ("validation", validation)):
        if other is not None and other.feature_dim != bank.feature_dim:
            raise ValueError(
                f"the {name} bank has features of width {other.feature_dim}, the bank of {bank.feature_dim}"
            )
    for name, other in (("base", base), ("validation", validation)):
        if other is not None and _same_pictures(bank, other):
            raise ValueError(f"the {name} bank holds the pictures that are tested on: give other classes")
    if base is not None and base_queries is not None and _same_pictures(base, base_queries):
        raise ValueError("base_queries holds the pictures of base: give other pictures, or none to hold some out")


def _base_parts(
    base: FeatureBank | None, base_queries: FeatureBank | None, seed: int
) -> tuple[FeatureBank, FeatureBank]:
    """Return the bank of base prototypes and the bank of base queries, which share no picture."""
    if base is None:
        raise ValueError("the generalized protocol needs base classes: give a base bank")
    if base_queries is None:
        return hold_out(base, share=0.25, seed=seed)
    if base_queries.classes != base.classes:
        raise ValueError("base and base_queries need the same classes in the same order")
    return base, base_queries


def _same_pictures(bank: FeatureBank, other: FeatureBank) -> bool:
    theirs = other.provenance.get("dataset_fingerprint")
    return bank is other or (theirs is not None and theirs == bank.provenance.get("dataset_fingerprint"))


def _drawn(
    episodes: int | Episodes, file: str | os.PathLike[str] | None, sampler: EpisodeSampler
) -> tuple[int | Episodes, bool]:
    """Return the episodes to use, or how many to sample as we go, and whether they were in ``file`` already.

    Where it is not there yet, they are written to it.
    """
    if isinstance(episodes, int) and episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    found = file is not None and Path(file).exists()
    if file is not None:
        if Path(file).is_dir():
            raise ValueError(f"episodes_file {file} is a directory: name a file")
        fingerprint = sampler.bank.fingerprint + (sampler.base.fingerprint if sampler.base is not None else "")
        if found:
            episodes = Episodes.load(file, fingerprint)
        else:
            episodes = episodes if isinstance(episodes, Episodes) else sampler.sample(0, episodes)
    if isinstance(episodes, Episodes):
        sampler.check(episodes)
        if file is not None and not found:
            episodes.save(file, fingerprint)
    return episodes, found


def _queries(sampler: EpisodeSampler) -> int:
    return sampler.ways * sampler.queries + sampler.open_ways * sampler.open_queries + sampler.base_queries


def _batch_size(sampler: EpisodeSampler) -> int:
    pictures = sampler.ways * sampler.shots + _queries(sampler)
    columns = sampler.ways + (sampler.base.num_classes if sampler.base is not None else 0)
    return min(512, max(1, _BATCH_BYTES // (pictures * 4 * columns)))


def _slices(episodes: Episodes, size: int) -> Iterator[Episodes]:
    for start in range(0, len(episodes), size):
        yield episodes[start : start + size]


def _pairs(heads: list[str]) -> list[tuple[str, str]]:
    """Return which heads to compare: every head with cosine, and the first with every other."""
    pairs = [(name, "cosine") for name in heads if name != "cosine"] if "cosine" in heads else []
    return pairs + [
        (heads[0], name) for name in heads[1:] if (heads[0], name) not in pairs and (name, heads[0]) not in pairs
    ]


def _described(bank: FeatureBank) -> dict[str, Any]:
    shape = {"pictures": len(bank), "classes": bank.num_classes, "features": bank.feature_dim}
    return {**bank.provenance, **shape, "fingerprint": bank.fingerprint}


def _with_bar(batches: Iterator[Episodes], total: int, progress: bool) -> Iterator[Episodes]:
    if not progress:
        yield from batches
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="episode", leave=False, mininterval=0.5) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))

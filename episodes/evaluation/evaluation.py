"""Evaluation of few-shot heads: every head is scored on the same episodes, so differences are paired.

`evaluate` goes through six steps, each a function below: settings, banks by role, heads, episodes, what is fixed beforehand,
measures. `episodes.evaluation.scoring` scores a batch, `episodes.metrics.registry` says what is computed from the scores.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import episodes.training.registry  # noqa: F401  registers MAML and ANIL as heads
from episodes.evaluation.scoring import Scorer, in_order
from episodes.evaluation.validation_thresholds import CALIBRATION_EPISODES, TEMPERATURE_EPISODES, choose_frozen
from episodes.features.bank import FeatureBank
from episodes.features.holdout import hold_out
from episodes.features.seen_in_training import seen_in_training
from episodes.metrics.intervals import ci95_over_classes, class_groups, interval, paired
from episodes.metrics.registry import PROTOCOLS, measured, pooled
from episodes.metrics.scores import Frozen, Scores
from episodes.reporting.report import Report
from episodes.sampling.sampler import Episodes, EpisodeSampler
from fewshot_nam._deprecation import warn_renamed
from fewshot_nam.heads import BaseStatistics, Head, create, needs_base
from fewshot_nam.heads.base_statistics import base_from_old_words
from fewshot_nam.heads.open_scores import OpenScoreHead
from fewshot_nam.heads.open_scores import registry as open_scores
from fewshot_nam.heads.registry import spec
from fewshot_nam.heads.validation import checked_vectors

__all__ = ["PROTOCOLS", "Callback", "EvaluationSettings", "as_device", "evaluate", "usable_heads"]

Callback = Callable[[str, Episodes, Scores, Frozen], None]
"""Called with a head's name, a batch of episodes, their scores, and what was fixed for the head beforehand."""

_MOST_EPISODES = 100_000_000  # weeks of computing: a slip is named
_BATCH_BYTES = 12 << 20  # scores of a head at a time: more would leave the processor's cache


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What `evaluate` draws and how it computes. Every field is a keyword of `evaluate` too.

    Attributes:
        protocol: ``"closed"`` (known queries only), ``"open"`` (queries of unknown classes as well) or ``"generalized"`` (base
            classes share the label space with the novel ones and have queries of their own).
        ways: known classes in an episode.
        shots: support images of each known class.
        queries: query images of each known class, and of each unknown class.
        open_ways: unknown classes in an episode; not used in the closed protocol.
        episodes: how many episodes.
        seed: of the episodes. The same seed draws the same episodes on every machine, at any batch size.
        dirichlet: draw unequally many known queries of the classes, as ``EpisodeSampler``; ``None`` for ``queries`` of each.
        device: where to compute, ``"cpu"`` or ``"cuda"``.
        batch_size: episodes at a time; ``None`` for as many as fit the processor's cache. It changes no result.

    Raises:
        ValueError: an unknown protocol, the open protocol without unknown classes, or a number below 1.

    Example:
        >>> EvaluationSettings(shots=5).queries
        15
        >>> EvaluationSettings("opened")
        Traceback (most recent call last):
        ...
        ValueError: no protocol 'opened': there are closed, open, generalized
    """

    protocol: str = "open"
    ways: int = 5
    shots: int = 1
    queries: int = 15
    open_ways: int = 5
    episodes: int = 1000
    seed: int = 0
    dirichlet: float | None = None
    device: str | torch.device = "cpu"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"no protocol {self.protocol!r}: there are {', '.join(PROTOCOLS)}")
        if self.protocol == "open" and self.open_ways < 1:
            raise ValueError(
                "the open protocol needs open_ways of at least 1; without unknown classes it is the closed protocol"
            )
        for name in ("episodes", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            if value is not None and value > _MOST_EPISODES:
                raise ValueError(f"{name} must be at most {_MOST_EPISODES:,}, got {value}")

    @property
    def unknown_ways(self) -> int:
        """Unknown classes that an episode really has: 0 in the closed protocol."""
        return 0 if self.protocol == "closed" else self.open_ways


def evaluate(
    bank: FeatureBank,
    heads: Sequence[str] | Mapping[str, Head] = ("nam", "cosine"),
    settings: EvaluationSettings | str | None = None,
    ways: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
    open_ways: int | None = None,
    episodes: int | Episodes | None = None,
    seed: int | None = None,
    base: FeatureBank | None = None,
    *,
    dirichlet: float | None = None,
    protocol: str | None = None,
    base_queries: FeatureBank | None = None,
    validation: FeatureBank | None = None,
    base_statistics: BaseStatistics | None = None,
    mean: Tensor | None = None,
    background: Tensor | None = None,
    episodes_file: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    callback: Callback | None = None,
    watch: Callback | None = None,
) -> Report:
    """Return how well heads do on N-way K-shot episodes, with 95% intervals and paired differences.

    Args:
        bank: features of the classes that episodes are drawn from.
        heads: names from the registry of heads, or heads under names of your choice. ``maml`` and ``anil``, which need
            learn2learn, are meta-trained on ``base`` first. A name such as ``cosine+knn`` accepts queries by an open-set score
            (``fewshot_nam.heads.open_scores``), which is fitted on ``base``.
        settings: protocol, numbers, seed and device; a string is the protocol. The keywords ``protocol``, ``ways``, ``shots``,
            ``queries``, ``open_ways``, ``episodes``, ``seed``, ``dirichlet``, ``device`` and ``batch_size`` replace single fields.
        ways: see ``EvaluationSettings``.
        shots: likewise.
        queries: likewise.
        open_ways: likewise.
        episodes: likewise; or ``Episodes`` drawn before, whose shapes must be those of the settings.
        seed: likewise.
        base: features of base classes, for heads that use them and for the generalized protocol, where the mean feature of every
            base class is its prototype.
        dirichlet: see ``EvaluationSettings``.
        protocol: likewise.
        base_queries: features of other images of the base classes, for the generalized protocol; ``None`` holds out a quarter of
            every class of ``base``, by the seed. With ``validation``, half of them serve to choose the novel bias.
        validation: features of classes on which thresholds, temperature and novel bias are chosen, which are then frozen: adds the
            measures that end in ``:frozen``. Without, the temperature is fitted on other episodes of the same classes.
        base_statistics: what heads may know of base classes; ``None`` for the statistics of ``base``.
        mean: deprecated, use ``base_statistics``: the mean base feature ``(D,)``.
        background: deprecated, use ``base_statistics``: prototypes of base classes ``(B, D)``.
        episodes_file: a file of episodes to use instead; where it does not exist, the episodes are written to it.
        device: see ``EvaluationSettings``.
        batch_size: likewise.
        progress: show a progress bar on stderr.
        callback: called with every head's scores of every batch; see ``episodes.reporting.collectors``.
        watch: deprecated, use ``callback``.

    Raises:
        ValueError: an unknown protocol or head, too few classes or images for the episodes, banks whose widths differ, a missing
            base bank, episodes of another shape or for other images, or a device that does not exist.

    Example:
        >>> from episodes import FeatureBank, evaluate
        >>> features = torch.eye(8).repeat_interleave(20, 0) + 0.1 * torch.rand(160, 8, generator=torch.manual_seed(0))
        >>> bank = FeatureBank(features, torch.arange(8).repeat_interleave(20))
        >>> report = evaluate(bank, ["nam", "cosine"], ways=3, open_ways=3, episodes=10)
        >>> report.results["nam"]["accuracy"]
        {'mean': 1.0, 'ci95': 0.0}
    """
    keywords = locals()
    began = time.perf_counter()
    if watch is not None:
        if callback is not None:
            raise TypeError("evaluate: watch= is the old word for callback=: give callback alone")
        warn_renamed("evaluate: watch=", "callback=")
        callback = watch
    shortcuts = {field.name: keywords[field.name] for field in dataclasses.fields(EvaluationSettings)}
    if isinstance(episodes, Episodes):
        shortcuts["episodes"] = len(episodes)
    chosen = _settings(settings, shortcuts)
    place = as_device(chosen.device)
    banks = _banks(bank, base, base_queries, validation, chosen)
    known = _base_statistics(banks, base_statistics, mean, background)
    built = _heads(heads, banks, chosen, known, place)
    sampler = _sampler(banks.novel, banks.base_queries, chosen)
    drawn, from_file = _episodes(
        episodes if isinstance(episodes, Episodes) else chosen.episodes, episodes_file, sampler
    )
    total = drawn if isinstance(drawn, int) else len(drawn)
    size = chosen.batch_size or _batch_size(sampler)

    def scorer_of(novel: FeatureBank, queries: FeatureBank | None) -> Scorer:
        return Scorer(novel, built, place, queries, prototypes, total * _queries(sampler))

    prototypes = _base_prototypes(built, banks)
    scorer = scorer_of(banks.novel, banks.base_queries)
    if banks.validation is not None:
        other = _validation_sampler(banks.validation, banks.choosing_queries, chosen)
        other_batches = other.batches(min(total, CALIBRATION_EPISODES), size)
        other_scorer = scorer_of(banks.validation, banks.choosing_queries)
        frozen = choose_frozen(other_scorer, other_batches, thresholds=True)
    else:
        later = sampler.sample(total, total + TEMPERATURE_EPISODES)
        frozen = choose_frozen(scorer, _slices(later, size), thresholds=False)
    batches = sampler.batches(drawn, size) if isinstance(drawn, int) else _slices(drawn, size)
    with contextlib.closing(_with_bar(batches, total, progress)) as shown:
        values, drawn_classes = _measure(scorer, shown, frozen, callback)
    seed_used = None if from_file or isinstance(episodes, Episodes) else chosen.seed
    chosen = dataclasses.replace(chosen, episodes=total)
    return _report(chosen, seed_used, built, banks, frozen, values, drawn_classes, time.perf_counter() - began)


def usable_heads(names: Sequence[str], has_base: bool) -> tuple[list[str], list[str]]:
    """Return the heads that can be made, and those that need base classes while none are known."""
    without = [name for name in names if needs_base(name) and not has_base]
    return [name for name in names if name not in without], without


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


def _settings(settings: EvaluationSettings | str | None, shortcuts: Mapping[str, Any]) -> EvaluationSettings:
    """Return the settings with the keywords that were given put in."""
    given = {name: value for name, value in shortcuts.items() if value is not None}
    if isinstance(settings, str):
        given = {"protocol": settings, **given}
    elif settings is not None:
        return dataclasses.replace(settings, **given)
    return EvaluationSettings(**given)


class _Banks(NamedTuple):
    """The banks by role; ``None`` for a role that this evaluation does not have.

    Attributes:
        novel: what support, known and unknown queries are drawn from.
        base: base classes, without the images that are set aside for queries.
        base_queries: what base queries are drawn from, in the generalized protocol.
        validation: classes on which thresholds and bias are chosen.
        choosing_queries: what base queries are drawn from while they are chosen.
    """

    novel: FeatureBank
    base: FeatureBank | None
    base_queries: FeatureBank | None
    validation: FeatureBank | None
    choosing_queries: FeatureBank | None


def _banks(
    bank: FeatureBank,
    base: FeatureBank | None,
    base_queries: FeatureBank | None,
    validation: FeatureBank | None,
    settings: EvaluationSettings,
) -> _Banks:
    """Return the banks by role; raise ``ValueError`` where they do not fit together."""
    for name, other in (("base", base), ("base_queries", base_queries), ("validation", validation)):
        if other is not None and other.feature_dim != bank.feature_dim:
            raise ValueError(
                f"the {name} bank has features of width {other.feature_dim}, the bank of {bank.feature_dim}"
            )
    for name, other in (("base", base), ("validation", validation)):
        if other is not None and _same_images(bank, other):
            raise ValueError(f"the {name} bank holds the images that are tested on: give other classes")
    if base is not None and base_queries is not None and _same_images(base, base_queries):
        raise ValueError("base_queries holds the images of base: give other images, or none to hold some out")
    if settings.protocol != "generalized":
        return _Banks(bank, base, None, validation, None)
    if base is None:
        raise ValueError("the generalized protocol needs base classes: give a base bank")
    if base_queries is None:
        base, base_queries = hold_out(base, share=0.25, seed=settings.seed)
    elif base_queries.classes != base.classes:
        raise ValueError("base and base_queries need the same classes in the same order")
    choosing_queries = None
    if validation is not None:  # the bias must not be chosen on the base images that are tested on
        base_queries, choosing_queries = hold_out(base_queries, share=0.5, seed=settings.seed)
    return _Banks(bank, base, base_queries, validation, choosing_queries)


def _same_images(bank: FeatureBank, other: FeatureBank) -> bool:
    theirs = other.provenance.get("dataset_fingerprint")
    return bank is other or (theirs is not None and theirs == bank.provenance.get("dataset_fingerprint"))


def _base_statistics(
    banks: _Banks, given: BaseStatistics | None, mean: Tensor | None, background: Tensor | None
) -> BaseStatistics | None:
    """Return what heads may know of base classes; ``mean`` and ``background`` are the words of version 0.1 for it."""
    old = [word for word, value in (("mean", mean), ("background", background)) if value is not None]
    if old and given is not None:
        raise TypeError(f"evaluate: {' and '.join(old)} are old words for base_statistics: give base_statistics alone")
    if given is None and banks.base is not None and background is None:
        given = banks.base.base_statistics()
    if old:
        warn_renamed(
            f"evaluate: {' and '.join(f'{word}=' for word in old)}", "base_statistics=BaseStatistics", stacklevel=4
        )
        checked = None if mean is None else checked_vectors(mean, "mean", zero_allowed=True)
        if given is None:
            given = base_from_old_words(checked, background)
        elif checked is not None:
            given = dataclasses.replace(given, mean=checked)
    if given is not None and given.feature_dim != banks.novel.feature_dim:
        raise ValueError(
            f"base_statistics are of features of width {given.feature_dim}, the bank has width {banks.novel.feature_dim}"
        )
    return given


def _heads(
    heads: Sequence[str] | Mapping[str, Head],
    banks: _Banks,
    settings: EvaluationSettings,
    known: BaseStatistics | None,
    device: torch.device,
) -> dict[str, Head]:
    """Return the heads on the device, ready to score; those given by name are made here."""
    if isinstance(heads, str):
        heads = [heads]
    by_name = heads if isinstance(heads, Mapping) else {name: _head(name, banks, settings, known) for name in heads}
    if not by_name:
        raise ValueError("heads is empty: name at least one head")
    # Copies, so that the caller's heads stay in their mode and on their device.
    return {name: copy.deepcopy(head).to(device).eval() for name, head in by_name.items()}


def _head(name: str, banks: _Banks, settings: EvaluationSettings, known: BaseStatistics | None) -> Head:
    """Return a head by name, trained on the base bank where it has to be; its open-set score is fitted on that bank."""
    name, score = open_scores.split_name(name)
    train = spec(name).trainer()
    if train is not None:
        head = train(banks.base, name, settings.ways, settings.shots, settings.queries, seed=settings.seed)
    else:
        head = create(name, known)
    if score is None:
        return head
    scored = OpenScoreHead(head, open_scores.create(score))
    if banks.base is not None:
        return scored.fit(banks.base.features.float(), banks.base.labels, seed=settings.seed)
    if open_scores.spec(score).needs_base:
        raise ValueError(
            f"the open-set score {score!r} is fitted on features of base classes, and none are given: give a bank of them "
            "(base=, --base or --split); statistics of base classes are not enough"
        )
    return scored


def _base_prototypes(heads: Mapping[str, Head], banks: _Banks) -> dict[str, Tensor] | None:
    """Return the prototypes of base classes that share the label space, ``(B, D)`` for each head; ``None`` without them."""
    if banks.base is None or banks.base_queries is None:
        return None
    means, power_means = banks.base.class_means(), banks.base.class_means(power_norm=True)
    return {name: power_means if head.power_normalised else means for name, head in heads.items()}


def _sampler(bank: FeatureBank, base_queries: FeatureBank | None, settings: EvaluationSettings) -> EpisodeSampler:
    return EpisodeSampler(
        bank,
        settings.ways,
        settings.shots,
        settings.queries,
        settings.unknown_ways,
        base=base_queries,
        seed=settings.seed,
        dirichlet=settings.dirichlet,
    )


def _validation_sampler(
    bank: FeatureBank, base_queries: FeatureBank | None, settings: EvaluationSettings
) -> EpisodeSampler:
    try:
        return _sampler(bank, base_queries, settings)
    except ValueError as error:
        raise ValueError(f"validation classes: {error}") from None


def _episodes(
    episodes: int | Episodes, file: str | os.PathLike[str] | None, sampler: EpisodeSampler
) -> tuple[int | Episodes, bool]:
    """Return the episodes to use, or how many to sample later, and whether they come from ``file``.

    A file that does not exist yet is written.
    """
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


def _measure(
    scorer: Scorer, batches: Iterator[Episodes], frozen: Mapping[str, Frozen], callback: Callback | None
) -> tuple[dict[str, dict[str, Tensor]], Tensor]:
    """Return every measure in every episode, ``{head: {measure: (E,)}}``, and the classes of every episode, ``(E, N + U)``."""
    found: dict[str, dict[str, list[Tensor]]] = {name: {} for name in scorer.heads}
    classes: list[Tensor] = []
    queries = 0

    def measures_of(batch: Episodes) -> tuple[Episodes, list[tuple[str, Scores, dict[str, Tensor]]]]:
        scored = ((name, scores.with_frozen(frozen[name])) for name, scores in scorer.score(batch))
        return batch, [(name, scores, measured(scores)) for name, scores in scored]

    with in_order(measures_of, batches, scorer.threads) as results:
        for batch, of_heads in results:
            classes.append(torch.cat([batch.classes, batch.unknown_classes], dim=1).cpu())
            for name, scores, measures in of_heads:
                queries = scores.labelled[0].shape[1]
                if callback is not None:
                    callback(name, batch, scores, frozen[name])
                for measure, values in measures.items():
                    found[name].setdefault(measure, []).append(values.cpu())
    pooled_values = {
        name: {measure: pooled(measure, torch.cat(parts), queries) for measure, parts in lists.items()}
        for name, lists in found.items()
    }
    return pooled_values, torch.cat(classes)


def _report(
    settings: EvaluationSettings,
    seed: int | None,
    heads: Mapping[str, Head],
    banks: _Banks,
    frozen: Mapping[str, Frozen],
    values: Mapping[str, Mapping[str, Tensor]],
    drawn_classes: Tensor,
    seconds: float,
) -> Report:
    """Return means, intervals and paired differences of the values, and what they were computed from."""
    fitted = (
        "validation classes"
        if banks.validation is not None
        else "other episodes of the same classes, so it is optimistic"
    )
    seen = [] if banks.base_queries is None else seen_in_training(banks.base_queries.provenance)
    groups, group = class_groups(banks.novel.classes)
    present = torch.zeros(len(drawn_classes), int(groups.max()) + 1, dtype=torch.bool)
    present.scatter_(1, groups[drawn_classes], True)
    pairs = {f"{a}-{b}": (values[a], values[b]) for a, b in _pairs(list(values))}
    return Report(
        config={
            "protocol": settings.protocol,
            "ways": settings.ways,
            "shots": settings.shots,
            "queries": settings.queries,
            "open_ways": settings.unknown_ways,
            "episodes": settings.episodes,
            "seed": seed,
            **({} if settings.dirichlet is None else {"dirichlet": settings.dirichlet}),
            "heads": {name: repr(head) for name, head in heads.items()},
            "bank": _described(banks.novel),
            "base": None if banks.base is None else _described(banks.base),
            "validation": None if banks.validation is None else _described(banks.validation),
            "temperature": {name: fixed.temperature for name, fixed in frozen.items()},
            "class_groups": {"of": group, "count": present.shape[1]},
        },
        results={head: {name: interval(v)._asdict() for name, v in found.items()} for head, found in values.items()},
        paired={pair: {name: paired(a[name], b[name])._asdict() for name in a} for pair, (a, b) in pairs.items()},
        over_classes={pair: _over_classes(a, b, present) for pair, (a, b) in pairs.items()},
        seconds=seconds,
        notes=[f"the temperature of ece is fitted on {fitted}", *seen],
    )


def _over_classes(a: Mapping[str, Tensor], b: Mapping[str, Tensor], present: Tensor) -> dict[str, dict[str, float]]:
    """Return the differences of two heads with their intervals over classes."""
    differences = torch.stack([a[name].double() - b[name].double() for name in a], dim=1)
    found = zip(a, differences.mean(0).tolist(), ci95_over_classes(differences, present).tolist(), strict=True)
    return {name: {"mean": mean, "ci95": ci95} for name, mean, ci95 in found}


def _queries(sampler: EpisodeSampler) -> int:
    return sampler.ways * sampler.queries + sampler.open_ways * sampler.open_queries + sampler.base_queries


def _batch_size(sampler: EpisodeSampler) -> int:
    images = sampler.ways * sampler.shots + _queries(sampler)
    columns = sampler.ways + (sampler.base.num_classes if sampler.base is not None else 0)
    return min(512, max(1, _BATCH_BYTES // (images * 4 * columns)))


def _slices(episodes: Episodes, size: int) -> Iterator[Episodes]:
    for start in range(0, len(episodes), size):
        yield episodes[start : start + size]


def _pairs(heads: list[str]) -> list[tuple[str, str]]:
    """Return the pairs to compare: every head with cosine, and the first head with every other."""
    pairs = [(name, "cosine") for name in heads if name != "cosine"] if "cosine" in heads else []
    return pairs + [
        (heads[0], name) for name in heads[1:] if (heads[0], name) not in pairs and (name, heads[0]) not in pairs
    ]


def _described(bank: FeatureBank) -> dict[str, Any]:
    shape = {"pictures": len(bank), "classes": bank.num_classes, "features": bank.feature_dim}
    return {**bank.provenance, **shape, "fingerprint": bank.fingerprint}


def _with_bar(batches: Iterator[Episodes], total: int, progress: bool) -> Generator[Episodes, None, None]:
    if not progress:
        yield from batches
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="episode", leave=False, mininterval=0.5) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))

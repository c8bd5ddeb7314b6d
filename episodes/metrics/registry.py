"""The measures that `evaluate` reports: names, meanings and how each is computed. Tables, `--help` and tests read this list.

The order is that of the tables: first what a user of a deployed model meets.

To add a measure, write a function from `Scores` to one value per episode, in a file of its own or here, and register it:

    meaning = "mean gap between known and unknown"
    register(Measure("margin", meaning, "higher", ("open",), _margin, needs=("unknown",), unit="number"))

Measures that share a quantity (a threshold, a ranking) read it from a property of `Scores`, which computes it once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # `fewshot-nam-eval --help` lists measures and must not wait for torch
    from torch import Tensor

    from episodes.metrics.scores import Scores

Protocol = Literal["closed", "open", "generalized"]
Need = Literal["unknown", "thresholds", "bias"]
Unit = Literal["share", "number"]

PROTOCOLS: tuple[Protocol, ...] = ("closed", "open", "generalized")


@dataclass(frozen=True)
class Measure:
    """A measure: what its printed name means and how it is computed.

    Attributes:
        name: as tables and JSON print it. A name that ends in `:frozen` is computed with what validation classes chose.
        meaning: one line in plain English.
        better: `"higher"` or `"lower"`.
        protocols: which protocols report it.
        compute: from a batch of scores to values `(E,)`; where there is a `pool`, to the input of that, `(E, ...)`.
        needs: parts of the scores without which it is left out: `"unknown"` queries, `"thresholds"` or `"bias"` of `Frozen`.
        pool: from the concatenated results of all batches and the number of labelled queries in an episode to `(E,)`.
        short: the protocols whose short table shows it. Tables keep the order of registration.
        unit: how tables print it: a ``"share"`` from 0 to 1 in percent, a ``"number"`` as it is.
    """

    name: str
    meaning: str
    better: Literal["higher", "lower"]
    protocols: tuple[Protocol, ...]
    compute: Callable[[Scores], Tensor]
    needs: tuple[Need, ...] = ()
    pool: Callable[[Tensor, int], Tensor] | None = None
    short: tuple[Protocol, ...] = ()
    unit: Unit = "share"

    def applies_to(self, scores: Scores) -> bool:
        """Whether the scores have all that this measure needs."""
        there = {
            "unknown": scores.unknown is not None,
            "thresholds": scores.frozen.open_threshold is not None and scores.frozen.class_threshold is not None,
            "bias": scores.frozen.bias is not None,
        }
        return protocol_of(scores) in self.protocols and all(there[need] for need in self.needs)


MEASURES: dict[str, Measure] = {}
"""All measures by name, in the order of tables; ``register`` adds one."""


def register(measure: Measure) -> None:
    """Add a measure to `MEASURES`.

    Raises:
        ValueError: a name that is taken, or a protocol or unit that does not exist.
    """
    if measure.name in MEASURES:
        raise ValueError(f"register: there is a measure {measure.name!r} already")
    unknown = set(measure.protocols) - set(PROTOCOLS)
    if unknown or not measure.protocols:
        raise ValueError(f"register: {measure.name!r} needs protocols among {PROTOCOLS}, got {measure.protocols}")
    if measure.unit not in ("share", "number"):
        raise ValueError(f"register: the unit of {measure.name!r} is 'share' or 'number', got {measure.unit!r}")
    MEASURES[measure.name] = measure


def protocol_of(scores: Scores) -> Protocol:
    """Return the protocol that scores come from."""
    return "generalized" if scores.base is not None else "open" if scores.unknown is not None else "closed"


def short_table(protocol: str) -> list[str]:
    """Return the measures of a protocol's short table, in its order."""
    return [measure.name for measure in MEASURES.values() if protocol in measure.short]


def measured(scores: Scores) -> dict[str, Tensor]:
    """Return every registered measure of these scores, `{name: (E,)}` in float64; one with a `pool`, as `compute` gives it."""
    return {name: measure.compute(scores).double() for name, measure in MEASURES.items() if measure.applies_to(scores)}


def pooled(name: str, values: Tensor, queries: int) -> Tensor:
    """Return a measure's values `(E,)` from the results of all batches.

    Args:
        name: of the measure.
        values: what `measured` gave, concatenated over batches.
        queries: labelled queries in an episode.
    """
    pool = MEASURES[name].pool
    return values if pool is None else pool(values, queries)


def _ece_sums(scores: Scores) -> Tensor:
    from episodes.metrics.calibration import ece_sums_of

    return ece_sums_of(scores)


def _ece_values(sums: Tensor, queries: int) -> Tensor:
    from episodes.metrics.calibration import ece_values

    return ece_values(sums, queries)


def _register_all() -> None:
    closed_or_open: tuple[Protocol, ...] = ("closed", "open")
    with_unknown: tuple[Protocol, ...] = ("open", "generalized")
    generalized: tuple[Protocol, ...] = ("generalized",)
    for measure in (
        Measure(
            "open_fpr@95tpr",
            "unknown queries accepted while at least 95% of the known are",
            "lower",
            with_unknown,
            lambda scores: scores.unknown_accepted(scores.open_threshold),
            needs=("unknown",),
            short=("open",),
        ),
        Measure(
            "wrong_answers@95tpr",
            "known and unknown queries that get a wrong answer at the threshold of open_fpr@95tpr",
            "lower",
            with_unknown,
            lambda scores: scores.wrong_answers(scores.open_threshold),
            needs=("unknown",),
            short=("open",),
        ),
        Measure(
            "class_fpr@95tpr:unknown",
            "class_fpr@95tpr over the unknown queries only",
            "lower",
            with_unknown,
            lambda scores: scores.class_fpr.unknown,
            needs=("unknown",),
            short=("open",),
        ),
        Measure(
            "class_fpr@95tpr:known",
            "class_fpr@95tpr over the known queries only",
            "lower",
            with_unknown,
            lambda scores: scores.class_fpr.known,
            needs=("unknown",),
            short=("open",),
        ),
        Measure(
            "class_fpr@95tpr",
            "wrong (query, class) pairs accepted while at least 95% of the true pairs are",
            "lower",
            with_unknown,
            lambda scores: scores.class_fpr.overall,
            needs=("unknown",),
        ),
        Measure(
            "accuracy",
            "known queries given their own class",
            "higher",
            closed_or_open,
            lambda scores: scores.accuracy(),
            short=("closed", "open"),
        ),
        Measure(
            "auroc",
            "chance that a known query scores above an unknown one, ties half",
            "higher",
            with_unknown,
            lambda scores: scores.auroc(),
            needs=("unknown",),
            short=("open",),
        ),
        Measure(
            "oscr",
            "chance that a known query is classified right and scores above an unknown one",
            "higher",
            with_unknown,
            lambda scores: scores.oscr(),
            needs=("unknown",),
        ),
        Measure(
            "ece",
            "gap between confidence and accuracy: 15 bins, after temperature, pooled over episodes",
            "lower",
            PROTOCOLS,
            _ece_sums,
            pool=_ece_values,
            short=("closed",),
        ),
        Measure(
            "ausuc",
            "area under base_accuracy against novel_accuracy as a bias on novel scores sweeps",
            "higher",
            generalized,
            lambda scores: scores.ausuc(),
            short=generalized,
        ),
        Measure(
            "base_accuracy",
            "base queries given their own class among base and novel classes",
            "higher",
            generalized,
            lambda scores: scores.base_accuracy(),
            short=generalized,
        ),
        Measure(
            "novel_accuracy",
            "novel queries given their own class among base and novel classes",
            "higher",
            generalized,
            lambda scores: scores.novel_accuracy(),
            short=generalized,
        ),
        Measure(
            "harmonic_mean",
            "harmonic mean of base_accuracy and novel_accuracy",
            "higher",
            generalized,
            lambda scores: scores.harmonic_mean(),
            short=generalized,
        ),
        Measure(
            "joint_accuracy",
            "base and novel queries together given their own class",
            "higher",
            generalized,
            lambda scores: scores.joint_accuracy(),
        ),
        Measure(
            "novel_to_base",
            "novel queries called a base class",
            "lower",
            generalized,
            lambda scores: scores.novel_to_base(),
            short=generalized,
        ),
        Measure(
            "base_to_novel",
            "base queries called a novel class",
            "lower",
            generalized,
            lambda scores: scores.base_to_novel(),
            short=generalized,
        ),
        Measure(
            "tpr:frozen",
            "known queries accepted at a validation threshold; 95% meant",
            "higher",
            with_unknown,
            lambda scores: scores.known_accepted(scores.frozen_open_threshold),
            needs=("unknown", "thresholds"),
        ),
        Measure(
            "open_fpr@95tpr:frozen",
            "unknown queries accepted at a validation threshold",
            "lower",
            with_unknown,
            lambda scores: scores.unknown_accepted(scores.frozen_open_threshold),
            needs=("unknown", "thresholds"),
        ),
        Measure(
            "wrong_answers@95tpr:frozen",
            "known and unknown queries that get a wrong answer at a validation threshold",
            "lower",
            with_unknown,
            lambda scores: scores.wrong_answers(scores.frozen_open_threshold),
            needs=("unknown", "thresholds"),
        ),
        Measure(
            "class_tpr:frozen",
            "true (query, class) pairs accepted at a validation threshold; 95% meant",
            "higher",
            with_unknown,
            lambda scores: scores.true_pairs_accepted(scores.frozen_class_threshold),
            needs=("unknown", "thresholds"),
        ),
        Measure(
            "class_fpr@95tpr:unknown:frozen",
            "class_fpr@95tpr:frozen over the unknown queries only",
            "lower",
            with_unknown,
            lambda scores: scores.frozen_class_fpr.unknown,
            needs=("unknown", "thresholds"),
        ),
        Measure(
            "class_fpr@95tpr:known:frozen",
            "class_fpr@95tpr:frozen over the known queries only",
            "lower",
            with_unknown,
            lambda scores: scores.frozen_class_fpr.known,
            needs=("unknown", "thresholds"),
        ),
        Measure(
            "class_fpr@95tpr:frozen",
            "wrong (query, class) pairs accepted at a validation threshold",
            "lower",
            with_unknown,
            lambda scores: scores.frozen_class_fpr.overall,
            needs=("unknown", "thresholds"),
        ),
        Measure(
            "harmonic_mean:frozen",
            "harmonic mean of the two, novel bias chosen on validation classes",
            "higher",
            generalized,
            lambda scores: scores.harmonic_mean(bias=None),
            needs=("bias",),
        ),
        Measure(
            "base_accuracy:frozen",
            "base_accuracy with the novel bias chosen on validation classes",
            "higher",
            generalized,
            lambda scores: scores.base_accuracy(bias=None),
            needs=("bias",),
        ),
        Measure(
            "novel_accuracy:frozen",
            "novel_accuracy with the novel bias chosen on validation classes",
            "higher",
            generalized,
            lambda scores: scores.novel_accuracy(bias=None),
            needs=("bias",),
        ),
    ):
        register(measure)


_register_all()

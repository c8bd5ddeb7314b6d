"""The open-set scores by name. A new score is a class in a file beside this one and an entry here.

Importing this module imports no torch, so that ``--help`` of a command can list the scores at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewshot_nam.heads.open_scores.open_score import OpenScore

SEPARATOR = "+"
"""Between the name of a head and that of a score: ``cosine+knn``."""


@dataclass(frozen=True)
class ScoreSpec:
    """An open-set score in the registry.

    Attributes:
        name: what ``create``, tables and the command line call it.
        build: the class, or a function that returns a score; may be given as ``"module:name"``, to be imported when it is used.
        summary: one line on what the score is.
        settings: keyword arguments that are part of the definition.
        needs_base: whether it has to be fitted on features of base classes. Other scores may be: they choose their temperature.
    """

    name: str
    build: str | Callable[..., OpenScore]
    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs_base: bool = False


_SPECS: dict[str, ScoreSpec] = {}


def register(spec: ScoreSpec) -> ScoreSpec:
    """Add a score to the registry; return its entry. Registering an equal entry again changes nothing.

    Raises:
        ValueError: the name is taken by another score, or has a ``+`` in it.
    """
    if not spec.name or SEPARATOR in spec.name:
        raise ValueError(f"register: the name of an open-set score is text without {SEPARATOR!r}, got {spec.name!r}")
    if _SPECS.setdefault(spec.name, spec) != spec:
        raise ValueError(f"register: there is an open-set score {spec.name!r} already: choose another name")
    return spec


def specs() -> list[ScoreSpec]:
    """Return all entries in the order of registration."""
    return list(_SPECS.values())


def spec(name: str) -> ScoreSpec:
    """Return the entry of a score.

    Raises:
        ValueError: no score has this name.
    """
    if name not in _SPECS:
        near = difflib.get_close_matches(name, _SPECS, n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no open-set score {name!r}{hint} There are: {', '.join(_SPECS)}")
    return _SPECS[name]


def available() -> dict[str, str]:
    """Return the names of the scores, each with a line on what it is."""
    return {entry.name: entry.summary for entry in specs()}


def create(name: str, **options: Any) -> OpenScore:
    """Return a new open-set score by name.

    Args:
        name: one of ``available()``.
        options: settings of its class, such as ``neighbours``.

    Raises:
        ValueError: an unknown name, or settings that the score refuses.

    Example:
        >>> from fewshot_nam.heads import open_scores
        >>> open_scores.create("knn", neighbours=3)
        KNNScore(neighbours=3)
    """
    entry = spec(name)
    build = entry.build
    if isinstance(build, str):
        module, _, function = build.partition(":")
        build = getattr(import_module(module), function)
    try:
        made: OpenScore = build(**{**entry.settings, **options})
    except TypeError as error:
        raise ValueError(f"the open-set score {name!r} cannot take these settings: {error}") from None
    return made


def split_name(name: str) -> tuple[str, str | None]:
    """Return the name of a head and that of its open-set score; ``None`` where there is no score in the name.

    >>> split_name("cosine+knn"), split_name("cosine")
    (('cosine', 'knn'), ('cosine', None))
    """
    head, plus, score = name.partition(SEPARATOR)
    return head, score if plus else None


_HERE = "fewshot_nam.heads.open_scores"
for _entry in (
    ScoreSpec("msp", f"{_HERE}.score_based:MSPScore", "largest softmax probability"),
    ScoreSpec("energy", f"{_HERE}.score_based:EnergyScore", "log of the softmax normaliser"),
    ScoreSpec("gen", f"{_HERE}.score_based:GENScore", "minus the generalised entropy of the softmax"),
    ScoreSpec(
        "knn", f"{_HERE}.distances:KNNScore", "minus the squared distance to the k-th nearest shot, unit features"
    ),
    ScoreSpec(
        "rmds",
        f"{_HERE}.distances:RMDSScore",
        "relative Mahalanobis distance: nearest class against all base images",
        needs_base=True,
    ),
    ScoreSpec(
        "rmds-unit",
        f"{_HERE}.distances:RMDSScore",
        "the same on unit features",
        {"unit_length": True},
        needs_base=True,
    ),
    ScoreSpec(
        "vim",
        f"{_HERE}.directions:ViMScore",
        "energy minus the length outside the principal space of base images",
        needs_base=True,
    ),
    ScoreSpec(
        "fdbd", f"{_HERE}.directions:FDBDScore", "distance to the decision boundaries of other classes", needs_base=True
    ),
    ScoreSpec(
        "nci",
        f"{_HERE}.directions:NCIScore",
        "alignment with the answer's class weights, and the L1 norm",
        needs_base=True,
    ),
):
    register(_entry)

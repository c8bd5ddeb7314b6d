"""What a teaching session returns: after learning, for an image, for a class, after calibration, and of a check on given images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fewshot_nam.heads import Label


class Learned(NamedTuple):
    """What was learned.

    Attributes:
        counts: the number of images, by class.
        repeated: images left out because they were learned before.
        skipped: for each image that could not be read, why.
        warnings: of the threshold, where one is set: what these classes do to it.
    """

    counts: dict[str, int]
    repeated: int
    skipped: list[str]
    warnings: list[str]


class Answer(NamedTuple):
    """The answer to one image.

    Attributes:
        label: the class; ``None`` where the image is refused as unknown.
        best: the class with the largest score.
        score: the largest score.
        threshold: an image is accepted from this score on; ``None`` where nothing is refused.
        ranking: the five best classes with their scores.
        seconds: what it took, backbone included.
    """

    label: Label | None
    best: Label
    score: float
    threshold: float | None
    ranking: list[tuple[Label, float]]
    seconds: float


class ClassView(NamedTuple):
    """One known class.

    Attributes:
        label: its name.
        images: how many images it was learned from; 0 for a class that was known beforehand.
        thumbnails: JPEG bytes of images learned in this session.
        rival: the other class that its images score highest for on average; ``None`` with one class.
        rival_score: that average.
        accepted_as_rival: whether that average reaches the threshold.
    """

    label: Label
    images: int
    thumbnails: list[bytes]
    rival: Label | None
    rival_score: float
    accepted_as_rival: bool


class Promise(NamedTuple):
    """What a calibration promises, and what it costs.

    Attributes:
        target: the largest share of unknown images to accept.
        threshold: an image is accepted from this score on.
        bound: at most this share of unknown images like those given is accepted, on average over calibrations.
        bound_95: at most this share in 95% of calibrations; ``None`` where it is not known.
        unknowns: how many different images it rests on.
        unknowns_accepted: the share of these images that is accepted.
        known_accepted: the share of learned images that is accepted by a memory that learned the others; ``None`` where every
            class has one image.
        known_images: how many learned images this was measured on.
        warnings: of the calibration.
    """

    target: float
    threshold: float
    bound: float
    bound_95: float | None
    unknowns: int
    unknowns_accepted: float
    known_accepted: float | None
    known_images: int
    warnings: list[str]


class Check(NamedTuple):
    """The answers to images whose classes are known.

    Attributes:
        known, unknown, base: the largest score of each image of that kind.
        threshold: as in ``Answer``.
        confusions: how often images of a class (``None``: of no class that is known) got an answer (``None``: "unknown").
        skipped: for each image that could not be read, why.
        doubts: what makes the figures say less: images that were learned, set the rate, came twice, or are of no known class.
        version: of the session that they are of.
    """

    known: list[float]
    unknown: list[float]
    base: list[float]
    threshold: float | None
    confusions: dict[tuple[str | None, str | None], int]
    skipped: list[str]
    doubts: Sequence[str] = ()
    version: int = 0


def images_were(count: int) -> str:
    """Return the beginning of a sentence on some images."""
    return "1 image was" if count == 1 else f"{count} images were"


def listed(names: Iterable[str]) -> str:
    """Return the first three names, and how many there are more."""
    all_names = list(names)
    more = f" and {len(all_names) - 3} more" if len(all_names) > 3 else ""
    return ", ".join(map(repr, all_names[:3])) + more

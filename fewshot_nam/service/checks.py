"""The answers of a memory to images whose classes are known, which are not learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from fewshot_nam.heads import Head
from fewshot_nam.heads.duplicates import distinct, first_equal
from fewshot_nam.service.class_names import known_classes, one_spelling
from fewshot_nam.service.findings import Check, images_were, listed
from fewshot_nam.service.given_images import GivenImage, Progress, features_of
from fewshot_nam.service.thresholds import Ready
from fewshot_nam.vision.model import NAMModel


def check_of(
    model: NAMModel,
    now: Ready,
    refused: Tensor,
    known: Sequence[tuple[GivenImage, str]],
    unknown: Sequence[GivenImage],
    base: Sequence[GivenImage],
    progress: Progress | None,
    most_pixels: int | None,
) -> Check:
    """Return the answers; arguments and errors as ``TeachingSession.check``.

    Args:
        model: gives the features.
        now: the head, and its threshold.
        refused: the features of the images of unknowns that were given.
        known: images with their classes.
        unknown: images that are to be refused.
        base: images of classes that the backbone was trained on.
        progress: called after every batch.
        most_pixels: of all images; ``None`` for no bound.
    """
    head, threshold = now.head, now.threshold
    given: list[GivenImage] = [image for image, _ in known] + [*unknown, *base]
    named = known_classes(head.classes, {label for _, label in known})
    truths = [None if named[label] is None else str(named[label]) for _, label in known]
    not_known = Counter(one_spelling(label) for _, label in known if named[label] is None)
    truths += [None] * (len(unknown) + len(base))
    kinds = [0] * len(known) + [1] * len(unknown) + [2] * len(base)
    found = features_of(model, given, progress, most_pixels)
    with torch.no_grad():
        best, column = head(found.values).max(dim=-1)
    scores: tuple[list[float], list[float], list[float]] = ([], [], [])
    confusions: Counter[tuple[str | None, str | None]] = Counter()
    for i, score, place in zip(found.kept, best.tolist(), column.tolist(), strict=True):
        scores[kinds[i] if kinds[i] or truths[i] is not None else 1].append(score)
        answered = None if threshold is not None and score < threshold else str(head.classes[place])
        confusions[truths[i], answered] += 1
    doubts = _not_new(found.values, head, refused)
    if not_known:
        count = images_were(not_known.total())
        doubts.append(f"{count} of classes that were not learned, and count as unknown: {listed(not_known)}.")
    return Check(*scores, threshold, dict(confusions), found.skipped, doubts)


def _not_new(given: Tensor, head: Head, unknown: Tensor) -> list[str]:
    """Return why figures of some images say little about new ones."""
    learned = int((first_equal(given, head.support) >= 0).sum())
    refused = int((first_equal(given, unknown) >= 0).sum()) if len(unknown) else 0
    repeated = len(given) - int(distinct(given).sum())
    said = []
    if learned:
        said.append(f"{images_were(learned)} learned: their scores are higher than those of new ones.")
    if refused:
        said.append(f"{images_were(refused)} given as unknowns: the rate was or will be set with these.")
    if repeated:
        said.append(f"{images_were(repeated)} given more than once, and counted as often.")
    return said

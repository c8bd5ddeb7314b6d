"""What a head answers from, or why it cannot answer, and what heads warn of, as the page and the server say it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fewshot_nam.heads import Head
from fewshot_nam.heads.calibration import Calibration
from fewshot_nam.heads.validation import collected_warnings
from fewshot_nam.service.findings import Promise

_NO_THRESHOLD = (
    "nothing is answered: the rate of this memory cannot be kept any more ({}); set it again, or forget the unknowns"
)


class Ready(NamedTuple):
    """A head as it is at some time, with all that answers need derived.

    Attributes:
        head: a snapshot.
        threshold: an image is accepted from this score on; ``None`` where nothing is refused.
        wrong: why the threshold cannot be given, where there is to be one; then nothing is answered.
        said: of the threshold.
    """

    head: Head
    threshold: float | None
    wrong: str | None
    said: list[str]


def ready(head: Head) -> Ready:
    """Return a snapshot of a head with its threshold, which may take seconds with thousands of classes."""
    taken = head.snapshot()
    threshold, said = threshold_of(taken)
    return Ready(taken, threshold, said[0] if threshold is None and said else None, said)


def threshold_of(head: Head) -> tuple[float | None, list[str]]:
    """Return the threshold, ``None`` where there is none, and what is said of it: with ``None``, why it cannot be given."""
    try:
        with collected_warnings() as said:
            return head.threshold, said
    except ValueError as error:  # calibrated, but no class is left, or too few unknown images
        return None, [] if not head.classes else [_NO_THRESHOLD.format(" ".join(str(error).split()))]


def promise_of(head: Head, found: Calibration, unknown: Tensor, target: float, said: list[str]) -> Promise:
    """Return what a calibration promises and costs.

    Args:
        head: a snapshot, taken after it.
        found: what the calibration returned.
        unknown: the features of all images of unknowns, also of those given again.
        target: as it was asked for.
        said: the warnings of the calibration.
    """
    with torch.no_grad():
        once = unknown[head._different(unknown)].to(head.targets.device)  # as many as are said to have been given
        alarms = (head(once).amax(dim=-1).double() >= found.threshold).double()
        try:
            shots, _ = head._held_out_scores(head._snapshot())
        except ValueError:  # it keeps none
            shots = alarms[:0]
    return Promise(
        target,
        found.threshold,
        found.bound,
        found.bound_95,
        found.unknowns,
        float(alarms.mean()),
        float((shots.double() >= found.threshold).double().mean()) if len(shots) else None,
        len(shots),
        said,
    )

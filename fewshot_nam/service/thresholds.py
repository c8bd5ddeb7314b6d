"""What a head answers from, or why it cannot answer, and what heads warn of, as the page and the server say it."""

from __future__ import annotations

from fewshot_nam.heads import Head
from fewshot_nam.heads.validation import collected_warnings

_NO_THRESHOLD = (
    "nothing is answered: the rate of this memory cannot be kept any more ({}); set it again, or forget the unknowns"
)


def kept_threshold(head: Head) -> float | None:
    """Return the threshold; ``ValueError`` where there is to be one and it cannot be given: to accept everything would be wrong."""
    threshold, said = threshold_of(head)
    if threshold is None and said:
        raise ValueError(said[0])
    return threshold


def threshold_of(head: Head) -> tuple[float | None, list[str]]:
    """Return the threshold, ``None`` where there is none, and what is said of it: with ``None``, why it cannot be given."""
    try:
        with collected_warnings() as said:
            return head.threshold, said
    except ValueError as error:  # calibrated, but no class is left, or too few unknown images
        return None, [] if not head.classes else [_NO_THRESHOLD.format(" ".join(str(error).split()))]

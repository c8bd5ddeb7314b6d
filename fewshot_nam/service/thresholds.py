"""What a head answers from, or why it cannot answer, and what heads warn of, as the page and the server say it."""

from __future__ import annotations

from fewshot_nam.heads import Head
from fewshot_nam.heads.validation import collected_warnings

_NO_THRESHOLD = (
    "nothing is answered: the rate of this memory cannot be kept any more ({}); set it again, or forget the unknowns"
)


def threshold_of(head: Head) -> tuple[float | None, list[str]]:
    """Return the threshold, ``None`` where there is none, and what is said of it: with ``None``, why it cannot be given."""
    try:
        with collected_warnings() as said:
            return head.threshold, said
    except ValueError as error:  # calibrated, but no class is left, or too few unknown images
        return None, [] if not head.classes else [_NO_THRESHOLD.format(" ".join(str(error).split()))]

"""How wide a 95% interval of a mean is, in standard errors."""

from __future__ import annotations

_MANY = 100
# 97.5% quantiles of Student's t for 1, 2, ... degrees of freedom; from there on 1.96 + 2.4 / freedom is right to 0.01.
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def errors_of(count: int) -> float:
    """Return how many standard errors of the mean of so many values, two at least, half of a 95% interval is.

    Of fewer than 100 it is Student's t: 1.96 would be too narrow, as their standard deviation is a guess itself.

    >>> errors_of(2), errors_of(1000)
    (12.706, 1.96)
    """
    freedom = count - 1
    if count >= _MANY:
        return 1.96
    return _STUDENT_T[freedom - 1] if freedom <= len(_STUDENT_T) else 1.96 + 2.4 / freedom

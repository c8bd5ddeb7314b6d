"""What is said when training diverges."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def naming_divergence(step: int) -> Iterator[None]:
    """Raise an error that says what to do where ``torch.nn.utils.clip_grad_norm_`` refuses a gradient that is not finite.

    Args:
        step: the optimiser steps that were done before.

    Raises:
        FloatingPointError: the gradient is not finite.
    """
    try:
        yield
    except RuntimeError as error:
        if "non-finite" not in str(error):
            raise
        raise FloatingPointError(
            f"training diverged after {step} steps, the gradient is not finite: lower learning_rate, or take shorter sequences"
        ) from error

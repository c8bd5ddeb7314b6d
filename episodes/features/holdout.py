"""Holding out pictures of every class, so that a base class's prototype and its queries never share one."""

from __future__ import annotations

import numpy as np
import torch

from episodes.features.bank import FeatureBank


def hold_out(bank: FeatureBank, share: float, seed: int = 0) -> tuple[FeatureBank, FeatureBank]:
    """Return a bank without some pictures of every class, and the bank of these pictures.

    Args:
        bank: at least two pictures of every class.
        share: of each class to hold out, above 0 and below 1; at least one picture, and at least one stays.
        seed: which ones; the same on every machine.

    Raises:
        ValueError: a class has fewer than two pictures, or the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"hold_out: share must be above 0 and below 1, got {share}")
    fewest = int(bank.counts.argmin())
    if int(bank.counts[fewest]) < 2:
        raise ValueError(
            f"class {bank.classes[fewest]!r} has {int(bank.counts[fewest])} pictures, and holding some out as queries needs 2 or "
            "more: give base_queries of their own"
        )
    keys = np.random.Philox(np.random.SeedSequence([seed, len(bank)])).random_raw(len(bank))
    held = torch.zeros(len(bank), dtype=torch.bool)
    for start, count in zip(bank.starts.tolist(), bank.counts.tolist(), strict=True):
        items = bank.order[start : start + count]
        shuffled = items[torch.from_numpy(np.argsort(keys[items.numpy()], kind="stable"))]
        held[shuffled[: min(max(round(share * count), 1), count - 1)]] = True

    def part(chosen: torch.Tensor) -> FeatureBank:
        rows = chosen.nonzero().squeeze(1)
        return FeatureBank(
            bank.features[rows], bank.labels[rows], bank.classes, provenance=bank.provenance, check=False
        )

    return part(~held), part(held)

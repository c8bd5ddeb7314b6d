"""Holding out some images of every class: base queries must not be among the images that base prototypes are made of."""

from __future__ import annotations

import numpy as np
import torch

from episodes.features.bank import FeatureBank


def hold_out(bank: FeatureBank, share: float, seed: int = 0) -> tuple[FeatureBank, FeatureBank]:
    """Divide the images of every class between two banks.

    Args:
        bank: at least two images of every class.
        share: the share of each class to hold out, above 0 and below 1. At least one image is held out, and at least one stays.
        seed: selects the images that are held out, the same ones on every machine.

    Returns:
        The bank of the images that stay, and the bank of those held out.

    Raises:
        ValueError: a class has fewer than two images, or the share is not between 0 and 1.

    Example:
        >>> bank = FeatureBank(torch.eye(8), torch.arange(8) % 2)
        >>> [len(part) for part in hold_out(bank, 0.25)]
        [6, 2]
    """
    if not 0 < share < 1:
        raise ValueError(f"hold_out: share must be above 0 and below 1, got {share}")
    fewest = int(bank.counts.argmin())
    if int(bank.counts[fewest]) < 2:
        raise ValueError(
            f"class {bank.classes[fewest]!r} has {int(bank.counts[fewest])} images, and holding some out as queries needs 2 or "
            "more: give other images as base_queries"
        )
    keys = np.random.Philox(np.random.SeedSequence([seed, len(bank)])).random_raw(len(bank))
    held_out = torch.zeros(len(bank), dtype=torch.bool)
    for start, count in zip(bank.starts.tolist(), bank.counts.tolist(), strict=True):
        items = bank.order[start : start + count]
        shuffled = items[torch.from_numpy(np.argsort(keys[items.numpy()], kind="stable"))]
        held_out[shuffled[: min(max(round(share * count), 1), count - 1)]] = True

    def part(chosen: torch.Tensor) -> FeatureBank:
        rows = chosen.nonzero().squeeze(1)
        return FeatureBank(
            bank.features[rows], bank.labels[rows], bank.classes, provenance=bank.provenance, check=False
        )

    return part(~held_out), part(held_out)

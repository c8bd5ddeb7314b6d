"""Extraction of features by several processes, which ``torchrun`` starts, on one machine or on several.

    torchrun --nproc-per-node 4 scripts/episode_eval.py --dataset folder:photos --backbone timm/resnet50

The processes take the batches in turn. Each batch is the one that a single process would compute, so features are the same bit
for bit. Process 0 gathers the features in order, writes the cache and sends the finished bank to the others: only the directory of
the images must be shared. Features and sizes are sent as tensors, names as JSON. ``fewshot_nam.distributed`` starts the group.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fewshot_nam.distributed import broadcast_tensor, joined, processes

if TYPE_CHECKING:
    from episodes.features.bank import FeatureBank

__all__ = ["broadcast_bank", "joined", "processes"]


def broadcast_bank(bank: FeatureBank | None) -> FeatureBank:
    """Return process 0's bank of float32 features, in all processes; the others pass ``None``."""
    import torch

    from episodes.features.bank import FeatureBank

    text = b"" if bank is None else json.dumps([bank.classes, bank.provenance]).encode()
    encoded = None if bank is None else torch.frombuffer(bytearray(text), dtype=torch.uint8)
    encoded = broadcast_tensor(encoded, 1, torch.uint8)
    features = broadcast_tensor(None if bank is None else bank.features, 2, torch.float32)
    labels = broadcast_tensor(None if bank is None else bank.labels, 1, torch.int64)
    if bank is not None:
        return bank
    classes, provenance = json.loads(bytes(encoded.tolist()))
    return FeatureBank(features, labels, classes, provenance=provenance, check=False)

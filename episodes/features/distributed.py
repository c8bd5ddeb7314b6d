"""One extraction by several processes: those that ``torchrun`` starts, on one machine or on several.

    torchrun --nproc-per-node 4 scripts/episode_eval.py --dataset folder:photos --backbone timm/resnet50

The processes take the batches in turn, each batch whole and as one process would have it, so features are the same bit for bit.
Process 0 gathers them in order, writes the cache and sends the finished bank to the others: no directory need be shared but the
images'. Features and sizes travel as tensors, names as JSON. The group of processes is ``fewshot_nam.distributed``'s.
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

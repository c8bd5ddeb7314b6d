"""One extraction by several processes: those that ``torchrun`` starts, on one machine or on several.

    torchrun --nproc-per-node 4 scripts/episode_eval.py --dataset folder:photos --backbone timm/resnet50

The processes take the batches in turn, each batch whole and as one process would have it, so features are the same bit for bit.
Process 0 gathers them in order, writes the cache and sends the finished bank to the others: no directory need be shared but the
pictures'. Features and sizes travel as tensors, names as JSON; nothing is unpickled. torch.distributed is asked for nothing
unless there is a group of processes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from episodes.features.bank import FeatureBank


@contextlib.contextmanager
def joined(device: str | torch.device = "cpu") -> Iterator[int]:
    """Join the processes that torchrun started, and leave them at the end; do nothing in a process started otherwise.

    Gives this process's number, 0 to the number of processes less one. Tensors on the CPU travel by gloo, those on a GPU by
    NCCL; ``"cuda"`` then means a GPU of its own for each process of a machine.

    Args:
        device: where this process is going to compute.

    Raises:
        ValueError: a GPU is asked for, and there are fewer of them than processes on this machine.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # what torchrun sets; torch is not imported to find out
        yield 0
        return
    import torch
    import torch.distributed as dist

    cuda = torch.device(device).type == "cuda"
    if cuda:
        own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if own >= there:
            raise ValueError(f"torchrun started process {own + 1} on a machine with {there} GPUs: start one a GPU")
        torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def processes() -> tuple[int, int]:
    """Return this process's number and how many there are: 0 and 1 without a group of processes."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def agreed(number: int = 0) -> int:
    """Return process 0's ``number``, in all of them."""
    import torch
    import torch.distributed as dist

    sent = torch.tensor([number])
    dist.broadcast(sent, 0)
    return int(sent.item())


def gathered(rows: np.ndarray, most: int) -> list[np.ndarray]:
    """Return the rows of all processes in their order, in process 0, and nothing in the others.

    Args:
        rows: ``(b, D)`` float32 of this process.
        most: at least every process's b. What comes back has so many rows; those beyond b are zeros.
    """
    import torch
    import torch.distributed as dist

    rank, count = processes()
    padded = torch.zeros(most, rows.shape[1])
    padded[: len(rows)] = torch.from_numpy(rows)
    parts = [torch.empty_like(padded) for _ in range(count)] if rank == 0 else None
    dist.gather(padded, parts)
    return [part.numpy() for part in parts or []]


def sent_to_all(bank: FeatureBank | None) -> FeatureBank:
    """Return process 0's bank of float32 features, in all of them; the others give ``None``."""
    import torch

    from episodes.features.bank import FeatureBank

    text = b"" if bank is None else json.dumps([bank.classes, bank.provenance]).encode()
    words = _sent(None if bank is None else torch.frombuffer(bytearray(text), dtype=torch.uint8), 1, torch.uint8)
    features = _sent(None if bank is None else bank.features, 2, torch.float32)
    labels = _sent(None if bank is None else bank.labels, 1, torch.int64)
    if bank is not None:
        return bank
    classes, provenance = json.loads(bytes(words.tolist()))
    return FeatureBank(features, labels, classes, provenance=provenance, check=False)


def _sent(tensor: Tensor | None, dimensions: int, dtype: torch.dtype) -> Tensor:
    import torch
    import torch.distributed as dist

    shape = torch.tensor(tensor.shape if tensor is not None else [0] * dimensions)
    dist.broadcast(shape, 0)
    tensor = torch.empty(shape.tolist(), dtype=dtype) if tensor is None else tensor
    dist.broadcast(tensor, 0)
    return tensor

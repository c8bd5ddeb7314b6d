"""Work shared by several processes: those that ``torchrun`` starts, on one machine or on several.

Tensors and numbers travel by torch.distributed; nothing is unpickled. Without a group of processes nothing here is needed:
there is one process, number 0.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@contextlib.contextmanager
def joined(device: str | torch.device = "cpu") -> Iterator[int]:
    """Join the processes that torchrun started and leave them at the end; do nothing in a process started otherwise.

    Gives this process's number, from 0. Tensors on the CPU travel by gloo, those on a GPU by NCCL; ``"cuda"`` then means a GPU of
    its own for each process of a machine.

    Args:
        device: where this process is going to compute.

    Raises:
        ValueError: ``device`` is a GPU, and this machine has fewer of them than processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # set by torchrun; torch is not imported to find out
        yield 0
        return
    import torch
    import torch.distributed as dist

    # Its functions have the group there is when it is imported as default argument. Torch imports it with its optimisers, and a
    # group that is kept by it would end with the interpreter: its threads then abort the process now and then.
    import torch.distributed.nn

    cuda = torch.device(device).type == "cuda"
    if cuda:
        own, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if own >= count:
            raise ValueError(f"torchrun started process {own + 1} on a machine with {count} GPUs: start one a GPU")
        torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def processes() -> tuple[int, int]:
    """Return this process's number and how many processes there are: 0 and 1 without a group."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def broadcast_number(number: int = 0, device: str | torch.device = "cpu") -> int:
    """Return process 0's ``number``, in all processes.

    Args:
        number: an integer; only that of process 0 counts.
        device: the device by which it travels.
    """
    import torch
    import torch.distributed as dist

    sent = torch.tensor([number], device=device)
    dist.broadcast(sent, 0)
    return int(sent.item())


def broadcast_tensor(tensor: Tensor | None, dimensions: int, dtype: torch.dtype) -> Tensor:
    """Return process 0's tensor, in all processes, on the CPU.

    Args:
        tensor: in process 0 the tensor, on the CPU; ``None`` in the others, which need not know its shape.
        dimensions: its number of dimensions.
        dtype: its dtype.
    """
    import torch
    import torch.distributed as dist

    shape = torch.tensor(tensor.shape if tensor is not None else [0] * dimensions)
    dist.broadcast(shape, 0)
    tensor = torch.empty(shape.tolist(), dtype=dtype) if tensor is None else tensor
    dist.broadcast(tensor, 0)
    return tensor


def gather_rows(rows: Tensor, most: int) -> list[Tensor]:
    """Return the rows of all processes, by process number, in process 0, and an empty list in the others.

    Args:
        rows: ``(b, D)`` of this process, on the CPU; ``b`` may differ between processes.
        most: at least every process's ``b``.

    Returns:
        One tensor ``(most, D)`` for each process; rows beyond its ``b`` are zeros.
    """
    import torch
    import torch.distributed as dist

    rank, count = processes()
    padded = rows.new_zeros(most, rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(count)] if rank == 0 else None
    dist.gather(padded, parts)
    return parts or []


def wait_for_all() -> None:
    """Return when all processes have got here."""
    import torch.distributed as dist

    dist.barrier()

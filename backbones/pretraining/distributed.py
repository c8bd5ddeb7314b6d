"""One training run by several processes: each computes its share of every batch, and all take the same step.

The steps are those of one process, up to the order in which floats are summed: gradients are summed over the shares of a batch, and
batch normalisation uses the mean and variance of the whole batch (Ioffe and Szegedy, 2015, algorithm 1, with sums over processes;
torch's own ``SyncBatchNorm`` runs on GPUs alone). ``fewshot_nam.distributed.joined`` makes the group of processes; without one,
nothing here is used.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewshot_nam.distributed import broadcast_number


def begin_alike(modules: list[nn.Module], epoch: int) -> None:
    """Give the modules the weights that they have in process 0, and make their batch normalisation span all processes.

    Args:
        modules: the same in every process but for their weights.
        epoch: from which this process would go on.

    Raises:
        ValueError: process 0 would go on from another epoch.
    """
    first = broadcast_number(epoch, next(modules[0].parameters()).device)
    if first != epoch:
        raise ValueError(
            f"process {dist.get_rank()} resumes at epoch {epoch} and process 0 at {first}: "
            "give all processes the same checkpoint, in a directory that all of them see"
        )
    for module in modules:
        for value in module.state_dict().values():
            dist.broadcast(value.data, 0)
        for part in module.modules():
            if type(part) is nn.BatchNorm2d:
                part.__class__ = SharedBatchNorm2d  # its weights stay the ones that an optimizer already holds


def sum_over_processes(parameters: list[nn.Parameter], numbers: Tensor) -> None:
    """Replace the gradients, and ``numbers``, by their sums over all processes: in one message, and the same bits in each.

    Args:
        parameters: all with a gradient.
        numbers: ``(n,)`` float, on the device of the parameters.
    """
    tensors = [*(parameter.grad for parameter in parameters if parameter.grad is not None), numbers]
    message = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(message)
    for tensor, summed in zip(tensors, torch.split(message, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view(tensor.shape))


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose mean and variance, in training, are those of the images of all processes."""

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` ``(B, C, H, W)``, normalised: the dtype is kept, sums are float32 at least."""
        if not self.training:
            return super().forward(input)
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        count = x.new_tensor([x.numel() // x.shape[1]])
        total = _Sum.apply(torch.cat([count, x.sum((0, 2, 3))]))
        count, mean = total[:1], total[1:] / total[:1]
        # Of centred values, which takes a second message: the mean of squares minus the square of the mean would lose digits.
        centred = x - mean.view(1, -1, 1, 1)
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self._remember(mean, variance * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        out = centred * scale.view(1, -1, 1, 1)
        return (out + self.bias.view(1, -1, 1, 1) if self.affine else out).to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _Sum(torch.autograd.Function):
    """The sum over all processes; what flows back is the sum of what flows back to each."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed

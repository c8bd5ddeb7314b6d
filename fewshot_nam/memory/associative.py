"""Self-attentive associative memory (SAM): a matrix of items becomes the relations between its items.

Source: Le, Tran and Venkatesh, "Self-Attentive Associative Memory" (ICML 2020), section 2, and the authors' code. With queries,
keys and values that are linear in a memory ``M (d x d)``, and ``*`` the product of elements::

    [q; k; v] = norm(M W^T + b)^T                      each (n x d)
    A_s = sum_j tanh(q_s * k_j) v_j^T                  s = 1..n, (d x d): "outer product attention"

Where scaled dot-product attention weighs a value by one number, outer product attention weighs it by a vector, so that ``A_s`` is
an associative memory itself. Its rows belong to queries and keys, its columns to values.

The text and the code differ in the norm: the text normalises queries, keys and values each, the code all of them together.

Legend: ``d`` width of the memory, ``n`` queries, which are as many as keys and values.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.memory.validation import check_tensor

Norm = Literal["joint", "separate"]
"""What is normalised together: all of ``[q; k; v]``, as in the code, or each of the three, as in the text."""

PRESET_NORMS: dict[str, Norm] = {"paper": "separate", "code": "joint"}


class SelfAttentiveMemory(nn.Module):
    """The SAM operator: ``(..., d, d)`` to ``(..., n, d, d)``.

    Args:
        memory_size: ``d``, rows and columns of the memory, at least 1.
        num_slots: ``n``, at least 1.
        preset: ``"paper"`` normalises queries, keys and values each over its ``d n`` numbers; ``"code"``, the default, all
            ``3 d n`` numbers together. The parameters are the same.
        device: where the parameters are.
        dtype: dtype of the parameters.

    Attributes:
        projection: linear, ``d`` to ``[q | k | v]``, ``3 n``; it acts on the last axis of the memory.
        norm_weight: ``(d, 3 n)``, scale behind the norm.
        norm_bias: ``(d, 3 n)``, shift behind the norm.

    Raises:
        ValueError: a size below 1, or an unknown preset.

    Example:
        >>> relate = SelfAttentiveMemory(memory_size=8, num_slots=3)
        >>> relate(torch.randn(2, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        memory_size: int,
        num_slots: int,
        *,
        preset: str = "code",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes("SelfAttentiveMemory", memory_size=memory_size, num_slots=num_slots)
        if preset not in PRESET_NORMS:
            raise ValueError(f"SelfAttentiveMemory: preset must be one of {', '.join(PRESET_NORMS)}, got {preset!r}")
        self.memory_size, self.num_slots = memory_size, num_slots
        self.norm: Norm = PRESET_NORMS[preset]
        self.projection = nn.Linear(memory_size, 3 * num_slots, device=device, dtype=dtype)
        self.norm_weight = nn.Parameter(torch.ones(memory_size, 3 * num_slots, device=device, dtype=dtype))
        self.norm_bias = nn.Parameter(torch.zeros(memory_size, 3 * num_slots, device=device, dtype=dtype))

    def forward(self, memory: Tensor) -> Tensor:
        """Return the relations ``(..., n, d, d)`` between the items of a memory.

        Args:
            memory: ``(..., d, d)``, of the dtype of the parameters.

        Raises:
            TypeError: it is not a floating tensor.
            ValueError: it has another shape.
        """
        letters = "ABCDEFGH"[: memory.dim() - 2] if isinstance(memory, Tensor) else ""
        check_tensor("SelfAttentiveMemory", "memory", memory, (*letters, self.memory_size, self.memory_size))
        return relations(*self.queries_keys_values(memory))

    def queries_keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalised queries, keys and values of a memory ``(..., d, d)``, each ``(..., n, d)``, in its dtype."""
        kind = memory.dtype
        return self.normalise(F.linear(memory, self.projection.weight.to(kind), self.projection.bias.to(kind)))

    def normalise(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each ``(..., n, d)``, of a projected memory ``(..., d, 3 n)``, in its dtype."""
        weight, bias = self.norm_weight.to(projected.dtype), self.norm_bias.to(projected.dtype)
        if self.norm == "joint":
            normed = F.layer_norm(projected, weight.shape, weight, bias)
        else:
            parts = torch.unflatten(projected, -1, (3, self.num_slots)).movedim(-2, -3)  # (..., 3, d, n)
            parts = F.layer_norm(parts, parts.shape[-2:]).movedim(-3, -2).flatten(-2)
            normed = torch.addcmul(bias, parts, weight)
        q, k, v = torch.unflatten(normed.mT, -2, (3, self.num_slots)).unbind(-3)
        return q, k, v

    def extra_repr(self) -> str:
        """Return the sizes and the norm."""
        return f"{self.memory_size}, num_slots={self.num_slots}, norm={self.norm!r}"


def relations(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return ``A_s = sum_j tanh(q_s * k_j) v_j^T`` ``(..., n, d, d)`` of queries, keys and values ``(..., n, d)``."""
    return torch.unflatten(bindings(q, k).mT @ v, -2, q.shape[-2:])


def bindings(q: Tensor, k: Tensor) -> Tensor:
    """Return ``tanh(q_s * k_j)`` for each key, ``(..., n, n d)``: a row a key ``j``, and in it all queries ``s``."""
    return torch.tanh(q.unsqueeze(-3) * k.unsqueeze(-2)).flatten(-2)


def check_sizes(where: str, **sizes: int) -> None:
    """Raise unless all sizes are whole numbers of at least 1.

    Raises:
        ValueError: one is not.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{where}: {name} must be a whole number of at least 1, got {size!r}")

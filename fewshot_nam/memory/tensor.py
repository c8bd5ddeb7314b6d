"""Tensor memory: a hierarchical NAM, written under several keys at once and read one key after another.

For example, a document is stored as ``sum k_sentence (x) k_word (x) v``. Contracting it with the key of a sentence gives the memory
of that sentence's words, and contracting this with the key of a word gives the value. With ``n`` levels of keys the memory is a
tensor ``(D_v, D_1, ..., D_n)``; order 1 is the matrix of ``primitives``.

    RD(M, k_1 ... k_j, p_r)           = p_r M . k_1 . ... . k_j                   (contracts D_1 to D_j; j = n leaves a value)
    WR(M, k_1 ... k_j, V, p_w, p_e)   = M + (p_w V - p_e M . k_1 . ... . k_j) (x) k_1 (x) ... (x) k_j

This is the write of NAM with the compound key ``k_1 (x) ... (x) k_j``. The length of a compound key is the product of the keys'
lengths, and the inner product of two compound keys is the product of the inner products at each level. So the theorems carry
over: with unit keys, a value written by ``WR(M, ..., V, 1, 1)`` is read back exactly from any ``M``, and a write changes nothing
whose key is orthogonal on at least one level. The first ``j < n`` keys address a whole branch, such as a sentence: ``V`` is then a
memory of order ``n - j``, and ``p_w = 0`` erases the branch.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422), which mentions tensor products of NAM for hierarchical data. The
reads, writes and erasure of branches are derived here from its ``RD`` and ``WR``.

Legend: ``D_v`` size of a value, ``D_i`` size of a key of level ``i``, ``n`` order, ``j <= n`` number of keys given, ``V`` a value
or a branch ``(..., D_v, D_(j+1), ..., D_n)``, ``t`` a number of pairs, ``...`` batch dimensions, which broadcast.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_nam.memory.primitives import Gate, read, write_sequence
from fewshot_nam.memory.torch_modes import full_precision
from fewshot_nam.memory.validation import check_alike


def tensor_read(memory: Tensor, queries: Sequence[Tensor], p_read: Gate = 1.0, *, order: int | None = None) -> Tensor:
    """Return ``p_r M . q_1 . ... . q_j``: the value for all ``n`` keys, or the branch for the first ``j`` keys.

    Keys are contracted one after another: a read with some keys, and a read of its result with the others, equal one read.

    Args:
        memory: ``(..., D_v, D_1, ..., D_n)``.
        queries: ``j`` tensors ``(..., D_i)``, the first level first, used as given (``unit`` makes lengths 1). Queries
            ``(s, 1, D_1)`` and ``(w, D_2)`` read all ``s w`` values at the cost of ``s`` branches.
        p_read: read probability, a float or ``(...)``.
        order: ``n``; default: the number of queries.

    Returns:
        ``(..., D_v, D_(j+1), ..., D_n)`` in the dtype of the memory, under autocast too.

    Raises:
        ValueError: shapes, number of queries or devices do not fit.
        TypeError: not floating tensors, or of a wider dtype than the memory.
    """
    keys, order = _checked_keys("tensor_read", memory, queries, order)
    (p_read,) = _checked_gates("tensor_read", memory, p_read=p_read)
    _check_batches("tensor_read", memory.shape[: -order - 1], [key.shape[:-1] for key in keys], p_read)
    with full_precision(memory.device):  # a value read in bfloat16 may be written back
        return _expanded(p_read, 1 + order - len(keys)) * _contracted(memory, keys, order)


def tensor_write(
    memory: Tensor,
    keys: Sequence[Tensor],
    value: Tensor,
    p_write: Gate = 1.0,
    p_erase: Gate = 1.0,
    *,
    order: int | None = None,
) -> Tensor:
    """Return ``M + (p_w V - p_e M . k_1 ... k_j) (x) k_1 (x) ... (x) k_j``, a new memory; ``memory`` does not change.

    Args:
        memory: ``(..., D_v, D_1, ..., D_n)``.
        keys: ``j`` tensors ``(..., D_i)``, the first level first, used as given: the theorems need length 1 (``unit``).
        value: ``(..., D_v)`` with all ``n`` keys; a branch ``(..., D_v, D_(j+1), ..., D_n)`` with fewer.
        p_write: write probability, a float or ``(...)``.
        p_erase: erase probability, a float or ``(...)``: the share of the old value or branch that is erased.
        order: ``n``; default: the number of keys.

    Returns:
        ``(..., D_v, D_1, ..., D_n)`` in the dtype of the memory, under autocast too.

    Raises:
        ValueError: shapes, number of keys or devices do not fit.
        TypeError: not floating tensors, or of a wider dtype than the memory.
    """
    keys, order = _checked_keys("tensor_write", memory, keys, order)
    value = _checked("tensor_write", "value", value, _branch_shape(memory, order, len(keys)), memory)
    p_write, p_erase = _checked_gates("tensor_write", memory, p_write=p_write, p_erase=p_erase)
    below = order - len(keys)
    batches = [*(key.shape[:-1] for key in keys), value.shape[: -below - 1]]
    _check_batches("tensor_write", memory.shape[: -order - 1], batches, p_write, p_erase)
    with full_precision(memory.device):
        update = _expanded(p_write, 1 + below) * value - _expanded(p_erase, 1 + below) * _contracted(
            memory, keys, order
        )
        start = update.dim() - below
        flat = update.reshape(*update.shape[:start], 1, math.prod(update.shape[start:]))
        added = flat * _compound(keys).unsqueeze(-1).unsqueeze(-3)  # (..., D_v, D_1 * ... * D_j, D_(j+1) * ... * D_n)
        return memory + added.reshape(*added.shape[:-3], *memory.shape[-order - 1 :])


def tensor_write_sequence(
    memory: Tensor,
    keys: Sequence[Tensor],
    values: Tensor,
    p_write: Gate = 1.0,
    p_erase: Gate = 1.0,
    *,
    order: int | None = None,
) -> Tensor:
    """Return ``memory`` after ``t`` writes in order: the result of ``tensor_write`` in a loop, in closed form.

    This is ``write_sequence`` with compound keys, one triangular system of size ``t``. With ``p_erase`` the number 0 it is the
    sum ``M + sum p_w V (x) k_1 (x) ... (x) k_j``, in which the order does not matter.

    Args:
        memory: ``(..., D_v, D_1, ..., D_n)``.
        keys: ``j`` tensors ``(..., t, D_i)`` in the order of writing, used as given. ``t`` may be 0, which writes nothing.
        values: ``(..., t, D_v)``, or branches ``(..., t, D_v, D_(j+1), ..., D_n)``.
        p_write: write probability, a float or ``(..., t)``; 0 with ``p_erase`` 0 skips a pair.
        p_erase: erase probability, a float or ``(..., t)``.
        order: ``n``; default: the number of keys.

    Returns:
        ``(..., D_v, D_1, ..., D_n)`` in the dtype of the memory, under autocast too.

    Raises:
        ValueError: shapes, number of keys or pairs, or devices do not fit.
        TypeError: not floating tensors, or of a wider dtype than the memory.
    """
    where = "tensor_write_sequence"
    keys, order = _checked_keys(where, memory, keys, order, in_sequence=True)
    pairs = keys[0].shape[-2]
    values = _checked(where, "values", values, (pairs, *_branch_shape(memory, order, len(keys))), memory)
    p_write, p_erase = _checked_gates(where, memory, p_write=p_write, p_erase=p_erase)
    below = order - len(keys)
    batches = [*(key.shape[:-1] for key in keys), values.shape[: -below - 1]]
    _check_batches(where, (*memory.shape[: -order - 1], pairs), batches, p_write, p_erase)
    sizes = memory.shape[-order - 1 :]
    named, rest = math.prod(sizes[1 : 1 + len(keys)]), math.prod(sizes[1 + len(keys) :])
    # As a matrix, with a column for each compound key. It is a view if all keys are given.
    matrix = memory.reshape(*memory.shape[: -order - 1], sizes[0], named, rest).mT.flatten(-3, -2)
    with full_precision(memory.device):
        compound, flat = _compound(keys), values.flatten(-below - 1)
        if isinstance(p_erase, Tensor) or p_erase:
            written = write_sequence(matrix, compound, flat, p_write, p_erase)
        else:
            written = matrix + (_expanded(p_write, 1) * flat).mT @ compound
        batch = written.shape[:-2]
        return written.reshape(*batch, sizes[0], rest, named).mT.reshape(*batch, *sizes)


class TensorMemory(nn.Module):
    """A module that holds a memory with several levels of keys: ``write``, ``read``, ``erase``, ``reset``.

    The tensor is the buffer ``memory``, saved in ``state_dict``; it starts empty (zeros). A write replaces it by a new tensor,
    which is differentiable with respect to all earlier writes until ``detach``. Nothing changes in place. Results have the dtype of
    the memory, and keys and values of narrower dtypes are converted to it; use float32 or float64 for many writes. A copy
    (``copy.deepcopy``, pickle) has the same values and is detached. Where a module must not keep state (``torch.func``), use the
    functions ``tensor_read`` and ``tensor_write``, which the methods call.

    Args:
        value_size: ``D_v``.
        key_sizes: ``(D_1, ..., D_n)``, one for each level, the outermost first: ``(sentence, word)``.
        batch_shape: the shape of a batch of memories, each with its own keys and values. Default: one memory.
        device: of the buffer.
        dtype: of the buffer, floating.

    Raises:
        TypeError: ``key_sizes`` or ``batch_shape`` is no tuple or list.
        ValueError: the size of a value or key below 1, no level, or a negative batch.

    Example:
        >>> memory = TensorMemory(2, key_sizes=(3, 4))
        >>> sentences, words = torch.eye(3), torch.eye(4)
        >>> _ = memory.write((sentences[0], words[1]), torch.tensor([5.0, 7.0]))
        >>> memory.read(sentences[0]).read(words[1])
        tensor([5., 7.])
    """

    memory: Tensor

    def __init__(
        self,
        value_size: int,
        key_sizes: Sequence[int],
        batch_shape: Sequence[int] = (),
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, sizes in {"key_sizes": key_sizes, "batch_shape": batch_shape}.items():
            if not isinstance(sizes, (tuple, list)):
                raise TypeError(f"TensorMemory: {name} must be a tuple of sizes, got {_kind(sizes)}: (size,) for one")
        if not key_sizes or min(value_size, *key_sizes) < 1 or min(batch_shape, default=0) < 0:
            raise ValueError(
                "TensorMemory: needs value_size and one or more key_sizes of at least 1, and a batch_shape of at least 0, "
                f"got value_size={value_size}, key_sizes={tuple(key_sizes)}, batch_shape={tuple(batch_shape)}"
            )
        self.order = len(key_sizes)
        self.register_buffer("memory", torch.zeros(*batch_shape, value_size, *key_sizes, device=device, dtype=dtype))

    @classmethod
    def from_tensor(cls, memory: Tensor, order: int) -> TensorMemory:
        """Return a module that holds ``memory`` ``(..., D_v, D_1, ..., D_n)``, still differentiable; ``order`` is ``n``.

        Raises:
            ValueError: fewer dimensions than ``order + 1``, an order below 1, or a size of 0.
            TypeError: not a floating tensor.
        """
        if not isinstance(memory, Tensor) or not memory.is_floating_point():
            raise TypeError(f"TensorMemory.from_tensor: memory must be a floating tensor, got {_kind(memory)}")
        if not 1 <= order < memory.dim():
            raise ValueError(
                f"TensorMemory.from_tensor: a memory {tuple(memory.shape)} (..., D_v, D_1, ..., D_n) can have an order of 1 to "
                f"{memory.dim() - 1}, got {order}"
            )
        sizes, split = memory.shape, memory.dim() - order
        module = cls(sizes[split - 1], sizes[split:], sizes[: split - 1], device="meta", dtype=memory.dtype)
        module.memory = memory.clone()  # load_state_dict writes in place, which must not change the caller's tensor
        return module

    @property
    def value_size(self) -> int:
        """``D_v``."""
        return self.memory.shape[-self.order - 1]

    @property
    def key_sizes(self) -> tuple[int, ...]:
        """``(D_1, ..., D_n)``."""
        return tuple(self.memory.shape[-self.order :])

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The batch dimensions ``...``."""
        return tuple(self.memory.shape[: -self.order - 1])

    def forward(self, *queries: Tensor, p_read: Gate = 1.0) -> Tensor:
        """Return what ``read`` returns, always as a tensor: ``tensor_read`` of the memory."""
        return tensor_read(self.memory, queries, p_read, order=self.order)

    def read(
        self, *queries: Tensor, p_read: Gate = 1.0
    ) -> Any:  # not a union: callers of a nested read would need a cast
        """Return the value for all ``n`` keys, a tensor; for fewer keys, the branch as a ``TensorMemory``.

        Arguments and errors are those of ``tensor_read``.
        """
        found = self(*queries, p_read=p_read)
        return TensorMemory.from_tensor(found, self.order - len(queries)) if len(queries) < self.order else found

    def write(
        self, keys: Sequence[Tensor], value: Tensor | TensorMemory, p_write: Gate = 1.0, p_erase: Gate = 1.0
    ) -> TensorMemory:
        """Write ``value`` under ``keys``, by default replacing the old value; return the memory.

        Arguments and errors are those of ``tensor_write``. With fewer than ``n`` keys the value is a branch, as a tensor or a
        ``TensorMemory``. ``ValueError`` if keys, value or gates have batch dimensions that the memory does not have.
        """
        branch = value.memory if isinstance(value, TensorMemory) else value
        return self._keep("write", tensor_write(self.memory, keys, branch, p_write, p_erase, order=self.order))

    def write_sequence(
        self, keys: Sequence[Tensor], values: Tensor, p_write: Gate = 1.0, p_erase: Gate = 1.0
    ) -> TensorMemory:
        """Write ``t`` pairs in order, or with ``p_erase=0.0`` their sum; return the memory.

        Arguments and errors are those of ``tensor_write_sequence`` and ``write``.
        """
        written = tensor_write_sequence(self.memory, keys, values, p_write, p_erase, order=self.order)
        return self._keep("write_sequence", written)

    def erase(self, *keys: Tensor, p_erase: Gate = 1.0) -> TensorMemory:
        """Erase the value under ``keys``, or with fewer than ``n`` keys the whole branch; return the memory.

        ``M - p_e (M . k_1 ... k_j) (x) k_1 (x) ... (x) k_j``: the write with ``p_w = 0``. Errors are those of ``write``.
        """
        nothing = self.memory.new_zeros(_branch_shape(self.memory, self.order, len(keys)))
        return self._keep("erase", tensor_write(self.memory, keys, nothing, 0.0, p_erase, order=self.order))

    def reset(self) -> TensorMemory:
        """Set the memory to zeros; return it."""
        self.memory = torch.zeros_like(self.memory.detach())
        return self

    def detach(self) -> TensorMemory:
        """Detach the memory from earlier writes, so that no gradient flows back to them; return it."""
        self.memory = self.memory.detach()
        return self

    def extra_repr(self) -> str:
        """Return the sizes, as printed with the module."""
        return f"value_size={self.value_size}, key_sizes={self.key_sizes}, batch_shape={self.batch_shape}"

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, with a detached memory: torch copies only tensors without a history."""
        return {**self.__dict__, "_buffers": {**self._buffers, "memory": self.memory.detach()}}

    def _keep(self, method: str, written: Tensor) -> TensorMemory:
        if written.shape != self.memory.shape:
            extra = tuple(written.shape[: -self.order - 1])
            raise ValueError(
                f"{method}: keys, value and gates have batch dimensions {extra}, the memory has {self.batch_shape}: make it with "
                f"batch_shape={extra}, or write several pairs into one memory by write_sequence"
            )
        self.memory = written
        return self


def _contracted(memory: Tensor, keys: Sequence[Tensor], order: int) -> Tensor:
    """Return ``M . k_1 . ... . k_j``, one key at a time, so that the tensor shrinks with each."""
    for left, key in zip(range(order, 0, -1), keys, strict=False):
        if left == 1:
            return read(memory, key)
        rest = memory.shape[1 - left :]
        found = (key[..., None, None, :] @ memory.flatten(1 - left)).squeeze(-2)
        memory = found.reshape(*found.shape[:-1], *rest)
    return memory


def _compound(keys: Sequence[Tensor]) -> Tensor:
    """Return ``k_1 (x) ... (x) k_j`` ``(..., D_1 * ... * D_j)`` for keys ``(..., D_i)``."""
    return functools.reduce(lambda outer, key: (outer.unsqueeze(-1) * key.unsqueeze(-2)).flatten(-2), keys)


def _expanded(gate: Gate, dimensions: int) -> Gate:
    """Append ``dimensions`` dimensions to a tensor of gates, so that each gate multiplies one value or branch."""
    return gate.reshape(*gate.shape, *(1,) * dimensions) if isinstance(gate, Tensor) else gate


def _branch_shape(memory: Tensor, order: int, keys: int) -> tuple[int, ...]:
    """Return ``(D_v, D_(j+1), ..., D_n)``, the shape of a branch under the first ``j = keys`` levels."""
    return (memory.shape[-order - 1], *memory.shape[memory.dim() - order + keys :])


def _checked_keys(
    where: str, memory: Tensor, keys: Sequence[Tensor], order: int | None, in_sequence: bool = False
) -> tuple[tuple[Tensor, ...], int]:
    """Return the keys in the dtype of the memory, and the order; raise if they do not fit the memory or each other."""
    if not isinstance(memory, Tensor) or not memory.is_floating_point():
        raise TypeError(f"{where}: memory must be a floating tensor, got {_kind(memory)}")
    if not isinstance(keys, (tuple, list)):
        raise TypeError(
            f"{where}: keys must be a tuple of tensors, one for each level, got {_kind(keys)}: (key,) for one"
        )
    order = len(keys) if order is None else order
    if not 1 <= len(keys) <= order:
        raise ValueError(f"{where}: needs 1 to {order} keys in a memory of order {order}, got {len(keys)}")
    if memory.dim() < order + 1:
        raise ValueError(
            f"{where}: a memory of order {order} has dimensions (..., D_v, D_1, ..., D_{order}), got {tuple(memory.shape)}"
        )
    count: tuple[int | str, ...] = ("t",) if in_sequence else ()
    checked: list[Tensor] = []
    for level, key in enumerate(keys, 1):
        checked.append(_checked(where, f"key {level}", key, (*count, memory.shape[level - order - 1]), memory))
        count = (checked[0].shape[-2],) if in_sequence else ()
    return tuple(checked), order


def _checked(where: str, name: str, value: Tensor, ending: Sequence[int | str], memory: Tensor) -> Tensor:
    """Return ``value`` in the dtype of the memory; raise unless its shape ends in ``ending`` (a letter is any size)."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{where}: {name} must be a floating tensor, got {_kind(value)}")
    sizes = value.shape[value.dim() - len(ending) :]
    fits = value.dim() >= len(ending) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(sizes, ending, strict=True)
    )
    if not fits:
        wanted = ", ".join(["...", *map(str, ending)])
        raise ValueError(f"{where}: {name} must have shape ({wanted}) in this memory, got {tuple(value.shape)}")
    check_alike(where, dtype=False, memory=memory, **{name: value})
    if torch.promote_types(value.dtype, memory.dtype) != memory.dtype:
        raise TypeError(
            f"{where}: {name} is {value.dtype}, which a memory of {memory.dtype} would round: make the memory {value.dtype}"
        )
    return value.to(memory.dtype)


def _checked_gates(where: str, memory: Tensor, **gates: Gate) -> list[Gate]:
    for name, gate in gates.items():
        if not isinstance(gate, (Tensor, int, float)):
            raise TypeError(f"{where}: {name} must be a number or a floating tensor, got {_kind(gate)}")
    return [_checked(where, name, g, (), memory) if isinstance(g, Tensor) else g for name, g in gates.items()]


def _check_batches(where: str, memory: Sequence[int], others: Sequence[Sequence[int]], *gates: Gate) -> None:
    """Raise if the batch dimensions do not broadcast."""
    shapes = [tuple(s) for s in (memory, *others, *(gate.shape for gate in gates if isinstance(gate, Tensor)))]
    try:
        torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ValueError(
            f"{where}: batch dimensions must broadcast, got {shapes[0]} of the memory and {shapes[1:]} of keys, values and gates"
        ) from None


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__

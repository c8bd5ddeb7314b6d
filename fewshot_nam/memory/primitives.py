"""The primitives of Neural Attention Memory (NAM): unit keys, read, write, and writes of several pairs, in order or jointly.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422), section 3: ``RD(M, q, p_r) = p_r M q`` and
``WR(M, k, v, p_w, p_e) = M + p_w v k^T - p_e M k k^T``. Theorem 1: with a unit key, ``RD(WR(M, k, v, 1, 1), k, 1) = v`` for any
``M``. Theorem 2: with orthonormal keys and ``p_e = 0`` from an empty memory, every pair reads back ``p_w v``.
``write_sequence`` gives in closed form what ``write`` gives for several pairs, one after another. ``write_block`` is not in the
paper: it writes several pairs jointly, so that their order does not matter.

Every function works over any leading (batch) dimensions, which broadcast, and is differentiable. Legend: ``D_k`` and ``D_v``
are the sizes of a key and a value, ``n`` is a number of pairs.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from fewshot_nam.memory.torch_modes import needs_plain_autograd
from fewshot_nam.memory.validation import check_real

Gate = float | Tensor
"""A probability, usually in [0, 1]: one number, or a tensor of the batch shape (``(..., n)`` where ``n`` pairs are written)."""

NORM_EPS = torch.finfo(torch.float32).eps
"""Of norms over outputs, in every dtype: what PyTorch takes for each is 65,000 times larger in bfloat16."""


def unit(x: Tensor, dim: int = -1, eps: float = 1e-12) -> Tensor:
    """Return ``x / |x|`` along ``dim``. A vector of length ``eps`` or less gives zeros, with a gradient of 0.

    The gradient elsewhere is at most ``1 / |x|``. Lengths that overflow the dtype, as that of ``[3e19, 4e19]`` in float32, are
    computed from scaled vectors.

    Args:
        x: ``(..., D, ...)`` float.
        dim: the dimension along which lengths are taken.
        eps: the length up to which a vector counts as zero, raised to the smallest normal number of the dtype if it is smaller.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    check_real("unit", "x", x)
    info = torch.finfo(x.dtype)
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    # Only an eager call on a CPU can look at values without a cost: elsewhere the scaled length is always computed.
    eager = x.device.type == "cpu" and not torch.compiler.is_compiling() and not needs_plain_autograd()
    if not eager or bool(length.isinf().any()):
        # A power of two is exact, so that vectors which need no scaling keep their results to the last bit.
        smaller = math.ldexp(1.0, -3 * math.frexp(info.max)[1] // 4)
        x = x * torch.ones_like(length).masked_fill(length.isinf(), smaller)
        length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.where(length <= max(eps, info.tiny), torch.inf, length)


def read(memory: Tensor, query: Tensor, p_read: Gate = 1.0) -> Tensor:
    """Return ``p_r M q``, the value that ``memory`` holds for ``query``.

    Args:
        memory: ``(..., D_v, D_k)``.
        query: ``(..., D_k)``, used as given: call ``unit`` first where you need unit length.
        p_read: read probability, a float or ``(...)``.

    Returns:
        ``(..., D_v)``.

    Raises:
        TypeError: ``p_read`` is neither a number nor a tensor.
        ValueError: the width of the query is not that of the memory's keys, or ``p_read`` has dimensions beyond the batch's.

    Example:
        >>> memory = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
        >>> read(memory, torch.tensor([0.0, 1.0, 0.0]))
        tensor([0., 3.])
    """
    _check_width("read", "query", query, memory)
    _check_gates("read", max(memory.dim() - 2, query.dim() - 1), p_read=p_read)
    # A row times a matrix: the product with a column takes several times as long on a CPU.
    value = (query.unsqueeze(-2) @ memory.mT).squeeze(-2)
    return _per_vector(p_read) * value


def write(memory: Tensor, key: Tensor, value: Tensor, p_write: Gate = 1.0, p_erase: Gate = 1.0) -> Tensor:
    """Return ``M + p_w v k^T - p_e M k k^T``, a new memory in which ``key`` leads to ``value``; ``memory`` does not change.

    With ``p_e = 0`` this is linear attention, with ``p_w = p_e`` the delta rule.

    Args:
        memory: ``(..., D_v, D_k)``.
        key: ``(..., D_k)``, used as given. The theorems need unit length: call ``unit`` first.
        value: ``(..., D_v)``.
        p_write: write probability, a float or ``(...)``.
        p_erase: erase probability, a float or ``(...)``.

    Returns:
        ``(..., D_v, D_k)``.

    Raises:
        TypeError: a gate is neither a number nor a tensor.
        ValueError: the width of the key or the value does not fit the memory, or a gate has dimensions beyond the batch's.

    Example:
        >>> key = unit(torch.tensor([0.0, 4.0]))
        >>> memory = write(torch.zeros(3, 2), key, torch.tensor([1.0, 2.0, 3.0]))
        >>> read(memory, key)
        tensor([1., 2., 3.])
        >>> memory = write(memory, key, torch.tensor([7.0, 8.0, 9.0]))  # replaces the value
        >>> read(memory, key)
        tensor([7., 8., 9.])
    """
    _check_width("write", "key", key, memory)
    _check_width("write", "value", value, memory)
    batch_dims = max(memory.dim() - 2, key.dim() - 1, value.dim() - 1)
    _check_gates("write", batch_dims, p_write=p_write, p_erase=p_erase)
    update = _per_vector(p_write) * value - _per_vector(p_erase) * read(memory, key)
    return memory + update.unsqueeze(-1) * key.unsqueeze(-2)


def write_block(
    memory: Tensor,
    keys: Tensor,
    values: Tensor,
    p_write: Gate = 1.0,
    p_erase: Gate = 1.0,
    ridge: Gate = 0.0,
) -> Tensor:
    """Return ``M + (V P_w - M K P_e) (K^T K + ridge I)^-1 K^T``: ``n`` pairs written jointly, in no order.

    ``K`` and ``V`` hold the keys and values as columns, ``P_w`` and ``P_e`` the gates on a diagonal. With ridge 0, gates 1 and
    independent keys every pair reads back exactly, and any direction orthogonal to all keys is left untouched. A single unit
    key gives ``write``. A ridge damps the write: a single unit key reads back ``1 / (1 + ridge)`` of its value, and for a large
    ridge the write is ``1 / ridge`` times a sum of outer products.

    Args:
        memory: ``(..., D_v, D_k)``.
        keys: ``(..., n, D_k)``, used as given. ``n`` may be 0, which writes nothing.
        values: ``(..., n, D_v)``.
        p_write: write probability, a float or ``(..., n)``.
        p_erase: erase probability, a float or ``(..., n)``.
        ridge: damping, at least 0: a float or ``(...)``.

    Returns:
        ``(..., D_v, D_k)`` in the dtype of the memory. The system is solved in float32 at least.

    Raises:
        ValueError: shapes do not fit, the ridge is negative, or it is 0 and the keys are linearly dependent.

    Example:
        >>> keys, values = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0], [5.0]])
        >>> memory = write_block(torch.zeros(1, 2), keys, values)
        >>> [round(read(memory, key).item(), 4) for key in keys]  # both exactly, although the keys overlap
        [3.0, 5.0]
    """
    _check_pairs("write_block", keys, values, memory)
    batch_dims = max(memory.dim(), keys.dim(), values.dim()) - 2
    _check_gates("write_block", batch_dims + 1, p_write=p_write, p_erase=p_erase)
    _check_gates("write_block", batch_dims, ridge=ridge)
    if isinstance(ridge, (int, float)) and not ridge >= 0:
        raise ValueError(f"write_block: ridge must be at least 0, got {ridge}")
    solving = torch.promote_types(keys.dtype, torch.float32)
    updates = _per_vector(p_write) * values
    if isinstance(p_erase, Tensor) or p_erase:
        updates = updates - _per_vector(p_erase) * (keys @ memory.mT)
    keys_solving = keys.to(solving)
    n, width = keys.shape[-2:]
    if n > width and not isinstance(ridge, Tensor) and ridge > 0:
        # The same product with the smaller matrix inverted: (K^T K + r I)^-1 K^T = K^T (K K^T + r I)^-1.
        spread = keys_solving.mT @ keys_solving + ridge * torch.eye(width, dtype=solving, device=keys.device)
        factor, failed = torch.linalg.cholesky_ex(spread)
        _raise_if(failed.any(), "write_block: keys must be finite")
        return memory + torch.cholesky_solve(keys_solving.mT @ updates.to(solving), factor).mT.to(memory.dtype)
    gram = keys_solving @ keys_solving.mT
    if isinstance(ridge, Tensor) or ridge > 0:
        damping = _per_vector(_per_vector(ridge)) * torch.eye(keys.shape[-2], dtype=solving, device=keys.device)
        factor, failed = torch.linalg.cholesky_ex(gram + damping)
        _raise_if(
            failed.any(),
            "write_block: the keys' products plus ridge are not positive definite: keys must be finite, and ridge above 0, "
            "or 0 as a plain number where keys are independent",
        )
    else:
        factor = _exact_factor(gram, width=keys.shape[-1])
    solved = torch.cholesky_solve(updates.to(solving), factor)
    return memory + (solved.mT @ keys_solving).to(memory.dtype)


def write_sequence(memory: Tensor, keys: Tensor, values: Tensor, p_write: Gate = 1.0, p_erase: Gate = 1.0) -> Tensor:
    """Return ``memory`` after ``n`` writes in order: the result of ``write`` in a loop, by one triangular solve.

    Write ``M_t = M_(t-1) + u_t k_t^T``. Then ``u_t = p_w v_t - p_e M_0 k_t - p_e sum_(s<t) (k_s . k_t) u_s``, which is the system
    ``(I + P_e strict_lower(K^T K)) U = V P_w - K^T M_0^T P_e`` with the ``u_t`` as rows of ``U``. (The UT transform of the
    delta rule: Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024.)

    Args:
        memory: ``(..., D_v, D_k)``.
        keys: ``(..., n, D_k)`` in the order of writing, used as given.
        values: ``(..., n, D_v)``.
        p_write: write probability, a float or ``(..., n)``.
        p_erase: erase probability, a float or ``(..., n)``.

    Returns:
        ``(..., D_v, D_k)`` in the dtype of the memory. The system is solved in float32 at least.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> keys, values = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0], [5.0]])
        >>> memory = write_sequence(torch.zeros(1, 2), keys, values)
        >>> read(memory, keys[0]).item()  # the second write has replaced the first
        5.0
    """
    _check_pairs("write_sequence", keys, values, memory)
    batch_dims = max(memory.dim(), keys.dim(), values.dim()) - 2
    _check_gates("write_sequence", batch_dims + 1, p_write=p_write, p_erase=p_erase)
    solving = torch.promote_types(keys.dtype, torch.float32)
    updates = _per_vector(p_write) * values - _per_vector(p_erase) * (keys @ memory.mT)
    keys_solving = keys.to(solving)
    earlier = _per_vector(p_erase) * (keys_solving @ keys_solving.mT).tril(diagonal=-1)
    # unitriangular: the solver ignores the diagonal and uses 1.
    solved = torch.linalg.solve_triangular(earlier, updates.to(solving), upper=False, unitriangular=True)
    return memory + (solved.mT @ keys_solving).to(memory.dtype)


def _exact_factor(gram: Tensor, width: int) -> Tensor:
    """Return the Cholesky factor ``(..., n, n)`` of ``gram``; raise where ``gram`` is singular up to rounding."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    n = gram.shape[-1]
    # A dependent key leaves a pivot that is 0 up to rounding. Dividing by it would give a large, wrong memory.
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    lengths = gram.diagonal(dim1=-2, dim2=-1)
    smallest = 8 * n * torch.finfo(gram.dtype).eps * lengths
    wrong = failed.any() | ~(pivots > smallest).all()
    _raise_if(
        torch.ones_like(wrong) if n > width else wrong,
        f"write_block: the {n} keys of width {width} are linearly dependent (or zero), so not every pair can read "
        "back exactly: pass ridge > 0, or leave out repeated keys",
    )
    return factor


def _raise_if(wrong: Tensor, message: str) -> None:
    """Raise ``ValueError`` if ``wrong`` is True; inside ``torch.compile``, raise an error when the graph runs."""
    if torch.compiler.is_compiling():  # a branch on values would break the graph in two
        torch._assert_async(~wrong, message)
    elif bool(wrong):
        raise ValueError(message)


def _per_vector(gate: Gate) -> Gate:
    """Give a tensor of gates a last dimension, so that each multiplies one vector."""
    return gate.unsqueeze(-1) if isinstance(gate, Tensor) else gate


def _check_gates(function: str, dims: int, **gates: Gate) -> None:
    """Raise where a gate is no number or tensor, or has more dimensions than it may: it would enlarge the batch."""
    for name, gate in gates.items():
        if isinstance(gate, Tensor):
            if gate.dim() > dims:
                raise ValueError(
                    f"{function}: {name} must have at most {dims} dimensions here, got shape {tuple(gate.shape)}"
                )
        elif not isinstance(gate, Real):
            raise TypeError(f"{function}: {name} must be a number or a tensor, got {type(gate).__name__}")


def _check_width(function: str, name: str, vectors: Tensor, memory: Tensor) -> None:
    check_real(function, name, vectors)
    check_real(function, "memory", memory)
    wanted = memory.shape[-2] if name.startswith("value") else memory.shape[-1]
    if vectors.shape[-1] != wanted:
        raise ValueError(
            f"{function}: {name} must have width {wanted} to fit a memory {tuple(memory.shape)} (..., D_v, D_k), "
            f"got shape {tuple(vectors.shape)}"
        )


def _check_pairs(function: str, keys: Tensor, values: Tensor, memory: Tensor) -> None:
    _check_width(function, "keys", keys, memory)
    _check_width(function, "values", values, memory)
    if keys.dim() < 2 or values.dim() < 2 or keys.shape[-2] != values.shape[-2]:
        raise ValueError(
            f"{function}: needs as many keys (..., n, D_k) as values (..., n, D_v), "
            f"got shapes {tuple(keys.shape)} and {tuple(values.shape)}"
        )

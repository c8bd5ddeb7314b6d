"""The memory scan: writes and reads of a whole sequence through a Neural Attention Memory, and one step of it.

At each step, per head, ``M_t = WR(M_(t-1), k_t, v_t, p_w, p_e)``, then ``o_t = RD(M_t, q_t, p_r)`` (Nam and Seo, "Neural Attention
Memory", arXiv 2302.09422). ``p_erase = 0`` is causal linear attention, ``p_write = p_erase`` the delta rule; the two gates are
separate here, and gates of 0 and 1 are exact. With ``decay`` the memory is ``d_t M_(t-1)`` before the write.

Backends, which agree up to rounding (``tests/fewshot_nam/memory/test_scan.py`` compares each with the loop in float64):

- ``"loop"``: ``write`` and ``read`` token by token, the reference;
- ``"chunk"``: chunkwise-parallel, with a hand-written backward that recomputes memories: fast, with little memory. It has no
  second derivative. On a CPU with a compiler, memories of up to 32 x 32 numbers are scanned token by token by a compiled loop
  instead (``scan.cpp``), which is faster there;
- ``"chunk-autograd"``: the same forward, differentiated by torch, for second derivatives and ``torch.func``;
- ``"cuda"``: the kernels of flash-linear-attention if installed, else ``"chunk"`` on the GPU, with a warning;
- ``"auto"``: the choice of ``choose_backend``, which is logged once (logger "fewshot_nam.memory", level info).

With ``decay`` all but the loop are one chunk form that torch differentiates (``decay.py``).

Accuracy, tested to 4,096 tokens: in float32, reads, memory and gradients are within 5e-6 of float64 relative to the largest entry
(reads mostly within 2e-6), also with repeated and near-parallel keys. Rounding grows slowly with the length, in the loop as well.
With erase gates up to 2, errors are those of the loop, up to 1e-5. With bfloat16 or float16 inputs the memory is within 5e-6. Reads
and gradients, which are rounded to the dtype of the inputs, are within 1e-2.

Legend: ``B`` sequences, ``T`` tokens, ``H`` heads, ``D_k`` and ``D_v`` the sizes of a key and a value, ``N`` packed sequences.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from fewshot_nam.memory.primitives import Gate, read, write
from fewshot_nam.memory.scan.chunk import Tokens, scan_by_autograd, scan_by_segments
from fewshot_nam.memory.scan.cuda import scan_by_kernels, why_no_kernels
from fewshot_nam.memory.scan.decay import AnyTokens, DecayedTokens, scan_with_decay
from fewshot_nam.memory.scan.packed import lengths_of, scan_each
from fewshot_nam.memory.torch_modes import full_precision, needs_plain_autograd
from fewshot_nam.memory.validation import check_alike, check_mask, check_tensor

BACKENDS = ("auto", "loop", "chunk", "chunk-autograd", "cuda")
_LOG = logging.getLogger("fewshot_nam.memory")


def memory_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_read: Gate | None = None,
    p_write: Gate | None = None,
    p_erase: Gate | None = None,
    *,
    decay: Gate | None = None,
    initial_memory: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | Sequence[int] | None = None,
    chunk_size: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return the reads of all tokens, ``(B, T, H, D_v)``, and the memory after the last token, ``(B, H, D_v, D_k)``.

    At each token ``M <- M + p_w v k^T - p_e M k k^T``, then ``o = p_r M q``; with ``decay``, ``M <- d M`` comes first. Keys and
    queries are neither normalised nor scaled (unlike in attention, there is no ``1 / sqrt(D_k)``). With unit keys and ``p_erase``
    in [0, 2], erasing makes no row longer.

    Args:
        q: queries ``(B, T, H, D_k)``; float32, float64, bfloat16 or float16. T may be 0.
        k: keys ``(B, T, H, D_k)``, used as given: call ``unit`` first where you need unit length.
        v: values ``(B, T, H, D_v)``. ``q``, ``k`` and ``v`` have one dtype.
        p_read: read probability: ``(B, T, H)``, a float, or None for 1.
        p_write: write probability, likewise.
        p_erase: erase probability, likewise. The float 0.0 saves a triangular solve.
        decay: the factor in [0, 1] by which the memory is multiplied before each write, likewise: 1 forgets nothing, 0 all. For one
            factor for each head, expand it to ``(B, T, H)``.
        initial_memory: ``(B, H, D_v, D_k)``; None is an empty memory (zeros).
        mask: ``(B, T)`` bool, True where there is a token. Elsewhere nothing is written and 0 is read, whatever the inputs are.
        cu_seqlens: N + 1 boundaries, from 0 to T, of N sequences packed one after another into B = 1 (as in flash-attention).
            Each sequence has its own memory: ``initial_memory`` and the returned memory are ``(N, H, D_v, D_k)``. It excludes
            ``mask``.
        chunk_size: tokens in a chunk of the chunk forms; None is 32 on a CPU and 64 elsewhere. It changes only speed and
            rounding.
        backend: how the scan is computed, see the docstring of the module.

    Returns:
        Reads in the dtype of ``v``, and the memory: in float64 for float64 inputs, else in float32, in which the chunks are
        solved too.

    Raises:
        TypeError: an argument is no floating tensor, or dtypes differ.
        ValueError: shapes do not fit, devices differ, ``backend`` or ``chunk_size`` is not allowed, or ``cu_seqlens`` are not
            boundaries.
        RuntimeError: in a second derivative through ``"chunk"``: pass ``backend="chunk-autograd"``.

    Example:
        >>> from fewshot_nam.memory import unit
        >>> q, k, v = torch.randn(3, 2, 5, 4, 8).unbind(0)  # 2 sequences, 5 tokens, 4 heads, size 8
        >>> reads, memory = memory_scan(unit(q), unit(k), v)
        >>> reads.shape, memory.shape
        (torch.Size([2, 5, 4, 8]), torch.Size([2, 4, 8, 8]))
    """
    batch, length, heads, width = _check_sequence(q, k, v)
    if backend not in BACKENDS:
        raise ValueError(f"memory_scan: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"memory_scan: chunk_size must be an integer of at least 1, got {chunk_size!r}")
    lengths = None
    if cu_seqlens is not None:
        lengths = lengths_of(cu_seqlens, batch, length)
        if mask is not None:
            raise ValueError("memory_scan: pass mask or cu_seqlens, not both: packed sequences have no padding")
    if mask is not None:
        check_mask("memory_scan", "mask", mask, (batch, length))
    sequences = batch if lengths is None else len(lengths)
    if initial_memory is not None:
        check_tensor("memory_scan", "initial_memory", initial_memory, (sequences, heads, v.shape[-1], width))
    gates = _check_gates(
        "memory_scan", (batch, length, heads), p_read=p_read, p_write=p_write, p_erase=p_erase, decay=decay
    )
    check_alike("memory_scan", dtype=False, q=q, k=k, v=v, **gates, initial_memory=initial_memory, mask=mask)

    chosen = choose_backend(q, v) if backend == "auto" else backend
    if chosen == "cuda" and q.device.type != "cuda":
        raise ValueError(f"memory_scan: backend 'cuda' needs tensors on a CUDA device, got {q.device}")
    obstacle = why_no_kernels(q, v) if decay is None else "its kernels are not used with decay"
    if backend == "cuda" and obstacle:
        warnings.warn(f"memory_scan: backend 'cuda' runs the chunk form: {obstacle}", stacklevel=2)
    dtype = torch.promote_types(v.dtype, torch.float32)
    plain = Tokens(
        q,
        k,
        v,
        None if p_read is None else _gate(p_read, v),
        _gate(p_write, v),
        None if isinstance(p_erase, (int, float)) and p_erase == 0 else _gate(p_erase, v),
    )
    tokens: AnyTokens = plain if decay is None else DecayedTokens(plain, 1 - _gate(decay, v))
    if mask is not None:
        absent = ~mask[..., None, None]
        # All of them, since padding may hold NaN, and 0 times NaN is NaN. A query of 0 reads 0.
        tokens = tokens.each(lambda x: x.masked_fill(absent, 0.0))
    if initial_memory is None:
        memory = torch.zeros(sequences, heads, v.shape[-1], width, dtype=dtype, device=v.device)
    else:
        memory = initial_memory.to(dtype)
    # Under autocast the products here would be rounded to half precision, and the memory with them.
    with full_precision(q.device):
        reads, memory = _scan(tokens, memory, lengths, chunk_size, chosen)
        return reads.to(v.dtype), memory


def memory_step(
    memory: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_read: Gate | None = None,
    p_write: Gate | None = None,
    p_erase: Gate | None = None,
    *,
    decay: Gate | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the read of one token after its write, ``(..., H, D_v)``, and the new memory: one step of ``memory_scan``.

    ``memory_scan`` over T tokens and T steps give the same results. The cost of a step does not depend on the number of tokens
    before it.

    Args:
        memory: ``(..., H, D_v, D_k)``, as ``memory_scan`` returns it. It does not change.
        q: query ``(..., H, D_k)``.
        k: key ``(..., H, D_k)``, used as given.
        v: value ``(..., H, D_v)``.
        p_read: read probability: ``(..., H)``, a float, or None for 1.
        p_write: write probability, likewise.
        p_erase: erase probability, likewise.
        decay: the factor of the memory before the write, likewise.

    Returns:
        The read in the dtype of ``v``; the memory in float32 at least.

    Raises:
        TypeError: an argument is no floating tensor, or ``q``, ``k`` and ``v`` differ in dtype.
        ValueError: shapes do not fit, or devices differ.

    Example:
        >>> q = k = torch.nn.functional.normalize(torch.randn(1, 2, 8), dim=-1)  # one sequence, 2 heads, keys of width 8
        >>> v = torch.randn(1, 2, 4)
        >>> read, memory = memory_step(torch.zeros(1, 2, 4, 8), q, k, v)
        >>> bool(torch.allclose(read, v, atol=1e-5)), memory.shape
        (True, torch.Size([1, 2, 4, 8]))
    """
    check_tensor("memory_step", "memory", memory, (*("..." for _ in memory.shape[:-2]), "D_v", "D_k"))
    lead, (width_v, width_k) = memory.shape[:-2], memory.shape[-2:]
    check_tensor("memory_step", "q", q, (*lead, width_k))
    check_tensor("memory_step", "k", k, (*lead, width_k))
    check_tensor("memory_step", "v", v, (*lead, width_v))
    gates = _check_gates("memory_step", lead, p_read=p_read, p_write=p_write, p_erase=p_erase, decay=decay)
    check_alike("memory_step", q=q, k=k, v=v)
    check_alike("memory_step", dtype=False, v=v, memory=memory, **gates)
    dtype = torch.promote_types(v.dtype, torch.float32)
    r, w, e, d = (
        1.0 if gate is None else gate.to(dtype) if isinstance(gate, Tensor) else gate
        for gate in (p_read, p_write, p_erase, decay)
    )
    with full_precision(v.device):
        memory = memory.to(dtype)
        if decay is not None:
            memory = memory * (d[..., None, None] if isinstance(d, Tensor) else d)
        memory = write(memory, k.to(dtype), v.to(dtype), w, e)
        return read(memory, q.to(dtype), r).to(v.dtype), memory


def choose_backend(q: Tensor, v: Tensor) -> str:
    """Return the backend that ``"auto"`` chooses for these tensors, and log the reason.

    ``"chunk-autograd"`` inside ``torch.func`` (``vmap``, ``grad``, ``jvp``) and ``torch.export`` (unless the number of tokens is
    dynamic), which cannot use a hand-written backward; ``"cuda"`` for half-precision tensors on a GPU that flash-linear-attention
    supports (its kernels may multiply float32 in TF32); ``"chunk"`` otherwise.
    """
    if needs_plain_autograd():
        dynamic = isinstance(q.shape[1], torch.SymInt) if q.dim() > 1 else False
        chosen = "chunk" if dynamic else "chunk-autograd"
        why = "inside torch.export, with any number of tokens" if dynamic else "inside torch.func or torch.export"
    elif q.device.type != "cuda":
        chosen, why = "chunk", f"tensors on {q.device.type}"
    elif obstacle := why_no_kernels(q, v):
        chosen, why = "chunk", obstacle
    elif q.dtype not in (torch.bfloat16, torch.float16):
        chosen, why = "chunk", "inputs of full precision"
    else:
        chosen, why = "cuda", "flash-linear-attention is installed"
    if not torch.compiler.is_compiling():
        _log_once(chosen, why)
    return chosen


@functools.cache
def _log_once(chosen: str, why: str) -> None:
    """Log a choice, only the first time it is made."""
    _LOG.info("memory_scan: backend %s (%s)", chosen, why)


def _scan(
    tokens: AnyTokens, memory: Tensor, lengths: list[int] | None, chunk_size: int | None, backend: str
) -> tuple[Tensor, Tensor]:
    """Run ``backend`` on checked arguments, packed sequences (``lengths``) one by one."""
    if backend == "cuda" and isinstance(tokens, Tokens) and why_no_kernels(tokens.q, tokens.v) is None:
        return scan_by_kernels(tokens, memory, lengths)
    chunk = chunk_size or (32 if memory.device.type == "cpu" else 64)

    def scan(tokens: AnyTokens, memory: Tensor) -> tuple[Tensor, Tensor]:
        if backend == "loop":
            return _loop(tokens, memory)
        plain = tokens.tokens if isinstance(tokens, DecayedTokens) else tokens
        if plain.k.shape[1] == 0:
            return plain.v.clone(), memory.clone()
        if isinstance(tokens, DecayedTokens):
            return scan_with_decay(tokens, memory, chunk)
        return (scan_by_autograd if backend == "chunk-autograd" else scan_by_segments)(tokens, memory, chunk)

    tokens = tokens.each(lambda x: x.to(memory.dtype))
    return scan(tokens, memory) if lengths is None else scan_each(scan, tokens, memory, lengths)


def _loop(tokens: AnyTokens, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Forget, write, then read, token by token: the reference."""
    (q, k, v, r, w, e), f = tokens if isinstance(tokens, DecayedTokens) else (tokens, None)
    r = torch.ones_like(w) if r is None else r
    e, f = (torch.zeros_like(w) if gate is None else gate for gate in (e, f))
    reads = []
    # unbind, not x[:, t]: the backward of each x[:, t] fills a whole sequence with zeros, so that the cost grows with T squared.
    steps = (x.unbind(1) for x in (q, k, v, r[..., 0], w[..., 0], e[..., 0], 1 - f))
    for q_t, k_t, v_t, r_t, w_t, e_t, d_t in zip(*steps, strict=True):
        memory = write(d_t.unsqueeze(-1) * memory, k_t, v_t, w_t, e_t)
        reads.append(read(memory, q_t, r_t))
    return (torch.stack(reads, dim=1) if reads else v.clone()), memory


def _gate(gate: Gate | None, v: Tensor) -> Tensor:
    """Return a gate as ``(B, T, H, 1)`` in float32 at least; a number, or None for 1, is expanded."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    if isinstance(gate, Tensor):
        return gate.to(dtype).unsqueeze(-1)
    return torch.full((), 1.0 if gate is None else gate, dtype=dtype, device=v.device).expand(*v.shape[:3], 1)


def _check_gates(where: str, shape: Sequence[int], **gates: Gate | None) -> dict[str, Tensor]:
    """Check that each gate is None, a finite number or a tensor of ``shape``, and return the tensors."""
    for name, gate in gates.items():
        if isinstance(gate, Tensor):
            check_tensor(where, name, gate, shape)
        elif gate is not None and not isinstance(gate, (int, float)):
            raise TypeError(f"{where}: {name} must be None, a number or a tensor, got {type(gate).__name__}")
        elif gate is not None and not math.isfinite(gate):
            raise ValueError(f"{where}: {name} must be finite, got {gate}")
    return {name: gate for name, gate in gates.items() if isinstance(gate, Tensor)}


def _check_sequence(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int, int]:
    """Check ``q``, ``k`` and ``v`` against each other and return B, T, H and D_k."""
    check_tensor("memory_scan", "q", q, ("B", "T", "H", "D_k"))
    batch, tokens, heads, width = q.shape
    check_tensor("memory_scan", "k", k, (batch, tokens, heads, width))
    check_tensor("memory_scan", "v", v, (batch, tokens, heads, "D_v"))
    check_alike("memory_scan", q=q, k=k, v=v)
    return batch, tokens, heads, width

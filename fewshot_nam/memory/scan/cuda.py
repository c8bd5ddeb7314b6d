"""The memory scan by the kernels of flash-linear-attention (``pip install "fewshot-nam[cuda]"``), on a GPU.

Its Comba kernel computes ``S_t = S_(t-1) + beta_t k_t (v_t - S_(t-1)^T p_t)^T`` with ``S = M^T`` and a separate key ``p`` for
erasing. So ``beta = 1``, ``p = p_e k`` and the value ``p_w v`` give WR with two separate gates, exactly, also for gates of 0. (Its
delta-rule kernels have one gate and would need ``p_w v / p_e``, which is NaN for ``p_e = 0``.) The kernels multiply in the
precision of their inputs and keep the memory in float32.
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import accumulate

import torch
from torch import Tensor

from fewshot_nam.memory.scan.chunk import Tokens

WIDEST_KEY = 256


def why_no_kernels(q: Tensor, v: Tensor) -> str | None:
    """Return the reason why the kernels cannot scan such queries and values, or None if they can."""
    if q.device.type != "cuda":
        return f"flash-linear-attention's kernels need a GPU, tensors are on {q.device.type}"
    if q.dtype == torch.float64:
        return "flash-linear-attention has no float64"
    if q.shape[-1] > WIDEST_KEY:
        return f"flash-linear-attention takes keys up to {WIDEST_KEY} wide"
    if 0 in (*q.shape, v.shape[-1]):
        return "nothing to scan"
    if find_spec("fla") is None:
        return "flash-linear-attention is not installed"
    return None


def scan_by_kernels(tokens: Tokens, memory: Tensor, lengths: list[int] | None) -> tuple[Tensor, Tensor]:
    """Return reads ``(B, T, H, D_v)`` and the last memory, by ``fla.ops.comba.chunk_comba``.

    Args:
        tokens: T tokens, their gates in float32.
        memory: ``(B, H, D_v, D_k)`` float32, or ``(N, H, D_v, D_k)`` for packed sequences.
        lengths: lengths of N packed sequences, B = 1; or None.
    """
    from fla.ops.comba import chunk_comba

    q, k, v, r, w, e = tokens
    reads, state = chunk_comba(
        q=q,
        k=k,
        v=(w * v).to(v.dtype),
        p=torch.zeros_like(k) if e is None else (e * k).to(k.dtype),
        g=torch.zeros_like(w[..., 0]),
        beta=torch.ones_like(w[..., 0]),
        scale=1.0,
        initial_state=memory.mT.contiguous(),
        output_final_state=True,
        cu_seqlens=None if lengths is None else torch.tensor([0, *accumulate(lengths)], device=q.device),
    )
    return (reads if r is None else r * reads), state.mT

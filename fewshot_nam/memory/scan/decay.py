"""The memory scan with decay: before each write the memory is multiplied by a factor in [0, 1] for its head and token.

Per head ``M_t = WR(d_t M_(t-1), k_t, v_t, w_t, e_t)`` and ``o_t = r_t M_t q_t``. Without erase and with one factor for each head,
this is RetNet (Sun et al., arXiv 2307.08621); with ``e = w``, gated DeltaNet (Yang et al., arXiv 2412.06464). Let ``D_ij`` be the
product of the factors after token j up to token i of a chunk, and ``g_i`` that of all up to token i. Then, as in ``chunk``,

    ``L U = W V - E g K S``,  ``L = I + E strict_lower(D * K K^T)``        updates
    ``O = R (g Q S + lower(D * Q K^T) U)``                                  reads
    ``S' = g_C S + (D_C K)^T U``                                            memory after the chunk

``D`` is made of products, not of quotients of ``g``, so factors of 0 are exact. Derivatives are left to torch: the memories of
all chunks are kept.

Legend: B batch, T tokens, H heads, n chunks, C tokens in a chunk, G = B * H, D_k and D_v the sizes of a key and a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot_nam.memory.scan.chunk import Tokens, _exact_dtype, _fold, _padded, _times, _unfold


class DecayedTokens(NamedTuple):
    """The sequence to scan, and what part of the memory is forgotten before each write.

    ``f`` is ``1 - d``, so that tokens of zeros, such as padding, change nothing.
    """

    tokens: Tokens
    f: Tensor  # (B, T, H, 1)

    def each(self, change: Callable[[Tensor], Tensor]) -> DecayedTokens:
        """Return all tensors after ``change``."""
        return DecayedTokens(self.tokens.each(change), change(self.f))


AnyTokens = Tokens | DecayedTokens
"""A sequence to scan, without or with decay."""


def scan_with_decay(decayed: DecayedTokens, memory: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Return reads ``(B, T, H, D_v)`` and the last memory ``(B, H, D_v, D_k)``, which torch can differentiate any number of times.

    Args:
        decayed: T tokens, at least 1.
        memory: ``(B, H, D_v, D_k)``, the initial memory.
        chunk: tokens in a chunk.
    """
    length = decayed.f.shape[1]
    chunk = min(chunk, length)
    (q, k, v, r, w, e), f = decayed.each(lambda x: _fold(_padded(x, chunk), chunk))
    keep = 1 - f
    between = _products_between(keep)  # D
    since = keep.cumprod(dim=-2)  # g
    overlaps = between * (k @ k.mT)
    updates, erasing = w * v, None
    if e is not None:
        exact = _exact_dtype(e)
        # The solver reads only the strict lower part and uses 1 as the diagonal.
        eye = torch.eye(chunk, dtype=exact, device=e.device).expand_as(overlaps)
        inverse = torch.linalg.solve_triangular((e * overlaps).to(exact), eye, upper=False, unitriangular=True)
        updates, erasing = _times(inverse, updates), _times(inverse, e * since * k)
    writing = between[..., -1:, :].mT * k
    state, found, added = memory.mT.flatten(0, 1), [], []
    for i, (k_i, u_i, left) in enumerate(
        zip(writing.unbind(0), updates.unbind(0), since[..., -1:, :].unbind(0), strict=True)
    ):
        found.append(state)
        if erasing is not None:
            u_i = torch.baddbmm(u_i, erasing[i], state, alpha=-1)
        added.append(u_i)
        state = torch.baddbmm(left * state, k_i.mT, u_i)
    reads = since * (q @ torch.stack(found)) + (between * (q @ k.mT)) @ torch.stack(added)
    reads = reads if r is None else r * reads
    return _unfold(reads, memory)[:, :length], state.mT.reshape(memory.shape)


def _products_between(keep: Tensor) -> Tensor:
    """Return ``D`` ``(..., C, C)``: the product of ``keep`` ``(..., C, 1)`` after token j up to token i, and 0 for ``i < j``."""
    count = keep.shape[-2]
    later = torch.ones(count, count, dtype=torch.bool, device=keep.device).tril(-1)
    return keep.expand(*keep.shape[:-1], count).masked_fill(~later, 1.0).cumprod(dim=-2).tril()

"""Normalized outer-product attention: attention through one memory for each head, without a T x T score matrix.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422, and the ICLR-2023 submission of that name), the efficient
attention of the NAM-Transformer: every token is written without erase, ``M = sum_s p_w,s v_s k_s^T``, and every token reads
``out_t = p_r,t M q_t``, with unit keys and queries. With gates of 1 this is ``Out = mu(Q) (mu(K)^T V)``: its cost is linear in the
length, and there is no denominator. With orthonormal keys, a query equal to key ``s`` reads exactly ``p_w,s v_s`` (Theorem 2).

Departures from the authors' code: padding is left out of the memory, and a zero vector gives no NaN. The following are not in the
paper: the causal form (``M`` as prefix sums), the scaling by the number of tokens, the short convolution, the output norm, decay
(RetNet, arXiv 2307.08621; gated DeltaNet, arXiv 2412.06464), and ``NAMAttention(erase=True)``, which writes tokens in order by the
full rule ``M + p_w v k^T - p_e M k k^T`` and so replaces the values of repeated keys. Erase gates up to 2 are those of Grazzi et
al., "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues" (arXiv 2411.12537): without them a memory cannot compute
parity. Several writes per token are those of Siems et al., "DeltaProduct: Improving State-Tracking in Linear RNNs via Householder
Products" (arXiv 2502.10297): two reflections rotate a plane.

Legend: ``B`` sequences, ``T`` queries, ``S`` keys, ``H`` heads, ``D_k`` and ``D_v`` the sizes of a key and a value,
``E`` the width of a token.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.memory.padding import check_tokens, without_padding
from fewshot_nam.memory.primitives import NORM_EPS, Gate, unit
from fewshot_nam.memory.scan.scan import BACKENDS, memory_scan, memory_step
from fewshot_nam.memory.short_convolution import ShortConvolution, check_conv_size
from fewshot_nam.memory.torch_modes import full_precision
from fewshot_nam.memory.validation import check_alike, check_mask, check_max_erase, check_tensor

Scale = float | Literal["1/S", "1/sqrt(S)"] | None
"""A factor of the outputs: None (1), a number, or one over the number of tokens ``S`` in the memory or over its root."""

Decay = Literal["head", "token"] | None
"""How the memory fades before each write: not (None), by a learned factor of each head, or of each head and token."""

GateKind = Literal["sigmoid", "hard"]
"""How a gate is computed, see ``learned_gate``."""


class NAMAttentionState(NamedTuple):
    """The state of a causal ``NAMAttention`` after some tokens. Its size does not depend on their number."""

    memory: Tensor
    """``(B, H, D_v, D_k)``, float32 at least."""
    tokens: Tensor
    """``(B,)`` int64: the number of tokens written."""


class ConvolvedAttentionState(NamedTuple):
    """The state of a causal ``NAMAttention`` with a short convolution: ``NAMAttentionState`` and what that has seen last."""

    memory: Tensor
    """``(B, H, D_v, D_k)``, float32 at least."""
    tokens: Tensor
    """``(B,)`` int64: the number of tokens written."""
    recent: Tensor
    """``(B, conv_size - 1, 3 E)``: the last projected tokens."""


AttentionState = NAMAttentionState | ConvolvedAttentionState
"""The state of a causal ``NAMAttention``, without or with a short convolution."""


def outer_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_read: Gate | None = None,
    p_write: Gate | None = None,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: Scale = None,
    initial_memory: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return what every query reads from the memory of all pairs (causal: of the pairs up to it), and the memory of all pairs.

    ``M = M_0 + sum_s p_w,s v_s k_s^T`` and ``out_t = scale p_r,t M q_t``; the causal form sums over ``s <= t``, which is
    ``memory_scan`` with ``p_erase = 0``.

    Args:
        q: ``(B, T, H, D_k)`` queries, used as given, like the keys: call ``unit`` first where you need unit length.
        k: ``(B, S, H, D_k)`` keys. ``S`` may differ from ``T`` (cross-attention) unless ``causal``.
        v: ``(B, S, H, D_v)`` values.
        p_read: read probability, a float or ``(B, T, H)``; None is 1.
        p_write: write probability, a float or ``(B, S, H)``; None is 1.
        mask: ``(B, S)`` bool, True where there is a token. Elsewhere nothing is written, even if the inputs are NaN there, and
            the outputs of the causal form are 0. None: tokens everywhere.
        causal: query ``t`` reads only what tokens ``0 .. t`` wrote.
        scale: a factor of the outputs: None (1, as in the paper), a number, ``"1/S"`` or ``"1/sqrt(S)"``, where S is the number of
            tokens in the memory that is read (without padding; in the causal form, up to the query).
        initial_memory: ``(B, H, D_v, D_k)``, to which the pairs are added. Default: zeros.
        backend: how the causal form is computed, see ``memory_scan``: "chunk-autograd" gives second derivatives. (The other form
            is two matrix products, which always have them.)

    Returns:
        The outputs ``(B, T, H, D_v)`` in the dtype of ``v``, and the memory of all pairs ``(B, H, D_v, D_k)``, in float32 at
        least, under autocast too.

    Raises:
        TypeError: not tensors of one floating dtype, or a mask that is not boolean.
        ValueError: shapes or devices do not fit, ``causal`` with ``S != T``, an unknown ``scale``, or a scale by S with
            ``initial_memory``, whose number of tokens is not known.
    """
    _check_arguments(q, k, v, p_read, p_write, mask, initial_memory)
    _check_scale("outer_product_attention", scale)
    if causal and q.shape[1] != k.shape[1]:
        raise ValueError(
            f"outer_product_attention: the causal form needs as many queries as keys, got {q.shape[1]} and {k.shape[1]}: "
            "leave causal False to read the memory of another sequence"
        )
    if isinstance(scale, str) and initial_memory is not None:
        raise ValueError(
            f'outer_product_attention: scale "{scale}" cannot count the tokens of initial_memory: '
            "leave scale None and scale the outputs"
        )
    if causal:
        outputs, memory = memory_scan(
            q, k, v, p_read, p_write, 0.0, initial_memory=initial_memory, mask=mask, backend=backend
        )
        return _scaled(outputs, scale, _count_tokens(k, mask, causal)), memory
    dtype, working = v.dtype, _working_dtype(v)
    with full_precision(v.device):
        q, k, v = q.to(working), k.to(working), _gated(v.to(working), p_write)
        if mask is not None:
            # Both: NaN in one of them times 0 in the other is NaN.
            k, v = (x.masked_fill(~mask[:, :, None, None], 0.0) for x in (k, v))
        memory = torch.einsum("bshv,bshk->bhvk", v, k)
        if initial_memory is not None:
            memory = memory + initial_memory.to(working)
        outputs = _gated(torch.einsum("bhvk,bthk->bthv", memory, q), p_read)
        outputs = _scaled(outputs, scale, _count_tokens(k, mask, causal))
    return outputs.to(dtype), memory


class NAMAttention(nn.Module):
    """Multi-head self-attention through a Neural Attention Memory: unit keys and queries, one memory for each head.

    Without ``erase`` this is the attention of the paper's NAM-Transformer, ``Out = mu(Q) (mu(K)^T V)`` for each head. With
    ``erase``, tokens are written in order by ``M + p_w v k^T - p_e M k k^T`` with a learned ``p_e = sigmoid(W_e x + b_e)`` for each
    head and token. In the causal form every token reads the memory after its own write; otherwise every token reads the memory
    after the last write (which depends on the order of tokens only with ``erase``).

    There is no dropout inside, since there are no attention weights.

    Args:
        embed_dim: ``E``, the width of a token, a multiple of ``num_heads``.
        num_heads: ``H``; keys, queries and values have ``E / H`` features.
        erase: learn ``p_erase``, and write tokens in order.
        gates: learn ``p_read`` and ``p_write``, ``sigmoid(W x + b)`` for each head and token. Default: both are 1.
        scale: None (as in the paper), a number, ``"1/S"`` or ``"1/sqrt(S)"``: see ``outer_product_attention``. Only without
            ``erase``: with it the memory does not grow with the number of tokens.
        conv_size: the width, in tokens, of a causal convolution of queries, keys and values (``ShortConvolution``). Without it no
            memory network learns associative recall where keys and values are separate tokens; 2 to 4 is usual. Default: none.
        max_erase: the largest erase gate, above 0 and at most 2: ``p_e = max_erase sigmoid(W_e x + b_e)``. Only with ``erase``.
        decay: multiply the memory by a factor in (0, 1) before each token's write, in order: ``"head"`` learns one factor for each
            head (RetNet), ``"token"`` one for each head and token, ``sigmoid(W_d x + b_d)`` (with ``erase``: gated DeltaNet). The
            factors of H heads begin at ``1 - 2^-5`` to ``1 - 2^-(4 + H)``, as in RetNet. Not with ``scale``. Default: none.
        output_norm: normalise the read of each head by its root mean square, with learned weights (``torch.nn.RMSNorm``).
        gate: ``"sigmoid"``, or ``"hard"``: gates that reach their bounds exactly, see ``learned_gate``.
        writes_per_token: ``n``, how many pairs of key and value each token writes, one after another, before it reads. Two
            reflections (``p_e = 2``) are a rotation, which one write per token cannot make. Above 1 only with ``erase``.
        erase_bias: the bias of the erase gates before training. With ``gate="hard"``, ``max_erase=2`` and a bias of 3 every token
            begins as a reflection, from which states that go round are learned far sooner than from the default, 0. Only with
            ``erase`` and ``bias``.
        backend: how sequences are scanned, see ``memory_scan``.
        bias: whether the projections have a bias.
        batch_first: ``(B, T, E)`` in and out. Default, as in torch: ``(T, B, E)``.
        device: where the parameters are made.
        dtype: their dtype.

    Raises:
        ValueError: sizes that do not fit, an unknown backend or decay, or a scale with ``erase`` or ``decay``.

    Example:
        >>> attention = NAMAttention(embed_dim=16, num_heads=4, erase=True, batch_first=True)
        >>> x = torch.randn(2, 5, 16)
        >>> outputs = attention(x, is_causal=True)
        >>> state = attention.init_state(batch_size=2)
        >>> for token in x.unbind(1):  # the same, one token at a time
        ...     output, state = attention.step(token, state)
        >>> torch.testing.assert_close(output, outputs[:, -1])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        erase: bool = False,
        gates: bool = False,
        scale: Scale = None,
        conv_size: int | None = None,
        max_erase: float = 1.0,
        decay: Decay = None,
        output_norm: bool = False,
        gate: GateKind = "sigmoid",
        writes_per_token: int = 1,
        erase_bias: float = 0.0,
        backend: str = "auto",
        bias: bool = True,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"NAMAttention: embed_dim must be a positive multiple of num_heads, got {embed_dim} and {num_heads}"
            )
        _check_scale("NAMAttention", scale)
        if erase and scale is not None:
            raise ValueError(f"NAMAttention: scale belongs to erase=False, got scale={scale!r} with erase=True")
        if decay not in (None, "head", "token"):
            raise ValueError(f'NAMAttention: decay must be None, "head" or "token", got {decay!r}')
        if decay is not None and scale is not None:
            raise ValueError(f"NAMAttention: scale belongs to decay=None, got scale={scale!r} with decay={decay!r}")
        if backend not in BACKENDS:
            raise ValueError(f"NAMAttention: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        check_conv_size("NAMAttention", conv_size)
        check_max_erase("NAMAttention", max_erase)
        if max_erase != 1.0 and not erase:
            raise ValueError(f"NAMAttention: max_erase belongs to erase=True, got {max_erase} with erase=False")
        if gate not in get_args(GateKind):
            raise ValueError(f"NAMAttention: gate must be one of {', '.join(get_args(GateKind))}, got {gate!r}")
        if isinstance(writes_per_token, bool) or not isinstance(writes_per_token, int) or writes_per_token < 1:
            raise ValueError(
                f"NAMAttention: writes_per_token must be an integer of at least 1, got {writes_per_token!r}"
            )
        if writes_per_token > 1 and not erase:
            raise ValueError(
                f"NAMAttention: writes_per_token belongs to erase=True, got {writes_per_token} with erase=False"
            )
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.gate: GateKind = gate
        self.writes_per_token = writes_per_token
        if erase_bias and not (erase and bias):
            raise ValueError(
                f"NAMAttention: erase_bias belongs to erase=True and bias=True, got {erase_bias} with "
                f"erase={erase} and bias={bias}"
            )
        self.erase_bias = float(erase_bias)
        self.erase, self.gates, self.scale, self.max_erase = erase, gates, scale, float(max_erase)
        self.backend, self.batch_first = backend, batch_first
        vectors = 1 + 2 * writes_per_token
        self.in_proj = nn.Linear(embed_dim, vectors * embed_dim, bias, device, dtype)
        per_head = num_heads * (gates + writes_per_token * (gates + erase))
        self.gate_proj = nn.Linear(embed_dim, per_head, bias, device, dtype) if per_head else None
        self.decay = decay
        self.decay_bias = None if decay is None else nn.Parameter(torch.empty(num_heads, device=device, dtype=dtype))
        self.decay_proj = nn.Linear(embed_dim, num_heads, False, device, dtype) if decay == "token" else None
        self.conv = None
        if conv_size is not None:
            self.conv = ShortConvolution(vectors * embed_dim, conv_size, device=device, dtype=dtype)
        size = embed_dim // num_heads
        self.output_norm = nn.RMSNorm(size, NORM_EPS, device=device, dtype=dtype) if output_norm else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise weights Xavier-uniformly (queries, keys, values and outputs each) and biases to 0, so that gates start at 1/2.

        The biases of erase gates are ``erase_bias``.
        """
        for weight in [*torch.split(self.in_proj.weight.detach(), self.embed_dim), self.out_proj.weight]:
            nn.init.xavier_uniform_(weight)
        if self.gate_proj is not None:
            nn.init.xavier_uniform_(self.gate_proj.weight)
        for part in (self.in_proj, self.gate_proj, self.out_proj):
            if part is not None and part.bias is not None:
                nn.init.zeros_(part.bias)
        if self.erase_bias and self.gate_proj is not None:
            nn.init.constant_(self.gate_proj.bias.detach()[-self.writes_per_token * self.num_heads :], self.erase_bias)
        if self.decay_bias is not None:
            forgotten = 2.0 ** -(5 + torch.arange(self.num_heads, dtype=torch.float64))
            with torch.no_grad():
                self.decay_bias.copy_(torch.logit(1 - forgotten, eps=1e-9))
        if self.decay_proj is not None:
            nn.init.xavier_uniform_(self.decay_proj.weight)
        for module in (self.conv, self.output_norm):
            if module is not None:
                module.reset_parameters()

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return the output for every token, in the shape of ``x``.

        Args:
            x: ``(T, B, E)``, or ``(B, T, E)`` with ``batch_first``; or one sequence ``(T, E)``.
            key_padding_mask: ``(B, T)``, or ``(T,)`` for one sequence, as in torch: True, or -inf in a float mask, is padding.
                Padding is not written, its outputs are those of an empty read, and its values (NaN included) affect neither
                outputs nor gradients. A sequence of only padding gives no NaN.
            is_causal: a token reads only what it and earlier tokens wrote.

        Raises:
            TypeError: not a tensor of the dtype of the weights (under autocast: of a floating dtype), or a mask neither bool
                nor float.
            ValueError: shapes or devices do not fit, or a float mask with other values than 0 and -inf.
        """
        if isinstance(x, Tensor) and x.dim() == 2:
            padding = key_padding_mask.unsqueeze(0) if isinstance(key_padding_mask, Tensor) else key_padding_mask
            batch_dim = 0 if self.batch_first else 1
            return self.forward(x.unsqueeze(batch_dim), padding, is_causal).squeeze(batch_dim)
        tokens, mask = self._batch_first("NAMAttention", x, key_padding_mask)
        return self._attend(tokens, self.init_state(tokens.shape[0]), mask, is_causal)[0]

    def init_state(self, batch_size: int) -> AttentionState:
        """Return the state of ``batch_size`` sequences before their first token."""
        weight, width = self.out_proj.weight, self.embed_dim // self.num_heads
        memory = weight.new_zeros(batch_size, self.num_heads, width, width, dtype=_working_dtype(weight))
        tokens = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        return _state(memory, tokens, None if self.conv is None else self.conv.init_state(batch_size))

    def extend(
        self, x: Tensor, state: AttentionState, key_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Return the causal outputs for further tokens, and the state after them; ``state`` does not change.

        Any sequence of ``extend`` and ``step`` gives the results of one causal ``forward`` over all tokens.

        Args:
            x: ``(T, B, E)``, or ``(B, T, E)`` with ``batch_first``.
            state: a result of ``init_state``, ``extend`` or ``step``.
            key_padding_mask: ``(B, T)``, see ``forward``.

        Raises:
            TypeError: as ``forward``, or ``state`` is no state.
            ValueError: as ``forward``, or the shapes of the state do not fit.
        """
        tokens, mask = self._batch_first("NAMAttention.extend", x, key_padding_mask)
        self._check_state("NAMAttention.extend", state, tokens.shape[0])
        return self._attend(tokens, state, mask, causal=True)

    def step(self, x: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Return the causal output for one further token of every sequence, and the state after it, at a constant cost.

        Args:
            x: ``(B, E)``.
            state: a result of ``init_state``, ``extend`` or ``step``. It does not change.

        Returns:
            ``(B, E)`` and the new state.

        Raises:
            TypeError: not a tensor of the dtype of the weights (under autocast: of a floating dtype), or ``state`` is no state.
            ValueError: shapes or devices of ``x`` or the state do not fit.
        """
        check_tokens("NAMAttention.step", "x", x, ("B", self.embed_dim), self.in_proj.weight)
        self._check_state("NAMAttention.step", state, x.shape[0])
        projected, recent = self.in_proj(x), _recent(state)
        if self.conv is not None and recent is not None:
            projected, recent = self.conv.step(projected, recent)
        q, k, v, p_read, p_write, p_erase = self._split(projected, x)
        outputs, memory, kept = q, state.memory, self._kept(x)
        for i in range(self.writes_per_token):
            now_write = None if p_write is None else p_write[:, i]
            now_erase = 0.0 if p_erase is None else p_erase[:, i]
            now_kept = kept if i == 0 else None
            outputs, memory = memory_step(memory, q, k[:, i], v[:, i], p_read, now_write, now_erase, decay=now_kept)
        tokens = state.tokens + 1
        outputs = _scaled(outputs.unsqueeze(1), self.scale, tokens.unsqueeze(1)).squeeze(1)
        return self._join(outputs), _state(memory, tokens, recent)

    def extra_repr(self) -> str:
        """Return the settings, as printed with the module."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, erase={self.erase}, gates={self.gates}, "
            f"scale={self.scale}, backend={self.backend}, batch_first={self.batch_first}"
            + (f", max_erase={self.max_erase}" if self.max_erase != 1 else "")
            + (f", gate={self.gate}" if self.gate != "sigmoid" else "")
            + (f", writes_per_token={self.writes_per_token}" if self.writes_per_token != 1 else "")
            + (f", erase_bias={self.erase_bias}" if self.erase_bias else "")
            + (f", decay={self.decay}" if self.decay is not None else "")
        )

    def _batch_first(self, where: str, x: Tensor, key_padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return ``x``, checked and with zeros at padding, as ``(B, T, E)``; and a mask ``(B, T)``, True at tokens, or None."""
        x, padding = without_padding(where, "x", x, key_padding_mask, self.batch_first, self.in_proj.weight)
        return x if self.batch_first else x.transpose(0, 1), None if padding is None else ~padding

    def _attend(
        self, x: Tensor, state: AttentionState, mask: Tensor | None, causal: bool
    ) -> tuple[Tensor, AttentionState]:
        """Return the outputs for ``x`` ``(B, T, E)``, in the layout that ``batch_first`` says, and the state after them."""
        projected, recent = self.in_proj(x), _recent(state)
        if self.conv is not None:
            projected, recent = self.conv(projected, recent, mask)
        q, k, v, p_read, p_write, p_erase = self._split(projected, x)
        kept = self._kept(x)
        k, v = k.flatten(1, 2), v.flatten(1, 2)
        p_write, p_erase = (None if gate is None else gate.flatten(1, 2) for gate in (p_write, p_erase))
        if p_erase is None and kept is None:
            outputs, memory = outer_product_attention(
                q, k, v, p_read, p_write, mask=mask, causal=causal, initial_memory=state.memory, backend=self.backend
            )
        else:
            # To the scan every write is a token of its own; what counts is read after the last one of a token.
            writes = self.writes_per_token
            if kept is not None and writes > 1:  # the memory fades before the first write of a token
                later = torch.ones_like(kept).unsqueeze(2).expand(-1, -1, writes - 1, -1)
                kept = torch.cat([kept.unsqueeze(2), later], dim=2).flatten(1, 2)
            outputs, memory = memory_scan(
                *(_repeated(q, writes), k, v),
                *(_repeated(p_read, writes), p_write, 0.0 if p_erase is None else p_erase),
                decay=kept,
                initial_memory=state.memory,
                mask=_repeated(mask, writes),
                backend=self.backend,
            )
            outputs = outputs[:, writes - 1 :: writes]
            if not causal:
                nothing = k[:, :0], v[:, :0]
                outputs, _ = outer_product_attention(q, *nothing, p_read, initial_memory=memory)
        outputs = _scaled(outputs, self.scale, state.tokens.unsqueeze(1) + _count_tokens(x, mask, causal))
        if mask is not None and not causal:
            outputs = outputs.masked_fill(~mask[:, :, None, None], 0.0)
        outputs = self._join(outputs)
        tokens = state.tokens + _count_tokens(x, mask, causal=False).squeeze(1)
        state = _state(memory, tokens, recent)
        return outputs if self.batch_first else outputs.transpose(0, 1), state

    def _split(
        self, projected: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Return unit queries, unit keys and values, then read, write and erase gates or None.

        Queries are ``(..., H, D)`` and their gates ``(..., H)``; the others have a dimension for the ``n`` writes of a token,
        ``(..., n, H, D)`` and ``(..., n, H)``.

        Args:
            projected: queries, keys and values ``(..., (1 + 2 n) E)``.
            x: the tokens ``(..., E)``, of which the gates are.
        """
        writes = self.writes_per_token
        heads = torch.unflatten(projected, -1, (1 + 2 * writes, self.num_heads, -1))
        working = _working_dtype(heads)
        # Vectors are normalised in float32; the products may be in half precision, which is fast on a GPU.
        units = unit(heads[..., : 1 + writes, :, :].to(working)).to(heads.dtype)
        q, k, v = units[..., 0, :, :], units[..., 1:, :, :], heads[..., 1 + writes :, :, :]
        p_read: Tensor | None = None
        p_write: Tensor | None = None
        p_erase: Tensor | None = None
        if self.gate_proj is not None:
            found = torch.unflatten(self.gate_proj(x).to(working), -1, (-1, self.num_heads))
            found = learned_gate(found, self.gate)
            if self.gates:
                p_read, p_write, found = found[..., 0, :], found[..., 1 : 1 + writes, :], found[..., 1 + writes :, :]
            if self.erase:
                p_erase = found * self.max_erase
        return q, k, v, p_read, p_write, p_erase

    def _kept(self, x: Tensor) -> Tensor | None:
        """Return the factors ``(..., H)`` of the memory before the writes of tokens ``(..., E)``, or None for 1."""
        if self.decay_bias is None:
            return None
        logits = self.decay_bias.to(_working_dtype(self.decay_bias))
        if self.decay_proj is None:
            return logits.sigmoid().expand(*x.shape[:-1], self.num_heads)
        return (self.decay_proj(x).to(logits.dtype) + logits).sigmoid()

    def _join(self, outputs: Tensor) -> Tensor:
        """Return the heads' outputs ``(..., H, D)`` as one ``(..., E)``."""
        if self.output_norm is not None:
            outputs = self.output_norm(outputs.to(self.output_norm.weight.dtype))
        return self.out_proj(outputs.flatten(-2).to(self.out_proj.weight.dtype))

    def _check_state(self, where: str, state: object, batch_size: int) -> None:
        if not isinstance(state, (NAMAttentionState, ConvolvedAttentionState)):
            raise TypeError(f"{where}: state must be a NAMAttentionState, of init_state, got {type(state).__name__}")
        width = self.embed_dim // self.num_heads
        memory, tokens, recent = state.memory, state.tokens, _recent(state)
        check_tensor(where, "the state's memory", memory, (batch_size, self.num_heads, width, width))
        if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64 or tokens.shape != (batch_size,):
            kind = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"{where}: the state's tokens must be an int64 tensor ({batch_size},), got {kind}")
        check_alike(where, dtype=False, weights=self.out_proj.weight, memory=memory, tokens=tokens, recent=recent)
        if (recent is None) != (self.conv is None):
            raise ValueError(f"{where}: the state's recent tokens are for a convolution: use init_state of this module")
        if recent is not None and self.conv is not None:
            wanted = (batch_size, self.conv.width - 1, self.conv.channels)
            check_tensor(where, "the state's recent tokens", recent, wanted)


def _state(memory: Tensor, tokens: Tensor, recent: Tensor | None) -> AttentionState:
    return NAMAttentionState(memory, tokens) if recent is None else ConvolvedAttentionState(memory, tokens, recent)


def _recent(state: AttentionState) -> Tensor | None:
    return state.recent if isinstance(state, ConvolvedAttentionState) else None


def learned_gate(x: Tensor, kind: GateKind = "sigmoid") -> Tensor:
    """Return a gate in [0, 1] for its logit.

    ``"sigmoid"`` reaches neither 0 nor 1, so a memory that should be kept or reflected fades over a long sequence, and what
    should not be written leaks into it. ``"hard"`` is ``min(max(x / 6 + 1 / 2, 0), 1)``, the hard sigmoid of Courbariaux et al.
    ("BinaryConnect", 2015), which is exactly 0 or 1 beyond +-3. Its gradient is that of the sigmoid everywhere (a straight-through
    estimate, Bengio et al., arXiv 1308.3432): the gradient of the hard form itself would be 0 beyond +-3, and a gate that has
    reached a bound could not leave it.

    Args:
        x: the logits, of any shape.
        kind: ``"sigmoid"`` or ``"hard"``.
    """
    soft = x.sigmoid()
    if kind == "sigmoid":
        return soft
    return F.hardsigmoid(x.detach()) + (soft - soft.detach())


def _gated(vectors: Tensor, gate: Gate | None) -> Tensor:
    """Return vectors ``(B, T, H, D)`` times their gates ``(B, T, H)``."""
    if gate is None:
        return vectors
    return vectors * (gate.to(vectors.dtype).unsqueeze(-1) if isinstance(gate, Tensor) else gate)


@overload
def _repeated(x: Tensor, times: int) -> Tensor: ...


@overload
def _repeated(x: Tensor | None, times: int) -> Tensor | None: ...


def _repeated(x: Tensor | None, times: int) -> Tensor | None:
    """Return ``x`` ``(B, T, ...)`` with every token ``times`` times."""
    return x if x is None or times == 1 else x.repeat_interleave(times, 1)


def _count_tokens(x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Return how many tokens are in the memory that is read: ``(B, S)`` for each query if ``causal``, else ``(B, 1)`` for all."""
    present = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
    return present.cumsum(1) if causal else present.sum(1, keepdim=True)


def _scaled(outputs: Tensor, scale: Scale, tokens: Tensor) -> Tensor:
    """Return ``(B, T, H, D)`` outputs times ``scale``, given ``(B, T)`` or ``(B, 1)`` counts of tokens."""
    if scale is None:
        return outputs
    if isinstance(scale, str):
        # Counted in float32 at least: the largest float16 is 65504. Where there is no token the read is 0, divided by 1.
        count = tokens[:, :, None, None].clamp_min(1).to(_working_dtype(outputs))
        return (outputs / (count if scale == "1/S" else count.sqrt())).to(outputs.dtype)
    return outputs * scale


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _check_scale(where: str, scale: object) -> None:
    if not (scale is None or isinstance(scale, (int, float)) or scale in ("1/S", "1/sqrt(S)")):
        raise ValueError(f'{where}: scale must be None, a number, "1/S" or "1/sqrt(S)", got {scale!r}')


def _check_arguments(
    q: Tensor, k: Tensor, v: Tensor, p_read: object, p_write: object, mask: Tensor | None, initial_memory: Tensor | None
) -> None:
    where = "outer_product_attention"
    check_tensor(where, "q", q, ("B", "T", "H", "D_k"))
    batch, _, heads, d_k = q.shape
    check_tensor(where, "k", k, (batch, "S", heads, d_k))
    check_tensor(where, "v", v, (batch, k.shape[1], heads, "D_v"))
    check_alike(where, q=q, k=k, v=v)
    gates = {"p_read": (p_read, q.shape[1]), "p_write": (p_write, k.shape[1])}
    for name, (gate, length) in gates.items():
        if gate is not None and not isinstance(gate, (int, float)):
            check_tensor(where, name, gate, (batch, length, heads))
    if mask is not None:
        check_mask(where, "mask", mask, (batch, k.shape[1]))
    if initial_memory is not None:
        check_tensor(where, "initial_memory", initial_memory, (batch, heads, v.shape[-1], d_k))
    tensors = {name: gate for name, (gate, _) in gates.items() if isinstance(gate, Tensor)}
    check_alike(where, dtype=False, q=q, mask=mask, initial_memory=initial_memory, **tensors)

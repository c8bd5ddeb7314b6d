"""The decoder of a NAM-Transformer: self-attention and cross-attention through memories, called like torch's decoder layer.

Cross-attention writes the source into one memory for each head, once, and every target token reads it: with unit keys and queries
``M = sum_s p_w,s v_s k_s^T`` and ``out_t = p_r,t M q_t``, or with ``erase`` the full rule, in the order of the source. A target
token costs the same for any length of source and target.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422), whose sequence models read the encoder's memory; the layer around
it is that of ``torch.nn.TransformerDecoderLayer``.

Legend: ``B`` sequences, ``T`` target tokens, ``S`` source tokens, ``H`` heads, ``E`` width of a token, ``D = E / H``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.memory.attention import AttentionState, Decay, NAMAttention, Scale, outer_product_attention
from fewshot_nam.memory.padding import check_tokens, without_padding
from fewshot_nam.memory.primitives import NORM_EPS, unit
from fewshot_nam.memory.scan.scan import BACKENDS, memory_scan
from fewshot_nam.memory.torch_modes import full_precision
from fewshot_nam.memory.transformer import ACTIVATIONS, is_causal_mask
from fewshot_nam.memory.validation import check_alike, check_max_erase, check_tensor


class NAMDecoderState(NamedTuple):
    """The state of a decoder layer after some target tokens. Its size does not depend on their number."""

    self_attention: AttentionState
    """Of the target tokens so far."""
    source: Tensor
    """``(B, H, D, D)``: the memory of the source."""


class NAMCrossAttention(nn.Module):
    """Attention of target tokens to a source through one memory for each head.

    Args:
        embed_dim: ``E``, the width of source and target tokens, a multiple of ``num_heads``.
        num_heads: ``H``.
        erase: write the source in order with a learned erase gate, so that a repeated key keeps its last value.
        gates: learn read and write gates.
        max_erase: the largest erase gate, above 0 and at most 2. Only with ``erase``.
        output_norm: normalise the read of each head (``torch.nn.RMSNorm``). Without ``erase`` reads grow with the source.
        backend: how the source is scanned with ``erase``, see ``memory_scan``.
        bias: whether the projections have a bias.
        batch_first: ``(B, T, E)`` instead of ``(T, B, E)``, for source and target.
        device: where the parameters are.
        dtype: dtype of the parameters.

    Raises:
        ValueError: sizes or options that do not fit.

    Example:
        >>> attention = NAMCrossAttention(16, 4, batch_first=True)
        >>> memory = attention.write(torch.randn(2, 7, 16))  # the source, once
        >>> attention(torch.randn(2, 5, 16), memory).shape
        torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        erase: bool = False,
        gates: bool = False,
        max_erase: float = 1.0,
        output_norm: bool = False,
        backend: str = "auto",
        bias: bool = True,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"NAMCrossAttention: embed_dim must be a positive multiple of num_heads, got {embed_dim} and {num_heads}"
            )
        if backend not in BACKENDS:
            raise ValueError(f"NAMCrossAttention: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        check_max_erase("NAMCrossAttention", max_erase)
        if max_erase != 1.0 and not erase:
            raise ValueError(f"NAMCrossAttention: max_erase belongs to erase=True, got {max_erase} with erase=False")
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.erase, self.gates, self.max_erase = erase, gates, float(max_erase)
        self.backend, self.batch_first = backend, batch_first
        self.query_proj = nn.Linear(embed_dim, embed_dim, bias, device, dtype)
        self.source_proj = nn.Linear(embed_dim, 2 * embed_dim, bias, device, dtype)
        source_gates = num_heads * (gates + erase)
        self.source_gate_proj = nn.Linear(embed_dim, source_gates, bias, device, dtype) if source_gates else None
        self.read_gate_proj = nn.Linear(embed_dim, num_heads, bias, device, dtype) if gates else None
        size = embed_dim // num_heads
        self.output_norm = nn.RMSNorm(size, NORM_EPS, device=device, dtype=dtype) if output_norm else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise weights Xavier-uniformly (queries, keys, values and outputs each) and biases to 0: gates start at 1/2."""
        for weight in (self.query_proj.weight, *self.source_proj.weight.detach().chunk(2), self.out_proj.weight):
            nn.init.xavier_uniform_(weight)
        for gates in (self.source_gate_proj, self.read_gate_proj):
            if gates is not None:
                nn.init.xavier_uniform_(gates.weight)
        for part in self.children():
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
        if self.output_norm is not None:
            self.output_norm.reset_parameters()

    def write(self, source: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Return the memory ``(B, H, D, D)`` of a source, in float32 at least.

        Args:
            source: ``(S, B, E)``, or ``(B, S, E)`` with ``batch_first``.
            key_padding_mask: ``(B, S)``: True, or -inf in a float mask, is padding, which is not written.

        Raises:
            TypeError: not a tensor of the dtype of the weights (under autocast: of a floating dtype), or another kind of mask.
            ValueError: shapes or devices do not fit.
        """
        where = "NAMCrossAttention.write"
        if isinstance(source, Tensor) and source.dim() != 3:
            check_tensor(where, "source", source, (*("BS" if self.batch_first else "SB"), self.embed_dim))
        source, padding = without_padding(
            where, "source", source, key_padding_mask, self.batch_first, self.source_proj.weight
        )
        source = source if self.batch_first else source.transpose(0, 1)
        mask = None if padding is None else ~padding
        heads = torch.unflatten(self.source_proj(source), -1, (2, self.num_heads, -1))
        working = torch.promote_types(heads.dtype, torch.float32)
        k, v = unit(heads[..., 0, :, :].to(working)).to(heads.dtype), heads[..., 1, :, :]
        p_write: Tensor | None = None
        p_erase: Tensor | None = None
        if self.source_gate_proj is not None:
            learned = self.source_gate_proj(source).to(working).sigmoid()
            *first, last = torch.unflatten(learned, -1, (-1, self.num_heads)).unbind(-2)
            p_write = (*first, last)[0] if self.gates else None
            p_erase = self.max_erase * last if self.erase else None
        if p_erase is None:
            nothing = k[:, :0]
            return outer_product_attention(nothing, k, v, None, p_write, mask=mask)[1]
        return memory_scan(k, k, v, None, p_write, p_erase, mask=mask, backend=self.backend)[1]

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Return what every target token reads, in the shape of ``x``.

        Args:
            x: ``(T, B, E)``, or ``(B, T, E)`` with ``batch_first``; or one token of each sequence, ``(B, E)``.
            memory: ``(B, H, D, D)``, the result of ``write``.

        Raises:
            TypeError: not a tensor of the dtype of the weights (under autocast: of a floating dtype).
            ValueError: shapes or devices do not fit.
        """
        where = "NAMCrossAttention"
        one_token = isinstance(x, Tensor) and x.dim() == 2
        layout = "B" if one_token else "BT" if self.batch_first else "TB"
        check_tokens(where, "x", x, (*layout, self.embed_dim), self.query_proj.weight)
        width = self.embed_dim // self.num_heads
        batch = x.shape[0] if one_token or self.batch_first else x.shape[1]
        check_tensor(where, "memory", memory, (batch, self.num_heads, width, width))
        check_alike(where, dtype=False, x=x, memory=memory)
        q = torch.unflatten(self.query_proj(x), -1, (self.num_heads, width))
        p_read = None if self.read_gate_proj is None else self.read_gate_proj(x).to(memory.dtype).sigmoid()
        letters = "bhk" if one_token else "bthk" if self.batch_first else "tbhk"
        with full_precision(x.device):
            outputs = torch.einsum(f"bhvk,{letters}->{letters[:-1]}v", memory, unit(q.to(memory.dtype)))
            if p_read is not None:
                outputs = outputs * p_read.unsqueeze(-1)
            if self.output_norm is not None:
                outputs = self.output_norm(outputs.to(self.output_norm.weight.dtype))
        return self.out_proj(outputs.flatten(-2).to(self.out_proj.weight.dtype))

    def extra_repr(self) -> str:
        """Return the settings, as printed with the module."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, erase={self.erase}, gates={self.gates}, "
            f"max_erase={self.max_erase}, backend={self.backend}, batch_first={self.batch_first}"
        )


class NAMTransformerDecoderLayer(nn.Module):
    """A layer of a NAM-Transformer decoder, with the interface of ``torch.nn.TransformerDecoderLayer``.

    Self-attention, cross-attention and a feed-forward part, each added to its input and followed by a layer norm (or, with
    ``norm_first``, preceded by it). It works inside ``torch.nn.TransformerDecoder``. For generation, ``init_state`` reads the
    source once, and ``extend`` and ``step`` continue at a constant cost per token.

    Args:
        d_model: width of a token, a multiple of ``nhead``.
        nhead: heads, each with its own memory.
        dim_feedforward: width of the hidden layer.
        dropout: probability of dropping a feature of the outputs of attentions, hidden layer and feed-forward part.
        activation: "relu", "gelu" or a function of one tensor.
        layer_norm_eps: eps of the layer norms.
        batch_first: ``(B, T, d_model)`` in and out. Default, as in torch: ``(T, B, d_model)``.
        norm_first: normalise before attentions and feed-forward part instead of after.
        bias: whether linear layers and norms have a bias.
        device: where the parameters are made.
        dtype: their dtype.
        erase: write tokens in order with a learned erase probability, in both attentions, see ``NAMAttention``; likewise below.
        gates: learn read and write probabilities.
        scale: a factor of the reads of self-attention.
        conv_size: width of a short causal convolution in self-attention.
        max_erase: the largest erase gate, up to 2.
        decay: how the memory of self-attention fades, see ``NAMAttention``.
        output_norm: normalise the reads of each head.
        backend: how sequences are scanned, see ``memory_scan``.

    Raises:
        ValueError: sizes or options that do not fit.

    Example:
        >>> layer = NAMTransformerDecoderLayer(d_model=16, nhead=4, batch_first=True).eval()
        >>> layer(torch.randn(2, 5, 16), torch.randn(2, 7, 16), tgt_is_causal=True).shape
        torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        erase: bool = False,
        gates: bool = False,
        scale: Scale = None,
        conv_size: int | None = None,
        max_erase: float = 1.0,
        decay: Decay = None,
        output_norm: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if isinstance(activation, str):
            if activation not in ACTIVATIONS:
                raise ValueError(
                    f"NAMTransformerDecoderLayer: activation must be one of {', '.join(ACTIVATIONS)}, or a function, "
                    f"got {activation!r}"
                )
            activation = ACTIVATIONS[activation]
        self.self_attn = NAMAttention(
            d_model,
            nhead,
            erase=erase,
            gates=gates,
            scale=scale,
            conv_size=conv_size,
            max_erase=max_erase,
            decay=decay,
            output_norm=output_norm,
            backend=backend,
            bias=bias,
            batch_first=batch_first,
            device=device,
            dtype=dtype,
        )
        self.cross_attn = NAMCrossAttention(
            d_model,
            nhead,
            erase=erase,
            gates=gates,
            max_erase=max_erase,
            output_norm=output_norm,
            backend=backend,
            bias=bias,
            batch_first=batch_first,
            device=device,
            dtype=dtype,
        )
        self.linear1 = nn.Linear(d_model, dim_feedforward, bias, device, dtype)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(dim_feedforward, d_model, bias, device, dtype)
        self.norm_first, self.activation = norm_first, activation
        self.norm1, self.norm2, self.norm3 = (
            nn.LayerNorm(d_model, layer_norm_eps, bias=bias, device=device, dtype=dtype) for _ in range(3)
        )
        self.dropout1, self.dropout2, self.dropout3 = (nn.Dropout(dropout) for _ in range(3))

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Return the target tokens after this layer, in the shape of ``tgt``.

        Args:
            tgt: ``(T, B, d_model)``, or ``(B, T, d_model)`` with ``batch_first``.
            memory: the source, the outputs of an encoder, ``(S, B, d_model)`` or ``(B, S, d_model)``.
            tgt_mask: None, or the causal ``(T, T)`` mask, see ``NAMTransformerEncoderLayer``.
            memory_mask: None: every target token reads the whole source.
            tgt_key_padding_mask: ``(B, T)``: True, or -inf in a float mask, is padding.
            memory_key_padding_mask: ``(B, S)``, likewise for the source.
            tgt_is_causal: a target token reads only what it and earlier target tokens wrote.
            memory_is_causal: must be False.

        Raises:
            TypeError: not tensors of the dtype of the weights (under autocast: of a floating dtype), or another kind of mask.
            ValueError: shapes or devices do not fit, or a mask that hides something else.
        """
        where = "NAMTransformerDecoderLayer"
        if memory_mask is not None or memory_is_causal:
            raise ValueError(
                f"{where}: memory_mask must be None and memory_is_causal False: the source is one memory without scores to "
                "mask; for padding use memory_key_padding_mask"
            )
        check_tensor(where, "tgt", tgt, (*("BT" if self.self_attn.batch_first else "TB"), "E"))
        tgt, padding = self._without_padding(where, tgt, tgt_key_padding_mask)
        causal = is_causal_mask(where, tgt, self.self_attn.batch_first, tgt_mask, tgt_is_causal)
        source = self.cross_attn.write(memory, memory_key_padding_mask)
        return self._run(tgt, source, lambda x: (self.self_attn(x, padding, causal), None))[0]

    def init_state(self, memory: Tensor, memory_key_padding_mask: Tensor | None = None) -> NAMDecoderState:
        """Return the state before the first target token, for a source as in ``forward``."""
        source = self.cross_attn.write(memory, memory_key_padding_mask)
        return NAMDecoderState(self.self_attn.init_state(source.shape[0]), source)

    def extend(
        self, tgt: Tensor, state: NAMDecoderState, tgt_key_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, NAMDecoderState]:
        """Return the causal outputs for further target tokens, in the layout of ``forward``, and the state after them."""
        tgt, padding = self._without_padding("NAMTransformerDecoderLayer.extend", tgt, tgt_key_padding_mask)
        x, after = self._run(tgt, state.source, lambda x: self.self_attn.extend(x, state.self_attention, padding))
        return x, NAMDecoderState(after, state.source)

    def step(self, tgt: Tensor, state: NAMDecoderState) -> tuple[Tensor, NAMDecoderState]:
        """Return the causal output ``(B, d_model)`` for one further target token of each sequence, and the next state."""
        x, after = self._run(tgt, state.source, lambda x: self.self_attn.step(x, state.self_attention))
        return x, NAMDecoderState(after, state.source)

    def extra_repr(self) -> str:
        """Return the setting that the printed submodules do not show."""
        return f"norm_first={self.norm_first}"

    def _without_padding(self, where: str, tgt: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return ``tgt``, checked and with zeros at padding, and the padding as a boolean mask."""
        return without_padding(where, "tgt", tgt, mask, self.self_attn.batch_first, self.self_attn.in_proj.weight)

    def _run(
        self, x: Tensor, source: Tensor, attend: Callable[[Tensor], tuple[Tensor, AttentionState | None]]
    ) -> tuple[Tensor, AttentionState]:
        """Return the output of the layer with ``attend`` as its self-attention, and the state that ``attend`` returns."""
        first = self.norm_first
        attended, state = attend(self.norm1(x) if first else x)
        x = x + self.dropout1(attended)
        x = x if first else self.norm1(x)
        x = x + self.dropout2(self.cross_attn(self.norm2(x) if first else x, source))
        x = x if first else self.norm2(x)
        hidden = self.dropout(self.activation(self.linear1(self.norm3(x) if first else x)))
        x = x + self.dropout3(self.linear2(hidden))
        return x if first else self.norm3(x), state  # type: ignore[return-value]

"""The NAM-Transformer: torch's Transformer encoder with a memory in place of the T x T scores, causal on request.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422, and the ICLR-2023 submission of that name): a Transformer whose
attention is ``Out = mu(Q) (mu(K)^T V)``: see ``attention``. The rest of the layer, and how it is constructed and called, is that of
``torch.nn.TransformerEncoderLayer``. (The authors' long-range experiments use ``norm_first=True``.)

The cost is linear in the length. A causal encoder needs no cache of keys and values: ``init_state``, ``extend`` and ``step`` carry
one memory for each head and layer, whose size does not depend on the number of tokens.

Legend: ``B`` sequences, ``T`` tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.memory.attention import AttentionState, Decay, GateKind, NAMAttention, Scale
from fewshot_nam.memory.padding import check_tokens, without_padding

_State = TypeVar("_State")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class NAMTransformerEncoderLayer(nn.Module):
    """A layer of a NAM-Transformer encoder, with the interface of ``torch.nn.TransformerEncoderLayer``.

    ``x = norm1(x + attention(x))``, ``x = norm2(x + linear2(activation(linear1(x))))``; with ``norm_first``,
    ``x = x + attention(norm1(x))``, ``x = x + linear2(activation(linear1(norm2(x))))``. It also works inside
    ``torch.nn.TransformerEncoder`` (with ``enable_nested_tensor=False``: nested tensors are not supported).

    Args:
        d_model: width of a token, a multiple of ``nhead``.
        nhead: heads, each with its own memory.
        dim_feedforward: width of the hidden layer.
        dropout: probability of dropping a feature of the outputs of attention, hidden layer and feed-forward part. There are no
            attention weights to drop.
        activation: "relu", "gelu" or a function of one tensor.
        layer_norm_eps: eps of the layer norms.
        batch_first: ``(B, T, d_model)`` in and out. Default, as in torch: ``(T, B, d_model)``.
        norm_first: normalise before attention and feed-forward part instead of after.
        bias: whether linear layers and norms have a bias.
        device: where the parameters are made.
        dtype: their dtype.
        erase: write tokens in order with a learned erase probability, see ``NAMAttention``.
        gates: learn read and write probabilities, see ``NAMAttention``.
        scale: a factor of the reads, see ``NAMAttention``.
        conv_size: width of a short causal convolution, see ``NAMAttention``.
        max_erase: the largest erase gate, up to 2, see ``NAMAttention``.
        decay: ``"head"`` or ``"token"``: learned factors by which the memory fades, see ``NAMAttention``.
        output_norm: normalise the reads of each head, see ``NAMAttention``.
        gate: ``"sigmoid"``, or ``"hard"`` for gates that reach their bounds, see ``NAMAttention``.
        writes_per_token: pairs that each token writes, see ``NAMAttention``.
        erase_bias: bias of the erase gates before training, see ``NAMAttention``.
        backend: how sequences are scanned, see ``memory_scan``.

    Raises:
        ValueError: sizes, scale, backend or activation that do not fit.

    Example:
        >>> layer = NAMTransformerEncoderLayer(d_model=16, nhead=4, batch_first=True).eval()
        >>> layer(torch.randn(2, 5, 16), is_causal=True).shape
        torch.Size([2, 5, 16])
    """

    __constants__ = ["norm_first"]  # noqa: RUF012  (torch's own word for it)

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
        gate: GateKind = "sigmoid",
        writes_per_token: int = 1,
        erase_bias: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if isinstance(activation, str):
            if activation not in ACTIVATIONS:
                raise ValueError(
                    f"NAMTransformerEncoderLayer: activation must be one of {', '.join(ACTIVATIONS)}, or a function, "
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
            gate=gate,
            writes_per_token=writes_per_token,
            erase_bias=erase_bias,
            backend=backend,
            bias=bias,
            batch_first=batch_first,
            device=device,
            dtype=dtype,
        )
        self.linear1 = nn.Linear(d_model, dim_feedforward, bias, device, dtype)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(dim_feedforward, d_model, bias, device, dtype)
        self.norm_first = norm_first
        self.norm1 = nn.LayerNorm(d_model, layer_norm_eps, bias=bias, device=device, dtype=dtype)
        self.norm2 = nn.LayerNorm(d_model, layer_norm_eps, bias=bias, device=device, dtype=dtype)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.activation = activation

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Return the tokens after this layer, in the shape of ``src``.

        Args:
            src: ``(T, B, d_model)``, or ``(B, T, d_model)`` with ``batch_first``; or one sequence ``(T, d_model)``.
            src_mask: None, or the causal ``(T, T)`` mask, boolean (True above the diagonal) or float (-inf above it), which
                means the same as ``is_causal``. A mask that hides nothing (all False, or 0) means the same as None. No other
                mask is possible: there are no scores to mask.
            src_key_padding_mask: ``(B, T)``, or ``(T,)`` for one sequence: True, or -inf in a float mask, is padding. Padding is
                treated as zeros: its values (NaN included) affect neither outputs nor gradients.
            is_causal: a token reads only what it and earlier tokens wrote. Unlike in torch, ``src_mask`` may be None.

        Raises:
            TypeError: not a tensor of the dtype of the weights (under autocast: of a floating dtype), or a mask of another
                dtype.
            ValueError: shapes or devices do not fit, another ``src_mask``, or a padding mask with other values than 0 and -inf.
        """
        src, padding = self._without_padding("NAMTransformerEncoderLayer", src, src_key_padding_mask)
        causal = is_causal_mask("NAMTransformerEncoderLayer", src, self.self_attn.batch_first, src_mask, is_causal)
        return self._run(src, lambda x: (self.self_attn(x, padding, causal), None))[0]

    def init_state(self, batch_size: int) -> AttentionState:
        """Return the state of ``batch_size`` sequences before their first token."""
        return self.self_attn.init_state(batch_size)

    def extend(
        self, src: Tensor, state: AttentionState, src_key_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Return the causal outputs for further tokens ``src``, in the layout of ``forward``, and the state after them."""
        src, padding = self._without_padding("NAMTransformerEncoderLayer.extend", src, src_key_padding_mask)
        return self._run(src, lambda x: self.self_attn.extend(x, state, padding))

    def step(self, src: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Return the causal output ``(B, d_model)`` for one further token ``(B, d_model)`` of each sequence, and the next state."""
        weight = self.self_attn.in_proj.weight
        check_tokens("NAMTransformerEncoderLayer.step", "src", src, ("B", weight.shape[1]), weight)
        return self._run(src, lambda x: self.self_attn.step(x, state))

    def extra_repr(self) -> str:
        """Return the setting that the printed submodules do not show."""
        return f"norm_first={self.norm_first}"

    def _without_padding(self, where: str, src: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return ``src``, checked and with zeros at padding, and the padding as a boolean mask."""
        return without_padding(where, "src", src, mask, self.self_attn.batch_first, self.self_attn.in_proj.weight)

    def _run(self, src: Tensor, attend: Callable[[Tensor], tuple[Tensor, _State]]) -> tuple[Tensor, _State]:
        """Return the output of the layer with ``attend`` as its attention, and the state that ``attend`` returns."""
        attended, state = attend(self.norm1(src) if self.norm_first else src)
        x = src + self.dropout1(attended)
        if self.norm_first:
            return x + self._feed_forward(self.norm2(x)), state
        x = self.norm1(x)
        return self.norm2(x + self._feed_forward(x)), state

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class NAMTransformerEncoder(nn.Module):
    """A stack of NAM-Transformer layers with the interface of ``torch.nn.TransformerEncoder``, causal on request.

    The arguments of torch for nested tensors, ``enable_nested_tensor`` and ``mask_check``, do not exist here.

    Args:
        encoder_layer: the layer of which all layers are deep copies, so that they start with equal parameters, as in torch.
        num_layers: the number of layers.
        norm: applied to the outputs, usually ``nn.LayerNorm(d_model)`` with ``norm_first`` layers. Default: none.

    Raises:
        TypeError: the layer is of another class.
        ValueError: ``num_layers`` is below 1.

    Example:
        >>> layer = NAMTransformerEncoderLayer(d_model=16, nhead=2, batch_first=True)
        >>> encoder = NAMTransformerEncoder(layer, num_layers=2).eval()
        >>> x = torch.randn(3, 5, 16)
        >>> encoder(x, is_causal=True).shape
        torch.Size([3, 5, 16])
        >>> output, state = encoder.step(x[:, 0], encoder.init_state(3))  # token by token, at a constant cost
        >>> output.shape
        torch.Size([3, 16])
    """

    def __init__(
        self, encoder_layer: NAMTransformerEncoderLayer, num_layers: int, norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        if not isinstance(encoder_layer, NAMTransformerEncoderLayer):
            raise TypeError(
                "NAMTransformerEncoder: encoder_layer must be a NAMTransformerEncoderLayer, "
                f"got {type(encoder_layer).__name__}"
            )
        if num_layers < 1:
            raise ValueError(f"NAMTransformerEncoder: num_layers must be at least 1, got {num_layers}")
        self.layers = nn.ModuleList([copy.deepcopy(encoder_layer) for _ in range(num_layers)])
        self.batch_first = encoder_layer.self_attn.batch_first
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """Return the tokens after all layers, in the shape of ``src``.

        Args:
            src: see ``NAMTransformerEncoderLayer``, also for the masks and what is raised.
            mask: None, the causal mask, or one that hides nothing.
            src_key_padding_mask: which positions are padding.
            is_causal: a token reads only what it and earlier tokens wrote. None or False: ``mask`` decides.
        """
        where = "NAMTransformerEncoder"
        # Check the values of the masks once, not in every layer.
        src, padding = self._layers()[0]._without_padding(where, src, src_key_padding_mask)
        causal = is_causal_mask(where, src, self.batch_first, mask, bool(is_causal))
        for layer in self._layers():
            src = layer(src, src_key_padding_mask=padding, is_causal=causal)
        return src if self.norm is None else self.norm(src)

    def init_state(self, batch_size: int) -> tuple[AttentionState, ...]:
        """Return the states, one for each layer, of ``batch_size`` sequences before their first token."""
        return tuple(layer.init_state(batch_size) for layer in self._layers())

    def extend(
        self, src: Tensor, state: Sequence[AttentionState], src_key_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[AttentionState, ...]]:
        """Return the causal outputs for further tokens ``src``, in the layout of ``forward``, and the state after them.

        Any sequence of ``extend`` and ``step`` gives the results of one causal ``forward`` over all tokens.

        Args:
            src: ``(T, B, d_model)``, or ``(B, T, d_model)`` with ``batch_first``.
            state: a result of ``init_state``, ``extend`` or ``step``. It does not change.
            src_key_padding_mask: ``(B, T)``: see ``NAMTransformerEncoderLayer``.

        Raises:
            ValueError: another number of states than layers, or shapes that do not fit.
        """
        return self._stream(src, state, lambda layer, x, before: layer.extend(x, before, src_key_padding_mask))

    def step(self, src: Tensor, state: Sequence[AttentionState]) -> tuple[Tensor, tuple[AttentionState, ...]]:
        """Return the causal output for one further token of every sequence and the state after it, at a constant cost.

        Args:
            src: ``(B, d_model)``, for any ``batch_first``.
            state: a result of ``init_state``, ``extend`` or ``step``. It does not change.

        Raises:
            ValueError: another number of states than layers, or shapes that do not fit.
        """
        return self._stream(src, state, lambda layer, x, before: layer.step(x, before))

    def _layers(self) -> list[NAMTransformerEncoderLayer]:
        """Return the layers with their own type, which ``nn.ModuleList`` does not declare."""
        return cast("list[NAMTransformerEncoderLayer]", list(self.layers))

    def _stream(
        self,
        src: Tensor,
        state: Sequence[AttentionState],
        advance: Callable[[NAMTransformerEncoderLayer, Tensor, AttentionState], tuple[Tensor, AttentionState]],
    ) -> tuple[Tensor, tuple[AttentionState, ...]]:
        """Return the outputs and the states of all layers, each computed by ``advance``."""
        if len(state) != self.num_layers:
            raise ValueError(
                f"NAMTransformerEncoder: state must hold one NAMAttentionState for each of {self.num_layers} layers, as init_state "
                f"returns it, got {len(state)}"
            )
        states = []
        for layer, before in zip(self._layers(), state, strict=True):
            src, after = advance(layer, src, before)
            states.append(after)
        return src if self.norm is None else self.norm(src), tuple(states)


def is_causal_mask(where: str, src: Tensor, batch_first: bool, mask: Tensor | None, is_causal: bool) -> bool:
    """Return whether attention is causal; raise if ``mask`` hides anything but later tokens."""
    if mask is None:
        return is_causal
    length = src.shape[1 if batch_first and src.dim() == 3 else 0]
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{where}: the attention mask must be a boolean or floating tensor, got {kind}")
    # A traced call cannot read values: then is_causal decides, as in torch.
    if tuple(mask.shape) == (length, length):
        if torch.compiler.is_compiling() and is_causal:
            return True
        hidden = mask if mask.dtype == torch.bool else mask == -torch.inf
        above = torch.ones_like(hidden).triu(diagonal=1)
        if mask.dtype == torch.bool or bool(((mask == 0) | hidden).all()):
            if torch.equal(hidden, above):
                return True
            if not bool(hidden.any()):
                return is_causal
    raise ValueError(
        f"{where}: the attention mask must be None or the causal mask of shape ({length}, {length}), got shape "
        f"{tuple(mask.shape)} with other entries: NAM has one memory and no scores to mask; "
        "for padding use src_key_padding_mask"
    )

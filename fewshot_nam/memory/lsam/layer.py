"""LSAM, a recurrent network with a memory matrix for each head in place of an LSTM's cell state, called like ``torch.nn.LSTM``.

Source: Nam and Seo, "Neural Attention Memory" (the ICLR 2023 submission behind arXiv 2302.09422), the LSAM cell. For head ``i``::

    [q; k; v] = W [x; h] + b       p_w, p_r = sigmoid(W' [x; h] + b')
    M_i <- WR(M_i, unit(k_i), v_i, p_w, p_w)
    h_i  = p_r M_i unit(q_i)                       h = [h_1; ...; h_H]

These equations do not bound ``v`` and so ``h``: they grow exponentially if the recurrent weights are too large, where the gates of
an LSTM would saturate. Therefore the recurrent rows of ``v`` are initialised with a spectral norm of at most 1, with which all
sizes that we tried stayed bounded for thousands of steps. Training can leave that region: clip gradients, and use
``value_activation="tanh"`` (not in the paper) for a guaranteed bound.

Departures from the paper: both directions of a bidirectional LSAM have the full ``hidden_size``, as in ``torch.nn.LSTM`` (the
paper gives each half of the heads: ``LSAM(input_size, hidden_size // 2, num_heads=num_heads // 2, bidirectional=True)``), and
each direction has its own initial and final memory.

Legend: ``B`` sequences, ``T`` steps, ``D`` input size, ``d`` hidden size, ``H`` heads, ``L`` layers, ``R`` directions (1 or 2).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from fewshot_nam.memory.lsam.recurrence import (
    Backward,
    Ragged,
    ValueActivation,
    backwards,
    recurrence,
    step,
)
from fewshot_nam.memory.torch_modes import full_precision
from fewshot_nam.memory.validation import check_alike, check_tensor

State = tuple[Tensor, Tensor]
"""Hidden states and memories ``(h, M)``, in place of an LSTM's ``(h, c)``."""


class LSAMCell(nn.Module):
    """One step of LSAM, called like ``torch.nn.LSTMCell``: ``h, M = cell(input, (h, M))``.

    Args:
        input_size: width ``D`` of the input, at least 1.
        hidden_size: width ``d`` of the hidden state, at least 1.
        num_heads: number ``H`` of memories, which must divide ``hidden_size``; each is ``(d / H, d / H)``. Default 1.
        bias: whether there is a bias. Default True.
        value_activation: None, as in the paper, or ``"tanh"``, which bounds the values written. Default None.
        device: where the parameters are.
        dtype: dtype of the parameters.

    Attributes:
        weight_ih: ``(3 d + 2 H, D)``, rows ``[q | k | v | p_r | p_w]``, each with its heads one after another.
        weight_hh: ``(3 d + 2 H, d)``, rows in the same order.
        bias: ``(3 d + 2 H)``, or None.

    Raises:
        ValueError: a size below 1, heads that do not divide ``hidden_size``, or another activation.
    """

    bias: Tensor | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_heads: int = 1,
        bias: bool = True,
        *,
        value_activation: ValueActivation = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_options("LSAMCell", value_activation, hidden_size, num_heads, input_size=input_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.value_activation: ValueActivation = value_activation
        rows = 3 * hidden_size + 2 * num_heads
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all parameters uniformly in ``+-1 / sqrt(d)``, recurrent rows of ``v`` with a spectral norm of at most 1."""
        _reset(self)

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """Return the next ``(h, M)``.

        Args:
            input: ``(B, D)`` or ``(D)``.
            hx: ``h`` ``(B, d)`` and ``M`` ``(B, H, d / H, d / H)``, values by keys; without ``B`` for an input ``(D)``. Default:
                zeros.

        Returns:
            ``h`` in the dtype of the input, and ``M`` in float32 at least, shaped as in ``hx``.

        Raises:
            TypeError: an argument is not a tensor of the dtype of the weights (under autocast: of a floating dtype).
            ValueError: wrong shapes or devices.
        """
        _check_input("LSAMCell", input, self.weight_ih, (1, 2))
        batch, heads, width = tuple(input.shape[:-1]), self.num_heads, self.hidden_size // self.num_heads
        shapes = ((*batch, self.hidden_size), (*batch, heads, width, width))
        hidden, memory = _state("LSAMCell", hx, shapes, self.weight_hh)
        gates = F.linear(input, self.weight_ih, self.bias).to(memory.dtype)
        with full_precision(input.device):
            gates = gates + F.linear(hidden, self.weight_hh.to(memory.dtype))
            read_out, memory = step(_by_head(gates, heads), memory, self.value_activation)
        return read_out.flatten(-2).to(input.dtype), memory

    def extra_repr(self) -> str:
        """Return the sizes, and the options that are not the default."""
        options: dict[str, tuple[object, object]] = {
            "num_heads": (self.num_heads, 1),
            "bias": (self.bias is not None, True),
            "value_activation": (self.value_activation, None),
        }
        return _repr(self.input_size, self.hidden_size, options)


class LSAM(nn.Module):
    """LSAM over sequences, with the interface of ``torch.nn.LSTM`` and ``(h_n, M_n)`` in place of ``(h_n, c_n)``.

    Args:
        input_size: width ``D`` of the input, at least 1.
        hidden_size: width ``d`` of the hidden state of each direction, at least 1.
        num_layers: number ``L`` of layers; each reads the outputs of the layer below. Default 1.
        num_heads: number ``H`` of memories of a layer and direction, which must divide ``hidden_size``. Default 1.
        bias: whether there are biases. Default True.
        batch_first: whether inputs and outputs are ``(B, T, ...)`` instead of ``(T, B, ...)``. Default False.
        dropout: probability in [0, 1] of dropping outputs of all layers but the last in training. Default 0.
        bidirectional: whether there is a second direction of the same size that reads from the end. Default False.
        value_activation: None, as in the paper, or ``"tanh"``, which bounds the values written. Default None.
        backward: ``"hand"``, the fast default, keeps about ``(4 + d / 16 H) d`` numbers for each token (``d`` more with tanh)
            and runs compiled on a CPU (see ``build_kernels``); it has no second derivative. ``"autograd"`` keeps all memories and
            allows any derivative; ``torch.func`` and ``torch.export`` always use it.
        device: where the parameters are.
        dtype: dtype of the parameters.

    Attributes:
        weight_ih_l0: ``(3 d + 2 H, D)``, rows ``[q | k | v | p_r | p_w]``, each with its heads one after another. Layer ``n`` has
            ``weight_ih_ln``, the second direction ``weight_ih_ln_reverse``; likewise for the other two.
        weight_hh_l0: ``(3 d + 2 H, d)``, rows in the same order.
        bias_l0: ``(3 d + 2 H)``, if ``bias``.

    Raises:
        ValueError: a size below 1, heads that do not divide ``hidden_size``, or an option out of its range.

    Example:
        >>> lsam = LSAM(10, 20, num_layers=2, num_heads=4, batch_first=True)
        >>> output, (h_n, memory_n) = lsam(torch.randn(3, 5, 10))
        >>> output.shape, h_n.shape, memory_n.shape
        (torch.Size([3, 5, 20]), torch.Size([2, 3, 20]), torch.Size([2, 3, 4, 5, 5]))
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        num_heads: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        value_activation: ValueActivation = None,
        backward: Backward = "hand",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_options("LSAM", value_activation, hidden_size, num_heads, input_size=input_size, num_layers=num_layers)
        if not 0 <= dropout <= 1:
            raise ValueError(f"LSAM: dropout must be a probability in [0, 1], got {dropout}")
        if backward not in ("hand", "autograd"):
            raise ValueError(f'LSAM: backward must be "hand" or "autograd", got {backward!r}')
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"LSAM: dropout falls on the outputs of all layers but the last, so dropout={dropout} does nothing with one layer",
                stacklevel=2,
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.value_activation: ValueActivation = value_activation
        self.backward: Backward = backward
        rows, self._directions = 3 * hidden_size + 2 * num_heads, ("", "_reverse") if bidirectional else ("",)
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * len(self._directions)
            for direction in self._directions:
                shapes = {"weight_ih": (rows, width), "weight_hh": (rows, hidden_size), "bias": (rows,)}
                for name, shape in shapes.items():
                    if bias or name != "bias":
                        parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                        self.register_parameter(f"{name}_l{layer}{direction}", parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all parameters uniformly in ``+-1 / sqrt(d)``, recurrent rows of ``v`` with a spectral norm of at most 1."""
        _reset(self)

    def flatten_parameters(self) -> None:
        """Do nothing. It exists for code that calls this method of ``torch.nn.LSTM``."""

    @overload
    def forward(self, input: Tensor, hx: State | None = None) -> tuple[Tensor, State]: ...

    @overload
    def forward(self, input: PackedSequence, hx: State | None = None) -> tuple[PackedSequence, State]: ...

    def forward(self, input: Tensor | PackedSequence, hx: State | None = None) -> tuple[Tensor | PackedSequence, State]:
        """Return the hidden states of the last layer at all steps, and the final ``(h_n, M_n)`` of all layers.

        Args:
            input: ``(T, B, D)``, ``(B, T, D)`` if ``batch_first``, ``(T, D)`` for one sequence, or a ``PackedSequence``. ``T``
                is at least 1.
            hx: ``h`` ``(L R, B, d)`` and ``M`` ``(L R, B, H, d / H, d / H)``, values by keys, the directions of a layer next to
                each other; without ``B`` for an input ``(T, D)``. Default: zeros.

        Returns:
            Outputs in the layout and dtype of the input, with width ``R d``; and ``(h_n, M_n)`` in the shapes of ``hx``, each
            after the last token of its sequence (second direction: after the first), ``M_n`` in float32 at least.

        Raises:
            TypeError: an argument is not a tensor of the dtype of the weights (under autocast: of a floating dtype).
            ValueError: wrong shapes or devices, or no step.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        _check_input("LSAM", input, self.weight_ih_l0, (2, 3))
        one_sequence = input.dim() == 2
        batch_first = self.batch_first and not one_sequence
        x = input.unsqueeze(1) if one_sequence else input.transpose(0, 1) if batch_first else input
        if not x.shape[0]:
            raise ValueError(f"LSAM: needs at least one step, got an input of shape {tuple(input.shape)}")
        hidden, memory = self._initial(hx, () if one_sequence else (x.shape[1],))
        if one_sequence:
            hidden, memory = hidden.unsqueeze(1), memory.unsqueeze(1)
        output, (hidden, memory) = self._layers(x, hidden, memory, None)
        if one_sequence:
            return output.squeeze(1), (hidden.squeeze(1), memory.squeeze(1))
        return output.transpose(0, 1) if batch_first else output, (hidden, memory)

    def _forward_packed(self, packed: PackedSequence, hx: State | None) -> tuple[PackedSequence, State]:
        _check_input("LSAM", packed.data, self.weight_ih_l0, (2,))
        ragged = Ragged.of(packed)
        steps, batch = ragged.alive.shape
        hidden, memory = self._initial(hx, (batch,))
        if packed.sorted_indices is not None:
            hidden, memory = (x.index_select(1, packed.sorted_indices) for x in (hidden, memory))
        padded = packed.data.new_zeros(steps * batch, packed.data.shape[-1]).index_copy(0, ragged.tokens, packed.data)
        output, (hidden, memory) = self._layers(torch.unflatten(padded, 0, (steps, batch)), hidden, memory, ragged)
        if packed.unsorted_indices is not None:
            hidden, memory = (x.index_select(1, packed.unsorted_indices) for x in (hidden, memory))
        data = output.flatten(0, 1).index_select(0, ragged.tokens)
        output_packed = PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        return output_packed, (hidden, memory)

    def _initial(self, hx: State | None, batch: tuple[int, ...]) -> State:
        rows, width = self.num_layers * len(self._directions), self.hidden_size // self.num_heads
        shapes = ((rows, *batch, self.hidden_size), (rows, *batch, self.num_heads, width, width))
        return _state("LSAM", hx, shapes, self.weight_hh_l0)

    def _layers(self, x: Tensor, hidden: Tensor, memory: Tensor, ragged: Ragged | None) -> tuple[Tensor, State]:
        """Run all layers over ``x`` ``(T, B, D)``."""
        dtype, directions = x.dtype, len(self._directions)
        hiddens, memories = [], []
        states = zip(torch.split(hidden, directions), torch.split(memory, directions), strict=True)
        for layer, (first_hidden, first_memory) in enumerate(states):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            x, last_hidden, last_memory = self._layer(layer, x, first_hidden, first_memory, ragged)
            x, last_hidden = x.to(dtype), last_hidden.to(dtype)
            hiddens.append(last_hidden)
            memories.append(last_memory)
        return x, (torch.cat(hiddens), torch.cat(memories))

    def _layer(
        self, layer: int, x: Tensor, hidden: Tensor, memory: Tensor, ragged: Ragged | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the outputs ``(T, B, R d)``, last hidden states ``(R, B, d)`` and last memories of one layer."""
        weight_ih, weight_hh = self._by_head(f"weight_ih_l{layer}"), self._by_head(f"weight_hh_l{layer}")
        bias = self._by_head(f"bias_l{layer}").flatten() if self.bias else None
        # The contribution of the inputs to all gates of both directions in one product, (T, R, B, gates).
        gates = F.linear(x, weight_ih.flatten(0, 1), bias).to(memory.dtype)
        gates = torch.unflatten(gates, -1, weight_ih.shape[:2]).transpose(1, 2)
        if ragged is not None:
            gates = ragged.stop(gates, self.num_heads)
        if self.bidirectional:
            gates = torch.stack((gates[:, 0], backwards(gates[:, 1], ragged)), dim=1)
        hiddens, memory = recurrence(
            gates, weight_hh.to(memory.dtype), hidden, memory, self.value_activation, self.backward
        )
        last = hiddens[-1] if ragged is None else ragged.last(hiddens)
        if self.bidirectional:
            return torch.cat((hiddens[:, 0], backwards(hiddens[:, 1], ragged)), dim=-1), last, memory
        return hiddens.squeeze(1), last, memory

    def _by_head(self, name: str) -> Tensor:
        """Return a parameter of all directions, ``(R, 3 d + 2 H, ...)``, its rows grouped by head."""
        stacked = torch.stack([getattr(self, name + direction) for direction in self._directions])
        return _by_head(stacked.movedim(1, -1), self.num_heads).flatten(-2).movedim(-1, 1)

    def extra_repr(self) -> str:
        """Return the sizes, and the options that are not the default."""
        options: dict[str, tuple[object, object]] = {
            "num_layers": (self.num_layers, 1),
            "num_heads": (self.num_heads, 1),
            "bias": (self.bias, True),
            "batch_first": (self.batch_first, False),
            "dropout": (self.dropout, 0.0),
            "bidirectional": (self.bidirectional, False),
            "value_activation": (self.value_activation, None),
            "backward": (self.backward, "hand"),
        }
        return _repr(self.input_size, self.hidden_size, options)


def _by_head(gates: Tensor, heads: int) -> Tensor:
    """Reorder ``(..., 3 d + 2 H)``, ``[q | k | v | p_r | p_w]`` each with all heads, to ``(..., H, 3 e + 2)``."""
    vectors, probabilities = gates[..., : -2 * heads], gates[..., -2 * heads :]
    of_heads = torch.unflatten(vectors, -1, (3, heads, -1)).transpose(-3, -2).flatten(-2)
    return torch.cat([of_heads, torch.unflatten(probabilities, -1, (2, heads)).mT], dim=-1)


@torch.no_grad()
def _reset(module: LSAM | LSAMCell) -> None:
    size = module.hidden_size
    for name, parameter in module.named_parameters():
        nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)
        if name.startswith("weight_hh"):
            values = parameter[2 * size : 3 * size]
            # The decomposition needs float32 at least.
            values /= torch.linalg.matrix_norm(
                values.to(torch.promote_types(values.dtype, torch.float32)), 2
            ).clamp_min(1)


def _state(where: str, hx: State | None, shapes: tuple[tuple[int, ...], tuple[int, ...]], like: Tensor) -> State:
    """Return ``hx``, checked, or zeros, in the dtype of the recurrence: that of the weights, float32 at least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if hx is None:
        return like.new_zeros(shapes[0], dtype=dtype), like.new_zeros(shapes[1], dtype=dtype)
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        raise TypeError(f"{where}: hx must be a pair (h, M), got {type(hx).__name__}")
    for name, tensor, shape in zip(("h of hx", "M of hx"), hx, shapes, strict=True):
        check_tensor(where, name, tensor, shape)
    check_alike(where, dtype=False, weights=like, h=hx[0], M=hx[1])
    return hx[0].to(dtype), hx[1].to(dtype)


def _check_input(where: str, x: Tensor, weight: Tensor, dimensions: tuple[int, ...]) -> None:
    if isinstance(x, Tensor) and x.dim() not in dimensions:
        allowed = " or ".join(f"{n}-D" for n in dimensions)
        raise ValueError(f"{where}: input must be {allowed}, got {x.dim()}-D of shape {tuple(x.shape)}")
    letters = ("B", "T")[: x.dim() - 1] if isinstance(x, Tensor) else ("B",)
    check_tensor(where, "input", x, (*letters, weight.shape[1]))
    device = weight.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    check_alike(where, dtype=not casts, input=x, weights=weight)


def _check_options(where: str, activation: object, hidden_size: int, num_heads: int, **sizes: int) -> None:
    for name, size in {**sizes, "hidden_size": hidden_size, "num_heads": num_heads}.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{where}: {name} must be a whole number of at least 1, got {size!r}")
    if hidden_size % num_heads:
        raise ValueError(f"{where}: num_heads must divide hidden_size, got {num_heads} heads for {hidden_size}")
    if activation not in (None, "tanh"):
        raise ValueError(f'{where}: value_activation must be None or "tanh", got {activation!r}')


def _repr(input_size: int, hidden_size: int, options: Mapping[str, tuple[object, object]]) -> str:
    changed = [f"{name}={value!r}" for name, (value, default) in options.items() if value != default]
    return ", ".join([str(input_size), str(hidden_size), *changed])

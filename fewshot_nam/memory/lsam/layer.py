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
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from fewshot_nam._deprecation import warn_renamed
from fewshot_nam.memory.lsam.recurrence import (
    Backward,
    Ragged,
    ValueActivation,
    backwards,
    recurrence,
    step,
)
from fewshot_nam.memory.primitives import NORM_EPS
from fewshot_nam.memory.short_convolution import ShortConvolution, check_conv_size
from fewshot_nam.memory.torch_modes import full_precision
from fewshot_nam.memory.validation import check_alike, check_max_erase, check_tensor

State = tuple[Tensor, ...]
"""Hidden states and memories ``(h, M)``, in place of an LSTM's ``(h, c)``; with a convolution ``(h, M, recent)``."""

Init = Callable[..., None]


def _accepts_old_order(*names: str) -> Callable[[Init], Init]:
    """Let ``__init__`` accept its positional arguments in the order ``names``, which had ``num_heads`` before ``bias``."""

    def decorate(init: Init) -> Init:
        @wraps(init)
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            place = names.index("num_heads")
            if len(args) > place and isinstance(args[place], int) and not isinstance(args[place], bool):
                warn_renamed(f"{type(self).__name__}: num_heads by position", "num_heads=", stacklevel=2)
                init(self, **dict(zip(names, args, strict=False)), **kwargs)
            else:
                init(self, *args, **kwargs)

        return call

    return decorate


class LSAMCell(nn.Module):
    """One step of LSAM, called like ``torch.nn.LSTMCell``: ``h, M = cell(input, (h, M))``.

    Args:
        input_size: width ``D`` of the input, at least 1.
        hidden_size: width ``d`` of the hidden state, at least 1.
        bias: whether there is a bias. Default True.
        num_heads: number ``H`` of memories, which must divide ``hidden_size``; each is ``(d / H, d / H)``. Default 1.
        value_activation: None, as in the paper, or ``"tanh"``, which bounds the values written. Default None.
        erase: ``"tied"``, as in the paper, or ``"separate"``: see ``LSAM``.
        max_erase: the largest separate erase gate, at most 2. Default 1.
        conv_size: the width, in steps, of a causal convolution of the inputs' contributions to ``q``, ``k`` and ``v``, as in
            ``LSAM``. The state is then a triple, see ``forward``. Default: none.
        device: where the parameters are.
        dtype: dtype of the parameters.

    Attributes:
        weight_ih: ``(3 d + 2 H, D)``, rows ``[q | k | v | p_r | p_w]``, each with its heads one after another. With
            ``erase="separate"`` there are ``3 d + 3 H`` rows, the last for ``p_e``.
        weight_hh: ``(3 d + 2 H, d)``, rows in the same order.
        bias: ``(3 d + 2 H)``, or None.
        conv: a ``ShortConvolution`` if ``conv_size``, else None; its channels are ``[q | k | v]`` for each head.

    Raises:
        ValueError: a size below 1, heads that do not divide ``hidden_size``, or another activation.
    """

    bias: Tensor | None

    @_accepts_old_order("input_size", "hidden_size", "num_heads", "bias")
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        num_heads: int = 1,
        value_activation: ValueActivation = None,
        erase: str = "tied",
        max_erase: float = 1.0,
        conv_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_options("LSAMCell", value_activation, hidden_size, num_heads, input_size=input_size)
        check_conv_size("LSAMCell", conv_size)
        self.num_gates = _check_erase("LSAMCell", erase, max_erase)
        self.erase, self.max_erase = erase, float(max_erase)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.value_activation: ValueActivation = value_activation
        rows = 3 * hidden_size + self.num_gates * num_heads
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None)
        self.conv = None
        if conv_size is not None:
            self.conv = ShortConvolution(3 * hidden_size, conv_size, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all parameters uniformly in ``+-1 / sqrt(d)``, recurrent rows of ``v`` with a spectral norm of at most 1."""
        _reset(self)

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """Return the next ``(h, M)``, with ``conv_size`` ``(h, M, recent)``.

        Args:
            input: ``(B, D)`` or ``(D)``.
            hx: ``h`` ``(B, d)`` and ``M`` ``(B, H, d / H, d / H)``, values by keys; with ``conv_size`` also ``recent``
                ``(B, conv_size - 1, 3 d)``, what the convolution has seen last. Without ``B`` for an input ``(D)``. Default:
                zeros.

        Returns:
            ``h`` in the dtype of the input, and ``M`` in float32 at least, shaped as in ``hx``.

        Raises:
            TypeError: an argument is not a tensor of the dtype of the weights (under autocast: of a floating dtype).
            ValueError: wrong shapes or devices.
        """
        _check_input("LSAMCell", input, self.weight_ih, (1, 2))
        batch, heads, width = tuple(input.shape[:-1]), self.num_heads, self.hidden_size // self.num_heads
        shapes: list[tuple[int, ...]] = [(*batch, self.hidden_size), (*batch, heads, width, width)]
        if self.conv is not None:
            shapes.append((*batch, self.conv.width - 1, self.conv.channels))
        hidden, memory, *recent = _state("LSAMCell", hx, shapes, self.weight_hh)
        gates = F.linear(input, self.weight_ih, self.bias).to(memory.dtype)
        by_head = _by_head(gates, heads, self.num_gates)
        with full_precision(input.device):
            if self.conv is not None:
                vectors, probabilities = by_head[..., : 3 * width], by_head[..., 3 * width :]
                seen = recent[0].view(-1, *recent[0].shape[-2:])  # one sequence is a batch of 1
                convolved, seen = self.conv.step(vectors.reshape(len(seen), -1), seen)
                by_head = torch.cat([convolved.view(vectors.shape), probabilities], dim=-1)
                recent[0] = seen.view(recent[0].shape)
            by_head = by_head + _by_head(F.linear(hidden, self.weight_hh.to(memory.dtype)), heads, self.num_gates)
            read_out, memory = step(by_head, memory, self.value_activation, self.max_erase)
        return read_out.flatten(-2).to(input.dtype), memory, *recent

    def extra_repr(self) -> str:
        """Return the sizes, and the options that are not the default."""
        options: dict[str, tuple[object, object]] = {
            "num_heads": (self.num_heads, 1),
            "bias": (self.bias is not None, True),
            "value_activation": (self.value_activation, None),
            "erase": (self.erase, "tied"),
            "max_erase": (self.max_erase, 1.0),
            "conv_size": (None if self.conv is None else self.conv.width, None),
        }
        return _repr(self.input_size, self.hidden_size, options)


class LSAM(nn.Module):
    """LSAM over sequences, with the interface of ``torch.nn.LSTM`` and ``(h_n, M_n)`` in place of ``(h_n, c_n)``.

    Args:
        input_size: width ``D`` of the input, at least 1.
        hidden_size: width ``d`` of the hidden state of each direction, at least 1.
        num_layers: number ``L`` of layers; each reads the outputs of the layer below. Default 1.
        bias: whether there are biases. Default True.
        batch_first: whether inputs and outputs are ``(B, T, ...)`` instead of ``(T, B, ...)``. Default False.
        dropout: probability in [0, 1] of dropping outputs of all layers but the last in training. Default 0.
        bidirectional: whether there is a second direction of the same size that reads from the end. Default False.
        proj_size: size ``p < d`` of a projection ``h = W_hr [h_1; ...; h_H]`` of the hidden states, which are then of that size
            in outputs, states and the recurrence, as in ``torch.nn.LSTM``. Default 0: none.
        num_heads: number ``H`` of memories of a layer and direction, which must divide ``hidden_size``. Default 1.
        value_activation: None, as in the paper, or ``"tanh"``, which bounds the values written. Default None.
        erase: ``"tied"``, as in the paper: ``p_e = p_w``. ``"separate"``: an erase gate of its own for each head,
            ``p_e = max_erase sigmoid(...)``, computed by the slow simple loop.
        max_erase: the largest separate erase gate, above 0 and at most 2. Default 1.
        conv_size: the width, in steps, of a causal convolution of the inputs' contributions to ``q``, ``k`` and ``v``
            (``ShortConvolution``). States are then triples, see ``forward``. Default: none.
        output_norm: divide the outputs of each head of each layer by their root mean square, with learned weights
            (``torch.nn.RMSNorm``). The recurrence and the states keep the hidden states as they are. Not with ``proj_size``,
            whose outputs have no heads. Default False.
        backward: ``"hand"``, the fast default, keeps about ``(4 + d / 16 H) d`` numbers for each token (``d`` more with tanh)
            and runs compiled on a CPU (see ``build_kernels``); it has no second derivative. ``"autograd"`` keeps all memories and
            allows any derivative; ``torch.func``, and ``torch.export`` with a fixed number of steps, always use it.
        device: where the parameters are.
        dtype: dtype of the parameters.

    Attributes:
        weight_ih_l0: ``(3 d + 2 H, D)``, rows ``[q | k | v | p_r | p_w]``, each with its heads one after another. Layer ``n`` has
            ``weight_ih_ln``, the second direction ``weight_ih_ln_reverse``; likewise for the other two.
        weight_hh_l0: ``(3 d + 2 H, d)``, rows in the same order.
        bias_l0: ``(3 d + 2 H)``, if ``bias``.
        weight_hr_l0: ``(p, d)``, if ``proj_size``.
        conv_l0: a ``ShortConvolution``, if ``conv_size``; its channels are ``[q | k | v]`` for each head.
        norm_l0: a ``torch.nn.RMSNorm`` of ``d / H`` features, if ``output_norm``.

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

    @_accepts_old_order(
        "input_size", "hidden_size", "num_layers", "num_heads", "bias", "batch_first", "dropout", "bidirectional"
    )
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        num_heads: int = 1,
        value_activation: ValueActivation = None,
        erase: str = "tied",
        max_erase: float = 1.0,
        conv_size: int | None = None,
        output_norm: bool = False,
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
        if not isinstance(proj_size, int) or isinstance(proj_size, bool) or not 0 <= proj_size < hidden_size:
            raise ValueError(
                f"LSAM: proj_size must be a whole number from 0 to hidden_size - 1 = {hidden_size - 1}, got {proj_size!r}"
            )
        if output_norm and proj_size:
            raise ValueError(
                f"LSAM: output_norm belongs to outputs with heads, got it with proj_size={proj_size}: leave one of them out"
            )
        check_conv_size("LSAM", conv_size)
        self.num_gates = _check_erase("LSAM", erase, max_erase)
        self.erase, self.max_erase, self.conv_size = erase, float(max_erase), conv_size
        self.proj_size, self.output_size = proj_size, proj_size or hidden_size
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
        self.output_norm = output_norm
        rows = 3 * hidden_size + self.num_gates * num_heads
        self._directions = ("", "_reverse") if bidirectional else ("",)
        for layer in range(num_layers):
            width = input_size if layer == 0 else self.output_size * len(self._directions)
            for direction in self._directions:
                shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, width), "weight_hh": (rows, self.output_size)}
                shapes |= {"bias": (rows,)} if bias else {}
                shapes |= {"weight_hr": (proj_size, hidden_size)} if proj_size else {}
                for name, shape in shapes.items():
                    parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(f"{name}_l{layer}{direction}", parameter)
                if conv_size is not None:
                    convolution = ShortConvolution(3 * hidden_size, conv_size, device=device, dtype=dtype)
                    self.add_module(f"conv_l{layer}{direction}", convolution)
                if output_norm:
                    norm = nn.RMSNorm(hidden_size // num_heads, NORM_EPS, device=device, dtype=dtype)
                    self.add_module(f"norm_l{layer}{direction}", norm)
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
                each other; without ``B`` for an input ``(T, D)``. With ``proj_size`` ``h`` has that size instead of ``d``.
                With ``conv_size`` also ``recent`` ``(L R, B, conv_size - 1, 3 d)``, what the convolutions have seen last.
                Default: zeros.

        Returns:
            Outputs in the layout and dtype of the input, with width ``R d`` (or ``R proj_size``); and ``(h_n, M_n)`` in the shapes
            of ``hx``, each after the last token of its sequence (second direction: after the first), ``M_n`` in float32 at least.

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
        state = self._initial(hx, () if one_sequence else (x.shape[1],))
        if one_sequence:
            state = tuple(part.unsqueeze(1) for part in state)
        output, state = self._layers(x, state, None)
        if one_sequence:
            return output.squeeze(1), tuple(part.squeeze(1) for part in state)
        return output.transpose(0, 1) if batch_first else output, state

    def _forward_packed(self, packed: PackedSequence, hx: State | None) -> tuple[PackedSequence, State]:
        _check_input("LSAM", packed.data, self.weight_ih_l0, (2,))
        ragged = Ragged.of(packed)
        steps, batch = ragged.alive.shape
        state = self._initial(hx, (batch,))
        if packed.sorted_indices is not None:
            state = tuple(part.index_select(1, packed.sorted_indices) for part in state)
        padded = packed.data.new_zeros(steps * batch, packed.data.shape[-1]).index_copy(0, ragged.tokens, packed.data)
        output, state = self._layers(torch.unflatten(padded, 0, (steps, batch)), state, ragged)
        if packed.unsorted_indices is not None:
            state = tuple(part.index_select(1, packed.unsorted_indices) for part in state)
        data = output.flatten(0, 1).index_select(0, ragged.tokens)
        output_packed = PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        return output_packed, state

    def _initial(self, hx: State | None, batch: tuple[int, ...]) -> State:
        rows, width = self.num_layers * len(self._directions), self.hidden_size // self.num_heads
        shapes = [(rows, *batch, self.output_size), (rows, *batch, self.num_heads, width, width)]
        if self.conv_size is not None:
            shapes.append((rows, *batch, self.conv_size - 1, 3 * self.hidden_size))
        return _state("LSAM", hx, shapes, self.weight_hh_l0)

    def _layers(self, x: Tensor, state: State, ragged: Ragged | None) -> tuple[Tensor, State]:
        """Run all layers over ``x`` ``(T, B, D)``."""
        dtype, directions = x.dtype, len(self._directions)
        last = []
        for layer, first in enumerate(zip(*(torch.split(part, directions) for part in state), strict=True)):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            x, (hidden, *others) = self._layer(layer, x, first, ragged)
            x = x.to(dtype)
            last.append((hidden.to(dtype), *others))
        return x, tuple(torch.cat(parts) for parts in zip(*last, strict=True))

    def _layer(self, layer: int, x: Tensor, state: State, ragged: Ragged | None) -> tuple[Tensor, State]:
        """Return the outputs ``(T, B, R d)`` and the last states ``(R, B, ...)`` of one layer."""
        hidden, memory, *recent = state
        weight_ih, weight_hh = self._by_head(f"weight_ih_l{layer}"), self._by_head(f"weight_hh_l{layer}")
        bias = self._by_head(f"bias_l{layer}").flatten() if self.bias else None
        # The contribution of the inputs to all gates of both directions in one product, (T, R, B, gates).
        gates = F.linear(x, weight_ih.flatten(0, 1), bias).to(memory.dtype)
        gates = torch.unflatten(gates, -1, weight_ih.shape[:2]).transpose(1, 2)
        if ragged is not None:
            gates = ragged.stop(gates, self.num_heads, self.num_gates)
        if self.bidirectional:
            gates = torch.stack((gates[:, 0], backwards(gates[:, 1], ragged)), dim=1)
        if recent:
            gates, recent[0] = self._convolve(layer, gates, recent[0], ragged)
        weight_hh, projection = weight_hh.to(memory.dtype), None
        with full_precision(x.device):
            if self.proj_size:
                # The projection is linear, so it is part of the recurrent weight: the recurrence runs without it.
                names = [f"weight_hr_l{layer}{direction}" for direction in self._directions]
                projection = torch.stack([getattr(self, name) for name in names]).to(memory.dtype)
                first = gates[:1] + torch.bmm(hidden, weight_hh.mT)
                gates = torch.cat([first, gates[1:]])
                weight_hh = torch.bmm(weight_hh, projection)
                hidden = hidden.new_zeros(*hidden.shape[:2], self.hidden_size)
            hiddens, memory = recurrence(
                gates, weight_hh, hidden, memory, self.value_activation, self.backward, self.max_erase
            )
            if projection is not None:
                hiddens = hiddens @ projection.mT
        last = hiddens[-1] if ragged is None else ragged.last(hiddens)
        state = (last, memory, *recent)
        if self.output_norm:
            hiddens = self._normalise(layer, hiddens)
        if self.bidirectional:
            return torch.cat((hiddens[:, 0], backwards(hiddens[:, 1], ragged)), dim=-1), state
        return hiddens.squeeze(1), state

    def _normalise(self, layer: int, hiddens: Tensor) -> Tensor:
        """Return the outputs ``(T, R, B, d)`` of a layer with normalised heads."""
        by_head = torch.unflatten(hiddens, -1, (self.num_heads, -1)).unbind(1)
        norms = [self.get_submodule(f"norm_l{layer}{direction}") for direction in self._directions]
        kind = self.weight_hh_l0.dtype
        return torch.stack([norm(x.to(kind)) for norm, x in zip(norms, by_head, strict=True)], dim=1).flatten(-2)

    def _convolve(self, layer: int, gates: Tensor, recent: Tensor, ragged: Ragged | None) -> tuple[Tensor, Tensor]:
        """Return ``gates`` ``(T, R, B, H (3 e + 2))`` with convolved queries, keys and values, and the convolutions' state."""
        by_head = torch.unflatten(gates, -1, (self.num_heads, -1))
        width = 3 * self.hidden_size // self.num_heads
        vectors, probabilities = by_head[..., :width], by_head[..., width:]
        mask = None if ragged is None else ragged.alive.T
        convolved, states = [], []
        for number, direction in enumerate(self._directions):
            module = self.get_submodule(f"conv_l{layer}{direction}")
            tokens = vectors[:, number].flatten(-2).transpose(0, 1)
            found, state = module(tokens, recent[number], mask)
            convolved.append(torch.unflatten(found.transpose(0, 1), -1, (self.num_heads, -1)))
            states.append(state)
        gates = torch.cat([torch.stack(convolved, dim=1), probabilities], dim=-1).flatten(-2)
        return gates, torch.stack(states)

    def _by_head(self, name: str) -> Tensor:
        """Return a parameter of all directions, ``(R, 3 d + 2 H, ...)``, its rows grouped by head."""
        stacked = torch.stack([getattr(self, name + direction) for direction in self._directions])
        return _by_head(stacked.movedim(1, -1), self.num_heads, self.num_gates).flatten(-2).movedim(-1, 1)

    def extra_repr(self) -> str:
        """Return the sizes, and the options that are not the default."""
        options: dict[str, tuple[object, object]] = {
            "num_layers": (self.num_layers, 1),
            "num_heads": (self.num_heads, 1),
            "bias": (self.bias, True),
            "batch_first": (self.batch_first, False),
            "dropout": (self.dropout, 0.0),
            "bidirectional": (self.bidirectional, False),
            "proj_size": (self.proj_size, 0),
            "erase": (self.erase, "tied"),
            "max_erase": (self.max_erase, 1.0),
            "conv_size": (self.conv_size, None),
            "output_norm": (self.output_norm, False),
            "value_activation": (self.value_activation, None),
            "backward": (self.backward, "hand"),
        }
        return _repr(self.input_size, self.hidden_size, options)


def _by_head(gates: Tensor, heads: int, num_gates: int) -> Tensor:
    """Reorder ``(..., 3 d + 2 H)``, ``[q | k | v | p_r | p_w]`` each with all heads, to ``(..., H, 3 e + 2)``."""
    vectors, probabilities = gates[..., : -num_gates * heads], gates[..., -num_gates * heads :]
    of_heads = torch.unflatten(vectors, -1, (3, heads, -1)).transpose(-3, -2).flatten(-2)
    return torch.cat([of_heads, torch.unflatten(probabilities, -1, (num_gates, heads)).mT], dim=-1)


@torch.no_grad()
def _reset(module: LSAM | LSAMCell) -> None:
    size = module.hidden_size
    for name, parameter in module.named_parameters(recurse=False):
        nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)
        if name.startswith(("weight_hh", "weight_hr")):
            values = parameter[2 * size : 3 * size] if name.startswith("weight_hh") else parameter
            # The decomposition needs float32 at least.
            values /= torch.linalg.matrix_norm(
                values.to(torch.promote_types(values.dtype, torch.float32)), 2
            ).clamp_min(1)


def _state(where: str, hx: State | None, shapes: Sequence[tuple[int, ...]], like: Tensor) -> State:
    """Return ``hx``, checked, or zeros, in the dtype of the recurrence: that of the weights, float32 at least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if hx is None:
        return tuple(like.new_zeros(shape, dtype=dtype) for shape in shapes)
    names = ("h", "M", "recent")[: len(shapes)]
    if not isinstance(hx, (tuple, list)) or len(hx) != len(shapes):
        kind = "a pair" if len(shapes) == 2 else "a triple"
        length = f" of {len(hx)}" if isinstance(hx, (tuple, list)) else ""
        raise TypeError(f"{where}: hx must be {kind} ({', '.join(names)}), got {type(hx).__name__}{length}")
    for name, tensor, shape in zip(names, hx, shapes, strict=True):
        check_tensor(where, f"{name} of hx", tensor, shape)
    check_alike(where, dtype=False, weights=like, **dict(zip(names, hx, strict=True)))
    return tuple(tensor.to(dtype) for tensor in hx)


def _check_input(where: str, x: Tensor, weight: Tensor, dimensions: tuple[int, ...]) -> None:
    if isinstance(x, Tensor) and x.dim() not in dimensions:
        allowed = " or ".join(f"{n}-D" for n in dimensions)
        raise ValueError(f"{where}: input must be {allowed}, got {x.dim()}-D of shape {tuple(x.shape)}")
    letters = ("B", "T")[: x.dim() - 1] if isinstance(x, Tensor) else ("B",)
    check_tensor(where, "input", x, (*letters, weight.shape[1]))
    device = weight.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    check_alike(where, dtype=not casts, input=x, weights=weight)


def _check_erase(where: str, erase: object, max_erase: float) -> int:
    """Check the options of erase gates, and return the number of gates of a head."""
    if erase not in ("tied", "separate"):
        raise ValueError(f'{where}: erase must be "tied" or "separate", got {erase!r}')
    check_max_erase(where, max_erase)
    if max_erase != 1.0 and erase == "tied":
        raise ValueError(f'{where}: max_erase belongs to erase="separate", got {max_erase} with erase="tied"')
    return 2 if erase == "tied" else 3


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

"""NAM-TM as a sequence model: NAM Turing Machines between an embedding and a classifier.

Source: Nam and Seo, "Neural Attention Memory" (ICLR 2023 submission), the experiments on algorithmic tasks, and the authors'
code of 2022 (``wiring="tapes"``): both machines read the same embedded tokens, and the second begins with the value tape that
the first leaves. ``wiring="residual"`` is ours: machines in a stack, each with dropout, a residual connection and layer
normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from fewshot_nam.memory import NAMTuringMachine
from fewshot_nam.memory.turing.heads import Shift
from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.tasks.task import SequenceTask

_PAPER = {"width": 1024, "tapes": 8, "dropout": 0.1, "wiring": "tapes", "preset": "iclr2022"}
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "tapes": 2, "controller": "mlp"},
    "small": {"width": 32, "tapes": 4, "controller": "mlp"},
    "paper": _PAPER,
}
_SIZES_NO_JUMP: dict[str, dict[str, Any]] = {**_SIZES, "paper": {**_PAPER, "controller": "bilstm"}}


@register("nam-tm", "NAM Turing Machine with all four moves: left, stay, right, jump", _SIZES)
@register(
    "nam-tm-no-jump",
    "NAM Turing Machine without jumps: left, stay, right",
    _SIZES_NO_JUMP,
    actions=("left", "noop", "right"),
)
class TuringModel(SequenceModel):
    """NAM Turing Machines as a sequence model.

    Args:
        task: see ``SequenceModel``.
        width: ``d`` of embedding and machines, a multiple of ``tapes``.
        tapes: tapes of each machine.
        layers: machines.
        dropout: probability of dropping a feature of what machines return.
        wiring: ``"residual"`` or ``"tapes"``, see the module.
        preset: of the machines, see ``NAMTuringMachine``.
        controller: of all machines, or one for each of them; ``None`` for the preset's. An LSTM in the first machine knows which
            part of the input it is in; without a state behind it, ``"mlp"``, machines do not learn to count the places of training.
        actions: names of actions, and whole numbers: shifts by that many cells. ``None`` for the preset's.
        tape_length: cells of a tape, or ``None`` for as many as there are tokens, at least 32.
        feedforward: width of the hidden layer of a feed-forward part behind every machine, with a residual connection and layer
            normalisation, as in a Transformer; ``None`` for none. A machine returns what it reads, a linear function of its
            inputs at every position of the heads: adding digits needs more. Only with ``"residual"``.
        machine_options: further arguments of ``NAMTuringMachine``, such as ``move_noise=1.0`` and ``head_norm="state"``.
    """

    def __init__(
        self,
        task: SequenceTask,
        width: int,
        tapes: int,
        layers: int = 2,
        dropout: float = 0.3,
        wiring: Literal["residual", "tapes"] = "residual",
        preset: str = "neurips2023",
        controller: str | Sequence[str] | None = None,
        actions: Sequence[str | int] | None = None,
        tape_length: int | None = None,
        feedforward: int | None = None,
        **machine_options: Any,
    ) -> None:
        super().__init__(task, width, width)
        if wiring not in ("residual", "tapes"):
            raise ValueError(f"nam-tm: wiring must be 'residual' or 'tapes', got {wiring!r}")
        if wiring == "tapes" and feedforward is not None:
            raise ValueError("nam-tm: feedforward belongs to wiring='residual'")
        self.wiring = wiring
        self.project = (
            nn.Sequential(nn.Linear(width, width), nn.Dropout(0.2), nn.LayerNorm(width)) if wiring == "tapes" else None
        )
        controllers = [controller] * layers if controller is None or isinstance(controller, str) else list(controller)
        if len(controllers) != layers:
            raise ValueError(f"nam-tm: {layers} layers need as many controllers or one for all, got {len(controllers)}")
        moves = None if actions is None else [Shift(a) if isinstance(a, int) else a for a in actions]
        self.machines = nn.ModuleList(
            NAMTuringMachine(
                width,
                tapes,
                preset=preset,
                controller=one,
                actions=moves,
                tape_length=tape_length,
                **machine_options,
            )
            for one in controllers
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers if wiring == "residual" else 1))
        self.dropout = nn.Dropout(dropout)
        self.feed_forwards = nn.ModuleList(
            _FeedForward(width, feedforward, dropout) for _ in range(layers) if feedforward is not None
        )

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.project is None:
            for layer, (machine, norm) in enumerate(zip(self.machines, self.norms, strict=True)):
                x = norm(x + self.dropout(machine(x, mask=mask)[0]))
                if self.feed_forwards:
                    x = self.feed_forwards[layer](x)
            return x
        x = self.project(x)
        tape, outputs = None, x
        for machine in self.machines:
            state = machine.initial_state(len(x), machine.tape_length or max(32, x.shape[1]))  # type: ignore[operator]
            outputs, after = machine(x, state if tape is None else state._replace(value_tape=tape), mask)
            tape = after.value_tape
        return self.dropout(self.norms[0](outputs)).relu()


class _FeedForward(nn.Module):
    """The feed-forward part of a Transformer layer, normalised at its end."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, T, width)`` for ``x`` of that shape."""
        features: Tensor = self.norm(x + self.layers(x))
        return features

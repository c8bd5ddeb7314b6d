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
        controller: ``None`` for the preset's.
        actions: ``None`` for the preset's.
        tape_length: cells of a tape, or ``None`` for as many as there are tokens, at least 32.
        move_noise: noise on the moves of heads in training, see ``NAMTuringMachine``; the paper has none.
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
        controller: str | None = None,
        actions: Sequence[str] | None = None,
        tape_length: int | None = None,
        move_noise: float = 0.0,
    ) -> None:
        super().__init__(task, width, width)
        if wiring not in ("residual", "tapes"):
            raise ValueError(f"nam-tm: wiring must be 'residual' or 'tapes', got {wiring!r}")
        self.wiring = wiring
        self.project = (
            nn.Sequential(nn.Linear(width, width), nn.Dropout(0.2), nn.LayerNorm(width)) if wiring == "tapes" else None
        )
        self.machines = nn.ModuleList(
            NAMTuringMachine(
                width,
                tapes,
                preset=preset,
                controller=controller,
                actions=actions,
                tape_length=tape_length,
                move_noise=move_noise,
            )
            for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers if wiring == "residual" else 1))
        self.dropout = nn.Dropout(dropout)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.project is None:
            for machine, norm in zip(self.machines, self.norms, strict=True):
                x = norm(x + self.dropout(machine(x, mask=mask)[0]))
            return x
        x = self.project(x)
        tape, outputs = None, x
        for machine in self.machines:
            state = machine.initial_state(len(x), machine.tape_length or max(32, x.shape[1]))  # type: ignore[operator]
            outputs, after = machine(x, state if tape is None else state._replace(value_tape=tape), mask)
            tape = after.value_tape
        return self.dropout(self.norms[0](outputs)).relu()

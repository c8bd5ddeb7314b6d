"""STM as a sequence model: the SAM-based two-memory model between an embedding and a classifier.

Source: Le, Tran and Venkatesh, "Self-Attentive Associative Memory" (ICML 2020); the published size is that of the baseline in the
code of the NAM paper of 2023: embedding, linear layer, dropout of 0.2, STM, classifier, 6.17 million parameters.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fewshot_nam.memory import STM
from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "memory": 8, "slots": 2, "relation": 8, "readout": 16, "hidden": 16},
    "small": {"width": 64, "memory": 32, "slots": 4, "relation": 32, "readout": 64, "hidden": 64},
    "paper": {"width": 1024, "memory": 128, "slots": 8, "relation": 128, "readout": 128, "hidden": 1024},
}


@register("stm", "STM: an item memory and a relational memory, joined by self-attentive associative memory", _SIZES)
class STMModel(SequenceModel):
    """An STM between an embedding and a classifier; it reads forward.

    Args:
        task: see ``SequenceModel``.
        width: ``d`` of embedding and output.
        memory: rows and columns of the memories.
        slots: slots of the relational memory.
        relation: features read from a slot.
        readout: features read from all slots.
        hidden: width of the hidden layers of the output.
        dropout: probability of dropping a feature of the input.
        direct: whether vectors are read as they come, as published, without an embedding and a linear layer before.
        stm_options: further arguments of ``STM``, such as ``preset``, ``gates`` and ``alphas``.
    """

    causal = True

    def __init__(
        self,
        task: SequenceTask,
        width: int,
        memory: int,
        slots: int,
        relation: int = 96,
        readout: int = 64,
        hidden: int = 128,
        dropout: float = 0.2,
        direct: bool = False,
        **stm_options: Any,
    ) -> None:
        super().__init__(task, width, width)
        read = width
        self.project = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        if direct:
            if task.input_size is None:
                raise ValueError("stm: direct=True is for tasks with vectors, and this one has tokens")
            read, self.embed, self.project = task.input_size, nn.Identity(), nn.Sequential(nn.Dropout(dropout))
        sizes: dict[str, Any] = {"relation_size": relation, "readout_size": readout, "hidden_size": hidden}
        self.stm = STM(read, width, memory, slots, **sizes, **stm_options)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        return self._encode_steps(x, mask, None)

    def _encode_steps(self, x: Tensor, mask: Tensor, steps: Tensor | None) -> Tensor:
        # STM reads forward, so what stands behind a sequence changes nothing before it.
        features: Tensor = self.stm(self.project(x), output_steps=steps)[0]
        return features

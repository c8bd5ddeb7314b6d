"""STM, the SAM-based two-memory model: the layer, the write of its item memory, and its compiled kernel."""

from fewshot_nam.memory.stm.layer import STM, STMState

__all__ = ["STM", "STMState"]

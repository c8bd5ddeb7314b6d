"""LSAM: the layer, its recurrence over time, and the compiled kernel of that recurrence."""

from fewshot_nam.memory.lsam.layer import LSAM, LSAMCell

__all__ = ["LSAM", "LSAMCell"]

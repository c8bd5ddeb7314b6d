"""LSAM, a recurrent network with a memory in place of a cell state: the layer, its recurrence, and its compiled kernel."""

from fewshot_nam.memory.lsam.layer import LSAM, LSAMCell

__all__ = ["LSAM", "LSAMCell"]

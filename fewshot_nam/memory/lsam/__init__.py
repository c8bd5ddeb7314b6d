"""LSAM, a recurrent network with a memory in place of a cell state: the layer, its recurrence, and the compiled kernel of it."""

from fewshot_nam.memory.lsam.layer import LSAM, LSAMCell

__all__ = ["LSAM", "LSAMCell"]

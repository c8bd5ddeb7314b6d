"""The shared memory library: networks that write to and read from a Neural Attention Memory. It depends on torch alone."""

from fewshot_nam.memory.primitives import read, unit, write, write_block, write_sequence
from fewshot_nam.memory.scan import choose_backend, memory_scan, memory_step

__all__ = [
    "choose_backend",
    "memory_scan",
    "memory_step",
    "read",
    "unit",
    "write",
    "write_block",
    "write_sequence",
]

"""The shared memory library: networks that write to and read from a Neural Attention Memory. It depends on torch alone."""

from fewshot_nam.memory.primitives import read, unit, write, write_block, write_sequence

__all__ = ["read", "unit", "write", "write_block", "write_sequence"]

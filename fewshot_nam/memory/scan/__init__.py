"""A whole sequence of writes and reads of a Neural Attention Memory: the reference loop, and fast forms with the same numbers."""

from fewshot_nam.memory.scan.scan import choose_backend, memory_scan, memory_step

__all__ = ["choose_backend", "memory_scan", "memory_step"]

"""The memory scan: writes and reads of a whole sequence, as a reference loop and as fast forms with the same results."""

from fewshot_nam.memory.scan.scan import choose_backend, memory_scan, memory_step

__all__ = ["choose_backend", "memory_scan", "memory_step"]

"""The NAM Turing Machine: the layer, its heads, tapes, controllers and presets, and the compiled kernel of its loop over time."""

from fewshot_nam.memory.turing.heads import HeadContext, Jump, Shift
from fewshot_nam.memory.turing.machine import NAMTuringMachine
from fewshot_nam.memory.turing.plot import draw_heads
from fewshot_nam.memory.turing.state import TuringState, TuringTrace

__all__ = ["HeadContext", "Jump", "NAMTuringMachine", "Shift", "TuringState", "TuringTrace", "draw_heads"]

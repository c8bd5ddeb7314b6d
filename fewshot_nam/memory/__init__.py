"""The shared memory library: networks that write to and read from a Neural Attention Memory. It depends on torch alone."""

from fewshot_nam.memory.attention import NAMAttention, outer_product_attention
from fewshot_nam.memory.lsam.layer import LSAM, LSAMCell
from fewshot_nam.memory.native.kernels import build_kernels
from fewshot_nam.memory.primitives import read, unit, write, write_block, write_sequence
from fewshot_nam.memory.scan.scan import choose_backend, memory_scan, memory_step
from fewshot_nam.memory.tensor import TensorMemory, tensor_read, tensor_write, tensor_write_sequence
from fewshot_nam.memory.transformer import NAMTransformerEncoder, NAMTransformerEncoderLayer
from fewshot_nam.memory.turing.heads import HeadContext, Jump, Shift
from fewshot_nam.memory.turing.machine import NAMTuringMachine
from fewshot_nam.memory.turing.plot import draw_heads
from fewshot_nam.memory.turing.state import TuringState, TuringTrace

__all__ = [
    "LSAM",
    "HeadContext",
    "Jump",
    "LSAMCell",
    "NAMAttention",
    "NAMTransformerEncoder",
    "NAMTransformerEncoderLayer",
    "NAMTuringMachine",
    "Shift",
    "TensorMemory",
    "TuringState",
    "TuringTrace",
    "build_kernels",
    "choose_backend",
    "draw_heads",
    "memory_scan",
    "memory_step",
    "outer_product_attention",
    "read",
    "tensor_read",
    "tensor_write",
    "tensor_write_sequence",
    "unit",
    "write",
    "write_block",
    "write_sequence",
]

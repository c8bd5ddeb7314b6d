"""The memory library: Neural Attention Memory (NAM) and the networks built on it. It depends only on torch.

- ``primitives``: unit keys, read and write, and writes of several pairs in order (``write_sequence``) or jointly (``write_block``);
- ``scan``: a whole sequence of writes and reads, fast (``memory_scan``), or one step of it (``memory_step``);
- ``attention`` and ``transformer``: attention through a memory, and the NAM-Transformer encoder;
- ``decoder``: a decoder layer with cross-attention through a memory;
- ``language_model``: a causal language model of these layers, with generation;
- ``lsam``: a recurrent network with a memory in place of an LSTM's cell state;
- ``turing``: the NAM Turing Machine, whose tapes are memories;
- ``tensor``: a memory with several levels of keys;
- ``associative`` and ``stm``: the self-attentive associative memory, and the network of an item and a relational memory;
- ``native``: compiled code, and ``build_kernels``.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422); of
``associative`` and ``stm`` Le, Tran and Venkatesh (ICML 2020). Each module names its equations and its departures.
"""

from fewshot_nam.memory.associative import SelfAttentiveMemory
from fewshot_nam.memory.attention import NAMAttention, outer_product_attention
from fewshot_nam.memory.decoder import NAMCrossAttention, NAMTransformerDecoderLayer
from fewshot_nam.memory.language_model import NAMLanguageModel
from fewshot_nam.memory.lsam.layer import LSAM, LSAMCell
from fewshot_nam.memory.native.kernels import build_kernels
from fewshot_nam.memory.primitives import read, unit, write, write_block, write_sequence
from fewshot_nam.memory.scan.scan import choose_backend, memory_scan, memory_step
from fewshot_nam.memory.stm import STM, STMState
from fewshot_nam.memory.tensor import TensorMemory, tensor_read, tensor_write, tensor_write_sequence
from fewshot_nam.memory.transformer import NAMTransformerEncoder, NAMTransformerEncoderLayer
from fewshot_nam.memory.turing.heads import HeadContext, Jump, Shift
from fewshot_nam.memory.turing.machine import NAMTuringMachine
from fewshot_nam.memory.turing.plot import draw_heads
from fewshot_nam.memory.turing.state import TuringState, TuringTrace

__all__ = [
    "LSAM",
    "STM",
    "HeadContext",
    "Jump",
    "LSAMCell",
    "NAMAttention",
    "NAMCrossAttention",
    "NAMLanguageModel",
    "NAMTransformerDecoderLayer",
    "NAMTransformerEncoder",
    "NAMTransformerEncoderLayer",
    "NAMTuringMachine",
    "STMState",
    "SelfAttentiveMemory",
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

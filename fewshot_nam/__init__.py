"""Few-shot learning with Neural Attention Memory: features in, scores out.

- ``fewshot_nam.memory``: the shared memory library (read, write, and networks built on them).
- ``fewshot_nam.heads``: few-shot classifier heads that learn a class from one picture and forget it again.
"""

__version__ = "0.1.0"

"""Training of sequence models on sequence tasks: presets, the loop, checkpoints that resume exactly, and evaluation.

Needs the extra ``sequences`` (Lightning Fabric, which places models on devices and handles precision).
"""

from fewshot_nam.sequences.training.evaluation import evaluate, load_trained
from fewshot_nam.sequences.training.loop import train
from fewshot_nam.sequences.training.settings import TrainingSettings, preset, presets

__all__ = ["TrainingSettings", "evaluate", "load_trained", "preset", "presets", "train"]

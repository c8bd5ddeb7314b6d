"""Sequence tasks by name: ``create(name)`` returns a task that draws batches of tokens, targets and masks.

>>> import torch
>>> from fewshot_nam.sequences import tasks
>>> task = tasks.create("reverse")
>>> batch = task.sample(1, torch.Generator().manual_seed(0), lengths=3)
>>> " ".join(task.vocabulary[token] for token in batch.inputs[0])
'| 9 3 0 | ? ? ? .'
>>> " ".join(task.vocabulary[token] for token in batch.targets[0, batch.mask[0]])
'0 3 9'
"""

from fewshot_nam.sequences.tasks.accuracy import Accuracy, accuracy
from fewshot_nam.sequences.tasks.registry import available, create, register
from fewshot_nam.sequences.tasks.task import Batch, SequenceTask, Split

__all__ = ["Accuracy", "Batch", "SequenceTask", "Split", "accuracy", "available", "create", "register"]

"""Sequence models by name: ``create(name, task)`` returns a network from tokens ``(B, T)`` to logits ``(B, T, V)``.

>>> import torch
>>> from fewshot_nam.sequences import models, tasks
>>> task = tasks.create("reverse")
>>> model = models.create("nam-tm", task, size="tiny")
>>> batch = task.sample(2, torch.Generator().manual_seed(0), lengths=4)
>>> model(batch.inputs).shape == (*batch.inputs.shape, len(task.vocabulary))
True
"""

from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import SIZES, available, create, register

__all__ = ["SIZES", "SequenceModel", "available", "create", "register"]

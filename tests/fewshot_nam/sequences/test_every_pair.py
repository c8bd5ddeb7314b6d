"""A training step of every model on every task."""

import pytest
import torch
from torch.nn import functional as F

from fewshot_nam.sequences import models, tasks

SHORT = {"mqar": 16}  # lengths that are short and that the task has
OPTIONS = {"mqar": {"vocabulary_size": 32}, "listops": {"train": (5, 30)}, "babi": {"questions": (1, 2)}}
OPTIONS |= {"lra_text": {"longest": 20}, "lra_image": {"size": 4}, "imdb_bytes": {"length": 5}}


@pytest.mark.parametrize("name", tasks.available())
def test_a_training_step_of_every_model(name):
    try:
        task = tasks.create(name, **OPTIONS.get(name, {}))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    lengths = SHORT.get(name, task.splits["train"].lengths)
    if isinstance(lengths, tuple):
        lengths = (lengths[0], min(lengths[0] + 3, lengths[1]))
    batch = task.sample(2, torch.Generator().manual_seed(0), lengths)
    for model in models.available():
        torch.manual_seed(0)
        try:
            network = models.create(model, task, "tiny")
        except ValueError as error:
            if task.causal and "reads ahead" in str(error):
                continue
            raise
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
        logits = network(batch.inputs)
        assert logits.shape == (*batch.targets.shape, len(task.vocabulary)), model
        loss = F.cross_entropy(logits[batch.mask].flatten(0, -2), batch.targets[batch.mask].flatten())
        loss.backward()
        optimiser.step()
        assert bool(torch.isfinite(loss)), model
        torch.manual_seed(0)
        with torch.no_grad():
            after = network(batch.inputs)
        assert bool(torch.isfinite(after[batch.mask]).all()), model
        assert not torch.equal(after[batch.mask], logits[batch.mask]), model

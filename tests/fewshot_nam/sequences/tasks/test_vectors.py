"""Tasks whose inputs are vectors, and whose positions have several answers: padding, accuracy, models."""

import pytest
import torch
from torch.nn import functional as F

from fewshot_nam.sequences import models, tasks
from fewshot_nam.sequences.tasks.task import Batch, SequenceTask, Split, splits_of


class Echo(SequenceTask):
    """Repeat two bits that were shown first. Length: rows between them and the row that asks."""

    vocabulary = ("0", "1", "pad")
    splits = splits_of(Split((1, 3), 10), Split((1, 3), 10), Split(4, 10), Split(5, 10))
    input_size, target_size, name = 4, 2, "echo"

    def _draw(self, count, length, generator):
        bits = torch.randint(2, (count, 2), generator=generator)
        inputs = torch.zeros(count, length + 2, 4)
        inputs[:, 0, :2] = bits
        inputs[:, -1, -2] = 1
        targets = torch.full((count, length + 2, 2), self.pad)
        targets[:, -1] = bits
        mask = torch.zeros(count, length + 2, dtype=torch.bool)
        mask[:, -1] = True
        return Batch(inputs, targets, mask)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shorter_sequences_are_filled_up_with_rows_that_say_so():
    batch = Echo().sample(40, seeded(), (1, 3))
    lengths = batch.mask.long().argmax(dim=1) + 1
    assert sorted(set(lengths.tolist())) == [3, 4, 5]
    behind = torch.arange(5) >= lengths.unsqueeze(1)
    assert torch.equal(batch.inputs[..., -1] == 1, behind)
    assert (batch.inputs[behind][:, :-1] == 0).all()
    assert (batch.targets[behind] == 2).all()
    assert not batch.mask[behind].any()
    asked = batch.inputs[batch.mask]
    assert torch.equal(asked, torch.tensor([[0.0, 0, 1, 0]]).expand_as(asked))


def test_accuracy_counts_every_answer_and_whole_sequences():
    targets = torch.tensor([[[2, 2], [0, 1]], [[2, 2], [1, 1]]])
    batch = Batch(torch.zeros(2, 2, 4), targets, torch.tensor([[False, True]] * 2))
    predictions = torch.tensor([[[0, 0], [0, 1]], [[2, 2], [1, 0]]])
    assert tasks.accuracy(predictions, batch) == (0.5, 0.0, 0.75)


@pytest.mark.parametrize("name", models.available())
def test_every_model_takes_vectors_and_ignores_padding(name):
    torch.manual_seed(0)
    options = {"tape_length": 24} if name == "tape-rnn" else {}
    model = models.create(name, Echo(), "tiny", **options)
    batch = Echo().sample(6, seeded(), (1, 3))
    logits = model(batch.inputs)
    assert logits.shape == (*batch.targets.shape, 3)
    F.cross_entropy(logits[batch.mask].flatten(0, -2), batch.targets[batch.mask].flatten()).backward()
    assert model.embed.weight.grad.abs().sum() > 0
    model.eval()
    logits = model(batch.inputs)
    for row, inputs, mask in zip(logits, batch.inputs, batch.mask, strict=True):
        length = int(mask.long().argmax()) + 1
        torch.testing.assert_close(row[:length], model(inputs[:length].unsqueeze(0))[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"vectors must be \(B, T, 4\)"):
        model(batch.inputs[..., :3])

"""The strings that ``scripts/near_misses.py`` asks for, and its table."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from fewshot_nam.sequences import tasks

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "near_misses.py"))


class Compares(nn.Module):
    """Says what is right, by the definition of the task."""

    def __init__(self, task):
        super().__init__()
        self.task = task

    def forward(self, inputs):
        scores = torch.zeros(*inputs.shape, len(self.task.vocabulary))
        scores[:, -1, self.task.vocabulary.index("yes")] = self.task._contains(inputs[:, :-1]) * 2.0 - 1
        return scores


class Marks(Compares):
    """Looks at the mark alone."""

    def forward(self, inputs):
        scores = torch.zeros(*inputs.shape, len(self.task.vocabulary))
        scores[:, -1, self.task.vocabulary.index("yes")] = (inputs[:, inputs.shape[1] // 2 - 1] == 2) * 2.0 - 1
        return scores


@pytest.mark.parametrize("name", ["marked_copy", "marked_reversal"])
@pytest.mark.parametrize("length", [3, 9, 99])
def test_a_network_that_compares_says_yes_to_the_language_alone(name, length):
    task = tasks.create(name)
    strings = SCRIPT["near_misses"](task, 50, length)
    assert all(each.shape == (50, length) for each in strings.values())
    compared = [SCRIPT["answered_yes"](Compares(task), task, each) for each in strings.values()]
    assert compared == [1.0, 0.0, 0.0]
    assert [SCRIPT["answered_yes"](Marks(task), task, each) for each in strings.values()] == [1.0, 1.0, 1.0]
    member, changed, _ = strings.values()
    assert ((member != changed).sum(dim=1) == 1).all()


def test_what_is_no_run_on_a_marked_task_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        SCRIPT["main"]([str(tmp_path)])
    assert "holds no finished training run" in capsys.readouterr().err

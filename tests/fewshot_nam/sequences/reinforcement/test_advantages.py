"""Generalised advantages against their definition: sums over all later steps, written out."""

import pytest
import torch

from fewshot_nam.sequences.reinforcement.advantages import advantages


def written_out(rewards, values, ends, last_value, discount, trace):
    """Return the advantages of one environment: sum over l of (gamma lambda)^l times the surprise of step t + l."""
    steps = len(rewards)
    following = [*values[1:], last_value]
    surprises = [rewards[t] + (0.0 if ends[t] else discount * following[t]) - values[t] for t in range(steps)]
    found = []
    for t in range(steps):
        total, weight = 0.0, 1.0
        for later in range(t, steps):
            total += weight * surprises[later]
            weight *= discount * trace
            if ends[later]:
                break
        found.append(total)
    return found


@pytest.mark.parametrize(("discount", "trace"), [(0.99, 0.92), (0.5, 1.0), (1.0, 0.0), (0.9, 0.5)])
def test_they_are_the_sums_of_later_surprises(discount, trace):
    chance = torch.Generator().manual_seed(0)
    steps, copies = 13, 5
    rewards, values = (torch.randn(steps, copies, dtype=torch.float64, generator=chance) for _ in range(2))
    ends = torch.rand(steps, copies, generator=chance) < 0.2
    ends[-1, 0] = True
    assert not ends[:, 1:].all()
    last = torch.randn(copies, dtype=torch.float64, generator=chance)
    found = advantages(rewards, values, ends, last, discount, trace)
    for copy in range(copies):
        columns = (part[:, copy].tolist() for part in (rewards, values, ends))
        expected = written_out(*columns, float(last[copy]), discount, trace)
        torch.testing.assert_close(found[:, copy], torch.tensor(expected, dtype=torch.float64))


def test_with_trace_1_advantage_and_value_make_the_discounted_return():
    rewards = torch.tensor([[1.0], [0.0], [2.0], [4.0]])
    values = torch.tensor([[3.0], [1.0], [5.0], [2.0]])
    ends = torch.tensor([[False], [False], [True], [False]])
    found = advantages(rewards, values, ends, torch.tensor([10.0]), discount=0.5, trace=1.0)
    assert (found + values).flatten().tolist() == [1.5, 1.0, 2.0, 9.0]

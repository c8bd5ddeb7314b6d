"""Copies of an environment: their episodes, their rewards, and that they can be put back to where they were."""

import json

import pytest
import torch

pytest.importorskip("gymnasium", reason="needs the extra rl")

from fewshot_nam.sequences.reinforcement import environments
from fewshot_nam.sequences.reinforcement.environments import Environments

SMALL = {"rooms": 2, "colours": 3, "buttons": 2}


def test_every_copy_begins_its_next_episode_by_itself_and_counts_its_rewards():
    copies = Environments("recall", 3, seed=1, **SMALL)
    assert len(copies) == 3
    assert copies.observations.shape == (3, *copies.observation_shape) == (3, 6)
    first, sums, returns = copies.observations, torch.zeros(3), []
    for step in range(8):
        outcome = copies.step(torch.tensor([0, 1, step % 2]))
        assert torch.equal(outcome.observations, copies.observations)
        sums += outcome.rewards
        assert bool(outcome.ends.all()) == bool(outcome.ends.any()) == (step % 4 == 3)
        if outcome.ends.any():
            returns.append(outcome.returns)
            assert outcome.returns == pytest.approx(sums.tolist())
            sums.zero_()
            assert not bool(outcome.observations[:, -1].any())  # rooms again
        else:
            assert outcome.returns == []
    assert len(returns) == 2
    assert not torch.equal(first, copies.observations)  # another corridor


def test_copies_and_episodes_differ_and_the_same_seed_gives_the_same():
    def first_rooms(seed):
        copies = Environments("recall", 8, seed)
        seen = [copies.observations]
        for _ in range(8):
            seen.append(copies.step(torch.zeros(8, dtype=torch.long)).observations)
        return torch.stack([seen[0], seen[8]])

    one, again, other = first_rooms(0), first_rooms(0), first_rooms(1)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len(one.flatten(0, 1).unique(dim=0)) > 6


@pytest.mark.parametrize(("name", "options", "steps"), [("recall", SMALL, 11), ("pong", {"frame_skip": 4}, 30)])
def test_copies_go_on_from_where_they_were(name, options, steps):
    if name == "pong":
        pytest.importorskip("ale_py", reason="needs the extra rl")
    chance = torch.Generator().manual_seed(0)
    whole, parts = (Environments(name, 2, seed=4, **options) for _ in range(2))
    actions = torch.randint(whole.num_actions, (steps + 5, 2), generator=chance)
    ended = 0
    for action in actions[:steps]:
        ended += len(whole.step(action).returns)
    assert ended == (4 if name == "recall" else 0)
    parts.step(actions[-1])  # what another process may have done
    parts.restore(json.loads(json.dumps(whole.progress())))
    assert torch.equal(parts.observations, whole.observations)
    for action in actions[steps:]:
        here, there = whole.step(action), parts.step(action)
        assert torch.equal(here.observations, there.observations)
        assert torch.equal(here.rewards, there.rewards)
        assert here.returns == there.returns
    whole.close()


def test_names_and_options_that_are_unknown_are_refused():
    with pytest.raises(ValueError, match="did you mean 'recall'"):
        environments.create("recal")
    with pytest.raises(ValueError, match="cannot take these options"):
        environments.create("recall", doors=3)
    with pytest.raises(ValueError, match="at least 1 copy"):
        Environments("recall", 0, seed=0)


def test_without_the_extra_the_error_names_it(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'ale_py'", name="ale_py")

    monkeypatch.setattr(environments.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"needs ale_py: pip install \"fewshot-nam\[rl\]\""):
        environments.create("pong")

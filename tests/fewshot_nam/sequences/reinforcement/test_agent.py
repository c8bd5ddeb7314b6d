"""The agent's networks: sizes, what they remember, and that they forget where an episode ends."""

import pytest
import torch

from fewshot_nam.sequences.reinforcement.agent import MODELS, Agent

OPTIONS = {"width": 12, "memory": 6, "slots": 2}


def agent_of(model, **options):
    torch.manual_seed(0)
    return Agent((7,), 3, model, **{**OPTIONS, **options})


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_a_training_step_reaches_every_weight(model, carry):
    agent = agent_of(model, carry_relations=carry)
    optimiser = torch.optim.Adam(agent.parameters(), 1e-2)
    before = {name: value.clone() for name, value in agent.named_parameters()}
    for _ in range(2):  # weights that begin at 0 pass gradients on from the second step
        state, loss = agent.init_state(4), 0.0
        for _ in range(3):
            logits, values, state = agent(torch.randn(4, 7), state)
            assert logits.shape == (4, 3)
            assert values.shape == (4,)
            loss = loss + logits.log_softmax(-1)[:, 0].sum() + values.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert not [name for name, value in agent.named_parameters() if torch.equal(value, before[name])]


@pytest.mark.parametrize("model", MODELS)
def test_only_models_with_a_memory_remember(model):
    agent = agent_of(model)
    now = torch.randn(1, 7)
    answers = []
    for earlier in (torch.zeros(1, 7), torch.ones(1, 7)):
        _, _, state = agent(earlier, agent.init_state(1))
        answers.append(agent(now, state)[0])
    assert torch.equal(*answers) == (model == "feedforward")


def test_with_stm_both_outputs_count_and_the_item_memory_remembers():
    agent = agent_of("lstm-stm")
    assert agent.actor.in_features == 24
    hidden, cell, item = agent.init_state(1)
    other = item + 0.1
    now = torch.randn(1, 7)
    assert not torch.equal(agent(now, (hidden, cell, item))[0], agent(now, (hidden, cell, other))[0])


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_an_episode_that_begins_knows_nothing_of_the_one_before(model, carry):
    agent = agent_of(model, carry_relations=carry)
    _, _, state = agent(torch.randn(3, 7), agent.init_state(3))
    after = agent.begin_anew(state, torch.tensor([True, False, True]))
    for old, new, first in zip(state, after, agent.init_state(3), strict=True):
        assert torch.equal(new[1], old[1])
        assert torch.equal(new[0], first[0])
        assert torch.equal(new[2], first[2])
        assert not torch.equal(old[0], first[0])
    assert agent.begin_anew(state, torch.zeros(3, dtype=torch.bool)) is state


def test_the_network_for_pong_has_the_published_sizes():
    agent = Agent((1, 80, 80), 6)
    x = torch.rand(2, 1, 80, 80)
    assert agent.encode(x).shape == (2, 1024)
    assert (agent.cell.input_size, agent.cell.hidden_size) == (1024, 256)
    assert (agent.stm.memory_size, agent.stm.num_slots, agent.stm.output_size) == (96, 8, 256)
    assert (agent.actor.in_features, agent.critic.in_features) == (512, 512)
    logits, values, state = agent(x, agent.init_state(2))
    assert [tuple(part.shape) for part in (logits, values, *state)] == [(2, 6), (2,), (2, 256), (2, 256), (2, 96, 96)]
    assert logits.detach().softmax(-1).sub(1 / 6).abs().max() < 0.05  # at first, all actions are about as likely


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="no agent 'gru'"):
        Agent((7,), 3, "gru")
    with pytest.raises(ValueError, match=r"\(channels, 80, 80\) images"):
        Agent((1, 84, 84), 3)

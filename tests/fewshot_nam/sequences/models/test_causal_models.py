"""Models that read forward: nothing later changes them, they run token by token, and tasks that need them refuse the others."""

import pytest
import torch

from fewshot_nam.memory.language_model import generate
from fewshot_nam.sequences import models, tasks

STREAMING = ["lstm-forward", "nam-attention", "nam-attention-erase", "transformer-causal"]
CAUSAL = [*STREAMING, "alstm", "dnc", "linear-transformer", "mann", "ntm", "rmc", "stm", "tpr-rnn"]


@pytest.fixture(scope="module")
def task():
    return tasks.create("reverse")


def build(name, task, **options):
    torch.manual_seed(0)
    return models.create(name, task, "tiny", **options).eval()


@pytest.mark.parametrize("name", models.available())
def test_a_causal_model_is_one_that_later_tokens_do_not_change(name, task):
    model = build(name, task)
    assert model.causal == (name in CAUSAL)
    if not model.causal:
        return
    first = task.sample(2, torch.Generator().manual_seed(0), 5).inputs
    second = first.clone()
    second[:, 7:] = (first[:, 7:] + 1) % 10
    torch.testing.assert_close(model(first)[:, :7], model(second)[:, :7])


def test_a_task_that_shows_its_answers_takes_causal_models_alone(task, monkeypatch):
    monkeypatch.setattr(type(task), "causal", True)
    build("lstm-forward", task)
    for name, options in (("lstm", {}), ("transformer", {}), ("linear-transformer", {"causal": False})):
        with pytest.raises(ValueError, match=f"'{name}' reads ahead"):
            build(name, task, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in STREAMING),
        ("nam-attention", {"positions": True}),
        ("nam-attention-erase", {"start": True, "positions": True, "conv_size": 3}),
        ("transformer-causal", {"conv_size": 3}),
    ],
)
def test_parts_and_single_tokens_give_what_the_whole_sequence_gives(name, options, task):
    model = build(name, task, **options)
    tokens = task.sample(3, torch.Generator().manual_seed(1), 7).inputs
    state, parts = model.init_state(3), []
    for start, stop in ((0, 4), (4, 5), (5, 9)):  # the last one behind what is kept already
        logits, state = model.extend(tokens[:, start:stop], state)
        parts.append(logits)
    for place in range(9, tokens.shape[1]):
        logits, state = model.step(tokens[:, place], state)
        parts.append(logits.unsqueeze(1))
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-4, atol=1e-5)


def test_positions_tell_an_order_that_nothing_else_tells(task):
    """A memory without erase is a sum: what was written in another order reads alike at the end."""
    tokens = torch.tensor([[1, 2, 3, 4, 5], [3, 1, 2, 4, 5]])
    for positions in (False, True):
        model = build("nam-attention", task, positions=positions)  # of one layer
        first, second = model(tokens)[:, -1]
        assert torch.allclose(first, second, atol=1e-6) != positions


@pytest.mark.parametrize("name", STREAMING)
def test_what_is_generated_is_the_most_likely_token_of_the_whole_sequence(name, task):
    model = build(name, task)
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    said = generate(model, prompt, 6)
    for step in range(6):
        whole = torch.cat([prompt, said[:, :step]], dim=1)
        assert torch.equal(model(whole)[:, -1].argmax(-1), said[:, step])


def test_models_that_cannot_run_token_by_token_say_so(task):
    for name in ("lstm", "alstm"):
        with pytest.raises(ValueError, match="cannot run token by token"):
            build(name, task).init_state(1)


def test_rotary_positions_need_an_even_width_of_heads(task):
    with pytest.raises(ValueError, match="multiple of 4, twice heads"):
        build("transformer-causal", task, width=6)


def test_a_convolution_of_the_transformer_that_keeps_each_token_changes_nothing(task):
    plain, model = build("transformer-causal", task), build("transformer-causal", task, conv_size=3)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == ([f"layers.{i}.conv.weight" for i in range(len(model.layers))], [])
    tokens = torch.tensor([[1, 2, 3, 4]])
    for weights, alike in (([0.0, 0.0, 1.0], True), ([0.0, 1.0, 0.0], False)):
        for layer in model.layers:
            layer.conv.weight.data[:] = torch.tensor(weights)
        assert torch.allclose(model(tokens), plain(tokens), atol=1e-6) == alike
    with pytest.raises(ValueError, match="conv_size must be None or an integer of at least 2"):
        build("transformer-causal", task, conv_size=1)

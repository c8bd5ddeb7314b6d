"""Every sequence model: shapes, padding, seeds, the published sizes, and that it can learn."""

import pytest
import torch
from torch.nn import functional as F

from fewshot_nam.sequences import models, tasks

NAMES = sorted(models.available())


@pytest.fixture(scope="module")
def task():
    return tasks.create("reverse")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(name, task, size="tiny", **options):
    torch.manual_seed(0)
    # A circular tape depends on its length, which is otherwise that of the longest sequence of the batch.
    if name == "tape-rnn":
        options.setdefault("tape_length", 24)
    return models.create(name, task, size, **options)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_to_logits_whatever_the_padding(name, task):
    model = build(name, task).eval()
    batch = task.sample(5, seeded(), (1, 7))
    logits = model(batch.inputs)
    assert logits.shape == (*batch.inputs.shape, len(task.vocabulary))
    assert logits.isfinite().all()
    for row, tokens in zip(logits, batch.inputs, strict=True):
        length = int((tokens != task.pad).sum())
        alone = model(tokens[:length].unsqueeze(0))[0]
        torch.testing.assert_close(row[:length], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_trained(name, task):
    model = build(name, task)
    batch = task.sample(4, seeded(), (3, 6))
    F.cross_entropy(model(batch.inputs)[batch.mask], batch.targets[batch.mask]).backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_learn_a_batch(name, task):
    model = build(name, task, **({} if name in ("tape-rnn", "stack-rnn") else {"dropout": 0.0}))
    batch = task.sample(8, seeded(), 2)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(model(batch.inputs)[batch.mask], batch.targets[batch.mask])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


PUBLISHED = {  # millions; the vocabulary of the published models has 16 words, ours 14
    "nam-tm": 19.1,
    "nam-tm-no-jump": 18.0,
    "lsam": 17.4,
    "lstm-attention": 31.5,
    "universal-transformer": 26.0,
    "stack-rnn": 15.8,
    "stm": 6.2,
    # Published: 28.7 million. Eight layers of the published sizes have 25.5, nine have 28.7.
    "transformer": 25.5,
}


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_parameters_at_the_published_size(name, millions, task):
    with torch.device("meta"):
        model = models.create(name, task, "paper")
    assert round(model.num_parameters / 1e6, 1) == millions


@pytest.mark.parametrize("name", NAMES)
def test_models_of_one_seed_are_equal_and_change_no_input(name, task):
    first, second = (build(name, task).eval() for _ in range(2))
    tokens = task.sample(2, seeded(), 3).inputs
    before = tokens.clone()
    assert torch.equal(first(tokens), second(tokens))
    assert torch.equal(tokens, before)


def test_what_does_not_fit_is_refused(task):
    with pytest.raises(ValueError, match="did you mean 'lstm'"):
        models.create("lstn", task)
    with pytest.raises(ValueError, match="no size 'huge'"):
        models.create("lstm", task, "huge")
    with pytest.raises(ValueError, match="cannot take these options"):
        models.create("lstm", task, colour="red")
    with pytest.raises(ValueError, match=r"tokens must be \(B, T\) long"):
        models.create("lstm", task)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="width must be even"):
        models.create("lstm", task, width=7)
    with pytest.raises(ValueError, match="wiring must be"):
        models.create("nam-tm", task, wiring="spaghetti")
    with pytest.raises(ValueError, match="feedforward belongs to wiring='residual'"):
        models.create("nam-tm", task, "paper", feedforward=8)
    with pytest.raises(ValueError, match="2 layers need as many controllers or one for all, got 3"):
        models.create("nam-tm", task, controller=["lstm", "mlp", "mlp"])
    with pytest.raises(ValueError, match="there are 8 positions: pass longest="):
        models.create("transformer", task, "tiny", longest=8)(torch.zeros(1, 9, dtype=torch.long))


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_same_where_they_are_asked_for(name, task):
    model = build(name, task).eval()
    batch = task.sample(3, seeded(), 4)
    torch.testing.assert_close(model(batch.inputs, batch.mask)[batch.mask], model(batch.inputs)[batch.mask])


def test_machines_of_nam_tm_have_controllers_of_their_own(task):
    mixed = models.create("nam-tm", task, "tiny", controller=["lstm", "mlp"])
    kinds = [type(machine.controller).__name__ for machine in mixed.machines]
    assert kinds == ["LSTM", "FeedForward"]
    torch.manual_seed(0)
    one_for_all = models.create("nam-tm", task, "tiny", controller="lstm").eval()
    torch.manual_seed(0)
    one_for_each = models.create("nam-tm", task, "tiny", controller=["lstm", "lstm"]).eval()
    tokens = task.sample(3, seeded(), 4).inputs
    assert torch.equal(one_for_all(tokens), one_for_each(tokens))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "transformer-randomised"])  # it draws its positions
def test_inference_gives_what_training_gives_without_dropout(name, task):
    model = models.create(name, task, "tiny", **({} if name == "tape-rnn" else {"dropout": 0.0}))
    generator = seeded(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    batch = task.sample(3, seeded(), 4)
    trained = model.train()(batch.inputs, batch.mask)[batch.mask].detach()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(batch.inputs, batch.mask)[batch.mask], trained, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["transformer-relative", "transformer-sinusoidal", "transformer-randomised"])
def test_transformers_know_the_order_of_tokens(name, task):
    model = build(name, task).eval()
    if name == "transformer-relative":
        torch.nn.init.normal_(model.bias.weight, generator=seeded(1))
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert not torch.allclose(model(tokens)[0, 0], model(tokens[:, [0, 2, 1, 3]])[0, 0], atol=1e-4)


def test_stack_rnn_pushes_and_pops_as_a_stack(task):
    """With the actions set by hand the top of the stack is what a list would give."""
    model = models.create("stack-rnn", task, width=4, cell=1, dropout=0.0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # Token 1 pushes 1, token 2 pushes 0, token 3 pops; hidden units are sigmoids of +-20: 0 or 1.
        model.embed.weight[1:4, :3] = 40 * torch.eye(3)
        model.inputs.weight[:3, :3] = torch.eye(3)
        model.inputs.bias[:3] = -20
        model.recur.weight[3, 4] = 40  # the fourth unit shows the top as it was before the action
        model.inputs.bias[3] = -20
        model.act.weight[:, :3] = torch.tensor([[40.0, 40, 0], [0, 0, 40], [0, 0, 0]])
        model.push.weight[0, 0] = 40
        model.push.bias[0] = -20
    shown = []
    handle = model.out.register_forward_hook(lambda _m, inputs, _o: shown.append(inputs[0][0, :, 3]))
    model(torch.tensor([[1, 2, 3, 3, 1, 1, 3, 2]]))
    handle.remove()
    stack, expected = [], []
    for token in [1, 2, 3, 3, 1, 1, 3, 2]:
        expected.append(stack[-1] if stack else 0)
        if token == 3:
            stack.pop()
        else:
            stack.append(1 if token == 1 else 0)
    assert shown[0].round().tolist() == expected


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lsam", {"max_erase": 2.0, "erase": "separate", "conv_size": 3, "value_activation": "tanh"}),
        ("nam-attention-erase", {"max_erase": 2.0, "conv_size": 3, "output_norm": True}),
        ("nam-attention-erase", {"max_erase": 2.0, "start": True, "gate": "hard", "writes_per_token": 2}),
        ("nam-tm", {"actions": ("noop", "right", 2), "move_noise": 1.0, "head_norm": "state", "feedforward": 12}),
    ],
    ids=["lsam", "nam-attention-erase", "nam-attention-erase with a start", "nam-tm"],
)
def test_options_of_layers_reach_them(name, options, task):
    model = models.create(name, task, "tiny", **options)
    inside = [vars(module) for module in model.modules()]
    for option, value in options.items():
        if option not in ("actions", "feedforward", "output_norm", "conv_size", "start"):
            assert any(attributes.get(option) == value for attributes in inside), option
    words = str(model)
    if "conv_size" in options:
        assert "ShortConvolution" in words
    if "actions" in options:
        assert "actions=(noop, right, shift(+2))" in words
        assert "in_features=16, out_features=12" in words
    tokens = task.sample(3, torch.Generator().manual_seed(0), (2, 5)).inputs
    logits = model.eval()(tokens)
    assert logits.shape == (*tokens.shape, len(task.vocabulary))
    longer = torch.nn.functional.pad(tokens, (0, 3), value=task.pad)
    assert torch.allclose(model(longer)[:, : tokens.shape[1]], logits, atol=1e-5)

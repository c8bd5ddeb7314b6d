"""Heads under ``torch.compile``: one graph, the same scores, and features that cannot be used are still refused."""

import pytest
import torch
from torch import nn

from backbones import Backbone
from fewshot_nam import NAMModel
from fewshot_nam.heads import BaseStatistics, CosineHead, NAMHead, WriteRuleHead

HEADS = {
    "nam": lambda known: NAMHead(),
    "nam with base images": lambda known: NAMHead(BaseStatistics.from_features(known, [i // 3 for i in range(12)])),
    "nam with base classes": lambda known: NAMHead(base=BaseStatistics.from_prototypes(known)),
    "nam-sequential": lambda known: WriteRuleHead("sequential"),
    "cosine": lambda known: CosineHead(
        log_partition_penalty=0.5, power_norm=True, base=BaseStatistics.from_mean(known.mean(dim=0))
    ),
}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", HEADS)
def test_a_compiled_head_is_one_graph_and_scores_alike_whatever_it_learns(name):
    features = torch.rand(12, 7, generator=torch.Generator().manual_seed(0))
    head = HEADS[name](features.flip(0).roll(1, 1)).write(features[:3], ["a", "b", "c"])
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    for step in ("as learned", "kept", "more"):
        if step == "more":
            head.write(features[3:5], ["d", "e"])
        found = compiled(features)
        head._outdate()
        torch.testing.assert_close(found, head(features))


def test_a_compiled_head_refuses_features_that_cannot_be_used():
    features = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    head = NAMHead().write(features[:3], ["a", "b", "c"])
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    compiled(features)
    for bad in (torch.nan, torch.inf, 0.0):
        wrong = features.clone()
        wrong[3] = bad
        with pytest.raises(RuntimeError, match="features: a vector cannot be used"):
            compiled(wrong)


def test_a_compiled_model_is_one_graph():
    network = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    model = NAMModel(Backbone("small", network, lambda _: images[0], "same"), NAMHead()).learn(images[:2], ["a", "b"])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images))
        model.learn(images[2:], ["c", "a"])
        torch.testing.assert_close(compiled(images), model(images))

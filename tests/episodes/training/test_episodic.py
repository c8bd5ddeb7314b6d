"""FEAT and Relation Networks: trained on base episodes, and computed as published."""

import math

import pytest
import torch

from episodes import FeatureBank, evaluate
from episodes.training.episodic import train_on_episodes
from episodes.training.feat import FEATHead
from episodes.training.relation import RelationHead

D = 6


def bank(classes, seed):
    """Return classes that differ in one direction, which noise hides from prototypes of a few images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(20)
    features = torch.rand(len(labels), D, generator=generator) * torch.tensor([1.0] * (D - 1) + [0.1])
    features[:, -1] += torch.rand(classes, generator=generator)[labels]
    return FeatureBank(features + 0.1, labels)


BASE, NOVEL = bank(30, 0), bank(12, 1)


@pytest.mark.parametrize("name", ["feat", "relation"])
def test_training_lowers_the_loss_and_gives_the_same_head_for_the_same_seed(name):
    few, many = (train_on_episodes(BASE, name, 3, 1, 5, iterations=n, tasks=8, rate=3e-3, seed=1) for n in (1, 150))
    again = train_on_episodes(BASE, name, 3, 1, 5, iterations=1, tasks=8, rate=3e-3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(few.parameters(), again.parameters(), strict=True))
    heads = {"many": many, "few": few}
    report = evaluate(NOVEL, heads, protocol="closed", ways=3, shots=1, queries=5, episodes=400, seed=2)
    assert report.paired["many-few"]["accuracy"]["mean"] > 0.02
    assert not any(parameter.requires_grad for parameter in many.parameters())


def test_feat_adapts_prototypes_by_attention():
    torch.manual_seed(0)
    head = FEATHead(D)
    torch.nn.init.normal_(head.out.weight)
    support, query = torch.rand(3, D), torch.rand(4, D)
    found = head.write(support, ["a", "b", "c"])(query)
    p, x = (math.sqrt(D) * rows / rows.norm(dim=1, keepdim=True) for rows in (support, query))
    q, k, v = (p @ layer.weight.T for layer in (head.query, head.key, head.value))
    mixed = torch.softmax(q @ k.T / math.sqrt(D), dim=1) @ v @ head.out.weight.T + p
    adapted = (mixed - mixed.mean(1, keepdim=True)) / (mixed.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(found, -(torch.cdist(x, adapted) ** 2) / 64, rtol=1e-4, atol=1e-5)


def test_relation_scores_pairs_of_prototype_and_query():
    torch.manual_seed(0)
    head = RelationHead(D, 5)
    support, query = torch.rand(3, D), torch.rand(4, D)
    found = head.write(support, ["a", "b", "c"])(query)
    p, x = (math.sqrt(D) * rows / rows.norm(dim=1, keepdim=True) for rows in (support, query))
    weight = torch.cat([head.of_class.weight, head.of_query.weight, head.of_both.weight], dim=1)
    for i in range(4):
        for c in range(3):
            hidden = (weight @ torch.cat([p[c], x[i], p[c] * x[i]]) + head.of_class.bias).relu()
            expected = torch.sigmoid(head.out.weight[0] @ hidden + head.out.bias[0])
            torch.testing.assert_close(found[i, c], expected)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="'feat' is trained on features of base classes, and none are given"):
        train_on_episodes(None, "feat")
    with pytest.raises(ValueError, match="'feat' is trained on episodes of base classes: "):
        train_on_episodes(BASE, "feat", ways=50)
    with pytest.raises(ValueError, match="no head 'nam'"):
        train_on_episodes(BASE, "nam")
    with pytest.raises(ValueError, match="tasks must be at least 1"):
        train_on_episodes(BASE, "feat", tasks=0)
    for build in (FEATHead, RelationHead):
        with pytest.raises(ValueError, match="width must be at least 1"):
            build(0)

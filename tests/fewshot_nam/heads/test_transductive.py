"""Transductive heads: each against its published formula written plainly, and what holds of all of them."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot, softmax

from fewshot_nam.heads import BaseStatistics, available, create
from fewshot_nam.heads.bd_cspn import BDCSPNHead
from fewshot_nam.heads.finetune import FinetuneHead
from fewshot_nam.heads.laplacian_shot import LaplacianShotHead
from fewshot_nam.heads.matching import MatchingHead
from fewshot_nam.heads.pt_map import PTMAPHead
from fewshot_nam.heads.registry import transductive

NAMES = [name for name in available() if transductive(name)]
WAYS, SHOTS, QUERIES, WIDTH = 3, 2, 8, 7


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


@pytest.fixture(scope="module")
def episode():
    """Return support ``(WAYS * SHOTS, D)``, its targets and queries, of classes that overlap; in float64."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.rand(WAYS, WIDTH, generator=generator, dtype=torch.float64) + 0.2
    targets = torch.arange(WAYS).repeat_interleave(SHOTS)
    answers = torch.arange(QUERIES) % WAYS
    noise = torch.rand(len(targets) + QUERIES, WIDTH, generator=generator, dtype=torch.float64)
    rows = torch.cat([centres[targets], centres[answers]]) + 0.7 * noise
    return rows[: len(targets)], targets, rows[len(targets) :]


def scores(head, episode):
    support, targets, query = episode
    return head.double().write(support, targets)(query)


def prototypes(support, targets):
    return torch.stack([support[targets == c].mean(0) for c in range(WAYS)])


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.1, 0.1, 1.0)])
def test_fine_tuning_descends_the_loss_of_the_paper(episode, weights):
    support, targets, query = episode
    a, b, c = weights
    head = FinetuneHead(7, 0.01, 5.0, cross_entropy_weight=a, conditional_entropy_weight=b, marginal_entropy_weight=c)
    found = scores(head, episode)
    z, q = unit(support), unit(query)
    w = prototypes(z, targets).requires_grad_()
    adam = torch.optim.Adam([w], lr=0.01)

    def logits(x):
        return -2.5 * ((x[:, None] - w[None]) ** 2).sum(-1)

    for _ in range(7):
        p = softmax(logits(q), dim=-1)
        conditional, mean = -(p * p.log()).sum(-1).mean(), p.mean(0)
        loss = a * cross_entropy(logits(z), targets) + b * conditional + c * (mean * mean.log()).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    expected = (logits(q) + 2.5 * (q**2).sum(-1, keepdim=True)).detach()  # up to a constant of each query
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def rectified(support, targets, query, sharpness):
    z, q = unit(support), unit(query)
    q = q + z.mean(0) - q.mean(0)
    before = prototypes(z, targets)
    found = []
    for c in range(WAYS):
        members = [x for x, t in zip(z, targets, strict=True) if t == c]
        members += [x for x in q if int((unit(x) @ unit(before).T).argmax()) == c]
        weights = torch.stack([torch.exp(sharpness * (unit(x) @ unit(before[c]))) for x in members])
        found.append((weights[:, None] * torch.stack(members)).sum(0) / weights.sum())
    return torch.stack(found), q


def test_bd_cspn_rectifies_prototypes_as_published(episode):
    moved, q = rectified(*episode, 4.0)
    torch.testing.assert_close(scores(BDCSPNHead(4.0), episode), unit(q) @ unit(moved).T)


def test_laplacian_shot_updates_assignments_as_published(episode):
    moved, q = rectified(*episode, 10.0)
    a, distances = torch.cdist(q, moved) ** 2, torch.cdist(q, q)
    links = torch.zeros(QUERIES, QUERIES, dtype=a.dtype)
    for i in range(QUERIES):
        nearest = [j for j in distances[i].argsort().tolist() if j != i][:2]
        links[i, nearest] = 1
    y = softmax(-a, dim=-1)
    for _ in range(5):
        logits = -a + 0.6 * links @ y
        y = softmax(logits, dim=-1)
    torch.testing.assert_close(scores(LaplacianShotHead(0.6, 2, 5), episode), logits, rtol=1e-5, atol=1e-5)


def test_pt_map_transports_queries_and_moves_centres_as_published(episode):
    support, targets, query = episode
    z, q = (unit(x.sqrt()) for x in (support, query))
    z, q = (unit(x - x.mean(0)) for x in (z, q))

    def transport(centres):
        plan = torch.exp(-10 * torch.cdist(q, centres) ** 2)
        for _ in range(2000):
            plan = plan * (QUERIES / WAYS / plan.sum(0, keepdim=True))
            plan = plan / plan.sum(1, keepdim=True)
        return plan

    centres = prototypes(z, targets)
    for _ in range(4):
        shares = torch.cat([one_hot(targets, WAYS).double(), transport(centres)])
        centres = centres + 0.3 * (shares.T @ torch.cat([z, q]) / shares.sum(0)[:, None] - centres)
    found = scores(PTMAPHead(10.0, 0.3, 4), episode).exp()
    torch.testing.assert_close(found, transport(centres), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.sum(0), torch.full((WAYS,), QUERIES / WAYS).double(), rtol=1e-3, atol=1e-3)


def test_matching_weighs_the_support_by_attention(episode):
    support, targets, query = episode
    attention = softmax(unit(query) @ unit(support).T / 0.2, dim=-1)
    expected = torch.stack([attention[:, targets == c].sum(-1) for c in range(WAYS)], dim=-1).log()
    torch.testing.assert_close(scores(MatchingHead(0.2), episode), expected)


@pytest.mark.parametrize("name", NAMES)
def test_episodes_equal_one_head_after_another_with_base_classes_too(name):
    generator = torch.Generator().manual_seed(1)
    support, query = torch.rand(3, 4, 2, 6, generator=generator) + 0.1, torch.rand(3, 12, 6, generator=generator) + 0.1
    base = torch.rand(2, 6, generator=generator) + 0.1
    known = BaseStatistics.from_prototypes(torch.rand(5, 6, generator=generator))
    together = create(name, known).score_episodes(support, query, base)
    for i in range(3):
        head = create(name, known).write_base(base, ["x", "y"])
        head.write(support[i].flatten(0, 1), torch.arange(4).repeat_interleave(2))
        torch.testing.assert_close(together[i], head(query[i]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_other_queries_of_a_batch_change_the_scores_and_their_order_does_not(name, episode):
    support, targets, query = (x.float() if x.is_floating_point() else x for x in episode)
    head = create(name).write(support, targets)
    together = head(query)
    order = torch.randperm(QUERIES, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(query[order]), together[order], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(head(query[:3]), together[:3], rtol=1e-4, atol=1e-4)
    assert head(query[:0]).shape == (0, WAYS)
    assert head(query[0]).shape == (WAYS,)


@pytest.mark.parametrize("name", NAMES)
def test_a_threshold_of_one_batch_is_refused(name, episode):
    support, targets, query = (x.float() if x.is_floating_point() else x for x in episode)
    head = create(name).write(support, targets)
    for calibrate in (lambda: head.calibrate(query, target_fpr=0.5), head.calibrate_from_shots):
        with pytest.raises(ValueError, match="is transductive: scores depend on the batch"):
            calibrate()


@pytest.mark.parametrize("name", NAMES)
def test_identical_queries_and_one_class_give_finite_scores(name):
    one = torch.tensor([[1.0, 0.5, 0.2]])
    assert create(name).write(one, "a")(one.repeat(4, 1)).isfinite().all()
    assert create(name).write(torch.eye(3), ["a", "b", "c"])(one.repeat(4, 1)).isfinite().all()


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (lambda: FinetuneHead(-1), "steps must be from 0 to 10,000"),
        (lambda: FinetuneHead(10**9), "steps must be from 0 to 10,000"),
        (lambda: FinetuneHead(rate=0), "rate must be above 0"),
        (lambda: FinetuneHead(temperature=math.inf), "temperature must be above 0"),
        (lambda: FinetuneHead(marginal_entropy_weight=-1), "weights of the loss must be at least 0"),
        (lambda: BDCSPNHead(0), "BDCSPNHead: sharpness must be above 0"),
        (lambda: LaplacianShotHead(-1), "laplacian_weight must be at least 0"),
        (lambda: LaplacianShotHead(neighbours=0), "neighbours must be at least 1"),
        (lambda: PTMAPHead(0), "concentration must be above 0"),
        (lambda: PTMAPHead(rate=2), "rate must be above 0 and at most 1"),
        (lambda: PTMAPHead(steps=-1), "steps must be from 0 to 10,000"),
        (lambda: MatchingHead(0), "temperature must be above 0"),
    ],
)
def test_settings_outside_their_range_are_refused(build, problem):
    with pytest.raises(ValueError, match=problem):
        build()

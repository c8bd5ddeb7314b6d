"""The space of base classes: what its parts do to features, against plain computations."""

import pytest
import torch
from torch import Tensor

from fewshot_nam.heads import BaseStatistics
from fewshot_nam.heads.base_space import base_space
from fewshot_nam.heads.power_norm import power_normalise
from fewshot_nam.memory import unit

D, B, N = 6, 40, 30


def clustered(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features whose classes differ most along the first axis and whose images differ most along the last."""
    draw = torch.Generator().manual_seed(seed)
    between, within = torch.linspace(2, 0.5, D), torch.linspace(0.2, 1.5, D)
    centres = between * torch.randn(B, 1, D, generator=draw)
    rows = centres + within * torch.randn(B, N, D, generator=draw)
    return rows.flatten(0, 1).double(), torch.arange(B).repeat_interleave(N)


def test_the_within_class_covariance_is_that_of_directions_about_their_class_means():
    rows, labels = clustered()
    base = BaseStatistics.from_features(rows, labels)
    directions = unit(power_normalise(rows) - power_normalise(base.power_means.double()).mean(0)).view(B, N, D)
    away = (directions - directions.mean(1, keepdim=True)).flatten(0, 1)
    torch.testing.assert_close(base.within_covariance.double(), away.T @ away / (B * N - B), rtol=1e-4, atol=1e-6)
    assert BaseStatistics.from_features(rows[:3], [0, 1, 2]).within_covariance is None, "one image a class says nothing"


def test_full_whitening_makes_images_differ_alike_in_all_directions():
    rows, labels = clustered()
    base = BaseStatistics.from_features(rows, labels)
    space = base_space(base, identity_share=0.0, between_power=0.0)
    within = space.metric.T @ base.within_covariance.double() @ space.metric
    torch.testing.assert_close(within / within.trace() * D, torch.eye(D).double(), rtol=1e-4, atol=1e-4)


def test_no_whitening_and_no_emphasis_is_the_identity():
    base = BaseStatistics.from_features(*clustered())
    space = base_space(base, identity_share=1.0, between_power=0.0)
    torch.testing.assert_close(space.metric, torch.eye(D).double())
    rows = clustered(1)[0]
    plain = base_space(BaseStatistics.from_prototypes(base.power_means), 1.0, 0.0)
    torch.testing.assert_close(space.embed(rows), plain.embed(rows))


def test_the_likeness_is_the_mean_cosine_of_two_images_of_a_class():
    rows, labels = clustered()
    for share, power in ((1.0, 0.0), (0.8, 0.125), (0.3, 0.5)):
        space = base_space(BaseStatistics.from_features(rows, labels), share, power)
        z = space.embed(rows).view(B, N, D)
        cosines = z @ z.mT
        observed = (cosines.sum() - B * N) / (B * N * (N - 1))
        assert float(observed) == pytest.approx(space.likeness, abs=0.06)


def test_emphasis_follows_the_directions_in_which_classes_differ():
    base = BaseStatistics.from_features(*clustered())
    plain, weighted = base_space(base, 1.0, 0.0), base_space(base, 1.0, 0.25)
    assert weighted.prototypes.var(0)[0] > plain.prototypes.var(0)[0]
    assert weighted.prototypes.var(0)[-1] < plain.prototypes.var(0)[-1]


def test_classes_that_are_all_alike_have_no_emphasis():
    same = BaseStatistics(torch.ones(4, D), torch.ones(4, D), torch.ones(D), None, torch.zeros(D, D))
    torch.testing.assert_close(base_space(same, 0.8, 0.125).metric, torch.eye(D).double())

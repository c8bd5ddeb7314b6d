"""Intervals over classes: on synthetic populations whose true mean is known."""

import numpy as np
import pytest
import torch

from episodes.metrics.intervals import ci95_over_classes, class_groups, interval

CLASSES, WAYS, EPISODES = 30, 8, 400


def simulated(seed: int, between: float, within: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values of episodes and the classes in them; every class of the sample has an effect, the true mean is 0."""
    generator = torch.Generator().manual_seed(seed)
    effect = between * torch.randn(CLASSES, generator=generator, dtype=torch.float64)
    drawn = torch.rand(EPISODES, CLASSES, generator=generator).argsort(1)[:, :WAYS]
    values = effect[drawn].mean(1) + within * torch.randn(EPISODES, generator=generator, dtype=torch.float64)
    return values, torch.zeros(EPISODES, CLASSES, dtype=torch.bool).scatter_(1, drawn, True)


@pytest.mark.parametrize(("between", "within"), [(1.0, 0.3), (0.3, 1.0), (0.05, 1.0), (0.0, 1.0)])
def test_the_interval_covers_the_mean_of_the_population_of_classes(between, within):
    # 200 repeats; 95% nominal, and 4 standard errors of a share of 200 are 6%.
    covered = []
    for seed in range(200):
        values, present = simulated(seed, between, within)
        covered.append(abs(values.mean().item()) <= ci95_over_classes(values[:, None], present).item())
    assert np.mean(covered) >= 0.89


def test_an_interval_over_episodes_alone_is_too_narrow_where_classes_differ():
    values, present = simulated(0, 1.0, 0.3)
    assert ci95_over_classes(values[:, None], present).item() > 2 * interval(values).ci95


def test_without_class_effects_it_is_hardly_wider_than_that_over_episodes():
    ratios = []
    for seed in range(50):
        values, present = simulated(seed, 0.0, 1.0)
        ratios.append(ci95_over_classes(values[:, None], present).item() / interval(values).ci95)
    assert 1 <= np.median(ratios) < 1.5
    assert min(ratios) >= 1 - 1e-9


def test_it_equals_the_jackknife_by_hand():
    values, present = simulated(3, 1.0, 0.3)
    without = [values[~present[:, g]].mean() for g in range(CLASSES)]
    left = [int((~present[:, g]).sum()) for g in range(CLASSES)]
    spread = sum((float(each) - float(np.mean(without))) ** 2 for each in without)
    chance = float(values.var()) * sum(1 / n - 1 / EPISODES for n in left)
    variance = (CLASSES - 1) / CLASSES * (spread - chance) + float(values.var()) / EPISODES
    assert ci95_over_classes(values[:, None], present).item() == pytest.approx(1.96 * variance**0.5)


def test_it_is_nan_where_every_episode_has_the_class():
    values, present = simulated(0, 1.0, 0.3)
    assert ci95_over_classes(values[:, None], torch.ones_like(present)).isnan().all()
    assert ci95_over_classes(values[:, None], present[:, :4]).isnan().all()
    with pytest.raises(ValueError, match="expected values"):
        ci95_over_classes(values, present)


def test_characters_are_left_out_by_alphabet():
    groups, name = class_groups([f"alphabet{a}/character{c}" for a in range(6) for c in range(3)])
    assert groups.tolist() == [a for a in range(6) for _ in range(3)]
    assert name == "directory of classes"
    assert class_groups([3, 5, 8])[1] == "class"

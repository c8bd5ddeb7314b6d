"""The guarantee on false alarms, tested as one: by simulation with a known truth, and by hand."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fewshot_nam.heads import create
from fewshot_nam.heads.conformal import conformal_threshold
from fewshot_nam.heads.temperature import fit_temperature


def p_value(score: float, groups: dict[int, list[float]]) -> Fraction:
    """Return the p-value of the module's docstring, word for word."""
    votes = [Fraction(sum(s >= score for s in scores), len(scores)) for scores in groups.values()]
    return (1 + sum(votes)) / Fraction(len(votes) + 1)


SMALL = st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3)), min_size=1, max_size=25)


@given(SMALL, st.integers(1, 39), st.integers(-4, 4))
@example([(0, 1), (0, 1), (0, 0), (1, 2), (2, 2), (3, 2)], 20, 1)
@example([(0, 1), (0, 1), (0, 0), (1, 2), (2, 2), (3, 2)], 20, 2)
def test_accepted_is_what_has_a_small_p_value(pairs, fortieths, new):
    target = Fraction(fortieths, 40)
    groups: dict[int, list[float]] = {}
    for group, score in pairs:
        groups.setdefault(group, []).append(score)
    scores = torch.tensor([float(score) for _, score in pairs])
    labels = torch.tensor([group for group, _ in pairs])
    alone = {i: [score] for i, (_, score) in enumerate(pairs)}
    for names, parts in ((labels, groups), (None, alone)):
        if target < Fraction(1, len(parts) + 1):
            with pytest.raises(ValueError, match="needs at least"):
                conformal_threshold(scores, float(target), names)
            continue
        found = conformal_threshold(scores, float(target), names)
        assert (new >= found.threshold) == (p_value(new, parts) <= target)
        assert found.groups == len(parts)
        assert found.bound <= float(target)


@pytest.mark.parametrize(("count", "target"), [(99, 0.01), (199, 0.01), (19, 0.05), (9, 0.1), (48, 1 / 49), (99, 0.29)])
def test_the_whole_number_that_is_meant_is_safe_against_rounding(count, target):
    found = conformal_threshold(torch.arange(float(count)), target)
    accepted = round(target * (count + 1))
    assert found.threshold == math.nextafter(float(count - accepted), math.inf)
    assert found.bound == pytest.approx(target)


def test_groups_of_one_are_no_groups():
    scores = torch.rand(57, generator=torch.Generator().manual_seed(0))
    for target in (0.02, 0.1, 0.37):
        alone = conformal_threshold(scores, target)
        assert conformal_threshold(scores, target, torch.arange(57)).threshold == alone.threshold


@pytest.mark.parametrize("target", [0.1, 0.05, 0.01])
@pytest.mark.parametrize("strangers", [99, 137])
@pytest.mark.parametrize("ties", [False, True])
def test_false_alarms_stay_below_the_bound_and_reach_it_without_ties(target, strangers, ties):
    # Every repeat is a new calibration and one new stranger, so the alarms are binomial.
    repeats, generator = 4000, torch.Generator().manual_seed(1)
    scores = torch.randn(repeats, strangers + 1, generator=generator, dtype=torch.float64)
    if ties:
        scores = (2 * scores).round()
    alarms, bound = 0, 0.0
    for row in scores:
        found = conformal_threshold(row[:-1], target)
        alarms, bound = alarms + bool(row[-1] >= found.threshold), found.bound
    assert bound == math.floor(round(target * (strangers + 1), 9)) / (strangers + 1) <= target
    slack = 3.3 * math.sqrt(bound * (1 - bound) / repeats)
    assert alarms / repeats <= bound + slack
    assert ties or alarms / repeats >= bound - slack


def test_by_class_the_bound_holds_for_new_classes_where_the_plain_one_is_exceeded():
    # Strangers of a class look alike: classes differ more than the pictures of one. Sizes differ too.
    classes, repeats, target, generator = 20, 4000, 0.1, torch.Generator().manual_seed(2)
    sizes = torch.tensor([3, 30] * (classes // 2))
    labels = torch.arange(classes).repeat_interleave(sizes)
    alarms = {"plain": 0, "by class": 0}
    for _ in range(repeats):
        look = 2 * torch.randn(classes + 1, generator=generator)
        scores = look[labels] + 0.5 * torch.randn(len(labels), generator=generator)
        new = float(look[-1] + 0.5 * torch.randn((), generator=generator))
        for kind, groups in (("plain", None), ("by class", labels)):
            alarms[kind] += new >= conformal_threshold(scores, target, groups).threshold
    slack = 3.3 * math.sqrt(target * (1 - target) / repeats)
    assert alarms["by class"] / repeats <= target + slack
    assert alarms["by class"] / repeats >= target - 1 / (classes + 1) - slack  # what the new class's own vote costs
    assert alarms["plain"] / repeats > target + slack


def test_by_class_is_tight_for_many_classes():
    classes, shots, repeats, target, generator = 199, 3, 3000, 0.1, torch.Generator().manual_seed(3)
    labels = torch.arange(classes).repeat_interleave(shots)
    alarms = 0
    for _ in range(repeats):
        look = 2 * torch.randn(classes + 1, generator=generator)
        scores = look[labels] + torch.randn(len(labels), generator=generator)
        new = float(look[-1] + torch.randn((), generator=generator))
        alarms += new >= conformal_threshold(scores, target, labels).threshold
    slack = 3.3 * math.sqrt(target * (1 - target) / repeats)
    assert target - 1 / (classes + 1) - slack <= alarms / repeats <= target + slack


@pytest.mark.parametrize(
    ("scores", "target", "groups", "message"),
    [
        (torch.rand(98), 0.01, None, "a bound of 0.01 on false alarms needs at least 99 strangers, got 98"),
        (torch.rand(99), 0.01, torch.arange(99) % 9, "needs at least 99 classes of strangers, got 9"),
        (torch.rand(0), 0.5, None, "needs at least 1 strangers, got 0"),
        (torch.rand(9), 0.0, None, "target_fpr must be above 0 and below 1, got 0"),
        (torch.rand(9), 1.0, None, "below 1, got 1"),
        (torch.rand(9), math.nan, None, "got nan"),
        (torch.tensor([0.0, math.nan]), 0.5, None, "must be finite"),
        (torch.rand(3, 3), 0.5, None, r"\(m,\), got shape \(3, 3\)"),
        (torch.rand(9), 0.5, torch.arange(8), r"as many as scores: \(9,\) and \(8,\)"),
    ],
)
def test_what_gives_no_guarantee_is_refused(scores, target, groups, message):
    with pytest.raises(ValueError, match=message):
        conformal_threshold(scores, target, groups)


@given(st.integers(1, 10_000))
def test_the_number_of_strangers_asked_for_is_enough_and_no_more(parts):
    target = 1 / parts * 0.999999
    with pytest.raises(ValueError, match=f"needs at least {parts} strangers, got {parts - 1}:"):
        conformal_threshold(torch.zeros(parts - 1), target)
    conformal_threshold(torch.zeros(parts), target)


@pytest.mark.parametrize("true", [0.05, 1.0, 30.0])
def test_temperature_finds_the_one_that_made_the_labels(true):
    generator = torch.Generator().manual_seed(4)
    scores = true * torch.randn(20_000, 5, generator=generator)
    targets = torch.multinomial((scores / true).softmax(dim=-1), 1, generator=generator).squeeze(1)
    assert fit_temperature(scores, targets) == pytest.approx(true, rel=0.03)


def test_temperature_is_where_the_loss_is_least():
    from scipy.optimize import minimize_scalar

    generator = torch.Generator().manual_seed(5)
    scores, targets = torch.rand(200, 7, generator=generator), torch.randint(7, (200,), generator=generator)
    scores[range(150), targets[:150]] += 0.5

    def loss(log_temperature):
        return torch.nn.functional.cross_entropy(scores.double() / math.exp(log_temperature), targets).item()

    best = math.exp(minimize_scalar(loss, bounds=(-10, 10), method="bounded", options={"xatol": 1e-8}).x)
    assert fit_temperature(scores, targets) == pytest.approx(best, rel=1e-5)
    assert fit_temperature(torch.ones(4, 3), torch.tensor([0, 1, 2, 0])) == 1.0
    assert 0 < fit_temperature(torch.eye(3), torch.arange(3)) < 1e-4


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("name", ["nam", "cosine", "ridge"])
def test_on_real_episodes_strangers_of_the_same_classes_pass_as_often_as_the_bound_says(name):
    pixels, labels = digits()
    generator = torch.Generator().manual_seed(6)
    rates = []
    for _ in range(60):
        classes = torch.randperm(10, generator=generator)
        order = torch.randperm(len(labels), generator=generator)
        head = create(name)
        for known in classes[:5].tolist():
            head.write(pixels[order][labels[order] == known][:5], known)
        strangers = pixels[order][torch.isin(labels[order], classes[5:])]
        threshold = head.calibrate(strangers[:199], target_fpr=0.05).threshold
        rates.append(float((head(strangers[199:]).amax(dim=-1).double() >= threshold).double().mean()))
    rate = torch.tensor(rates)
    assert abs(float(rate.mean()) - 0.05) < 3.3 * float(rate.std()) / 60**0.5


@pytest.mark.parametrize("name", ["nam", "cosine", "protonet"])
def test_on_real_episodes_the_bound_by_class_holds_exactly_for_classes_left_out_in_turn(name):
    # Each class of strangers is the new one once. The proof is an average over just these, so here is no slack at all.
    pixels, labels = digits()
    plain = []
    for known in range(10):
        head = create(name).write(pixels[labels == known][:5], known)
        alarms = {True: 0.0, False: 0.0}
        for new in set(range(10)) - {known}:
            others = (labels != known) & (labels != new)
            for by_class in alarms:
                names = labels[others] if by_class else None
                threshold = head.calibrate(pixels[others], target_fpr=0.15, unknown_labels=names).threshold
                passing = head(pixels[labels == new]).amax(dim=-1).double() >= threshold
                alarms[by_class] += float(passing.double().mean()) / 9
        assert alarms[True] <= 0.15
        plain.append(alarms[False])
    assert sum(plain) / 10 > 0.16  # one by one, strangers of new classes pass more often

"""The guarantee on false alarms, tested as one: by simulation with a known truth, and by hand."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fewshot_nam.heads import create
from fewshot_nam.heads.conformal import beta_percentile, beta_probability, conformal_threshold
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
@pytest.mark.parametrize("unknowns", [99, 137])
@pytest.mark.parametrize("ties", [False, True])
def test_false_alarms_stay_below_the_bound_and_reach_it_without_ties(target, unknowns, ties):
    # Every repeat is a new calibration and one new unknown, so the alarms are binomial.
    repeats, generator = 4000, torch.Generator().manual_seed(1)
    scores = torch.randn(repeats, unknowns + 1, generator=generator, dtype=torch.float64)
    if ties:
        scores = (2 * scores).round()
    alarms, bound = 0, 0.0
    for row in scores:
        found = conformal_threshold(row[:-1], target)
        alarms, bound = alarms + bool(row[-1] >= found.threshold), found.bound
    assert bound == math.floor(round(target * (unknowns + 1), 9)) / (unknowns + 1) <= target
    slack = 3.3 * math.sqrt(bound * (1 - bound) / repeats)
    assert alarms / repeats <= bound + slack
    assert ties or alarms / repeats >= bound - slack


def test_by_class_the_bound_holds_for_new_classes_where_the_plain_one_is_exceeded():
    # Unknowns of a class look alike: classes differ more than the images of one. Sizes differ too.
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
        (torch.rand(98), 0.01, None, "a bound of 0.01 on false alarms needs at least 99 samples of unknowns, got 98"),
        (torch.rand(99), 0.01, torch.arange(99) % 9, "needs at least 99 groups of unknowns, got 9"),
        (torch.rand(0), 0.5, None, "needs at least 1 samples of unknowns, got 0"),
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
def test_the_number_of_samples_required_is_enough_and_no_more(parts):
    target = 1 / parts * 0.999999
    with pytest.raises(ValueError, match=f"needs at least {parts} samples of unknowns, got {parts - 1}:"):
        conformal_threshold(torch.zeros(parts - 1), target)
    conformal_threshold(torch.zeros(parts), target)


@pytest.mark.parametrize(("rank", "count"), [(1, 1), (1, 99), (3, 299), (10, 11), (50, 5000)])
def test_the_beta_distribution_is_scipys(rank, count):
    from scipy.stats import beta

    for rate in (0.0, 0.001, 0.01, 0.3, 0.9, 1.0):
        assert beta_probability(rate, rank, count) == pytest.approx(beta.cdf(rate, rank, count + 1 - rank), abs=1e-9)
    for share in (0.05, 0.5, 0.95):
        assert beta_percentile(share, rank, count) == pytest.approx(beta.ppf(share, rank, count + 1 - rank), rel=1e-5)


@pytest.mark.parametrize("grouped", [False, True])
def test_with_confidence_the_rate_is_below_the_target_in_that_share_of_calibrations(grouped):
    # Scores are uniform, so the rate of accepted unknowns is 1 - threshold; samples of a group are all alike.
    repeats, count, target, generator = 3000, 99, 0.1, torch.Generator().manual_seed(7)
    above = {None: 0, 0.9: 0}
    for _ in range(repeats):
        scores = torch.rand(count, generator=generator, dtype=torch.float64)
        for confidence in above:
            if grouped and confidence is None:
                continue
            groups = torch.arange(count).repeat_interleave(2) if grouped else None
            found = conformal_threshold(scores.repeat_interleave(2) if grouped else scores, target, groups, confidence)
            above[confidence] += 1 - found.threshold > target
    assert above[0.9] / repeats <= 0.1 + 3.3 * math.sqrt(0.1 * 0.9 / repeats)
    assert above[0.9] / repeats > 0.02, "no stricter than it has to be"
    assert grouped or above[None] / repeats > 0.3


def test_the_95th_percentile_over_calibrations_is_what_simulation_gives():
    repeats, generator = 3000, torch.Generator().manual_seed(8)
    scores = torch.rand(repeats, 99, generator=generator, dtype=torch.float64)
    found = [conformal_threshold(row, 0.05) for row in scores]
    below = sum(1 - one.threshold <= one.bound_95 for one in found) / repeats
    assert abs(below - 0.95) < 3.3 * math.sqrt(0.95 * 0.05 / repeats)


def test_a_confidence_outside_its_range_is_refused():
    for confidence in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=f"confidence must be above 0 and below 1, got {confidence}"):
            conformal_threshold(torch.rand(9), 0.5, confidence=confidence)


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
def test_on_real_episodes_unknowns_of_the_same_classes_are_accepted_as_often_as_the_bound_says(name):
    pixels, labels = digits()
    generator = torch.Generator().manual_seed(6)
    rates = []
    for _ in range(60):
        classes = torch.randperm(10, generator=generator)
        order = torch.randperm(len(labels), generator=generator)
        head = create(name)
        for known in classes[:5].tolist():
            head.write(pixels[order][labels[order] == known][:5], known)
        unknowns = pixels[order][torch.isin(labels[order], classes[5:])]
        threshold = head.calibrate(unknowns[:199], target_fpr=0.05).threshold
        rates.append(float((head(unknowns[199:]).amax(dim=-1).double() >= threshold).double().mean()))
    rate = torch.tensor(rates)
    assert abs(float(rate.mean()) - 0.05) < 3.3 * float(rate.std()) / 60**0.5


@pytest.mark.parametrize("name", ["nam", "cosine", "protonet"])
def test_on_real_episodes_the_bound_by_class_holds_exactly_for_classes_left_out_in_turn(name):
    # Each class of unknowns is the new one once. The proof is an average over just these, so here is no slack at all.
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
    assert sum(plain) / 10 > 0.16  # one by one, more unknowns of new classes are accepted


@pytest.mark.parametrize("target", [1e-320, 1e-300, 1e-10])
def test_a_target_that_no_number_of_samples_reaches_is_refused(target):
    """1 / 1e-320 is no finite number, and was rounded up to a whole one."""
    head = create("cosine").write(torch.eye(4).repeat(2, 1), [0, 1, 2, 3] * 2)
    with pytest.raises(ValueError, match=f"target_fpr must be at least 1e-09, got {target}"):
        head.calibrate(torch.rand(9, 4) + 0.1, target_fpr=target)
    with pytest.raises(ValueError, match=f"target_fpr must be at least 1e-09, got {target}"):
        head.calibrate(torch.rand(9, 4) + 0.1, target_fpr=target, confidence=0.9)
    with pytest.raises(ValueError, match=f"max_rejected must be at least 1e-09, got {target}"):
        head.calibrate_from_shots(max_rejected=target)


def test_an_error_says_the_target_and_confidence_that_were_given():
    """Rounded, a confidence of 0.9999999999 was said to be 1, which is refused."""
    with pytest.raises(
        ValueError, match=r"a bound of 0\.100000001 .* with confidence 0\.9999999999 needs at least 219 "
    ):
        conformal_threshold(torch.arange(9.0), 0.100000001, confidence=0.9999999999)

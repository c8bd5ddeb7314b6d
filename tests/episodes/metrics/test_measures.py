"""The measures against plain loops over their definitions, scikit-learn, examples worked by hand, and invariances."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student_t
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from episodes.evaluation.validation_thresholds import best_bias, joint_margins, pooled_threshold
from episodes.metrics.calibration import ece, ece_sums, ece_values, fit_temperature
from episodes.metrics.intervals import interval, paired
from episodes.metrics.measures import (
    accuracy,
    auroc,
    ausuc,
    class_fpr,
    frozen_measures,
    generalized_measures,
    harmonic_mean,
    open_fpr,
    open_measures,
    oscr,
    threshold_at_tpr,
)

E, K, U, C, BASE = 7, 19, 23, 5, 3
KINDS = ["ties", "distinct"]
seeds = st.integers(0, 2**32 - 1)
fast = settings(max_examples=25, deadline=None)


def draw(kind: str, generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Scores with many ties (five small whole numbers) or, almost surely, none."""
    if kind == "ties":
        return torch.randint(-2, 3, shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator, dtype=dtype)


def open_batch(kind: str, seed: int, dtype: torch.dtype = torch.float64, sizes=(E, K, U, C)):
    generator = torch.Generator().manual_seed(seed)
    e, k, u, c = sizes
    targets = torch.randint(c, (e, k), generator=generator)
    known = draw(kind, generator, e, k, c, dtype=dtype)
    known += torch.nn.functional.one_hot(targets, c).to(dtype)  # better than chance, and still whole numbers
    return known, targets, draw(kind, generator, e, u, c, dtype=dtype)


def joint_batch(kind: str, seed: int, sizes=(E, 11, 13, 8, BASE), dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    e, b, n, c, num_base = sizes
    base_targets = torch.randint(num_base, (e, b), generator=generator)
    novel_targets = torch.randint(num_base, c, (e, n), generator=generator)
    base, novel = draw(kind, generator, e, b, c, dtype=dtype), draw(kind, generator, e, n, c, dtype=dtype)
    base += torch.nn.functional.one_hot(base_targets, c).to(dtype)
    novel += torch.nn.functional.one_hot(novel_targets, c).to(dtype)
    return base, base_targets, novel, novel_targets, num_base


# The definitions, as loops.


def first_largest(row: list[float]) -> int:
    return max(range(len(row)), key=lambda c: (row[c], -c))


def largest_threshold(scores: list[float], tpr: Fraction) -> float:
    return max(t for t in scores if Fraction(sum(s >= t for s in scores), len(scores)) >= tpr)


def slow_open(known: Tensor, targets: Tensor, unknown: Tensor, tpr=Fraction(19, 20), open_at=None, class_at=None):
    """All open measures of every episode; the areas by walking down the thresholds and adding up trapezoids."""
    rows = []
    for ks, ys, us in zip(known.tolist(), targets.tolist(), unknown.tolist(), strict=True):
        best, true = [max(k) for k in ks], [k[y] for k, y in zip(ks, ys, strict=True)]
        right = [first_largest(k) == y for k, y in zip(ks, ys, strict=True)]
        t = largest_threshold(best, tpr) if open_at is None else open_at
        t_class = largest_threshold(true, tpr) if class_at is None else class_at
        wrong_known = [k[c] >= t_class for k, y in zip(ks, ys, strict=True) for c in range(len(k)) if c != y]
        wrong_unknown = [s >= t_class for u in us for s in u]
        roc, ccr = [(0.0, 0.0)], [(0.0, 0.0)]
        for v in sorted({*best, *map(max, us)}, reverse=True):
            x = np.mean([max(u) >= v for u in us])
            roc.append((x, np.mean([s >= v for s in best])))
            ccr.append((x, np.mean([r and s >= v for r, s in zip(right, best, strict=True)])))
        rows.append(
            {
                "accuracy": np.mean(right),
                "tpr": np.mean([s >= t for s in best]),
                "open_fpr@95tpr": np.mean([max(u) >= t for u in us]),
                "wrong_answers@95tpr": np.mean(
                    [b >= t and not r for b, r in zip(best, right, strict=True)] + [max(u) >= t for u in us]
                ),
                "class_tpr": np.mean([s >= t_class for s in true]),
                "class_fpr@95tpr": np.mean(wrong_known + wrong_unknown),
                "class_fpr@95tpr:known": np.mean(wrong_known),
                "class_fpr@95tpr:unknown": np.mean(wrong_unknown),
                "auroc": trapezoid(roc),
                "oscr": trapezoid(ccr),
            }
        )
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


def trapezoid(curve: list[tuple[float, float]]) -> float:
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(curve))


def slow_joint(base: Tensor, base_targets: Tensor, novel: Tensor, novel_targets: Tensor, num_base: int, bias=0.0):
    """All generalized measures of every episode at one bias; the area by sweeping the bias and adding up trapezoids."""

    def answers(scores, b):
        return [first_largest([s + b * (c >= num_base) for c, s in enumerate(row)]) for row in scores]

    def accuracies(bs, by, ns, ny, b):
        right_base = [a == y for a, y in zip(answers(bs, b), by, strict=True)]
        return right_base, [a == y for a, y in zip(answers(ns, b), ny, strict=True)]

    rows = []
    for bs, by, ns, ny in zip(*(x.tolist() for x in (base, base_targets, novel, novel_targets)), strict=True):
        right_base, right_novel = accuracies(bs, by, ns, ny, bias)
        a, n = np.mean(right_base), np.mean(right_novel)
        margins = sorted({max(row[:num_base]) - max(row[num_base:]) for row in bs + ns})
        gaps = [(lo + hi) / 2 for lo, hi in pairwise(margins)]
        # Between two margins nothing changes, so these biases visit every corner of the curve.
        sweep = [accuracies(bs, by, ns, ny, b) for b in (margins[0] - 1, *gaps, margins[-1] + 1)]
        rows.append(
            {
                "base_accuracy": a,
                "novel_accuracy": n,
                "harmonic_mean": 2 * a * n / (a + n) if a + n else 0.0,
                "joint_accuracy": np.mean(right_base + right_novel),
                "novel_to_base": np.mean([c < num_base for c in answers(ns, bias)]),
                "base_to_novel": np.mean([c >= num_base for c in answers(bs, bias)]),
                "ausuc": trapezoid([(np.mean(n), np.mean(b)) for b, n in sweep]),
            }
        )
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, values in got.items():
        assert values.dtype == torch.float64, name
        torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


def subset(measures: dict[str, Tensor], names) -> dict[str, Tensor]:
    return {name: measures[name] for name in names}


# Open protocol.


@pytest.mark.parametrize("kind", KINDS)
@fast
@given(seed=seeds)
def test_open_measures_equal_the_loops(kind, seed):
    batch = open_batch(kind, seed)
    got = open_measures(*batch)
    assert_same(got, subset(slow_open(*batch), got))


@pytest.mark.parametrize("kind", KINDS)
def test_single_measures_equal_open_measures(kind):
    known, targets, unknown = open_batch(kind, 1)
    classes = class_fpr(known, targets, unknown)
    single = {
        "accuracy": accuracy(known, targets),
        "open_fpr@95tpr": open_fpr(known, unknown),
        "class_fpr@95tpr": classes.overall,
        "class_fpr@95tpr:known": classes.known,
        "class_fpr@95tpr:unknown": classes.unknown,
        "auroc": auroc(known, unknown),
        "oscr": oscr(known, targets, unknown),
    }
    expected = open_measures(known, targets, unknown)
    del expected["wrong_answers@95tpr"]  # only the registry has it
    assert_same(single, expected)


@pytest.mark.parametrize("kind", KINDS)
@fast
@given(seed=seeds)
def test_auroc_and_open_fpr_equal_scikit_learn(kind, seed):
    known, _, unknown = open_batch(kind, seed)
    for e, (areas, shares) in enumerate(zip(auroc(known, unknown), open_fpr(known, unknown), strict=True)):
        scores = torch.cat((known[e].amax(-1), unknown[e].amax(-1))).numpy()
        labels = np.r_[np.ones(K), np.zeros(U)]
        assert areas.item() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
        assert shares.item() == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-12)


@pytest.mark.parametrize("tpr", ["0.05", "0.5", "0.9", "1"])
def test_other_tpr_levels_equal_the_loops(tpr):
    known, targets, unknown = open_batch("ties", 2)
    expected = slow_open(known, targets, unknown, Fraction(tpr))
    classes = class_fpr(known, targets, unknown, float(tpr))
    torch.testing.assert_close(open_fpr(known, unknown, float(tpr)), expected["open_fpr@95tpr"])
    torch.testing.assert_close(classes.overall, expected["class_fpr@95tpr"])


def test_open_measures_of_a_tiny_example():
    # Known: scores 3 (right), 2 (wrong), 1 (right). Unknown: 2, 0. Thresholds at 95% of 3 accept all 3.
    known = torch.tensor([[[3.0, 0.0], [2.0, 0.5], [0.0, 1.0]]])
    unknown = torch.tensor([[[2.0, 1.0], [-1.0, 0.0]]])
    got = {name: value.item() for name, value in open_measures(known, torch.tensor([0, 1, 1]), unknown).items()}
    assert got == pytest.approx(
        {
            "accuracy": 2 / 3,
            "open_fpr@95tpr": 1 / 2,  # threshold 1: accepts 2, not 0
            "wrong_answers@95tpr": 2 / 5,  # the known 2 and the unknown 2
            "class_fpr@95tpr": 3 / 7,  # threshold 0.5, the wrong pairs are 0, 2, 0 and 2, 1, -1, 0
            "class_fpr@95tpr:known": 1 / 3,
            "class_fpr@95tpr:unknown": 2 / 4,
            "auroc": (2 + 1.5 + 1) / 6,
            "oscr": (2 + 1) / 6,
        }
    )


@fast
@given(count=st.integers(1, 400), tpr=st.integers(1, 1000))
def test_threshold_accepts_the_exact_share(count, tpr):
    scores = torch.arange(count, dtype=torch.float64).flip(0)
    threshold = threshold_at_tpr(scores, tpr / 1000).item()
    assert (scores >= threshold).sum().item() == math.ceil(Fraction(tpr, 1000) * count)


@pytest.mark.parametrize(
    ("count", "tpr", "accepted"), [(20, 0.95, 19), (100, 0.95, 95), (75, 0.95, 72), (100, 0.07, 7)]
)
def test_threshold_is_safe_against_rounding(count, tpr, accepted):
    scores = torch.randperm(count, generator=torch.Generator().manual_seed(0)).float().expand(3, 2, count)
    assert threshold_at_tpr(scores, tpr).tolist() == [[count - accepted] * 2] * 3


def test_one_target_row_serves_every_episode():
    known, targets, unknown = open_batch("distinct", 3)
    assert_same(open_measures(known, targets[0], unknown), open_measures(known, targets[:1].expand(E, K), unknown))


@fast
@given(seed=seeds, order=st.permutations(range(C)))
def test_class_order_does_not_matter(seed, order):
    known, targets, unknown = open_batch("distinct", seed)
    moved = torch.tensor(order).argsort()[targets]
    assert_same(open_measures(known[..., order], moved, unknown[..., order]), open_measures(known, targets, unknown))
    known, targets, unknown = open_batch("ties", seed)  # only the right answer depends on the order of tied classes
    moved = torch.tensor(order).argsort()[targets]
    a, b = open_measures(known[..., order], moved, unknown[..., order]), open_measures(known, targets, unknown)
    names = [name for name in a if name not in ("accuracy", "oscr", "wrong_answers@95tpr")]
    assert_same(subset(a, names), subset(b, names))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "transform", [torch.exp, lambda x: x**3 + x, lambda x: 7 * x - 100], ids=["exp", "cube", "line"]
)
def test_increasing_transform_changes_nothing(kind, transform):
    known, targets, unknown = open_batch(kind, 4)
    got = open_measures(transform(known), targets, transform(unknown))
    assert_same(got, open_measures(known, targets, unknown))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_narrow_floats_compare_as_they_are(dtype):
    known, targets, unknown = open_batch("distinct", 5, dtype=dtype)
    unknown[:, :9] = known[:, :9]  # ties that any change of precision on one side only would break
    wide = (known.double(), targets, unknown.double())
    assert_same(open_measures(known, targets, unknown), open_measures(*wide))
    assert_same(open_measures(known, targets, unknown.double()), open_measures(*wide))
    joint = joint_batch("distinct", 5, dtype=dtype)
    wide_joint = (joint[0].double(), joint[1], joint[2].double(), *joint[3:])
    assert_same(generalized_measures(*joint), generalized_measures(*wide_joint))


def test_margins_of_close_float32_scores_do_not_collapse():
    # In float32, 1 - 1e-9 would round to 1 and tie with the novel margin 1.
    base, novel = torch.tensor([[[1.0, 1e-9]]]), torch.tensor([[[1.0, 0.0]]])
    zero, one = torch.tensor([0]), torch.tensor([1])
    assert ausuc(base, zero, novel, one, 1).item() == 0


def test_perfect_and_hopeless_scores():
    known, unknown = torch.zeros(1, 3, 2), torch.zeros(1, 2, 2)
    known[..., 0] = 1
    got = open_measures(known, torch.tensor([0, 0, 0]), unknown)
    assert {name: value.item() for name, value in got.items()} == {
        name: 0.0 if "fpr" in name or "wrong" in name else 1.0 for name in got
    }
    assert oscr(known, torch.tensor([1, 1, 1]), unknown).item() == 0  # all wrong: nothing counts, however high


def test_one_class_has_no_wrong_pair_among_the_known():
    classes = class_fpr(torch.ones(1, 3, 1), torch.zeros(3, dtype=torch.int64), torch.tensor([[[1.0], [0.0]]]))
    assert math.isnan(classes.known.item())
    assert classes.overall.item() == classes.unknown.item() == 0.5


# Generalized protocol.


@pytest.mark.parametrize("kind", KINDS)
@fast
@given(seed=seeds)
def test_generalized_measures_equal_the_loops(kind, seed):
    batch = joint_batch(kind, seed)
    got = generalized_measures(*batch)
    assert_same(got, subset(slow_joint(*batch), got))
    torch.testing.assert_close(ausuc(*batch), got["ausuc"])


@fast
@given(seed=seeds, halves=st.integers(-7, 7))
def test_bias_acts_on_all_novel_columns(seed, halves):
    batch = joint_batch("ties", seed)
    got, expected = generalized_measures(*batch, bias=halves / 2), slow_joint(*batch, bias=halves / 2)
    names = ["base_accuracy", "novel_accuracy", "harmonic_mean"]
    assert_same({name: got[f"{name}:frozen"] for name in names}, subset(expected, names))


def test_ausuc_of_a_tiny_example():
    # Right margins: base 2 and 0 (a third base query is wrong), novel -1 and 0 (a third is wrong). Of 9 pairs 2 > -1,
    # 2 > 0 and 0 > -1 count, and the tie 0 = 0 half.
    base = torch.tensor([[[3.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 9.0, 1.0]]])
    novel = torch.tensor([[[0.0, 0.0, 1.0, -9.0], [2.0, 0.0, 2.0, -9.0], [-5.0, -5.0, 0.0, 8.0]]])
    base = torch.cat((base, torch.full((1, 3, 1), -9.0)), dim=-1)
    got = ausuc(base, torch.tensor([0, 0, 0]), novel, torch.tensor([2, 2, 2]), 2)
    assert got.item() == pytest.approx(3.5 / 9)


@pytest.mark.parametrize("huge", [1.0, 1e308], ids=["plain", "overflowing margins"])
def test_wrong_queries_never_win_an_area(huge):
    base = huge * torch.tensor([[[-1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, -1.0, -1.0]]], dtype=torch.float64)
    novel = huge * torch.tensor([[[-1.0, -1.0, 1.0, -1.0]]], dtype=torch.float64)
    right, wrong = torch.tensor([1, 1]), torch.tensor([0, 0])
    assert ausuc(base, right, novel, torch.tensor([2]), 2).item() == 1
    assert ausuc(base, wrong, novel, torch.tensor([2]), 2).item() == 0
    assert ausuc(base, right, novel, torch.tensor([3]), 2).item() == 0
    assert ausuc(base, wrong, novel, torch.tensor([3]), 2).item() == 0


def test_ausuc_ignores_a_shift_of_all_novel_scores():
    base, base_targets, novel, novel_targets, num_base = joint_batch("ties", 6)
    shifted_base, shifted_novel = base.clone(), novel.clone()
    shifted_base[..., num_base:] += 3
    shifted_novel[..., num_base:] += 3
    shifted = generalized_measures(shifted_base, base_targets, shifted_novel, novel_targets, num_base)
    plain = generalized_measures(base, base_targets, novel, novel_targets, num_base)
    torch.testing.assert_close(shifted["ausuc"], plain["ausuc"])
    assert not torch.equal(shifted["harmonic_mean"], plain["harmonic_mean"])


def test_harmonic_mean_is_zero_where_both_are():
    means = harmonic_mean(torch.tensor([0.0, 0.5, 1.0]).double(), torch.tensor([0.0, 0.25, 0.0]).double())
    assert means.tolist() == pytest.approx([0, 1 / 3, 0])


@pytest.mark.parametrize("kind", KINDS)
@fast
@given(seed=seeds)
def test_best_bias_beats_every_other_bias(kind, seed):
    batch = joint_batch(kind, seed)
    base, novel = joint_margins(*batch)

    def pooled(bias: float) -> float:
        return harmonic_mean((base >= bias).double().mean(), (novel < bias).double().mean()).item()

    finite = torch.cat((base.flatten(), novel.flatten()))
    finite = finite[finite.isfinite()].tolist()
    tries = sorted({m + d for m in finite for d in (-1e-6, 0.0, 1e-6)})
    best = best_bias(base, novel)
    assert math.isfinite(best)
    assert pooled(best) >= max(map(pooled, tries)) - 1e-12
    got = generalized_measures(*batch, bias=best)
    expected = harmonic_mean(got["base_accuracy:frozen"].mean(), got["novel_accuracy:frozen"].mean())
    assert expected.item() == pytest.approx(pooled(best))


def test_best_bias_is_the_middle_of_the_best_gap():
    inf = math.inf
    base, novel = torch.tensor([5.0, 7.0, 0.0, -inf]), torch.tensor([1.0, -3.0, 6.0, inf])
    # Between 1 and 5: base accuracy 2/4, novel accuracy 2/4, and no other bias has a better harmonic mean.
    assert best_bias(base, novel) == 3
    assert best_bias(torch.tensor([-inf, -inf]), torch.tensor([0.0, 1.0])) == 0
    assert best_bias(torch.tensor([2.0]), torch.tensor([2.0])) == 0


def test_best_bias_between_neighbouring_floats():
    low = torch.tensor([1.0], dtype=torch.float64)
    high = torch.nextafter(low, low + 1)
    bias = best_bias(high, low)
    assert (high >= bias).all()
    assert (low < bias).all()


# Frozen thresholds.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_measures_equal_the_loops(kind, dtype):
    known, targets, unknown = open_batch(kind, 7, dtype=dtype)
    open_at, class_at = known[0, 3].max().item(), known[1, 2, 0].item()
    got = frozen_measures(known, targets, unknown, open_threshold=open_at, class_threshold=class_at)
    expected = slow_open(known, targets, unknown, open_at=open_at, class_at=class_at)
    assert_same(got, {name: expected[name.removesuffix(":frozen")] for name in got})


def test_frozen_threshold_is_not_rounded_to_float32():
    known, unknown = torch.full((1, 2, 1), 0.1), torch.full((1, 3, 1), 0.1)
    just_above = known[0, 0, 0].item() + 1e-12
    got = frozen_measures(
        known, torch.zeros(2, dtype=torch.int64), unknown, open_threshold=just_above, class_threshold=just_above
    )
    assert [got["tpr:frozen"].item(), got["open_fpr@95tpr:frozen"].item(), got["class_tpr:frozen"].item()] == [0, 0, 0]


def test_pooled_threshold_accepts_the_share_of_all_scores():
    generator = torch.Generator().manual_seed(8)
    parts = [torch.randn(7, 19, generator=generator), torch.randn(3, 17, generator=generator)]
    everything = torch.cat([part.flatten() for part in parts])
    threshold = pooled_threshold(parts)
    assert threshold == pooled_threshold(everything) == largest_threshold(everything.tolist(), Fraction(19, 20))


def test_pooled_threshold_keeps_its_share_on_its_own_episodes():
    known, targets, unknown = open_batch("distinct", 9, dtype=torch.float32)
    true = known.gather(-1, targets[..., None])
    open_at, class_at = pooled_threshold(known.amax(-1)), pooled_threshold(true)
    got = frozen_measures(known, targets, unknown, open_threshold=open_at, class_threshold=class_at)
    share = math.ceil(Fraction(19, 20) * E * K) / (E * K)
    assert got["tpr:frozen"].mean().item() == pytest.approx(share)
    assert got["class_tpr:frozen"].mean().item() == pytest.approx(share)


# Calibration.


def slow_ece(scores: Tensor, targets: Tensor, temperature: float) -> float:
    total = [0.0] * 15
    for row, y in zip(scores.flatten(0, 1).tolist(), targets.flatten().tolist(), strict=True):
        weights = [math.exp((s - max(row)) / temperature) for s in row]
        confidence = max(weights) / sum(weights)
        bin_ = next(b for b in range(15) if confidence <= (b + 1) / 15 + 1e-15)
        total[bin_] += confidence - (first_largest(row) == y)
    return sum(abs(t) for t in total) / targets.numel()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_ece_equals_the_loop(kind, temperature):
    known, targets, _ = open_batch(kind, 10)
    sums = ece_sums(known, targets, temperature)
    assert sums.shape == (E, 15)
    expected = slow_ece(known, targets, temperature)
    assert ece(sums, K).mean == pytest.approx(expected, abs=1e-12)
    assert ece_values(sums, K).mean().item() == pytest.approx(expected, abs=1e-12)


def test_ece_sums_stream_over_batches():
    known, targets, _ = open_batch("distinct", 11)
    parts = torch.cat([ece_sums(known[:3], targets[:3]), ece_sums(known[3:], targets[3:])])
    torch.testing.assert_close(parts, ece_sums(known, targets))


def test_ece_interval_covers_the_truth():
    # Confidence 0.6 or 0.9, right with chance 0.5 and 0.7: the true error is (0.1 + 0.2) / 2. Coverage over 300 repeats
    # of 200 episodes; 95% nominal, and 4 standard errors of a share of 300 are 5%.
    generator = torch.Generator().manual_seed(12)
    repeats, episodes, k = 300, 200, 17
    high = torch.rand(repeats * episodes, k, generator=generator) < 0.5
    confidence = torch.where(high, 0.9, 0.6).double()
    correct = torch.rand(high.shape, generator=generator) < torch.where(high, 0.7, 0.5)
    scores = torch.stack((torch.log(confidence), torch.log(1 - confidence)), dim=-1)
    sums = ece_sums(scores, (~correct).long()).unflatten(0, (repeats, episodes))
    intervals_ = [ece(part, k) for part in sums]
    covered = np.mean([abs(i.mean - 0.15) <= i.ci95 for i in intervals_])
    assert 0.90 <= covered <= 1


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e3, 1e30])
@pytest.mark.parametrize("true_temperature", [0.25, 1.0, 6.0])
def test_fit_temperature_recovers_the_truth(scale, true_temperature):
    generator = torch.Generator().manual_seed(13)
    scores = 2 * torch.randn(20011, C, generator=generator, dtype=torch.float64)
    targets = torch.multinomial((scores / true_temperature).softmax(-1), 1, generator=generator)[:, 0]
    assert fit_temperature(scores * scale, targets) == pytest.approx(true_temperature * scale, rel=0.05)


def test_fit_temperature_minimises_the_loss():
    known, targets, _ = open_batch("distinct", 14)
    scores, targets = known.flatten(0, 1), targets.flatten()
    best = fit_temperature(scores, targets)

    def loss(t: float) -> float:
        return torch.nn.functional.cross_entropy(scores / t, targets).item()

    assert loss(best) <= min(loss(best * 1.01), loss(best / 1.01), loss(1.0))


@pytest.mark.parametrize(
    ("scores", "targets", "low", "high"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], [0, 1], 0, 0.1),
        ([[1.0, 0.0], [0.0, 1.0]], [1, 0], 1e3, 1e7),
        ([[2.0, 2.0], [2.0, 2.0]], [0, 1], 1, 1),
    ],
    ids=["all right", "all wrong", "all equal"],
)
def test_fit_temperature_where_no_temperature_is_best(scores, targets, low, high):
    assert low <= fit_temperature(torch.tensor(scores), torch.tensor(targets)) <= high


# Intervals and the table.


@pytest.mark.parametrize("count", [2, 3, 16, 17, 41, 99, 100, 1000])
def test_interval_equals_numpy_and_that_of_few_values_scipy(count):
    """The interval of two episodes held their mean in 67% of runs, and was called one of 95%."""
    values = torch.rand(count, generator=torch.Generator().manual_seed(15), dtype=torch.float64)
    got = interval(values)
    assert got.mean == pytest.approx(np.mean(values.numpy()))
    errors = 1.96 if count >= 100 else student_t.ppf(0.975, count - 1)
    assert got.ci95 == pytest.approx(errors * np.std(values.numpy(), ddof=1) / np.sqrt(count), rel=5e-3)
    assert got._asdict() == {"mean": got.mean, "ci95": got.ci95}


def test_interval_of_one_episode_has_no_width():
    got = interval(torch.tensor([0.25]))
    assert got.mean == 0.25
    assert math.isnan(got.ci95)


def test_paired_is_the_interval_of_the_difference():
    generator = torch.Generator().manual_seed(16)
    shared = torch.randn(43, generator=generator)
    a, b = shared + 0.5, shared + 0.01 * torch.randn(43, generator=generator)
    got = paired(a, b)
    assert got.mean == pytest.approx(interval(a).mean - interval(b).mean, abs=1e-6)
    assert 0 < got.ci95 < interval(a).ci95 / 20


# Bad input.


def spoilt(scores: Tensor, value: float) -> Tensor:
    scores = scores.clone()
    scores[1, 2, 1] = value
    return scores


KNOWN, TARGETS, UNKNOWN = open_batch("distinct", 18)
JOINT = joint_batch("distinct", 18)
THRESHOLDS = {"open_threshold": 0.0, "class_threshold": 0.0}
BAD = {
    "accuracy: expected finite": lambda: accuracy(spoilt(KNOWN, math.nan), TARGETS),
    "open_fpr: expected finite unknown": lambda: open_fpr(KNOWN, spoilt(UNKNOWN, math.inf)),
    "auroc: expected finite known": lambda: auroc(spoilt(KNOWN, -math.inf), UNKNOWN),
    r"accuracy: expected float known scores .* got \(7, 0, 5\) float64": lambda: accuracy(KNOWN[:, :0], TARGETS[:, :0]),
    r"oscr: expected float unknown .* got \(7, 0, 5\)": lambda: oscr(KNOWN, TARGETS, UNKNOWN[:, :0]),
    r"open_measures: expected float known .* got \(19, 5\)": lambda: open_measures(KNOWN[0], TARGETS[0], UNKNOWN),
    r"auroc: expected float known .* int64": lambda: auroc(KNOWN.long(), UNKNOWN),
    r"auroc: known unknown scores need the same E and C, got \(6, 19, 5\)": lambda: auroc(KNOWN[1:], UNKNOWN),
    r"class_fpr: known unknown .* \(7, 23, 4\)": lambda: class_fpr(KNOWN, TARGETS, UNKNOWN[..., 1:]),
    r"oscr: expected targets in \[0, 5\), got .* to 5": lambda: oscr(KNOWN, TARGETS.clamp(min=5), UNKNOWN),
    r"accuracy: expected targets in \[0, 5\), got -1": lambda: accuracy(KNOWN, TARGETS - TARGETS.min() - 1),
    r"accuracy: expected int64 targets \(7, 19\) or \(19,\), got \(7,\)": lambda: accuracy(KNOWN, TARGETS[:, 0]),
    r"accuracy: .* got \(7, 19\) float64": lambda: accuracy(KNOWN, TARGETS.double()),
    "threshold_at_tpr: expected tpr in": lambda: threshold_at_tpr(KNOWN, 95),
    "threshold_at_tpr: expected float scores": lambda: threshold_at_tpr(KNOWN[..., :0]),
    "threshold_at_tpr: expected finite": lambda: threshold_at_tpr(spoilt(KNOWN, math.nan)),
    "pooled_threshold: expected one tensor": lambda: pooled_threshold([]),
    r"ausuc: expected num_base in \[1, 8\)": lambda: ausuc(*JOINT[:4], 8),
    r"ausuc: expected targets in \[3, 8\), got 0": lambda: ausuc(*JOINT[:3], JOINT[3] - 3, BASE),
    r"generalized_measures: expected targets in \[0, 3\)": lambda: generalized_measures(
        JOINT[0], JOINT[1] + 3, *JOINT[2:]
    ),
    "generalized_measures: expected a finite bias": lambda: generalized_measures(*JOINT, bias=math.nan),
    "joint_margins: expected float novel": lambda: joint_margins(*JOINT[:2], JOINT[2][:, :0], *JOINT[3:]),
    "best_bias: expected margins": lambda: best_bias(torch.tensor([math.nan]), torch.tensor([0.0])),
    r"best_bias: .* \(0,\)": lambda: best_bias(torch.tensor([0.0]), torch.tensor([])),
    "frozen_measures: expected finite thresholds": lambda: frozen_measures(
        KNOWN, TARGETS, UNKNOWN, open_threshold=math.nan, class_threshold=0.0
    ),
    "ece_sums: expected a temperature above 0": lambda: ece_sums(KNOWN, TARGETS, 0.0),
    r"ece_values: expected sums \(E, 15\)": lambda: ece_values(torch.zeros(3, 14), 5),
    r"fit_temperature: .* \(1, n, C\)": lambda: fit_temperature(KNOWN[0, :0], TARGETS[0, :0]),
    r"interval: expected one value per episode .* got \(0,\)": lambda: interval(torch.tensor([])),
    r"paired: expected values of the same episodes, got \(3,\)": lambda: paired(torch.ones(3), torch.ones(2)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_inputs_are_left_alone():
    known, targets, unknown = open_batch("distinct", 19)
    before = known.clone(), targets.clone(), unknown.clone()
    open_measures(known, targets, unknown)
    frozen_measures(known, targets, unknown, **THRESHOLDS)
    ece_sums(known, targets)
    fit_temperature(known[0], targets[0])
    assert all(map(torch.equal, before, (known, targets, unknown)))

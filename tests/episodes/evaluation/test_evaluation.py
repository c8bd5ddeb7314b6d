"""The evaluation as a whole: against one plain loop over episodes and heads, for every protocol."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from episodes import Episodes, EpisodeSampler, EvaluationSettings, FeatureBank, evaluate
from episodes.evaluation.evaluation import as_device
from episodes.evaluation.scoring import Scorer
from episodes.features.holdout import hold_out
from episodes.metrics.intervals import ci95_over_classes
from fewshot_nam.heads import BaseStatistics, CosineHead, Head, NAMHead, available, create, open_scores
from fewshot_nam.heads.open_scores import OpenScoreHead
from fewshot_nam.heads.registry import transductive

D = 13


def bank(classes: int, images: int, seed: int, first: int = 0) -> FeatureBank:
    """Return clustered features with a direction that all share."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(classes, 1, D, generator=generator) + 0.5
    features = (centres + 0.5 * torch.randn(classes, images, D, generator=generator)).relu() + 0.01
    labels = torch.arange(classes).repeat_interleave(images)
    return FeatureBank(features.flatten(0, 1), labels, [f"class{first + i}" for i in range(classes)])


NOVEL, BASE, OTHER = bank(12, 20, seed=1), bank(7, 24, seed=2, first=100), bank(11, 20, seed=3, first=200)


def loop(protocol: str, name: str, shots: int, count: int = 6) -> dict[str, float]:
    """Return some measures by a plain loop: one head written and read for each episode."""
    base, base_queries = hold_out(BASE, 0.25, seed=4)
    generalized, open_ways = protocol == "generalized", 0 if protocol == "closed" else 3
    sampler = EpisodeSampler(NOVEL, 4, shots, 5, open_ways, base=base_queries if generalized else None, seed=4)
    found: dict[str, list[float]] = {}
    for e in range(count):
        episode = sampler.sample(e, e + 1)
        known = base if generalized else BASE
        head = made(name, known)
        if generalized:
            head.write_base(base.class_means(power_norm=head.power_normalised), base.classes)
        for classwise, label in zip(episode.support[0], episode.classes[0].tolist(), strict=True):
            head.write(NOVEL.features[classwise], [NOVEL.classes[label]] * shots)
        known = NOVEL.features[episode.query[0].flatten()]
        names = [NOVEL.classes[i] for i in episode.classes[0].tolist() for _ in range(5)]
        right = [a == b for a, b in zip(head.predict(known), names, strict=True)]
        best = head(known).max(-1).values
        if generalized:
            queries = base_queries.features[episode.base_query[0]]
            answers, wanted = head.predict(queries), [base.classes[i] for i in episode.base_classes[0].tolist()]
            base_right = [a == b for a, b in zip(answers, wanted, strict=True)]
            found.setdefault("base_accuracy", []).append(sum(base_right) / len(base_right))
            found.setdefault("novel_accuracy", []).append(sum(right) / len(right))
            found.setdefault("base_to_novel", []).append(sum(a not in base.classes for a in answers) / len(answers))
            best = torch.cat([head(queries).max(-1).values, best])
        else:
            found.setdefault("accuracy", []).append(sum(right) / len(right))
        if open_ways:
            unknown = head(NOVEL.features[episode.unknown[0].flatten()]).max(-1).values
            threshold = best.sort(descending=True).values[math.ceil(0.95 * len(best)) - 1]
            found.setdefault("open_fpr@95tpr", []).append((unknown >= threshold).double().mean().item())
            truth = [1] * len(best) + [0] * len(unknown)
            found.setdefault("auroc", []).append(roc_auc_score(truth, torch.cat([best, unknown]).numpy()))
    return {measure: sum(values) / len(values) for measure, values in found.items()}


def made(name: str, known: FeatureBank) -> Head:
    """Return a head by name, with 64 random features in place of 1,000 where it takes any: these cost most of the time."""
    options = {"width": 64} if name == "klda" else {}
    return create(name, BaseStatistics.from_features(known.features, known.labels.tolist()), **options)


def run(protocol: str, heads, shots: int, **options):
    return evaluate(NOVEL, heads, protocol, 4, shots, 5, 3, options.pop("episodes", 6), 4, BASE, **options)


@pytest.mark.parametrize("protocol", ["closed", "open", "generalized"])
@pytest.mark.parametrize("name", [name for name in available() if not transductive(name)])
def test_evaluate_equals_a_loop_over_episodes(protocol, name):
    # The base statistics of the generalized protocol are of the images that are not held out for queries.
    heads = {name: made(name, hold_out(BASE, 0.25, seed=4)[0] if protocol == "generalized" else BASE)}
    for shots in (1, 3):
        results = run(protocol, heads if name == "klda" else [name], shots).results[name]
        for measure, expected in loop(protocol, name, shots).items():
            # One score that ties in one path and not in the other moves one query.
            assert results[measure]["mean"] == pytest.approx(expected, abs=0.01), (measure, shots)


@pytest.mark.parametrize("protocol", ["closed", "open", "generalized"])
def test_the_batch_size_does_not_matter(protocol):
    one, many = (run(protocol, ["nam", "cosine"], 1, episodes=20, batch_size=size) for size in (1, 20))
    for head, measures in one.results.items():
        for measure, value in measures.items():
            assert value["mean"] == pytest.approx(many.results[head][measure]["mean"], abs=1e-4)


def test_every_promised_measure_is_there():
    opened = {"accuracy", "auroc", "oscr", "ece", "open_fpr@95tpr", "class_fpr@95tpr", "wrong_answers@95tpr"}
    opened |= {"class_fpr@95tpr:known", "class_fpr@95tpr:unknown"}
    frozen = {"tpr:frozen", "open_fpr@95tpr:frozen", "class_fpr@95tpr:frozen"}
    joint = {
        "base_accuracy",
        "novel_accuracy",
        "harmonic_mean",
        "novel_to_base",
        "base_to_novel",
        "joint_accuracy",
        "ausuc",
    }
    assert set(run("closed", ["nam"], 1).results["nam"]) == {"accuracy", "ece"}
    assert set(run("open", ["nam"], 1).results["nam"]) == opened
    assert frozen <= set(run("open", ["nam"], 1, validation=OTHER).results["nam"])
    generalized = set(run("generalized", ["nam"], 1, validation=OTHER).results["nam"])
    assert joint | frozen | (opened - {"accuracy"}) | {"harmonic_mean:frozen"} <= generalized
    assert "accuracy" not in generalized


def test_frozen_thresholds_come_from_validation_classes_alone():
    report = run("open", ["nam"], 1, episodes=40, validation=OTHER).results["nam"]
    copied = FeatureBank(NOVEL.features, NOVEL.labels, NOVEL.classes)
    same = run("open", ["nam"], 1, episodes=40, validation=copied).results["nam"]
    # Chosen on the very episodes they are used on, thresholds accept just what they were asked to.
    assert 0.95 <= same["tpr:frozen"]["mean"] < 0.96
    assert report["tpr:frozen"]["mean"] != same["tpr:frozen"]["mean"]
    assert report["auroc"] == same["auroc"]


def test_the_novel_bias_is_not_chosen_on_the_base_images_that_are_tested(monkeypatch):
    import episodes.evaluation.evaluation as evaluation

    seen = []
    monkeypatch.setattr(evaluation, "Scorer", lambda *args: seen.append(args[3]) or Scorer(*args))
    run("generalized", ["cosine"], 1, validation=OTHER)
    testing, choosing = seen
    rows = {tuple(row) for row in testing.features.tolist()}
    assert rows.isdisjoint(tuple(row) for row in choosing.features.tolist())


def test_banks_that_share_images_are_refused():
    marked = [
        FeatureBank(b.features, b.labels, b.classes, provenance={"dataset_fingerprint": "same"}) for b in (NOVEL, OTHER)
    ]
    for base, validation, message in [
        (NOVEL, None, "the base bank holds the images that are tested on"),
        (None, NOVEL, "the validation bank holds the images that are tested on"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate(NOVEL, ["nam"], episodes=3, base=base, validation=validation)
    with pytest.raises(ValueError, match="the base bank holds"):
        evaluate(marked[0], ["nam"], episodes=3, base=marked[1])
    with pytest.raises(ValueError, match="base_queries holds the images of base"):
        run("generalized", ["nam"], 1, base_queries=BASE)


def test_the_callers_heads_are_left_as_they_are():
    head = NAMHead().train()
    evaluate(NOVEL, {"mine": head}, episodes=3)
    assert head.training


def test_settings_and_keywords_say_the_same():
    settings = EvaluationSettings("closed", ways=4, shots=2, queries=5, episodes=6, seed=4)
    expected = evaluate(NOVEL, ["cosine"], settings).to_dict()
    assert expected["config"]["open_ways"] == 0
    assert evaluate(NOVEL, ["cosine"], "closed", 4, 2, 5, 3, 6, 4).to_dict() == expected
    assert (
        evaluate(NOVEL, ["cosine"], protocol="closed", ways=4, shots=2, queries=5, episodes=6, seed=4).to_dict()
        == expected
    )
    assert evaluate(NOVEL, ["cosine"], settings, shots=3).config["shots"] == 3
    assert settings.shots == 2
    with pytest.raises(ValueError, match="no protocol 'opened'"):
        evaluate(NOVEL, ["cosine"], settings, protocol="opened")


def test_the_old_words_for_base_statistics_warn_and_give_the_same():
    prototypes, mean = BASE.class_means(power_norm=True), BASE.mean()
    base = BaseStatistics(prototypes, prototypes, mean)
    heads = ["nam", "cosine-centred", "cosine-root-centred"]
    expected = evaluate(NOVEL, heads, episodes=6, base_statistics=base)
    with pytest.warns(DeprecationWarning, match="mean= and background= is deprecated .* use base_statistics="):
        old = evaluate(NOVEL, heads, episodes=6, mean=mean, background=prototypes)
    assert old.results == expected.results
    with pytest.raises(TypeError, match="give base_statistics alone"):
        evaluate(NOVEL, heads, episodes=6, base_statistics=base, mean=mean)


def test_the_old_word_for_the_callback_warns_and_works():
    names = []
    with pytest.warns(DeprecationWarning, match="watch= is deprecated .* use callback="):
        evaluate(NOVEL, ["cosine"], episodes=3, watch=lambda name, *_: names.append(name))
    assert names == ["cosine"]


def test_a_single_head_may_be_named_by_itself():
    assert list(evaluate(NOVEL, "nam", episodes=3).results) == ["nam"]


def test_paired_differences_are_those_of_the_means_and_narrower():
    report = run("open", ["nam", "cosine", "protonet"], 1, episodes=60)
    assert list(report.paired) == ["nam-cosine", "protonet-cosine", "nam-protonet"]
    for measure, difference in report.paired["nam-cosine"].items():
        nam, cosine = report.results["nam"][measure], report.results["cosine"][measure]
        assert difference["mean"] == pytest.approx(nam["mean"] - cosine["mean"], abs=1e-12)
    assert report.paired["protonet-cosine"]["accuracy"]["ci95"] < 0.8 * report.results["cosine"]["accuracy"]["ci95"]


def test_intervals_over_classes_are_those_of_a_loop_over_left_out_classes():
    many = bank(24, 12, seed=5)
    report = evaluate(many, ["nam", "cosine"], "open", 4, 1, 5, 3, 120)
    episodes = EpisodeSampler(many, 4, 1, 5, 3).sample(0, 120)
    values = {}
    for name in ("nam", "cosine"):
        values[name] = torch.cat(
            [
                scores.known.argmax(-1).eq(scores.known_targets).double().mean(-1)
                for _, scores in Scorer(many, {name: create(name)}, torch.device("cpu")).score(episodes)
            ]
        )
    difference = values["nam"] - values["cosine"]
    drawn = torch.cat([episodes.classes, episodes.unknown_classes], dim=1)
    absent = torch.stack([(drawn != label).all(1) for label in range(24)], dim=1)
    expected = ci95_over_classes(difference[:, None], ~absent).item()
    found = report.over_classes["nam-cosine"]["accuracy"]
    assert found == pytest.approx({"mean": difference.mean().item(), "ci95": expected})
    assert report.config["class_groups"] == {"of": "class", "count": 24}
    few = evaluate(NOVEL.select_classes(range(7)), ["nam", "cosine"], "open", 4, 1, 5, 3, 120)
    assert math.isnan(few.over_classes["nam-cosine"]["accuracy"]["ci95"]), "all classes are in every episode"


def test_heads_of_ones_own_are_used_as_they_are():
    heads = {"mine": NAMHead(settings={"ridge": 3.0}), "cosine": CosineHead()}
    report = run("open", heads, 1)
    assert list(report.results) == ["mine", "cosine"]
    assert "'ridge': 3.0" in report.config["heads"]["mine"]
    assert heads["mine"].classes == []


def test_episodes_from_a_file_are_those_that_were_written(tmp_path):
    path = tmp_path / "episodes.safetensors"
    first = run("open", ["cosine"], 1, episodes=8, episodes_file=path)
    assert len(Episodes.load(path)) == 8
    again = evaluate(NOVEL, ["cosine"], "open", 4, 1, 5, 3, 99, seed=77, base=BASE, episodes_file=path)
    assert again.config["episodes"] == 8
    assert again.config["seed"] is None, "the file's seed counts, not the one that was asked for"
    assert again.results["cosine"]["auroc"] == first.results["cosine"]["auroc"]
    given = run("open", ["cosine"], 1, episodes=Episodes.load(path))
    assert given.results["cosine"]["auroc"] == first.results["cosine"]["auroc"]
    with pytest.raises(ValueError, match="made for other images"):
        evaluate(OTHER, ["cosine"], "open", 4, 1, 5, 3, base=BASE, episodes_file=path)
    with pytest.raises(ValueError, match="use the ways, shots, queries and protocol"):
        run("open", ["cosine"], 2, episodes_file=path)


def test_a_bank_of_half_precision_gives_close_results():
    half = FeatureBank(NOVEL.features.bfloat16(), NOVEL.labels, NOVEL.classes)
    exact, close = (evaluate(b, ["nam"], "open", 4, 1, 5, 3, 50) for b in (NOVEL, half))
    assert close.results["nam"]["auroc"]["mean"] == pytest.approx(exact.results["nam"]["auroc"]["mean"], abs=0.02)


def test_reports_of_the_same_run_are_the_same_text():
    first, second = (json.dumps(run("open", ["nam", "cosine"], 1, validation=OTHER).to_dict()) for _ in range(2))
    assert first == second


def test_base_images_held_out_are_disjoint_and_of_every_class():
    keep, held = hold_out(BASE, share=0.25, seed=3)
    assert keep.counts.tolist() == [18] * 7
    assert held.counts.tolist() == [6] * 7
    together = torch.cat([keep.features, held.features])
    assert torch.equal(together.sum(1).sort().values, BASE.features.sum(1).sort().values)
    assert not torch.equal(hold_out(BASE, share=0.25, seed=4)[1].features, held.features)
    with pytest.raises(ValueError, match="class 'class0' has 1 images"):
        hold_out(bank(2, 1, seed=0), share=0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "opened"}, "no protocol 'opened': there are closed, open, generalized"),
        ({"heads": ["nam", "cosne"]}, "no head 'cosne': did you mean 'cosine'"),
        ({"heads": []}, "heads is empty"),
        ({"ways": 10}, "10 ways and 5 unknown ways need 15 classes, and there are 12"),
        ({"shots": 6}, "and 6 shots and 15 queries need 21"),
        ({"open_ways": 0}, "without unknown classes it is the closed protocol"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"episodes": 10**21}, "episodes must be at most 100,000,000, got 1000000000000000000000"),
        ({"protocol": "generalized"}, "needs base classes"),
        ({"heads": ["cosine-centred"]}, "subtracts the mean base feature"),
        (
            {"base": FeatureBank(torch.ones(4, D + 1), [0, 0, 1, 1])},
            "the base bank has features of width 14, the bank of 13",
        ),
        ({"protocol": "generalized", "base": BASE, "base_queries": OTHER}, "need the same classes in the same order"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (
            {"base_statistics": BaseStatistics.from_mean(torch.zeros(3))},
            "of features of width 3, the bank has width 13",
        ),
        (
            {"ways": 3, "open_ways": 3, "validation": bank(4, 20, seed=9)},
            "validation classes: 3 ways and 3 unknown ways need 6",
        ),
        ({"device": "meta"}, "device 'meta' cannot be used here"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used here"),
    ],
)
def test_bad_requests_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(NOVEL, **{"episodes": 3, **options})


def test_scores_that_are_not_finite_are_no_result():
    class Broken(CosineHead):
        def _score(self, learned, query):
            return super()._score(learned, query) * float("nan")

    with pytest.raises(ValueError, match="the head 'broken' gave scores that are NaN"):
        evaluate(NOVEL, {"broken": Broken()}, episodes=3)


def test_scores_of_another_shape_are_refused():
    class Short(CosineHead):
        def score_episodes(self, *arguments, **options):
            return super().score_episodes(*arguments, **options)[..., 1:]

    with pytest.raises(ValueError, match=r"the head 'short' gave scores of shape .*150, 4\), expected .*150, 5\)"):
        evaluate(NOVEL, {"short": Short()}, episodes=3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_gives_the_same_answers():
    cpu, cuda = (run("generalized", ["nam", "cosine", "ridge"], 2, episodes=50, device=d) for d in ("cpu", "cuda"))
    for head, measures in cpu.results.items():
        for measure, value in measures.items():
            assert cuda.results[head][measure]["mean"] == pytest.approx(value["mean"], abs=2e-3)
    assert as_device("cuda").type == "cuda"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit on memory is set as Linux does")
@pytest.mark.parametrize("compiled", ["0", "1"])
def test_a_mapped_bank_may_be_larger_than_memory(tmp_path, compiled):
    features = torch.rand(40_000, 512)
    path = tmp_path / "bank.safetensors"
    FeatureBank(features, torch.arange(40_000) % 20, check=False).save(path)
    code = f"""
import resource, sys, torch
from episodes import FeatureBank, evaluate
torch.set_num_threads(1)
small = FeatureBank(torch.rand(900, 512), torch.arange(900) % 20)
evaluate(small, ["nam", "ridge"], episodes=300)
bank = FeatureBank.load({str(path)!r}, check=False)  # mapped: from here on there is no room for a copy
pages = int(open("/proc/self/statm").read().split()[5])
room = 48 << 20
resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + room,) * 2)
try:
    bank.features.clone()
    sys.exit("the limit does not hold")
except RuntimeError:
    pass
assert bank.features.nbytes > 1.6 * room
print(evaluate(bank, ["nam", "ridge"], episodes=600).results["nam"]["accuracy"]["mean"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FEWSHOT_NAM_COMPILE": compiled, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 0.1 < float(done.stdout) < 0.4, "chance: the features are noise"


@pytest.mark.parametrize("protocol", ["open", "generalized"])
def test_the_number_of_threads_does_not_matter(protocol):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            seen = []
            report = run(
                protocol,
                ["nam", "ridge"],
                2,
                episodes=60,
                batch_size=7,
                validation=OTHER,
                callback=lambda name, episodes, scores, frozen: seen.append((name, episodes.support, scores.known)),  # noqa: B023
            )
            found.append((report.to_dict(), seen))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    (one, shown), (many, shown_by_many) = found
    assert one == many
    assert len(shown) == 18
    for a, b in zip(shown, shown_by_many, strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])
        assert torch.equal(a[2], b[2])


def test_terms_of_all_images_are_not_computed_for_a_few_episodes():
    heads = {"nam": NAMHead(base=BaseStatistics.from_prototypes(BASE.class_means()))}
    bank = FeatureBank(NOVEL.features + 10, NOVEL.labels)
    few, many = (Scorer(bank, heads, torch.device("cpu"), queries=len(bank) - less) for less in (1, 0))
    assert set(few._gather_free.heads) == set()
    assert set(many._gather_free.heads) == ({"nam"} if many._bank.compiled else set())
    ((_, a),), ((_, b),) = (scorer.score(EpisodeSampler(bank, 4, 2, 5, 3).sample(0, 3)) for scorer in (few, many))
    torch.testing.assert_close(a.known, b.known, rtol=1e-4, atol=1e-4)


def test_base_queries_are_scored_where_base_classes_are_not_in_the_label_space():
    heads = {name: create(name) for name in ("cosine", "nearest")}
    sampler = EpisodeSampler(NOVEL, 4, 2, 5, 3, base=BASE, seed=4)
    episodes = sampler.sample(0, 3)
    for name, scores in Scorer(NOVEL, heads, torch.device("cpu"), BASE).score(episodes):
        expected = heads[name].score_episodes(NOVEL.features[episodes.support], BASE.features[episodes.base_query])
        torch.testing.assert_close(scores.base, expected)


def test_an_open_set_score_decides_what_is_accepted_and_not_what_is_answered():
    report = evaluate(
        NOVEL, ["cosine", "cosine+rmds", "cosine+knn"], shots=2, ways=4, open_ways=3, queries=5, episodes=20, base=BASE
    )
    plain, rmds, knn = (report.results[name] for name in ("cosine", "cosine+rmds", "cosine+knn"))
    assert plain["accuracy"] == rmds["accuracy"] == knn["accuracy"]
    assert len({each["auroc"]["mean"] for each in (plain, rmds, knn)}) == 3
    by_hand = OpenScoreHead(CosineHead(), open_scores.create("rmds")).fit(BASE.features, BASE.labels)
    again = evaluate(NOVEL, {"mine": by_hand}, shots=2, ways=4, open_ways=3, queries=5, episodes=20)
    assert again.results["mine"]["auroc"] == pytest.approx(rmds["auroc"])


def test_an_open_set_score_that_needs_base_images_asks_for_them():
    statistics = BaseStatistics.from_features(BASE.features, BASE.labels)
    with pytest.raises(ValueError, match="'rmds' is fitted on features of base classes, and none are given"):
        evaluate(NOVEL, ["cosine+rmds"], ways=4, open_ways=3, queries=5, episodes=2, base_statistics=statistics)


def test_unequal_queries_count_for_their_own_classes():
    settings = EvaluationSettings("open", ways=4, shots=1, queries=4, open_ways=3, episodes=12, seed=3, dirichlet=2)
    report = evaluate(NOVEL, ["cosine", "bd-cspn"], settings)
    drawn = EpisodeSampler(NOVEL, 4, 1, 4, 3, seed=3, dirichlet=2).sample(0, 12)
    right = []
    for i in range(12):
        head = create("cosine").write(NOVEL.features[drawn.support[i].flatten()], torch.arange(4))
        answers = torch.tensor(head.predict(NOVEL.features[drawn.query[i].flatten()]))
        right.append((answers == drawn.query_targets[i]).double().mean())
    assert report.results["cosine"]["accuracy"]["mean"] == pytest.approx(float(torch.stack(right).mean()))
    assert report.config["dirichlet"] == 2
    assert "bd-cspn (transductive)" in report.table()
    assert "bd-cspn (transductive)" in report.markdown()

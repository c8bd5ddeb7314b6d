"""Incremental sessions: every measure against a head that is written and read by hand, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import backbones
from episodes import FeatureBank, evaluate_incremental, extract
from episodes.data.image_dataset import FileImages
from episodes.data.incremental import Session
from episodes.evaluation.incremental import SessionFeatures, _drawn, _published_run, session_features
from episodes.evaluation.incremental_report import SESSION_MEASURES, TOTALS, _base_weight_area
from fewshot_nam.heads import CosineHead, create
from fewshot_nam.heads.fecam import FeCAMHead

D = 7
SCORE_MORE = FeCAMHead._score_more


def bank(first: int, classes: int, images: int, spread: float = 0.8) -> FeatureBank:
    generator = torch.Generator().manual_seed(first)
    centres = torch.randn(classes, 1, D, generator=generator)
    features = centres + spread * torch.randn(classes, images, D, generator=generator)
    names = [f"c{first + i}" for i in range(classes)]
    return FeatureBank(features.flatten(0, 1), torch.arange(classes).repeat_interleave(images), names)


BASE, NOVEL = bank(0, 5, 20), bank(50, 7, 9)
QUERIES = FeatureBank(BASE.features[::4] + 0.3, BASE.labels[::4], BASE.classes)


def by_hand(run):
    """Return what a cosine head answers after each session: scores of the known and of the unarrived queries."""
    head = CosineHead()
    for label in range(run.base_classes):
        head.write_base(run.base[run.base_targets == label].mean(dim=0), [run.classes[label]])
    found = []
    for session, known in enumerate(run.known):
        if session:
            features, targets = run.shots[session - 1]
            head.write(features, [run.classes[i] for i in targets])
        assert head.classes == run.classes[: len(head.classes)]
        found.append((head(run.queries[known]), head(run.queries[run.unarrived[session]])))
    return found


def test_measures_are_those_of_a_head_written_by_hand():
    report = evaluate_incremental(
        BASE, NOVEL, base_queries=QUERIES, ways=2, shots=3, heads=["cosine"], orders=1, seed=4
    )
    assert report.seen == [5, 7, 9, 11]
    run = _drawn(BASE, NOVEL, QUERIES, 2, 3, 3, None, 4, 0)
    found, rows = by_hand(run), report.sessions["cosine"]
    first_right = found[0][0].argmax(1) == run.query_targets[run.known[0]]
    for session, (known, unarrived) in enumerate(found):
        targets = run.query_targets[run.known[session]]
        right, base = known.argmax(1) == targets, targets < 5
        best = known.amax(1).sort(descending=True).values
        threshold = best[math.ceil(0.95 * len(best)) - 1]
        needed = math.ceil(0.9 * float(right.double().mean()) * len(right) - 1e-9)
        equal = known.amax(1)[right].sort(descending=True).values[needed - 1]
        known_above = (known.amax(1)[:, None] > unarrived.amax(1)).double().mean()
        expected = {
            "accuracy": right.double().mean(),
            "base_accuracy": right[base].double().mean(),
            "base_lost": (first_right & ~right[base]).double().mean(),
            "base_to_novel": (known.argmax(1)[base] >= 5).double().mean(),
            "unarrived_fpr@95tpr": (unarrived.amax(1) >= threshold).double().mean(),
            "unarrived_fpr@equal": (unarrived.amax(1) >= equal).double().mean(),
            "unarrived_auroc": known_above,
        }
        if session:
            novel = right[~base].double().mean()
            expected["novel_accuracy"] = novel
            expected["harmonic_mean"] = 2 * novel * expected["base_accuracy"] / (novel + expected["base_accuracy"])
        for measure, value in expected.items():
            assert rows[measure][session]["mean"] == pytest.approx(float(value), abs=1e-6), (measure, session)
    accuracy = [value["mean"] for value in rows["accuracy"]]
    totals = {key: value["mean"] for key, value in report.totals["cosine"].items()}
    assert totals["A_last"] == pytest.approx(accuracy[-1])
    assert totals["A_inc"] == pytest.approx(np.mean(accuracy))
    assert totals["PD"] == pytest.approx(accuracy[0] - accuracy[-1])
    assert list(totals) == list(TOTALS)
    assert list(rows) == list(SESSION_MEASURES)


def test_the_area_over_base_weights_is_that_of_its_definition():
    base, novel, sessions, ratio = 0.8, 0.3, 4, 12.0
    weights = np.linspace(0, ratio, 100_001)
    expected = np.trapezoid((weights * base + sessions * novel) / (weights + sessions), weights) / ratio
    area = _base_weight_area(torch.tensor(base), torch.tensor(novel), sessions, ratio)
    assert float(area) == pytest.approx(expected, abs=1e-6)


def test_an_order_is_a_permutation_with_shots_that_are_no_queries_and_is_the_same_for_fewer_sessions():
    run, fewer = (_drawn(BASE, NOVEL, QUERIES, 2, 3, count, 4, 1, 2) for count in (3, 1))
    assert sorted(run.classes[5:]) == sorted(NOVEL.classes)
    assert run.seen == [5, 7, 9, 11]
    shots = torch.cat([features for features, _ in run.shots])
    assert not (shots[:, None] == run.queries).all(-1).any()
    assert torch.equal(fewer.shots[0][0], run.shots[0][0])
    assert torch.equal(fewer.queries, run.queries)
    for session, seen in enumerate(run.seen):
        assert int(run.query_targets[run.known[session]].max()) == seen - 1
        assert int(run.query_targets[run.unarrived[session]].min()) == seen
    assert len(run.queries) == len(QUERIES) + 7 * 4


def published():
    """Three sessions of two classes after five, with queries of their own in each."""
    parts = [BASE, NOVEL.select_classes(NOVEL.classes[:2]), NOVEL.select_classes(NOVEL.classes[2:4])]
    queries = [BASE]
    for part in parts[1:]:
        rows = torch.cat([queries[-1].features, part.features])
        names = [*queries[-1].classes, *part.classes]
        labels = torch.cat([queries[-1].labels, part.labels + len(queries[-1].classes)])
        queries.append(FeatureBank(rows, labels, names))
    return [SessionFeatures(*pair) for pair in zip(parts, queries, strict=True)]


def test_published_sessions_bring_their_images():
    report = evaluate_incremental(sessions=published(), heads=["cosine"])
    assert report.seen == [5, 7, 9]
    assert not report.config["seeded"]
    run = _published_run(published())
    right = [
        float((scores.argmax(1) == run.query_targets[known]).double().mean())
        for (scores, _), known in zip(by_hand(run), run.known, strict=True)
    ]
    assert [value["mean"] for value in report.sessions["cosine"]["accuracy"]] == pytest.approx(right)
    assert math.isnan(report.sessions["cosine"]["unarrived_auroc"][-1]["mean"])
    assert math.isnan(report.totals["cosine"]["A_last"]["ci95"])


def test_session_features_are_those_of_each_set_and_an_image_is_read_once(tmp_path, monkeypatch):
    for i in range(6):
        Image.new("L", (28, 28), 40 * i).save(tmp_path / f"{i}.png")
    read = []
    image = FileImages.image
    monkeypatch.setattr(FileImages, "image", lambda self, i: read.append(self.files[i]) or image(self, i))

    def part(name, numbers, labels, classes):
        return FileImages(name, tmp_path, [f"{i}.png" for i in numbers], np.asarray(labels), classes)

    sessions = [
        Session(part("s0", [1, 2], [0, 1], ["a", "b"]), part("q0", [3, 4], [1, 0], ["a", "b"])),
        Session(part("s1", [5], [0], ["c"]), part("q1", [3, 4, 0], [1, 0, 2], ["a", "b", "c"])),
    ]
    backbone = backbones.create("conv4")
    found = session_features(backbone, sessions, cache_dir=None)
    assert sorted(read) == [f"{i}.png" for i in range(6)]
    for banks, session in zip(found, sessions, strict=True):
        for bank_, images in zip(banks, session, strict=True):
            expected = extract(backbone, images, cache_dir=None)
            assert bank_.classes == expected.classes
            assert torch.equal(bank_.labels, expected.labels)
            torch.testing.assert_close(bank_.features, expected.features, rtol=1e-4, atol=1e-5)


def test_orders_have_intervals_and_the_first_head_is_paired_with_the_others():
    options = {"base_queries": QUERIES, "ways": 3, "shots": 2, "queries": 4, "seed": 1}
    report = evaluate_incremental(BASE, NOVEL, heads=["cosine", "protonet"], orders=3, **options)
    again = evaluate_incremental(BASE, NOVEL, heads={"mine": CosineHead()}, orders=3, **options)
    assert again.as_dict()["totals"]["mine"] == report.as_dict()["totals"]["cosine"]
    assert list(report.paired) == ["cosine - protonet"]
    ahead = report.paired["cosine - protonet"]["A_last"]
    assert ahead["mean"] == pytest.approx(
        report.totals["cosine"]["A_last"]["mean"] - report.totals["protonet"]["A_last"]["mean"]
    )
    single = [
        evaluate_incremental(BASE, NOVEL, heads=["cosine"], orders=n, **options).totals["cosine"]["A_last"]["mean"] * n
        for n in (1, 2, 3)
    ]
    values = np.diff([0, *single])
    assert report.totals["cosine"]["A_last"]["ci95"] == pytest.approx(
        4.303 * np.std(values, ddof=1) / math.sqrt(3), rel=1e-3
    )


def test_the_report_is_printed_and_written(tmp_path):
    report = evaluate_incremental(BASE, NOVEL, base_queries=QUERIES, heads=["cosine", "protonet"], orders=2, shots=2)
    assert "cosine - protonet" in report.table()
    for name in (*SESSION_MEASURES, *TOTALS):
        assert f"- `{name}`: " in report.markdown()
    report.save_json(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["sessions"]["cosine"]["novel_accuracy"][0] == {"mean": None, "ci95": None}
    assert "seconds" not in content


def test_scores_that_no_later_class_changes_are_computed_once_and_are_the_same(monkeypatch):
    options = {"base_queries": QUERIES, "ways": 2, "shots": 3, "orders": 2, "heads": ["c-fecam"]}
    once = evaluate_incremental(BASE, NOVEL, **options).as_dict()
    monkeypatch.delattr("fewshot_nam.heads.fecam.FeCAMHead._score_more")
    monkeypatch.setattr(
        "fewshot_nam.heads.fecam.FeCAMHead._score", lambda self, learned, query: SCORE_MORE(self, learned, query, 0)
    )
    again = evaluate_incremental(BASE, NOVEL, **options).as_dict()
    assert once == again


def test_base_queries_are_held_out_where_none_are_given():
    report = evaluate_incremental(BASE, NOVEL, heads=["cosine"], orders=1, shots=2)
    assert report.config["base_queries"] == 20
    assert report.config["base_images"] == 80


def test_base_statistics_are_those_of_the_images_that_are_learned():
    options = {"base_queries": QUERIES, "shots": 2, "orders": 1}
    named = evaluate_incremental(BASE, NOVEL, heads=["cosine-centred"], **options)
    made = evaluate_incremental(
        BASE, NOVEL, heads={"cosine-centred": create("cosine-centred", BASE.base_statistics())}, **options
    )
    assert named.as_dict()["totals"] == made.as_dict()["totals"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"novel": None}, "give base and novel"),
        ({"ways": 8}, "7 novel classes are not enough for a session of 8"),
        ({"sessions": 2}, "7 novel classes are enough for 1 to 1 sessions"),
        ({"shots": 9}, "has 9 images"),
        ({"queries": 8}, "has 9 images"),
        ({"heads": []}, "name at least one head"),
        ({"orders": 0}, "orders must be at least 1"),
        ({"novel": bank(0, 7, 9)}, "'c0' is a base class and a novel class"),
        ({"base_queries": NOVEL}, "'c50' is a class of base_queries and not of base"),
        ({"novel": FeatureBank(torch.ones(20, 3), torch.arange(20) % 10)}, "features of one width, got 7, 3 and 7"),
        ({"sessions": published()}, "bring their own images"),
        ({"heads": ["bd-cspn"]}, "'bd-cspn' is transductive"),
        ({"heads": ["cosin"]}, "did you mean 'cosine'"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {
        "base": BASE,
        "novel": NOVEL,
        "base_queries": QUERIES,
        "heads": ["cosine"],
        "shots": 2,
        "orders": 1,
    } | change
    with pytest.raises(ValueError, match=message):
        evaluate_incremental(**given)


def test_published_sessions_that_do_not_fit_are_refused():
    sessions = published()
    with pytest.raises(ValueError, match="session 0 tests 'c50', which has not arrived yet"):
        evaluate_incremental(sessions=[SessionFeatures(BASE, sessions[1].queries), *sessions[1:]], heads=["cosine"])
    with pytest.raises(ValueError, match="arrives in two sessions"):
        evaluate_incremental(sessions=[*sessions, sessions[-1]], heads=["cosine"])


@pytest.mark.parametrize("head", ["cosine", "ranpac", "nam-recursive"])
def test_an_open_set_score_says_which_answers_of_a_head_are_accepted(head):
    names = [head, f"{head}+knn", f"{head}+msp", f"{head}+vim"]
    report = evaluate_incremental(BASE, NOVEL, base_queries=QUERIES, ways=2, shots=3, heads=names, orders=1, seed=4)
    for name in names[1:]:
        for measure in ("accuracy", "base_lost"):
            mine, inner = ([value["mean"] for value in report.sessions[each][measure]] for each in (name, head))
            assert mine == inner
    run = _drawn(BASE, NOVEL, QUERIES, 2, 3, 3, None, 4, 0)
    directions = torch.nn.functional.normalize(run.queries, dim=-1)
    means = torch.stack([run.base[run.base_targets == label].mean(dim=0) for label in range(5)])
    for session, (known, unarrived) in enumerate(zip(run.known, run.unarrived, strict=True)):
        learned = torch.nn.functional.normalize(torch.cat([means, *(x for x, _ in run.shots[:session])]), dim=-1)
        nearest = (directions @ learned.mT).amax(dim=-1)
        if len(unarrived):
            above = (nearest[known][:, None] > nearest[unarrived]).double().mean()
            found = report.sessions[f"{head}+knn"]["unarrived_auroc"][session]["mean"]
            assert found == pytest.approx(float(above), abs=1e-6)


def test_scores_that_look_at_the_answer_use_the_class_of_the_head():
    """``nci`` takes the weights of the answer: classes of a head and of a run may stand in another order."""
    given = {"base_queries": QUERIES, "ways": 2, "shots": 3, "orders": 1, "seed": 4}
    report = evaluate_incremental(BASE, NOVEL, heads=["cosine+nci", "cosine+gen", "cosine+rmds"], **given)
    run = _drawn(BASE, NOVEL, QUERIES, 2, 3, 3, None, 4, 0)
    centre = run.base.double().mean(dim=0)
    means = [run.base[run.base_targets == label].mean(dim=0) for label in range(5)]
    means += [run.shots[0][0][:3].mean(dim=0), run.shots[0][0][3:].mean(dim=0)]
    apart = run.queries - centre
    answer = by_hand(run)[1]
    scores = []
    for images, of in zip((run.known[1], run.unarrived[1]), answer, strict=True):
        weights = torch.stack(means).double()[of.argmax(dim=1)] - centre
        products = (weights * apart[images]).sum(dim=-1) / apart[images].norm(dim=-1)
        scores.append(products + 1e-4 * run.queries[images].abs().sum(dim=-1))
    above = (scores[0][:, None] > scores[1]).double().mean()
    assert report.sessions["cosine+nci"]["unarrived_auroc"][1]["mean"] == pytest.approx(float(above), abs=1e-6)
    assert len({of["A_last"]["mean"] for of in report.totals.values()}) == 1


def test_answers_that_are_kept_are_read_again_and_a_further_head_is_added(tmp_path, monkeypatch):
    given = {"base_queries": QUERIES, "ways": 2, "shots": 3, "orders": 2, "seed": 4}
    expected = evaluate_incremental(BASE, NOVEL, heads=["cosine", "nearest+knn"], **given)
    first = evaluate_incremental(BASE, NOVEL, heads=["cosine"], keep_answers=tmp_path, **given)
    assert first.totals["cosine"].keys() == expected.totals["cosine"].keys()
    monkeypatch.setattr(CosineHead, "_score", None)  # so that it cannot answer again
    again = evaluate_incremental(BASE, NOVEL, heads=["cosine", "nearest+knn"], keep_answers=tmp_path, **given)
    assert again.as_dict() == expected.as_dict()
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(TypeError):  # of other shots nothing is kept
        evaluate_incremental(BASE, NOVEL, heads=["cosine"], keep_answers=tmp_path, **{**given, "seed": 5})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ranpac", {"balanced": True}),
        ("ranpac", {"seed": 1}),
        ("fecam", {"temperature": 20.0}),
        ("klda", {"seed": 1}),
        ("plda-snorm", {"log_partition_penalty": 0.01}),
        ("nam", {"base": True}),
    ],
)
def test_answers_are_kept_for_the_settings_and_base_classes_of_a_head(tmp_path, name, changes):
    """A head got the figures of another of its kind where what it is printed as leaves settings out."""
    statistics = BASE.base_statistics()
    other = bank(90, 5, 20).base_statistics() if "base" in changes else statistics
    options = {key: value for key, value in changes.items() if key != "base"}
    given = {"base_queries": QUERIES, "ways": 2, "shots": 3, "orders": 1, "keep_answers": tmp_path}
    for head in (create(name, statistics), create(name, statistics), create(name, other, **options)):
        evaluate_incremental(BASE, NOVEL, heads={"mine": head}, **given)
    assert len(list(tmp_path.iterdir())) == 2

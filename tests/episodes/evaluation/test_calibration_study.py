"""The study of calibrated heads: against heads that are written, calibrated and used one by one."""

import pytest
import torch

from episodes import EpisodeSampler, FeatureBank
from episodes.evaluation.calibration_study import CONFIDENCE, FRAMES, KINDS, CalibrationStudy, share_within
from fewshot_nam.heads import CosineHead

D, EPISODES = 6, 5


def bank(classes: int, images: int, seed: int) -> FeatureBank:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 1, D, generator=generator)
    features = centres + 0.8 * torch.randn(classes, images, D, generator=generator)
    return FeatureBank(features.flatten(0, 1), torch.arange(classes).repeat_interleave(images))


NOVEL, BASE = bank(11, 16, 0), bank(6, 20, 1)
STUDY = CalibrationStudy(NOVEL, BASE, 4, 3, 5, ways=3, queries=6, base_unknowns=40, few=19, bursts=9, seed=2)


@pytest.mark.parametrize("by_class", [False, True])
def test_rates_are_those_of_heads_calibrated_one_by_one(by_class):
    heads = {"cosine": CosineHead(), "scaled": CosineHead(scale=3.0)}
    rows = STUDY.run(heads, 2, EPISODES, targets=(0.2,))
    kind = "by class" if by_class else "plain"
    row = row_of(rows, "novel", kind)
    sampler = EpisodeSampler(NOVEL, 3, 2, 6, 7, 10, seed=2)
    expected: dict[str, list[float]] = {"same_classes": [], "new_classes": [], "known": []}
    for e in range(EPISODES):
        episode, head = sampler.sample(e, e + 1), CosineHead()
        for way, rows_of_class in enumerate(episode.support[0]):
            head.write(NOVEL.features[rows_of_class], [100 + way] * 2)
        samples = episode.unknown[0, :4, :5].flatten()
        labels = NOVEL.labels[samples].tolist() if by_class else None
        head.calibrate(NOVEL.features[samples], target_fpr=0.2, unknown_labels=labels)
        tested = {
            "same_classes": episode.unknown[0, :4, 5:],
            "new_classes": episode.unknown[0, 4:],
            "known": episode.query[0],
        }
        for name, images in tested.items():
            answers = head.predict(NOVEL.features[images.flatten()], unknown=-1)
            expected[name].append(sum(answer != -1 for answer in answers) / len(answers))
    for name, shares in expected.items():
        assert row["accepted"][name]["mean"] == pytest.approx(sum(shares) / EPISODES), name


def row_of(rows, source: str, kind: str):
    (row,) = (r for r in rows if (r["unknowns"], r["calibration"], r["head"]) == (source, kind, "cosine"))
    return row


def test_rejected_queries_are_those_of_heads_calibrated_from_their_shots():
    row = row_of(STUDY.run({"cosine": CosineHead()}, 4, EPISODES, targets=(0.2,)), "novel", "from shots")
    sampler, accepted, bounds = EpisodeSampler(NOVEL, 3, 4, 6, 7, 10, seed=2), [], set()
    for e in range(EPISODES):
        episode, head = sampler.sample(e, e + 1), CosineHead()
        for way, images in enumerate(episode.support[0]):
            head.write(NOVEL.features[images], [100 + way] * 4)
        bounds.add(head.calibrate_from_shots(0.2).bound)
        answers = head.predict(NOVEL.features[episode.query[0].flatten()], unknown=-1)
        accepted.append(sum(answer != -1 for answer in answers) / len(answers))
    assert row["accepted"]["known"]["mean"] == pytest.approx(sum(accepted) / EPISODES)
    assert {row["promise"]["bound"]} == bounds


def test_promises_are_those_of_calibrate_on_as_many_samples():
    rows = STUDY.run({"cosine": CosineHead()}, 1, 2, targets=(0.2,))
    generator = torch.Generator().manual_seed(0)
    head = CosineHead().write(torch.eye(D)[:2], ["a", "b"])
    few = head.calibrate(torch.randn(19, D, generator=generator), target_fpr=0.2)
    confident = head.calibrate(torch.randn(19, D, generator=generator), target_fpr=0.2, confidence=CONFIDENCE)
    frames = head.calibrate(torch.randn(9 * FRAMES, D, generator=generator), target_fpr=0.2)
    for kind, bound, limit in (
        ("few", few.bound, few.bound_95),
        ("confident", confident.bound, 0.2),
        ("frames", frames.bound, frames.bound_95),
        ("bursts", 0.2, None),
    ):
        promise = row_of(rows, "novel", kind)["promise"]
        assert (promise["bound"], promise["limit"]) == (bound, limit), kind


def test_few_samples_keep_their_promises_and_frames_one_by_one_break_theirs():
    rows = STUDY.run({"cosine": CosineHead()}, 2, 300, targets=(0.05,))
    few, frames = (row_of(rows, "novel", kind) for kind in ("few", "frames"))
    same = few["accepted"]["same_classes"]
    assert same["mean"] <= few["promise"]["bound"] + 2 * same["ci95"]
    assert few["within"]["mean"] >= few["promise"]["confidence"] - 2 * few["within"]["ci95"]
    # 45 frames are believed to be enough for 5%, but they are 9 images.
    wrong = frames["accepted"]["same_classes"]
    assert wrong["mean"] - 2 * wrong["ci95"] > frames["promise"]["bound"]
    assert row_of(rows, "novel", "bursts")["refused"].startswith(
        "a bound of 0.05 on false alarms needs at least 19 groups"
    )


@pytest.mark.parametrize(("rank", "count", "tested", "limit"), [(5, 99, 40, 0.1), (1, 19, 7, 0.0), (2, 9, 3, 1.0)])
def test_the_share_within_a_limit_is_that_of_random_ranks(rank, count, tested, limit):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20000, count + tested, generator=generator)
    threshold = scores[:, :count].sort(dim=1, descending=True).values[:, rank - 1 : rank]
    within = (scores[:, count:] > threshold).double().mean(dim=1) <= limit + 1e-9
    assert share_within(limit, rank, count, tested) == pytest.approx(float(within.double().mean()), abs=0.015)


def test_rows_cover_every_source_kind_target_and_head_and_say_what_was_refused():
    rows = STUDY.run({"cosine": CosineHead(), "other": CosineHead(scale=2.0)}, 1, EPISODES, targets=(0.5, 0.01))
    assert len(rows) == 2 * 2 * (len(KINDS) + 2)
    assert all("minus_cosine" in row for row in rows if row["head"] == "other" and "accepted" in row)
    refused = {(row["unknowns"], row["calibration"], row["target"]) for row in rows if "refused" in row}
    of_one_percent = {("novel", kind, 0.01) for kind in KINDS} | {
        ("base", kind, 0.01) for kind in ("plain", "by class")
    }
    assert refused == of_one_percent | {("novel", "from shots", 0.5)}  # one shot cannot be left out
    assert "same_classes" not in next(r for r in rows if r["unknowns"] == "base" and "accepted" in r)["accepted"]

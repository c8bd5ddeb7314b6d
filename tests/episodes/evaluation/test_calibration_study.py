"""The study of calibrated heads: against heads that are written, calibrated and asked one by one."""

import pytest
import torch

from episodes import EpisodeSampler, FeatureBank
from episodes.evaluation.calibration_study import CalibrationStudy
from fewshot_nam.heads import CosineHead

D, EPISODES = 6, 5


def bank(classes: int, images: int, seed: int) -> FeatureBank:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 1, D, generator=generator)
    features = centres + 0.8 * torch.randn(classes, images, D, generator=generator)
    return FeatureBank(features.flatten(0, 1), torch.arange(classes).repeat_interleave(images))


NOVEL, BASE = bank(11, 16, 0), bank(6, 20, 1)
STUDY = CalibrationStudy(NOVEL, BASE, 4, 3, 5, ways=3, queries=6, base_unknowns=40, seed=2)


@pytest.mark.parametrize("by_class", [False, True])
def test_rates_are_those_of_heads_calibrated_one_by_one(by_class):
    heads = {"cosine": CosineHead(), "scaled": CosineHead(scale=3.0)}
    rows = STUDY.run(heads, 2, EPISODES, targets=(0.2,))
    kind = "by class" if by_class else "plain"
    (row,) = (r for r in rows if (r["strangers"], r["calibration"], r["head"]) == ("novel", kind, "cosine"))
    sampler = EpisodeSampler(NOVEL, 3, 2, 6, 7, 10, BASE, 40, 2)
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


def test_rows_cover_every_source_kind_target_and_head_and_say_what_was_refused():
    rows = STUDY.run({"cosine": CosineHead(), "other": CosineHead(scale=2.0)}, 1, EPISODES, targets=(0.5, 0.01))
    assert len(rows) == 2 * 2 * 2 * 2
    assert all("minus_cosine" in row for row in rows if row["head"] == "other" and "accepted" in row)
    refused = {(row["strangers"], row["calibration"], row["target"]) for row in rows if "refused" in row}
    assert refused == {(source, kind, 0.01) for source in ("novel", "base") for kind in ("plain", "by class")}
    assert "same_classes" not in next(r for r in rows if r["strangers"] == "base" and "accepted" in r)["accepted"]

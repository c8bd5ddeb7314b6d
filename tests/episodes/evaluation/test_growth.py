"""Thresholds as a head grows: against single heads that are written, read and made to forget by hand."""

import pytest
import torch

from episodes import FeatureBank
from episodes.evaluation.growth import GROWTH_MEASURES, GrowthStudy
from fewshot_nam.heads import CosineHead, Head, create

D = 8


def bank(classes: int, images: int) -> FeatureBank:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, 1, D, generator=generator)
    features = centres + 0.4 * torch.randn(classes, images, D, generator=generator)
    return FeatureBank(features.flatten(0, 1), torch.arange(classes).repeat_interleave(images))


BANK = bank(18, 9)
STUDY = GrowthStudy(BANK, (3, 6, 12), 6, shots=2, queries=7, target=0.25, deployments=4, seed=3)


def test_rates_are_those_of_a_head_written_by_hand():
    rows = {(row["classes"], row["forgotten"]): row for row in STUDY.run({"cosine": CosineHead()})}
    assert list(rows) == [(3, False), (6, False), (12, False), (3, True)]
    known, right, unknown_accepted = [], [], []
    for number in range(4):
        support, query, unknown, samples = STUDY._drawn(number)
        assert (len(unknown), len(samples)) == (3 * 7, 3 * 7)
        head = CosineHead()
        for label in range(3):
            head.write(support[label], [label] * 2)
        best = head(query[:3].flatten(0, 1)).max(-1).values
        threshold = best.sort(descending=True).values[19].item() - 1e-6  # 20 of 21 are at least 95%
        for label in range(3, 12):
            head.write(support[label], [label] * 2)
        accepted, of_own = [], []
        for label in range(12):
            for image in query[label]:
                accepted.append(head(image).max().item() >= threshold)
                of_own.append(accepted[-1] and head.predict(image) == label)
        known.append(sum(accepted) / 84)
        right.append(sum(of_own) / 84)
        unknown_accepted.append(sum(head(image).max().item() >= threshold for image in unknown) / 21)
    row = rows[12, False]
    for measure, expected in (("known", known), ("right", right), ("unknown", unknown_accepted)):
        assert row[measure]["mean"] == pytest.approx(sum(expected) / 4), measure


@pytest.mark.parametrize("name", ["nam", "cosine", "protonet"])
def test_forgetting_brings_every_rate_back(name):
    heads: dict[str, Head] = {name: create(name)}
    rows = {(row["classes"], row["forgotten"]): row for row in STUDY.run(heads)}
    for measure in GROWTH_MEASURES:
        assert rows[3, True][measure] == pytest.approx(rows[3, False][measure], abs=1e-6), measure
    assert heads[name].classes == []


def test_unknown_classes_are_never_learned_and_calibration_is_on_others():
    support, query, unknown, samples = STUDY._drawn(0)
    parts = [support.flatten(0, 1), query.flatten(0, 1), unknown, samples]
    seen = [{tuple(row) for row in part.tolist()} for part in parts]
    assert sum(map(len, seen)) == len(set().union(*seen))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (6, 3)}, "sizes must rise"),
        ({"sizes": (3, 13)}, "19 classes are needed, and there are 18"),
        ({"shots": 3}, "need 10 images of each class, and one has 9"),
        ({"target": 0.05}, "needs 19 classes to calibrate on"),
    ],
)
def test_studies_that_cannot_be_are_refused(options, message):
    settings = {"sizes": (3, 6), "unknown_classes": 6, "shots": 2, "queries": 7, "target": 0.25, **options}
    with pytest.raises(ValueError, match=message):
        GrowthStudy(BANK, **settings)

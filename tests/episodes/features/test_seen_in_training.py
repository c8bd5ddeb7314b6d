"""Reports say where base queries are images that the backbone was trained on."""

import pytest
import torch

import backbones
from episodes.evaluation.evaluation import EvaluationSettings, evaluate
from episodes.features.bank import FeatureBank
from episodes.features.holdout import hold_out
from episodes.features.seen_in_training import CONV4, seen_in_training


def test_the_weights_are_those_that_come_with_conv4():
    assert backbones.create("conv4").weights_hash == CONV4


@pytest.mark.parametrize(
    ("dataset", "weights", "noted"),
    [
        ("omniglot/base", CONV4, True),
        ("omniglot-fscil/base/all", CONV4, True),
        ("omniglot/base", "other", False),
        ("omniglot/novel", CONV4, False),
        ("omniglot/baseless", CONV4, False),
    ],
)
def test_it_hangs_on_the_images_and_the_weights(dataset, weights, noted):
    assert bool(seen_in_training({"dataset": dataset, "weights_hash": weights})) == noted
    assert seen_in_training({}) == []


def test_an_evaluation_of_base_classes_says_so_and_one_without_base_queries_does_not():
    """They were called held out."""
    rows = torch.rand(8, 20, 6, generator=torch.Generator().manual_seed(0)) + 3 * torch.eye(8)[:, None, :6]
    bank = FeatureBank(rows.flatten(0, 1), torch.arange(8).repeat_interleave(20))
    base = bank.select_classes(range(4))
    base = FeatureBank(
        base.features, base.labels, base.classes, provenance={"dataset": "omniglot/base", "weights_hash": CONV4}
    )
    assert hold_out(base, 0.5)[1].provenance == base.provenance
    for protocol, noted in (("generalized", True), ("open", False)):
        settings = EvaluationSettings(protocol=protocol, ways=2, open_ways=2, shots=1, queries=3, episodes=3)
        report = evaluate(bank.select_classes(range(4, 8)), ["cosine"], settings, base=base)
        assert any("the backbone has seen" in note for note in report.notes) == noted

"""Heads with base class weights of their own, compared: against ``evaluate`` with the same weights, and a plain loop."""

import pytest
import torch

from episodes import EpisodeSampler, FeatureBank, evaluate
from episodes.evaluation.generalized import Contender, NovelAndBase, compare
from episodes.features.holdout import hold_out
from fewshot_nam.heads import CosineHead, GeneratorHead, NAMHead

D = 13


def bank(classes: int, images: int, seed: int, first: int = 0) -> FeatureBank:
    """Return clustered features with a direction that all share."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(classes, 1, D, generator=generator) + 0.5
    features = (centres + 0.9 * torch.randn(classes, images, D, generator=generator)).relu() + 0.01
    labels = torch.arange(classes).repeat_interleave(images)
    return FeatureBank(features.flatten(0, 1), labels, [f"class{first + i}" for i in range(classes)])


BASE, QUERIES = hold_out(bank(7, 48, seed=2, first=100), 0.5)
TESTED, VALIDATED = hold_out(QUERIES, 0.5)
TEST, VALIDATION = NovelAndBase(bank(12, 20, seed=1), TESTED), NovelAndBase(bank(9, 20, seed=3, first=200), VALIDATED)
SETTINGS = {"ways": 4, "shots": 2, "queries": 5, "episodes": 40, "seed": 4}


def test_with_the_same_weights_it_finds_what_evaluate_finds():
    heads = {"nam": NAMHead(), "cosine": CosineHead()}
    results, pairs = compare(
        {name: Contender(head, BASE.class_means(power_norm=head.power_normalised)) for name, head in heads.items()},
        TEST,
        VALIDATION,
        **SETTINGS,
    )
    report = evaluate(TEST.novel, heads, "generalized", open_ways=0, base=BASE, base_queries=TEST.base, **SETTINGS)
    for name in heads:
        for measure, value in results[name].items():
            if measure in report.results[name]:
                assert value["mean"] == pytest.approx(report.results[name][measure]["mean"]), measure
                assert value["ci95"] == pytest.approx(report.results[name][measure]["ci95"]), measure
    ours, theirs = pairs["cosine-nam"]["ausuc"], report.paired["nam-cosine"]["ausuc"]
    assert (ours["mean"], ours["ci95"]) == pytest.approx((-theirs["mean"], theirs["ci95"]))


def test_accuracies_are_those_of_a_plain_loop():
    torch.manual_seed(0)
    head = GeneratorHead(BASE.class_means() + 0.1 * torch.rand(7, D), ("write",), gate_width=4)
    results, _ = compare({"ours": Contender(head, head.base_weights)}, TEST, VALIDATION, **SETTINGS)
    sampler = EpisodeSampler(TEST.novel, 4, 2, 5, open_ways=0, base=TEST.base, seed=4)
    right: dict[str, list[float]] = {"novel_accuracy:alone": [], "base_accuracy:alone": [], "joint_accuracy": []}
    for e in range(40):
        episode = sampler.sample(e, e + 1)
        learned = GeneratorHead(head.base_weights.detach(), head.ingredients, gate_width=4)
        learned.load_state_dict(head.state_dict())
        learned.write_base(head.base_weights.detach(), [f"base{i}" for i in range(7)])
        learned.write(TEST.novel.features[episode.support[0]].flatten(0, 1), torch.arange(4).repeat_interleave(2))
        novel = learned(TEST.novel.features[episode.query[0].flatten()])
        base = learned(TEST.base.features[episode.base_query[0]])
        ways = torch.arange(4).repeat_interleave(5)
        right["novel_accuracy:alone"] += (novel[:, 7:].argmax(-1) == ways).tolist()
        right["base_accuracy:alone"] += (base[:, :7].argmax(-1) == episode.base_classes[0]).tolist()
        right["joint_accuracy"] += (novel.argmax(-1) == 7 + ways).tolist()
        right["joint_accuracy"] += (base.argmax(-1) == episode.base_classes[0]).tolist()
    for measure, answers in right.items():
        assert results["ours"][measure]["mean"] == pytest.approx(sum(answers) / len(answers)), measure
    for kind in ("novel", "base"):
        assert results["ours"][f"{kind}_accuracy:alone"]["mean"] > results["ours"][f"{kind}_accuracy"]["mean"] + 0.01


def test_the_frozen_bias_comes_from_validation_alone():
    shifted = Contender(CosineHead(scale=30.0), BASE.class_means())
    results, _ = compare({"cosine": shifted}, TEST, VALIDATION, **SETTINGS)
    other, _ = compare({"cosine": shifted}, TEST, NovelAndBase(bank(9, 20, seed=8, first=300), VALIDATED), **SETTINGS)
    changed = {measure for measure, value in results["cosine"].items() if value != other["cosine"][measure]}
    assert changed == {"base_accuracy:frozen", "novel_accuracy:frozen", "harmonic_mean:frozen"}


def test_weights_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="expected one head or more, got none"):
        compare({}, TEST, VALIDATION)
    with pytest.raises(ValueError, match="'cosine' has weights of 3 base classes, the base queries are of 7 classes"):
        compare({"cosine": Contender(CosineHead(), torch.rand(3, D))}, TEST, VALIDATION, **SETTINGS)


def test_the_bias_is_chosen_on_as_many_episodes_as_evaluate_chooses_it_on():
    heads = {"cosine": CosineHead()}
    # evaluate halves the base queries it is given: the first half is tested on, bias is chosen with the other.
    tested, chosen = hold_out(QUERIES, 0.5, seed=SETTINGS["seed"])
    report = evaluate(
        TEST.novel,
        heads,
        "generalized",
        open_ways=0,
        base=BASE,
        base_queries=QUERIES,
        validation=VALIDATION.novel,
        **SETTINGS,
    )
    same, _ = compare(
        {"cosine": Contender(heads["cosine"], BASE.class_means())},
        NovelAndBase(TEST.novel, tested),
        NovelAndBase(VALIDATION.novel, chosen),
        **SETTINGS,
    )
    found = report.results["cosine"]["harmonic_mean:frozen"]["mean"]
    assert same["cosine"]["harmonic_mean:frozen"]["mean"] == pytest.approx(found)

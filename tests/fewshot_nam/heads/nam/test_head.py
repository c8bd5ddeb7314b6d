"""The NAM head: its equation against the slow reference, its fallbacks and constants, and base classes in its label space."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewshot_nam.heads import BaseStatistics, CosineHead, NAMHead, NAMSettings, ScoreNormHead
from fewshot_nam.heads.nam import head as module
from fewshot_nam.heads.nam import reference
from fewshot_nam.heads.nam.joint_write import joint_write

D = 9
seeds = st.integers(0, 2**31)
constants = st.builds(
    NAMSettings,
    centre_share=st.just(1.0),
    identity_share=st.floats(0.1, 1),
    between_power=st.floats(0, 0.5),
    norm_exponent=st.floats(0, 1),
    cohort_temperature=st.floats(0.03, 1),
    query_cohort_weight=st.floats(0, 1),
    class_cohort_weight=st.floats(0, 1),
    log_partition_penalty=st.floats(0, 1),
    temperature=st.floats(0.02, 1),
    ridge=st.floats(0.1, 100),
    ridge_per_key=st.floats(0, 1),
    ratio_weight=st.floats(0, 1),
    ratio_within=st.floats(0.2, 3),
    ratio_shrinkage=st.floats(0.1, 1),
)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known(seed: int, classes: int = 12, images: int = 5) -> BaseStatistics:
    """Return the statistics of clustered features, in float64."""
    rows = normal(seed, classes, 1, D) + 0.7 * normal(seed + 1, classes, images, D)
    found = BaseStatistics.from_features(rows.flatten(0, 1), torch.arange(classes).repeat_interleave(images))
    tensors = {
        name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in found.tensors().items()
    }
    return BaseStatistics(**tensors)


@settings(deadline=None)
@given(seeds, constants, st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_scores_are_those_of_the_reference(seed, chosen, shots):
    base = known(seed)
    rows = [normal(seed + 10 + i, count, D) for i, count in enumerate(shots)]
    head, query = NAMHead(base, settings=chosen), normal(seed + 3, 3, D)
    for name, its in enumerate(rows):
        head.write(its, [name] * len(its))
    found = head(query)
    for i in range(3):
        wanted = reference.scores(rows, query[i], base.power_means, base.within_covariance, chosen)
        torch.testing.assert_close(found[i], wanted, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(seeds, constants)
def test_many_classes_are_scored_as_few_are(seed, chosen):
    base, rows, query = known(seed), normal(seed + 2, 20, D), normal(seed + 3, 5, D)
    few, before = NAMHead(base, settings=chosen), module._MANY
    few.write_base(base.power_means[:3], ["x", "y", "z"]).write(rows, range(20))
    expected = few(query)
    try:
        module._MANY = 4
        many = NAMHead(base, settings=chosen).write_base(base.power_means[:3], ["x", "y", "z"]).write(rows, range(20))
        found = many(query)
        assert isinstance(many._current(), module.GrowingLearned)
        torch.testing.assert_close(many.memory, few.memory, rtol=1e-7, atol=1e-7)
    finally:
        module._MANY = before
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@given(seeds)
def test_a_large_ridge_leaves_the_head_without_a_memory(seed):
    base, rows, query = known(seed), normal(seed + 2, 6, D), normal(seed + 3, 5, D)
    chosen = {
        field.name: getattr(NAMSettings(), field.name) for field in dataclasses.fields(ScoreNormHead.settings_type)
    }
    nam, plain = NAMHead(base, settings={"ridge": 1e12, "ratio_weight": 0.0}), ScoreNormHead(base, settings=chosen)
    for head in (nam, plain):
        head.write_base(base.power_means[:2], ["x", "y"]).write(rows, list("aabbcc"))
    torch.testing.assert_close(nam(query), plain(query), rtol=1e-7, atol=1e-7)


@given(seeds)
def test_every_class_reads_one_for_the_direction_of_its_mean(seed):
    base = known(seed)
    head = NAMHead(base, settings={"norm_exponent": 0.0}).write(normal(seed + 2, 6, D), list("aabbcc"))
    means = head._directions(head._embed(normal(seed + 2, 6, D))).view(3, 2, D).mean(1)
    reads = (head.memory * means / means.norm(dim=-1, keepdim=True)).sum(-1)
    torch.testing.assert_close(reads, torch.ones(3, dtype=torch.float64))


@given(seeds)
def test_with_nothing_known_it_is_the_joint_write_of_unit_features(seed):
    rows, query = normal(seed, 6, D), normal(seed + 1, 5, D)
    head = NAMHead(settings={"log_partition_penalty": 0.0}).write(rows, list("aabbcc"))
    means = (rows / rows.norm(dim=-1, keepdim=True)).view(3, 2, D).mean(1)
    keys = rows / rows.norm(dim=-1, keepdim=True)
    weights = joint_write((means / means.norm(dim=-1, keepdim=True))[None], keys[None], rows[:0], 16.0)[0]
    torch.testing.assert_close(head(query), query / query.norm(dim=-1, keepdim=True) @ weights.mT)


def test_with_nothing_known_it_ranks_almost_as_cosine_does():
    rows, query = normal(1, 5, 64) + 1, normal(2, 400, 64) + 1
    nam, cosine = (head.write(rows, range(5))(query) for head in (NAMHead(), CosineHead()))
    assert (nam.argmax(-1) == cosine.argmax(-1)).float().mean() > 0.99


@given(seeds)
def test_with_prototypes_alone_nothing_is_whitened_and_equal_shots_read_alike(seed):
    base, rows = known(seed), normal(seed + 2, 3, D)
    head = NAMHead(BaseStatistics.from_prototypes(base.power_means)).write(rows, list("abc"))
    roots = base.power_means.sign() * base.power_means.abs().sqrt()
    directions = rows.sign() * rows.abs().sqrt() - roots.mean(0)
    expected = directions / directions.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(
        head._directions(head._embed(rows)), expected, rtol=1e-4, atol=1e-4
    )  # the root is linear near 0


def test_too_few_base_classes_leave_only_their_mean():
    base = known(1, classes=2)
    rows, query = normal(2, 3, D), normal(3, 4, D)
    found = NAMHead(base).write(rows, list("abc"))(query)
    torch.testing.assert_close(found, NAMHead(BaseStatistics.from_mean(base.mean)).write(rows, list("abc"))(query))


@given(seeds)
def test_a_base_class_in_the_label_space_is_the_limit_of_very_many_shots(seed):
    base = known(seed)
    head = NAMHead(base, settings={"norm_exponent": 0.0, "log_partition_penalty": 0.0, "class_cohort_weight": 0.0})
    expected = head._space(base.mean).likeness ** 0.5
    means = head._directions(head._embed(normal(seed + 2, 1, 4, D))).mean(1, keepdim=True)
    many = head._classes_of(means, torch.tensor([10**12]))[2]
    torch.testing.assert_close(many.squeeze(), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(
        head._base_offsets(head._directions(head._embed(base.power_means))), torch.full((12,), expected).double()
    )


def test_the_cohort_score_of_a_base_class_leaves_it_out():
    base = known(1)
    head = NAMHead(base)
    space = head._space(base.mean)
    scores = space.cohort_scores_among_others(space.prototypes, 0.1)
    for i in range(12):
        rest = space._replace(prototypes=torch.cat([space.prototypes[:i], space.prototypes[i + 1 :]]))
        torch.testing.assert_close(scores[i], rest.cohort_scores(space.prototypes[i], 0.1))
    alone = space._replace(prototypes=space.prototypes[:1])
    assert float(alone.cohort_scores_among_others(space.prototypes[:1], 0.1)) == 0.0


@given(seeds, st.floats(0, 1), st.floats(0.02, 2))
def test_the_log_partition_penalty_keeps_ranks_and_probabilities_and_ends_at_log_probabilities(
    seed, share, temperature
):
    rows, labels, query = normal(seed, 6, 8), ["a", "b", "c"] * 2, normal(seed + 1, 5, 8)
    penalty = {"log_partition_penalty": share, "temperature": temperature}
    for usual, penalised in (
        (NAMHead(settings={"log_partition_penalty": 0.0}), NAMHead(settings=penalty)),
        (CosineHead(), CosineHead(**penalty)),
    ):
        scores, changed = usual.write(rows, labels)(query), penalised.write(rows, labels)(query)
        torch.testing.assert_close(changed.softmax(-1), scores.softmax(-1), rtol=1e-9, atol=1e-9)
        expected = (1 - share) * scores + share * temperature * (scores / temperature).log_softmax(-1)
        torch.testing.assert_close(changed, expected, rtol=1e-8, atol=1e-8)


def test_the_state_brings_the_base_classes(tmp_path):
    rows, query = normal(2, 3, D), normal(3, 5, D)
    head = NAMHead(known(1)).write(rows, list("abc"))
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    for other in (NAMHead(), NAMHead(known(5, classes=4)), NAMHead(known(7))):
        other(other.write(rows, list("abc")).support)  # what it derived from other base classes must not be used
        other.load_state_dict(load_file(tmp_path / "head.safetensors"))
        torch.testing.assert_close(other(query), head(query))


def test_the_ridge_follows_the_number_of_keys_in_steps():
    constants = NAMSettings(ridge=16.0, ridge_per_key=0.3)
    found = [constants.damping(keys) for keys in (0, 1, 53, 64, 65, 128, 1000)]
    assert found == pytest.approx([16, 16, 19.2, 19.2, 38.4, 38.4, 307.2])


def test_features_of_another_width_than_base_classes_are_refused():
    head = NAMHead(known(1))
    with pytest.raises(ValueError, match="width"):
        head.write(torch.ones(2, D + 1), ["a", "b"])
    with pytest.raises(ValueError, match="width"):
        head.score_episodes(torch.ones(1, 2, 1, D + 1), torch.ones(1, 3, D + 1))


def test_gradients_reach_the_features_through_the_write():
    support, query = normal(1, 2, 3, 2, D).requires_grad_(), normal(2, 2, 4, D)
    head = NAMHead(known(1))
    assert torch.autograd.gradcheck(lambda x: head.score_episodes(x, query), support)


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ({"ridge": 0.0}, ValueError, "NAMSettings: ridge must be above 0, got 0.0"),
        ({"ridge": True}, ValueError, "NAMSettings: ridge must be a number, got True"),
        ({"temperature": 0.0}, ValueError, "temperature must be above 0"),
        ({"identity_share": 1.5}, ValueError, "identity_share must be from 0 to 1, got 1.5"),
        ({"between_power": -0.1}, ValueError, "between_power must be at least 0, got -0.1"),
        ({"query_cohort_weight": float("nan")}, ValueError, "query_cohort_weight must be a number, got nan"),
        ({"rigde": 1.0}, ValueError, "NAMSettings has no 'rigde'; there are: .*ridge"),
        (3.0, TypeError, "settings must be NAMSettings or a mapping, got float"),
    ],
)
def test_settings_that_make_no_sense_are_refused(chosen, error, message):
    with pytest.raises(error, match=message):
        NAMHead(settings=chosen)


def test_words_of_the_first_head_are_refused_with_their_successors():
    with pytest.raises(TypeError, match=r"NAMHead: prototype_weight: the constants are in settings=NAMSettings\(...\)"):
        NAMHead(prototype_weight=3.0)
    with pytest.raises(ValueError, match="NAMHead has no modes: the paper's rule is WriteRuleHead"):
        NAMHead("erase")


@pytest.mark.parametrize("shots", [1, 5, 400, 3000])
def test_images_that_say_nothing_of_their_classes_give_no_nan(shots):
    """The estimated likeness of two images of a class was negative here, and a power of it NaN or complex."""
    base = BaseStatistics.from_features(normal(1, 200, D), torch.arange(200) % 20)
    assert 0 <= NAMHead(base)._space(base.mean).likeness < 0.5
    rows = normal(2, 3, shots, D)
    head = NAMHead(base).write(rows.flatten(0, 1), torch.arange(3).repeat_interleave(shots))
    assert head(normal(3, 5, D)).isfinite().all()
    assert head.write_base(base.power_means, [f"base {i}" for i in range(20)])(normal(3, 5, D)).isfinite().all()


@pytest.mark.parametrize("width", [0.0, 1e-4, 0.03])
def test_base_classes_that_are_almost_alike_leave_the_likelihood_ratio_out(width):
    rows = 1 + width * normal(1, 12, 1, D) + 0.5 * width * normal(2, 12, 5, D)
    base = BaseStatistics.from_features(rows.flatten(0, 1), torch.arange(12).repeat_interleave(5))
    head = NAMHead(base).write(normal(4, 3, D).abs(), list("abc"))
    assert head._ratio(base.mean) is None
    assert head(normal(5, 6, D).abs()).abs().max() < 5


def test_a_base_class_given_by_its_mean_feature_is_still_taken_for_itself():
    base = known(1)
    head = NAMHead(base)
    space = head._space(base.mean)
    near = space.prototypes + 0.02 * normal(3, 12, D)
    near = near / near.norm(dim=-1, keepdim=True)
    exact, found = (space.cohort_scores_among_others(each, 0.08) for each in (space.prototypes, near))
    torch.testing.assert_close(found, exact, atol=0.05, rtol=0)
    away = normal(4, 1, D)
    away = away / away.norm()
    cosines = away @ space.prototypes.mT
    if float(cosines.max()) < 0.9:
        torch.testing.assert_close(space.cohort_scores_among_others(away, 0.08), space.cohort_scores(away, 0.08))


def test_a_head_that_was_made_in_inference_mode_can_be_differentiated():
    with torch.inference_mode():
        head = NAMHead(known(1))
    support = normal(1, 2, 3, 2, D).requires_grad_()
    head.score_episodes(support, normal(2, 2, 4, D)).sum().backward()
    assert support.grad.isfinite().all()

"""What heads may know of base classes: computed from features, checked, moved, saved, and said in the old words."""

import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewshot_nam.heads import BaseStatistics, CosineHead, NAMHead, NearestHead, PLDAHead, RidgeHead, create
from fewshot_nam.heads.base_statistics import StoredBaseStatistics

D = 7


def rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


def power(x: torch.Tensor) -> torch.Tensor:
    return x.sign() * x.abs().sqrt()


def test_statistics_of_features_are_those_of_plain_loops():
    features, labels = rows(11, 1), ["b", "a", "b", "c", "a", "b", "b", "c", "a", "b", "c"]
    base = BaseStatistics.from_features(features, labels)
    assert (len(base), base.feature_dim, base.counts.tolist()) == (3, D, [3, 5, 3])
    for i, name in enumerate("abc"):
        members = torch.stack([features[j] for j, label in enumerate(labels) if label == name])
        torch.testing.assert_close(base.prototypes[i], sum(members) / len(members))
        middle = sum(power(row) for row in members) / len(members)
        torch.testing.assert_close(base.power_means[i], middle.sign() * middle.square())
    torch.testing.assert_close(base.mean, sum(features) / 11)
    assert base.within_covariance.shape == (D, D)


def test_whole_numbers_and_tensors_label_classes_and_chunks_change_nothing(monkeypatch):
    features, labels = rows(23, 2).half(), torch.arange(23) % 5 * 10
    whole = BaseStatistics.from_features(features, labels)
    assert whole.counts.tolist() == [5, 5, 5, 4, 4]
    assert whole.prototypes.dtype == torch.float32
    monkeypatch.setattr("fewshot_nam.heads.base_statistics._CHUNK_ELEMENTS", 3 * D)
    parts = BaseStatistics.from_features(features, labels.tolist())
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(parts.tensors()[name], tensor)


def test_prototypes_alone_stand_for_power_means_and_their_mean_for_the_mean():
    prototypes = rows(4, 3)
    base = BaseStatistics.from_prototypes(prototypes)
    assert torch.equal(base.power_means, prototypes)
    assert torch.equal(base.mean, prototypes.mean(dim=0))
    assert base.counts is None


def test_a_mean_alone_is_the_base_of_no_class():
    base = BaseStatistics.from_mean(torch.zeros(D))
    assert (len(base), base.feature_dim) == (0, D)


def test_statistics_are_frozen_and_detached():
    base = BaseStatistics.from_prototypes(rows(3, 4).requires_grad_())
    assert not base.prototypes.requires_grad
    with pytest.raises(AttributeError):
        base.mean = torch.zeros(D)


def test_statistics_move_to_a_device():
    moved = BaseStatistics.from_features(rows(6, 5), [0, 0, 1, 1, 2, 2]).to("meta")
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}
    head = NAMHead(base=complete()).to("meta")
    assert {buffer.device.type for buffer in head.stored_base.buffers()} == {"meta"}


def test_tensors_make_the_same_statistics_again(tmp_path):
    base = BaseStatistics.from_features(rows(6, 6), list("aabbcc"))
    save_file({name: tensor.clone() for name, tensor in base.tensors().items()}, tmp_path / "base.safetensors")
    again = BaseStatistics(**load_file(tmp_path / "base.safetensors"))
    assert again.tensors().keys() == base.tensors().keys()
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in base.tensors().items())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mean": torch.ones(2, D)}, ValueError, r"mean must be \(D,\), got shape \(2, 7\)"),
        ({"mean": torch.full((D,), torch.nan)}, ValueError, "mean: 1 of 1 .* is NaN"),
        ({"mean": [0.0] * D}, TypeError, "mean must be a float tensor, got list"),
        ({"prototypes": torch.ones(3, D + 1)}, ValueError, "prototypes must have width 7"),
        ({"prototypes": torch.zeros(3, D)}, ValueError, "prototypes: 3 of 3 vectors cannot be used.* is zero"),
        ({"power_means": torch.ones(2, D)}, ValueError, r"the same shape, got \(3, 7\) and \(2, 7\)"),
        ({"power_means": torch.ones(D)}, ValueError, r"power_means must be \(B, D\), got shape \(7,\)"),
        ({"counts": torch.ones(3)}, TypeError, "counts must be a long tensor, got torch.float32"),
        ({"counts": torch.ones(2, dtype=torch.long)}, ValueError, r"counts must be \(3,\), .* got shape \(2,\)"),
        ({"counts": torch.tensor([1, 0, 2])}, ValueError, "counts must be at least 1, got 0"),
        (
            {"within_covariance": torch.eye(D)[:5]},
            ValueError,
            r"within_covariance must be \(7, 7\), got shape \(5, 7\)",
        ),
        ({"within_covariance": torch.eye(D) * torch.inf}, ValueError, "within_covariance: 7 of 7"),
    ],
)
def test_statistics_that_do_not_fit_are_named(change, error, message):
    good = {"prototypes": rows(3, 7), "power_means": rows(3, 8), "mean": torch.zeros(D)}
    BaseStatistics(**good)
    with pytest.raises(error, match=message):
        BaseStatistics(**{**good, **change})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BaseStatistics.from_features(rows(3, 1), ["a", "b"]), ValueError, "3 features, 2 labels"),
        (lambda: BaseStatistics.from_features(rows(0, 1), []), ValueError, "n at least 1"),
        (lambda: BaseStatistics.from_features(rows(2, 1), ["a", 1]), TypeError, "all ints or all strings"),
        (lambda: BaseStatistics.from_features(rows(2, 1) * torch.nan, ["a", "b"]), ValueError, "features: 2 of 2"),
        (lambda: BaseStatistics.from_prototypes(torch.ones(D)), ValueError, r"prototypes must be \(B, D\)"),
        (lambda: BaseStatistics.from_prototypes(torch.ones(0, D)), ValueError, "B at least 1"),
        (lambda: BaseStatistics.from_mean(torch.ones(2, D)), ValueError, r"mean must be \(D,\)"),
    ],
)
def test_statistics_that_cannot_be_made_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def complete() -> BaseStatistics:
    return BaseStatistics.from_features(rows(30, 9), [i % 12 for i in range(30)])


@pytest.mark.parametrize(
    "base", [None, complete(), BaseStatistics.from_prototypes(rows(2, 3))], ids=["none", "all", "few"]
)
def test_stored_statistics_take_the_shape_of_what_is_loaded(base):
    stored = StoredBaseStatistics(BaseStatistics.from_prototypes(rows(5, 4)))
    stored.load_state_dict(StoredBaseStatistics(base).state_dict())
    if base is None:
        assert stored.value is None
        return
    assert stored.value.tensors().keys() == base.tensors().keys()
    assert all(torch.equal(stored.value.tensors()[name], tensor) for name, tensor in base.tensors().items())


def test_damaged_stored_statistics_are_refused():
    state = StoredBaseStatistics(complete()).state_dict()
    state["counts"] = state["counts"][:3]
    with pytest.raises(ValueError, match="base statistics: this state is damaged: counts must be"):
        StoredBaseStatistics().load_state_dict(state)


def test_a_nam_head_saves_all_that_it_knows_of_base_classes(tmp_path):
    head, query = NAMHead(base=complete()).write(rows(3, 1), list("abc")), rows(5, 2)
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    loaded = NAMHead()
    loaded.load_state_dict(load_file(tmp_path / "head.safetensors"))
    assert torch.equal(loaded(query), head(query))
    assert loaded.base_statistics.counts.tolist() == complete().counts.tolist()
    assert torch.equal(loaded.base_statistics.within_covariance, complete().within_covariance)


@pytest.mark.parametrize("count", [0, 12])
def test_a_state_of_version_0_1_loads(count):
    prototypes = rows(count, 3)
    head = NAMHead(base=BaseStatistics.from_prototypes(prototypes) if count else None).write(rows(3, 1), list("abc"))
    state = {name: tensor for name, tensor in head.state_dict().items() if not name.startswith("stored_base.")}
    state["background.prototypes"] = prototypes if count else torch.empty(0, 0)
    loaded = NAMHead()
    loaded.load_state_dict(state)
    assert torch.equal(loaded(rows(5, 2)), head(rows(5, 2)))


@pytest.mark.parametrize("build", [NearestHead, RidgeHead, CosineHead, NAMHead])
def test_a_base_of_a_mean_is_subtracted_from_every_feature(build):
    mean, support, query = rows(1, 5)[0], rows(3, 1), rows(4, 2)
    head = build(base=BaseStatistics.from_mean(mean)).write(support, list("abc"))
    torch.testing.assert_close(head(query), build().write(support - mean, list("abc"))(query - mean))


PROTOTYPES = rows(12, 3)
MEAN = rows(1, 5)[0]
OLD = {
    "NAMHead, background=": (lambda: NAMHead(background=PROTOTYPES), lambda b, m: NAMHead(base=b)),
    "NAMHead, mean=": (lambda: NAMHead(mean=MEAN), lambda b, m: NAMHead(base=m)),
    "CosineHead, background=": (
        lambda: CosineHead(power_norm=True, background=PROTOTYPES),
        lambda b, m: CosineHead(power_norm=True, base=b),
    ),
    "CosineHead, mean=": (
        lambda: CosineHead(power_norm=True, mean=MEAN),
        lambda b, m: CosineHead(power_norm=True, base=m),
    ),
    "PLDAHead, positional": (lambda: PLDAHead(PROTOTYPES, within=0.5), lambda b, m: PLDAHead(b, within=0.5)),
    "RidgeHead, mean=": (lambda: RidgeHead(2.0, mean=MEAN), lambda b, m: RidgeHead(2.0, base=m)),
    "NearestHead, positional": (lambda: NearestHead(MEAN), lambda b, m: NearestHead(m)),
    "create, background=": (lambda: create("nam", background=PROTOTYPES), lambda b, m: create("nam", b)),
    "create, mean=": (lambda: create("cosine-centred", mean=MEAN), lambda b, m: create("cosine-centred", m)),
    "create, positional": (
        lambda: create("cosine-root-centred", MEAN, PROTOTYPES),
        lambda b, m: create("cosine-root-centred", b),
    ),
}


@pytest.mark.parametrize("words", OLD)
def test_old_words_still_work_with_one_warning_that_names_the_new_one(words):
    old, new = OLD[words]
    with pytest.warns(DeprecationWarning, match=r"(mean|background)= .*use base=BaseStatistics") as caught:
        head = old()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = new(BaseStatistics.from_prototypes(PROTOTYPES), BaseStatistics.from_mean(MEAN))
    support, query = rows(3, 1), rows(4, 2)
    assert torch.equal(head.write(support, list("abc"))(query), expected.write(support, list("abc"))(query))


@pytest.mark.parametrize("build", [NAMHead, CosineHead])
def test_old_words_that_say_two_things_are_refused(build):
    base = BaseStatistics.from_mean(MEAN)
    with pytest.raises(ValueError, match=f"{build.__name__}: give mean or background, not both"):
        build(mean=MEAN, background=PROTOTYPES)
    with pytest.raises(TypeError, match="give base alone"):
        build(mean=MEAN, base=base)
    with pytest.raises(TypeError, match=r"create: .* give base alone"):
        create("nam", base, mean=MEAN)


@pytest.mark.parametrize(
    ("build", "old", "new"),
    [
        (CosineHead, {"compete": 0.1}, {"log_partition_penalty": 0.1}),
        (CosineHead, {"root": True}, {"power_norm": True}),
    ],
)
def test_old_names_of_settings_still_work_as_keywords_and_attributes(build, old, new):
    (name,), (successor,) = old, new
    with pytest.warns(
        DeprecationWarning, match=f"{build.__name__}: {name}= is deprecated .* use {successor}="
    ) as caught:
        head = build(**old)
    assert [one.filename for one in caught] == [__file__]
    assert repr(head) == repr(build(**new))
    with pytest.warns(DeprecationWarning, match=f"{build.__name__}.{name} is deprecated .* use {successor}"):
        assert getattr(head, name) == getattr(head, successor) == new[successor]


def test_several_old_words_at_once_give_a_warning_each():
    with pytest.warns(DeprecationWarning, match="is deprecated") as caught:
        head = CosineHead(compete=0.1, root=True, mean=MEAN)
    assert [one.filename for one in caught] == [__file__] * 3
    assert (head.log_partition_penalty, head.power_norm, len(head.mean)) == (0.1, True, D)

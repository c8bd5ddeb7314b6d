"""The contract that every head keeps, tested over all of them."""

import json
import random
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewshot_nam.heads import BaseStatistics, Head, NAMHead, available, create
from fewshot_nam.heads.base import Support
from fewshot_nam.heads.registry import transductive
from fewshot_nam.vision.saving import settings

HEADS = [*(name for name in available() if not transductive(name)), "nam with base classes"]
ORDERED = {"nam-sequential"}  # the literal rule: the order of writing is part of it, and so of the scores
D = 11


def features(seed: int, *shape: int) -> Tensor:
    """Return features that share a direction, as those of real backbones do."""
    return torch.rand(*shape, D, generator=torch.Generator().manual_seed(seed)) + 0.1


def make(name: str, prototypes: Tensor | None = None, mean: Tensor | None = None) -> Head:
    """Return a head with what it may know of base classes; ``nam`` without, and as "nam with base classes" with them."""
    prototypes = features(98, 12) if prototypes is None else prototypes
    mean = features(99) if mean is None else mean
    return create(name.split()[0], base=None if name == "nam" else BaseStatistics(prototypes, prototypes, mean))


def written(name: str, seed: int = 0, classes: int = 3, shots: int = 2) -> Head:
    labels = [f"c{i}" for i in range(classes) for _ in range(shots)]
    return make(name).write(features(seed, classes * shots), labels)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(("shots", "num_base"), [(1, 0), (2, 0), (1, 4), (3, 4)])
def test_score_episodes_equals_one_episode_at_a_time(name, shots, num_base):
    support, query = features(1, 4, 5, shots), features(2, 4, 7)
    base = features(3, num_base) if num_base else None
    together = make(name).score_episodes(support, query, base)
    assert together.shape == (4, 7, num_base + 5)
    for episode in range(4):
        head = make(name)
        if base is not None:
            head.write_base(base, [f"base{i}" for i in range(num_base)])
        head.write(support[episode].flatten(0, 1), torch.arange(5).repeat_interleave(shots))
        alone = head(query[episode])
        torch.testing.assert_close(together[episode], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_one_feature_at_a_time_equals_all_at_once(name):
    rows, labels = features(1, 6), ["a", "b", "a", "c", "b", "a"]
    at_once, in_turn = make(name).write(rows, labels), make(name)
    for row, label in zip(rows, labels, strict=True):
        in_turn.write(row, label)
    assert in_turn.classes == at_once.classes == ["a", "b", "c"]
    torch.testing.assert_close(in_turn(features(2, 5)), at_once(features(2, 5)))


@pytest.mark.parametrize("name", HEADS)
@given(order=st.permutations(range(6)))
def test_the_order_of_the_support_does_not_matter(name, order):
    rows, labels, query = features(1, 6), ["a", "b", "a", "c", "b", "a"], features(2, 5)
    straight, mixed = make(name).write(rows, labels), make(name).write(rows[order], [labels[i] for i in order])
    columns = [mixed.classes.index(label) for label in straight.classes]
    same = torch.allclose(mixed(query)[:, columns], straight(query), rtol=1e-3, atol=1e-3)
    assert same or name in ORDERED


def test_the_order_of_writing_matters_in_sequential_mode():
    rows, query = features(1, 3), features(2, 5)
    straight, back = (make("nam-sequential").write(rows[o], [f"c{i}" for i in o]) for o in ([0, 1, 2], [2, 1, 0]))
    assert not torch.allclose(straight(query), back(query).flip(-1), rtol=1e-2)


@pytest.mark.parametrize("name", HEADS)
def test_classes_to_forget_may_come_from_any_iterable(name):
    head = written(name)
    assert head.forget(iter(["c1"])).classes == [label for label in written(name).classes if label != "c1"]
    assert head.forget([]).classes == [label for label in written(name).classes if label != "c1"]


@pytest.mark.parametrize("name", HEADS)
@given(st.data())
def test_forgetting_leaves_a_head_that_never_saw_the_class(name, data):
    rows, query = features(1, 8), features(2, 5)
    labels = ["a", "b", "c", "d", "a", "b", "c", "d"]
    gone = data.draw(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=2, unique=True))
    forgetful = make(name).write_base(features(3, 2), ["x", "y"]).write(rows, labels).forget(gone)
    keep = [i for i, label in enumerate(labels) if label not in gone]
    fresh = make(name).write_base(features(3, 2), ["x", "y"]).write(rows[keep], [labels[i] for i in keep])
    assert forgetful.classes == fresh.classes
    torch.testing.assert_close(forgetful(query), fresh(query))


@pytest.mark.parametrize("name", HEADS)
def test_a_base_class_can_be_forgotten_and_learned_anew(name):
    head = make(name).write_base(features(3, 3), ["x", "y", "z"]).write(features(1, 2), ["a", "b"])
    head.forget("y")
    fresh = make(name).write_base(features(3, 3)[[0, 2]], ["x", "z"]).write(features(1, 2), ["a", "b"])
    torch.testing.assert_close(head(features(2, 4)), fresh(features(2, 4)))
    assert head.write(features(4), "y").classes == ["x", "z", "a", "b", "y"]


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_has_forgotten_everything_can_begin_again(name):
    head = written(name).forget(["c0", "c1", "c2"])
    assert head.classes == []
    head.write(torch.rand(2, D) + 0.1, ["new", "other"])
    assert head.predict(features(5)) in ("new", "other")


@pytest.mark.parametrize("name", HEADS)
def test_state_dict_holds_all_that_was_learned(name, tmp_path):
    from safetensors.torch import load_file, save_file

    head = written(name).write(features(8), 7)
    head.threshold = 0.3
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    loaded = make(name)
    loaded.load_state_dict(load_file(tmp_path / "head.safetensors"))
    assert loaded.classes == ["c0", "c1", "c2", 7]
    assert torch.equal(loaded(features(2, 5)), head(features(2, 5)))
    assert loaded.threshold == pytest.approx(0.3)
    empty = make(name)
    empty.load_state_dict(make(name).state_dict())
    assert empty.classes == []


@pytest.mark.parametrize("name", HEADS)
def test_inputs_are_left_alone_and_copied(name):
    rows, query = features(1, 3), features(2, 5)
    rows_before, query_before = rows.clone(), query.clone()
    head = make(name).write(rows, ["a", "b", "c"])
    scores = head(query)
    assert torch.equal(rows, rows_before)
    assert torch.equal(query, query_before)
    rows.zero_()
    assert torch.equal(head(query), scores)


@pytest.mark.parametrize("name", HEADS)
def test_scores_keep_leading_dimensions(name):
    head = written(name)
    query = features(2, 2, 3)
    assert head(query).shape == (2, 3, 3)
    torch.testing.assert_close(head(query)[1, 2], head(query[1, 2]))
    assert head(query[:0]).shape == (0, 3, 3)


@pytest.mark.parametrize("name", HEADS)
def test_float64_and_half_features_give_close_scores(name):
    rows, query = features(1, 6), features(2, 5)
    labels = ["a", "b", "c"] * 2
    exact = make(name, features(98, 12).double(), features(99).double()).write(rows.double(), labels)(query.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(make(name).write(rows, labels)(query).double(), exact, rtol=1e-3, atol=1e-3)
    half = make(name).write(rows.half(), labels)(query.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("name", HEADS)
def test_features_of_inference_mode_can_be_written_and_gradients_still_reach_a_query(name):
    head = make(name)
    with torch.inference_mode():
        head.write(features(1, 3), ["a", "b", "c"])
        head(features(2, 2))
    query = features(2, 2).requires_grad_()
    head(query).sum().backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_a_head_leaves_the_modes_of_its_caller_as_they_are(name):
    """Gradients stayed off for the whole process after the first answer."""
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            head = make(name).write(features(1, 3), ["a", "b", "c"])
            for _ in range(2):
                head(features(2, 2))
                assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (grad, False)
            head.forget("a")
            head.predict(features(2, 2))
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (grad, False)


@pytest.mark.parametrize("name", HEADS)
def test_predict_answers_in_labels(name):
    rows = torch.eye(D)[:3] + 0.05
    head = make(name, mean=torch.full((D,), 0.05))
    head.write(rows, ["a", 2, "c"])
    assert head.predict(rows) == ["a", 2, "c"]
    assert head.predict(rows[1]) == 2


@pytest.mark.parametrize("name", HEADS)
def test_predict_refuses_below_the_threshold_and_accepts_at_it(name):
    head = written(name)
    query = features(2, 9)
    best = head(query).max(dim=-1).values
    head.threshold = best.median().item()
    answers = head.predict(query, unknown="?")
    assert [a == "?" for a in answers] == (best < best.median()).tolist()
    assert "?" not in head.predict(query)
    head.threshold = None
    assert head.threshold is None
    with pytest.raises(ValueError, match="threshold must be a finite number or None, got nan"):
        head.threshold = float("nan")


@pytest.mark.parametrize("name", HEADS)
def test_labels_may_be_ints_strings_arrays_and_tensors(name):
    import numpy as np

    rows = features(1, 3)
    for labels, expected in [
        ([3, 1, 2], [3, 1, 2]),
        (torch.tensor([3, 1, 2]), [3, 1, 2]),
        (np.array([3, 1, 2]), [3, 1, 2]),
        (np.array(["x", "y", "z"]), ["x", "y", "z"]),
        (("x", 1, "1"), ["x", 1, "1"]),
        ("all", ["all"]),
        ([np.int64(3), 1, torch.tensor(2)], [3, 1, 2]),
        (np.int64(7), [7]),
    ]:
        assert make(name).write(rows, labels).classes == expected


def _bad(value: float) -> Tensor:
    rows = features(1, 3)
    rows[1] = value
    return rows


def test_the_word_for_unknowns_is_no_known_class():
    head = create("cosine").write(torch.eye(4)[:2], ["a", "b"])
    head.threshold = 0.5
    with pytest.raises(ValueError, match="predict: unknown='a' is a known class: choose another word"):
        head.predict(torch.ones(4), unknown="a")


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ({"a", "b"}, TypeError, "labels must be in the order of the features, and a set has none"),
        ({"a": 1, "b": 2}, TypeError, "a dict has none"),
        ("", ValueError, "a label must not be empty"),
        (["a", " \t"], ValueError, "a label must not be empty"),
        (["a", "caf\udce9"], ValueError, r"the label 'caf\\udce9' is no valid Unicode.*: rename the folder"),
    ],
    ids=["set", "dict", "empty", "blank", "surrogate"],
)
def test_labels_that_name_nothing_are_refused(labels, error, message):
    head = create("cosine")
    for write in (head.write, head.write_base, NAMHead(keep_shots=False).write):
        with pytest.raises(error, match=message):
            write(torch.eye(4)[:2], labels)
    assert head.classes == []


def test_names_that_are_no_unicode_are_escaped_where_an_older_file_holds_them():
    head = create("cosine").write(torch.eye(4)[:2], ["a", "café"])
    head.calibrate(torch.eye(4)[2:], target_fpr=0.5, unknown_labels=["b", "cafés"])
    state = head.state_dict()
    escaped = json.dumps("café")[1:-1].encode()
    names = bytes(state["_extra_state"].tolist())
    assert names.count(escaped) == 3
    state["_extra_state"] = torch.tensor(list(names.replace(escaped, b"caf\\udce9")), dtype=torch.uint8)
    loaded = create("cosine")
    loaded.load_state_dict(state)
    assert loaded.classes == ["a", "caf\\udce9"]
    assert loaded._unknown_labels == ["b", "caf\\udce9s"]
    assert loaded.forget("caf\\udce9").classes == ["a"]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: h.write(_bad(float("nan")), ["a", "b", "c"]), r"features: 1 of 3 .* index \[1\], is NaN"),
        (lambda h: h.write(_bad(float("inf")), ["a", "b", "c"]), "is infinite"),
        (lambda h: h.write(_bad(1e30), ["a", "b", "c"]), "too large"),
        (lambda h: h.write(_bad(0.0), ["a", "b", "c"]), "is zero"),
        (lambda h: h.write(features(1, 3), ["a", "b"]), "3 features, 2 labels"),
        (lambda h: h.write(features(1, 0), []), "n at least 1"),
        (lambda h: h.write(features(1, 2, 2), ["a", "b"]), r"must be \(n, D\) or \(D,\)"),
        (lambda h: h.write(torch.ones(3, D + 1), ["a", "b", "c"]), f"features must have width {D}"),
        (lambda h: h(_bad(float("nan"))), "is NaN"),
        (lambda h: h(_bad(0.0)), "is zero"),
        (lambda h: h(_bad(1e-14)), "too short"),
        (lambda h: h(torch.ones(2, D + 1)), f"must have width {D}"),
        (lambda h: h.predict(features(1, 2), unknown="?"), "set head.threshold first"),
        (lambda h: h.predict(features(1, 2, 2)), "predict: features must be"),
        (lambda h: h.forget("never"), "class 'never' was never written; there are: 'c0', 'c1', 'c2'"),
        (lambda h: h.forget(["c0", "never"]), "never written"),
        (lambda h: h.write_base(features(1, 2), ["x", "c1"]), "class 'c1' is known already"),
        (lambda h: h.write_base(features(1, 2), ["x", "x"]), "class 'x' is known already"),
        (lambda h: h.write_base(features(1), "x").write(features(2), "x"), "'x' is a base class"),
        (lambda h: h.forget(h.classes).predict(features(1)), "knows no class yet"),
        (lambda h: h.score_episodes(features(1, 2, 3), features(2, 2, 4)), "score_episodes: needs support"),
        (lambda h: h.score_episodes(features(1, 2, 3, 1), features(2, 3, 4)), "of the same episodes"),
        (lambda h: h.score_episodes(features(1, 2, 3, 0), features(2, 2, 4)), "is empty"),
        (lambda h: h.score_episodes(_bad(float("nan")).view(1, 3, 1, D), features(2, 1, 4)), "support: 1 of 3"),
        (lambda h: h.score_episodes(features(1, 1, 3, 1), features(2, 1, 4), _bad(0.0)), "base: 1 of 3"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(name, call, message):
    head = written(name)
    before = head(features(2, 4))
    with pytest.raises(ValueError, match=message):
        call(head)
    if head.classes == ["c0", "c1", "c2"]:
        torch.testing.assert_close(head(features(2, 4)), before)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    "call",
    [
        lambda h: h.write(features(1, 2), [1.5, 2.5]),
        lambda h: h.write(features(1, 2), [True, False]),
        lambda h: h.write(features(1, 2), b"ab"),
        lambda h: h.write(features(1, 2), None),
        lambda h: h.predict([[0.1] * D]),
        lambda h: h.write(torch.ones(2, D, dtype=torch.long), ["a", "b"]),
        lambda h: h([[0.1] * D]),
    ],
)
def test_the_wrong_types_are_refused(name, call):
    with pytest.raises(TypeError, match="must be"):
        call(written(name))


@pytest.mark.parametrize("name", HEADS)
def test_a_fresh_head_says_that_it_knows_nothing(name):
    with pytest.raises(ValueError, match="knows no class yet: call write"):
        make(name)(features(1, 2))
    assert make(name).classes == []
    assert "classes=0" in repr(make(name))


@pytest.mark.parametrize("name", HEADS)
def test_settings_are_part_of_what_a_head_is_called(name):
    """Results describe heads by it: random features of two seeds had one description."""
    head = make(name)
    shown = set(re.findall(r"(\w+)=", repr(head)))
    named = {setting for setting, value in settings(head).items() if not isinstance(value, dict)}
    assert named - shown - {"keep_shots"} <= {f"{kind}_entropy_weight" for kind in ("cross", "conditional", "marginal")}
    if hasattr(head, "keep_shots"):
        head.keep_shots = False
        assert "keep_shots=False" in repr(head)


@pytest.mark.parametrize("name", HEADS)
def test_a_class_whose_shots_cancel_out_gives_no_nan(name):
    head = make(name, prototypes=features(98, 12)[:, :3], mean=torch.zeros(3))
    head.write(torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0]]), ["a", "a", "b"])
    scores = head(torch.tensor([[0.0, 1.0, 0.1]]))
    assert scores.isfinite().all()
    assert (
        scores.argmax() == 1 or name == "logistic"
    )  # it has no prototype, and fits the opposite shots with its intercept


@pytest.mark.parametrize("name", HEADS)
def test_dtypes_may_be_mixed(name):
    rows, query = features(1, 4), features(2, 3)
    exact = make(name).write(rows, list("abcd"))(query)
    mixed = make(name).write(rows[:2].double(), list("ab")).write(rows[2:], list("cd"))
    torch.testing.assert_close(mixed(query).float(), exact, rtol=1e-3, atol=1e-3)
    assert make(name).write(rows, list("abcd"))(query.double()).dtype == torch.float32
    based = make(name).write_base(features(3, 2).double(), ["x", "y"]).write(rows, list("abcd"))
    assert based(query).isfinite().all()
    make(name).score_episodes(rows.view(1, 4, 1, D), query.double().view(1, 3, D), features(3, 2).double())


def test_later_features_are_not_squeezed_into_the_first_ones_dtype():
    head = create("cosine").write(torch.rand(2, 4).half() + 0.1, ["a", "b"]).write(torch.full((4,), 1e6), "c")
    assert head.predict(torch.full((4,), 3e6)) == "c"
    assert head(torch.rand(3, 4) + 0.1).isfinite().all()


def test_a_tie_with_the_threshold_is_accepted_in_every_dtype():
    for dtype in (torch.float32, torch.float64):
        head, query = make("nam").write(features(1, 3).to(dtype), ["a", "b", "c"]), features(2, 200).to(dtype)
        for row in query:
            head.threshold = head(row).max().item()
            assert head.predict(row, unknown="?") != "?"


def _renumber(state: dict[str, Tensor], old: bytes, new: bytes) -> None:
    text = bytes(state["_extra_state"].tolist())
    assert old in text
    state["_extra_state"] = torch.tensor(list(text.replace(old, new)), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state["targets"].__setitem__(-1, 9), "do not belong together"),
        (lambda state: state["targets"].__setitem__(0, -1), "do not belong together"),
        (lambda state: state.update(support=state["support"][:2]), "do not belong together"),
        (lambda state: state["support"].__setitem__((0, 0), float("nan")), "vectors cannot be used; .* is NaN"),
        (lambda state: state["unknowns"].__setitem__((0, 0), float("nan")), "vectors cannot be used; .* is NaN"),
        (lambda state: state["support"].__setitem__(0, 0.0), "vectors cannot be used; .* is zero"),
        (lambda state: state.update(unknowns=state["unknowns"][:-1]), "do not belong together"),
        (lambda state: state.update(unknowns=torch.empty(0, 0)), "do not belong together"),
        (lambda state: _renumber(state, b'"target_fpr": 0.2', b'"target_fpr": null'), "do not belong together"),
        (lambda state: _renumber(state, b'"target_fpr": 0.2', b'"target_fpr": 2.0'), "damaged .target_fpr is 2.0"),
        (
            lambda state: state.update(_extra_state=state["_extra_state"][:-4]),
            "names and settings in this state are damaged",
        ),
    ],
)
def test_a_damaged_state_is_refused(spoil, message):
    head = written("nam")
    head.calibrate(features(2, 9), target_fpr=0.2, unknown_labels=list(range(9)))
    state = {name: value.clone() for name, value in head.state_dict().items()}
    spoil(state)
    with pytest.raises(ValueError, match=message):
        make("nam").load_state_dict(state)


def test_a_mean_must_be_a_vector():
    with pytest.raises(ValueError, match=r"mean must be \(D,\), got shape \(2, 3\)"):
        BaseStatistics.from_mean(torch.ones(2, 3))


def test_a_feature_that_equals_the_mean_points_nowhere():
    head = make("cosine-centred").write(features(1, 3), ["a", "b", "c"])
    for call in (head, lambda feature: head.write(feature, "d")):
        with pytest.raises(ValueError, match=r"features minus the mean: 1 of 1 .* is zero"):
            call(features(99))
    assert head.classes == ["a", "b", "c"]
    with pytest.raises(ValueError, match="support minus the mean"):
        head.score_episodes(features(99).view(1, 1, 1, D), features(2, 1, 4))


def test_create_names_what_there_is_and_the_nearest():
    with pytest.raises(ValueError, match=r"no head 'cosin': did you mean 'cosine'\? There are: nam, nam-sequential"):
        create("cosin")
    with pytest.raises(ValueError, match="'cosine-centred' subtracts the mean base feature, and none is known"):
        create("cosine-centred")
    for name in ("plda", "cosine-root-centred"):
        with pytest.raises(ValueError, match=f"'{name}' needs the prototypes of base classes, and none are known"):
            create(name)
    base = BaseStatistics.from_prototypes(features(98, 12))
    assert torch.equal(create("cosine-centred", base=base).mean, base.mean)
    with pytest.raises(ValueError, match=r"the head 'nam' cannot take these settings.*rigde"):
        create("nam", rigde=1.0)


@pytest.mark.parametrize("name", ["nam", "nam with base classes", "nam-sequential", "cosine", "plda"])
def test_a_thousand_random_lessons_and_losses_leave_no_trace(name):
    chance, head = random.Random(name), make(name)
    kept: list[tuple[int, Tensor]] = []
    for step in range(1000):
        if kept and chance.random() < 0.45:
            gone = chance.choice(kept)[0]
            head.forget(gone)
            kept = [(label, lesson) for label, lesson in kept if label != gone]
        else:
            kept.append((chance.randrange(6), features(1000 + step, chance.randint(1, 3))))
            head.write(kept[-1][1], kept[-1][0])
        if kept and step % 50 == 0:
            fresh = make(name)
            for label, lesson in kept:
                fresh.write(lesson, label)
            assert head.classes == fresh.classes
            torch.testing.assert_close(head(features(500, 5)), fresh(features(500, 5)))
            assert len(head.support) == sum(len(lesson) for _, lesson in kept), "what is forgotten is not kept"


def test_base_statistics_are_loaded_with_the_rest():
    backed, bare = make("nam with base classes"), create("nam")
    backed.write(features(1, 3), ["a", "b", "c"])
    bare.load_state_dict(backed.state_dict())
    torch.testing.assert_close(bare(features(2, 4)), backed(features(2, 4)))
    assert len(bare.base_statistics) == len(backed.base_statistics)


@pytest.mark.parametrize("spoil", ["unknowns", "stored_base.power_means"])
def test_a_state_of_two_widths_is_refused(spoil):
    head = written("nam with base classes")
    head.calibrate(features(1001, 20), target_fpr=0.2)
    state = {name: value.clone() for name, value in head.state_dict().items()}
    state[spoil] = state[spoil][:, :5]
    with pytest.raises(ValueError, match=r"do not belong together|power_means must have width 11, got shape"):
        make("nam with base classes").load_state_dict(state)
    state[spoil] = torch.full((20, D), torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        make("nam with base classes").load_state_dict(state)


def test_few_base_classes_are_left_to_the_heads_that_need_them():
    few, enough = (BaseStatistics.from_prototypes(features(98, count)) for count in (2, 3))
    assert len(create("nam", base=few).base_statistics) == 0
    assert len(create("nam", base=enough).base_statistics) == 3
    assert create("cosine-root-centred", base=few).mean.numel()


def test_what_is_written_in_inference_mode_can_be_loaded_over():
    state = written("nam").state_dict()
    head = make("nam")
    with torch.inference_mode():
        head.write(features(5, 3), ["a", "b", "c"]).write(features(6, 3), ["a", "b", "c"]).forget("a")
        head.threshold = 0.5
    head.load_state_dict(state)
    head.write(features(7, 1), "z")


def test_a_query_that_does_not_fit_the_dtype_of_what_was_written_is_refused():
    head = NAMHead().write(torch.eye(3), ["a", "b", "c"])
    with pytest.raises(ValueError, match="features"):
        head(torch.full((1, 3), 1e100, dtype=torch.float64))


@pytest.mark.parametrize("name", list(available()))
def test_a_head_that_refuses_a_state_stays_as_it_was(name):
    head, other = written(name), written(name)
    query = features(7, 5)
    expected = head(query)
    state = {key: value.clone() for key, value in other.state_dict().items()}
    state["targets"][-1] = 9
    state["support"] = state["support"] + 1
    with pytest.raises(ValueError, match="do not belong together"):
        head.load_state_dict(state)
    torch.testing.assert_close(head(query), expected, rtol=0, atol=0)


def test_means_over_many_classes_are_those_over_few(monkeypatch):
    support = Support(features(3, 11).unsqueeze(0), torch.tensor([2, 3, 4, 2, 3, 4, 4, 2, 4, 3, 2]), features(4, 2), 5)
    few = support.class_means(support.features)
    monkeypatch.setattr("fewshot_nam.heads.base._LARGEST_ONE_HOT", 0)
    torch.testing.assert_close(support.class_means(support.features), few)


@pytest.mark.parametrize("name", HEADS)
def test_base_images_make_base_classes(name):
    images, labels, query = features(4, 9), ["b", "a", "a", "b", "c", "c", "a", "b", "c"], features(2, 5)
    head = make(name).write_base_images(images, labels)
    assert head.classes == ["b", "a", "c"]
    before = head(query)
    head.write(features(5, 2), ["n", "n"])
    assert head.classes == ["b", "a", "c", "n"]
    assert head(query).shape == (5, 4)
    head.forget("n")
    torch.testing.assert_close(head(query), before)
    with pytest.raises(ValueError, match="is known already"):
        head.write_base_images(images, labels)
    torch.testing.assert_close(head(query), before)
    loaded = make(name)
    loaded.load_state_dict(head.state_dict())
    torch.testing.assert_close(loaded(query), before)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", HEADS)
def test_the_default_dtype_of_a_program_changes_no_answer(name, default):
    """NAM heads of many classes raised where a program had set float64; in half precision KLDA lost count of its images."""
    base, unknowns, query, rows = features(7, 600), features(8, 100), features(9, 20), features(1, 8)
    mean, prototypes = features(99), features(98, 12)

    def answers():
        head = make(name, prototypes, mean)
        head.write_base_images(base, [f"base {i % 40}" for i in range(len(base))])
        head.write(rows, list("aabbcdde"))
        found = [head(query)]
        head.write(query[:3], ["new", "a", "newer"])
        head.calibrate(unknown=unknowns)
        return [*found, head(query), torch.tensor(head.threshold, dtype=torch.float64)]

    expected = answers()
    torch.set_default_dtype(default)
    try:
        found = answers()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", [name for name in available() if not transductive(name)])
def test_a_head_answers_within_autocast_as_outside(name):
    """What it learned and compared was rounded to eight bits: thresholds accepted nothing or a third of the unknowns."""
    generator = torch.Generator().manual_seed(0)
    rows, query = (torch.rand(n, 11, generator=generator) + 0.1 for n in (12, 9))
    rows, query = rows.bfloat16().float(), query.bfloat16().float()  # as a backbone within autocast gives them
    base = BaseStatistics(
        *(torch.rand(12, 11, generator=generator) + 0.1 for _ in range(2)), torch.rand(11, generator=generator)
    )
    within, outside = (create(name, base) for _ in range(2))
    outside.write(rows, list("aaaabbbbcccc"))
    expected = outside(query)
    with torch.autocast("cpu", torch.bfloat16):
        within.write(rows.bfloat16(), list("aaaabbbbcccc"))
        torch.testing.assert_close(outside(query.bfloat16()), expected)
        found = within(query.bfloat16())
        episodes = within.score_episodes(rows.reshape(1, 3, 4, 11), query[None])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(within(query), expected)
    torch.testing.assert_close(episodes, outside.score_episodes(rows.reshape(1, 3, 4, 11), query[None]))

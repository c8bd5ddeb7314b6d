"""A head that keeps sums in place of its shots: the same scores, a size that does not grow, and refusals of what it cannot do."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewshot_nam.heads import BaseStatistics, NAMHead

D = 9


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images() -> BaseStatistics:
    rows = normal(1, 12, 1, D) + 0.7 * normal(2, 12, 5, D)
    return BaseStatistics.from_features(rows.flatten(0, 1), torch.arange(12).repeat_interleave(5))


KNOWN = {
    "nothing": lambda: None,
    "a mean": lambda: BaseStatistics.from_mean(0.1 * normal(4, D)),
    "prototypes": lambda: BaseStatistics.from_prototypes(normal(3, 12, D)),
    "images": images,
}


def both(known: str) -> tuple[NAMHead, NAMHead]:
    return NAMHead(KNOWN[known]()), NAMHead(KNOWN[known](), keep_shots=False)


def bytes_of(head: NAMHead) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in head.state_dict().values())


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("over_base", [False, True])
def test_scores_are_those_of_the_head_that_keeps_its_shots(known, over_base):
    heads, query = both(known), normal(9, 6, D)
    for head in heads:
        if over_base:
            head.write_base(normal(5, 4, D), list("wxyz"))
        head.write(normal(6, 40, D), [i % 5 for i in range(40)])
    torch.testing.assert_close(heads[1](query), heads[0](query), rtol=1e-6, atol=1e-6)
    for head in heads:  # more shots of a class, new classes, both at once, in turns of any size
        head.write(normal(7, D), 3)
        head.write(normal(8, 3, D), [9, 3, 9])
    assert heads[1].classes == heads[0].classes
    torch.testing.assert_close(heads[1](query), heads[0](query), rtol=1e-6, atol=1e-6)


def test_neither_state_nor_snapshot_grows_with_shots():
    head = NAMHead(images(), keep_shots=False).write(normal(1, 10, D), [i % 5 for i in range(10)])
    before, served, query = bytes_of(head), head.snapshot(), normal(9, 4, D)
    answers = served(query)
    for seed in range(5):
        head.write(normal(seed, 1000, D), [i % 5 for i in range(1000)])
    assert abs(bytes_of(head) - before) < 64, "numbers in JSON may have another digit"
    assert head.shot_sums.counts.tolist() == [1002] * 5
    assert torch.equal(served(query), answers)
    assert not torch.allclose(head(query), answers)


def test_saved_copied_and_loaded(tmp_path):
    head, query = NAMHead(images(), keep_shots=False).write(normal(1, 12, D), list("abc") * 4), normal(9, 4, D)
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    loaded = NAMHead(keep_shots=False)
    loaded.load_state_dict(load_file(tmp_path / "head.safetensors"))
    for other in (loaded, copy.deepcopy(head)):
        assert torch.equal(other(query), head(query))
        other.write(normal(2, D), "d")
        assert not head.classes.count("d")
    state = load_file(tmp_path / "head.safetensors")
    state["shot_sums.counts"] = state["shot_sums.counts"][:2]
    with pytest.raises(ValueError, match="damaged: the sums of shots do not belong to its classes"):
        NAMHead(keep_shots=False).load_state_dict(state)


def test_files_without_sums_load_into_a_head_that_keeps_its_shots():
    state = {
        name: tensor
        for name, tensor in NAMHead().write(normal(1, 3, D), list("abc")).state_dict().items()
        if "shot_sums" not in name
    }
    head = NAMHead()
    head.load_state_dict(state)
    assert head.classes == ["a", "b", "c"]


def test_classes_are_forgotten_all_at_once_or_not():
    head = (
        NAMHead(images(), keep_shots=False)
        .write_base(normal(5, 2, D), ["x", "y"])
        .write(normal(1, 6, D), list("abcabc"))
    )
    before = head(normal(9, 4, D))
    with pytest.raises(ValueError, match=r"forget: this head does not keep its shots \(keep_shots=False\)"):
        head.forget(["a", "x"])
    assert torch.equal(head(normal(9, 4, D)), before)
    head.forget("x")
    assert head.classes == ["y", "a", "b", "c"]
    head.forget(["a", "b", "c"])
    assert head.classes == ["y"]
    fresh = (
        NAMHead(images(), keep_shots=False).write_base(normal(5, 2, D)[1:], ["y"]).write(normal(2, 3, D), list("abc"))
    )
    torch.testing.assert_close(head.write(normal(2, 3, D), list("abc"))(normal(9, 4, D)), fresh(normal(9, 4, D)))


def test_what_needs_single_shots_is_refused():
    head = NAMHead(keep_shots=False).write(normal(1, 30, D), [i % 3 for i in range(30)])
    with pytest.raises(ValueError, match=r"calibrate_from_shots: this head does not keep its shots"):
        head.calibrate_from_shots(0.2)
    assert head.calibrate(normal(2, 50, D), target_fpr=0.1).bound <= 0.1
    with pytest.raises(ValueError, match="is a base class with a fixed prototype"):
        NAMHead(keep_shots=False).write_base(normal(5, 2, D), ["x", "y"]).write(normal(1, D), "x")
    with pytest.raises(ValueError, match="features"):
        head.write(torch.full((2, D), torch.nan), [0, 1])
    assert head.shot_sums.counts.tolist() == [10, 10, 10]


def test_a_state_of_sums_is_read_as_such_by_a_head_that_was_made_to_keep_shots():
    """Its support is one shot of each class: a head that took that for all of them would answer otherwise, without a word."""
    saved, query = (
        NAMHead(images(), keep_shots=False).write(normal(6, 40, D), [i % 5 for i in range(40)]),
        normal(9, 6, D),
    )
    head = NAMHead(images())
    head.load_state_dict(saved.state_dict())
    assert torch.equal(head(query), saved(query))
    head.write(normal(7, 3, D), [0, 0, 9])
    saved.write(normal(7, 3, D), [0, 0, 9])
    assert torch.equal(head(query), saved(query))

"""The recursive memory: its equation, any order, forgetting, what it keeps, and what it refuses."""

import pytest
import torch
from torch import Tensor

from fewshot_nam.heads import BaseStatistics, create
from fewshot_nam.heads.nam.recursive import NAMRecursiveHead, RecursiveMemory
from fewshot_nam.memory.primitives import unit

D = 13


def images(seed: int, classes: int, each: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(classes, 1, D, generator=generator) ** 2
    return centres + 0.3 * torch.rand(classes, each, D, generator=generator)


BASE = images(0, 9, 20)
STATISTICS = BaseStatistics.from_features(BASE.flatten(0, 1), torch.arange(9).repeat_interleave(20))
NOVEL, QUERIES = images(1, 4, 6), images(2, 5, 4).flatten(0, 1)
NAMES = [f"n{i}" for i in range(4) for _ in range(6)]


def head(**settings) -> NAMRecursiveHead:
    made = create("nam-recursive", STATISTICS, settings=settings or None)
    return made.write_base_images(BASE.flatten(0, 1), [f"b{i}" for i in range(9) for _ in range(20)])


@pytest.mark.parametrize("name", ["nam-recursive", "nam-expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_sums_stay_exact_when_a_head_takes_another_dtype(name, dtype):
    """``.float()`` alone, which changes no other head, ended in an error of sums in two dtypes."""
    made = create(name, STATISTICS).write(NOVEL[:3].flatten(0, 1).float(), NAMES[:18])
    before = [sums.totals for sums in made._sums()]
    answers = made.predict(QUERIES.float())
    made.to(dtype)
    assert all(torch.equal(sums.totals, held) for sums, held in zip(made._sums(), before, strict=True))
    assert made.shot_sums.counts.tolist() == [6, 6, 6]
    same = sum(a == b for a, b in zip(made.predict(QUERIES.float()), answers, strict=True))
    assert same >= 0.9 * len(answers)
    made.write(NOVEL[3].float(), "more")
    assert made.shots_per_class()[-1] == 6


def equation(made: NAMRecursiveHead, classes: list[Tensor], queries: Tensor) -> Tensor:
    """Return the scores of the equation at the top of the file, for the images of each class."""
    s, space = made.settings, made._space(QUERIES.double())
    z = space.embed
    means = [z(some.double()).mean(0) for some in classes]
    keys = unit(torch.stack(means))
    R = torch.linalg.inv(s.ridge * torch.eye(D).double() + keys.T @ keys)
    reads = []
    for key, some in zip(keys, classes, strict=True):
        g = (1 + (1 - space.likeness) / (len(some) * space.likeness)) ** 0.5
        reads.append(g**s.evenness * (z(queries.double()) @ R @ key) / (key @ R @ key))
    r = torch.stack(reads, dim=1)
    return r - s.log_partition_penalty * s.temperature * (r / s.temperature).logsumexp(1, keepdim=True)


@pytest.mark.parametrize(
    "settings", [{}, {"ridge": 0.3, "evenness": 1.0}, {"identity_share": 0.9, "log_partition_penalty": 0.0}]
)
def test_scores_are_those_of_the_equation(settings):
    made = head(**settings).write(NOVEL.flatten(0, 1), NAMES)
    expected = equation(made, [*BASE, *NOVEL], QUERIES)
    torch.testing.assert_close(made(QUERIES).double(), expected, rtol=1e-5, atol=1e-5)


def test_one_image_at_a_time_in_any_order_is_the_joint_write():
    jointly = head(ridge=0.5).write(NOVEL.flatten(0, 1), NAMES)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3)).tolist()
    in_turn = head(ridge=0.5)
    _ = in_turn(QUERIES)  # from here on the memory is never inverted again
    recursive = 0
    for i in order:
        in_turn.write(NOVEL.flatten(0, 1)[i], NAMES[i])
        recursive += in_turn._memory is not None
        _ = in_turn(QUERIES)
    assert recursive == 24
    columns = [in_turn.classes.index(name) for name in jointly.classes]
    torch.testing.assert_close(in_turn(QUERIES)[:, columns], jointly(QUERIES), rtol=1e-5, atol=1e-5)
    exact = RecursiveMemory.of(in_turn._keys(), 0.5)
    for kept, fresh in zip(in_turn._memory[:3], exact[:3], strict=True):
        torch.testing.assert_close(kept, fresh, rtol=0, atol=1e-12)


def test_after_forgetting_it_is_the_memory_that_never_saw_the_class():
    made = head(ridge=0.5)
    _ = made(QUERIES)
    for i in range(24):
        made.write(NOVEL.flatten(0, 1)[i], NAMES[i])
    made.forget(["n1", "b3"])
    assert made._memory is not None
    rest = [i for i in range(9) if i != 3]
    fresh = create("nam-recursive", STATISTICS, settings={"ridge": 0.5})
    fresh.write_base_images(BASE[rest].flatten(0, 1), [f"b{i}" for i in rest for _ in range(20)])
    fresh.write(NOVEL[[0, 2, 3]].flatten(0, 1), [name for name in NAMES if name != "n1"])
    assert made.classes == fresh.classes
    torch.testing.assert_close(made(QUERIES), fresh(QUERIES), rtol=1e-5, atol=1e-5)
    for kept, exact in zip(made._memory[:3], fresh._memory[:3], strict=True):
        torch.testing.assert_close(kept, exact, rtol=0, atol=1e-12)


def test_what_is_kept_does_not_grow_with_images():
    made = head()
    sizes = []
    for _ in range(3):
        made.write(NOVEL.flatten(0, 1), NAMES)
        sizes.append(sum(buffer.numel() for buffer in made.buffers()))
    assert sizes[0] == sizes[1] == sizes[2]


def test_a_class_reads_one_for_its_key():
    made = head(ridge=0.2, evenness=0.0, log_partition_penalty=0.0).write(NOVEL.flatten(0, 1), NAMES)
    learned = made._current()
    reads = (learned.keys[0] @ learned.metric) @ learned.keys[0].T * learned.factors
    torch.testing.assert_close(reads.diagonal(), torch.ones(13))


def test_state_is_loaded_and_a_damaged_one_refused():
    made = head().write(NOVEL.flatten(0, 1), NAMES)
    loaded = create("nam-recursive", STATISTICS)
    loaded.load_state_dict(made.state_dict())
    torch.testing.assert_close(loaded(QUERIES), made(QUERIES))
    loaded.write(NOVEL[0], "n0")
    torch.testing.assert_close(loaded(QUERIES), made.write(NOVEL[0], "n0")(QUERIES))
    state = made.state_dict()
    state["shot_sums.totals"] = state["shot_sums.totals"][1:]
    state["shot_sums.counts"] = state["shot_sums.counts"][1:]
    with pytest.raises(ValueError, match="the sums of classes do not belong to its classes"):
        create("nam-recursive", STATISTICS).load_state_dict(state)


def test_shots_cannot_be_left_out():
    with pytest.raises(ValueError, match="keeps no shots"):
        head().write(NOVEL.flatten(0, 1), NAMES).calibrate_from_shots()


def expanded(width: int = 40, **settings) -> NAMRecursiveHead:
    return head(random_features=width, **settings)


def test_random_features_are_whitened_and_read_as_written():
    """Scores from the equations of both files, class after class."""
    made = expanded(evenness=0.8).write(NOVEL.flatten(0, 1), NAMES)
    s, space, part = made.settings, made._space(QUERIES.double()), made.expansion
    raised = [unit(torch.relu(space.embed(some.double()) @ part.projection.double())) for some in BASE]
    centre = torch.stack([rows.mean(0) for rows in raised]).mean(0)
    within = sum((rows - rows.mean(0)).T @ (rows - rows.mean(0)) for rows in raised) / (180 - 9)
    shrunk = 0.8 * within / within.diagonal().mean() + 0.2 * torch.eye(40).double()
    torch.testing.assert_close(
        part.metric.double() @ part.metric.double().T, torch.linalg.inv(shrunk), rtol=1e-4, atol=1e-4
    )

    def z_and_k(images):
        z = space.embed(images.double())
        return z, unit((unit(torch.relu(z @ part.projection.double())) - centre) @ part.metric.double())

    keys, factors, alike = [], [], [space.likeness, float(part.likeness)]
    for some in [*BASE, *NOVEL]:
        keys.append(torch.cat([unit(each.mean(0)) for each in z_and_k(some)]) / 2**0.5)
        g = [(1 + (1 - i) / (len(some) * i)) ** 0.5 for i in alike]
        factors.append(
            (sum(i**0.5 for i in alike) / sum(i**0.5 / each for i, each in zip(alike, g, strict=True))) ** 0.8
        )
    keys, query = torch.stack(keys), torch.cat(z_and_k(QUERIES), dim=-1) / 2**0.5
    R = torch.linalg.inv(s.ridge * torch.eye(D + 40).double() + keys.T @ keys)
    r = (query @ R @ keys.T) / (keys @ R @ keys.T).diagonal() * torch.tensor(factors)
    r = r - s.log_partition_penalty * s.temperature * (r / s.temperature).logsumexp(1, keepdim=True)
    torch.testing.assert_close(made(QUERIES).double(), r, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("apart", [3e-1, 1e-3, 1e-5])
def test_random_features_of_tight_classes_are_whitened(apart):
    """What was left of float32 sums of products after means were taken off was no covariance, and ended in an error."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 1, 512, generator=generator) + apart * torch.randn(5, 8, 512, generator=generator)
    rows, names = unit(rows).flatten(0, 1), [f"b{i}" for i in range(5) for _ in range(8)]
    statistics = BaseStatistics.from_features(rows, torch.arange(5).repeat_interleave(8))
    made = create("nam-recursive", statistics, settings={"random_features": 200}).write_base_images(rows, names)
    z = made._space(rows.double()).embed(rows.double()).unflatten(0, (5, 8))
    raised = unit(torch.relu(z @ made.expansion.projection.double()))
    off = (raised - raised.mean(1, keepdim=True)).flatten(0, 1)
    within = off.T @ off / 35
    shrunk = 0.8 * within / within.diagonal().mean().clamp_min(1e-12) + 0.2 * torch.eye(200).double()
    metric = made.expansion.metric.double()
    torch.testing.assert_close(metric.T @ shrunk @ metric, torch.eye(200).double(), rtol=0, atol=0.05)


def test_random_features_keep_order_forgetting_and_state():
    jointly = expanded(ridge=0.5).write(NOVEL.flatten(0, 1), NAMES)
    in_turn = expanded(ridge=0.5)
    for i in range(23, -1, -1):
        in_turn.write(NOVEL.flatten(0, 1)[i], NAMES[i])
        _ = in_turn(QUERIES)
    columns = [in_turn.classes.index(name) for name in jointly.classes]
    torch.testing.assert_close(in_turn(QUERIES)[:, columns], jointly(QUERIES), rtol=1e-5, atol=1e-5)
    loaded = create("nam-recursive", STATISTICS)
    loaded.load_state_dict(jointly.state_dict())
    torch.testing.assert_close(loaded(QUERIES), jointly(QUERIES))
    jointly.forget("n1")
    fresh = expanded(ridge=0.5).write(NOVEL[[0, 2, 3]].flatten(0, 1), [name for name in NAMES if name != "n1"])
    torch.testing.assert_close(jointly(QUERIES), fresh(QUERIES), rtol=1e-5, atol=1e-5)


def test_random_features_need_the_base_images_first_and_a_whole_number():
    made = create("nam-expanded", STATISTICS).write(NOVEL[0], "n0")
    torch.testing.assert_close(made(QUERIES), create("nam-recursive", STATISTICS).write(NOVEL[0], "n0")(QUERIES))
    with pytest.raises(ValueError, match="learn the images of base classes first"):
        made.write_base_images(BASE[0], ["b0"] * 20)
    with pytest.raises(ValueError, match=r"random_features must be a whole number, got 2\.5"):
        create("nam-recursive", STATISTICS, settings={"random_features": 2.5})


def test_a_state_of_before_random_features_is_loaded():
    made = head().write(NOVEL.flatten(0, 1), NAMES)
    state = {name: value for name, value in made.state_dict().items() if "expansion" not in name}
    loaded = create("nam-recursive", STATISTICS)
    loaded.load_state_dict(state)
    torch.testing.assert_close(loaded(QUERIES), made(QUERIES))

"""Episodes: the same for the same seed, disjoint where they must be, uniform, and refused where there is too little."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from episodes import Episodes, EpisodeSampler, FeatureBank
from episodes.data.image_dataset import ArrayImages
from episodes.sampling.sampler import check_enough

FIELDS = ["classes", "support", "query", "unknown_classes", "unknown", "base_query", "base_classes"]


def bank(*counts: int, seed: int = 0) -> FeatureBank:
    """Return a bank with so many images of each class, in mixed order."""
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(seed).shuffle(labels)
    return FeatureBank(torch.ones(len(labels), 2), labels, [f"class{i}" for i in range(len(counts))])


def equal(a: Episodes, b: Episodes) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


@pytest.mark.parametrize("batch_size", [1, 32, 1000])
def test_episodes_do_not_depend_on_the_batch_size(batch_size):
    def sampler() -> EpisodeSampler:
        return EpisodeSampler(bank(*[20] * 12), open_ways=4, base=bank(*[30] * 6), seed=3)

    whole = sampler().sample(0, 1000)
    assert equal(Episodes.cat(list(sampler().batches(1000, batch_size))), whole)
    assert equal(sampler().sample(700, 703), whole[700:703])


def test_episodes_are_the_same_on_every_machine():
    source, base = (
        FeatureBank(torch.ones(n * c, 2), torch.arange(n).repeat_interleave(c)) for n, c in ((12, 20), (4, 9))
    )
    drawn = EpisodeSampler(source, ways=3, shots=2, queries=2, open_ways=2, base=base, seed=5).sample(0, 300)
    # Computed once; a change here means that published figures can no longer be reproduced.
    assert drawn.classes[0].tolist() == [10, 6, 0]
    assert drawn.support[299].tolist() == [[135, 132], [9, 14], [211, 218]]
    assert drawn.unknown[299].tolist() == [[159, 149], [76, 72]]
    assert drawn.base_query[299].tolist() == [20, 22, 13, 19, 11, 16]


def test_seeds_and_episodes_differ():
    first, second = (EpisodeSampler(bank(*[20] * 12), seed=seed).sample(0, 2) for seed in (0, 1))
    assert not torch.equal(first.support, second.support)
    assert not torch.equal(first.support[0], first.support[1])


def test_the_last_seed_of_32_bits_keeps_its_episodes():
    drawn = EpisodeSampler(bank(*[20] * 12), seed=2**32 - 1).sample(0, 1)
    assert drawn.classes[0].tolist() == [8, 7, 9, 4, 3]  # computed once


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_large_seeds_share_no_stream_with_small_ones(seed):
    """Words of a large seed once stood where a small seed has purpose and block: 2**32 + 5 drew what 5 draws elsewhere."""
    large = [EpisodeSampler(bank(*[20] * 12), seed=seed + (high << 32)) for high in (1, 2, 3)]
    small = EpisodeSampler(bank(*[20] * 12), seed=seed)
    streams = {
        tuple(sampler._raw(purpose, block, 4))
        for sampler in [small, *large]
        for purpose in range(3)
        for block in range(4)
    }
    assert len(streams) == 4 * 3 * 4


def test_more_shots_keep_the_classes():
    one, five = (EpisodeSampler(bank(*[30] * 12), shots=shots).sample(0, 50) for shots in (1, 5))
    assert torch.equal(one.classes, five.classes)
    assert torch.equal(one.unknown_classes, five.unknown_classes)


@given(st.data())
def test_every_image_is_of_its_class_and_used_once(data):
    ways, open_ways = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 3))
    shots, queries = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    counts = data.draw(st.lists(st.integers(7, 12), min_size=7, max_size=9))
    base = bank(3, 5, 4, seed=1)
    source = bank(*counts)
    seed = data.draw(st.integers(0, 2**31))
    drawn = EpisodeSampler(source, ways, shots, queries, open_ways, base=base, base_queries=3, seed=seed).sample(0, 300)
    assert drawn.support.shape == (300, ways, shots)
    assert drawn.query.shape == (300, ways, queries)
    assert drawn.unknown.shape == (300, open_ways, queries if open_ways else 0)
    assert (source.labels[drawn.support] == drawn.classes[..., None]).all()
    assert (source.labels[drawn.query] == drawn.classes[..., None]).all()
    assert (source.labels[drawn.unknown] == drawn.unknown_classes[..., None]).all()
    assert (base.labels[drawn.base_query] == drawn.base_classes).all()
    images = torch.cat([drawn.support.flatten(1), drawn.query.flatten(1), drawn.unknown.flatten(1)], dim=1)
    for used in (torch.cat([drawn.classes, drawn.unknown_classes], dim=1), images, drawn.base_query):
        ordered = used.sort(dim=1).values
        assert (ordered[:, 1:] != ordered[:, :-1]).all()


def test_all_images_of_a_class_can_be_drawn():
    drawn = EpisodeSampler(bank(4, 4, 4), ways=2, shots=1, queries=3, open_ways=1).sample(0, 5)
    assert (torch.cat([drawn.support, drawn.query], dim=2).sort(dim=2).values.diff(dim=2) > 0).all()


def test_draws_are_uniform():
    source, base = bank(*[6] * 5), bank(*[8] * 5, seed=2)
    drawn = EpisodeSampler(source, ways=2, shots=1, queries=2, open_ways=1, base=base, base_queries=4, seed=1).sample(
        0, 6000
    )
    for used, among in [
        (drawn.classes[:, 0], 5),
        (drawn.classes[:, 1], 5),
        (drawn.unknown_classes, 5),
        (drawn.support, 30),
        (drawn.query[:, :, 1], 30),
        (drawn.unknown[:, :, 1], 30),
        (drawn.base_query[:, 0], 40),
        (drawn.base_query[:, 3], 40),
    ]:
        assert chisquare(torch.bincount(used.flatten(), minlength=among)).pvalue > 1e-4
    pairs = drawn.classes[:, 0] * 5 + drawn.classes[:, 1]
    counts = torch.bincount(pairs, minlength=25).reshape(5, 5)
    assert counts.diagonal().sum() == 0
    assert chisquare(counts[~torch.eye(5, dtype=torch.bool)]).pvalue > 1e-4


def test_saved_episodes_come_back(tmp_path):
    source = bank(*[20] * 12)
    drawn = EpisodeSampler(source, base=source).sample(0, 10)
    drawn.save(tmp_path / "episodes.safetensors", source.fingerprint)
    assert equal(Episodes.load(tmp_path / "episodes.safetensors", source.fingerprint), drawn)
    with pytest.raises(ValueError, match="was made for other images or classes"):
        Episodes.load(tmp_path / "episodes.safetensors", bank(*[21] * 12).fingerprint)


def test_a_file_that_is_cut_short_or_foreign_is_refused(tmp_path):
    path = tmp_path / "episodes.safetensors"
    EpisodeSampler(bank(*[20] * 12)).sample(0, 10).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a file of episodes, or it is cut short"):
        Episodes.load(path)
    bank(3, 3).save(path)
    with pytest.raises(ValueError, match="not a file of episodes of this version"):
        Episodes.load(path)
    with pytest.raises(FileNotFoundError):
        Episodes.load(tmp_path / "missing.safetensors")


def test_episodes_of_another_shape_or_bank_are_refused():
    sampler = EpisodeSampler(bank(*[20] * 12))
    sampler.check(sampler.sample(3, 9))
    with pytest.raises(ValueError, match=r"support of shape \(5, 2\) each, expected \(5, 1\)"):
        sampler.check(EpisodeSampler(bank(*[20] * 12), shots=2).sample(0, 2))
    with pytest.raises(ValueError, match="index images that the bank of 240 does not have"):
        sampler.check(EpisodeSampler(bank(*[50] * 12)).sample(0, 20))


def spoilt(**changes) -> Episodes:
    return dataclasses.replace(EpisodeSampler(bank(*[20] * 12)).sample(0, 4), **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: {"query": e.query.clone().index_copy(2, torch.tensor([0]), e.support)}, "use an image twice"),
        (lambda e: {"support": e.support.roll(1, dims=1)}, "not of the class they are listed under"),
        (lambda e: {"support": e.support.float()}, "expected int64"),
        (lambda e: {"query": e.query[:3]}, "as many of each"),
        (lambda e: {name: getattr(e, name)[:0] for name in FIELDS}, "at least one"),
    ],
)
def test_episodes_that_would_mislead_are_refused(change, message):
    sampler = EpisodeSampler(bank(*[20] * 12))
    with pytest.raises(ValueError, match=message):
        sampler.check(spoilt(**change(sampler.sample(0, 4))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 9, "open_ways": 4}, "9 ways and 4 unknown ways need 13 classes, and there are 12"),
        ({"ways": 13, "open_ways": 0}, "13 ways need 13 classes"),
        ({"shots": 3}, "class 'class7' has 17 images, and 3 shots and 15 queries need 18"),
        ({"queries": 17}, "class 'class7' has 17 images"),
        ({"open_queries": 18}, "class 'class7' has 17 images"),
        ({"ways": 0}, "ways must be at least 1, got 0"),
        ({"shots": 0}, "shots must be at least 1"),
        ({"queries": -1}, "queries must be at least 1"),
        ({"open_ways": -1}, "open_ways must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_too_little_is_named(options, message):
    source = bank(*[20] * 7, 17, *[20] * 4)
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(source, **options)


@pytest.mark.parametrize("kind", ["bank", "images"])
def test_images_can_be_checked_before_their_features_are_extracted(kind):
    labels = np.repeat(np.arange(3), [4, 5, 6])
    data = (
        FeatureBank(torch.ones(15, 2), labels, ["a", "b", "c"])
        if kind == "bank"
        else ArrayImages("set", np.zeros((15, 2, 2), dtype=np.uint8), labels, ["a", "b", "c"])
    )
    check_enough(data, ways=2, shots=1, queries=3, open_ways=1)
    with pytest.raises(
        ValueError, match=r"5 ways and 5 unknown ways need 10 classes, and there are 3: .*closed protocol"
    ):
        check_enough(data)
    with pytest.raises(ValueError, match="class 'a' has 4 images, and 1 shots and 4 queries need 5"):
        check_enough(data, ways=2, shots=1, queries=4, open_ways=0)


def test_base_classes_whose_images_are_used_up_pass_their_queries_on():
    base = bank(2, 0, 3)
    drawn = EpisodeSampler(bank(*[20] * 12), base=base, base_queries=5).sample(0, 40)
    assert (drawn.base_query.sort(dim=1).values == torch.arange(5)).all()
    assert (base.labels[drawn.base_query] == drawn.base_classes).all()
    with pytest.raises(ValueError, match="6 base queries an episode need as many base images, and there are 5"):
        EpisodeSampler(bank(*[20] * 12), base=base, base_queries=6)


def test_an_empty_run_of_episodes_is_refused():
    with pytest.raises(ValueError, match="0 <= start < stop, got start 4 and stop 4"):
        EpisodeSampler(bank(*[20] * 12)).sample(4, 4)


def unequal(images=40, classes=6, dirichlet=2, **options):
    bank = FeatureBank(torch.ones(images * classes, 2), torch.arange(images * classes) % classes)
    return EpisodeSampler(bank, ways=3, shots=2, queries=5, open_ways=2, dirichlet=dirichlet, **options)


def test_unequal_queries_are_of_their_classes_and_no_image_comes_twice(tmp_path):
    sampler = unequal()
    drawn = sampler.sample(0, 300)
    sampler.check(drawn)
    assert drawn.query.shape == (300, 3, 5)
    assert drawn.query_targets.shape == (300, 15)
    assert torch.equal(sampler.bank.labels[drawn.query.flatten(1)], drawn.classes.gather(1, drawn.query_targets))
    again = unequal().sample(100, 103)
    assert torch.equal(again.query, drawn[100:103].query)
    drawn.save(tmp_path / "episodes")
    assert torch.equal(Episodes.load(tmp_path / "episodes").query_targets, drawn.query_targets)


@pytest.mark.parametrize("concentration", [2, 0.5, 0.3])
def test_counts_of_unequal_queries_are_those_of_dirichlet_shares(concentration):
    drawn = unequal(dirichlet=concentration).sample(0, 2048)
    counts = torch.nn.functional.one_hot(drawn.query_targets, 3).sum(1).double()
    assert (counts.mean(0) - 5).abs().max() < 0.4
    # Of a Dirichlet-multinomial with N = 3 classes, A each and 15 draws: 15 * 1/3 * 2/3 * (15 + 3 A) / (1 + 3 A).
    total = 3 * concentration
    assert counts.var(0).mean() == pytest.approx(15 * 2 / 9 * (15 + total) / (1 + total), rel=0.1)


def test_a_whole_concentration_draws_the_same_however_it_is_written():
    assert torch.equal(unequal(dirichlet=2).sample(0, 20).query, unequal(dirichlet=2.0).sample(0, 20).query)


def test_a_class_whose_images_are_used_up_gives_way_to_the_next():
    sampler = unequal(images=7)
    drawn = sampler.sample(0, 256)
    sampler.check(drawn)
    assert int(torch.nn.functional.one_hot(drawn.query_targets, 3).sum(1).max()) == 5
    with pytest.raises(ValueError, match=r"dirichlet must be from 0\.001 to 1e6, got 0"):
        unequal().__class__(sampler.bank, ways=3, shots=2, queries=5, open_ways=2, dirichlet=0)


def test_equal_queries_have_no_targets_of_their_own():
    bank = FeatureBank(torch.ones(60, 2), torch.arange(60) % 6)
    assert EpisodeSampler(bank, ways=3, shots=2, queries=5, open_ways=2).sample(0, 2).query_targets.shape == (2, 0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_refused_as_a_file_of_episodes(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no regular file"):
        Episodes.load(tmp_path / "pipe")

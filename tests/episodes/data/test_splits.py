"""Splits of classes: the same everywhere, without overlap, and files with mistakes in them explained."""

import contextlib
import hashlib
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from episodes.data.datasets import digits
from episodes.data.splits import apply_split, save_split, split_classes
from episodes.features.bank import FeatureBank

ANIMALS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]


@given(
    n=st.integers(3, 60),
    parts=st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=50, deadline=None)
def test_counts_give_disjoint_parts_of_these_sizes_in_the_order_of_the_classes(n, parts, seed):
    classes = [f"c{i}" for i in range(n)]
    if sum(parts) > n:
        with pytest.raises(ValueError, match=f"classes in all, and there are {n}"):
            split_classes(classes, parts, seed)
        return
    split = split_classes(classes, parts, seed)
    assert [len(split[role]) for role in ("base", "val", "novel")] == list(parts)
    chosen = [name for names in split.values() for name in names]
    assert len(set(chosen)) == len(chosen)
    for names in split.values():
        assert names == [name for name in classes if name in names]


@given(n=st.integers(1, 200), hundredths=st.lists(st.integers(0, 100), min_size=2, max_size=2).map(sorted))
@settings(max_examples=100, deadline=None)
def test_fractions_that_add_up_to_one_use_every_class_once(n, hundredths):
    low, high = hundredths
    parts = [Fraction(low, 100), Fraction(high - low, 100), Fraction(100 - high, 100)]
    text = "/".join(f"{float(part):.2f}" for part in parts)
    if any(0 < part * n < 1 for part in parts):  # too small a part may round to a class or to none, which is refused
        with contextlib.suppress(ValueError):
            split_classes(list(range(n)), text)
        return
    split = split_classes(list(range(n)), text)
    assert sorted(name for names in split.values() for name in names) == list(range(n))
    for role, part in zip(("base", "val", "novel"), parts, strict=True):
        assert abs(len(split[role]) - part * n) <= 1


def test_split_is_the_same_on_every_machine():
    split = split_classes(ANIMALS, "5/2/3", seed=7)
    # Written out once; and worked out here another way, from the definition.
    ranked = sorted(ANIMALS, key=lambda name: hashlib.sha256(b"7\0" + name.encode()).hexdigest())
    assert split == {"base": sorted(ranked[:5]), "val": sorted(ranked[5:7]), "novel": sorted(ranked[7:])}
    assert split == {
        "base": ["ant", "eel", "fox", "ibis", "jay"],
        "val": ["dog", "gnu"],
        "novel": ["bee", "cat", "hen"],
    }


def test_split_follows_the_seed_and_not_the_order_of_the_classes():
    split = split_classes(ANIMALS, (5, 2, 3), seed=1)
    backwards = split_classes(ANIMALS[::-1], (5, 2, 3), seed=1)
    assert {role: set(names) for role, names in split.items()} == {
        role: set(names) for role, names in backwards.items()
    }
    assert len({tuple(split_classes(ANIMALS, (5, 2, 3), seed=seed)["novel"]) for seed in range(20)}) > 10


def test_counts_and_fractions_as_text_and_as_tuples_agree():
    assert split_classes(ANIMALS, "6/2/2") == split_classes(ANIMALS, (6, 2, 2)) == split_classes(ANIMALS, "0.6/0.2/0.2")
    assert split_classes(ANIMALS, "0.6/0.2/0.2") == split_classes(ANIMALS, (0.6, np.float64(0.2), 0.2))
    assert [len(names) for names in split_classes(ANIMALS, "0.5/0.25/0.25").values()] == [
        5,
        3,
        2,
    ]  # the border 7.5 is 8
    assert split_classes(ANIMALS, "1/0/0")["base"] != split_classes(ANIMALS, "1.0/0/0")["base"] == ANIMALS


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("6/4", "split '6/4': expected three counts like 64/16/20, or fractions"),
        ("6/4/1/1", "expected three counts"),
        ("12", "expected three counts"),
        ("5//5", "split '5//5': expected three counts"),
        ("5/2/3/", "split '5/2/3/': expected three counts"),
        ("/5/2", "split '/5/2': expected three counts"),
        ("0.5/0.1.2/0", "expected three counts"),
        ((5, -1, 2), "expected three counts"),
        ("8/2/1", "split '8/2/1': 11 classes in all, and there are 10"),
        ("0.8/0.2/0.1", "fractions add up to 1.1, expected at most 1"),
        ("6/0.2/0.2", "fractions add up to 6.4"),
        ("0.9/0.02/0.08", "of 10 classes none is left for val"),
    ],
)
def test_bad_parts_are_refused(split, message):
    with pytest.raises(ValueError, match=message):
        split_classes(ANIMALS, split)


# --- files


@pytest.mark.parametrize("name", ["split.yaml", "split.yml", "split.json"])
def test_saved_split_comes_back_in_its_order(tmp_path, name):
    split = {"base": ["fox", "ant"], "val": [], "novel": ["1e3", "no", "0", "é/ä 1"]}
    save_split(tmp_path / name, split)
    assert split_classes([*ANIMALS, "é/ä 1", "0", "no", "1e3"], tmp_path / name) == split
    assert split_classes([*ANIMALS, "é/ä 1", "0", "no", "1e3"], str(tmp_path / name)) == split


def test_ints_in_a_file_name_classes_written_as_strings_and_the_other_way_round(tmp_path):
    (tmp_path / "split.yaml").write_text("base: [0, 1]\nval: []\nnovel: ['7']\n")
    assert split_classes([str(i) for i in range(10)], tmp_path / "split.yaml") == {
        "base": ["0", "1"],
        "val": [],
        "novel": ["7"],
    }
    assert split_classes(list(range(10)), tmp_path / "split.yaml") == {"base": [0, 1], "val": [], "novel": [7]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: [ant]\nval: [bee]\n", "no part 'novel'"),
        ("base: [ant]\nval: [bee]\nnovell: [cat]\n", "unknown part 'novell', .*did you mean 'novel'"),
        (
            "base: [ant]\nval: [bee]\nnovel: [gnuu]\n",
            "novel has 'gnuu', which is none of the 10 classes; did you mean 'gnu'",
        ),
        ("base: [ant]\nval: [bee]\nnovel: [ant]\n", "class 'ant' is in both base and novel"),
        ("base: [ant, ant]\nval: []\nnovel: [bee]\n", "class 'ant' is twice in base"),
        ("base: ant\nval: []\nnovel: [bee]\n", "part 'base' must be a list of class names, got 'ant'"),
        ("base:\nval: []\nnovel: [bee]\n", "part 'base' must be a list of class names, got None"),
        ("base: [no]\nval: []\nnovel: [bee]\n", "base has False .*put the name in quotes"),
        ("base: [2024-01-01]\nval: []\nnovel: [bee]\n", "put the name in quotes"),
        ("- ant\n- bee\n", "expected a mapping of base, val and novel"),
        ("", "expected a mapping"),
        ("base: [ant\n", "not valid JSON or YAML"),
    ],
)
def test_mistakes_in_a_file_are_explained_in_one_line_with_its_name(tmp_path, text, message):
    (tmp_path / "split.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"split\.yaml: .*{message}") as caught:
        split_classes(ANIMALS, tmp_path / "split.yaml")
    assert "\n" not in str(caught.value)


def test_broken_json_and_a_missing_file_are_errors(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"base": []})[:-1])
    with pytest.raises(ValueError, match=r"split\.json: not valid JSON"):
        split_classes(ANIMALS, tmp_path / "split.json")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        split_classes(ANIMALS, "nowhere.yaml")


@pytest.mark.parametrize("name", ["a.st", "a.json"])
def test_a_file_that_is_no_text_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x89\xff\0binary")
    with pytest.raises(ValueError, match=rf"split file {tmp_path / name}: not a text file") as caught:
        split_classes(ANIMALS, str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_yaml_files_cannot_run_code(tmp_path):
    (tmp_path / "split.yaml").write_text(f"base: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(ValueError, match="not valid JSON or YAML"):
        split_classes(ANIMALS, tmp_path / "split.yaml")
    assert not (tmp_path / "made").exists()


def test_save_split_refuses_another_ending(tmp_path):
    with pytest.raises(ValueError, match=r"split\.txt: expected a name ending in"):
        save_split(tmp_path / "split.txt", {"base": []})


# --- applied


def test_apply_split_gives_images_and_banks_the_same_classes():
    images = digits()
    bank = FeatureBank(torch.ones(len(images), 2), images.labels, images.classes)
    of_images, of_bank = apply_split(images, "5/2/3", seed=3), apply_split(bank, "5/2/3", seed=3)
    assert {role: part.classes for role, part in of_images.items()} == split_classes(images.classes, "5/2/3", seed=3)
    for role, part in of_images.items():
        assert of_bank[role].classes == part.classes
        assert of_bank[role].labels.tolist() == part.labels.tolist()
    assert sum(len(part) for part in of_images.values()) == len(images)


def test_apply_split_leaves_out_parts_without_classes():
    assert list(apply_split(digits(), {"base": ["1"], "val": [], "novel": ["2"]})) == ["base", "novel"]

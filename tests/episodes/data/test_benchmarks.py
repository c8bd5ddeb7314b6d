"""Benchmarks by name: published splits on small trees with the right names, in every usual layout, and what is missing."""

import itertools
import os

import numpy as np
import pytest
from PIL import Image

from episodes.data import registry
from episodes.data.benchmarks import cifar_fs, cub, fc100, mini_imagenet, tiered_imagenet
from episodes.data.cifar import cifar100
from episodes.data.datasets import open_dataset
from episodes.data.published_splits import class_split
from episodes.features.sources import sets_by_role

SIZES = {
    "mini-imagenet": (64, 16, 20),
    "tiered-imagenet": (351, 97, 160),
    "cub": (140, 30, 30),
    "cifar-fs": (64, 16, 20),
    "fc100": (60, 20, 20),
}
FEW = pytest.mark.filterwarnings("ignore:.*figures are not comparable:UserWarning")


def classes_of(name):
    return sorted(itertools.chain(*class_split(name).classes.values()))


def fill(root, classes, name="0.png"):
    """Write one tiny image for every class below ``root``."""
    for label in classes:
        (root / label).mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(root / label / name)


@pytest.mark.parametrize("name", SIZES)
def test_published_splits_have_their_sizes_and_name_each_class_once(name):
    split = class_split(name)
    assert tuple(len(split.classes[role]) for role in ("base", "val", "novel")) == SIZES[name]
    assert len(set(classes_of(name))) == sum(SIZES[name])
    assert split.source


def test_published_splits_hold_classes_that_the_papers_name():
    mini, tiered = class_split("mini-imagenet").classes, class_split("tiered-imagenet").classes
    assert "n01532829" in mini["base"]  # house finch
    assert {"n02110063", "n01930112"} <= set(mini["novel"])  # malamute, nematode
    assert not set(tiered["base"]) & set(tiered["novel"])
    fc = class_split("fc100").classes
    assert {"baby", "boy", "girl", "man", "woman"} <= set(fc["novel"]), "people are a superclass of the test split"
    assert sorted(itertools.chain(*fc.values())) == classes_of("cifar-fs"), "both are CIFAR-100"


def test_an_unknown_split_is_explained():
    with pytest.raises(
        ValueError, match="no split 'mini'; there are cifar-fs, cub, fc100, mini-imagenet, tiered-imagenet"
    ):
        class_split("mini")


@FEW
@pytest.mark.parametrize("layout", ["{}", "images/{}", "data/{}", "train/{}"])
@pytest.mark.parametrize("below", ["", "mini-imagenet", "miniImageNet"])
def test_mini_imagenet_is_read_in_every_usual_layout(tmp_path, layout, below):
    fill((tmp_path / below / layout.format("x")).parent, classes_of("mini-imagenet"))
    found = mini_imagenet(tmp_path)
    assert {role: part.classes for role, part in found.items()} == class_split("mini-imagenet").classes
    assert found["novel"].name == "mini-imagenet/novel"
    assert found["val"].describe(0).endswith(f"{class_split('mini-imagenet').classes['val'][0]}/0.png")


@FEW
def test_the_names_of_classes_decide_and_not_their_directories(tmp_path):
    split = class_split("mini-imagenet").classes
    fill(tmp_path / "train", [*split["base"], split["novel"][0]])
    fill(tmp_path / "val", [*split["val"], *split["base"]], "other.png")  # ImageNet's own val directory has all classes
    fill(tmp_path / "test", split["novel"][1:])
    found = mini_imagenet(tmp_path)
    assert {role: part.classes for role, part in found.items()} == split
    assert len(found["base"]) == len(split["base"]), "each class is read from one directory"
    assert found["novel"].files[0] == f"train/{split['novel'][0]}/0.png"


@FEW
def test_mini_imagenet_in_one_directory_is_read_by_the_names_of_its_files(tmp_path):
    (tmp_path / "images").mkdir()
    for label in classes_of("mini-imagenet"):
        for number in ("00000005", "00000007"):
            Image.new("RGB", (2, 2)).save(tmp_path / "images" / f"{label}{number}.jpg")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    found = mini_imagenet(tmp_path)
    assert [len(part) for part in found.values()] == [128, 32, 40]
    assert np.bincount(found["val"].labels).tolist() == [2] * 16
    assert found["val"].image(0).size == (2, 2)


@FEW
@pytest.mark.parametrize(("opener", "name", "place"), [
    (tiered_imagenet, "tiered-imagenet", "tiered_imagenet/train"),
    (cub, "cub", "CUB_200_2011/images"),
    (cifar_fs, "cifar-fs", "cifar-fs/data"),
    (fc100, "fc100", "FC100"),
])  # fmt: skip
def test_other_benchmarks_of_directories_open_by_role(tmp_path, opener, name, place):
    fill(tmp_path / place, classes_of(name))
    assert {role: part.classes for role, part in opener(tmp_path).items()} == class_split(name).classes


def test_missing_classes_are_counted_and_named(tmp_path):
    fill(tmp_path / "cub", classes_of("cub")[:-7])
    missing = ", ".join(classes_of("cub")[-7:][:5])
    with pytest.raises(
        ValueError, match=rf"cub: {tmp_path}/cub has 193 of the 200 classes; missing: {missing} and 2 more"
    ):
        cub(tmp_path)


def test_a_benchmark_that_is_not_there_says_where_it_was_searched_for(tmp_path):
    with pytest.raises(
        ValueError, match=rf"mini-imagenet: looked for directories called n\d+ .* in {tmp_path} .*--data-dir"
    ):
        mini_imagenet(tmp_path)


def test_a_benchmark_of_another_size_is_used_with_a_warning(tmp_path):
    fill(tmp_path, classes_of("cub"))
    with pytest.warns(
        UserWarning, match=r"cub: .* has 200 images; the whole set has 11,788, so figures are not comparable"
    ):
        cub(tmp_path)


# --- CIFAR-100


def binary(root, each=1):
    """Write a binary CIFAR-100 with so many training and test images of each class, whose pixels are the class's number."""
    root.mkdir(parents=True)
    for file in ("train.bin", "test.bin"):
        records = [bytes([0, label]) + bytes([label]) * 3072 for label in range(100) for _ in range(each)]
        (root / file).write_bytes(b"".join(records))


@FEW
@pytest.mark.parametrize("place", ["cifar-100-binary", "cifar100/cifar-100-binary"])
def test_cifar100_is_read_from_its_binary_version(tmp_path, place):
    binary(tmp_path / place)
    images = cifar100(tmp_path)
    assert (len(images), images.classes[:2], images.classes[-1]) == (200, ["apple", "aquarium_fish"], "worm")
    assert images.image(199).getpixel((0, 0)) == (99, 99, 99)


@FEW
def test_cifar_fs_and_fc100_divide_the_binary_cifar100(tmp_path):
    binary(tmp_path / "cifar-100-binary")
    names = cifar100(tmp_path).classes
    for opener, name in ((cifar_fs, "cifar-fs"), (fc100, "fc100")):
        found = opener(tmp_path)
        assert {role: part.classes for role, part in found.items()} == class_split(name).classes
        part = found["novel"]
        assert part.name == f"{name}/novel"
        assert names[part.image(0).getpixel((0, 0))[0]] == part.classes[part.labels[0]]


def test_a_damaged_or_missing_cifar100_is_explained(tmp_path):
    with pytest.raises(ValueError, match=r"cifar100: looked for cifar-100-binary/train\.bin"):
        cifar100(tmp_path)
    binary(tmp_path / "cifar-100-binary")
    (tmp_path / "cifar-100-binary" / "test.bin").write_bytes(bytes(3075))
    with pytest.raises(ValueError, match=r"test\.bin has 3075 bytes, expected records of 3074"):
        cifar100(tmp_path)
    (tmp_path / "cifar-100-binary" / "test.bin").write_bytes(bytes([0, 100]) + bytes(3072))
    with pytest.raises(ValueError, match=r"label 100 in record 0, expected 0 to 99"):
        cifar100(tmp_path)


def test_benchmarks_are_in_the_registry_and_take_a_directory(tmp_path):
    assert set(SIZES) | {"omniglot-fscil", "cifar100"} <= set(registry.taking("data_dir"))
    with pytest.raises(ValueError, match="cub: looked for"):
        open_dataset("cub", tmp_path)


@pytest.mark.skipif(not os.environ.get("FEWSHOT_DATA"), reason="FEWSHOT_DATA is not set")
def test_the_incremental_omniglot_opens_by_role():
    found = open_dataset("omniglot-fscil")
    assert {role: (len(part), len(part.classes)) for role, part in found.items()} == {
        "base": (6000, 1200),
        "base_queries": (7200, 1200),
        "novel": (8460, 423),
    }
    assert sets_by_role("omniglot-fscil")["base_queries"].classes == found["base"].classes

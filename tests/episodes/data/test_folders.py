"""Folders of images: which files are found, in which order, which links are refused, and folders that are split already."""

import os
import sys
from pathlib import Path

import pytest

from episodes.data.datasets import open_dataset
from episodes.data.folders import folder
from fewshot_nam.io.image_io import UnreadableImage

DATA = os.environ.get("FEWSHOT_DATA")


def test_folder_finds_images_at_any_depth_sorted_and_without_hidden_ones(tree):
    images = folder(tree)
    assert images.name == "animals"
    assert images.classes == ["Zebu", "cat", "dog"]
    assert images.files == ["Zebu/z.tif", "cat/deep/er/a.bmp", "dog/a.png", "dog/b.JPG", "dog/images/c.jpeg"]
    assert images.labels.tolist() == [0, 1, 2, 2, 2]
    assert [images.image(i).getpixel((0, 0)) for i in (0, 1, 2)] == [50, 40, 20]
    assert images.describe(2) == str(tree / "dog" / "a.png")


def test_folder_follows_links_but_not_in_circles(tree, tmp_path, paint):
    (tree / "dog" / "images" / "up").symlink_to(tree / "dog")
    paint(tmp_path / "elsewhere" / "e.png")
    (tree / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    assert folder(tree).subset(["dog"]).files == ["dog/a.png", "dog/b.JPG", "dog/images/c.jpeg", "dog/more/e.png"]


@pytest.mark.parametrize("link", ["up", "dog/images/up", "aaa"], ids=["class", "inside a class", "first by name"])
@pytest.mark.parametrize("target", [".", "..", "cat"], ids=["root", "ancestor", "another class"])
def test_folder_refuses_links_that_lead_to_images_of_other_classes(tree, link, target):
    (tree / link).symlink_to(tree / target)
    leads = os.path.realpath(tree / target)
    with pytest.raises(ValueError, match=rf"animals: {tree / link} leads to {leads}, ") as caught:
        folder(tree)
    assert "\n" not in str(caught.value)


def test_folder_takes_classes_that_are_links_to_elsewhere_but_each_place_once(tree, tmp_path, paint):
    paint(tmp_path / "elsewhere" / "e.png")
    (tree / "emu").symlink_to(tmp_path / "elsewhere")
    assert folder(tree).classes == ["Zebu", "cat", "dog", "emu"]
    (tree / "rhea").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"rhea leads to {tmp_path / 'elsewhere'}, which is class emu"):
        folder(tree)


@pytest.mark.parametrize("kind", ["gone", "circle", "pipe"])
def test_folder_keeps_names_of_images_that_are_no_files_for_reading_to_name_them(tree, tmp_path, kind, paint):
    path = tree / "cat" / "odd.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "circle" else tmp_path / "nowhere.png")
    images = folder(tree).subset(["cat"])
    assert images.files == ["cat/deep/er/a.bmp", "cat/odd.png"]
    with pytest.raises(UnreadableImage, match=f"{path}: not an image|{path}: a link that leads nowhere") as caught:
        images.image(1)
    assert "\n" not in str(caught.value)
    first = images.fingerprint
    path.unlink()
    paint(path)
    assert folder(tree).subset(["cat"]).fingerprint != first


def test_folder_refuses_what_is_no_folder_of_classes(tmp_path, paint):
    with pytest.raises(ValueError, match="nowhere: no such directory"):
        folder(tmp_path / "nowhere")
    paint(tmp_path / "flat" / "a.png")
    with pytest.raises(ValueError, match="flat: no class directories"):
        folder(tmp_path / "flat")
    paint(tmp_path / "set" / "full" / "a.png")
    (tmp_path / "set" / "bare").mkdir()
    (tmp_path / "set" / "hollow").mkdir()
    with pytest.raises(ValueError, match=r"set: class directory .*set/bare \(and 1 more\) holds no images"):
        folder(tmp_path / "set")


@pytest.mark.parametrize("name", ["caf\udce9", "\x1b[31mred\n"])
def test_a_class_directory_that_no_bank_can_name_is_named_before_images_are_read(tmp_path, paint, name):
    """It was refused after the whole extraction, by the name of a file in the cache."""
    if sys.platform in ("win32", "darwin"):
        pytest.skip("no file has such a name there")
    paint(tmp_path / "set" / name / "a.png")
    with pytest.raises(
        ValueError, match=r"set: the class name .* is empty, or has control characters .*rename the dir"
    ):
        folder(tmp_path / "set")


def test_a_folder_that_is_split_already_opens_by_role(tmp_path, paint):
    for role in ("novel", "base"):
        paint(tmp_path / "set" / role / f"{role}-class" / "a.png")
    opened = open_dataset(f"folder:{tmp_path / 'set'}")
    assert {role: part.classes for role, part in opened.items()} == {"base": ["base-class"], "novel": ["novel-class"]}
    assert opened["base"].name == "set/base"


@pytest.mark.skipif(not DATA, reason="FEWSHOT_DATA is not set")
def test_real_tiny_imagenet_opens_by_role():
    opened = open_dataset(f"folder:{Path(DATA) / 'tiny-imagenet'}")
    assert {role: len(part.classes) for role, part in opened.items()} == {"base": 100, "val": 25, "novel": 35}
    assert opened["novel"].image(0).size == (64, 64)

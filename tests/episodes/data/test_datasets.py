"""Sets of images: digits, folders and Omniglot, with what is in them and what is refused."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from episodes.data.datasets import UnreadableImage, digits, folder, omniglot, open_dataset
from episodes.data.image_dataset import FileImages, open_image
from episodes.features.bank import FeatureBank, open_bank

DATA = os.environ.get("FEWSHOT_DATA")


def paint(path, shade=100, size=(6, 4), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, shade).save(path, **options)


@pytest.fixture
def tree(tmp_path):
    """Three classes, with images at two depths, hidden files, other files and a link."""
    root = tmp_path / "animals"
    paint(root / "dog" / "b.JPG", 10)
    paint(root / "dog" / "a.png", 20)
    paint(root / "dog" / "images" / "c.jpeg", 30)
    paint(root / "cat" / "deep" / "er" / "a.bmp", 40)
    paint(root / "Zebu" / "z.tif", 50)
    paint(root / "dog" / ".hidden.png")
    paint(root / "dog" / ".trash" / "old.png")
    paint(root / ".thumbnails" / "t.png")
    paint(root / "loose.png")
    (root / "dog" / "notes.txt").write_text("no image")
    return root


# --- digits


def test_digits_are_dark_ink_on_light_paper():
    from sklearn.datasets import load_digits

    images, source = digits(), load_digits()
    assert len(images) == 1797
    assert images.classes == [str(d) for d in range(10)]
    assert images.labels.tolist() == source.target.tolist()
    for index in (0, 700, 1796):
        image = images.image(index)
        assert (image.mode, image.size) == ("L", (14, 14))
        paper = np.asarray(image).copy()
        drawn = paper[3:-3, 3:-3].copy()
        paper[3:-3, 3:-3] = 255
        assert (paper == 255).all(), "three pixels of paper around the digit"
        assert drawn.tolist() == [[255 - round(v * 255 / 16) for v in row] for row in source.images[index]]


def test_subset_keeps_images_with_their_class_and_has_a_fingerprint_of_its_own():
    images = digits()
    part = images.subset(["7", "2"])
    rows = [i for i, label in enumerate(images.labels) if label in (7, 2)]
    assert part.classes == ["7", "2"]
    assert part.labels.tolist() == [0 if images.labels[i] == 7 else 1 for i in rows]
    assert np.array_equal(np.asarray(part.image(5)), np.asarray(images.image(rows[5])))
    assert digits().fingerprint == images.fingerprint
    assert len({images.fingerprint, part.fingerprint, images.subset(["2", "7"]).fingerprint}) == 3
    with pytest.raises(ValueError, match="digits: there is no class 'seven' among its 10"):
        images.subset(["seven"])


# --- folders


def test_folder_finds_images_at_any_depth_sorted_and_without_hidden_ones(tree):
    images = folder(tree)
    assert images.name == "animals"
    assert images.classes == ["Zebu", "cat", "dog"]
    assert images.files == ["Zebu/z.tif", "cat/deep/er/a.bmp", "dog/a.png", "dog/b.JPG", "dog/images/c.jpeg"]
    assert images.labels.tolist() == [0, 1, 2, 2, 2]
    assert [images.image(i).getpixel((0, 0)) for i in (0, 1, 2)] == [50, 40, 20]
    assert images.describe(2) == str(tree / "dog" / "a.png")


def test_folder_follows_links_but_not_in_circles(tree, tmp_path):
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


def test_folder_takes_classes_that_are_links_to_elsewhere_but_each_place_once(tree, tmp_path):
    paint(tmp_path / "elsewhere" / "e.png")
    (tree / "emu").symlink_to(tmp_path / "elsewhere")
    assert folder(tree).classes == ["Zebu", "cat", "dog", "emu"]
    (tree / "rhea").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"rhea leads to {tmp_path / 'elsewhere'}, which is class emu"):
        folder(tree)


@pytest.mark.parametrize("kind", ["gone", "circle", "pipe"])
def test_folder_keeps_names_of_images_that_are_no_files_for_reading_to_name_them(tree, tmp_path, kind):
    path = tree / "cat" / "odd.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "circle" else tmp_path / "nowhere.png")
    images = folder(tree).subset(["cat"])
    assert images.files == ["cat/deep/er/a.bmp", "cat/odd.png"]
    with pytest.raises(
        UnreadableImage, match=f"{path}: not an? (?:image|picture)|{path}: a link that leads nowhere"
    ) as caught:
        images.image(1)
    assert "\n" not in str(caught.value)
    first = images.fingerprint
    path.unlink()
    paint(path)
    assert folder(tree).subset(["cat"]).fingerprint != first


def test_folder_subset_keeps_files_with_their_class(tree):
    part = folder(tree).subset(["dog", "Zebu"])
    assert part.classes == ["dog", "Zebu"]
    assert list(zip(part.files, part.labels.tolist(), strict=True)) == [
        ("Zebu/z.tif", 1),
        ("dog/a.png", 0),
        ("dog/b.JPG", 0),
        ("dog/images/c.jpeg", 0),
    ]


@pytest.mark.parametrize("kind", ["fingerprint", "change_token"])
def test_folder_fingerprints_follow_names_and_classes_and_not_the_place(tree, tmp_path, kind):
    def value(images):
        return getattr(images, kind)

    first = value(folder(tree))
    assert value(folder(tree)) == first
    moved = tree.rename(tmp_path / "moved")
    assert value(folder(moved)) == first
    seen = {first, value(folder(moved).subset(["cat", "dog"])), value(folder(moved).subset(["dog", "cat"]))}
    (moved / "dog" / "a.png").rename(moved / "dog" / "aa.png")
    seen.add(value(folder(moved)))
    (moved / "cat").rename(moved / "cot")
    seen.add(value(folder(moved)))
    again = folder(moved)
    seen.add(value(FileImages(again.name, again.root, again.files, again.labels, ["x", "y", "z"])))
    assert len(seen) == 6


def test_a_copy_with_other_times_has_the_same_fingerprint_and_the_cache_notices_the_times(tree):
    before, path = folder(tree), tree / "dog" / "a.png"
    fingerprint, token = before.fingerprint, before.change_token
    os.utime(path, ns=(0, 1))
    assert folder(tree).fingerprint == fingerprint
    assert folder(tree).change_token != token


def test_images_of_one_name_and_size_but_other_content_have_another_fingerprint(tmp_path):
    for place, byte in (("one", b"a"), ("two", b"b")):
        (tmp_path / place / "x").mkdir(parents=True)
        (tmp_path / place / "x" / "0.ppm").write_bytes(1000 * byte)
    one, two = folder(tmp_path / "one", "set"), folder(tmp_path / "two", "set")
    assert one.fingerprint != two.fingerprint


def test_the_former_names_of_sets_and_of_their_method_warn_and_work(tree):
    from episodes.data import image_dataset

    with pytest.warns(DeprecationWarning, match="use episodes.data.image_dataset.FileImages"):
        assert image_dataset.FilePictures is FileImages
    for images in (folder(tree), digits()):
        with pytest.warns(DeprecationWarning, match="picture is deprecated .* use image"):
            assert images.picture(0).tobytes() == images.image(0).tobytes()


def test_a_set_of_the_users_own_with_the_former_method_is_still_opened():
    class Former:
        def picture(self, index):
            return f"image {index}"

    with pytest.warns(DeprecationWarning, match="Former.picture is deprecated .* use image"):
        assert open_image(Former(), 3) == "image 3"


def test_image_sets_can_be_sent_to_worker_processes(tree):
    images = folder(tree)
    sent = pickle.loads(pickle.dumps(images))
    assert sent.files == images.files
    assert sent.fingerprint == images.fingerprint


def test_folder_refuses_what_is_no_folder_of_classes(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such directory"):
        folder(tmp_path / "nowhere")
    paint(tmp_path / "flat" / "a.png")
    with pytest.raises(ValueError, match="flat: no class directories"):
        folder(tmp_path / "flat")
    paint(tmp_path / "set" / "full" / "a.png")
    (tmp_path / "set" / "bare").mkdir()
    (tmp_path / "set" / "hollow").mkdir()
    with pytest.raises(
        ValueError, match=r"set: class directory .*set/bare \(and 1 more\) holds no (?:images|pictures)"
    ):
        folder(tmp_path / "set")


# --- single images


def test_a_missing_file_is_no_unreadable_image(tree):
    images = folder(tree)
    (tree / "dog" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        images.image(2)


# --- Omniglot


def small_omniglot(root, background=7, evaluation=2):
    for half, count in (("images_background", background), ("images_evaluation", evaluation)):
        for a in range(count):
            for c in (1, 2):
                paint(root / half / f"Alphabet{a}" / f"character{c:02d}" / "0001_01.png")


@pytest.mark.parametrize("below", ["", "omniglot-py"])
def test_omniglot_roles_follow_the_alphabets(tmp_path, below):
    small_omniglot(tmp_path / below)
    with pytest.warns(
        UserWarning, match="has 14 background and 4 evaluation characters; the whole set has 964 and 659"
    ):
        roles = omniglot(tmp_path)
    assert list(roles) == ["base", "val", "novel"]
    assert roles["base"].classes == [f"Alphabet{a}/character{c:02d}" for a in (0, 1) for c in (1, 2)]
    assert roles["val"].classes == [f"Alphabet{a}/character{c:02d}" for a in (2, 3, 4, 5, 6) for c in (1, 2)]
    assert roles["novel"].name == "omniglot/novel"
    assert roles["novel"].describe(0) == str(tmp_path / below / "images_evaluation/Alphabet0/character01/0001_01.png")


def test_omniglot_that_is_not_there_says_where_it_was_sought_and_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "images_background").mkdir()  # one half is not enough
    with pytest.raises(ValueError, match=rf"looked for .* in {tmp_path} and {tmp_path}/omniglot-py.*--download"):
        omniglot(tmp_path)
    monkeypatch.delenv("FEWSHOT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="in data and data/omniglot-py"):
        omniglot()
    small_omniglot(tmp_path / "e")
    monkeypatch.setenv("FEWSHOT_DATA", str(tmp_path / "e"))
    with pytest.warns(UserWarning, match="characters"):
        assert len(open_dataset("omniglot")["novel"]) == 4


def test_omniglot_with_too_few_alphabets_is_refused(tmp_path):
    small_omniglot(tmp_path, background=5)
    with pytest.raises(ValueError, match="images_background has 5 alphabets, expected 30"):
        omniglot(tmp_path)


def test_omniglot_is_downloaded_only_when_asked_and_missing(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    calls = []

    def fetch(root, background, download):
        calls.append((root, background, download))
        small_omniglot(Path(root) / "omniglot-py")

    monkeypatch.setattr(datasets, "Omniglot", fetch)
    for _ in range(2):
        with pytest.warns(UserWarning, match="characters"):
            omniglot(tmp_path, download=True)
    assert calls == [(str(tmp_path), True, True), (str(tmp_path), False, True)]


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")

    def fail(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr(datasets, "Omniglot", fail)
    with pytest.raises(OSError, match=f"download into {tmp_path} failed: no route to host"):
        omniglot(tmp_path, download=True)
    monkeypatch.setattr(datasets, "Omniglot", lambda *_, **__: None)
    with pytest.raises(ValueError, match=r"incomplete: remove its \.zip files"):
        omniglot(tmp_path, download=True)


# --- specs


def test_specs_open_what_they_name(tree, tmp_path):
    assert list(open_dataset("digits")) == ["novel"]
    opened = open_dataset(f"folder:{tree}")
    assert list(opened) == ["novel"]
    assert opened["novel"].classes == ["Zebu", "cat", "dog"]
    bank = FeatureBank(torch.ones(2, 3), ["a", "b"])
    bank.save(tmp_path / "bank")
    assert open_bank(f"features:{tmp_path / 'bank'}").classes == open_bank(str(tmp_path / "bank")).classes == ["a", "b"]


def test_a_folder_that_is_split_already_opens_by_role(tmp_path):
    for role in ("novel", "base"):
        paint(tmp_path / "set" / role / f"{role}-class" / "a.png")
    opened = open_dataset(f"folder:{tmp_path / 'set'}")
    assert {role: part.classes for role, part in opened.items()} == {"base": ["base-class"], "novel": ["novel-class"]}
    assert opened["base"].name == "set/base"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "omniglott",
            "dataset 'omniglott': expected one of digits, omniglot, cifar10, .*folder:<path>, .*did you mean 'omniglot'",
        ),
        ("digits:8", "dataset 'digits:8': expected one of"),
        ("", "dataset '': expected one of"),
        ("folder:", "no path in it; write folder:<path>"),
        ("folder:nowhere", "folder nowhere: no such directory"),
        ("features:a.npz", "holds features, not images"),
    ],
)
def test_bad_specs_are_explained(spec, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(spec)


def test_open_bank_is_found_where_it_was():
    with pytest.warns(DeprecationWarning, match=r"use episodes\.features\.bank\.open_bank"):
        from episodes.data.datasets import open_bank as former
    assert former is open_bank


def test_a_features_spec_without_a_path_is_explained():
    with pytest.raises(ValueError, match="write features:<file>"):
        open_bank("features:")


# --- real data


@pytest.mark.skipif(not DATA, reason="FEWSHOT_DATA is not set")
def test_real_omniglot_has_its_published_size():
    roles = omniglot(DATA)
    assert {role: len(part.classes) for role, part in roles.items()}["novel"] == 659
    assert len(roles["base"].classes) + len(roles["val"].classes) == 964
    for part in roles.values():
        assert np.bincount(part.labels).tolist() == [20] * len(part.classes)
    assert sorted({name.split("/")[0] for name in roles["val"].classes}) == [
        "Ojibwe_(Canadian_Aboriginal_Syllabics)",
        "Sanskrit",
        "Syriac_(Estrangelo)",
        "Tagalog",
        "Tifinagh",
    ]
    assert roles["novel"].image(0).size == (105, 105)


@pytest.mark.skipif(not DATA, reason="FEWSHOT_DATA is not set")
def test_real_tiny_imagenet_opens_by_role():
    opened = open_dataset(f"folder:{Path(DATA) / 'tiny-imagenet'}")
    assert {role: len(part.classes) for role, part in opened.items()} == {"base": 100, "val": 25, "novel": 35}
    assert opened["novel"].image(0).size == (64, 64)

"""Published incremental sessions: which images are learned when, on small trees with the right names, and what is missing."""

import itertools
import os

import numpy as np
import pytest
from PIL import Image

from episodes.data import fscil
from episodes.data.incremental import open_sessions

SIZES = {"cub-fscil": (10, 10), "mini-imagenet-fscil": (8, 5)}  # sessions, and new classes in each


def paint(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 2)).save(path)


def check(sessions, base, new):
    """Check what holds for every benchmark: sizes, classes in order, five images of each new class, no image learned and tested."""
    assert [len(session.support.classes) for session in sessions] == [base, *[new] * (len(sessions) - 1)]
    assert sessions[0].queries.classes == sessions[0].support.classes
    for before, session in itertools.pairwise(sessions):
        assert session.queries.classes == before.queries.classes + session.support.classes
        assert np.bincount(session.support.labels).tolist() == [5] * new


def test_unknown_names_are_explained(tmp_path):
    with pytest.raises(ValueError, match=r"'cub-fcsil' is none of omniglot-fscil, .*did you mean 'cub-fscil'"):
        open_sessions("cub-fcsil", tmp_path)


@pytest.mark.parametrize("name", ["cub-fscil", "mini-imagenet-fscil"])
def test_lists_name_five_images_of_each_class_and_each_class_once(name):
    content = fscil._list(name)
    count, new = SIZES[name]
    assert [len(session) for session in content["sessions"]] == [new] * count
    names = [label for session in content["sessions"] for label in session]
    assert len(set(names)) == len(names)
    assert not set(names) & set(content.get("base", []))
    assert {len(images) for session in content["sessions"] for images in session.values()} == {5}


def test_the_list_of_cifar100_has_five_times_five_positions_a_session():
    sessions = fscil._list("cifar100-fscil")["sessions"]
    assert [len(set(session)) for session in sessions] == [25] * 8
    assert 0 <= min(map(min, sessions)) <= max(map(max, sessions)) < 50_000


@pytest.fixture
def birds(tmp_path):
    """CUB with the listed training images, one training image of each base class, and one test image of each class."""
    lists = fscil._list("cub-fscil")["sessions"]
    late = {label: names for session in lists for label, names in session.items()}
    images, split = [], []
    for number in range(1, 101):
        late.setdefault(f"{number:03d}.Bird", [f"Bird_{number}"])
    for label, names in late.items():
        for name in [*names, "test"]:
            images.append(f"{len(images) + 1} {label}/{name}.jpg")
            split.append(f"{len(images)} {int(name != 'test')}")
            paint(tmp_path / "CUB_200_2011" / "images" / label / f"{name}.jpg")
    (tmp_path / "CUB_200_2011" / "images.txt").write_text("\n".join(images) + "\n")
    (tmp_path / "CUB_200_2011" / "train_test_split.txt").write_text("\n".join(split) + "\n")
    return tmp_path


def test_cub_has_its_sessions(birds):
    sessions = open_sessions("cub-fscil", birds)
    check(sessions, 100, 10)
    assert len(sessions) == 11
    assert sessions[0].support.classes == [f"{number:03d}.Bird" for number in range(1, 101)]
    assert sessions[1].support.classes[0] == "101.White_Pelican"
    assert sessions[1].support.files[0].startswith("images/101.White_Pelican/White_Pelican_")
    assert all(file.endswith("/test.jpg") for file in sessions[10].queries.files)
    assert sessions[10].queries.image(199).size == (2, 2)


def test_cub_with_a_missing_training_image_or_file_names_it(birds):
    root = birds / "CUB_200_2011"
    text = (root / "images.txt").read_text()
    (root / "images.txt").write_text(text.replace("White_Pelican_0081_96148", "White_Pelican_renamed"))
    with pytest.raises(
        ValueError, match=r"101\.White_Pelican/White_Pelican_0081_96148 is not among the training images"
    ):
        open_sessions("cub-fscil", birds)
    (root / "train_test_split.txt").unlink()
    with pytest.raises(ValueError, match=r"cub-fscil: looked for train_test_split\.txt in"):
        open_sessions("cub-fscil", birds)


def test_mini_imagenet_has_its_sessions(tmp_path):
    content = fscil._list("mini-imagenet-fscil")
    train = [(label, f"{label}{i:08d}") for label in content["base"] for i in range(2)]
    train += [(label, name) for session in content["sessions"] for label, names in session.items() for name in names]
    test = [(label, f"{label}99999999") for label in dict(train)]
    (tmp_path / "miniimagenet" / "split").mkdir(parents=True)
    (tmp_path / "miniimagenet" / "images").mkdir()
    for part, pairs in (("train", train), ("test", test)):
        rows = "".join(f"{name}.jpg,{label}\n" for label, name in pairs)
        (tmp_path / "miniimagenet" / "split" / f"{part}.csv").write_text(f"filename,label\n{rows}")
    sessions = open_sessions("mini-imagenet-fscil", tmp_path)
    check(sessions, 60, 5)
    assert len(sessions) == 9
    assert len(sessions[0].support) == 120
    assert sessions[8].queries.files[-1] == f"images/{list(content['sessions'][7])[-1]}99999999.jpg"
    (tmp_path / "miniimagenet" / "split" / "test.csv").write_text("file,class\n")
    with pytest.raises(ValueError, match=r"test\.csv has the columns \['file', 'class'\], expected filename and label"):
        open_sessions("mini-imagenet-fscil", tmp_path)


def test_mini_imagenet_without_its_split_says_what_is_searched_for(tmp_path):
    with pytest.raises(ValueError, match=r"looked for images, split/train\.csv and split/test\.csv"):
        open_sessions("mini-imagenet-fscil", tmp_path)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A binary CIFAR-100 with six training images of each class, in order, and a list that fits it."""
    place = tmp_path / "cifar-100-binary"
    place.mkdir()
    for part, each in (("train", 6), ("test", 2)):
        records = [bytes([0, label]) + bytes([label]) * 3072 for label in range(100) for _ in range(each)]
        (place / f"{part}.bin").write_bytes(b"".join(records))
    lists = [[6 * label + i for label in range(first, first + 5) for i in range(1, 6)] for first in range(60, 100, 5)]
    monkeypatch.setattr(fscil, "_list", lambda name: {"sessions": lists})
    return tmp_path, lists


def test_cifar100_has_its_sessions(tiny):
    sessions = open_sessions("cifar100-fscil", tiny[0])
    check(sessions, 60, 5)
    assert len(sessions) == 9
    assert [len(session.queries) for session in sessions] == [2 * (60 + 5 * i) for i in range(9)]
    last = sessions[8]
    assert last.support.image(24).getpixel((0, 0)) == (99, 99, 99)
    assert last.queries.image(199).getpixel((0, 0)) == (99, 99, 99)
    assert last.support.classes[-1] == last.queries.classes[-1] == "worm"


@pytest.mark.parametrize("change", ["another class", "too many of one"])
def test_cifar100_in_another_order_is_refused(tiny, change):
    root, lists = tiny
    lists[2][0] = 0 if change == "another class" else 6 * 70
    if change == "too many of one":
        lists[2][5] = 6 * 70 + 5
    with pytest.raises(
        ValueError, match="session 3 are not 5 of each of the classes 70 to 74; the training images are in"
    ):
        open_sessions("cifar100-fscil", root)


@pytest.mark.skipif(not os.environ.get("FEWSHOT_DATA"), reason="FEWSHOT_DATA is not set")
def test_the_incremental_omniglot_has_its_published_numbers():
    sessions = open_sessions("omniglot-fscil")
    check(sessions, 1200, 47)
    assert [len(session.queries) for session in sessions] == [6 * (1200 + 47 * i) for i in range(10)]
    learned = {file for session in sessions for file in session.support.files}
    assert not learned & {file for session in sessions for file in session.queries.files}


def test_the_incremental_omniglot_names_a_character_with_missing_drawings(tmp_path):
    for half in ("images_background", "images_evaluation"):
        (tmp_path / half / "Gurmukhi").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"omniglot-fscil: .*character\d+ has 0 drawings, expected 20"):
        open_sessions("omniglot-fscil", tmp_path)

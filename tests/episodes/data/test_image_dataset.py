"""Sets of images in memory and in files: subsets, fingerprints, former names, and what worker processes get."""

import os
import pickle
import time

import numpy as np
import pytest

from episodes.data.digits import digits
from episodes.data.folders import folder
from episodes.data.image_dataset import FileImages, open_image


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


@pytest.mark.parametrize("kind", ["fingerprint", "change_token"])
def test_images_of_one_name_size_and_time_but_other_content_are_told_apart(tmp_path, kind):
    """Archives made anew from their sources set one time for all files."""
    for place, byte in (("one", b"a"), ("two", b"b")):
        (tmp_path / place / "x").mkdir(parents=True)
        (tmp_path / place / "x" / "0.ppm").write_bytes(1000 * byte)
        os.utime(tmp_path / place / "x" / "0.ppm", ns=(1, 1))
    one, two = folder(tmp_path / "one", "set"), folder(tmp_path / "two", "set")
    assert getattr(one, kind) != getattr(two, kind)


def test_a_file_that_is_replaced_and_keeps_its_time_is_noticed(tmp_path):
    (tmp_path / "x").mkdir()
    for number in range(300):  # more than those whose content is read
        (tmp_path / "x" / f"{number:03d}.ppm").write_bytes(1000 * b"a")
    before, last = folder(tmp_path).change_token, tmp_path / "x" / "299.ppm"
    found = last.stat()
    time.sleep(0.02)  # the clock of files has steps of up to 10 ms
    last.write_bytes(1000 * b"b")
    os.utime(last, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert last.stat().st_mtime_ns == found.st_mtime_ns
    assert folder(tmp_path).change_token != before


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


def test_a_missing_file_is_no_unreadable_image(tree):
    images = folder(tree)
    (tree / "dog" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        images.image(2)

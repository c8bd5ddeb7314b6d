"""Data sets of torchvision: all official parts together, by class; names, missing data and downloads."""

import json

import pytest
from PIL import Image

from episodes.data.datasets import open_dataset

datasets = pytest.importorskip("torchvision.datasets")


def paint(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), (shade, shade, shade)).save(path)


def small_dtd(root):
    for number, (part, name) in enumerate([("train", "a"), ("val", "b"), ("test", "c")]):
        for label in ("woven", "banded"):
            paint(root / "dtd/dtd/images" / label / f"{label}_{name}.png", number)
        labels = root / "dtd/dtd/labels" / f"{part}1.txt"
        labels.parent.mkdir(exist_ok=True)
        labels.write_text("".join(f"{label}/{label}_{name}.png\n" for label in ("woven", "banded")))


def test_the_official_parts_are_read_together_and_sorted_by_class(tmp_path):
    small_dtd(tmp_path)
    found = open_dataset("torchvision:dtd", tmp_path)["novel"]
    assert (found.name, found.classes, found.labels.tolist()) == (
        "torchvision/dtd",
        ["banded", "woven"],
        [0, 0, 0, 1, 1, 1],
    )
    assert found.files[:2] == ["dtd/dtd/images/banded/banded_a.png", "dtd/dtd/images/banded/banded_b.png"]
    assert found.image(5).getpixel((0, 0)) == (2, 2, 2)


def test_other_ways_in_which_torchvision_keeps_files_are_read_too(tmp_path):
    for label in ("River", "Forest"):
        paint(tmp_path / "eurosat/2750" / label / f"{label}_1.jpg")
    assert open_dataset("torchvision:eurosat", tmp_path)["novel"].classes == ["Forest", "River"]
    pets = tmp_path / "oxford-iiit-pet"
    for part, number in (("trainval", 1), ("test", 2)):
        for breed in ("great_dane", "Abyssinian"):
            paint(pets / "images" / f"{breed}_{number}.jpg")
        (pets / "annotations").mkdir(exist_ok=True)
        lines = f"Abyssinian_{number} 1 1 1\ngreat_dane_{number} 2 2 1\n"
        (pets / "annotations" / f"{part}.txt").write_text(lines)
    found = open_dataset("torchvision:pets", tmp_path)["novel"]
    assert (found.classes, len(found)) == (["Abyssinian", "Great Dane"], 4)


def test_food_and_aircraft_are_read_by_their_lists(tmp_path):
    food = tmp_path / "food-101"
    (food / "meta").mkdir(parents=True)
    for part, number in (("train", 1), ("test", 2)):
        for label in ("waffles", "apple_pie"):
            paint(food / "images" / label / f"{number}.jpg", number)
        lists = {label: [f"{label}/{number}"] for label in ("waffles", "apple_pie")}
        (food / "meta" / f"{part}.json").write_text(json.dumps(lists))
    found = open_dataset("torchvision:food101", tmp_path)["novel"]
    assert (found.classes, found.labels.tolist()) == (["apple_pie", "waffles"], [0, 0, 1, 1])

    aircraft = tmp_path / "fgvc-aircraft-2013b/data"
    for number in range(4):
        paint(aircraft / "images" / f"000{number}.jpg")
    (aircraft / "variants.txt").write_text("707-320\nA300B4\n")
    (aircraft / "images_variant_trainval.txt").write_text("0000 707-320\n0001 A300B4\n")
    (aircraft / "images_variant_test.txt").write_text("0002 707-320\n0003 A300B4\n")
    found = open_dataset("torchvision:aircraft", tmp_path)["novel"]
    assert (found.classes, found.labels.tolist()) == (["707-320", "A300B4"], [0, 0, 1, 1])


def test_flowers_are_read_by_their_labels(tmp_path, monkeypatch):
    savemat = pytest.importorskip("scipy.io").savemat
    flowers = tmp_path / "flowers-102"
    for number in range(1, 7):
        paint(flowers / "jpg" / f"image_{number:05d}.jpg")
    savemat(flowers / "imagelabels.mat", {"labels": [[1, 2, 1, 2, 1, 2]]})
    savemat(flowers / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]})
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)
    found = open_dataset("torchvision:flowers102", tmp_path)["novel"]
    assert (found.classes, found.labels.tolist()) == (sorted(datasets.Flowers102.classes[:2]), [0, 0, 0, 1, 1, 1])


def test_names_that_are_no_such_data_set_are_explained(tmp_path):
    with pytest.raises(ValueError, match=r"torchvision:pet: expected one of flowers102, .*did you mean 'pets'"):
        open_dataset("torchvision:pet", tmp_path)
    with pytest.raises(ValueError, match="no name in it; write torchvision:<name>"):
        open_dataset("torchvision:")


def test_cifar_is_read_from_its_binary_version_and_never_unpickled(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()  # what torchvision would read
    with pytest.raises(ValueError, match="unpack the published binary version there"):
        open_dataset("torchvision:cifar100", tmp_path)
    binary = tmp_path / "cifar-100-binary"
    binary.mkdir()
    for file in ("train.bin", "test.bin"):
        (binary / file).write_bytes(b"".join(bytes([0, label]) + bytes(3072) for label in range(100)))
    with pytest.warns(UserWarning, match="cifar100"):
        assert open_dataset("torchvision:cifar100", tmp_path)["novel"].classes[:2] == ["apple", "aquarium_fish"]


def test_missing_data_says_how_to_get_it_and_is_downloaded_only_on_request(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(datasets.DTD, "_download", lambda self: calls.append(self) or small_dtd(tmp_path))
    with pytest.raises(ValueError, match=rf"torchvision:dtd: torchvision does not find it in {tmp_path} .*--download"):
        open_dataset("torchvision:dtd", tmp_path)
    assert not calls
    assert len(open_dataset("torchvision:dtd", tmp_path, download=True)["novel"]) == 6
    assert calls


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr(datasets.DTD, "_download", fail)
    with pytest.raises(OSError, match=rf"torchvision:dtd: download into {tmp_path} failed: no route to host"):
        open_dataset("torchvision:dtd", tmp_path, download=True)

"""CIFAR-10: what is read from the binary version and from a directory a class, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from episodes.cli.main import main
from episodes.data.cifar import cifar10
from episodes.data.datasets import open_dataset

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_binary(path, labels, seed=0):
    """Write records with these labels, and return their pixels (n, 32, 32, 3)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"".join(
            bytes([label]) + image.transpose(2, 0, 1).tobytes() for label, image in zip(labels, pixels, strict=True)
        )
    )
    return pixels


def write_folder(root, ending="png", classes=CLASSES):
    for shade, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (shade, 0, 255)).save(root / name / f"00000.{ending}")


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_cifar10_reads_labels_colours_and_rows_of_the_binary_version(tmp_path, below):
    labels = [3, 9, 0, 3]
    pixels = write_binary(tmp_path / below / "cifar-10-batches-bin" / "test_batch.bin", labels)
    with pytest.warns(UserWarning, match="has 4 images, 0 to 2 a class; the whole set has 1000 a class"):
        images = cifar10(tmp_path)
    assert (images.name, images.classes, images.labels.tolist()) == ("cifar10", CLASSES, labels)
    for i, expected in enumerate(pixels):
        assert np.array_equal(np.asarray(images.image(i)), expected)


def test_cifar10_reads_only_the_test_images(tmp_path):
    write_binary(tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin", [1, 2])
    write_binary(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", [5], seed=1)
    with pytest.warns(UserWarning, match="1 images"):
        assert cifar10(tmp_path).labels.tolist() == [5]


def test_a_whole_batch_gives_no_warning(tmp_path, recwarn):
    write_binary(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", list(range(10)) * 1000)
    assert np.bincount(cifar10(tmp_path).labels).tolist() == [1000] * 10
    assert not recwarn.list


@pytest.mark.parametrize(("ending", "name"), [("png", "cifar10"), ("jpg", "cifar10 (JPEG copies)")])
def test_cifar10_reads_a_directory_a_class_and_says_where_it_is_lossy(tmp_path, ending, name):
    write_folder(tmp_path / "cifar10" / "test", ending)
    write_folder(tmp_path / "cifar10" / "train", ending)
    with pytest.warns(UserWarning, match="10 images"):
        opened = open_dataset("cifar10", tmp_path)
    assert list(opened) == ["novel"]
    images = opened["novel"]
    assert (images.name, images.classes, len(images)) == (name, CLASSES, 10)
    assert images.describe(3) == str(tmp_path / "cifar10" / "test" / "cat" / f"00000.{ending}")


def test_the_binary_version_goes_before_copies(tmp_path, monkeypatch):
    write_folder(tmp_path / "test", "jpg")
    write_binary(tmp_path / "cifar10" / "cifar-10-batches-bin" / "test_batch.bin", [7])
    monkeypatch.setenv("FEWSHOT_DATA", str(tmp_path))
    with pytest.warns(UserWarning, match="1 images"):
        assert cifar10().name == "cifar10"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], "has 9218 bytes, expected records of 3073: it is cut short"),
        (lambda content: b"", "has 0 bytes"),
        (lambda content: content[:3073] + b"\x0a" + content[3074:], "has label 10 in record 1, expected 0 to 9"),
    ],
    ids=["cut", "empty", "label"],
)
def test_a_damaged_batch_is_refused(tmp_path, change, message):
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    write_binary(path, [0, 1, 2])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        cifar10(tmp_path)
    assert str(path) in str(caught.value)


def test_other_classes_are_refused(tmp_path):
    write_folder(tmp_path / "test", classes=[*CLASSES[:-1], "van"])
    with pytest.raises(ValueError, match=r"test holds airplane, .*, van; expected airplane, .*, truck"):
        cifar10(tmp_path)


def test_cifar10_that_is_not_there_says_where_it_was_searched_for(tmp_path):
    with pytest.raises(
        ValueError, match=rf"looked for .* in {tmp_path} and {tmp_path}/cifar10.*not downloaded for you"
    ):
        cifar10(tmp_path)


def test_the_pickled_version_is_never_opened_and_that_is_said(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"c__builtin__\nexit\n(tR.")
    with pytest.raises(
        ValueError, match="Python version, which is pickled and never opened: unpack the binary version"
    ):
        cifar10(tmp_path)


def test_the_command_takes_base_classes_of_another_data_set(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for root, names in ((tmp_path / "cifar10" / "test", CLASSES), (tmp_path / "photos", [f"c{i}" for i in range(12)])):
        for name in names:
            (root / name).mkdir(parents=True)
            for i in range(3):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{i}.png")
    far = ["--dataset", "cifar10", "--data-dir", str(tmp_path), "--base", f"folder:{tmp_path / 'photos'}"]
    small = ["--queries", "2", "--episodes", "5", "--heads", "nam", "cosine", "plda", "--quiet"]
    with pytest.warns(UserWarning, match="30 images"):
        assert main([*far, *small, "--json", str(tmp_path / "out.json")]) == 0
    config = json.loads((tmp_path / "out.json").read_text())["config"]
    assert (config["bank"]["dataset"], config["base"]["dataset"]) == ("cifar10", "photos")
    assert "base=12" in config["heads"]["nam"]


def test_real_cifar10_has_its_published_size(data_dir):
    if not (data_dir / "cifar10").is_dir() and not (data_dir / "cifar-10-batches-bin").is_dir():
        pytest.skip("FEWSHOT_DATA names no folder with CIFAR-10")
    images = cifar10(data_dir)
    assert np.bincount(images.labels).tolist() == [1000] * 10
    assert images.image(0).size == (32, 32)

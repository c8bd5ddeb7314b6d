"""Text and image of the long-range arena from small folders of the official form."""

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot_nam.sequences import tasks

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
REVIEWS = {"pos": [b"Good.", b"Very g\xc3\xb6\xc3\xb6d!"], "neg": [b"Bad", b"Awful. " * 4]}


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for name, texts in REVIEWS.items():
            inside = tmp_path / "aclImdb" / part / name
            inside.mkdir(parents=True)
            for number, text in enumerate(texts):
                (inside / f"{number}_7.txt").write_bytes(text)
        for name in CLASSES:
            inside = tmp_path / "cifar10" / part / name
            inside.mkdir(parents=True)
            for number in range(2):
                Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(inside / f"{number}.png")
    return tmp_path


def read(task, batch):
    """Yield the tokens shown and the answer."""
    for inputs, targets, mask in zip(*batch, strict=True):
        present = inputs != task.pad
        assert mask.nonzero().tolist() == [[int(present.sum()) - 1]]
        assert inputs[mask].tolist() == [256]
        yield inputs[present][:-1].tolist(), task.vocabulary[targets[mask]]


def test_text_is_its_bytes_up_to_the_longest(folder):
    task = tasks.create("lra_text", data_dir=folder, longest=10)
    assert task.splits == {"train": ((3, 10), 4), "id": ((3, 10), 4)}
    expected = {(*text[:10], name) for name, texts in REVIEWS.items() for text in texts}
    words = {"positive": "pos", "negative": "neg"}
    batch = task.split("id")
    assert {(*shown, words[answer]) for shown, answer in read(task, batch)} == expected
    drawn = task.sample(60, torch.Generator().manual_seed(0))
    assert {(*shown, words[answer]) for shown, answer in read(task, drawn)} == expected
    short = task.sample(20, torch.Generator().manual_seed(0), (1, 5))
    assert {bytes(shown) for shown, _ in read(task, short)} == {b"Good.", b"Bad"}


def test_what_is_no_review_is_none_and_an_empty_one_is_named(folder):
    """A ``.DS_Store`` was a positive review, and an empty file an error that named none."""
    inside = folder / "aclImdb" / "train" / "pos"
    (inside / ".DS_Store").write_bytes(b"x")
    (inside / "old").mkdir()
    (folder / "cifar10" / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    assert tasks.create("lra_text", data_dir=folder).splits["train"].size == 4
    assert tasks.create("lra_image", data_dir=folder).splits["train"].size == 20
    (inside / "9_9.txt").touch()
    with pytest.raises(ValueError, match=r"aclImdb: .*9_9\.txt is empty"):
        tasks.create("lra_text", data_dir=folder)


@pytest.mark.parametrize("name", ["lra_text", "lra_image"])
def test_sequences_of_training_are_no_examples(folder, name):
    """What `--evaluate --lengths` measured were files of training: a model that had learned noise by heart was 100% right."""
    task = tasks.create(name, data_dir=folder)
    assert task.given
    with pytest.raises(ValueError, match=f"{name}: its sequences are given, and tests of one length are not"):
        task.examples(10, 5)


def test_images_are_their_grey_pixels(folder):
    task = tasks.create("lra_image", data_dir=folder)
    assert task.splits["train"] == ((1024, 1024), 20)
    expected = {}
    for name in CLASSES:
        for number in range(2):
            red, green, blue = np.asarray(Image.open(folder / "cifar10" / "test" / name / f"{number}.png")).T.astype(
                float
            )
            grey = (0.299 * red + 0.587 * green + 0.114 * blue).T
            expected.setdefault(name, []).append(grey.flatten())
    found = list(read(task, task.split("id")))
    assert len(found) == 20
    for shown, answer in found:
        assert min(np.abs(np.array(shown) - grey).max() for grey in expected[answer]) <= 1
    small = tasks.create("lra_image", data_dir=folder, size=4)
    assert small.sample(3, torch.Generator().manual_seed(0)).inputs.shape == (3, 17)


@pytest.mark.parametrize(("name", "options"), [("lra_text", {"longest": 10}), ("lra_image", {"size": 4})])
def test_tests_are_fixed_mixed_and_begin_alike(name, options, folder):
    task = tasks.create(name, data_dir=folder, **options)
    whole, again, part = task.split("id"), task.split("id"), task.split("id", 3)
    for a, b, c in zip(whole, again, part, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[:3], c)
    labels = whole.targets[whole.mask]
    assert not torch.equal(labels, labels.sort().values)
    assert tasks.accuracy(whole.inputs, whole) == (0, 0, 0)
    first, second = (task.sample(9, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first.inputs, second.inputs)


def test_what_is_held_out_is_not_trained_on(folder):
    whole = tasks.create("lra_image", data_dir=folder, size=4)
    task = tasks.create("lra_image", data_dir=folder, size=4, held_out=7)
    assert task.splits == {"train": ((16, 16), 13), "id": ((16, 16), 20), "held_out": ((16, 16), 7)}

    def images(batch):
        return [tuple(shown) for shown, _ in read(task, batch)]

    held_out, trained = images(task.split("held_out")), set(images(task.sample(300, torch.Generator().manual_seed(0))))
    assert (len(set(held_out)), len(trained), len(trained & set(held_out))) == (7, 13, 0)
    assert trained | set(held_out) == set(images(whole.sample(500, torch.Generator().manual_seed(0))))
    assert images(task.split("held_out", 3)) == held_out[:3]
    assert images(task.split("id")) == images(whole.split("id"))


@pytest.mark.parametrize("held_out", [-1, 4, 5])
def test_some_files_are_left_to_train_on(folder, held_out):
    with pytest.raises(
        ValueError, match=f"lra_text: held_out must leave some of the 4 files of training, got {held_out}"
    ):
        tasks.create("lra_text", data_dir=folder, held_out=held_out)


def test_what_is_not_there_is_named(folder, monkeypatch):
    task = tasks.create("lra_text", data_dir=folder)
    with pytest.raises(ValueError, match="no file of training has 500 to 600 tokens"):
        task.sample(1, torch.Generator(), (500, 600))
    with pytest.raises(ValueError, match="no test set 'ood_easy'"):
        task.split("ood_easy")
    with pytest.raises(ValueError, match="has 4 files, 5 are asked for"):
        task.split("id", 5)
    with pytest.raises(ValueError, match="longest must be at least 1"):
        tasks.create("lra_text", longest=0, data_dir=folder)
    with pytest.raises(ValueError, match="size must be at least 1"):
        tasks.create("lra_image", size=0, data_dir=folder)
    with pytest.raises(FileNotFoundError, match="there is no folder train/airplane"):
        tasks.create("lra_image", data_dir=folder / "aclImdb")
    monkeypatch.delenv("FEWSHOT_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="pass data_dir="):
        tasks.create("lra_text")

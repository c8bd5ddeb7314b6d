"""The next byte of film reviews: where sequences come from, and what is asked."""

import pytest
import torch

from fewshot_nam.sequences import tasks

END = 256
REVIEWS = {
    "train/neg/0.txt": "It was long and dull.",
    "train/pos/1.txt": "A delight, all of it!",
    "test/neg/0.txt": "No.",
    "test/pos/0.txt": "Naïve, but très bon.",
}


@pytest.fixture
def place(tmp_path):
    for name, text in REVIEWS.items():
        path = tmp_path / "aclImdb" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(text.encode())
    return tmp_path


def pieces(batch):
    """Return for every sequence the texts between its ends, as bytes; the first and the last may be cut."""
    found = []
    for row in torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1).tolist():
        texts = [[]]
        for token in row:
            if token == END:
                texts.append([])
            else:
                texts[-1].append(token)
        found.append([bytes(text) for text in texts])
    return found


def test_sequences_are_reviews_one_after_another_from_a_random_place_on(place):
    task = tasks.create("imdb_bytes", length=50, data_dir=place)
    known = [text.encode() for name, text in REVIEWS.items() if name.startswith("train")]
    firsts = set()
    for texts in pieces(task.sample(60, torch.Generator().manual_seed(0))):
        assert any(review.endswith(texts[0]) for review in known)
        assert all(text in known for text in texts[1:-1])
        assert any(review.startswith(texts[-1]) for review in known)
        firsts.add(texts[0])
    assert len(firsts) > 20  # from many places


def test_what_is_asked_is_the_next_byte_everywhere(place):
    task = tasks.create("imdb_bytes", length=30, data_dir=place)
    batch = task.split("id", 20)
    assert batch.inputs.shape == batch.targets.shape == (20, 30)
    assert bool(batch.mask.all())
    assert torch.equal(batch.targets[:, :-1], batch.inputs[:, 1:])
    assert int(batch.inputs.max()) <= END


def test_tests_are_of_test_reviews_and_always_the_same(place):
    task = tasks.create("imdb_bytes", length=30, data_dir=place)
    for batch, again in ((task.split("id", 20), task.split("id", 40)), (task.examples(30, 20), task.examples(30, 40))):
        assert torch.equal(batch.inputs, again.inputs[:20])
        whole = {text for texts in pieces(batch) for text in texts[1:-1]}
        assert whole == {text.encode() for name, text in REVIEWS.items() if name.startswith("test")}
    assert task.examples(70, 2).inputs.shape == (2, 70)
    with pytest.raises(ValueError, match="no test set 'ood_easy'"):
        task.split("ood_easy")
    with pytest.raises(ValueError, match="1001 are asked for"):
        task.split("id", 1001)


def test_text_becomes_tokens_and_back(place):
    task = tasks.create("imdb_bytes", data_dir=place)
    tokens = task.encode("très")
    assert tokens[0] == END
    assert task.decode(tokens[1:]) == "très"
    assert task.decode(torch.cat([tokens[1:], tokens])) == "très"  # up to the end of the review
    assert task.decode(tokens[1:4]) == "tr\N{REPLACEMENT CHARACTER}"
    with pytest.raises(ValueError, match="reverse is no text"):
        tasks.create("reverse").encode("abc")


def test_files_that_are_missing_are_named(place, monkeypatch):
    monkeypatch.delenv("FEWSHOT_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="FEWSHOT_DATA"):
        tasks.create("imdb_bytes")
    (place / "aclImdb/test/neg/0.txt").unlink()
    (place / "aclImdb/test/pos/0.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no files neg"):
        tasks.create("imdb_bytes", data_dir=place)
    with pytest.raises(ValueError, match="length must be at least 1"):
        tasks.create("imdb_bytes", length=0, data_dir=place)

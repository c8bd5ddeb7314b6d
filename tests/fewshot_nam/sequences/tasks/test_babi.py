"""bAbI from small files of the official form, and the official files where they are."""

import os
from pathlib import Path

import pytest
import torch

from fewshot_nam.sequences import tasks

TRAIN = """1 Mary went to the hall.
2 John got the milk.
3 Where is Mary? \thall\t1
4 Mary went to the garden.
5 Where is Mary?\tgarden\t4
1 The hall is west of the garden.
2 How do you go to the hall?\tw,s\t1
"""


@pytest.fixture
def folder(tmp_path):
    """Two tasks, the second with its training elsewhere."""
    for name, text in {
        "en-10k/qa1_one_train.txt": TRAIN,
        "en-10k/qa1_one_test.txt": TRAIN,
        "en-valid-10k/qa12_train.txt": "1 A b.\n2 C?\td\t1\n",
        "en/qa12_two_train.txt": "1 E f.\n2 C?\tG\t1\n",
        "en-10k/qa12_two_test.txt": "1 A b.\n2 C?\td\t1\n",
    }.items():
        path = tmp_path / "babi" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def read(task, batch):
    for inputs, targets, mask in zip(*batch, strict=True):
        yield (
            " ".join(task.vocabulary[token] for token in inputs if token != task.pad),
            *(task.vocabulary[token] for token in targets[mask]),
        )


def test_questions_see_the_sentences_before_them_and_no_other_question(folder):
    task = tasks.create("babi", questions=(1,), data_dir=folder)
    assert list(read(task, task.split("qa1"))) == [
        ("mary went to the hall . john got the milk . where is mary ?", "hall"),
        ("mary went to the hall . john got the milk . mary went to the garden . where is mary ?", "garden"),
        ("the hall is west of the garden . how do you go to the hall ?", "w,s"),
    ]
    assert task.splits == {"train": ((1, 3), 3), "qa1": ((1, 3), 3)}


def test_long_stories_are_cut_at_their_beginning(folder):
    task = tasks.create("babi", questions=(1,), sentences=1, data_dir=folder)
    assert [text.split(" . ")[0] for text, _ in read(task, task.split("qa1", 2))] == [
        "john got the milk",
        "mary went to the garden",
    ]


def test_tasks_are_drawn_equally_often_and_other_folders_take_the_place_of_missing_files(folder):
    task = tasks.create("babi", questions=(1, 12), data_dir=folder)
    found = [answer for _, answer in read(task, task.sample(200, torch.Generator().manual_seed(0)))]
    assert set(found) == {"hall", "garden", "w,s", "d", "g"}
    assert 60 < sum(answer in ("d", "g") for answer in found) < 140
    long = task.sample(20, torch.Generator().manual_seed(0), 3)
    assert {answer for _, answer in read(task, long)} == {"garden"}


def test_what_is_not_there_is_named(folder, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no en-10k/qa2_\*train\.txt"):
        tasks.create("babi", questions=(2,), data_dir=folder)
    with pytest.raises(ValueError, match="tasks from 1 to 20"):
        tasks.create("babi", questions=(21,), data_dir=folder)
    task = tasks.create("babi", questions=(1,), data_dir=folder)
    with pytest.raises(ValueError, match="no test set 'qa2': there are qa1"):
        task.split("qa2")
    with pytest.raises(ValueError, match="has 3 questions, 4 are asked for"):
        task.split("qa1", 4)
    with pytest.raises(ValueError, match="no story of training has 9 to 9 sentences"):
        task.sample(1, torch.Generator(), 9)
    (folder / "babi" / "en-10k" / "qa1_one_test.txt").unlink()
    with pytest.raises(FileNotFoundError, match="the test of task 1"):
        tasks.create("babi", questions=(1,), data_dir=folder)
    monkeypatch.delenv("FEWSHOT_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="data_dir="):
        tasks.create("babi")


def test_the_official_files_have_a_thousand_test_questions_each():
    place = Path(os.environ.get("FEWSHOT_DATA", ""))
    if not (os.environ.get("FEWSHOT_DATA") and (place / "babi").is_dir()):
        pytest.skip("FEWSHOT_DATA names no directory with babi")
    task = tasks.create("babi", questions=(1, 19))
    assert [task.splits[name].size for name in ("qa1", "qa19")] == [1000, 1000]
    assert task.splits["train"].size == 20_000
    text, answer = next(read(task, task.split("qa1", 1)))
    assert text.endswith("?")
    assert answer in text.split() or answer in task.vocabulary

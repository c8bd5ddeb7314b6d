"""Omniglot: roles by alphabet, where it is searched for, and its download."""

import os
from pathlib import Path

import numpy as np
import pytest

from episodes.data.datasets import open_dataset
from episodes.data.omniglot import omniglot

DATA = os.environ.get("FEWSHOT_DATA")


def small_omniglot(paint, root, background=7, evaluation=2):
    for half, count in (("images_background", background), ("images_evaluation", evaluation)):
        for a in range(count):
            for c in (1, 2):
                paint(root / half / f"Alphabet{a}" / f"character{c:02d}" / "0001_01.png")


@pytest.mark.parametrize("below", ["", "omniglot-py"])
def test_omniglot_roles_follow_the_alphabets(tmp_path, below, paint):
    small_omniglot(paint, tmp_path / below)
    with pytest.warns(
        UserWarning, match="has 14 background and 4 evaluation characters; the whole set has 964 and 659"
    ):
        roles = omniglot(tmp_path)
    assert list(roles) == ["base", "val", "novel"]
    assert roles["base"].classes == [f"Alphabet{a}/character{c:02d}" for a in (0, 1) for c in (1, 2)]
    assert roles["val"].classes == [f"Alphabet{a}/character{c:02d}" for a in (2, 3, 4, 5, 6) for c in (1, 2)]
    assert roles["novel"].name == "omniglot/novel"
    assert roles["novel"].describe(0) == str(tmp_path / below / "images_evaluation/Alphabet0/character01/0001_01.png")


def test_omniglot_that_is_not_there_says_where_it_was_searched_for_and_how_to_get_it(tmp_path, monkeypatch, paint):
    (tmp_path / "images_background").mkdir()  # one half is not enough
    with pytest.raises(ValueError, match=rf"looked for .* in {tmp_path} and {tmp_path}/omniglot-py.*--download"):
        omniglot(tmp_path)
    monkeypatch.delenv("FEWSHOT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="in data and data/omniglot-py"):
        omniglot()
    small_omniglot(paint, tmp_path / "e")
    monkeypatch.setenv("FEWSHOT_DATA", str(tmp_path / "e"))
    with pytest.warns(UserWarning, match="characters"):
        assert len(open_dataset("omniglot")["novel"]) == 4


def test_omniglot_with_too_few_alphabets_is_refused(tmp_path, paint):
    small_omniglot(paint, tmp_path, background=5)
    with pytest.raises(ValueError, match="images_background has 5 alphabets, expected 30"):
        omniglot(tmp_path)


def test_omniglot_is_downloaded_only_when_asked_and_missing(tmp_path, monkeypatch, paint):
    datasets = pytest.importorskip("torchvision.datasets")
    calls = []

    def fetch(root, background, download):
        calls.append((root, background, download))
        small_omniglot(paint, Path(root) / "omniglot-py")

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

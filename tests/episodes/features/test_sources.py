"""From words to banks by role: which part of which data set each role gets, and what is refused before any work."""

import numpy as np
import pytest
import torch
from PIL import Image

import backbones
from episodes.data.image_dataset import ArrayImages
from episodes.features.bank import FeatureBank
from episodes.features.extraction import extract
from episodes.features.sources import banks_by_role, sets_by_role

SPLIT = {"base": ["0", "1"], "val": ["2", "3", "4"], "novel": ["5", "6"]}


@pytest.fixture
def saved(tmp_path):
    FeatureBank(torch.ones(4, 64), ["a", "a", "b", "b"]).save(tmp_path / "bank")
    return f"features:{tmp_path / 'bank'}"


@pytest.fixture
def photos(tmp_path):
    for role, classes in {"base": "kl", "val": "mn", "novel": "op"}.items():
        for name in classes:
            for i in range(2):
                path = tmp_path / "photos" / role / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (6, 4), 40 * i).save(path)
    return f"folder:{tmp_path / 'photos'}"


def classes(sets):
    return {role: part.classes for role, part in sets.items()}


def test_a_split_data_set_gives_novel_base_and_validation_classes_but_no_base_queries(photos):
    assert classes(sets_by_role("digits")) == {"novel": [str(i) for i in range(10)]}
    by_split = sets_by_role("digits", split=SPLIT)
    assert classes(by_split) == {"novel": SPLIT["novel"], "base": SPLIT["base"], "validation": SPLIT["val"]}
    assert classes(sets_by_role(photos)) == {"novel": ["o", "p"], "base": ["k", "l"], "validation": ["m", "n"]}


def test_a_data_set_named_for_a_role_gives_its_part_of_that_role_and_wins_over_the_main_one(photos, saved):
    named = sets_by_role("digits", split=SPLIT, base=photos, base_queries=photos, validation=photos)
    assert classes(named) == {
        "novel": SPLIT["novel"],
        "base": ["k", "l"],
        "base_queries": ["k", "l"],
        "validation": ["m", "n"],
    }
    assert classes(sets_by_role("digits", base=saved, roles=["base"])) == {"base": ["a", "b"]}


def test_sets_and_banks_of_the_users_own_go_where_names_go():
    own = ArrayImages("own", np.zeros((3, 8, 8), dtype=np.uint8), np.arange(3), ["x", "y", "z"])
    bank = FeatureBank(torch.eye(3), ["p", "q", "r"])
    assert classes(sets_by_role(own, base=bank, split="0/0/2")) == {"novel": ["x", "y"], "base": ["p", "q", "r"]}
    assert classes(sets_by_role(bank, split={"base": ["p"], "val": [], "novel": ["q"]})) == {
        "novel": ["q"],
        "base": ["p"],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "5/5/0"}, "split 5/5/0 leaves no novel classes"),
        ({"roles": ["novel", "val"]}, "unknown role 'val', expected some of novel, base"),
        ({"base": "omniglott"}, "did you mean 'omniglot'"),
    ],
)
def test_wrong_words_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sets_by_role("digits", **options)


def test_a_second_split_is_refused(photos):
    with pytest.raises(ValueError, match=r"split 1/0/1: folder:.* is split already, into base, val, novel"):
        sets_by_role(photos, split="1/0/1")


def test_banks_are_those_of_extract_with_what_the_backbone_knows_and_notes(photos, tmp_path):
    sets = sets_by_role(photos, roles=["novel"])
    sources = banks_by_role(sets, cache_dir=tmp_path / "cache")
    conv4 = backbones.create("conv4")
    assert torch.equal(sources.banks["novel"].features, extract(conv4, sets["novel"], cache_dir=None).features)
    assert sources.images == sets
    assert torch.equal(sources.base_statistics.prototypes, conv4.base_statistics.prototypes)
    assert sources.notes == [
        f"base classes: the {len(conv4.base_statistics.prototypes)} that the backbone was trained on"
    ]
    with_base = banks_by_role(sets_by_role(photos), conv4, cache_dir=tmp_path / "cache")
    assert list(with_base.banks) == ["novel", "base", "validation"]
    assert with_base.base_statistics is None
    assert with_base.notes == []


def test_images_that_were_left_out_are_listed_in_the_notes(photos, tmp_path):
    broken = tmp_path / "photos" / "novel" / "o" / "0.png"
    broken.write_bytes(b"no image")
    sources = banks_by_role(photos, skip_unreadable=True, cache_dir=None)
    assert sources.notes[0] == f"1 unreadable images of photos/novel are left out: {broken}"


def test_features_that_are_given_need_no_backbone_and_refuse_its_options(saved, monkeypatch):
    monkeypatch.setattr(backbones, "create", lambda *_, **__: pytest.fail("a backbone was made"))
    sources = banks_by_role(saved)
    assert (len(sources.banks["novel"]), sources.images, sources.notes) == (4, {}, [])
    assert sources.base_statistics is None
    with pytest.raises(ValueError, match="weights: the features are given, so no backbone is used"):
        banks_by_role(saved, weights="random")
    with pytest.raises(ValueError, match="transform options: the features are given"):
        banks_by_role(saved, transform_options={"input_size": 32})


def test_a_ready_backbone_refuses_options_that_would_be_ignored(photos):
    with pytest.raises(ValueError, match="model options: the backbone is given already"):
        banks_by_role(photos, backbones.create("conv4"), model_options={"pad_type": "same"})

"""Data sets by name: what each word opens, and words that name nothing."""

import pytest
import torch

from episodes.data.datasets import open_dataset
from episodes.features.bank import FeatureBank, open_bank


def test_specs_open_what_they_name(tree, tmp_path):
    assert list(open_dataset("digits")) == ["novel"]
    opened = open_dataset(f"folder:{tree}")
    assert list(opened) == ["novel"]
    assert opened["novel"].classes == ["Zebu", "cat", "dog"]
    bank = FeatureBank(torch.ones(2, 3), ["a", "b"])
    bank.save(tmp_path / "bank")
    assert open_bank(f"features:{tmp_path / 'bank'}").classes == open_bank(str(tmp_path / "bank")).classes == ["a", "b"]


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

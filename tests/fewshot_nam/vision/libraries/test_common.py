import sys
import urllib.error

import pytest

import backbones
from fewshot_nam.vision.libraries.common import LibraryNotInstalled, build, three


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_missing_library_says_how_to_install_it(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        LibraryNotInstalled, match=rf'{name} is not installed.*pip install "fewshot-nam\[vision\]"'
    ) as caught:
        backbones.create(f"{name}/resnet18")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, ValueError)


def _offline(**options):
    raise urllib.error.URLError("no route\nto host")


def _broken(**options):
    raise RuntimeError("sizes differ\nand more")


def test_failed_download_says_how_to_do_without():
    with pytest.raises(
        ValueError,
        match=r"backbone x: its weights could not be downloaded \(URLError\).*pretrained= of backbones.create",
    ):
        build("x", _offline, {}, downloads=True)


def test_other_failures_are_not_called_downloads():
    with pytest.raises(ValueError, match=r"backbone x cannot be built with model options {'width': 3}: sizes differ$"):
        build("x", _broken, {"width": 3}, downloads=True)


@pytest.mark.parametrize(("value", "expected"), [(0.5, (0.5, 0.5, 0.5)), ([1, 2, 3], (1.0, 2.0, 3.0))])
def test_one_number_stands_for_three(value, expected):
    assert three("x", "mean", value) == expected


@pytest.mark.parametrize("value", ["0.5", [0.5], [0.1, 0.2, "c"], float("nan"), None])
def test_three_refuses_what_is_not_numbers(value):
    with pytest.raises(ValueError, match="backbone x: transform option mean is a number or a list of three, got"):
        three("x", "mean", value)


@pytest.mark.parametrize("value", [0, -1.0, [0.5, 0.5, 0]])
def test_standard_deviation_is_positive(value):
    with pytest.raises(ValueError, match="transform option std is a positive number or a list of three"):
        three("x", "std", value)

"""The registry of data sets: one registration, and the help, the errors and open_dataset all know the new name."""

import subprocess
import sys

import numpy as np
import pytest

from episodes.cli.options import parser
from episodes.data import registry
from episodes.data.datasets import open_dataset
from episodes.data.image_dataset import ArrayImages


def blank(name, classes=2):
    return ArrayImages(name, np.zeros((classes, 4, 4), dtype=np.uint8), np.arange(classes), list("abcdef"[:classes]))


@pytest.fixture
def registered():
    made = []

    def register(name, *arguments, **options):
        made.append(name)
        return registry.register(name, *arguments, **options)

    yield register
    for name in made:
        registry.unregister(name)


def test_a_registered_data_set_is_opened_listed_in_the_help_and_named_in_errors(registered):
    registered("leaves", lambda: blank("leaves"), "100% pressed leaves", options=())
    assert open_dataset("leaves")["novel"].classes == ["a", "b"]
    assert "leaves (100% pressed leaves)" in " ".join(parser().format_help().split())
    with pytest.raises(ValueError, match=r"expected one of .*leaves.*did you mean 'leaves'"):
        open_dataset("leavess")


def test_an_opener_gets_the_argument_and_only_the_options_it_takes(registered, tmp_path):
    calls = []

    def opener(*arguments, **options):
        calls.append((arguments, options))
        return {"base": blank("x"), "novel": blank("y")}

    registered("herbarium", opener, "dried plants", argument="country", options=("data_dir",))
    assert list(open_dataset("herbarium:peru", tmp_path, download=True)) == ["base", "novel"]
    assert calls == [(("peru",), {"data_dir": tmp_path})]
    assert "herbarium:COUNTRY (dried plants)" in registry.help_line()
    assert "herbarium" in registry.taking("data_dir")
    assert "herbarium" not in registry.taking("download")
    with pytest.raises(ValueError, match="no country in it; write herbarium:<country>"):
        open_dataset("herbarium:")
    with pytest.raises(ValueError, match="did you mean 'herbarium:<country>'"):
        open_dataset("herbarium")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", (), "'digits' is registered already"),
        ("", (), "at least one character"),
        ("a:b", (), "no colon"),
        ("new", ("path",), "unknown option 'path', expected some of data_dir, download"),
    ],
)
def test_names_that_are_taken_or_malformed_are_refused(name, options, message):
    before = registry.names()
    with pytest.raises(ValueError, match=message):
        registry.register(name, "a:b", "", options=options)
    assert registry.names() == before


def test_every_opener_can_be_imported():
    import importlib

    for entry in registry.entries():
        module, _, function = entry.opener.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), entry


def test_the_registry_imports_nothing_heavy():
    code = "import sys, episodes.data.registry; print(*[m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    assert not subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

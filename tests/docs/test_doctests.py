"""Every example in a docstring prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

import backbones
import episodes
import fewshot_nam

MODULES = sorted(
    module.name
    for package in (backbones, episodes, fewshot_nam)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_print_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert not result.failed

"""The short form of the fuzzer, and that it finds what is broken."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "scripts" / "fuzz.py"


@pytest.fixture
def fuzzer(monkeypatch):
    spec = importlib.util.spec_from_file_location("fuzz_script", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("target", "examples"), [("images", 150), ("memories", 40), ("banks", 100), ("yaml", 150), ("commands", 15)]
)
def test_no_hostile_input_breaks_a_reader_or_a_command(fuzzer, target, examples, tmp_path):
    assert fuzzer.fuzz(target, examples, 0, tmp_path) == []


def test_what_breaks_is_found(fuzzer, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzer, "load_yaml", lambda text, source: {}[text])
    (found, *_) = fuzzer.fuzz("yaml", 20, 0, tmp_path)
    assert "KeyError" in found
    assert "check_yaml" in found

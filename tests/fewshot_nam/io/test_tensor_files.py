"""Tensors are written whole or not at all, and by one function, whose errors are those of the system."""

import ast
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fewshot_nam.io.tensor_files import write_tensors

ROOT = Path(__file__).resolve().parents[3]


def test_tensors_of_any_order_in_memory_are_written(tmp_path):
    values = torch.arange(6.0).reshape(2, 3).requires_grad_()
    write_tensors(tmp_path / "a.safetensors", {"turned": values.T, "whole": values}, {"about": "six"})
    found = load_file(tmp_path / "a.safetensors")
    assert torch.equal(found["turned"], values.T)
    assert torch.equal(found["whole"], values)


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_the_old_one(tmp_path):
    """Trainings and evaluations ended with a traceback."""
    resource = pytest.importorskip("resource")
    path, limits = tmp_path / "a.safetensors", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a\.safetensors.* (cannot be written|too large)"):
            write_tensors(path, {"values": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_written_in_part_is_not_there(tmp_path, monkeypatch):
    def half(tensors, path, metadata):
        Path(path).write_text("half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", half)
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    with pytest.raises(OSError, match=r"a\.safetensors: cannot be written .*: the old file is as it was$"):
        write_tensors(path, {"values": torch.zeros(3)})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=r"cannot be written \(I/O error: No space left on device\)$"):
        write_tensors(tmp_path / "new.safetensors", {"values": torch.zeros(3)})  # nothing was there


def test_nothing_else_writes_tensors():
    for folder in ("fewshot_nam", "episodes", "backbones"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            named = {one.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for one in node.names}
            assert "save_file" not in named or path.name == "tensor_files.py", path

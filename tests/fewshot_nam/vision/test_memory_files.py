"""Models by the file of their memory: what is noted about weights, and one change at a time."""

import numpy as np
import pytest
from filelock import FileLock

from fewshot_nam.vision import memory_files
from fewshot_nam.vision.memory_files import exclusive, new_model, open_model, weights_source
from fewshot_nam.vision.saving import save_head

BLACK = np.zeros((28, 28), np.uint8)


def test_a_model_is_opened_with_the_weights_that_its_file_notes(tmp_path):
    path = tmp_path / "memory.safetensors"
    model, notes = new_model("conv4", path, "random", head="cosine")
    assert notes == {"weights": "random"}
    save_head(path, model.learn(BLACK, "black").head, model.backbone, notes)
    opened, noted = open_model(path)
    assert noted == notes
    assert opened.classes == ["black"]
    assert opened(BLACK).equal(model(BLACK))


def test_weights_are_noted_relative_to_the_memory(tmp_path):
    assert weights_source(str(tmp_path / "w" / "net.pt"), tmp_path / "m" / "memory.safetensors") == "../w/net.pt"
    assert weights_source(None, "memory.safetensors") is None


def test_weights_that_are_gone_are_named(tmp_path):
    path = tmp_path / "memory.safetensors"
    model, _ = new_model("conv4", path)
    save_head(path, model.learn(BLACK, "black").head, model.backbone, {"weights": "gone.pt"})
    with pytest.raises(ValueError, match=r"gone\.pt, which does not exist: pass --weights FILE"):
        open_model(path)


def test_a_memory_that_stays_locked_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_files, "_LOCK_SECONDS", 0.05)
    path = tmp_path / "memory.safetensors"
    with (
        FileLock(tmp_path / ".memory.safetensors.lock"),
        pytest.raises(OSError, match="another command is changing it"),
        exclusive(path),
    ):
        pass

"""Models by the file of their memory: what is noted about weights, and one change at a time."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from filelock import FileLock

from fewshot_nam.vision import memory_lock
from fewshot_nam.vision.memory_files import new_model, open_model
from fewshot_nam.vision.memory_lock import exclusive
from fewshot_nam.vision.noted_weights import weights_source
from fewshot_nam.vision.saving import read_head, save_head

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


def test_what_is_loaded_and_saved_again_keeps_the_notes_of_its_file(tmp_path, monkeypatch):
    """Images of unknowns that the page was given were lost, and where the weights are: no command opened the memory any more."""
    path, elsewhere = tmp_path / "memory.safetensors", tmp_path / "deep" / "er" / "copy.safetensors"
    model, _ = new_model("conv4", path)
    elsewhere.parent.mkdir(parents=True)
    for weights, moved in (("published", "published"), ("w/net.pt", "../../w/net.pt")):
        notes = {"weights": weights, "unknowns": "AAAA", "writes": 3}
        save_head(path, model.learn(BLACK, "black").head, model.backbone, notes)
        again, _ = new_model("conv4", path)
        again.load(path).learn(BLACK + 255, "white").save(path)
        about, head, _ = read_head(path)
        assert (about["notes"], head.classes) == (notes, ["black", "white"])
        again.save(elsewhere)
        assert read_head(elsewhere)[0]["notes"] == notes | {"weights": moved}
        model.forget("black")
    again.load(elsewhere).save(path)
    assert read_head(path)[0]["notes"]["weights"] == "w/net.pt"
    monkeypatch.chdir(tmp_path)
    again.load("memory.safetensors")
    monkeypatch.chdir(elsewhere.parent)
    for one in (again, again.snapshot()):
        one.save(path)
        assert read_head(path)[0]["notes"] == notes


def test_a_save_does_not_undo_what_another_program_has_learned_since(tmp_path):
    """A program that loaded, learned and saved beside a server undid what the server had acknowledged meanwhile."""
    path, link = tmp_path / "memory.safetensors", tmp_path / "link"
    first, _ = new_model("conv4", path)
    first.learn(BLACK, "black").save(path)
    link.symlink_to(path)
    second, _ = new_model("conv4", path)
    second.load(link).learn(BLACK + 255, "white").save(path)
    for one in (first, first.snapshot()):
        with pytest.raises(ValueError, match="was changed elsewhere since it was loaded or saved here"):
            one.save(path)
    assert read_head(path)[1].classes == ["black", "white"]
    first.save(tmp_path / "elsewhere")
    first.load(path).learn(BLACK + 99, "grey").save(link)  # a link is followed to its file
    first.save(path)
    path.unlink()  # nothing of anybody is there any more
    second.save(path)
    other, _ = new_model("conv4", path)
    other.learn(BLACK, "new").save(path)  # it has never looked at the file, which is replaced
    assert read_head(path)[1].classes == ["new"]
    with exclusive(path):
        waiting = threading.Thread(target=other.learn(BLACK + 50, "later").save, args=(path,))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(30)
    assert read_head(path)[1].classes == ["new", "later"]


def test_weights_that_no_path_can_name_are_damage(tmp_path):
    path = tmp_path / "memory.safetensors"
    model, _ = new_model("conv4", path)
    save_head(path, model.learn(BLACK, "black").head, model.backbone, {"weights": "a\0b"})
    with pytest.raises(ValueError, match="is damaged"):
        open_model(path)


def test_weights_that_are_gone_are_named(tmp_path):
    path = tmp_path / "memory.safetensors"
    model, _ = new_model("conv4", path)
    save_head(path, model.learn(BLACK, "black").head, model.backbone, {"weights": "gone.pt"})
    with pytest.raises(ValueError, match=r"gone\.pt, which does not exist: pass --weights FILE"):
        open_model(path)


def test_a_memory_that_stays_locked_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_lock, "_LOCK_SECONDS", 0.05)
    path = tmp_path / "memory.safetensors"
    with (
        FileLock(tmp_path / ".memory.safetensors.lock"),
        pytest.raises(OSError, match="another command is changing it"),
        exclusive(path),
    ):
        pass


def test_the_lock_of_a_memory_goes_when_it_is_released(tmp_path):
    with exclusive(tmp_path / "memory"):
        assert [path.name for path in tmp_path.iterdir()] == [".memory.lock"]
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time_holds_a_lock_that_comes_and_goes(tmp_path):
    """Each adds 1 to a number 60 times, by reading and writing it: one that was let in beside another would lose some."""
    number = tmp_path / "number"
    number.write_text("0")
    code = (
        "import sys, pathlib; from fewshot_nam.vision.memory_lock import exclusive\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "for _ in range(60):\n"
        "    with exclusive(path):\n"
        "        path.write_text(str(int(path.read_text()) + 1))\n"
    )
    all_of_them = [subprocess.Popen([sys.executable, "-c", code, str(number)]) for _ in range(3)]
    assert [process.wait() for process in all_of_them] == [0, 0, 0]
    assert number.read_text() == "180"


def test_a_link_and_its_file_have_one_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_lock, "_LOCK_SECONDS", 0.05)
    (tmp_path / "memory").touch()
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(tmp_path / "memory")
    with exclusive(tmp_path / "memory"), pytest.raises(OSError, match="locked"), exclusive(link):
        pass
    assert os.listdir(tmp_path / "elsewhere") == ["link"]


@pytest.mark.skipif(sys.platform == "win32", reason="there no process can be killed in this way")
@pytest.mark.parametrize("when", ["os.fsync", "os.replace"])
def test_what_a_kill_in_the_middle_of_a_save_leaves_is_gone_when_the_memory_is_opened(tmp_path, when):
    path = tmp_path / "memory.safetensors"
    model, notes = new_model("conv4", path, "random")
    save_head(path, model.learn(BLACK, "black").head, model.backbone, notes)
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from fewshot_nam.vision.memory_lock import exclusive\n"
        "from fewshot_nam.vision.saving import read_head, write_head\n"
        "about, head, probed = read_head(sys.argv[1])\n"
        "def killed(*_):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{when} = killed\n"
        "with exclusive(Path(sys.argv[1])):\n"
        "    head.forget(['black'])\n"
        "    write_head(sys.argv[1], head, about, probed)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3  # the memory, its lock, and what was being written
    assert open_model(path)[0].classes == ["black"]
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_were_named_are_named_in_the_error(tmp_path):
    path = tmp_path / "memory.safetensors"
    model, notes = new_model("conv4", path)
    save_head(path, model.learn(BLACK, "black").head, model.backbone, notes)
    with pytest.raises(ValueError, match="--weights nowhere: there is no such file"):
        open_model(path, "nowhere")

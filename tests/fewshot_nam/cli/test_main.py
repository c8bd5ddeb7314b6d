"""The command ``fewshot-nam``: a walk through all of it on images made on the spot, and what it refuses."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from backbones.bundled import NETWORKS
from fewshot_nam import NAMModel, attach
from fewshot_nam.cli import main as command
from fewshot_nam.cli.main import main
from fewshot_nam.cli.options import head_names
from fewshot_nam.heads import KeptClassifierHead
from fewshot_nam.heads.registry import available, spec
from fewshot_nam.io.one_line import one_line
from fewshot_nam.vision.libraries.registry import LIBRARIES
from fewshot_nam.vision.saving import read_head, save_head, write_head

SMALL = ["--backbone", "timm/test_resnet", "--weights", "random", "--transform-option", "input_size=32"]


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Directories of digits: 0, 1 and 2 to learn and, other images, to test; all others as unknowns, by class too."""
    root = tmp_path_factory.mktemp("pictures")
    digits = load_digits()
    for label in range(10):
        for number, image in enumerate(digits.images[digits.target == label][:9]):
            part = "unknowns" if label > 2 else "photos" if number < 4 else "others"
            where = root / part / f"digit {label}"
            where.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.uint8(255 - image * 15)).resize((40, 40)).save(where / f"{number}.png")
    return root


@pytest.fixture
def run(capsys):
    """Run the command and return what it prints; with ``fails``, the error."""

    def call(*words, fails=False):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert code == (2 if fails else 0), err
        if fails:
            assert err.count("\n") == err.count("error: ") == 1
            assert not out
            return err
        return json.loads(out) if "--json" in words else out

    return call


@pytest.fixture
def memory(run, images, tmp_path):
    """The memory's file of a model that has learned the photos."""
    run("learn", images / "photos", "--out", tmp_path / "shop.safetensors", "--quiet")
    return tmp_path / "shop.safetensors"


def test_what_a_rate_by_class_rests_on_is_told_as_classes_are_learned(run, memory, images, capsys):
    """`inspect` counted the unknowns that had been learned, and `learn` did not say that it ended all answers."""
    run("calibrate", images / "unknowns", "--by-class", "--target", "0.2", "--memory", memory, "--quiet")
    for digit, left in ((3, 6), (4, 5), (5, 4)):
        run("learn", images / "unknowns" / f"digit {digit}" / "0.png", "--label", f"digit {digit}", "--memory", memory)
        found = run("inspect", "--memory", memory, "--json")["calibrated"]
        assert found["stranger_classes"] == left
        assert found["strangers"] == 9 * left
        assert f"from {9 * left} samples of {left} classes)" in run("inspect", "--memory", memory)
    words = ["learn", images / "unknowns" / "digit 6" / "0.png", "--label", "digit 6", "--memory", memory]
    assert main([str(word) for word in words]) == 0
    noted = "note: nothing is answered: the rate of this memory cannot be kept any more"
    assert noted in capsys.readouterr().err
    assert "calibrations, from" not in run("inspect", "--memory", memory)
    assert main([str(word) for word in [*words[:-3], "digit 6", "--memory", memory, "--quiet"]]) == 0
    assert noted not in capsys.readouterr().err


def test_groups_of_unknowns_are_not_called_classes(run, memory):
    about, head, probed = read_head(memory)
    unknown = torch.rand(12, head.feature_dim, generator=torch.Generator().manual_seed(0))
    head.calibrate(unknown, target_fpr=0.3, groups=[i // 3 for i in range(12)])
    write_head(memory, head, about, probed)
    assert "from 12 samples in 4 groups)" in run("inspect", "--memory", memory)


def test_a_threshold_is_forgotten_with_the_unknowns_that_it_rests_on(run, memory, images):
    """Notes on a rate that cannot be kept advised to forget the unknowns, and no command did."""
    before = run("inspect", "--memory", memory, "--json")
    run("calibrate", images / "unknowns", "--target", "0.2", "--memory", memory, "--quiet")
    about, head, probed = read_head(memory)
    write_head(memory, head, about | {"notes": about["notes"] | {"unknowns": "waiting"}}, probed)
    label = before["classes"][0]["label"]
    said = run("forget", label, "--unknowns", "--memory", memory)
    assert f"forgot {label}, 63 images of unknowns and the threshold; knows" in said
    found = run("inspect", "--memory", memory, "--json")
    assert found["threshold"] is None
    assert len(found["classes"]) == len(before["classes"]) - 1
    about, head, _ = read_head(memory)
    assert not len(head.unknowns)
    assert "unknowns" not in about["notes"]
    assert run("forget", "--unknowns", "--memory", memory, "--json")["unknowns"] == 0
    assert "name what is to be forgotten" in run("forget", "--memory", memory, fails=True)


@pytest.mark.parametrize("backbone", [[], SMALL], ids=["conv4", "timm"])
def test_learn_predict_calibrate_forget_inspect_and_export(run, images, tmp_path, backbone):
    pytest.importorskip("timm") if backbone else None
    path = tmp_path / "shop.safetensors"
    first = run("learn", images / "photos", "--out", path, *backbone, "--json")
    assert first["learned"] == {f"digit {label}": 4 for label in range(3)}
    assert first["classes"] == ["digit 0", "digit 1", "digit 2"]

    # Later calls need no options: the file says which backbone, weights and transform it belongs to.
    found = run("predict", images / "others", "--memory", path, "--json")["predictions"]
    assert len(found) == 15
    right = [one["label"] in one["picture"] for one in found]
    assert np.mean(right) > (0.5 if backbone else 0.9)
    assert all(one["accepted"] is None for one in found)

    words = ("calibrate", images / "unknowns", "--known", images / "others", "--target", "0.1", "--memory", path)
    calibrated = run(*words, "--json")
    assert calibrated["strangers"] == 63
    assert calibrated["bound"] <= 0.1
    by_class = run(*words[:-4], "--target", "0.2", "--memory", path, "--by-class", "--json")
    # What the rate rests on.
    assert run("inspect", "--memory", path, "--json")["calibrated"]["stranger_classes"] == by_class["stranger_classes"]
    assert "samples of 7 classes)" in run("inspect", "--memory", path)
    assert by_class["stranger_classes"] == 7
    run(*words)
    asked = run("predict", images / "unknowns", "--unknown", "--memory", path, "--json")["predictions"]
    assert sum(one["label"] is None for one in asked) >= 0.9 * len(asked)  # those that it was calibrated on
    assert all(one["accepted"] == (one["label"] is not None) for one in asked)
    line = run("predict", asked[0]["picture"], "--unknown", "--memory", path).split("\t")
    assert line[:2] == [asked[0]["picture"], asked[0]["label"] or "unknown"]

    new = images / "unknowns" / "digit 7"
    run("learn", new / "0.png", new / "1.png", "--label", "seven", "--memory", path)
    known = run("inspect", "--memory", path, "--json")
    assert known["classes"][-1] == {"label": "seven", "pictures": 2}
    # Two of 63 are none any more.
    assert known["calibrated"] == {"target_fpr": 0.1, "confidence": None, "strangers": 61, "stranger_classes": None}
    assert run("forget", "digit 0", "digit 2", "--memory", path, "--json")["classes"] == ["digit 1", "seven"]
    assert "2 classes" in run("inspect", "--memory", path)
    assert {one["label"] for one in run("predict", images / "photos", "--memory", path, "--json")["predictions"]} <= {
        "digit 1",
        "seven",
    }

    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    run("export", tmp_path / "shop.onnx", "--memory", path)
    session = runtime.InferenceSession(str(tmp_path / "shop.onnx"), providers=["CPUExecutionProvider"])
    prepared = made(path, backbone).backbone.transform(Image.open(new / "3.png")).unsqueeze(0)
    best = run("predict", new / "3.png", "--memory", path, "--json")["predictions"][0]
    scores = session.run(["scores"], {"pictures": prepared.numpy()})[0][0]
    names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    assert names[scores.argmax()] == best["best"]
    assert scores.max() == pytest.approx(best["score"], abs=1e-4)


def made(path, backbone) -> NAMModel:
    """Return the model in a file, made in Python."""
    if not backbone:
        return attach("conv4").load(path)
    import torch

    torch.manual_seed(0)
    return attach("timm/test_resnet", weights=False, transform_options={"input_size": 32}).load(path)


def test_learning_adds_to_a_memory_and_python_sees_the_same(run, memory, images):
    more = images / "others" / "digit 1"
    run("learn", more, "--label", "digit 1", "--memory", memory)
    model = made(memory, [])
    assert model.classes == ["digit 0", "digit 1", "digit 2"]
    assert len(model.head.support) == 17
    files = sorted((images / "others").rglob("*.png"))
    found = run("predict", *files, "--memory", memory, "--json")["predictions"]
    assert [one["label"] for one in found] == model.predict(files)
    model.learn(files[0], 5).save(memory)
    assert run("forget", "5", "--memory", memory, "--json")["forgotten"] == [5]


def test_a_new_memory_without_a_backbone_says_what_the_default_is_for(capsys, images, tmp_path):
    words = ["learn", str(images / "photos"), "--out", str(tmp_path / "m"), "--head", "cosine"]
    assert main(words) == 0
    assert "note: the backbone is conv4, which is for handwritten characters" in capsys.readouterr().err
    assert main(["inspect", "--memory", str(tmp_path / "m")]) == 0
    out, err = capsys.readouterr()
    assert "CosineHead of 3 classes, 64 features, refuses nothing: not calibrated" in out
    assert not err


def test_weights_from_a_file_are_found_again_or_asked_for(run, images, tmp_path):
    pytest.importorskip("timm")
    from safetensors.torch import save_file

    import backbones

    weights, path = tmp_path / "weights.safetensors", tmp_path / "shop"
    save_file(backbones.create("timm/test_resnet", False).network.state_dict(), weights)
    options = ("--backbone", "timm/test_resnet", "--transform-option", "input_size=32")
    run("learn", images / "photos", "--out", path, *options, "--weights", weights)
    image = images / "photos" / "digit 1" / "0.png"
    answer = run("predict", image, "--memory", path, "--json")
    moved = weights.rename(tmp_path / "moved.safetensors")
    error = run("predict", image, "--memory", path, fails=True)
    assert "learned with the weights in weights.safetensors, which does not exist: pass --weights FILE" in error
    assert run("predict", image, "--memory", path, "--weights", moved, "--json") == answer
    assert "this one is timm/test_resnet, weights" in run(
        "predict", image, "--memory", path, "--weights", "random", fails=True
    )
    run("learn", image, "--label", "new", "--memory", path, "--weights", moved)
    assert run("inspect", "--memory", path, "--json")["notes"] == {"weights": "moved.safetensors"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in (path, moved):
        file.rename(elsewhere / file.name)
    path, moved = elsewhere / path.name, elsewhere / moved.name
    assert str(tmp_path).encode() not in path.read_bytes()
    run("predict", image, "--memory", path)
    error = run("export", moved, "--memory", path, fails=True)
    assert f"{moved} is a safetensors file, and would be replaced: choose another name" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "nothing.png", "--memory", "MEMORY"], "nothing.png: there is no such file or directory"),
        (["predict", "MEMORY", "--memory", "MEMORY"], "not an image, or cut short"),
        (["predict", "pipe", "--memory", "MEMORY"], "pipe: not an image but a directory, pipe or device"),
        (["predict", "/dev/zero", "--memory", "MEMORY"], "/dev/zero: not an image but a directory, pipe or device"),
        (["predict", "large", "--memory", "MEMORY"], "large: 3,221,225,472 bytes are too many for an image"),
        (["predict", "PHOTOS", "--memory", "pipe"], "pipe is no regular file"),
        (["predict", "PHOTOS", "--memory", "/dev/zero"], "/dev/zero is no regular file"),
        (["predict", "PHOTOS", "--memory", "large"], "large: cut short, or no file of a NAM model"),
        (["predict", "PHOTOS", "--memory", "nothing.st"], "nothing.st"),
        (["predict", "", "--memory", "MEMORY"], "the name of a file or directory is empty"),
        (["predict", "PHOTOS", "--memory", "PHOTOS/digit 1/0.png"], "no file of a NAM model"),
        (["predict", "PHOTOS", "--memory", "MEMORY", "--unknown"], "has no threshold to refuse below: run fewshot-nam calibrate"),
        (["predict", "PHOTOS", "--memory", "MEMORY", "--device", "nowhere"], "there is no device 'nowhere'"),
        (["learn", "PHOTOS", "--memory", "MEMORY", "--backbone", "conv4"], "--backbone can be set for a new memory only"),
        (["learn", "PHOTOS/digit 1", "--memory", "MEMORY"], "holds no class directories"),
        (["learn", "PHOTOS/digit 1/0.png", "--memory", "MEMORY"], "with --label LABEL"),
        (["learn", "PHOTOS", "--out", "new.st", "--quiet", "--backbone", "conv44"], "no backbone 'conv44': did you mean"),
        (["learn", "PHOTOS", "--out", "new.st", "--quiet", "--model-option", "width"], "expected KEY=VALUE, got 'width'"),
        (["learn", "PHOTOS", "--out", "nowhere/new.st"], "the directory of nowhere/new.st does not exist"),
        (["forget", "digit 0", "digit 9", "--memory", "MEMORY"], "class 'digit 9' was never written"),
        (["calibrate", "UNKNOWNS", "--memory", "MEMORY", "--target", "0.001"], "needs at least 999 samples of unknowns, got 63"),
        (["calibrate", "UNKNOWNS", "--by-class", "--target", "0.1", "--memory", "MEMORY"], "9 groups of unknowns, got 7"),
        (["calibrate", "PHOTOS", "--by-class", "--target", "0.4", "--memory", "MEMORY"], "'digit 1', 'digit 2' is known"),
        (["export", "MEMORY", "--memory", "MEMORY"], "is a memory, and would be replaced: choose another name"),
        (["export", "link.onnx", "--memory", "MEMORY"], "is a memory, and would be replaced: choose another name"),
        (["page", "--host", "not an address", "--quiet"], "cannot listen on not an address, port 0"),
        (["page", "."], ". is a directory: name the file of a memory"),
        (["export", "nowhere/m.onnx", "--memory", "MEMORY"], "the directory of nowhere/m.onnx does not exist"),
        (["export", "loop", "--memory", "MEMORY"], "loop is a link that leads to itself: choose another name"),
        (["learn", "PHOTOS", "--out", "loop", "--quiet"], "loop is a link that leads to itself: choose another name"),
        (["learn", "PHOTOS", "--out", "pipe", "--quiet"], "pipe is no regular file but a pipe or device"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_refused_is_one_line_and_changes_nothing(run, memory, images, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.onnx").symlink_to(memory)
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")  # what waits for a writer, and a file without content that says it is large
    with (tmp_path / "large").open("wb") as file:
        file.truncate(3 << 30)
    before = memory.read_bytes()
    places = {"MEMORY": str(memory), "PHOTOS": str(images / "photos"), "UNKNOWNS": str(images / "unknowns")}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    assert message in run(*words, fails=True)
    assert memory.read_bytes() == before
    assert (tmp_path / "loop").is_symlink()
    assert not list(tmp_path.glob("*.st"))


def test_too_little_memory_is_one_line_and_other_errors_of_pytorch_are_not_hidden(run, memory, monkeypatch):
    def fails(options):
        raise RuntimeError(options.memory)

    monkeypatch.setitem(command._COMMANDS, "inspect", fails)
    text = (
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
    )
    assert run("inspect", "--memory", text, fails=True) == "error: there is not enough memory\n"
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run("inspect", "--memory", "shapes do not fit")


def test_a_memory_without_classes_says_to_learn(run, memory, images):
    run("forget", "digit 0", "digit 1", "digit 2", "--memory", memory)
    for words in (["predict", images / "photos"], ["calibrate", images / "unknowns"], ["export", "m.onnx"]):
        assert "knows no class: run fewshot-nam learn first" in run(*words, "--memory", memory, fails=True)


def test_a_broken_image_among_many_is_named_and_nothing_is_learned(run, memory, images, tmp_path):
    before = memory.read_bytes()
    (tmp_path / "new").mkdir()
    good = (images / "others" / "digit 1" / "5.png").read_bytes()
    (tmp_path / "new" / "a.png").write_bytes(good)
    (tmp_path / "new" / "b.png").write_bytes(good[: len(good) // 2])
    error = run("learn", tmp_path / "new", "--label", "new", "--memory", memory, fails=True)
    assert f"{tmp_path / 'new' / 'b.png'}: not an image, or cut short" in error
    assert memory.read_bytes() == before


def test_unreadable_images_can_be_left_out(run, memory, images, tmp_path, capsys):
    good = images / "others" / "digit 1" / "5.png"
    new = tmp_path / "new"
    new.mkdir()
    for name in ("a.png", "c.png"):
        (new / name).write_bytes(good.read_bytes())
    (new / "b.png").write_text("no image")
    (new / "notes.txt").touch()
    answers = run("predict", new, "--memory", memory, "--skip-unreadable", "--json")["predictions"]
    assert [one["picture"] for one in answers] == [str(new / "a.png"), str(new / "c.png")]
    assert run("learn", new, "--label", "new", "--memory", memory, "--skip-unreadable", "--json")["learned"] == {
        "new": 2
    }
    error = run("predict", new / "b.png", "--memory", memory, "--skip-unreadable", fails=True)
    assert "no image can be read: 1 of 1 left out" in error
    assert main(["predict", str(new), "--memory", str(memory), "--skip-unreadable"]) == 0
    error = capsys.readouterr().err
    assert "note: files are left out whose endings are no image's: .txt (1)" in error
    assert f"note: left out, because they cannot be read: 1 image: {new / 'b.png'}" in error


def test_a_line_of_predict_stays_one_line_whatever_the_files_name(run, memory, images, tmp_path):
    odd = tmp_path / "a\nb\tc.png"
    odd.write_bytes((images / "others" / "digit 1" / "5.png").read_bytes())
    lines = run("predict", odd, "--memory", memory).splitlines()
    assert [line.count("\t") for line in lines] == [2]
    assert lines[0].startswith(f"{tmp_path}/a\\nb\\tc.png\t")


def test_spaces_of_other_widths_stay_and_errors_move_no_terminal(run, memory, images, tmp_path):
    odd = tmp_path / "Screenshot\u202f9\u3000\u200d.png"
    odd.write_bytes((images / "others" / "digit 1" / "5.png").read_bytes())
    assert run("predict", odd, "--memory", memory).startswith(f"{odd}\t")
    assert "\\x1b[31mred.png" in run("predict", tmp_path / "\x1b[31mred.png", "--memory", memory, fails=True)


def test_a_closed_standard_input_is_said(run, memory, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input, which is closed" in run("predict", "-", "--memory", memory, fails=True)


@pytest.mark.parametrize("name", ["\x1b[31mred\x07", "a\nb\tc", "\u202eabc"])
def test_names_of_classes_move_no_terminal(run, memory, images, name):
    written = name.encode("unicode_escape").decode()
    model = made(memory, [])  # a command would leave no line feed in a new name
    model.learn(images / "others" / "digit 1" / "5.png", name).save(memory)
    learned = run("learn", images / "others" / "digit 1", "--label", name, "--memory", memory, "--quiet")
    assert f"learned {written} (" in learned
    assert f"  {written}\t" in run("inspect", "--memory", memory)
    run("forget", "digit 0", "digit 1", "digit 2", "--memory", memory)
    assert f"\t{written}\t" in run("predict", images / "others" / "digit 1" / "5.png", "--memory", memory)
    assert f"forgot {written};" in run("forget", name, "--memory", memory)


def test_folders_whose_names_are_not_utf_8_are_no_classes(run, images, tmp_path):
    root = tmp_path / "classes"
    shutil.copytree(images / "photos", root)
    try:
        (root / "digit 2").rename(os.fsdecode(bytes(root) + b"/caf\xe9"))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    for words in (["learn", root], ["learn", images / "photos" / "digit 1", "--label", "caf\udce9"]):
        error = run(*words, "--out", tmp_path / "m.safetensors", "--quiet", fails=True)
        assert r"the label 'caf\udce9' is no valid Unicode" in error
        assert not (tmp_path / "m.safetensors").exists()


def test_files_whose_names_are_not_utf_8_are_answered(run, memory, images, tmp_path, monkeypatch):
    odd = os.fsdecode(bytes(tmp_path) + b"/caf\xe9")
    try:
        os.mkdir(odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    shutil.copy(images / "photos" / "digit 1" / "0.png", f"{odd}/a.png")
    shutil.copy(memory, f"{odd}/m.safetensors")
    shown = odd.replace("\udce9", r"\udce9")
    assert run("predict", odd, "--memory", memory).startswith(f"{shown}/a.png\tdigit 1\t")
    assert run("inspect", "--memory", f"{odd}/m.safetensors").startswith(f"{shown}/m.safetensors: ")
    assert run("forget", "digit 1", "--memory", f"{odd}/m.safetensors").startswith(f"{shown}/m.safetensors: forgot")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{odd}/none.png\n"))
    assert "none.png" in run("predict", "-", "--memory", memory)


def test_a_stream_of_paths_is_answered_line_by_line(run, memory, images, monkeypatch, capsys):
    good = sorted((images / "others").rglob("*.png"))
    (memory.parent / "bad.png").write_text("no image")
    paths = [*good[:3], memory.parent / "bad.png", memory.parent / "gone.png", *good[3:]]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{path}\n" for path in paths) + "\n"))
    lines = run("predict", "-", "--memory", memory).splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(path) for path in paths]
    assert "\t\t" in lines[3]
    assert "bad.png: not an image" in lines[3]
    assert "gone.png" in lines[4]
    assert [line for line in lines if "\t\t" not in line] == run("predict", *good, "--memory", memory).splitlines()

    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{good[0]}\n{paths[3]}"))
    assert main(["predict", "-", "--memory", str(memory), "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == run("predict", good[0], "--memory", memory, "--json")["predictions"][0]
    assert "not an image" in second["error"]


class _EndlessLine(io.StringIO):
    """A line of a gigabyte, and then another; keeps the most characters that were given at once."""

    left, most = 2**30, 0

    def __init__(self, after):
        super().__init__(after)

    def readline(self, size=-1):
        if not self.left:
            return super().readline(size)
        assert size > 0, "the whole line was asked for"
        count = min(size, self.left)
        self.left -= count
        self.most = max(self.most, count)
        return "x" * count + ("" if self.left else "\n")

    __next__ = readline


def test_a_line_without_end_takes_little_memory(run, memory, images, monkeypatch):
    """It was read whole, however many gigabytes it had."""
    image = str(images / "unknowns" / "digit 7" / "3.png")
    given = _EndlessLine(f"{image}\n")
    monkeypatch.setattr(sys, "stdin", given)
    long, answer = run("predict", "-", "--memory", memory).splitlines()
    assert len(long) < 1000
    assert long.startswith("xxx")
    assert "\t\ta line of more than 32,767 characters is no path" in long
    assert answer == run("predict", image, "--memory", memory).rstrip()
    assert given.most <= 2**20


def test_a_stream_answers_at_once_and_sees_what_is_learned_meanwhile(run, memory, images):
    words = [sys.executable, "-m", "fewshot_nam.cli.main", "predict", "-", "--memory", str(memory), "--quiet"]
    image = str(images / "unknowns" / "digit 7" / "3.png")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write(f"{image}\n")
        process.stdin.flush()
        before = process.stdout.readline()
        run("learn", image, "--label", "seven", "--memory", memory)
        process.stdin.write(f"{image}\n")
        process.stdin.flush()
        after = process.stdout.readline()
        process.stdin.close()
        assert process.wait() == 0
    assert before.split("\t")[1].startswith("digit")
    assert after.split("\t")[1] == "seven"


def test_a_stream_refuses_nothing_below_a_threshold_that_is_gone(run, memory, images, capsys):
    """Every image was answered "unknown", and nothing was said."""
    image = str(images / "unknowns" / "digit 7" / "3.png")
    uncalibrated = memory.read_bytes()
    run("calibrate", images / "unknowns", "--target", "0.1", "--memory", memory)

    def paths():
        yield f"{image}\n"
        while not out.getvalue():  # a thread reads ahead
            time.sleep(0.01)
        (memory.parent / "other").write_bytes(uncalibrated)
        os.replace(memory.parent / "other", memory)
        yield f"{image}\n"

    from fewshot_nam.cli.main import _open, parser
    from fewshot_nam.cli.predictions import answer_stream
    from fewshot_nam.io.regular_files import file_version

    read = file_version(memory)
    model, _ = _open(parser().parse_args(["predict", "-", "--unknown", "--memory", str(memory)]), knows_classes=True)
    model.batch_size, out = 1, io.StringIO()
    answer_stream(paths(), out, model, str(memory), read, refuse=True)
    answered, said = out.getvalue().splitlines()
    assert "\t\t" not in answered
    assert "\t\tthe memory has no threshold to refuse below" in said


def test_a_stream_sees_what_was_changed_while_the_command_started(run, memory, images, monkeypatch):
    """The memory as it was read was taken for the changed one, for good."""
    image = images / "unknowns" / "digit 7" / "3.png"
    opened = command._open

    def changed_meanwhile(*given, **more):
        made = opened(*given, **more)
        monkeypatch.setattr(command, "_open", opened)
        run("learn", image, "--label", "seven", "--memory", memory)
        return made

    monkeypatch.setattr(command, "_open", changed_meanwhile)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{image}\n"))
    assert "\tseven\t" in run("predict", "-", "--memory", memory)


def test_a_class_called_unknown_is_not_printed_as_a_refused_image_is(run, memory, images):
    image = images / "unknowns" / "digit 7" / "3.png"
    run("learn", image, "--label", "unknown", "--memory", memory)
    assert run("predict", image, "--memory", memory).split("\t")[1] == "'unknown'"


def test_a_confidence_is_shown_where_the_rate_is(run, memory, images, capsys):
    """5% in 5% of calibrations were shown as "at most 5%"; on average there are more."""
    words = ["calibrate", str(images / "unknowns"), "--target", "0.1", "--memory", str(memory)]
    assert main([*words, "--confidence", "0.05"]) == 0
    assert "note: more than 0.1 on average: --confidence 0.05 asks for no more than that" in capsys.readouterr().err
    assert "(at most 0.1 of unknowns in 5% of calibrations, from" in run("inspect", "--memory", memory)
    assert run("inspect", "--memory", memory, "--json")["calibrated"]["confidence"] == 0.05
    assert main(words) == 0
    assert "note: more than" not in capsys.readouterr().err
    assert "(at most 0.1 of unknowns on average over calibrations, from" in run("inspect", "--memory", memory)


def test_an_image_that_is_learned_twice_is_noted(run, memory, images, capsys):
    one = images / "photos" / "digit 1" / "0.png"
    assert main(["learn", str(one), "--label", "digit 1", "--memory", str(memory)]) == 0
    assert "note: 1 image of 1 learned before or given twice: each counts again" in capsys.readouterr().err
    new = images / "unknowns" / "digit 7" / "3.png"
    assert run("learn", new, new, "--label", "seven", "--memory", memory, "--json")["repeated"] == 1


def test_warnings_are_notes_of_one_line(memory, images, capsys):
    words = ["calibrate", str(images / "unknowns"), "--known", str(images / "photos"), "--target", "0.1"]
    assert main([*words, "--memory", str(memory)]) == 0
    error = capsys.readouterr().err
    assert "note: calibrate: 12 of 12 known images were written" in error
    assert "UserWarning" not in error


def test_a_memory_that_others_may_not_read_stays_so(run, memory, images):
    memory.chmod(0o600)
    run("learn", images / "others" / "digit 1", "--label", "one", "--memory", memory, "--quiet")
    run("forget", "one", "--memory", memory)
    assert memory.stat().st_mode & 0o777 == 0o600


def test_no_file_but_the_memory_is_left(run, memory, images):
    run("learn", images / "others" / "digit 1", "--label", "more", "--memory", memory)
    run("forget", "more", "--memory", memory)
    assert os.listdir(memory.parent) == [memory.name]


def test_two_commands_at_once_both_add_their_class(memory, images):
    words = [sys.executable, "-m", "fewshot_nam.cli.main", "learn", "--memory", str(memory), "--quiet"]
    image = str(images / "others" / "digit 1" / "5.png")
    both = [subprocess.Popen([*words, image, "--label", label]) for label in ("left", "right")]
    assert [process.wait() for process in both] == [0, 0]
    assert set(made(memory, []).classes) == {"digit 0", "digit 1", "digit 2", "left", "right"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written_says_what_was_done_all_the_same(memory, images):
    """It said "No space left on device" alone, after the memory was saved."""
    image = str(images / "unknowns" / "digit 7" / "3.png")

    def refused(*words, given=""):
        command = [sys.executable, "-m", "fewshot_nam.cli.main", *words, "--memory", str(memory)]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command, env=buffered, stdout=full, stderr=subprocess.PIPE, input=given, text=True, check=False
            )
        assert done.returncode == 2
        return done.stderr

    wrong = "error: standard output cannot be written (No space left on device)"
    assert refused("learn", image, "--label", "seven") == f"{wrong}: {memory} is saved all the same\n"
    assert "seven" in made(memory, []).classes
    assert refused("forget", "seven") == f"{wrong}: {memory} is saved all the same\n"
    assert "seven" not in made(memory, []).classes
    assert refused("predict", image) == f"{wrong}\n"
    assert refused("predict", "-", given=f"{image}\n") == f"{wrong}\n"


def test_help_lists_the_heads_and_backbones(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")  # no line is broken
    with pytest.raises(SystemExit):
        main(["learn", "--help"])
    out = capsys.readouterr().out
    assert re.search(r"--head HEAD +of a new memory: (.*) \(default: nam\)", out)[1].split(", ") == head_names()
    assert head_names() == [
        name for name in available() if spec(name).needs != "prototypes" and not spec(name).transductive
    ]
    backbone = re.search(r"--backbone NAME +(.*)", out)[1]
    for name in [*NETWORKS, *(f"{prefix}MODEL" for prefix in LIBRARIES)]:
        assert name in backbone


@pytest.mark.parametrize("head", head_names())
def test_every_head_learns_is_saved_and_predicts(images, tmp_path, head, capsys):
    path = str(tmp_path / "m")
    assert main(["learn", str(images / "photos"), "--out", path, "--head", head, "--backbone", "conv4", "--quiet"]) == 0
    one = next((images / "photos").rglob("*.png"))
    capsys.readouterr()
    assert main(["predict", str(one), "--memory", path, "--quiet"]) == 0
    assert capsys.readouterr().out.split("\t")[1] == one.parent.name


def test_help_and_mistakes_need_no_torch():
    code = (
        "import sys; from fewshot_nam.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, *[m for m in 'torch numpy PIL yaml timm'.split() if m in sys.modules])"
    )
    for words, expected in (["--help"], "0"), (["learn", "--help"], "0"), (["teach"], "2"), (["learn", "a"], "2"):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == expected
        assert done.stderr.startswith("error: ") == (expected == "2")


def test_a_name_is_one_class_however_a_system_writes_it(run, images, tmp_path):
    """macOS spells directories with letters and accents apart."""
    shown, apart = "caf\u00e9", "cafe\u0301"
    path, both = tmp_path / "m.safetensors", tmp_path / "both"
    for name, digit in ((shown, "digit 0"), (apart, "digit 1"), ("mug", "digit 2")):
        shutil.copytree(images / "photos" / digit, both / name)
    if len(list(both.iterdir())) < 3:
        pytest.skip("this file system has one spelling of its own")
    found = run("learn", both, "--out", path, "--json")
    assert found["classes"] == [shown, "mug"]
    assert found["learned"] == {shown: 8, "mug": 4}
    more = run("learn", images / "others" / "digit 0", "--label", f" {apart}", "--memory", path, "--json")
    assert more["classes"] == [shown, "mug"]
    assert run("forget", apart, "--memory", path, "--json")["forgotten"] == [shown]


def test_learn_says_what_new_classes_take_from_a_kept_classifier(run, images, tmp_path):
    model, path = attach("conv4"), tmp_path / "kept.safetensors"
    features = model.features(sorted((images / "unknowns").rglob("*.png")))
    head = KeptClassifierHead(features).write_base(features[:3], ["a", "b", "c"])
    save_head(path, head, model.backbone, {"weights": "published"})
    out = run("learn", images / "photos", "--out", path)
    assert re.search(r"\n\d+\.\d% of 63 images of base classes are answered as a learned class \(limit 3\.5%\)\n$", out)
    cost = run("learn", images / "others" / "digit 0", "--label", "zero", "--out", path, "--json")["base_cost"]
    assert cost["limit"] == pytest.approx(0.04)
    assert cost["images"] == 63
    assert 0 <= cost["share"] <= cost["limit"]


HOSTILE = "\x1b[2J\x1b]0;title\x07\u202e\nanother line"


def test_names_in_a_forged_memory_do_not_move_the_terminal(images, tmp_path, capsys):
    """A file may hold what clears the screen, sets the title of the window or reads from right to left."""
    memory = tmp_path / "\x1b[31m\nshop.safetensors"
    assert main(["learn", str(images / "photos"), "--out", str(memory), "--quiet"]) == 0
    about, head, probed = read_head(memory)
    notes = {"weights": HOSTILE}
    write_head(memory, head, {**about, "backbone": HOSTILE, "weights": HOSTILE, "notes": notes}, probed)
    lines = capsys.readouterr().out.splitlines()
    assert main(["inspect", "--memory", str(memory)]) == 0
    lines += capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 + 3  # of learn, and of inspect with three classes
    assert all(line.replace("\t", "").isprintable() for line in lines)
    assert lines[2].count(one_line(HOSTILE)) == 3


def test_names_of_files_that_are_left_out_do_not_move_the_terminal(images, tmp_path, capsys):
    photos = tmp_path / "photos" / "zero"
    shutil.copytree(images / "photos" / "digit 0", photos)
    (photos / "\x1b[31mred\u202e\n.png").write_text("no image")
    (photos / "notes.\x1b[32mgreen\n").write_text("no image")
    assert main(["learn", str(photos.parent), "--out", str(tmp_path / "m"), "--skip-unreadable"]) == 0
    said = re.sub(r".*\r", "", capsys.readouterr().err)  # without the progress bar
    assert "\\x1b[31mred\\u202e\\n.png" in said
    assert ".\\x1b[32mgreen\\n (1)" in said
    assert all(line.isprintable() for line in said.splitlines())

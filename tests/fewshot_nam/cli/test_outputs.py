"""No output takes the place of a memory, of tensors or of an image."""

import argparse
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fewshot_nam import attach
from fewshot_nam.cli.outputs import add_output, check_output


@pytest.fixture
def files(tmp_path):
    attach("conv4").save(tmp_path / "memory.json")
    save_file({"weight": torch.ones(2)}, tmp_path / "weights.json")
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    torch.save({"weight": torch.ones(2)}, tmp_path / "trained.pt")
    (tmp_path / "pickled.json").write_bytes(pickle.dumps({"weight": 1}))
    np.savez(tmp_path / "bank.npz", features=np.ones((1, 2)))
    (tmp_path / "text.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "weights.json")
    return tmp_path


KINDS = {
    "memory.json": "a memory",
    "weights.json": "a safetensors file",
    "link.json": "a safetensors file",
    "image.png": "an image",
    "trained.pt": "an archive or pickled weights",
    "pickled.json": "an archive or pickled weights",
    "bank.npz": "an archive or pickled weights",
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_only_a_file_of_the_same_kind_is_replaced(files, name, kind):
    for replaces in {None, *KINDS.values()} - {kind}:
        with pytest.raises(ValueError, match=rf"{name} is {kind}, and would be replaced: choose another name"):
            check_output(files / name, replaces)
    check_output(files / name, kind)


def test_other_files_are_replaced(files):
    for name in ("text.json", "new.json", "new.png"):
        check_output(files / name)


def test_no_two_outputs_are_one_file(files, capsys):
    """The last one won, and the figures of the other were lost."""
    parser = argparse.ArgumentParser()
    for flag in ("--json", "--markdown"):
        add_output(parser, flag, "numbers")
    (files / "again.json").symlink_to(files / "text.json")
    for other in ("text.json", "again.json", f"../{files.name}/text.json"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--json", str(files / "text.json"), "--markdown", str(files / other)])
        assert "--markdown and --json name the same file" in capsys.readouterr().err
    given = [
        "--json",
        str(files / "text.json"),
        "--markdown",
        str(files / "other.json"),
        "--json",
        str(files / "third"),
    ]
    assert parser.parse_args(given).json == files / "third"


def test_a_parser_refuses_before_any_work(files, capsys):
    parser = argparse.ArgumentParser()
    add_output(parser, "--json", "numbers")
    assert parser.parse_args(["--json", str(files / "text.json")]).json == files / "text.json"
    assert parser.parse_args([]).json is None
    for name, message in (
        ("memory.json", "is a memory, and would be replaced"),
        ("weights.json", "is a safetensors file, and would be replaced"),
        ("none/x.json", "none/x.json does not exist"),
        ("", "names no file"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["--json", str(files / name) if name else ""])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["figure.pdf", "figure", "photo.jpg"])
def test_a_figure_is_a_png_file_by_its_name(files, name, capsys):
    """A PNG was written under any name."""
    parser = argparse.ArgumentParser()
    add_output(parser, "--plot", "a figure", replaces="an image")
    assert parser.parse_args(["--plot", str(files / "image.PNG")]).plot == files / "image.PNG"
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--plot", str(files / name)])
    assert f"{name} would be a PNG file: give it the ending .png" in capsys.readouterr().err

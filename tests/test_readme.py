"""The README's promises that can be run: its two commands are those of CI, and its Python prints what it says."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from episodes.cli.options import parser
from episodes.metrics.registry import MEASURES
from fewshot_nam.cli import options as commands
from fewshot_nam.heads import available

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EPISODES = ROOT / "results" / "benchmarks" / "episodes.json"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def test_the_two_commands_are_what_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [body.strip() for kind, body in BLOCKS if kind == "bash"][:2]
    assert commands[0] == "pip install . && python scripts/episode_eval.py --ways 5 --shots 1"
    for command in commands:
        assert command.replace("pip install", "pip install -q") in [line.strip() for line in ci]


def test_the_example_prints_what_the_readme_says():
    python = [i for i, (kind, _) in enumerate(BLOCKS) if kind == "python"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(BLOCKS[python[0]][1], "README.md", "exec"), {})
    kind, expected = BLOCKS[python[0] + 1]
    assert kind == "text"
    assert out.getvalue() == expected


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Stand where the README's pictures are."""
    for name, colour in {"badger": "black", "marten": "brown"}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (80, 60 + number), colour).save(tmp_path / "photos" / name / f"{name}_{number}.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("number", range(1, sum(kind == "python" for kind, _ in BLOCKS)))
def test_the_other_python_runs(number):
    python = [body for kind, body in BLOCKS if kind == "python"]
    if "onnxruntime" in python[number]:
        pytest.importorskip("onnxruntime")
    exec(compile(python[number], "README.md", "exec"), {})


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))))
def test_every_flag_in_the_readme_exists(flag):
    subparsers = next(action for action in commands.parser()._actions if action.dest == "command")
    known = [parser(), commands.parser(), *subparsers.choices.values()]
    benchmarks = (ROOT / "scripts" / "benchmarks" / "run.py").read_text(encoding="utf-8")
    of_torchrun = flag == "--nproc-per-node"
    assert of_torchrun or f'"{flag}"' in benchmarks or any(flag in one._option_string_actions for one in known)


def test_every_head_and_measure_is_explained():
    for name in available():
        assert f"`{name}`" in README
    for name in MEASURES:
        stem = name.split(":")[0]
        assert f"`{stem}`" in README or stem in ("tpr", "class_tpr")


def test_the_table_of_ratios_is_that_of_the_benchmark():
    found = {(row["run"], row["shots"]): row for row in json.loads(EPISODES.read_text(encoding="utf-8"))["rows"]}
    settings = [(dtype, shots) for shots in (1, 5) for dtype in ("float32", "bfloat16")]
    table = README.split("| x easyfsl")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) == 5
    for line in table:
        head, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for (dtype, shots), cell in zip(settings, cells, strict=True):
            row = found[f"{dtype} closed {head.strip('`')}", shots]
            assert cell == f"{row['ratio']:.1f} ({row['share_of_index_select']:.2f})"

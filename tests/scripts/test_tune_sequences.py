"""Learning rates are chosen on sequences that are held out, and what is known is not trained again."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot_nam.cli.errors import exit_status
from fewshot_nam.sequences import tasks
from fewshot_nam.sequences.tasks.long_range import LongRangeImage
from fewshot_nam.sequences.tasks.numbers import Copy

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("tune_sequences", ROOT / "scripts" / "tune_sequences.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SIZE", 7)
    return module


@pytest.fixture
def data(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in CLASSES:
            inside = tmp_path / "cifar10" / part / name
            inside.mkdir(parents=True)
            for number in range(3):
                Image.fromarray(draw.integers(0, 256, (16, 16), dtype=np.uint8)).save(inside / f"{number}.png")
    monkeypatch.setenv("FEWSHOT_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(script, monkeypatch, capsys):
    """Run the script; return its exit status, and what it printed and said."""

    def call(*words):
        monkeypatch.setattr("sys.argv", ["tune_sequences.py", *map(str, words)])
        try:
            status = exit_status(script.main)
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return call


def test_each_rate_is_measured_once_on_what_is_held_out(run, data, monkeypatch):
    measured, read = [], Counter()
    accuracy, split = tasks.accuracy, LongRangeImage.split

    def seen(predictions, batch):
        measured.append(len(predictions))
        return accuracy(predictions, batch)

    def counted(self, name, size=None):
        read[name, size] += 1
        return split(self, name, size)

    monkeypatch.setattr(tasks, "accuracy", seen)
    monkeypatch.setattr(LongRangeImage, "split", counted)
    models, file = ("linear-transformer", "nam-attention with positions"), data / "rates.json"
    words = ["lra_image", "--steps", 1, "--runs", data / "runs", "--json", file, "--models", *models, "--rates", 0.001]
    assert run(*words)[0] == 0
    assert read["held_out", None] == 2
    assert measured.count(7) == 2
    found = json.loads(file.read_text())["scores"]["lra_image"]
    assert found.keys() == set(models)
    trained = json.loads((data / "runs" / "lra_image-nam-attention with positions-0.001" / "settings.json").read_text())
    assert trained["model_options"]["positions"]
    assert trained["task_options"] == {"size": 16, "held_out": 7}
    status, page, _ = run(*words, 0.002)
    assert (status, read["held_out", None]) == (0, 4)
    assert "| task | model | 0.001 | 0.002 |" in page
    assert page.count("| lra_image | ") == 2
    status, _, error = run(*words, "--steps", 2)
    assert status == 2
    assert error.endswith("it has those after 1 steps, not 2\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chess"], "no preset 'chess/nam-attention'"),
        (["copy", "--models", "brain"], "no preset 'copy/brain'"),
        (["copy", "--steps", "0"], "steps must be from 1"),
        (["copy", "--models", "lsam with positions"], "lsam has no option for positions"),
        (["copy", "--rates", "-1"], "learning_rate must be above 0"),
        (["lra_text"], "there is no folder train/neg"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line_before_anything_is(words, said, run, data):
    status, page, error = run(*words, "--runs", data / "runs", "--json", data / "rates.json")
    assert (status, page, error.count("\n")) == (2, "", 1)
    assert said in error
    assert not (data / "runs").exists()


@pytest.mark.parametrize("content", ["[]", "{}", '{"steps": 1000, "scores": {"copy": 5}}', "{"])
def test_a_file_of_something_else_is_refused_and_stays(content, run, data):
    (data / "rates.json").write_text(content)
    status, _, error = run("copy", "--runs", data / "runs", "--json", data / "rates.json")
    assert (status, error.count("\n")) == (2, 1)
    assert "holds no scores of learning rates" in error
    assert (data / "rates.json").read_text() == content


def test_the_published_table_is_that_of_its_scores(script):
    kept = script.read(ROOT / "results" / "learning_rates.json", 1000)
    script.SIZE = 5000
    assert (ROOT / "results" / "learning_rates.md").read_text(encoding="utf-8") == script.table(kept)


def test_a_task_that_makes_its_sequences_is_measured_on_new_ones(script, data, monkeypatch):
    sample, drawn = Copy.sample, []

    def counted(self, size, generator, lengths=None):
        drawn.append((size, generator.initial_seed()))
        return sample(self, size, generator, lengths)

    monkeypatch.setattr(Copy, "sample", counted)
    score = script.score(script.settings_of("copy", "linear-transformer", 0.001, 1), data / "run")
    assert 0 <= score <= 100
    assert (7, script.SEED + 1) in drawn

"""Learning rates are chosen on sequences that are held out, and what is known is not trained again."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def test_each_rate_is_measured_once_on_what_is_held_out(script, data, monkeypatch):
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
    models = ("linear-transformer", "nam-attention with positions")
    words = ["lra_image", "--steps", "1", "--runs", str(data / "runs"), "--json", str(data / "rates.json")]
    words += ["--models", *models, "--rates", "0.001"]
    assert script.main(words) == 0
    assert read["held_out", None] == 2
    assert measured.count(7) == 2
    found = json.loads((data / "rates.json").read_text())["scores"]["lra_image"]
    assert found.keys() == set(models)
    trained = json.loads((data / "runs" / "lra_image-nam-attention with positions-0.001" / "settings.json").read_text())
    assert trained["model_options"]["positions"]
    assert trained["task_options"] == {"size": 16, "held_out": 7}
    assert script.main([*words, "0.002"]) == 0
    assert read["held_out", None] == 4
    page = (data / "rates.md").read_text()
    assert "| task | model | 0.001 | 0.002 |" in page
    assert page.count("| lra_image | ") == 2
    with pytest.raises(SystemExit, match="is of 1 steps, not of 2"):
        script.main([*words, "--steps", "2"])


def test_a_task_that_makes_its_sequences_is_measured_on_new_ones(script, data, monkeypatch):
    sample, drawn = Copy.sample, []

    def counted(self, size, generator, lengths=None):
        drawn.append((size, generator.initial_seed()))
        return sample(self, size, generator, lengths)

    monkeypatch.setattr(Copy, "sample", counted)
    score = script.score("copy", "linear-transformer", 0.001, 1, data / "run")
    assert 0 <= score <= 100
    assert (7, script.SEED + 1) in drawn

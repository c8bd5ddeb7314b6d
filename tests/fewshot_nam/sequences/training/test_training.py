"""Training of sequence models: resuming is exact, files are what they should be, presets are complete, mistakes are refused."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("lightning_fabric")

from fewshot_nam.cli.train_sequence import main
from fewshot_nam.sequences import models, tasks
from fewshot_nam.sequences.training import TrainingSettings, evaluate, load_trained, preset, presets, train

SCRIPT = Path(__file__).resolve().parents[4] / "scripts" / "train_sequence.py"


def tiny(**changes):
    settings = {
        "task": "reverse",
        "model": "lstm",
        "size": "tiny",
        "steps": 12,
        "batch_size": 8,
        "validate_every": 4,
        "validation_size": 16,
        "test_size": 20,
    }
    return TrainingSettings(**{**settings, **changes})


def run(settings, directory, **options):
    return train(settings, directory, device="cpu", **options)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"curriculum": "schedule"},
        {"curriculum": "mastery", "task": "parity", "model": "lsam"},
        {"one_length": False, "loss": "row", "schedule": "constant", "weight_decay": 0.1},
        {"select": None, "model": "nam-tm"},
        {"task": "relational_recall", "model": "stm"},
        {"task": "copy_bits", "model": "ntm", "loss": "row", "one_length": False},
        {"select": None, "model": "transformer-randomised"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "default",
)
def test_a_run_that_is_stopped_and_resumed_equals_one_that_is_not(tmp_path, changes):
    settings = tiny(**changes)
    whole = run(settings, tmp_path / "whole")
    assert run(settings, tmp_path / "parts", stop=lambda step: step == 5) is None
    assert (tmp_path / "parts" / "checkpoint.safetensors").is_file()
    torch.manual_seed(99)  # whatever chance another process begins with
    assert run(settings, tmp_path / "parts", resume=True, stop=lambda step: step == 10) is None
    parts = run(settings, tmp_path / "parts", resume=True)
    assert parts["accuracy"] == whole["accuracy"]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    logs = []
    for name in ("whole", "parts"):
        with (tmp_path / name / "log.csv").open(newline="") as file:
            logs.append([{**row, "seconds": None} for row in csv.DictReader(file)])
    assert logs[0] == logs[1]
    assert [row["step"] for row in logs[0]] == ["4", "8", "12"]
    assert not (tmp_path / "parts" / "checkpoint.safetensors").exists()


def test_steps_that_were_lost_leave_no_row_in_the_log(tmp_path):
    """Killed between two checkpoints, a run has logged steps that it takes again."""
    settings = tiny()
    run(settings, tmp_path, stop=lambda step: step == 5)
    with (tmp_path / "log.csv").open("a", newline="") as file:
        csv.writer(file).writerow([8, 1, 2, 0, 0, 10, 0, 0])
    run(settings, tmp_path, resume=True)
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["4", "8", "12"]


def test_a_finished_run_holds_a_result_that_can_be_checked(tmp_path):
    result = run(tiny(), tmp_path, preset="reverse/lstm")
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result.keys() == {"task", "model", "preset", "seed", "parameters", "steps", "seconds", "accuracy"}
    assert result["steps"] == 12
    assert result["accuracy"].keys() == {"id", "ood_easy", "ood_hard"}
    model, task = load_trained(tmp_path)
    assert result["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert evaluate(model, task, size=20) == result["accuracy"]
    assert run(tiny(), tmp_path, resume=True) == result


def test_a_short_training_learns(tmp_path):
    settings = tiny(
        task="even_pairs", size="small", steps=150, batch_size=32, lengths=(2, 4), learning_rate=0.01, select=None
    )
    run(settings, tmp_path)
    model, task = load_trained(tmp_path)
    assert evaluate(model, task, [3], 200)["3"]["exact"] > 0.95


def test_the_longest_length_grows_when_it_is_mastered(tmp_path):
    easy = {
        "task": "bucket_sort",
        "size": "small",
        "steps": 150,
        "batch_size": 32,
        "learning_rate": 0.01,
        "select": None,
    }
    run(tiny(**easy, curriculum="mastery"), tmp_path)
    with (tmp_path / "log.csv").open(newline="") as file:
        longest = [int(row["longest"]) for row in csv.DictReader(file)]
    assert longest[0] == 2
    assert longest == sorted(longest)
    assert longest[-1] > 2


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="steps must be at least 1"):
        tiny(steps=0)
    with pytest.raises(ValueError, match="schedule must be one of"):
        tiny(schedule="zigzag")
    with pytest.raises(ValueError, match="a curriculum needs one_length"):
        tiny(curriculum="schedule", one_length=False)
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        TrainingSettings.from_dict({"task": "copy", "model": "lstm", "step": 3})
    with pytest.raises(ValueError, match="did you mean 'reduce/nam-tm'"):
        preset("reduce/nam-tmm")
    run(tiny(), tmp_path, stop=lambda step: step == 2)
    with pytest.raises(ValueError, match="holds a training run: resume it"):
        run(tiny(), tmp_path)
    with pytest.raises(ValueError, match="holds a run with another batch_size"):
        run(tiny(batch_size=4), tmp_path, resume=True)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="no checkpoint of this run"):
        run(tiny(), tmp_path, resume=True)
    with pytest.raises(FileNotFoundError, match="holds no finished training run"):
        load_trained(tmp_path)


def test_every_preset_is_made_of_known_parts():
    names = presets()
    assert len(names) == 2 * len(tasks.available()) * len(models.available())
    for name in names:
        settings = preset(name)
        assert name.startswith(f"{settings.task}/{settings.model}")
        assert dataclasses.asdict(settings) == TrainingSettings.from_dict(settings.as_dict()).as_dict()


def test_a_changed_option_leaves_the_other_options_of_a_preset():
    options = preset("reduce/nam-tm", model_options={"dropout": 0.1}).model_options
    assert options == {"move_noise": 1.0, "dropout": 0.1}
    assert preset("reduce/nam-tm").model_options == {"move_noise": 1.0}


def test_models_of_a_task_have_the_same_budget():
    for task in tasks.available():
        budgets = {
            (s.steps, s.batch_size, s.lengths, s.curriculum)
            for s in (preset(f"{task}/{model}") for model in models.available())
        }
        assert len(budgets) == 1, task


def test_the_command_trains_resumes_and_evaluates(tmp_path, capsys):
    out = str(tmp_path / "run")
    small = ["--set", "size=tiny", "batch_size=8", "validation_size=16", "test_size=20", "validate_every=2"]
    train_it = ["--preset", "reverse/lstm", "--out", out, "--steps", "4", "--device", "cpu", "--quiet", *small]
    assert main(train_it) == 0
    assert json.loads(capsys.readouterr().out)["preset"] == "reverse/lstm"
    assert main(train_it) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*train_it, "--resume"]) == 0
    capsys.readouterr()
    file = tmp_path / "lengths.json"
    assert main(["--evaluate", out, "--lengths", "3", "50", "--size", "10", "--json", str(file)]) == 0
    found = json.loads(file.read_text())["accuracy"]
    assert found.keys() == {"3", "50"}
    assert found["3"].keys() == {"exact", "row", "token"}
    assert main(["--evaluate", str(tmp_path)]) == 2
    assert main(["--preset", "reverse/lstm"]) == 2
    assert main(["--list"]) == 0
    assert "nam-tm" in capsys.readouterr().out


def test_the_script_answers_help_at_once():
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "--preset" in done.stdout


# --- language ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def reviews(tmp_path):
    for part in ("train", "test"):
        for kind in ("neg", "pos"):
            (tmp_path / "aclImdb" / part / kind).mkdir(parents=True)
            (tmp_path / "aclImdb" / part / kind / "0.txt").write_text("na" * 40, encoding="utf-8")
    return str(tmp_path)


def test_a_language_model_is_measured_in_bits_and_writes(tmp_path, reviews, capsys):
    options = {"task_options": {"data_dir": reviews, "length": 12}, "learning_rate": 0.03, "validate_every": 60}
    settings = tiny(task="imdb_bytes", model="nam-attention-erase", select=None, steps=60, **options)
    result = run(settings, tmp_path / "run")
    model, task = load_trained(tmp_path / "run")
    batch = task.split("id", 20)
    surprise = (
        -model(batch.inputs).double().log_softmax(-1).gather(-1, batch.targets.unsqueeze(-1)) / torch.tensor(2.0).log()
    )
    assert result["accuracy"]["id"]["bits"] == pytest.approx(float(surprise.mean().detach()), rel=1e-5)
    assert result["accuracy"]["id"]["bits"] < 1.0  # from log2(258) = 8
    words = ["--generate", str(tmp_path / "run"), "--prompt", "nan", "--tokens", "9", "--temperature", "0"]
    assert main(words) == 0
    assert capsys.readouterr().out == "nananananana\n"


def test_only_a_run_on_text_writes(tmp_path, capsys):
    run(tiny(), tmp_path)
    assert main(["--generate", str(tmp_path)]) == 2
    assert "reverse is no text" in capsys.readouterr().err

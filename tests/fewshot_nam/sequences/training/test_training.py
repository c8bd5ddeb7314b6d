"""Training of sequence models: resuming is exact, files are what they should be, presets are complete, mistakes are refused."""

import csv
import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytest.importorskip("lightning_fabric")

from fewshot_nam import attach
from fewshot_nam.cli.train_sequence import main
from fewshot_nam.cli.training_command import parse_changes
from fewshot_nam.sequences import models, tasks
from fewshot_nam.sequences.training import TrainingSettings, evaluate, load_trained, preset, presets, train
from fewshot_nam.sequences.training.devices import check_device
from fewshot_nam.sequences.training.directory import open_log

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
        {"one_length": False, "loss": "row", "schedule": "constant", "weight_decay": 0.1, "label_smoothing": 0.2},
        {"select": None, "model": "nam-tm"},
        {"task": "relational_recall", "model": "stm"},
        {"task": "copy_bits", "model": "ntm", "loss": "row", "one_length": False},
        {"select": None, "model": "transformer-randomised"},
        {"optimiser": "rmsprop", "weight_decay": 0.1},
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
        file.write("4,0.1")  # the disk was full
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
    with pytest.raises(ValueError, match="steps must be from 1 to"):
        tiny(steps=0)
    with pytest.raises(ValueError, match="schedule must be one of"):
        tiny(schedule="zigzag")
    with pytest.raises(ValueError, match="label_smoothing must be at least 0 and below 1"):
        tiny(label_smoothing=1.0)
    with pytest.raises(ValueError, match="a curriculum needs one_length"):
        tiny(curriculum="schedule", one_length=False)
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        TrainingSettings.from_dict({"task": "copy", "model": "lstm", "step": 3})
    with pytest.raises(ValueError, match="did you mean 'reduce/nam-tm'"):
        preset("reduce/nam-tmm")
    for changes, message in (
        ({"steps": "many"}, "steps must be a whole number, got 'many'"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number, got inf"),
        ({"one_length": 1}, "one_length must be true or false, got 1"),
        ({"select": 3}, "select must be text, got 3"),
        ({"model_options": ["width"]}, "model_options must be a mapping of options"),
        ({"lengths": [5, 2]}, "lengths must be the shortest and the longest"),
        ({"lengths": 5}, "lengths must be the shortest and the longest"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainingSettings.from_dict({"task": "copy", "model": "lstm"} | changes)
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


def test_a_run_of_a_version_without_a_setting_resumes_with_its_default(tmp_path):
    run(tiny(), tmp_path, stop=lambda step: step == 2)
    settings = json.loads((tmp_path / "settings.json").read_text())
    del settings["label_smoothing"]
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="holds a run with another label_smoothing"):
        run(tiny(label_smoothing=0.1), tmp_path, resume=True)
    assert run(tiny(), tmp_path, resume=True) is not None


def test_label_smoothing_spreads_a_share_of_the_target(tmp_path):
    """No loss is below the entropy of the smoothed target, however sure the model is."""
    easy = {"task": "parity", "lengths": (1, 1), "curriculum": "none", "steps": 60, "learning_rate": 0.03}
    run(tiny(**easy, label_smoothing=0.2), tmp_path / "smooth")
    run(tiny(**easy), tmp_path / "plain")
    with (
        (tmp_path / "smooth" / "log.csv").open(newline="") as smooth,
        (tmp_path / "plain" / "log.csv").open(newline="") as plain,
    ):
        smoothed, whole = (float(list(csv.DictReader(file))[-1]["loss"]) for file in (smooth, plain))
    tokens = len(tasks.create("parity").vocabulary)
    other = 0.2 / tokens
    entropy = -(tokens - 1) * other * math.log(other) - (1 - 0.2 + other) * math.log(1 - 0.2 + other)
    assert whole < 0.1
    assert entropy < smoothed < entropy + 0.1


def test_training_that_diverges_says_so_in_one_line(tmp_path, capsys, monkeypatch):
    plain, losses = torch.nn.functional.cross_entropy, iter([1.0, 1.0, float("nan")])
    monkeypatch.setattr(
        "torch.nn.functional.cross_entropy", lambda *given, **named: plain(*given, **named) * next(losses)
    )
    words = ["--preset", "reverse/lstm", "--out", str(tmp_path), "--quiet", "--device", "cpu", "--set", "size=tiny"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"error: training diverged after 2 steps, the gradient is not finite: lower learning_rate.*\n", said
    )


def test_settings_given_as_words_are_numbers_where_they_look_like_numbers():
    found = parse_changes(
        ["learning_rate=1e-3", "lengths=[1, 2e1]", "model_options={dropout: 5E-1, name: 1e}", "select="]
    )
    assert found == {
        "learning_rate": 1e-3,
        "lengths": [1, 20.0],
        "model_options": {"dropout": 0.5, "name": "1e"},
        "select": None,
    }
    for word in ("steps=[", "steps=&a *a", "steps"):
        with pytest.raises(ValueError, match=r"^--set"):
            parse_changes([word])


def test_every_preset_is_made_of_known_parts():
    names = presets()
    assert len(names) == 2 * len(tasks.available()) * len(models.available())
    for name in names:
        settings = preset(name)
        assert name.startswith(f"{settings.task}/{settings.model}")
        assert dataclasses.asdict(settings) == TrainingSettings.from_dict(settings.as_dict()).as_dict()


def test_a_changed_option_leaves_the_other_options_of_a_preset():
    options = preset("reduce/nam-tm", model_options={"dropout": 0.1}).model_options
    assert options == {"move_noise": 1.0, "jump_bias": -4.0, "dropout": 0.1}
    assert preset("reduce/nam-tm").model_options == {"move_noise": 1.0, "jump_bias": -4.0}


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


@pytest.mark.parametrize(
    "word",
    [
        *(f"model_options={value}" for value in ("{width: -1}", "{width: abc}", "{width: 2.5}", "{nonsense: 1}", "{1: 2}", "3")),
        *(f"task_options={value}" for value in ("3", "{1: 2}", "{nonsense: 1}")),
        *("select=nothere", "select=[1]", "select=3", "test_size=2.5", "steps=1.5", "size=[1]", "lengths=3", "curriculum=3"),
        *("batch_size=99999999999999999999", "seed=99999999999999999999", "precision=nothere"),
        *("batch_size=1000000000000", "lengths=[1,1000000000]", "learning_rate=1e308", "clip=.inf"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_one_line_and_leave_no_run(tmp_path, capsys, word):
    out = tmp_path / "run"
    words = ["--preset", "reverse/lstm", "--out", str(out), "--quiet", "--device", "cpu", "--set", "validation_size=4"]
    assert main([*words, word]) == 2
    said = capsys.readouterr().err
    assert (said.startswith("error: "), said.count("\n")) == (True, 1)
    assert not out.exists()


@pytest.mark.parametrize("name", ["settings.json", "result.json"])
@pytest.mark.parametrize("content", ["[]", "5", "null", '"x"', "{", 100_000 * "["])
def test_a_run_whose_files_are_damaged_is_one_line_that_names_the_file(tmp_path, capsys, name, content):
    words = ["--preset", "reverse/lstm", "--out", str(tmp_path), "--quiet", "--device", "cpu", "--steps", "1"]
    if name == "result.json":
        settings = preset("reverse/lstm", steps=1)
        (tmp_path / "settings.json").write_text(json.dumps(settings.as_dict()))
    (tmp_path / name).write_text(content)
    assert main([*words, "--resume"]) == 2
    said = capsys.readouterr().err
    assert (said.startswith("error: "), said.count("\n"), name in said) == (True, 1, True)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stopped")
    assert run(tiny(curriculum="mastery"), directory, stop=lambda step: step == 5) is None
    return directory


FORGED_PROGRESS = [
    *({"step": value} for value in ("x", -5, 10**9, None, [1], 2.5, True)),
    *({"seconds": value} for value in ("x", -1, None, float("nan"), float("inf"))),
    *({"now_longest": value} for value in (10**7, 0, "x")),
    *({"best_score": value} for value in ("x", float("nan"))),
    *({"recent": value} for value in ("x", [None], [0.5] * 10_000)),
    *({"generator": value} for value in ("x", [1, 2], [300], None)),
]
FORGED_TENSORS = {
    "random": [None, torch.zeros(3, dtype=torch.uint8), torch.zeros(5056)],
    "model.head.weight": [None, torch.tensor(float("nan"))],
    "best.head.weight": [None, torch.zeros(1, 1)],
    "optimiser.0.exp_avg": [None, torch.zeros(3)],
    "optimiser.99.exp_avg": [torch.zeros(3)],
    "optimiser.x.exp_avg": [torch.zeros(3)],
}


def forge(directory, tensors=None, progress=None):
    """Change what a checkpoint holds; a tensor of None is left out, a progress that is no mapping replaces it."""
    path = directory / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    changed = {**load_file(path), **(tensors or {})}
    there = json.loads(metadata["progress"])
    metadata["progress"] = json.dumps(there | progress if isinstance(progress, dict) else progress or there)
    save_file({name: value for name, value in changed.items() if value is not None}, path, metadata)


@pytest.mark.parametrize(
    ("tensors", "progress"),
    [
        *(({}, progress) for progress in [*FORGED_PROGRESS, [1], 7]),
        *(({name: value}, {}) for name, values in FORGED_TENSORS.items() for value in values),
    ],
    ids=lambda value: str(value)[:40].replace("\n", " "),
)
def test_a_forged_checkpoint_is_refused_in_one_line(stopped, tmp_path, tensors, progress):
    directory = tmp_path / "run"
    shutil.copytree(stopped, directory)
    weight = next(name for name in load_file(stopped / "checkpoint.safetensors") if name.startswith("model."))
    names = {"model.head.weight": weight, "best.head.weight": weight.replace("model.", "best.", 1)}
    shape = load_file(stopped / "checkpoint.safetensors")[weight].shape
    tensors = {
        names.get(name, name): value.expand(shape).clone() if value is not None and value.isnan().any() else value
        for name, value in tensors.items()
    }
    forge(directory, tensors, progress)
    before = (directory / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is no checkpoint of this run: [^\n]+$") as raised:
        run(tiny(curriculum="mastery"), directory, resume=True)
    assert len(str(raised.value)) < 300 + 2 * len(str(directory))
    assert (directory / "checkpoint.safetensors").read_bytes() == before
    assert not (directory / "result.json").exists()


def test_a_result_replaces_no_file_of_the_run_and_no_memory(tmp_path, capsys):
    out = tmp_path / "run"
    run(tiny(), out)
    memory = tmp_path / "memory.st"
    attach("conv4").save(memory)
    weights = tmp_path / "weights"
    weights.hardlink_to(out / "model.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    measure, training = ["--evaluate", str(out), "--size", "5"], ["--preset", "reverse/lstm", "--out", str(out)]
    for words in (measure, training):
        for path, reason in (
            (memory, "is a memory, and would be replaced"),
            (out / "model.safetensors", "is a safetensors file, and would be replaced"),
            (weights, "is a safetensors file, and would be replaced"),
            (out / "settings.json", "is a file of the run"),
            (out / "checkpoint.safetensors", "is a file of the run"),
            (tmp_path / "nowhere" / "x.json", "does not exist"),
        ):
            assert main([*words, "--json", str(path)]) == 2
            said = capsys.readouterr().err
            assert (said.startswith("error: "), reason in said, said.count("\n")) == (True, True, 1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert main([*measure, "--json", str(out / "lengths.json")]) == 0


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


def test_a_curriculum_begins_at_the_length_that_is_given(tmp_path):
    given = {"curriculum": "mastery", "lengths": (2, 5), "validate_every": 1, "steps": 2}
    for first, begun in ((None, 3), (2, 2), (5, 5)):
        run(tiny(first_longest=first, **given), tmp_path / f"run-{first}")
        with (tmp_path / f"run-{first}" / "log.csv").open() as file:
            assert {int(row["longest"]) for row in csv.DictReader(file)} == {begun}
    for first in (1, 6):
        with pytest.raises(ValueError, match=f"first_longest must be from 2 to 5, got {first}"):
            run(tiny(first_longest=first, **given), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    with pytest.raises(ValueError, match="first_longest is for the curriculum mastery"):
        tiny(first_longest=3)


def test_files_of_training_choose_no_weights(tmp_path, reviews):
    """They were drawn as validation: noise that was learned by heart had 100%."""
    options = {"data_dir": reviews, "length": 12}
    settings = tiny(task="imdb_bytes", model="nam-attention-erase", select="id", task_options=options)
    with pytest.raises(
        ValueError, match=r"imdb_bytes are given, and weights are not chosen by them: select must be null"
    ):
        run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


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


@pytest.mark.parametrize("content", [b"\0\0\0\0", b"\xff\xfe", b"step,loss\nten,1.0\n"])
def test_a_damaged_log_is_named(tmp_path, content):
    """Going on with such a run ended with what ``int`` or a codec says."""
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"log\.csv is no log of a training run: remove it"):
        open_log(tmp_path, 5)


@pytest.mark.parametrize("words", [["--list"], ["--generate", "run"]])
def test_what_trains_and_measures_nothing_writes_no_result(tmp_path, words, capsys):
    """``--json`` was taken, and no file was there afterwards."""
    assert main([*words, "--json", str(tmp_path / "result.json")]) == 2
    assert capsys.readouterr().err == f"error: {words[0]} does not use --json: leave it out\n"


def test_only_a_run_on_text_writes(tmp_path, capsys):
    run(tiny(), tmp_path)
    assert main(["--generate", str(tmp_path)]) == 2
    assert "reverse is no text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "message"), [("cuda", "there is no device 'cuda' here"), ("gpu", "must be auto, cpu or cuda")]
)
def test_a_device_that_is_not_here_is_an_error_of_one_line(tmp_path, capsys, monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = ["--preset", "reverse/lstm", "--out", str(tmp_path / "run"), "--quiet", "--device", device]
    assert main(given) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=message):
        check_device(device)
    check_device("auto")

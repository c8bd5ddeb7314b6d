"""Training of agents: a step of every model, exact resuming, a task that is learned, files, and mistakes that are refused."""

import csv
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.stats import t as student_t

pytest.importorskip("gymnasium", reason="needs the extra rl")

from fewshot_nam.cli.train_agent import main
from fewshot_nam.sequences.reinforcement import (
    MODELS,
    AgentSettings,
    agent_preset,
    environments,
    evaluate_agent,
    load_agent,
    train_agent,
)

SIZES = {"width": 8, "memory": 5, "slots": 2}


def tiny(**changes):
    settings = {
        "environment": "recall",
        "model": "lstm-stm",
        "environment_options": {"rooms": 2, "colours": 3, "buttons": 2},
        "model_options": SIZES,
        "steps": 120,
        "workers": 3,
        "rollout": 5,
        "log_every": 2,
        "test_episodes": 7,
        "learning_rate": 1e-2,
    }
    return AgentSettings(**{**settings, **changes})


def rows(directory):
    with (directory / "log.csv").open(newline="") as file:
        return [{**row, "seconds": None} for row in csv.DictReader(file)]


@pytest.mark.parametrize("model", MODELS)
def test_a_run_that_is_stopped_and_resumed_equals_one_that_is_not(tmp_path, model):
    settings = tiny(model=model)
    whole = train_agent(settings, tmp_path / "whole", device="cpu")
    assert train_agent(settings, tmp_path / "parts", device="cpu", stop=lambda step: step == 45) is None
    assert (tmp_path / "parts" / "checkpoint.safetensors").is_file()
    torch.manual_seed(99)
    with (tmp_path / "parts" / "log.csv").open("a", newline="") as file:
        csv.writer(file).writerow([60, 0, 0, 0, 0, 0])  # logged after the checkpoint, and lost
    assert train_agent(settings, tmp_path / "parts", device="cpu", resume=True, stop=lambda step: step == 90) is None
    parts = train_agent(settings, tmp_path / "parts", device="cpu", resume=True)
    assert parts["return"] == whole["return"]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert [row["step"] for row in rows(tmp_path / "whole")] == ["30", "60", "90", "120"]
    assert not (tmp_path / "parts" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("model", MODELS)
def test_a_step_of_every_model_on_pong_and_resuming_within_a_game(tmp_path, model):
    pytest.importorskip("ale_py", reason="needs the extra rl")
    changes = {"environment": "pong", "environment_options": {"frame_skip": 4}}
    settings = tiny(model=model, steps=100, workers=2, rollout=3, log_every=1, **changes)
    for name, stops in (("whole", [12]), ("parts", [6, 12])):
        for stop in stops:
            resumed = stop != stops[0]
            assert not train_agent(settings, tmp_path / name, resume=resumed, device="cpu", stop=lambda at: at == stop)  # noqa: B023
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert [row["step"] for row in rows(tmp_path / "whole")] == ["6", "12"]
    first, second = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_task_that_needs_a_memory_is_learned_with_one_and_not_without(tmp_path):
    learned = {}
    for model in ("feedforward", "lstm"):
        options = {"environment_options": {"rooms": 1, "colours": 1, "buttons": 2}, "model_options": {"width": 16}}
        settings = tiny(model=model, steps=6000, workers=16, rollout=10, test_episodes=200, **options)
        learned[model] = train_agent(settings, tmp_path / model, device="cpu")["return"]
    assert learned["lstm"]["mean"] > 0.95
    assert learned["feedforward"]["mean"] < 0.65


def test_a_finished_run_holds_a_result_that_can_be_checked(tmp_path, capsys):
    result = train_agent(tiny(), tmp_path, device="cpu")
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result.keys() == {"task", "model", "preset", "seed", "parameters", "steps", "seconds", "return"}
    assert result["return"].keys() == {"mean", "low", "high", "episodes"}
    assert result["return"]["episodes"] == 7
    agent, settings = load_agent(tmp_path)
    assert settings == tiny()
    assert agent.num_parameters == result["parameters"]
    assert evaluate_agent(agent, "recall", 7, **settings.environment_options) == result["return"]
    assert train_agent(tiny(), tmp_path, device="cpu", resume=True) == result
    assert main(["--evaluate", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"return": result["return"]}


def test_the_interval_of_one_episode_is_unknown(tmp_path):
    result = train_agent(tiny(test_episodes=1), tmp_path, device="cpu")
    assert result["return"]["low"] is None
    assert "Infinity" not in (tmp_path / "result.json").read_text()


@pytest.mark.parametrize("episodes", [2, 5, 100])
def test_the_interval_of_few_episodes_is_students(tmp_path, monkeypatch, episodes):
    """That of five, as Pong has them, was 1.96 standard errors, and held the mean in 88% of tests."""
    train_agent(tiny(), tmp_path, device="cpu")
    agent, settings = load_agent(tmp_path)
    monkeypatch.setattr("statistics.stdev", lambda _: 1.0)
    found = evaluate_agent(agent, "recall", episodes, **settings.environment_options)
    half = 1.96 if episodes >= 100 else student_t.ppf(0.975, episodes - 1)
    assert found["high"] - found["mean"] == pytest.approx(half / episodes**0.5, rel=5e-3)
    assert found["mean"] - found["low"] == pytest.approx(half / episodes**0.5, rel=5e-3)


def test_every_preset_is_complete():
    for environment in environments.available():
        for model in MODELS:
            settings = agent_preset(environment, model, seed=2, model_options={"width": 32})
            assert AgentSettings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings
            assert (settings.seed, settings.model_options["width"]) == (2, 32)


def test_settings_that_are_wrong_are_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'workers'"):
        agent_preset("recall", "lstm", worker=3)
    with pytest.raises(ValueError, match="no environment 'chess'"):
        agent_preset("chess", "lstm")
    for changes, message in (({"steps": 0}, "steps"), ({"clip": 0.0}, "clip"), ({"discount": 1.5}, "discount")):
        with pytest.raises(ValueError, match=message):
            tiny(**changes)
    with pytest.raises(ValueError, match="at least 1 episode"):
        evaluate_agent(None, "recall", 0)


def test_a_directory_of_another_run_is_refused(tmp_path):
    train_agent(tiny(), tmp_path, device="cpu", stop=lambda step: True)
    with pytest.raises(ValueError, match="resume it"):
        train_agent(tiny(), tmp_path, device="cpu")
    with pytest.raises(ValueError, match="another seed"):
        train_agent(tiny(seed=1), tmp_path, device="cpu", resume=True)
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_agent(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "5", "{", '{"model": "lstm"}', '{"environment": 5, "model": "lstm"}'])
def test_a_damaged_run_is_named(tmp_path, capsys, content):
    """One without settings was a traceback, and one that was cut short named no file."""
    train_agent(tiny(), tmp_path, device="cpu")
    settings, result = tmp_path / "settings.json", tmp_path / "result.json"
    whole = settings.read_text()
    settings.write_text(content)
    for given in (["--evaluate", str(tmp_path)], ["--table", str(tmp_path)]):
        assert main(given) == 2
        said = capsys.readouterr().err
        assert "settings.json " in said
        assert said.count("\n") == 1
    settings.write_text(whole)
    if "model" not in content:
        result.write_text(content)
        assert main(["--table", str(tmp_path)]) == 2
        assert "result.json " in capsys.readouterr().err


def test_the_command_trains_resumes_and_tells_mistakes(tmp_path, capsys):
    words = ["--env", "recall", "--model", "lstm", "--steps", "90", "--out", str(tmp_path / "run"), "--quiet"]
    words += ["--set", "workers=3", "rollout=5", "test_episodes=3", "model_options={width: 8}"]
    assert main([*words, "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["steps"], result["task"]) == (90, "recall")
    assert main([*words, "--resume", "--json", str(tmp_path / "again.json")]) == 0
    assert json.loads((tmp_path / "again.json").read_text()) == result
    assert main(words) == 2
    assert main(["--env", "recall"]) == 2
    assert main(["--list"]) == 0
    assert main(["--list", "--seed", "1"]) == main(["--table", str(tmp_path), "--json", str(tmp_path / "x.json")]) == 2
    said = capsys.readouterr()
    assert "resume it" in said.err
    assert "give --env" in said.err
    assert "lstm-stm" in said.out


def test_the_table_holds_every_finished_run_and_the_spread_over_seeds(tmp_path, capsys):
    means = []
    for seed in (0, 1):
        found = train_agent(tiny(seed=seed), tmp_path / f"stm-{seed}", device="cpu")
        means.append(found["return"]["mean"])
    train_agent(tiny(model="lstm"), tmp_path / "lstm", device="cpu", stop=lambda step: True)  # unfinished
    assert main(["--table", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:2] == ["recall (rooms 2, colours 3, buttons 2)", "lstm-stm"]
    assert cells[3:5] == ["2", "120"]
    assert cells[5] == f"{sum(means) / 2:.2f} ({min(means):.2f} to {max(means):.2f})"
    assert (
        cells[6].split(", ")[0]
        == f"{sum(float(rows(tmp_path / f'stm-{seed}')[0]['return']) for seed in (0, 1)) / 2:.2f}"
    )
    assert main(["--table", str(tmp_path / "lstm")]) == 2


def test_the_table_takes_no_other_settings_and_no_copies_for_seeds(tmp_path, capsys):
    """Three learning rates and a copy were four seeds of one row."""
    runs = tmp_path / "runs"
    for seed, rate in ((0, 1e-3), (1, 1e-3), (0, 0.5)):
        train_agent(tiny(seed=seed, learning_rate=rate), runs / f"{rate}-{seed}", device="cpu")
    assert main(["--table", str(runs)]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[1], row[3]) for row in rows] == [
        ("lstm-stm (learning_rate 0.001)", "2"),
        ("lstm-stm (learning_rate 0.5)", "1"),
    ]
    shutil.copytree(runs / "0.5-0", runs / "copy")
    assert main(["--table", str(runs)]) == 2
    assert "are runs of one seed and the same settings" in capsys.readouterr().err


def test_damaged_files_of_a_run_in_the_table_are_named_in_one_line(tmp_path, capsys):
    train_agent(tiny(), tmp_path, device="cpu")
    whole = {name: (tmp_path / name).read_text() for name in ("log.csv", "result.json", "settings.json")}
    result, settings = (json.loads(whole[name]) for name in ("result.json", "settings.json"))
    results = ({"return": 3}, {"return": {"mean": "x"}}, {"seconds": 0}, {"steps": None}, {"parameters": []})
    damages = [("log.csv", log) for log in ("", "step,return\n", "step,return\nx,y\n", "a,b\n1,2\n")]
    damages += [("result.json", json.dumps(result | change)) for change in results]
    damages += [
        ("settings.json", json.dumps(settings | change)) for change in ({"environment_options": 3}, {"model": "\x1b"})
    ]
    for name, content in damages:
        (tmp_path / name).write_text(content)
        assert main(["--table", str(tmp_path)]) == 2, (name, content)
        said = capsys.readouterr().err
        assert f"{name} holds no " in said
        assert said.count("\n") == 1
        (tmp_path / name).write_text(whole[name])


@pytest.mark.parametrize(
    "forged",
    [
        *({"step": value} for value in ("x", -5, 10**9, None, 2.5)),
        *({"episodes": value} for value in ("x", -1, None)),
        {"recent": ["x"]},
        {"generator": [300]},
        *({"environments": value} for value in (None, {}, {"episodes": [0], "actions": [[]]})),
        *({"environments": {"episodes": [0, 0, 0], "actions": [[], [], [a]]}} for a in (-1, 99, "x", 0.5)),
        {"environments": {"episodes": [0, -1, 0], "actions": [[], [], []]}},
    ],
    ids=str,
)
def test_a_forged_checkpoint_is_refused_in_one_line(tmp_path, forged):
    assert train_agent(tiny(), tmp_path, device="cpu", stop=lambda step: step == 45) is None
    path = tmp_path / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    metadata["progress"] = json.dumps(json.loads(metadata["progress"]) | forged)
    save_file(load_file(path), path, metadata)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is no checkpoint of this run: [^\n]+$"):
        train_agent(tiny(), tmp_path, device="cpu", resume=True)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    "word",
    [
        *(f"model_options={value}" for value in ("{width: -1}", "{width: 0}", "{width: abc}", "{width: 2.5}", "{1: 2}", "3")),
        *(f"environment_options={value}" for value in ("3", "{1: 2}", "{nonsense: 1}", "{rooms: 2.5}")),
        *("steps=1.5", "environment=pong", "model=[1]", "workers=99999999"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_one_line_and_leave_no_run(tmp_path, capsys, word):
    out = tmp_path / "run"
    assert main(["--env", "recall", "--model", "lstm", "--out", str(out), "--quiet", "--set", word]) == 2
    said = capsys.readouterr().err
    assert (said.startswith("error: "), said.count("\n")) == (True, 1)
    assert not out.exists()

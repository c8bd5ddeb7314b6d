"""Plans, records, tables and plots of sequence runs: missing runs are made once, and figures are those of the runs."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

pytest.importorskip("lightning_fabric")

from fewshot_nam.cli import sequence_results, train_sequence
from fewshot_nam.sequences import models, tasks
from fewshot_nam.sequences.reporting import Experiment, carry_out, load_plan, read_records, read_runs, table
from fewshot_nam.sequences.reporting.plots import plot_heads
from fewshot_nam.sequences.reporting.records import check_records
from fewshot_nam.sequences.training import evaluate, load_trained, preset

ROOT = Path(__file__).resolve().parents[4]
RESULTS = ROOT / "results" / "sequences"
CHECKPOINTS = sorted(path for path in (RESULTS / "checkpoints").glob("*") if path.is_dir())
SMALL = {"size": "tiny", "steps": 3, "batch_size": 4, "validation_size": 4, "test_size": 5}
SET = [f"{name}={value}" for name, value in SMALL.items()]
PLAN = f"""
quick:
  task: reverse
  models: {{lstm: 2, deaf: 1}}
  variants: {{deaf: lstm-attention}}
  options: {{deaf: {{dropout: 0.5}}}}
  changes: {json.dumps(SMALL)}
  lengths: [2, 12]
  axis: length in digits
  size: 6
  published: ["Someone (2020): 50."]
"""


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN, encoding="utf-8")
    return path


def test_the_command_makes_missing_runs_records_tables_and_plots(plan, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    given = ["--plan", str(plan), "--runs", str(tmp_path / "runs"), "--device", "cpu", "--quiet"]
    assert sequence_results.main([*given, "--checkpoint", "quick/lstm-1"]) == 0
    assert capsys.readouterr().out.count("quick: ") == 3
    page = (tmp_path / "quick.md").read_text(encoding="utf-8")
    assert (tmp_path / "quick.png").read_bytes().startswith(b"\x89PNG")
    assert [(r.label, r.seed) for r in read_records(tmp_path / "quick.json")] == [("lstm", 0), ("lstm", 1), ("deaf", 0)]
    assert "3 steps of 4 sequences" in page
    assert "Someone (2020): 50." in page
    assert "Tests are at a length in digits." in page
    model, task = load_trained(tmp_path / "checkpoints" / "quick-lstm")
    found = evaluate(model, task, [2, 12], 6)
    lengths = {at: {**values, "sequences": 6} for at, values in found.items()}
    assert read_records(tmp_path / "quick.json")[1].lengths == lengths
    assert "At each length: 6 sequences." in page
    assert sequence_results.main(given) == 0  # nothing is trained twice
    assert "seed" not in capsys.readouterr().out
    (tmp_path / "quick.md").unlink()
    assert sequence_results.main(given[:2]) == 0  # from the records alone
    assert (tmp_path / "quick.md").read_text(encoding="utf-8") == page


def test_plots_mark_the_longest_length_of_training():
    whole, part = preset("reverse/lstm").as_dict(), preset("reverse/lstm", lengths=(2, 6)).as_dict()
    assert sequence_results._longest_trained(whole) == 10
    assert sequence_results._longest_trained(part) == 6


def test_a_run_is_what_its_command_makes(plan, tmp_path, capsys):
    experiment = load_plan(plan)["quick"]
    carry_out(experiment, tmp_path / "runs", models=["deaf"], device="cpu")
    (record,) = read_runs(experiment, tmp_path / "runs")
    assert record.settings["model_options"] == {"dropout": 0.5}
    words = shlex.split(experiment.command("deaf", 0, str(tmp_path / "again")))[2:]
    assert train_sequence.main([*words, "--device", "cpu", "--quiet"]) == 0
    capsys.readouterr()
    result = json.loads((tmp_path / "again" / "quick" / "deaf-0" / "result.json").read_text())
    assert result["accuracy"] == record.result["accuracy"]


def test_a_table_shows_means_and_extremes_of_seeds(plan, tmp_path):
    experiment = load_plan(plan)["quick"]
    carry_out(experiment, tmp_path / "runs", device="cpu")
    records = read_runs(experiment, tmp_path / "runs")
    at = {"exact": 0.0, "row": 0.0, "token": 0.0}
    records = [
        record._replace(
            result={**record.result, "accuracy": {"id": {**at, "exact": exact}}, "seconds": 2},
            lengths={"2": {**at, "exact": 0.25}},
        )
        for record, exact in zip(records, (0.5, 1.0, 0.0), strict=True)
    ]
    lines = table(experiment, records).splitlines()
    parameters = f"{records[0].result['parameters']:,}"
    assert f"| lstm | {parameters} | 2 | 75.0 (50.0 to 100.0) | 25.0 | 2 |" in lines
    in_bits = dataclasses.replace(experiment, measure="bits")
    bits = [{"bits": bits} for bits in (2.0, 2.5, 3.0)]
    of_bits = [
        record._replace(result={**record.result, "accuracy": {"id": one}}, lengths={"2": one})
        for record, one in zip(records, bits, strict=True)
    ]
    lines = table(in_bits, of_bits).splitlines()
    assert f"| lstm | {parameters} | 2 | 2.250 (2.000 to 2.500) | 2.250 (2.000 to 2.500) | 2 |" in lines
    assert "Bits an asked token" in lines[2]
    with pytest.raises(ValueError, match="quick: no finished run"):
        table(experiment, [])


def test_heads_of_a_machine_are_those_of_the_whole_model():
    pytest.importorskip("matplotlib")
    task = tasks.create("reduce")
    model = models.create("nam-tm-no-jump", task, "tiny")
    first, second = (plot_heads(model, task, 5, layer) for layer in (0, 1))
    titles = [axis.get_title() for axis in first.axes if axis.get_title()]
    assert titles == [f"{kind} head, tape {tape}" for tape in (0, 1) for kind in ("write", "read")]
    labels = [tick.get_text() for tick in first.axes[-2].get_xticklabels()]
    assert labels[5:] == ["|", "?", "?", "?", "?", "?"]
    images = [figure.axes[0].images[0].get_array() for figure in (first, second)]
    assert not (images[0] == images[1]).all()  # the second machine reads what the first returns


def test_a_change_of_no_setting_is_named(plan, tmp_path, capsys):
    for change in ('"name": 5', '"nope": 5', '"steps": "x"'):
        plan.write_text(PLAN.replace('"steps": 3', change), encoding="utf-8")
        assert sequence_results.main(["--plan", str(plan), "--runs", str(tmp_path / "runs")]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_a_mistake_in_a_plan_is_named(plan, tmp_path, capsys):
    plan.write_text(PLAN.replace("lengths", "lenghts"), encoding="utf-8")
    with pytest.raises(ValueError, match="lenghts"):
        load_plan(plan)
    plan.write_text(PLAN, encoding="utf-8")
    assert sequence_results.main(["--plan", str(plan), "quik"]) == 2
    assert "no experiment 'quik': there are quick" in capsys.readouterr().err
    assert sequence_results.main(["--plan", str(plan), "--checkpoint", "quick/lstm-0"]) == 2
    assert "--checkpoint needs --runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        "!!python/object:os.system {}",
        "a: 5",
        "5: {models: {lstm: 1}, lengths: [2]}",
        "../a: {models: {lstm: 1}, lengths: [2]}",
        "a: {models: {lstm: x}, lengths: [2]}",
        "a: {models: {lstm: 0}, lengths: [2]}",
        "a: {models: [lstm], lengths: [2]}",
        "a: {models: {lstm: 1}, lengths: [x]}",
        "a: {models: {lstm: 1}, lengths: [2], measure: nope}",
        "a: {models: {lstm: 1}, lengths: [2], changes: [1]}",
        "a: {models: {lstm: 1}, lengths: [2], published: 5}",
        "a: {models: {lstm: 1}, lengths: [2], size: -1}",
        "a: {models: {lstm: 1}, lengths: [2], options: {lstm: 3}}",
        "a: {models: {lstm: 1}, lengths: [2], changes: {1: 2}}",
        "a: {models: {lstm: 1}, lengths: [2], changes: {model_options: 3}, options: {lstm: {a: 1}}}",
        "a: {models: {lstm: 1}, lengths: [2], variants: {lstm: 3}}",
        "a: {models: {../../lstm: 1}, lengths: [2], variants: {../../lstm: lstm}}",
        "a: {models: {lstm: 1}, lengths: [2], published: [3]}",
        "a: {models: {lstm: 1}, lengths: [2], task: 3}",
        "a: {models: {lstm: 100000000000}, lengths: [2]}",
        "a: &a {models: {lstm: 1}, lengths: [2]}\nb: *a",
    ],
)
def test_what_is_no_plan_is_an_error_of_one_line(plan, capsys, text):
    plan.write_text(text, encoding="utf-8")
    assert sequence_results.main(["--plan", str(plan)]) == 2
    said = capsys.readouterr().err
    assert f"{plan} is no plan of experiments: " in said
    assert said.count("\n") == 1


def test_the_figures_of_a_run_are_not_published_under_another_command(plan, tmp_path, capsys):
    """A finished run was taken for that of the plan, whatever its settings were."""
    given = ["--plan", str(plan), "--runs", str(tmp_path / "runs"), "--device", "cpu", "--quiet"]
    assert sequence_results.main(given) == 0
    plan.write_text(PLAN.replace("[2, 12]", "[2, 9]"), encoding="utf-8")
    assert sequence_results.main(given) == 0  # measured anew
    assert set(read_records(tmp_path / "quick.json")[0].lengths) == {"2", "9"}
    plan.write_text(PLAN.replace('"steps": 3', '"steps": 4'), encoding="utf-8")
    capsys.readouterr()
    for more in ([], ["--no-training"]):
        assert sequence_results.main([*given, *more]) == 2
        assert "quick/lstm-0 was trained with another steps than the plan" in capsys.readouterr().err


def test_a_plan_costs_no_more_than_its_size(plan, monkeypatch):
    """432 bytes of aliases took 5.6 GiB, most of it in the message."""
    bomb = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    bomb += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    plan.write_text(f"a: {{lengths: [3], options: {{{', '.join(bomb)}}}, models: *a8}}", encoding="utf-8")
    monkeypatch.setattr("yaml.load", lambda *given, **options: pytest.fail("it is built"))
    with pytest.raises(ValueError, match=r"is no plan of experiments: .* aliases \(\*a0\) are not supported"):
        load_plan(plan)
    monkeypatch.undo()
    plan.write_text(PLAN.replace("{lstm: 2, deaf: 1}", f"[{'x,' * 10_000} x]"), encoding="utf-8")
    with pytest.raises(ValueError, match="models must be a mapping") as caught:
        load_plan(plan)
    assert len(str(caught.value)) < 400


def test_figures_of_another_number_of_sequences_are_measured_anew(plan, tmp_path, capsys):
    """A run that was measured on one sequence a length was published under a plan that says 2,000."""
    plan.write_text(PLAN.replace("size: 6", "size: 1"), encoding="utf-8")
    given = ["--plan", str(plan), "--runs", str(tmp_path / "runs"), "--device", "cpu", "--quiet"]
    assert sequence_results.main(given) == 0
    plan.write_text(PLAN.replace("size: 6", "size: 7"), encoding="utf-8")
    capsys.readouterr()
    assert sequence_results.main(given[:2]) == 2  # from the records alone
    assert "lstm seed 0 was measured on 1 sequences at 2, and not on the plan's 7" in capsys.readouterr().err
    assert sequence_results.main(given) == 0
    model, task = load_trained(tmp_path / "runs" / "quick" / "lstm-0")
    measured = read_records(tmp_path / "quick.json")[0].lengths
    assert measured == {at: {**v, "sequences": 7} for at, v in evaluate(model, task, [2, 12], 7).items()}


def test_runs_that_do_not_say_on_how_many_sequences_they_were_measured_are_the_plans(plan, tmp_path, capsys):
    plan.write_text(PLAN.replace("{lstm: 2, deaf: 1}", "{lstm: 1}"), encoding="utf-8")
    given = ["--plan", str(plan), "--runs", str(tmp_path / "runs"), "--device", "cpu", "--quiet"]
    assert sequence_results.main(given) == 0
    path = tmp_path / "runs" / "quick" / "lstm-0" / "lengths.json"
    old = {at: {**values, "exact": 0.25} for at, values in json.loads(path.read_text()).items()}
    for values in old.values():
        del values["sequences"]
    path.write_text(json.dumps(old))
    assert sequence_results.main(given) == 0  # not measured again
    assert read_records(tmp_path / "quick.json")[0].lengths == old
    assert "sequences." not in (tmp_path / "quick.md").read_text().replace("4 sequences", "")


@pytest.mark.parametrize("more", [[], ["--runs", "nothing_there", "--no-training"]])
def test_kept_figures_are_not_published_over_a_command_that_gives_others(plan, tmp_path, capsys, more):
    given = ["--plan", str(plan), "--runs", str(tmp_path / "runs"), "--device", "cpu", "--quiet"]
    assert sequence_results.main(given) == 0
    page = (tmp_path / "quick.md").read_text()
    plan.write_text(PLAN.replace('"steps": 3', '"steps": 4'), encoding="utf-8")
    capsys.readouterr()
    assert sequence_results.main([*given[:2], *more]) == 2
    assert "lstm seed 0 has another steps than the plan and the presets" in capsys.readouterr().err
    assert (tmp_path / "quick.md").read_text() == page


def test_damaged_values_of_records_are_one_line(plan, tmp_path, capsys):
    """Most ended in a traceback."""
    plan.write_text(PLAN.replace("{lstm: 2, deaf: 1}", "{lstm: 1}"), encoding="utf-8")
    kept = tmp_path / "quick.json"
    assert sequence_results.main(["--plan", str(plan), "--runs", str(tmp_path / "runs"), "--quiet"]) == 0
    page, whole = (tmp_path / "quick.md").read_text(), kept.read_text()
    strange = {"accuracy": {"\x1b[31m": {"exact": 0.5}}}
    for part in ("settings", "result", "lengths", "label", "seed"):
        for value in (None, "x\x1b[31m", [], {}, {"a": 1}, strange):
            if (part, value) == ("lengths", {}):  # measured at no length
                continue
            records = json.loads(whole)
            records[0][part] = {**records[0][part], **strange} if part == "result" and value is strange else value
            kept.write_text(json.dumps(records))
            capsys.readouterr()
            assert sequence_results.main(["--plan", str(plan)]) == 2, (part, value)
            said = capsys.readouterr().err
            assert "quick.json holds no records of the plan's quick: " in said
            assert said.count("\n") == 1
            assert "\x1b" not in said
            assert (tmp_path / "quick.md").read_text() == page


@pytest.mark.parametrize("name", ["result.json", "lengths.json", "settings.json"])
@pytest.mark.parametrize("text", ["", "[]", "null", "5", '"a"'])
def test_damaged_files_of_a_run_are_named(plan, tmp_path, capsys, name, text):
    plan.write_text(PLAN.replace("{lstm: 2, deaf: 1}", "{lstm: 1}"), encoding="utf-8")
    given = ["--plan", str(plan), "--runs", str(tmp_path / "runs"), "--device", "cpu", "--quiet"]
    assert sequence_results.main(given) == 0
    (tmp_path / "runs" / "quick" / "lstm-0" / name).write_text(text)
    assert sequence_results.main([*given, "--no-training"]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("value", ["7.5", "NaN", "-0.1", "Infinity", "true", '"1"', "null"])
def test_a_share_that_is_none_is_not_published(plan, tmp_path, capsys, value):
    """A damaged file's 7.5 became 750.0 percent."""
    plan.write_text(PLAN.replace("{lstm: 2, deaf: 1}", "{lstm: 1}"), encoding="utf-8")
    given = ["--plan", str(plan), "--runs", str(tmp_path / "runs"), "--device", "cpu", "--quiet"]
    assert sequence_results.main(given) == 0
    path = tmp_path / "runs" / "quick" / "lstm-0" / "lengths.json"
    found = json.loads(path.read_text())
    found[min(found)]["exact"] = "VALUE"
    path.write_text(json.dumps(found).replace('"VALUE"', value))
    capsys.readouterr()
    assert sequence_results.main([*given, "--no-training"]) == 2
    assert "lengths.json holds no accuracies" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "null", "5", "[1]", "[{}]"])
def test_damaged_records_are_named(plan, tmp_path, capsys, text):
    (tmp_path / "quick.json").write_text(text)
    assert sequence_results.main(["--plan", str(plan)]) == 2
    assert "quick.json holds no records of runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      "),
        *(("settings.json", text) for text in (b"", b"{}", b"[]", b"null", b"1", b'{"task": "reverse", "model": 5}')),
    ],
)
def test_a_damaged_run_is_named_when_it_is_measured(tmp_path, capsys, name, content):
    train_sequence.main(["--preset", "reverse/lstm", "--out", str(tmp_path / "run"), "--quiet", "--set", *SET])
    (tmp_path / "run" / name).write_bytes(content)
    assert train_sequence.main(["--evaluate", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert name in said
    assert "error: " in said.splitlines()[-1]


# --- the published runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", load_plan(RESULTS / "plan.yaml").values(), ids=lambda e: e.name)
def test_every_published_run_can_be_made(experiment: Experiment):
    assert set(experiment.variants) | set(experiment.options) <= set(experiment.models)
    budgets = set()
    for label in experiment.models:
        settings = preset(experiment._preset(label), **experiment._changes(label))
        try:
            task = tasks.create(settings.task, **settings.task_options)
        except FileNotFoundError as error:
            pytest.skip(str(error))
        models.create(settings.model, task, settings.size, **settings.model_options)
        budgets.add((settings.steps, settings.batch_size, settings.lengths, settings.curriculum))
    assert len(budgets) == 1  # the same for every model of a table


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_published_tables_are_those_of_the_records_and_of_the_commands_below_them(path):
    """The table of recall held runs of 800 steps among those of 2,400, which its commands make."""
    experiment, records = load_plan(RESULTS / "plan.yaml")[path.stem], read_records(path)
    check_records(experiment, records)
    assert path.with_suffix(".md").read_text(encoding="utf-8") == table(experiment, records)
    for record in records:
        settings = json.loads(json.dumps(dataclasses.asdict(experiment.settings(record.label, record.seed))))
        assert {name: settings[name] for name in record.settings} == record.settings, (record.label, record.seed)


@pytest.mark.parametrize("directory", CHECKPOINTS, ids=lambda path: path.name)
def test_a_checkpoint_that_ships_keeps_its_claim(directory):
    assert (directory / "model.safetensors").stat().st_size < 2**20
    claimed = json.loads((directory / "lengths.json").read_text())
    model, task = load_trained(directory)
    shortest = min(claimed, key=int)
    found = evaluate(model, task, [int(shortest)], 50)[shortest]
    assert found["token"] > claimed[shortest]["token"] - 0.05  # 50 of the sequences of the claim

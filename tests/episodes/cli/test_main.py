"""The command as a user meets it: the main job, files, configuration, and one clear line for whatever is wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from backbones.bundled import NETWORKS
from episodes import Episodes, FeatureBank
from episodes.cli.main import main
from episodes.cli.options import number, parser, read_options
from episodes.data import registry
from episodes.metrics.registry import MEASURES, PROTOCOLS, short_table
from fewshot_nam import attach
from fewshot_nam.heads.registry import specs
from fewshot_nam.vision.libraries.registry import LIBRARIES

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "episode_eval.py"
FEW = ["--episodes", "20", "--quiet"]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Return a folder of six classes with four images each: a bar at a place of its own for each class."""
    generator = np.random.default_rng(0)
    for label in range(6):
        (tmp_path / "photos" / f"class{label}").mkdir(parents=True)
        for i in range(4):
            pixels = np.full((32, 32), 255, dtype=np.uint8)
            pixels[4 * label : 4 * label + 4, 4:28] = 0
            pixels[generator.integers(28) :, 20:22] = 30
            Image.fromarray(pixels).save(tmp_path / "photos" / f"class{label}" / f"{i}.png")
    return tmp_path / "photos"


def small(photos: Path) -> list[str]:
    return ["--dataset", f"folder:{photos}", "--ways", "3", "--queries", "2", "--open-ways", "2", *FEW]


def test_the_main_job_prints_a_table_that_explains_itself(capsys):
    assert main(["--ways", "5", "--shots", "1", *FEW]) == 0
    out = capsys.readouterr().out
    for part in ["digits: 1,797 images of 10 classes", "conv4, 64 features", "seed 0", "minus cosine", "time:"]:
        assert part in out
    for head in ["nam ", "nam-sequential ", "cosine ", "cosine-centred ", "plda-snorm "]:
        assert f"\n{head}" in out


def test_json_holds_config_results_and_paired(tmp_path, capsys):
    for _ in range(2):
        assert main([*FEW, "--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")]) == 0
        text = (tmp_path / "out.json").read_text()
        first = locals().get("first", text)
        assert text == first, "the same run gives the same text"
    read = json.loads(text)
    assert read["config"]["bank"]["dataset"] == "digits"
    assert read["config"]["options"]["backbone"] == "conv4"
    value = read["results"]["nam"]["class_fpr@95tpr"]
    assert set(value) == {"mean", "ci95"}
    assert 0 <= value["mean"] <= 1
    assert set(read["paired"]["nam-cosine"]) == set(read["results"]["nam"])
    assert (tmp_path / "out.md").read_text().startswith("# 5-way 1-shot")


def test_own_images_saved_features_and_episodes_give_the_same_answer(photos, tmp_path, capsys):
    out, bank, episodes = tmp_path / "out.json", tmp_path / "bank.safetensors", tmp_path / "episodes.safetensors"
    heads = ["--heads", "nam", "cosine", "--json", str(out)]
    assert main([*small(photos), *heads, "--save-features", str(bank), "--episodes-file", str(episodes)]) == 0
    first = json.loads(out.read_text())["results"]
    assert len(FeatureBank.load(bank)) == 24
    assert len(Episodes.load(episodes)) == 20
    again = [*small(photos), *heads, "--dataset", f"features:{bank}", "--episodes-file", str(episodes), "--seed", "9"]
    assert main(again) == 0
    second = json.loads(out.read_text())["results"]
    assert second["cosine"]["auroc"] == first["cosine"]["auroc"]
    # What the backbone knew of base classes is not in the features, and that is said.
    assert second["nam"]["auroc"] != first["nam"]["auroc"]
    assert "note: nam has no base classes here" in capsys.readouterr().out


def test_features_record_no_backbone_and_take_no_option_that_nothing_uses(tmp_path, capsys):
    """JSON and page named a backbone that was not used, whatever it was."""
    bank, out = tmp_path / "bank.safetensors", tmp_path / "out.json"
    assert main([*FEW, "--heads", "cosine", "--save-features", str(bank)]) == 0
    given = [*FEW, "--heads", "cosine", "--dataset", f"features:{bank}"]
    assert main([*given, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["config"]["options"] == {"split": None}
    capsys.readouterr()
    for words in (["--backbone", "nonsense"], ["--precision", "nonsense"], ["--channels-last"], ["--skip-unreadable"]):
        assert main([*given, *words]) == 2
        assert (
            capsys.readouterr().err == f"error: {words[0]}: the features are given, so nothing uses it; leave it out\n"
        )
    assert main([*FEW, "--protocol", "closed", "--validation", "features:nowhere"]) == 2
    assert "--validation chooses thresholds" in capsys.readouterr().err


def test_episodes_of_a_file_are_said_to_be_so(tmp_path, capsys):
    given = [*FEW, "--heads", "cosine", "--episodes-file", str(tmp_path / "episodes.safetensors")]
    note = "note: the episodes are those that --episodes-file held: --episodes and --seed drew none"
    assert main(given) == 0
    assert note not in capsys.readouterr().out
    assert main([*given, "--episodes", "400", "--seed", "7"]) == 0
    out = capsys.readouterr().out
    assert note in out
    assert "20 episodes" in out


def test_every_head_is_evaluated_with_each_open_set_score_too(photos, tmp_path):
    out = tmp_path / "out.json"
    assert main([*small(photos), "--heads", "nam", "cosine", "--score", "knn", "msp", "--json", str(out)]) == 0
    results = json.loads(out.read_text())["results"]
    assert list(results) == ["nam", "nam+knn", "nam+msp", "cosine", "cosine+knn", "cosine+msp"]
    assert results["cosine+knn"]["accuracy"] == results["cosine"]["accuracy"]


def test_a_split_gives_base_and_validation_classes(photos, tmp_path, capsys):
    split = tmp_path / "split.yaml"
    split.write_text(
        yaml.safe_dump({"base": ["class0", "class1"], "val": [], "novel": [f"class{i}" for i in range(2, 6)]})
    )
    arguments = [*small(photos), "--split", str(split), "--ways", "2", "--open-ways", "1", "--protocol", "generalized"]
    assert main([*arguments, "--queries", "1"]) == 0
    out = capsys.readouterr().out
    assert "novel_to_base" in out
    assert "cosine-centred" in out


def test_heads_that_need_base_classes_are_left_out_and_said_so(tmp_path, capsys):
    bank = FeatureBank(torch.rand(40, 8) + 0.1, torch.arange(40) % 4)
    bank.save(tmp_path / "bank.safetensors")
    options = [
        "--dataset",
        f"features:{tmp_path}/bank.safetensors",
        "--ways",
        "2",
        "--open-ways",
        "2",
        "--queries",
        "3",
        *FEW,
    ]
    assert main(options) == 0
    assert "note: cosine-centred is left out: it needs base classes" in capsys.readouterr().out
    assert main([*options, "--heads", "cosine-centred"]) == 2
    assert "give them with --base or --split" in capsys.readouterr().err


def test_unreadable_images_are_named_or_counted_and_listed(photos, capsys):
    (photos / "class2" / "broken.png").write_bytes(b"no image")
    assert main(small(photos)) == 2
    assert "class2/broken.png" in capsys.readouterr().err
    assert main([*small(photos), "--skip-unreadable"]) == 0
    out = capsys.readouterr().out
    assert "1 unreadable images" in out
    assert "broken.png" in out


@pytest.mark.parametrize(("value", "fault"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (0.0, "all zeros")])
def test_features_that_cannot_be_used_are_named(value, fault, tmp_path, capsys):
    features = np.random.default_rng(0).random((40, 8)).astype(np.float32) + 0.1
    features[17] = value
    np.savez(tmp_path / "bank.npz", features=features, labels=np.arange(40) % 4)
    assert main(["--dataset", f"features:{tmp_path}/bank.npz", "--ways", "2", "--open-ways", "2", *FEW]) == 2
    error = capsys.readouterr().err
    assert "row 17 (class 1)" in error
    assert fault in error
    assert error.count("\n") == 1


def test_too_few_classes_are_named_before_any_image_is_read(photos, capsys, monkeypatch):
    monkeypatch.setattr("episodes.features.sources.extract", lambda *_, **__: pytest.fail("features were extracted"))
    assert main(["--dataset", f"folder:{photos}", *FEW]) == 2
    assert "5 ways and 5 unknown ways need 10 classes, and there are 6" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_named_by_their_keys(tmp_path, capsys):
    torch.save({"blocks.0.0.weight": torch.zeros(64, 1, 3, 3), "other": torch.zeros(3)}, tmp_path / "weights.pt")
    assert main([*FEW, "--weights", str(tmp_path / "weights.pt")]) == 2
    error = capsys.readouterr().err
    assert "other" in error
    assert "blocks.0.1.weight" in error
    assert error.count("\n") == 1


def test_a_configuration_file_gives_any_option_and_flags_win(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "ways: 3\nopen-ways: 2\nheads: [nam, ridge]\nskip_unreadable: true\nseed: 5\n"
        "model_option: {pad_type: same}\ntransform_option:\n  mean: [0.5, 0.5, 0.5]\n"
    )
    options = read_options(["--config", str(config), "--seed", "6"])
    assert (options.ways, options.open_ways, options.seed, options.skip_unreadable) == (3, 2, 6, True)
    assert options.heads == ["nam", "ridge"]
    assert options.model_option == ["pad_type=same"]
    assert options.transform_option == ["mean=[0.5, 0.5, 0.5]"]
    assert options.shots == 1


def test_every_option_can_stand_in_a_configuration_file(tmp_path):
    made, config = parser(), tmp_path / "run.yaml"
    values = {}
    for action in made._actions:
        if action.dest not in ("help", "version", "config"):
            values[action.dest] = (
                True
                if action.nargs == 0
                else 2
                if action.type in (int, number)
                else ["a=1"]
                if action.nargs
                else "text"
            )
    config.write_text(yaml.safe_dump(values))
    assert {**vars(read_options(["--config", str(config)])), "config": None} == {**values, "config": None}


def config_of(tmp_path: Path, text: str) -> str:
    (tmp_path / "run.yaml").write_text(text)
    return str(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ways", "11"], "11 ways and 5 unknown ways need 16 classes, and there are 10"),
        (["--queries", "400"], "class '8' has 174 images, and 1 shots and 400 queries need 401"),
        (["--heads", "nam", "cosin"], "no head 'cosin': did you mean 'cosine'"),
        (["--score", "knnn"], "no open-set score 'knnn': did you mean 'knn'"),
        (["--heads", "cosine+rmds"], "the open-set score 'rmds' is fitted on features of base classes"),
        (["--backbone", "conv5"], "conv5"),
        (["--backbone", "resnet18"], "timm/resnet18"),
        (["--dataset", "digit"], "did you mean 'digits'"),
        (["--dataset", "folder:/nowhere"], "/nowhere"),
        (["--dataset", "features:/nowhere.safetensors"], "/nowhere.safetensors"),
        (["--dataset", "omniglot", "--data-dir", "/nowhere"], "--download"),
        (["--protocol", "opened"], "no protocol 'opened'"),
        (["--protocol", "generalized"], "needs base classes"),
        (["--device", "cuda:77"], "device 'cuda:77' cannot be used here"),
        (["--weights", "/nowhere.safetensors"], "/nowhere.safetensors"),
        (["--model-option", "width"], "--model-option: expected KEY=VALUE, got 'width'"),
        (["--model-option", "wdth=3"], "wdth"),
        (["--split", "4/2/9"], "split"),
        (["--threads", "0"], "--threads must be from 1 to 1024"),
        (["--ways", "five"], "argument --ways: invalid int value: 'five'"),
        (["--wasy", "5"], "unrecognized arguments: --wasy 5"),
        (["--episodes", "0"], "episodes must be at least 1"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--json", ""], "--json: '' names no file"),
        (["--json", "/"], "--json: '/' names no file"),
        (["--json", "/tmp/same", "--markdown", "/tmp/same"], "--markdown and --json name the same file"),
        (["--episodes-file", "/tmp"], "names no file"),
        (["--episodes-file", "/tmp/e.st", "--episodes", "-5"], "episodes must be at least 1, got -5"),
        (["--base-queries", "folder:x"], "--base-queries needs --protocol generalized"),
        (["--model-option", "a=[1"], "the value of 'a=[1' is not YAML"),
        (["--device", "meta"], "device 'meta' cannot be used here"),
        (["--json", "/nowhere/out.json"], "--json: the directory of /nowhere/out.json does not exist"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(arguments, message, capsys):
    try:
        code = main([*FEW, *arguments])
    except SystemExit as stopped:  # argparse ends the process itself
        code = stopped.code
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wasy: 3", "no option 'wasy'; did you mean 'ways'"),
        ("ways: three", "ways must be a whole number, got 'three'"),
        ("ways: true", "ways must be a whole number, got True"),
        ("dirichlet: few", "dirichlet must be a number, got 'few'"),
        ("quiet: 1", "quiet must be true or false, got 1"),
        ("dataset: 3", "dataset must be text, got 3"),
        ("- ways", "expected a mapping of options to values, got list"),
        ("ways: [3", "is not YAML"),
        ("ways: 3\nways: 4", "'ways' is given twice"),
        ("open-ways: 3\nopen_ways: 4", "'open_ways' is given twice"),
        ("heads: []", "heads must be a list of names with at least one in it"),
        ("heads: [nam, [cosine]]", "heads must be a list of names"),
        ("heads: {nam: 1}", "heads must be text"),
        ("config: other.yaml", "no option 'config'"),
    ],
)
def test_bad_configuration_is_named(text, message, tmp_path, capsys):
    assert main(["--config", config_of(tmp_path, text)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "run.yaml" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        (["--dataset", "features:{}/bank.npz"], ["--save-features", "{}/bank.npz"]),
        (["--dataset", "features:{}/bank.npz"], ["--json", "{}/link.npz"]),
        (["--dataset", "folder:{}/photos", "--base", "features:{}/bank.npz"], ["--markdown", "{}/bank.npz"]),
        (["--validation", "features:{}/bank.npz"], ["--json", "{}/photos/../bank.npz"]),
        (["--weights", "{}/bank.npz"], ["--json", "{}/bank.npz"]),
        (["--split", "{}/split.yaml"], ["--json", "{}/split.yaml"]),
        (["--config", "{}/run.yaml"], ["--markdown", "{}/run.yaml"]),
        (["--dataset", "folder:{}/photos"], ["--json", "{}/photos/class0/0.png"]),
        (["--dataset", "folder:{}/photos"], ["--report", "{}/photos"]),
        (["--dataset", "folder:{}/photos"], ["--report", "{}/photos/class0"]),
        (["--dataset", "features:{}/bank.npz"], ["--episodes-file", "{}/bank.npz"]),
    ],
)
def test_an_output_that_is_an_input_is_refused(inputs, output, photos, tmp_path, capsys):
    features = np.random.default_rng(0).random((40, 8)).astype(np.float32) + 0.1
    np.savez(tmp_path / "bank.npz", features=features, labels=np.arange(40) % 4)
    (tmp_path / "link.npz").symlink_to(tmp_path / "bank.npz")
    for name in ("split.yaml", "run.yaml"):
        (tmp_path / name).write_text("quiet: true\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    arguments = [part.format(tmp_path) for part in (*inputs, *output)]
    assert main([*FEW, "--ways", "2", "--open-ways", "2", "--queries", "2", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {output[0]}: ")
    assert inputs[0] in error or inputs[-2] in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("flag", ["--json", "--markdown", "--save-features"])
def test_memories_and_images_are_not_replaced_by_an_output(flag, tmp_path, capsys):
    attach("conv4").save(tmp_path / "memory.st")
    Image.new("L", (8, 8)).save(tmp_path / "image.PNG")
    for name, kind in (("memory.st", "a memory"), ("image.PNG", "an image")):
        path = tmp_path / name
        before = path.read_bytes()
        assert main([*FEW, flag, str(path)]) == 2
        assert capsys.readouterr().err == (
            f"error: {flag}: {path} is {kind}, and would be replaced: choose another name for the output\n"
        )
        assert path.read_bytes() == before


def test_a_configuration_that_could_cost_more_than_its_size_is_refused_and_not_echoed(tmp_path, capsys):
    aliases = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "\n".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)
    )
    for text, message in (
        (aliases + "\nheads: *a9\n", "aliases"),
        ("heads: " + "[" * 3000, "nested more than"),
        ("heads: [" + "[x], " * 5000 + "x]", "heads must be a list of names"),
        ("ways: " + "x" * 100_000, "ways must be a whole number"),
        ("x" * 1000 + ": 3", "no option"),
    ):
        assert main(["--config", config_of(tmp_path, text)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert len(error) < 1000


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("/usr/bin/fewshot-nam-eval", "fewshot-nam-eval"),
        ("scripts/episode_eval.py", "episode_eval.py"),
        ("/x/main.py", "fewshot-nam-eval"),
    ],
)
def test_help_and_version_use_the_name_that_was_called(called, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [called])
    for flag in ("--help", "--version"):
        with pytest.raises(SystemExit) as stopped:
            main([flag])
        assert stopped.value.code == 0
        assert name in capsys.readouterr().out.splitlines()[0]


def test_help_lists_heads_backbones_data_sets_and_measures(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")  # no line is broken
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    heads = re.search(r"which heads to compare: (.*) \(default", out)[1].split(", ")
    assert heads == [entry.name for entry in specs()]
    assert {"nam", "maml", "anil"} <= set(heads)
    marked = re.search(r"scored together: (.*)", out)[1].split(", ")
    assert marked == [entry.name for entry in specs() if entry.transductive]
    backbone = re.search(r"--backbone NAME +(.*)", out)[1]
    for name in [*NETWORKS, *(f"{prefix}MODEL" for prefix in LIBRARIES)]:
        assert name in backbone
    for form in registry.entries():
        assert f"{form.name} (" in out or f"{form.name}:" in out
    for protocol in PROTOCOLS:
        for measure in short_table(protocol):
            assert MEASURES[measure].meaning in out


def test_nothing_is_written_when_something_is_wrong(tmp_path, capsys):
    names = ["json", "markdown", "save-features", "episodes-file"]
    files = [part for name in names for part in (f"--{name}", str(tmp_path / name))]
    assert main([*FEW, *files, "--ways", "11"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_help_answers_without_torch_and_bad_input_without_a_traceback():
    code = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as stopped: assert stopped.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--episodes-file" in done.stdout
    done = subprocess.run([sys.executable, str(SCRIPT), "--ways", "11"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 11 ways")


def test_a_reader_who_has_seen_enough_is_no_error():
    command = [sys.executable, str(SCRIPT), *FEW]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == b""
    assert running.returncode == 0


@pytest.mark.parametrize(
    ("out", "encoding", "status"), [("pipe", "utf-8", 0), ("/dev/full", "utf-8", 2), ("file", "cp1252", 0)]
)
def test_files_are_written_whoever_reads_the_table(tmp_path, out, encoding, status):
    """After the whole evaluation there was no file, and with a closed pipe the exit status was 0."""
    if out == "/dev/full" and not Path(out).exists():
        pytest.skip("needs /dev/full")
    names = ["--json", "--markdown", "--save-features"]
    files = [word for name in names for word in (name, str(tmp_path / name.strip("-")))]
    command = [sys.executable, "-m", "episodes.cli.main", *FEW, "--heads", "nam", "cosine", *files]
    reader, writer = os.pipe()
    os.close(reader)
    target = writer if out == "pipe" else os.open(tmp_path / out, os.O_WRONLY | os.O_CREAT)
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, stdout=target, stderr=subprocess.PIPE, env=environment, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert all((tmp_path / name.strip("-")).stat().st_size for name in names)
    wrong = "error: standard output cannot be written (No space left on device): "
    assert done.stderr == (f"{wrong}files that were asked for are written all the same\n" if status else "")
    if out == "file":
        assert "accuracy" in (tmp_path / out).read_text(encoding)


def test_alphabets_and_thresholds_frozen_on_another_alphabet(data_dir, capsys):
    arguments = ["--dataset", f"folder:{data_dir}/omniglot-py/images_evaluation/Gurmukhi", "--queries", "5"]
    validation = ["--validation", f"folder:{data_dir}/omniglot-py/images_background/Sanskrit"]
    assert main([*arguments, *validation, *FEW]) == 0
    out = capsys.readouterr().out
    assert "Gurmukhi: 900 images of 45 classes" in out
    assert "@95tpr:frozen ↓" in out  # headings are on two lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--protocol", "closed", "--open-ways", "3"], "--open-ways: the closed protocol has no unknown classes"),
        (["--data-dir", "/nowhere"], "--data-dir: digits needs none"),
        (["--download"], "--download: digits needs none"),
    ],
)
def test_options_that_the_protocol_or_the_data_set_does_not_use_are_refused(words, said, capsys):
    assert main(["--episodes", "2", "--quiet", *words]) == 2
    assert said in capsys.readouterr().err

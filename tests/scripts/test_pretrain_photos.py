"""The script that trains Conv5: whole runs with and without episodes, runs that go on, and options that are refused."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import backbones
from backbones.pretraining.episodic import EpisodeRecipe, StartedRecipe
from backbones.pretraining.photo_augment import PhotoRecipe

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "pretrain_photos.py"
EPISODES = ("--ways", "2", "--shots", "1", "2", "--queries", "2")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("pretrain_photos", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["pretrain_photos"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["pretrain_photos"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Return a folder of four base classes with 6 images each."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label in range(4):
        (folder / "base" / f"class{label}").mkdir(parents=True)
        for i in range(6):
            levels = random.integers(0, 60, (64, 64, 3), dtype=np.uint8)
            levels[..., label % 3] += np.uint8(60 * (label // 3 + 1))
            Image.fromarray(levels).save(folder / "base" / f"class{label}" / f"{i}.png")
    return folder


def run(script, photos: Path, folder: Path, *more: str, name: str = "net", epochs: int = 2) -> Path:
    out = folder / f"{name}.safetensors"
    given = ["--out", str(out), "--checkpoint", str(folder / f"{name}.pt"), "--width", "2", "--batch-size", "12"]
    script.pretrain(script.parse([str(photos), *given, "--side", "32", "--epochs", str(epochs), *more]), process=0)
    return out


def card(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return file.metadata()["card"]


def same(first: Path, second: Path) -> bool:
    ours, theirs = load_file(first), load_file(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_without_new_options_the_recipe_is_the_one_of_before(script, photos, tmp_path):
    options = script.parse([str(photos), "--out", "x.safetensors"])
    assert script.recipe_of(options, start="") == PhotoRecipe()
    assert type(script.recipe_of(options, start="")) is PhotoRecipe
    out = run(script, photos, tmp_path)
    assert '"head"' not in card(out)
    assert backbones.create("conv5", out, model_options={"width": 2}).base_classes == [f"class{i}" for i in range(4)]


@pytest.mark.parametrize("head", ["nam", "cosine"])
def test_a_run_through_a_head_begins_with_given_weights_and_says_so(script, photos, tmp_path, head):
    first = run(script, photos, tmp_path, name="first", epochs=1)
    out = run(script, photos, tmp_path, "--start", str(first), "--head", head, *EPISODES, name=head)
    started = backbones.create("conv5", first, model_options={"width": 2})
    assert f'"head": "{head}"' in card(out)
    assert f'"start": "{started.weights_hash}"' in card(out)
    assert '"shots": [1, 2]' in card(out)
    found = backbones.create("conv5", out, model_options={"width": 2})
    images = torch.rand(2, 3, 64, 64)
    assert found(images).shape == (2, 32)
    assert not torch.allclose(found(images), started(images))


def test_at_a_learning_rate_of_nothing_the_given_weights_stay(script, photos, tmp_path):
    first = run(script, photos, tmp_path, name="first", epochs=1)
    for name, more in (("plain", ()), ("nam", ("--head", "nam", *EPISODES))):
        out = run(script, photos, tmp_path, "--start", str(first), "--learning-rate", "0", *more, name=name)
        before, after = load_file(first), load_file(out)
        for key in before:
            if key.endswith("weight") or key.endswith(".bias"):
                assert torch.equal(before[key], after[key]), key


@pytest.mark.parametrize("more", [(), ("--head", "nam", *EPISODES), ("--head", "cosine", *EPISODES)])
def test_a_stopped_run_goes_on_to_the_same_file(script, photos, tmp_path, monkeypatch, more):
    first = run(script, photos, tmp_path, name="first", epochs=1)
    start = ("--start", str(first), *more)
    whole = run(script, photos, tmp_path, *start, name="whole")

    def one_epoch(training, _check, _every):
        training.run_epoch()
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "train", one_epoch)
    with pytest.raises(KeyboardInterrupt):
        run(script, photos, tmp_path, *start, name="parts")
    monkeypatch.undo()
    assert same(run(script, photos, tmp_path, *start, name="parts"), whole)


def test_recipes_follow_from_the_options(script, photos):
    options = script.parse([str(photos), "--out", "x", "--start", "w", "--epochs", "4"])
    assert script.recipe_of(options, start="abc") == StartedRecipe(epochs=4, start="abc")
    options = script.parse([str(photos), "--out", "x", "--head", "cosine", "--shots", "3", "--ridge", "2"])
    assert script.recipe_of(options, start="") == EpisodeRecipe(head="cosine", shots=(3,), ridge=2.0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--start", "nowhere.safetensors"), "nowhere.safetensors: there is no such file"),
        (("--head", "nam", "--ways", "4"), "ways must be from 2 to 3"),
        (("--head", "nam", *EPISODES, "--ridge", "0"), "ridge must be above 0"),
        (("--head", "cosine", "--ways", "2"), "has 18 images, the batch 12"),
        (("--head", "nam", *EPISODES[:-1], "5", "--batch-size", "24"), "every class needs 7 images"),
    ],
)
def test_options_that_do_not_fit_are_refused(script, photos, tmp_path, more, message):
    with pytest.raises(SystemExit, match=f"pretrain_photos: .*{message}"):
        run(script, photos, tmp_path, *more)


def test_an_unknown_head_is_refused(script, photos, capsys):
    with pytest.raises(SystemExit):
        script.parse([str(photos), "--out", "x", "--head", "ridge"])
    assert "invalid choice: 'ridge'" in capsys.readouterr().err

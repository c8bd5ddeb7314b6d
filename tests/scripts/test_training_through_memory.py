"""The crossed table of ``scripts/training_through_memory.py``: heads on backbones, and paired differences between backbones."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from backbones.bundled import save_weights
from backbones.conv5 import Conv5
from episodes import FeatureBank
from episodes.metrics.intervals import paired

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "training_through_memory.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("training_through_memory", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["training_through_memory"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["training_through_memory"]


def bank(classes: str, seed: int, noise: float = 1.0) -> FeatureBank:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(60) % 10
    features = torch.rand(10, 8, generator=torch.Generator().manual_seed(len(classes)))[labels]
    features = features + noise * torch.rand(60, 8, generator=generator)
    return FeatureBank(features, labels, [f"{classes}{i}" for i in range(10)])


def test_differences_are_paired_and_have_both_intervals(script):
    heads = ["cosine", "plda"]

    def measured(noise):
        banks = {"novel": bank("novel", 1, noise), "base": bank("base", 2, noise)}
        settings = script.EvaluationSettings(ways=2, open_ways=2, queries=4, episodes=120)
        return script.measure(banks, "novel", script.OPEN, heads, settings)

    clear, noisy = measured(0.3), measured(3.0)
    assert torch.equal(clear.present, noisy.present)
    assert clear.present.sum(dim=1).tolist() == [4] * 120
    found = script.difference(clear, noisy, "plda")["accuracy"]
    expected = paired(clear.values["plda"]["accuracy"], noisy.values["plda"]["accuracy"])
    assert (found["mean"], found["ci95"]) == expected
    assert found["mean"] > 0.2
    assert found["ci95_over_classes"] > found["ci95"]
    assert script.difference_cell("accuracy", found).endswith(" +*")
    worse = script.difference(noisy, clear, "plda")["accuracy"]
    assert script.difference_cell("accuracy", worse).endswith(" -*")
    assert (
        script.difference_cell("accuracy", {"mean": 0.01, "ci95": 0.005, "ci95_over_classes": 0.02})
        == "+1.0 ± 0.5 (2.0)"
    )


def test_a_run_writes_every_head_on_every_backbone(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FEWSHOT_NAM_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for role in ("base", "base_unseen", "val", "novel"):
        for label in range(4):
            folder = tmp_path / "photos" / role / f"{role.removesuffix('_unseen')}{label}"
            folder.mkdir(parents=True)
            for i in range(36 if role == "base_unseen" else 17):  # a quarter of them are 30 base queries
                levels = random.integers(0, 120, (64, 64, 3), dtype=np.uint8) + np.uint8(30 * label)
                Image.fromarray(levels).save(folder / f"{i}.png")
    recipe = {"epochs": 1, "batch_size": 8}
    for name, extra in (("plain", {}), ("nam", {"head": "nam", "start": "0123456789abcdef"})):
        torch.manual_seed(len(name))
        facts = {
            "recipe": recipe | extra,
            "base_classes": [f"base{i}" for i in range(4)],
            "validation": {"1-shot": [50.0, 1.0]},
        }
        save_weights(tmp_path / f"{name}.safetensors", Conv5(2), torch.rand(4, 32), facts)
    weights = [f"{name}={tmp_path / name}.safetensors" for name in ("plain", "nam")]
    out = tmp_path / "found.json"
    given = [
        "--heads",
        "cosine",
        "plda",
        "--shots",
        "1",
        "--ways",
        "2",
        "--episodes",
        "6",
        "--generalized-episodes",
        "4",
        "--width",
        "2",
    ]
    script.main([str(tmp_path / "photos"), *weights, *given, "--json", str(out)])
    text, found = capsys.readouterr().out, json.loads(out.read_text(encoding="utf-8"))
    assert "Tiny ImageNet, 2-way, 6 episodes, seed 0, 2 unknown classes" in text
    options = "--ways 2 --shots 1 --heads cosine plda --episodes 6 --generalized-episodes 4 --width 2"
    assert f"nam.safetensors {options} \\\n" in text
    assert "- `nam`: 1 epochs in episodes through `nam`, from the weights 0123456789ab on; " in text
    assert list(found["settings"]) == [f"{part}, 1-shot" for part in script.PARTS]
    for part in found["settings"].values():
        assert {name: list(heads) for name, heads in part["results"].items()} == {
            "plain": ["cosine", "plda"],
            "nam": ["cosine", "plda"],
        }
        assert list(part["differences"]) == ["nam-plain"]
        for measure, difference in part["differences"]["nam-plain"]["plda"].items():
            means = {name: part["results"][name]["plda"][measure]["mean"] for name in ("plain", "nam")}
            assert difference["mean"] == pytest.approx(means["nam"] - means["plain"]), measure
    common = found["settings"]["novel and base classes in one label space, 1-shot"]
    assert list(common["results"]["nam"]["plda"]) == ["ausuc"]
    assert text.count("| nam | plda |") == text.count("| nam - plain | plda |") == 3
    assert " 22 differences are shown" in text


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (["a.safetensors", "b=b"], "give each backbone as NAME=WEIGHTS"),
        (["a=a"], "give two backbones or more"),
        (["a=a", "a=b"], "each with a name of its own"),
    ],
)
def test_backbones_that_cannot_be_compared_are_refused(script, capsys, weights, message):
    with pytest.raises(SystemExit):
        script.main(["data", *weights])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("metadata", [None, {"card": "{}"}, {"card": "[1]"}, {"card": "{"}])
def test_weights_without_a_card_are_refused_before_the_work(script, tmp_path, metadata):
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", metadata)
    with pytest.raises(ValueError, match=r"w.safetensors has (no card|a card of other weights)"):
        script.card(tmp_path / "w.safetensors")

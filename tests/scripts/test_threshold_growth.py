"""The table of ``scripts/threshold_growth.py``, and the figure beside it."""

import runpy
from pathlib import Path

import torch
from PIL import Image

from episodes import FeatureBank
from episodes.evaluation.growth import GROWTH_MEASURES, GrowthStudy
from episodes.reporting.plots import growth_figure, save
from fewshot_nam.heads import BaseStatistics, CosineHead

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "threshold_growth.py"


def test_the_table_has_every_size_and_the_figure_is_a_png(tmp_path):
    bank = FeatureBank(torch.rand(60, 5, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 10)
    rows = GrowthStudy(bank, (2, 5), 4, shots=2, queries=3, target=0.4, deployments=3).run({"cosine": CosineHead()})
    lines = runpy.run_path(str(SCRIPT))["table"]("digits", rows)
    assert lines[0] == f"| digits | classes | {' | '.join(GROWTH_MEASURES)} |"
    assert [line.split(" | ")[1] for line in lines[2:]] == ["2", "5", "2, after forgetting"]
    save(lambda: growth_figure(rows, "growth"), tmp_path / "growth.png")
    assert Image.open(tmp_path / "growth.png").format == "PNG"


def test_the_seed_and_the_command_are_those_of_the_run(monkeypatch, capsys):
    """It said "seed 0" above the figures of any seed."""
    module = runpy.run_path(str(SCRIPT))

    def studies(_data, deployments, seed):
        bank = FeatureBank(torch.rand(60, 5, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 10)
        study = GrowthStudy(bank, (2, 5), 4, shots=2, queries=3, target=0.4, deployments=deployments, seed=seed)
        yield "digits", study, BaseStatistics.from_mean(bank.features.mean(dim=0))

    monkeypatch.setitem(module["main"].__globals__, "studies", studies)
    given = ["--deployments", "3", "--seed", "7", "--heads", "cosine"]
    monkeypatch.setattr("sys.argv", ["threshold_growth.py", "DATA", *given])
    module["main"]()
    said = capsys.readouterr().out
    assert f"threshold_growth.py DATA {' '.join(given)} --json" in said
    assert "3 deployments, seed 7." in said

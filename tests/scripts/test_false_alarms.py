"""The tables of ``scripts/false_alarms.py``."""

import runpy
from pathlib import Path

import torch

from episodes import FeatureBank
from episodes.evaluation.calibration_study import CalibrationStudy
from fewshot_nam.heads import CosineHead

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "false_alarms.py"
MODULE = runpy.run_path(str(SCRIPT))


def test_a_study_has_a_table_for_each_of_its_questions():
    bank = FeatureBank(torch.rand(132, 5, generator=torch.Generator().manual_seed(0)), torch.arange(132) % 11)
    study = CalibrationStudy(bank, None, 4, 3, 5, ways=2, queries=3, few=9, bursts=9)
    rows = study.run({"cosine": CosineHead()}, 2, 3, targets=(0.2,))
    lines = MODULE["tables"]("random", rows)
    heads = [line for line in lines if line.startswith("| random")]
    assert heads == [
        "| random, shots | unknowns | calibration | target | cosine |",
        "| random, shots | calibration | target | promised | cosine |",
        "| random, shots | target | promised | cosine |",
    ]
    cells = [line.split(" | ") for line in lines if line.startswith("| 2 |")]
    assert [cell[1] for cell in cells] == ["novel", "novel", "few", "confident", "frames", "bursts", "20"]
    assert cells[2][3].startswith("20.0; ")


def test_broken_promises_are_bold():
    rate, within = {"mean": 0.1, "ci95": 0.01}, {"mean": 0.8, "ci95": 0.02}
    row = {
        "calibration": "few",
        "target": 0.05,
        "promise": {"bound": 0.05, "limit": 0.09, "confidence": 0.95},
        "accepted": {"same_classes": rate, "new_classes": rate, "known": {"mean": 0.9, "ci95": 0.02}},
        "within": within,
    }
    assert MODULE["cell_of_few"](row) == "**10.00 ± 1.00** / **80.0 ± 2.0** / 90.0"
    kept = {"bound": 0.2, "limit": 0.3, "confidence": 0.8}
    assert MODULE["cell_of_few"]({**row, "promise": kept}) == "10.00 ± 1.00 / 80.0 ± 2.0 / 90.0"
    assert MODULE["cell_of_shots"](row) == "**10.00 ± 2.00** / 10.0"
    assert MODULE["cell"](row) == "**10.00 ± 1.00** / **10.00 ± 1.00** / 90.0"

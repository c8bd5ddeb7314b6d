"""The rows of ``scripts/keep_classes.py``, and the figure beside them."""

import runpy
from pathlib import Path

from PIL import Image

from episodes.evaluation.kept_classes import SHARES
from episodes.reporting.plots import kept_classes_figure, save

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "keep_classes.py"


def test_a_row_has_every_measure_and_the_figure_is_a_png(tmp_path):
    script = runpy.run_path(str(SCRIPT))
    found = {name: {"mean": 0.5, "ci95": 0.01} for name in script["MEASURES"]}
    assert script["row"]("kept", found) == ["kept", *["50.0 ± 1.0"] * 5]
    assert script["row"]("cosine", found | {"reported": None})[-1] == ""
    rows = [
        {"taken": share, "base": {"mean": 0.4 - share / 3, "ci95": 0.01}, "new": {"mean": share, "ci95": 0.01}}
        for share in SHARES
    ]
    curves = {"kept": rows, "erased": rows, "cosine": rows}
    save(lambda: kept_classes_figure(curves, dict.fromkeys(curves, found), "kept classes"), tmp_path / "kept.png")
    assert Image.open(tmp_path / "kept.png").format == "PNG"

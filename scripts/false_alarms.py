"""Measure what ``Head.calibrate`` promises: ``python scripts/false_alarms.py [DATA] [--json FILE]``, tables on stdout.

Every episode draws 5 classes that a head learns, classes of unknowns that it is calibrated on, and *other* classes of unknowns that
it is tested on. Without DATA only scikit-learn's digits; DATA holds omniglot-py, tiny-imagenet and weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import backbones
from backbones.examples import mobilenetv2
from episodes.evaluation.calibration_study import CalibrationStudy
from episodes.features.sources import banks_by_role, sets_by_role
from episodes.reporting.formatting import markdown_table, percent
from fewshot_nam.heads import BaseStatistics, create
from fewshot_nam.io.atomic import replacing

HEADS = ("nam", "cosine", "cosine-centred")
LEGEND = """# False alarms of calibrated heads, on classes never used for calibration

Made by `python scripts/false_alarms.py DATA --json results/false_alarms.json > results/false_alarms.md`:
{episodes} episodes, seed 0.

An episode draws 5 classes, written from 1 or 5 shots; classes of unknowns to calibrate on; and other classes of
unknowns, to test on. A cell reads, in percent: unknowns accepted of the *same classes* (other images) / unknowns
accepted of *new classes* / known queries accepted (paired difference to cosine). Intervals are 95% over episodes;
**bold** lies above its target by more than its interval.

- unknowns: `novel` ones are drawn from the same classes as those tested on; `base` ones are {base} images of the
  backbone's training classes (Tiny ImageNet: of its base classes, on which MobileNetV2 is no better than on the novel).
- calibration: `plain` uses unknowns one by one, and its bound is for the same classes; `by class`
  (`unknown_labels=`) is for new classes.
- Calibration classes x images, test classes x images: {sizes}.
"""


def studies(data: Path | None) -> Iterator[tuple[str, CalibrationStudy, BaseStatistics]]:
    """Yield the studies by name, with what heads may know of base classes."""
    conv4 = backbones.create("conv4")
    digits = banks_by_role("digits", conv4)
    assert digits.base_statistics is not None
    yield "digits", CalibrationStudy(digits.banks["novel"], None, 3, 2, 67), digits.base_statistics
    if data is None:
        return
    for name, dataset, backbone, sizes in (
        ("omniglot", "omniglot", conv4, (400, 60, 10)),
        (
            "tiny-imagenet",
            f"folder:{data}/tiny-imagenet",
            mobilenetv2(data / "weights" / "mobilenetv2_100_imagenet.safetensors"),
            (20, 10, 30),
        ),
    ):
        banks = banks_by_role(sets_by_role(dataset, data_dir=data, roles=["novel", "base"]), backbone).banks
        yield name, CalibrationStudy(banks["novel"], banks["base"], *sizes), banks["base"].base_statistics()


def table(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of one study's table: a row for each kind of calibration and target, a column for each head."""
    cells: dict[tuple[int, str, str, float], list[str]] = {}
    for row in rows:
        cells.setdefault((row["shots"], row["strangers"], row["calibration"], row["target"]), []).append(cell(row))
    head = [f"{name}, shots", "unknowns", "calibration", "target", *dict.fromkeys(row["head"] for row in rows)]
    body = [
        [str(shots), source, kind, f"{100 * target:g}", *by_head]
        for (shots, source, kind, target), by_head in cells.items()
    ]
    return markdown_table([head, *body])


def cell(row: dict[str, Any]) -> str:
    """Return what one head accepted, in percent, as the legend says."""
    if "refused" in row:
        return "refused: too few classes" if row["calibration"] == "by class" else "refused: too few unknowns"
    parts = []
    for name in ("same_classes", "new_classes"):
        rate = row["accepted"].get(name)
        if rate is None:
            parts.append("-")
        else:
            over = "**" if rate["mean"] - rate["ci95"] > row["target"] else ""
            parts.append(f"{over}{percent(rate, digits=2)}{over}")
    parts.append(f"{100 * row['accepted']['known']['mean']:.1f}")
    if "minus_cosine" in row:
        parts[-1] += f" ({percent(row['minus_cosine']['known'], signed=True)})"
    return " / ".join(parts)


def main() -> None:
    """Measure every study at 1 and 5 shots, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="holds omniglot-py, tiny-imagenet and weights")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--json", type=Path, help="also write all numbers there")
    options = parser.parse_args()
    drawn = list(studies(options.data))
    sizes = ", ".join(
        f"{name} {s.calibration_classes} x {s.images}, {s.test_classes} x {2 * s.images}" for name, s, _ in drawn
    )
    print(LEGEND.format(episodes=options.episodes, base=drawn[0][1].base_unknowns, sizes=sizes))
    results: dict[str, list[dict[str, Any]]] = {}
    for name, study, known in drawn:
        heads = {head: create(head, known) for head in HEADS}
        results[name] = [row for shots in (1, 5) for row in study.run(heads, shots, options.episodes)]
        print("\n".join([*table(name, results[name]), ""]), flush=True)
    if options.json:
        study = drawn[0][1]
        config = {"ways": study.ways, "queries": study.queries, "episodes": options.episodes, "seed": study.seed}
        with replacing(options.json) as unfinished:
            unfinished.write_text(json.dumps({"config": config, **results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

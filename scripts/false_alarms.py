"""Measure what calibrated heads accept and reject, beside what was promised: ``python scripts/false_alarms.py [DATA]``.

Every deployment draws 5 classes that a head learns, classes of unknowns that it is calibrated on, and *other* classes of unknowns
that it is tested on. Tables on stdout; ``--json FILE`` writes all numbers there. DATA holds omniglot-py, tiny-imagenet and weights;
without it only scikit-learn's digits are used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import backbones
from backbones.examples import mobilenetv2
from episodes.evaluation.calibration_study import CONFIDENCE, FRAMES, CalibrationStudy
from episodes.features.sources import banks_by_role, sets_by_role
from episodes.reporting.formatting import differing_options, markdown_table, percent
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.numbers import whole_number
from fewshot_nam.cli.outputs import add_output
from fewshot_nam.heads import BaseStatistics, create
from fewshot_nam.io.atomic import replacing

Cell = Callable[[dict[str, Any]], str]
STUDIES = ("digits", "omniglot", "tiny-imagenet")
HEADS = ("nam", "cosine")
LEGEND = """# What calibrated heads accept and reject, beside what was promised

Made by `python scripts/false_alarms.py DATA{more} --json results/false_alarms.json > results/false_alarms.md`:
{episodes} simulated deployments a cell, seed 0.

A deployment draws 5 classes, written from 1 or 5 shots; classes of unknowns to calibrate on; and other classes of
unknowns, to test on. All numbers are in percent, with 95% intervals over deployments. **Bold** breaks its promise by
more than the interval; where promises are met exactly, this happens by chance in one cell of 40.

**One by one or by class.** A cell reads: unknowns accepted of the *same classes* (other images) / unknowns accepted of
*new classes* / known queries accepted (paired difference to cosine).

- unknowns: `novel` ones are drawn from the same classes as those tested on; `base` ones are {base} images of the
  backbone's training classes (Tiny ImageNet: of its base classes, on which MobileNetV2 is no better than on the novel).
- calibration: `plain` uses unknowns one by one, and its bound is for the same classes; `by class`
  (`unknown_labels=`) is for new classes.
- Calibration classes x images, test classes x images: {sizes}.

**On average, and in most deployments.** Few unknowns are drawn at random from the calibration classes, and all other images
of these classes are tested. A cell reads: unknowns accepted / share of deployments in which no more than the limit are
accepted / known queries accepted.

- calibration: `few` unknowns, {few}; `confident` is the same with `confidence={confidence}`; `frames` are {bursts} bursts of
  {frames} frames each, taken one by one, which is wrong; `bursts` are the same with `groups=`. A frame is an image's feature
  with noise.
- promised: the bound on average; then the limit for one deployment (`bound_95`, or the target with `confidence=`) and the
  share of deployments within it. The true rate of a deployment is within it in {confidence:.0%} of them or more; the share
  here is that for a rate measured on the images tested, which is spread wider.

**From the shots alone.** `calibrate_from_shots(max_rejected=target)`. A cell reads: known queries rejected / unknowns
accepted of new classes. The bound is that of leave-one-out, which is approximate, and says nothing about unknowns.
"""


def studies(
    data: Path | None, names: Collection[str] = STUDIES
) -> Iterator[tuple[str, CalibrationStudy, BaseStatistics]]:
    """Yield the studies of these names, with what heads may know of base classes."""
    conv4 = backbones.create("conv4")
    if "digits" in names:
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
        if name not in names:
            continue
        banks = banks_by_role(sets_by_role(dataset, data_dir=data, roles=["novel", "base"]), backbone).banks
        yield name, CalibrationStudy(banks["novel"], banks["base"], *sizes, few=299), banks["base"].base_statistics()


def tables(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of one study's tables: a row for each kind of calibration and target, a column for each head."""
    parts: tuple[tuple[list[str], tuple[str, ...], Cell], ...] = (
        (["unknowns", "calibration", "target"], ("plain", "by class"), cell),
        (["calibration", "target", "promised"], ("few", "confident", "frames", "bursts"), cell_of_few),
        (["target", "promised"], ("from shots",), cell_of_shots),
    )
    lines = []
    for columns, kinds, text in parts:
        cells: dict[tuple[str, ...], list[str]] = {}
        for row in (row for row in rows if row["calibration"] in kinds):
            values = {
                "unknowns": row["unknowns"],
                "calibration": row["calibration"],
                "target": f"{100 * row['target']:g}",
                "promised": promised(row),
            }
            cells.setdefault((str(row["shots"]), *(values[column] for column in columns)), []).append(text(row))
        head = [f"{name}, shots", *columns, *dict.fromkeys(row["head"] for row in rows)]
        lines += [*markdown_table([head, *([*key, *by_head] for key, by_head in cells.items())]), ""]
    return lines


def refused(row: dict[str, Any]) -> str:
    """Return why a calibration was refused, in few words."""
    of = {"by class": "classes", "bursts": "bursts", "from shots": "shots"}
    return f"refused: too few {of.get(row['calibration'], 'unknowns')}"


def promised(row: dict[str, Any]) -> str:
    """Return what a calibration promises, in percent, as the legend says."""
    if "refused" in row:
        return "-"
    bound, limit, confidence = (row["promise"][name] for name in ("bound", "limit", "confidence"))
    return f"{100 * bound:.1f}" + ("" if limit is None else f"; {100 * limit:.1f} in {100 * confidence:.1f}")


def cell(row: dict[str, Any]) -> str:
    """Return what one head accepted, in percent, as the legend says."""
    if "refused" in row:
        return refused(row)
    parts = []
    for name in ("same_classes", "new_classes"):
        rate = row["accepted"].get(name)
        parts.append(
            "-" if rate is None else bold(percent(rate, digits=2), rate["mean"] - rate["ci95"] > row["target"])
        )
    parts.append(f"{100 * row['accepted']['known']['mean']:.1f}")
    if "minus_cosine" in row:
        parts[-1] += f" ({percent(row['minus_cosine']['known'], signed=True)})"
    return " / ".join(parts)


def cell_of_few(row: dict[str, Any]) -> str:
    """Return what one head accepted, and in how many deployments within the limit."""
    if "refused" in row:
        return refused(row)
    rate, within, promise = row["accepted"]["same_classes"], row.get("within"), row["promise"]
    parts = [bold(percent(rate, digits=2), rate["mean"] - rate["ci95"] > promise["bound"])]
    parts.append(
        "-" if within is None else bold(percent(within), within["mean"] + within["ci95"] < promise["confidence"])
    )
    return " / ".join([*parts, f"{100 * row['accepted']['known']['mean']:.1f}"])


def cell_of_shots(row: dict[str, Any]) -> str:
    """Return what one head rejected of known queries, and accepted of unknowns."""
    if "refused" in row:
        return refused(row)
    known = row["accepted"]["known"]
    rejected = {"mean": 1 - known["mean"], "ci95": known["ci95"]}
    over = rejected["mean"] - rejected["ci95"] > row["promise"]["bound"]
    return f"{bold(percent(rejected, digits=2), over)} / {100 * row['accepted']['new_classes']['mean']:.1f}"


def bold(text: str, broken: bool) -> str:
    """Return the text, bold where a promise is broken."""
    return f"**{text}**" if broken else text


def main() -> None:
    """Measure every study at 1 and 5 shots, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="holds omniglot-py, tiny-imagenet and weights")
    parser.add_argument("--episodes", type=whole_number(1, 10_000_000), default=1000)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=STUDIES, help="those to run (default: all)")
    add_output(parser, "--json", "also write all numbers there")
    options = parser.parse_args()
    drawn = list(studies(options.data, options.studies))
    if not drawn:
        parser.error(f"--studies {' '.join(options.studies)} needs DATA")
    sizes = ", ".join(
        f"{name} {s.calibration_classes} x {s.images}, {s.test_classes} x {2 * s.images}" for name, s, _ in drawn
    )
    first = drawn[0][1]
    print(
        LEGEND.format(
            more=differing_options(parser, options, "episodes", "studies"),
            episodes=options.episodes,
            base=first.base_unknowns,
            sizes=sizes,
            few=", ".join(f"{name} {s.few}" for name, s, _ in drawn),
            bursts=first.bursts,
            frames=FRAMES,
            confidence=CONFIDENCE,
        )
    )
    results: dict[str, list[dict[str, Any]]] = {}
    for name, study, known in drawn:
        heads = {head: create(head, known) for head in HEADS}
        results[name] = [row for shots in (1, 5) for row in study.run(heads, shots, options.episodes)]
        print("\n".join(tables(name, results[name])), flush=True)
    if options.json:
        config = {"ways": first.ways, "queries": first.queries, "episodes": options.episodes, "seed": study.seed}
        with replacing(options.json) as unfinished:
            unfinished.write_text(json.dumps({"config": config, **results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

"""Measure what ``Head.calibrate`` promises: ``python scripts/false_alarms.py [DATA] [--json FILE]``, tables on stdout.

Every episode draws, anew: 5 classes that a head learns, classes of strangers that it is calibrated on, and *other* classes of
strangers that it is tested on. Without DATA only scikit-learn's digits; DATA holds omniglot-py, tiny-imagenet and weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import backbones
from episodes import EpisodeSampler, FeatureBank, extract, open_dataset
from episodes.evaluation.scoring import Scorer
from episodes.metrics.intervals import interval, paired
from fewshot_nam.heads import create
from fewshot_nam.heads.conformal import conformal_threshold
from fewshot_nam.io.atomic import replacing

WAYS, QUERIES, BATCH, BASE_STRANGERS = 5, 15, 4, 1000
TARGETS = (0.1, 0.05, 0.01)
LEGEND = """# False alarms of calibrated heads, on classes never used for calibration

Made by `python scripts/false_alarms.py DATA --json results/false_alarms.json > results/false_alarms.md`:
{episodes} episodes, seed 0.

An episode draws 5 classes, written from 1 or 5 shots; classes of strangers to calibrate on; and other classes of
strangers, to test on. A cell reads, in percent: strangers accepted of the *same classes* (other pictures) / strangers
accepted of *new classes* / known queries accepted (paired difference to cosine). Intervals are 95% over episodes;
**bold** lies above its target by more than its interval.

- strangers: `novel` ones are drawn from the same classes as those tested on; `base` ones are {base} pictures of the
  backbone's training classes (Tiny ImageNet: of its base classes, which MobileNetV2 knows no better than the novel).
- calibration: `plain` takes strangers one by one, and its bound is for the same classes; `by class`
  (`unknown_labels=`) is for new ones.
- Calibration classes x pictures, test classes x pictures: {sizes}.
"""
MOBILENET_TRANSFORM = {"mean": 0.5, "std": 0.5, "input_size": 160, "crop_pct": 1.0, "interpolation": "bilinear"}


class Setting(NamedTuple):
    """Pictures, and how many of them an episode takes.

    Attributes:
        novel: what classes and strangers are drawn from.
        base: other strangers to calibrate on, of classes that the backbone was trained on (for Tiny ImageNet: no more than on the
            novel ones); ``None`` for none.
        mean: ``(D,)``, the mean base feature, for the centred head.
        background: ``(B, D)``, the mean features of base classes, for ``nam``.
        calibration: classes of strangers to calibrate on.
        test: other classes of strangers to test on.
        pictures: of each of them; and as many more, to test on other pictures of the same classes.
    """

    novel: FeatureBank
    base: FeatureBank | None
    mean: Tensor | None
    background: Tensor | None
    calibration: int
    test: int
    pictures: int


def settings(data: Path | None) -> Iterator[tuple[str, Setting]]:
    """Yield the sets of pictures by name."""
    conv4 = backbones.create("conv4")
    prototypes = conv4.base_statistics.prototypes
    mean = None if prototypes is None else prototypes.mean(dim=0)
    yield "digits", Setting(extract(conv4, open_dataset("digits")["novel"]), None, mean, prototypes, 3, 2, 67)
    if data is None:
        return
    parts = open_dataset("omniglot", data)
    base = extract(conv4, parts["base"])
    yield (
        "omniglot",
        Setting(extract(conv4, parts["novel"]), base, base.mean(), base.class_means(power_norm=True), 400, 60, 10),
    )
    mobilenet = backbones.create(
        "timm/mobilenetv2_100",
        data / "weights" / "mobilenetv2_100_imagenet.safetensors",
        model_options={"pad_type": "same"},
        transform_options=MOBILENET_TRANSFORM,
    )
    objects = open_dataset(f"folder:{data}/tiny-imagenet")
    base = extract(mobilenet, objects["base"])
    yield (
        "tiny-imagenet",
        Setting(extract(mobilenet, objects["novel"]), base, base.mean(), base.class_means(power_norm=True), 20, 10, 30),
    )


def measured(setting: Setting, shots: int, episodes: int) -> list[dict[str, Any]]:
    """Return false alarms and acceptance for every kind of calibration, target and head, at some number of shots."""
    heads = {name: create(name, setting.mean, setting.background) for name in ("nam", "cosine", "cosine-centred")}
    # Of each class half of the pictures are calibrated on, where it is one to be calibrated on.
    sampler = EpisodeSampler(
        setting.novel,
        WAYS,
        shots,
        QUERIES,
        setting.calibration + setting.test,
        2 * setting.pictures,
        setting.base,
        BASE_STRANGERS,
    )
    scorer = Scorer(setting.novel, heads, torch.device("cpu"), setting.base)
    classes = torch.arange(setting.calibration).repeat_interleave(setting.pictures)
    found: dict[tuple[str, str, float, str], Any] = {}
    for batch in sampler.batches(episodes, BATCH):
        for head, scores in scorer.score(batch):
            assert scores.unknown is not None
            best = scores.unknown.amax(dim=-1)
            of_class = best.reshape(len(best), -1, 2 * setting.pictures)
            first, second = torch.split(of_class[:, : setting.calibration], setting.pictures, dim=-1)
            tested = {
                "same_classes": second.flatten(1).double(),
                "new_classes": of_class[:, setting.calibration :].flatten(1).double(),
                "known": scores.known.amax(dim=-1).double(),
            }
            sources = {"novel": (first.flatten(1), classes.expand(len(batch), -1))}
            if scores.base is not None:
                sources["base"] = (scores.base.amax(dim=-1), batch.base_classes)
            for (source, (strangers, groups)), by_class, target in itertools.product(
                sources.items(), (False, True), TARGETS
            ):
                key = (source, "by class" if by_class else "plain", target, head)
                try:
                    at = [
                        conformal_threshold(s, target, g if by_class else None).threshold
                        for s, g in zip(strangers, groups, strict=True)
                    ]
                except ValueError as error:  # too few strangers, in every episode alike
                    found[key] = str(error)
                    continue
                limits = torch.tensor(at, dtype=torch.float64).unsqueeze(1)
                rates = torch.stack([(of >= limits).double().mean(dim=1) for of in tested.values()])
                found.setdefault(key, []).append(rates)
    rows = []
    for (source, kind, target, head), rates in found.items():
        row = {"shots": shots, "strangers": source, "calibration": kind, "target": target, "head": head}
        if isinstance(rates, str):
            rows.append({**row, "refused": rates})
            continue
        values = dict(zip(tested, torch.cat(rates, dim=1), strict=True))
        cosine = dict(zip(tested, torch.cat(found[source, kind, target, "cosine"], dim=1), strict=True))
        if source == "base":
            values.pop("same_classes")
        row["accepted"] = {name: interval(of)._asdict() for name, of in values.items()}
        if head != "cosine":
            row["minus_cosine"] = {name: paired(of, cosine[name])._asdict() for name, of in values.items()}
        rows.append(row)
    return rows


def table(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of one set's table: a row for each kind of calibration and target, a column for each head."""
    heads = list(dict.fromkeys(row["head"] for row in rows))
    lines = [
        f"| {name}, shots | strangers | calibration | target | {' | '.join(heads)} |",
        "|---" * (4 + len(heads)) + "|",
    ]
    cells: dict[tuple[int, str, str, float], list[str]] = {}
    for row in rows:
        cells.setdefault((row["shots"], row["strangers"], row["calibration"], row["target"]), []).append(cell(row))
    for (shots, source, kind, target), by_head in cells.items():
        lines.append(f"| {shots} | {source} | {kind} | {100 * target:g} | {' | '.join(by_head)} |")
    return lines


def cell(row: dict[str, Any]) -> str:
    """Return what one head accepted, in percent, as the legend says."""
    if "refused" in row:
        return "refused: too few classes" if row["calibration"] == "by class" else "refused: too few strangers"
    parts = []
    for name in ("same_classes", "new_classes"):
        rate = row["accepted"].get(name)
        if rate is None:
            parts.append("-")
        else:
            over = "**" if rate["mean"] - rate["ci95"] > row["target"] else ""
            parts.append(f"{over}{100 * rate['mean']:.2f} ± {100 * rate['ci95']:.2f}{over}")
    parts.append(f"{100 * row['accepted']['known']['mean']:.1f}")
    if "minus_cosine" in row:
        gain = row["minus_cosine"]["known"]
        parts[-1] += f" ({100 * gain['mean']:+.1f} ± {100 * gain['ci95']:.1f})"
    return " / ".join(parts)


def main() -> None:
    """Measure every set at 1 and 5 shots, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="holds omniglot-py, tiny-imagenet and weights")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--json", type=Path, help="also write all numbers there")
    options = parser.parse_args()
    drawn = dict(settings(options.data))
    sizes = ", ".join(
        f"{name} {s.calibration} x {s.pictures}, {s.test} x {2 * s.pictures}" for name, s in drawn.items()
    )
    print(LEGEND.format(episodes=options.episodes, base=BASE_STRANGERS, sizes=sizes))
    results: dict[str, list[dict[str, Any]]] = {}
    for name, setting in drawn.items():
        results[name] = [row for shots in (1, 5) for row in measured(setting, shots, options.episodes)]
        print("\n".join([*table(name, results[name]), ""]), flush=True)
    if options.json:
        config = {"ways": WAYS, "queries": QUERIES, "episodes": options.episodes, "seed": 0}
        with replacing(options.json) as unfinished:
            unfinished.write_text(json.dumps({"config": config, **results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

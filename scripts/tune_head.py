"""Choose the constants of heads on validation classes, and test what each part of ``nam`` earns.

    python scripts/tune_head.py DATA [--head NAME ...] [--ablation] [--conv5 WEIGHTS] [--json FILE]

DATA holds omniglot-py, tiny-imagenet and weights. No test class is read. There are eight lines: 1 and 5 shots on the validation
classes of Omniglot (``conv4``), the same drawn with 8x8 pixels, Tiny ImageNet with MobileNetV2 and with Conv5. Each measure of a
head is compared with the best of four cosine classifiers (plain, centred, power-normalised, both) on the same episodes, chosen
anew for each measure and line. With means over the lines, of differences in points and of ratios (geometric), the objective is

    J = accuracy / 0.5 + auroc + (1 - open_fpr) / 0.06 + (1 - class_fpr) / 0.5 + (1 - class_fpr:unknown) / 0.16
        - 2 (loss of accuracy / 0.5 + loss of auroc + (excess of open_fpr) / 0.06)

all at 95tpr. The losses and the excess are those on the worst line, 0 where no line is worse than the best cosine.

The search is random, with as many trials for each row of the table. The first trial has the constants that the head is shipped
with. In every other trial each constant is drawn anew from ``GRIDS`` with probability 1/2, and else stays as shipped. In a row that
leaves out a part of ``nam`` the part is fixed and the other constants are those of the full head's trials.

With ``--json`` every finished row is written at once, and rows that are in the file already are not computed again.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import inspect
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

import backbones
from backbones.examples import mobilenetv2
from episodes import FeatureBank, Report, evaluate
from episodes.data.image_dataset import ImageSet
from episodes.features.sources import banks_by_role, sets_by_role
from episodes.reporting.formatting import better, markdown_table
from episodes.reporting.summary import gain_over_best, ratio_to_best
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.numbers import whole_number
from fewshot_nam.cli.outputs import add_output
from fewshot_nam.heads import BaseStatistics, Head, create
from fewshot_nam.heads.registry import spec
from fewshot_nam.heads.score_norm import ScoreNormHead, as_settings
from fewshot_nam.io.atomic import replacing
from fewshot_nam.io.json_files import read_mapping
from fewshot_nam.io.naming import naming

COSINES = ("cosine", "cosine-centred", "cosine-root", "cosine-root-centred")
MEASURES = {
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "open_fpr@95tpr": "open",
    "class_fpr@95tpr": "class",
    "class_fpr@95tpr:known": "class:known",
    "class_fpr@95tpr:unknown": "class:unknown",
    "wrong_answers@95tpr": "wrong answers",
}
SHOTS = (1, 5)

_NORMALISATION = {
    "norm_exponent": (0.0, 0.15, 0.3, 0.45),
    "cohort_temperature": (0.06, 0.08, 0.1, 0.12),
    "query_cohort_weight": (0.4, 0.6, 0.7, 0.8, 1.0),
    "class_cohort_weight": (0.1, 0.2, 0.3, 0.4),
    "log_partition_penalty": (0.2, 0.3, 0.38, 0.5),
    "temperature": (0.02, 0.03, 0.05, 0.1),
}
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "nam": {
        "identity_share": (0.7, 0.75, 0.8, 0.85, 0.9),
        "between_power": (0.05, 0.1, 0.125, 0.15, 0.2),
        **_NORMALISATION,
        "ridge": (8.0, 16.0, 32.0, 100.0),
        "ridge_per_key": (0.0, 0.1, 0.3, 1.0),
        "ratio_weight": (0.1, 0.2, 0.3, 0.5),
        "ratio_within": (0.5, 1.0, 2.0),
        "ratio_shrinkage": (0.1, 0.3, 0.5),
    },
    "cosine-snorm": {"centre_share": (0.7, 0.85, 1.0), **_NORMALISATION},
    "lda-snorm": {"identity_share": (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95), **_NORMALISATION},
    "plda-snorm": {
        "within": (0.3, 0.5, 1.0, 2.0, 4.0),
        "shrinkage": (0.1, 0.2, 0.3, 0.5, 0.7),
        "cohort_size": (3, 5, 10, 20),
        "query_cohort_weight": (0.0, 0.2, 0.4, 0.6, 0.8),
        "class_cohort_weight": (0.0, 0.2, 0.4, 0.6),
        "log_partition_penalty": (0.2, 0.3, 0.4, 0.5),
        "temperature": (0.01, 0.02, 0.05, 0.1),
    },
}
"""The values that each constant of a head may take."""

SPACE = ("centre_share", "identity_share", "between_power", "ratio_weight", "ratio_within", "ratio_shrinkage")
"""The constants that decide what a head derives from base classes when it is made."""

FULL = "nam, full head"
ABLATION: dict[str, dict[str, float]] = {
    "no whitening": {"identity_share": 1.0},
    "no between-class power": {"between_power": 0.0},
    "no whitening, no power": {"identity_share": 1.0, "between_power": 0.0},
    "no likelihood ratio": {"ratio_weight": 0.0},
    "no cohort scores": {"query_cohort_weight": 0.0, "class_cohort_weight": 0.0},
    "no norm exponent": {"norm_exponent": 0.0},
    "no penalty": {"log_partition_penalty": 0.0},
    "no joint write": {"ridge": 1e9},
}
"""What is fixed to leave a part of ``nam`` out."""

LEGEND = """# Constants of heads, and what each part of `nam` earns

Made by `python scripts/tune_head.py DATA {arguments}--json results/tune_head.json >
results/tune_head.md`: {trials} trials a row, seed {seed}, {episodes} episodes a line. Validation classes only, of {lines}; each
with 1 and 5 shots. 5-way, 5 unknown classes, 15 queries a class. The script says how trials are drawn, and holds the grids; the
JSON holds the constants found.

Each figure is against the best of four cosine classifiers, chosen anew for each measure and line: points for accuracy and AUROC,
ratios for the others; the mean over the lines, and in brackets the worst line. "open", "class", "class:known", "class:unknown" and
"wrong answers" are `open_fpr`, `class_fpr` with its two parts, and `wrong_answers`, all `@95tpr`. `J` is what the search maximises:
the sum of accuracy / 0.5, AUROC, (1 - open) / 0.06, (1 - class) / 0.5 and (1 - class:unknown) / 0.16, less twice what the worst
line is below the best cosine (accuracy / 0.5, AUROC, open / 0.06).

How to read it:

- Constants are chosen here, and the best of the trials is shown on the episodes that chose it. So this is no proof that a head is
  better, and there are no intervals. Results on test classes, with intervals, are in the other files of this folder.
- The shipped constants were chosen before, on the same validation classes: those of `nam` in about 1,000 trials over some 15
  forms of the head and about 140 trials of the last form, those of `cosine-snorm`, `lda-snorm` and `plda-snorm` in 200 trials
  each (logs of that research, which are not in this repository). So `nam` had more trials than they had. Every row starts from
  the shipped constants, and from there all rows but the first have the same number of trials.
- On the way to the last form, results on test classes were looked at three times. The last form and its constants were chosen
  after that, on validation classes alone.
"""
EARNS = """## What each part earns

The full head against the best trial without the part, from the table above: differences of the means in points, ratios of the
geometric means (below 1: fewer false alarms with the part), and the difference of J. Where it is negative, the trials found
constants without the part that are better than any found with it. The last column takes the first trial of each row alone: the
part is fixed, and all other constants are the shipped ones. The row of whitening leaves the between-class power in, which was
made for a whitened space; the row of both leaves out both.
"""
WRITE = """
In these 5-way episodes the joint write earns {searched:+.2f} of J ({shipped:+.2f} at the shipped constants). What it does
with many classes is not measured here; `threshold_growth.md` follows a threshold as classes come.
"""


class Validation(NamedTuple):
    """Validation classes, and what heads may know of base classes."""

    bank: FeatureBank
    base: BaseStatistics


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        head: a name.
        fixed: constants that no trial changes.
        trials: how many; 1 for the shipped constants alone.
    """

    head: str
    fixed: Mapping[str, float]
    trials: int


@torch.inference_mode()
def few_pixels(backbone: Any, images: ImageSet) -> FeatureBank:
    """Return features of the images reduced to 8x8 pixels at full contrast."""
    reduced = []
    for number in range(len(images)):
        ink = backbone.transform(images.image(number).convert("L").resize((8, 8), Image.Resampling.BOX))
        reduced.append(ink / ink.max())
    features = torch.cat([backbone(batch) for batch in torch.split(torch.stack(reduced), 500)])
    return FeatureBank(features.clone(), images.labels)


def validation_sets(data: Path, conv5: Path) -> dict[str, Validation]:
    """Return the four sets of validation classes."""
    roles = ["validation", "base"]
    conv4, characters = backbones.create("conv4"), sets_by_role("omniglot", data_dir=data, roles=roles)
    drawn, images = banks_by_role(characters, conv4).banks, characters["validation"]
    assert not isinstance(images, FeatureBank)
    objects = sets_by_role(f"folder:{data}/tiny-imagenet", roles=roles)
    mobilenet = banks_by_role(objects, mobilenetv2(data / "weights" / "mobilenetv2_100_imagenet.safetensors")).banks
    own = banks_by_role(objects, backbones.create("conv5", conv5)).banks
    known = drawn["base"].base_statistics()
    return {
        "Omniglot": Validation(drawn["validation"], known),
        "Omniglot 8x8": Validation(few_pixels(conv4, images), known),
        "Tiny ImageNet MobileNetV2": Validation(mobilenet["validation"], mobilenet["base"].base_statistics()),
        "Tiny ImageNet Conv5": Validation(own["validation"], own["base"].base_statistics()),
    }


def shipped(name: str) -> dict[str, float]:
    """Return the constants that a head has by default."""
    entry = spec(name)
    kind: Any = entry.builder()
    if name == "plda-snorm":
        options = inspect.signature(kind).parameters.values()
        return {option.name: option.default for option in options if option.kind is option.KEYWORD_ONLY}
    return dataclasses.asdict(as_settings(kind.settings_type, entry.settings.get("settings")))


def with_constants(name: str, base: BaseStatistics, constants: Mapping[str, float]) -> Head:
    """Return a head by name with these constants.

    The space of base classes takes longer to compute than a trial. So heads that differ only in other constants are copies of one.
    """
    if name == "plda-snorm":
        options: dict[str, Any] = dict(constants)
        return create(name, base, **options)
    head = copy.copy(
        _prepared(name, base, tuple((option, constants[option]) for option in SPACE if option in constants))
    )
    assert isinstance(head, ScoreNormHead)
    head.settings = as_settings(head.settings_type, constants)
    return head


@functools.lru_cache(maxsize=64)
def _prepared(name: str, base: BaseStatistics, constants: tuple[tuple[str, float], ...]) -> Head:
    return create(name, base, settings=dict(constants))


def trials_of(row: Row, seed: int) -> list[dict[str, float]]:
    """Return the constants of each trial of a row, the shipped ones first.

    Rows of the same head have the same trials but for what is fixed.
    """
    generator, start = random.Random(seed), shipped(row.head)
    trials = [{**start, **row.fixed}]
    while len(trials) < row.trials:
        # Both numbers are drawn for every constant, so that what is fixed changes nothing else.
        drawn = {name: (generator.random() < 0.5, generator.choice(grid)) for name, grid in GRIDS[row.head].items()}
        changed = {name: value for name, (change, value) in drawn.items() if change}
        trials.append({**start, **changed, **row.fixed})
    return trials


def compared(reports: Sequence[Report], name: str) -> dict[str, dict[str, float]]:
    """Return each measure of a head against the best cosine, ``mean`` and ``worst`` over the reports: points, or ratios."""
    found = {}
    for measure in MEASURES:
        if better(measure) == "higher":
            mean, worst = (100 * value for value in gain_over_best(reports, name, COSINES, measure))
        else:
            mean, worst = ratio_to_best(reports, name, COSINES, measure)
        found[measure] = {"mean": mean, "worst": worst}
    return found


def objective(found: Mapping[str, Mapping[str, float]]) -> float:
    """Return ``J`` of what ``compared`` returns."""
    accuracy, auroc, rate = found["accuracy"], found["auroc"], found["open_fpr@95tpr"]
    of_class, of_unknown = found["class_fpr@95tpr"], found["class_fpr@95tpr:unknown"]
    gain = accuracy["mean"] / 0.5 + auroc["mean"] + (1 - rate["mean"]) / 0.06
    gain += (1 - of_class["mean"]) / 0.5 + (1 - of_unknown["mean"]) / 0.16
    loss = max(0.0, -accuracy["worst"]) / 0.5 + max(0.0, -auroc["worst"]) + max(0.0, rate["worst"] - 1) / 0.06
    return gain - 2 * loss


def search(row: Row, sets: Mapping[str, Validation], seed: int, episodes: int) -> dict[str, Any]:
    """Return the best trial of a row with its figures, and the objective of every trial."""
    trials, reports = trials_of(row, seed), dict[str, Report]()
    for name, known in sets.items():
        heads = {cosine: create(cosine, known.base) for cosine in COSINES}
        heads |= {str(number): with_constants(row.head, known.base, trial) for number, trial in enumerate(trials)}
        for shots in SHOTS:
            reports[f"{name}, {shots}-shot"] = evaluate(known.bank, heads, "open", shots=shots, episodes=episodes)
    found = [compared(list(reports.values()), str(number)) for number in range(len(trials))]
    objectives = [objective(one) for one in found]
    best = max(range(len(trials)), key=objectives.__getitem__)
    return {
        "head": row.head,
        "fixed": dict(row.fixed),
        "objective": objectives[best],
        "best": trials[best],
        "best_trial": best,
        "found": found[best],
        "lines": {line: compared([report], str(best)) for line, report in reports.items()},
        "objectives": objectives,
    }


def rows_of(heads: Sequence[str], trials: int, ablation: bool) -> dict[str, Row]:
    """Return the rows of the table by title."""
    rows = {"nam, as shipped": Row("nam", {}, 1)} if "nam" in heads or ablation else {}
    if rows:
        rows[FULL] = Row("nam", {}, trials)
    rows |= {name: Row(name, {}, trials) for name in heads if name != "nam"}
    if ablation:
        rows |= {f"nam, {title}": Row("nam", fixed, trials) for title, fixed in ABLATION.items()}
    return rows


def table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of all rows."""
    lines = [["", *MEASURES.values(), "J"]]
    for title, result in results.items():
        cells = [title]
        for measure, value in result["found"].items():
            mean, worst = value["mean"], value["worst"]
            points = better(measure) == "higher"
            cells.append(f"{mean:+.2f} ({worst:+.2f})" if points else f"x {mean:.3f} ({worst:.2f})")
        lines.append([*cells, f"{result['objective']:.2f}"])
    return markdown_table(lines)


def gains(full: Mapping[str, Any], without: Mapping[str, Any]) -> tuple[float, float]:
    """Return what one row has more of the objective than another: with the best trials, and with the first."""
    return full["objective"] - without["objective"], full["objectives"][0] - without["objectives"][0]


def earnings(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of what the full head has more than each row without a part of it."""
    full, lines = results[FULL], [["part", *MEASURES.values(), "J", "J, shipped"]]
    for title in ABLATION:
        without = results.get(f"nam, {title}")
        if without is None:
            continue
        cells = [title.replace("no ", "")]
        for measure, value in full["found"].items():
            other = without["found"][measure]["mean"]
            points = better(measure) == "higher"
            cells.append(f"{value['mean'] - other:+.2f}" if points else f"x {value['mean'] / other:.3f}")
        lines.append([*cells, *(f"{gain:+.2f}" for gain in gains(full, without))])
    return markdown_table(lines)


def page(config: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]], arguments: str) -> str:
    """Return the Markdown page of the rows found."""
    lines = [LEGEND.format(**{**config, "lines": ", ".join(config["lines"])}, arguments=arguments)]
    lines += table(results)
    if FULL in results and any(f"nam, {title}" in results for title in ABLATION):
        lines += ["", EARNS, *earnings(results)]
    without = results.get("nam, no joint write")
    if FULL in results and without is not None:
        searched, alone = gains(results[FULL], without)
        lines.append(WRITE.format(searched=searched, shipped=alone).rstrip())
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Search every row, print the page and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds omniglot-py, tiny-imagenet and weights")
    parser.add_argument("--head", nargs="+", choices=GRIDS, default=list(GRIDS), help="whose constants are searched")
    parser.add_argument("--trials", type=int, default=12, help="for each row")
    parser.add_argument("--seed", type=int, default=0, help="of the trials")
    parser.add_argument("--episodes", type=whole_number(1, 10_000_000), default=300, help="for each line")
    parser.add_argument("--ablation", action="store_true", help="also search nam without each of its parts")
    parser.add_argument(
        "--conv5",
        type=Path,
        default=Path("checkpoints/conv5.safetensors"),
        help="weights of scripts/pretrain_photos.py",
    )
    add_output(parser, "--json", "also write all numbers there, row by row")
    options = parser.parse_args(arguments)
    if options.trials < 1:
        parser.error("--trials must be at least 1")
    sets = validation_sets(options.data, options.conv5)
    banks = {name: {"fingerprint": known.bank.fingerprint, **known.bank.provenance} for name, known in sets.items()}
    config = {"trials": options.trials, "seed": options.seed, "episodes": options.episodes, "lines": banks}
    results: dict[str, Any] = {}
    if options.json and options.json.exists():
        earlier = read_mapping(options.json, meaning := "holds no rows of this script")
        with naming(options.json, meaning):
            before, results = earlier["config"], dict(earlier["rows"])
        if before != config:
            parser.error(f"{options.json} has rows of other settings or data: name another file")
    rows = rows_of(options.head, options.trials, options.ablation)
    for title, row in rows.items():
        if title in results:
            continue
        began = time.perf_counter()
        results[title] = search(row, sets, options.seed, options.episodes)
        seconds = time.perf_counter() - began
        print(f"{title}: J {results[title]['objective']:.2f} ({seconds:.0f} s)", file=sys.stderr, flush=True)
        if options.json:
            with replacing(options.json) as unfinished:
                content = {"config": config, "rows": results}
                unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    shown = {title: results[title] for title in rows}
    given = "" if options.head == list(GRIDS) else f"--head {' '.join(options.head)} "
    given += "--ablation " if options.ablation else ""
    print(page(config, shown, given))


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

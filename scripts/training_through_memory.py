"""Does training a backbone through a head's write help? Every head on every backbone: a crossed table on stdout.

    python scripts/training_through_memory.py DATA start=conv5.safetensors plain=... cosine=... nam=... [--json FILE]

DATA holds tiny-imagenet. Each NAME=WEIGHTS is a Conv5 of ``scripts/pretrain_photos.py``. All backbones are measured on the same
episodes, so differences between them are paired.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

import backbones
from episodes import FeatureBank, evaluate
from episodes.evaluation.evaluation import EvaluationSettings
from episodes.features.sources import banks_by_role, sets_by_role
from episodes.metrics.intervals import ci95_over_classes, class_groups, interval
from episodes.metrics.registry import MEASURES
from episodes.metrics.scores import Frozen, Scores
from episodes.reporting.formatting import cell, differing_options, heading, in_unit, markdown_table, verdict
from episodes.sampling.sampler import Episodes
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.numbers import whole_number
from fewshot_nam.cli.outputs import add_output
from fewshot_nam.io.atomic import replacing
from fewshot_nam.io.naming import naming

HEADS = ("nam", "cosine", "cosine-root-centred", "plda")
OPEN = ("accuracy", "auroc", "open_fpr@95tpr", "wrong_answers@95tpr", "class_fpr@95tpr:unknown")
GENERALIZED = ("ausuc",)  # at bias 0 a built-in novel scale would decide
PARTS = {  # what is tested: the role of its bank, and the measures
    "validation classes": ("validation", OPEN),
    "novel classes": ("novel", OPEN),
    "novel and base classes in one label space": ("novel", GENERALIZED),
}
LEGEND = """# Training a backbone through the memory

Made by

    python scripts/training_through_memory.py DATA {named}{options} \\
      --json results/training_through_memory.json > results/training_through_memory.md

Tiny ImageNet, {ways}-way, {episodes} episodes, seed 0, {ways} unknown classes, 15 queries a class{common}. Heads know base
classes by the 50 images each of `base_unseen`, which no backbone was trained on. Percent. What the tables show, and how the
backbones were made, is said in `README.md`, beside this file.

{backbones}

Training in episodes centres features by their running mean, and nothing keeps that mean small. So `cosine`, which does not centre,
says little about those backbones: compare them by heads that centre, the other three.

Differences between two backbones are of the same head on the same episodes: the first interval is over episodes, the second, in
brackets, over classes. `+*` is better and `-*` worse by the wider of the two. {compared} differences are shown: one in twenty
of a true zero would be starred by chance. The choice of the training seed is in no interval: each backbone was trained once.
"""


class Measured(NamedTuple):
    """One backbone in one setting.

    Attributes:
        values: ``(E,)`` for each head and measure.
        present: ``(E, C)`` bool, the classes of each episode.
    """

    values: dict[str, dict[str, Tensor]]
    present: Tensor


def measure(
    banks: Mapping[str, FeatureBank],
    role: str,
    measures: Sequence[str],
    heads: Sequence[str],
    settings: EvaluationSettings,
) -> Measured:
    """Return the measures in every episode of the classes of a role, for each head.

    Args:
        banks: by role, of one backbone; ``base`` is among them. The generalized protocol holds a quarter of it out for queries.
        role: of the bank that episodes are drawn from.
        measures: names of ``MEASURES``.
        heads: names.
        settings: the protocol and its numbers.
    """
    bank = banks[role]
    parts: dict[str, dict[str, list[Tensor]]] = {head: {name: [] for name in measures} for head in heads}
    present = []

    def collect(head: str, batch: Episodes, scores: Scores, _frozen: Frozen) -> None:
        for name, values in parts[head].items():
            values.append(MEASURES[name].compute(scores).double().cpu())
        if head == heads[0]:
            groups, _ = class_groups(bank.classes)
            drawn = torch.zeros(len(batch), int(groups.max()) + 1, dtype=torch.bool)
            classes = torch.cat([batch.classes, batch.unknown_classes], dim=1).cpu()
            present.append(drawn.scatter_(1, groups[classes], True))

    evaluate(bank, heads, settings, base=banks["base"], callback=collect)
    values = {head: {name: torch.cat(found) for name, found in named.items()} for head, named in parts.items()}
    return Measured(values, torch.cat(present))


def difference(first: Measured, second: Measured, head: str) -> dict[str, dict[str, float]]:
    """Return ``first - second`` of each measure: its mean, and its intervals over episodes and over classes."""
    found = {name: values - second.values[head][name] for name, values in first.values[head].items()}
    over_classes = ci95_over_classes(torch.stack(list(found.values()), dim=1), first.present).tolist()
    return {
        name: {**interval(values)._asdict(), "ci95_over_classes": wide}
        for (name, values), wide in zip(found.items(), over_classes, strict=True)
    }


def difference_cell(name: str, found: Mapping[str, float]) -> str:
    """Return a difference with both intervals, starred by the wider one."""
    wider = {"mean": found["mean"], "ci95": max(found["ci95"], found["ci95_over_classes"])}
    text = in_unit(name, {"mean": found["mean"], "ci95": found["ci95"]}, signed=True)
    star = {"better": " +*", "worse": " -*", "even": ""}[verdict(name, wider)]
    return f"{text} ({100 * found['ci95_over_classes']:.1f}){star}"


def setting(measured: Mapping[str, Measured], heads: Sequence[str]) -> dict[str, Any]:
    """Return the means of every head on every backbone, and the differences between backbones."""
    results = {
        backbone: {
            head: {name: interval(values)._asdict() for name, values in found.items()}
            for head, found in one.values.items()
        }
        for backbone, one in measured.items()
    }
    pairs = {
        f"{later}-{earlier}": {head: difference(measured[later], measured[earlier], head) for head in heads}
        for earlier, later in combinations(measured, 2)
    }
    return {"results": results, "differences": pairs}


def tables(title: str, found: Mapping[str, Any], measures: Sequence[str]) -> list[str]:
    """Return the lines of one setting: means, then differences."""
    head = [heading(name) for name in measures]
    means = [["backbone", "head", *head]]
    for backbone, heads in found["results"].items():
        means += [[backbone, name, *(cell(m, values[m]) for m in measures)] for name, values in heads.items()]
    pairs = [["backbones", "head", *head]]
    for pair, heads in found["differences"].items():
        pairs += [
            [pair.replace("-", " - "), name, *(difference_cell(m, values[m]) for m in measures)]
            for name, values in heads.items()
        ]
    return [f"## {title}", "", *markdown_table(means), "", *markdown_table(pairs), ""]


def card(path: Path) -> dict[str, Any]:
    """Return the facts about its training that a weights file holds, without the names of its classes."""
    with safe_open(path, framework="pt") as file:
        written = (file.metadata() or {}).get("card")
    if written is None:
        raise ValueError(f"{path} has no card of how it was trained: give weights of scripts/pretrain_photos.py")
    with naming(path, "has a card of other weights than those of scripts/pretrain_photos.py"):
        found: dict[str, Any] = json.loads(written)
        described("", found)
    return {key: value for key, value in found.items() if key != "base_classes"}


def described(name: str, facts: Mapping[str, Any]) -> str:
    """Return a line on how a backbone was trained."""
    recipe = facts["recipe"]
    how = f"in episodes through `{recipe['head']}`" if "head" in recipe else "by cosine softmax"
    start = f", from the weights {recipe['start'][:12]} on" if recipe.get("start") else ""
    scores = ", ".join(f"{shots} {mean:.1f} ± {ci95:.1f}" for shots, (mean, ci95) in facts["validation"].items())
    return f"- `{name}`: {recipe['epochs']} epochs {how}{start}; its script's last check, cosine on validation classes: {scores}."


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", type=Path, help="holds tiny-imagenet, or is such a folder: base, base_unseen, val and novel"
    )
    parser.add_argument("weights", nargs="+", metavar="NAME=WEIGHTS", help="backbones in the order of the tables")
    parser.add_argument("--heads", nargs="+", default=HEADS)
    parser.add_argument("--shots", type=int, nargs="+", default=(1, 5))
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--episodes", type=whole_number(1, 10_000_000), default=1000)
    parser.add_argument(
        "--generalized-episodes",
        type=int,
        default=300,
        help="in the label space with base classes, which takes longer; 0 for none",
    )
    parser.add_argument("--width", type=int, default=32, help="of the Conv5")
    add_output(parser, "--json", "also write all numbers there")
    options = parser.parse_args(arguments)
    if not all("=" in given for given in options.weights):
        parser.error("give each backbone as NAME=WEIGHTS")
    named = {name: Path(path) for name, path in (given.split("=", 1) for given in options.weights)}
    if len(named) < 2 or len(named) < len(options.weights):
        parser.error("give two backbones or more, each with a name of its own")
    folder = options.data / "tiny-imagenet" if (options.data / "tiny-imagenet").is_dir() else options.data
    common = options.generalized_episodes > 0
    sets = sets_by_role(
        f"folder:{folder}", base=f"folder:{folder / 'base_unseen'}", roles=["novel", "base", "validation"]
    )
    model_options = {} if options.width == 32 else {"width": options.width}
    banks = {
        name: banks_by_role(sets, backbones.create("conv5", path, model_options=model_options)).banks
        for name, path in named.items()
    }
    cards = {name: card(path) for name, path in named.items()}
    found, lines, compared = {}, [], 0
    for part, (role, measures) in PARTS.items():
        if measures is GENERALIZED and not common:
            continue
        for shots in options.shots:
            generalized = measures is GENERALIZED
            settings = EvaluationSettings(
                "generalized" if generalized else "open",
                ways=options.ways,
                open_ways=options.ways,
                shots=shots,
                episodes=options.generalized_episodes if generalized else options.episodes,
            )
            measured = {name: measure(own, role, measures, options.heads, settings) for name, own in banks.items()}
            title = f"{part}, {shots}-shot"
            print(title, file=sys.stderr, flush=True)
            found[title] = setting(measured, options.heads)
            lines += tables(title, found[title], measures)
            compared += len(found[title]["differences"]) * len(options.heads) * len(measures)
    print(
        LEGEND.format(
            named=" ".join(f"{name}={path.as_posix()}" for name, path in named.items()),
            episodes=options.episodes,
            options=differing_options(
                parser, options, "ways", "shots", "heads", "episodes", "generalized_episodes", "width"
            ),
            ways=options.ways,
            common=f"; with base classes {options.generalized_episodes} episodes" if common else "",
            backbones="\n".join(described(name, facts) for name, facts in cards.items()),
            compared=compared,
        )
    )
    print("\n".join(lines))
    if options.json:
        episodes = {"episodes": options.episodes, "generalized_episodes": options.generalized_episodes}
        config = {**episodes, "seed": 0, "ways": options.ways, "heads": list(options.heads)}
        with replacing(options.json) as unfinished:
            content = {"config": config, "backbones": cards, "settings": found}
            unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

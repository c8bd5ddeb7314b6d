"""What the joint write itself adds to ``nam`` where there are many classes: ``python scripts/joint_write_alone.py DATA``.

    python scripts/joint_write_alone.py DATA --json results/joint_write_alone.json > results/joint_write_alone.md

``nam`` beside the same head with a ridge so large that classes are written as plain prototypes. First the generalized protocol,
base and novel classes in one label space (``ausuc``, paired); then one threshold while classes come
(``episodes.evaluation.growth``). Both on test classes, with the constants of ``nam`` as they are. DATA as in
``scripts/make_results.sh``; conv5's weights by ``--conv5``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import backbones
from backbones.examples import mobilenetv2
from episodes import FeatureBank, evaluate
from episodes.evaluation.growth import GrowthStudy
from episodes.features.holdout import hold_out
from episodes.features.sources import banks_by_role, sets_by_role
from episodes.reporting.formatting import differing_options, markdown_table, percent
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.numbers import whole_number
from fewshot_nam.cli.outputs import add_output
from fewshot_nam.heads import BaseStatistics, NAMHead
from fewshot_nam.io.atomic import replacing

HEADS = ("nam", "without the joint write")
PLAIN = {"ridge": 1e9}
MEASURES = ("known", "right", "unknown", "unknown_at_own")


def heads(known: BaseStatistics) -> dict[str, NAMHead]:
    """Return the head with the joint write and without it."""
    return dict(zip(HEADS, (NAMHead(known), NAMHead(known, settings=PLAIN)), strict=True))


def sets(data: Path, conv5: Path | None) -> Iterator[tuple[str, dict[str, FeatureBank]]]:
    """Yield the banks by role of every data set, by name."""
    yield (
        "Omniglot, conv4",
        banks_by_role(
            sets_by_role("omniglot", data_dir=data, roles=["novel", "base"]), backbones.create("conv4")
        ).banks,
    )
    if not (data / "tiny-imagenet").is_dir():
        return
    unseen = f"folder:{data}/tiny-imagenet/base_unseen"
    images = sets_by_role(f"folder:{data}/tiny-imagenet", base_queries=unseen, roles=["novel", "base", "base_queries"])
    weights = data / "weights" / "mobilenetv2_100_imagenet.safetensors"
    yield "Tiny ImageNet, MobileNetV2", banks_by_role(images, mobilenetv2(weights)).banks
    if conv5 is not None:
        yield "Tiny ImageNet, conv5", banks_by_role(images, backbones.create("conv5", conv5)).banks


def generalized(banks: dict[str, FeatureBank], shots: int, episodes: int) -> dict[str, Any]:
    """Return ``ausuc`` of both heads, and their paired difference over episodes and over classes."""
    queries, base = banks.get("base_queries"), banks["base"]
    if queries is None:  # evaluate holds these images out as queries; what heads know must not come from them
        base, _ = hold_out(base, share=0.25, seed=0)
    report = evaluate(
        banks["novel"],
        heads(base.base_statistics()),
        "generalized",
        base=banks["base"],
        base_queries=queries,
        shots=shots,
        episodes=episodes,
    )
    # Reports name a pair by the later head first, but for the first head.
    pair = next(name for name in report.paired if set(name.split("-", 1)) == set(HEADS))
    return {
        "ausuc": {name: found["ausuc"] for name, found in report.results.items()},
        pair: {"over_episodes": report.paired[pair]["ausuc"], "over_classes": report.over_classes[pair]["ausuc"]},
    }


def twenty(banks: dict[str, FeatureBank], shots: int, episodes: int) -> list[list[str]]:
    """Return rows of 20-way episodes: shots, a measure, both heads and their paired difference."""
    chosen = heads(banks["base"].base_statistics())
    report = evaluate(banks["novel"], chosen, "open", ways=20, open_ways=20, shots=shots, episodes=episodes)
    pair = next(name for name in report.paired if set(name.split("-", 1)) == set(HEADS))
    rows = []
    for measure in ("accuracy", "auroc", "open_fpr@95tpr"):
        values = [percent(report.results[name][measure], 2) for name in HEADS]
        differences = [percent(each[pair][measure], 2, signed=True) for each in (report.paired, report.over_classes)]
        rows.append(["Omniglot, conv4", str(shots), measure, *values, *differences])
    return rows


def main() -> None:
    """Run both, print the tables and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds omniglot-py, tiny-imagenet and weights")
    parser.add_argument("--conv5", type=Path, help="conv5's weights, by scripts/pretrain_photos.py")
    parser.add_argument("--episodes", type=whole_number(1, 10_000_000), default=300)
    parser.add_argument("--deployments", type=whole_number(2, 1_000_000), default=50)
    add_output(parser, "--json", "also write all numbers there")
    options = parser.parse_args()
    print("# What the joint write adds where there are many classes\n")
    more = differing_options(parser, options, "episodes", "deployments")
    print(
        f"Made by `python scripts/joint_write_alone.py DATA --conv5 FILE{more} --json results/joint_write_alone.json >"
    )
    print(f"results/joint_write_alone.md`: {options.episodes} episodes, {options.deployments} deployments, seed 0.\n")
    print("Generalized, 5-way, `ausuc` in percent; the difference is paired.\n")
    head_row = ["", "shots", *HEADS, "difference, over episodes", "over classes"]
    rows, many = [head_row], [["", "shots", "measure", *head_row[2:]]]
    found: dict[str, Any] = {}
    first: dict[str, FeatureBank] | None = None
    for name, banks in sets(options.data, options.conv5):
        first = first or banks
        for shots in (1, 5):
            one = found[f"{name}, {shots}"] = generalized(banks, shots, options.episodes)
            pair = next(each for each in one if each != "ausuc")
            if name.startswith("Omniglot"):
                many += found.setdefault(f"{name}, 20-way, {shots}", twenty(banks, shots, options.episodes))
            cells = [percent(value, 2) for value in one["ausuc"].values()]
            differences = [percent(value, 2, signed=True) for value in one[pair].values()]
            rows.append([name, str(shots), *cells, *differences])
    print("\n".join([*markdown_table(rows), ""]))
    print(f"The difference is {pair.replace('-', ' less ', 1)}.\n")
    print("Open protocol, Omniglot, 20-way.\n")
    print("\n".join([*markdown_table(many), ""]))
    assert first is not None
    characters = first["novel"]
    sizes = [5, 20, 100, characters.num_classes - 100]
    study = GrowthStudy(characters, sizes, 100, target=0.1, deployments=options.deployments, seed=0)
    grown = found["growth"] = study.run(heads(first["base"].base_statistics()))
    print("One threshold while classes come, Omniglot, as in `threshold_growth.md`; percent.\n")
    lines = [["", "classes", *MEASURES]]
    for row in grown:
        if not row["forgotten"]:
            lines.append([row["head"], str(row["classes"]), *(percent(row[measure]) for measure in MEASURES)])
    print("\n".join(markdown_table(lines)))
    if options.json:
        with replacing(options.json) as unfinished:
            unfinished.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

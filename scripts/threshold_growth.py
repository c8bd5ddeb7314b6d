"""Follow a threshold while classes are learned and forgotten: ``python scripts/threshold_growth.py DATA [--plot FILE]``.

Prints tables on stdout. A deployment learns 5 classes from 5 images each, sets its threshold, and grows to 20, 100 and all classes
of Omniglot's evaluation alphabets; then it forgets all but the first 5. DATA holds omniglot-py, tiny-imagenet and weights; without
tiny-imagenet only Omniglot is measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import backbones
from backbones.examples import mobilenetv2
from episodes import FeatureBank
from episodes.evaluation.growth import GROWTH_MEASURES, GrowthStudy
from episodes.features.sources import banks_by_role, sets_by_role
from episodes.reporting.formatting import differing_options, markdown_table, percent
from episodes.reporting.plots import growth_figure, save
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.numbers import whole_number
from fewshot_nam.cli.outputs import add_output
from fewshot_nam.heads import BaseStatistics, create
from fewshot_nam.io.atomic import replacing

HEADS = ("nam", "cosine", "cosine-root-centred", "plda")
LEGEND = """# One threshold while classes come and go

Made by `python scripts/threshold_growth.py DATA{more} --json results/threshold_growth.json --plot results/threshold_growth.png >
results/threshold_growth.md`: {deployments} deployments, seed {seed}. Percent, 95% intervals over deployments.

A deployment learns classes in random order, {shots} images each, and sets its thresholds when it knows the first 5. The *raw*
threshold accepts 95% of the known queries at that time, and stays as it is. The *calibrated* one is `Head.calibrate`'s, for at most
{target:g}% of unknowns of new classes, and follows the head. "5, after forgetting" is the head that has grown to the last size and
then forgotten all other classes. {queries} queries of each known class; unknown queries are of classes never learned, half of
which the head is calibrated on.

{meanings}
"""


def studies(data: Path, deployments: int, seed: int) -> Iterator[tuple[str, GrowthStudy, BaseStatistics]]:
    """Yield the studies by name, with what heads may know of base classes."""

    def study(bank: FeatureBank, sizes: list[int], unknown: int) -> GrowthStudy:
        grown = [*sizes, bank.num_classes - unknown]
        return GrowthStudy(bank, grown, unknown, target=0.1, deployments=deployments, seed=seed)

    banks = banks_by_role(
        sets_by_role("omniglot", data_dir=data, roles=["novel", "base"]), backbones.create("conv4")
    ).banks
    yield "Omniglot, conv4", study(banks["novel"], [5, 20, 100], 100), banks["base"].base_statistics()
    if not (data / "tiny-imagenet").is_dir():
        return
    objects = sets_by_role(f"folder:{data}/tiny-imagenet", roles=["novel", "base"])
    banks = banks_by_role(objects, mobilenetv2(data / "weights" / "mobilenetv2_100_imagenet.safetensors")).banks
    yield "Tiny ImageNet, MobileNetV2", study(banks["novel"], [5, 10], 18), banks["base"].base_statistics()


def table(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of one study's table."""
    lines = [[name, "classes", *GROWTH_MEASURES]]
    for row in rows:
        classes = f"{row['classes']}, after forgetting" if row["forgotten"] else str(row["classes"])
        lines.append([row["head"], classes, *(percent(row[measure]) for measure in GROWTH_MEASURES)])
    return markdown_table(lines)


def main() -> None:
    """Run the studies, print the tables and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds omniglot-py, tiny-imagenet and weights")
    parser.add_argument("--deployments", type=whole_number(2, 1_000_000), default=50)
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0)
    parser.add_argument("--heads", nargs="+", default=HEADS)
    add_output(parser, "--json", "also write all numbers there")
    add_output(parser, "--plot", "write a figure of the first study there, as PNG", replaces="an image")
    options = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for name, study, known in studies(options.data, options.deployments, options.seed):
        if not results:
            meanings = "\n".join(f"- `{measure}`: {meaning}." for measure, meaning in GROWTH_MEASURES.items())
            print(
                LEGEND.format(
                    more=differing_options(parser, options, "deployments", "seed", "heads"),
                    seed=options.seed,
                    deployments=study.deployments,
                    shots=study.shots,
                    queries=study.queries,
                    target=100 * study.target,
                    meanings=meanings,
                )
            )
        results[name] = study.run({head: create(head, known) for head in options.heads})
        print("\n".join([*table(name, results[name]), ""]), flush=True)
    if options.json:
        config = {"deployments": options.deployments, "seed": options.seed, "heads": list(options.heads)}
        with replacing(options.json) as unfinished:
            unfinished.write_text(json.dumps({"config": config, **results}, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        name, rows = next(iter(results.items()))
        save(lambda: growth_figure(rows, f"{name}: one threshold, set with the first classes"), options.plot)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

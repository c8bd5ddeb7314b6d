"""Choose the settings of the NAM head on validation classes: ``python scripts/tune_nam.py DATA [--background]``.

Three sets of validation classes, none of them tested on: Omniglot's (backbone ``conv4``), the same drawn with 8x8 pixels
(a scan of few pixels, which digits are too), and Tiny ImageNet's (MobileNetV2). For each setting the table gives the geometric
mean over the three sets and over 1 and 5 shots of its ``class_fpr@95tpr`` and ``open_fpr@95tpr`` as multiples of a plain cosine
classifier's, and the mean difference of accuracy and AUROC to it, in points.

With ``--background`` heads know the base classes too, and each is held against the best of four cosine classifiers (raw, centred,
rooted, rooted and centred), chosen anew for every measure, set and number of shots; "worst" is the worst of the six.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

import backbones
from episodes import FeatureBank, Report, evaluate, extract, open_dataset
from episodes.data.image_dataset import ImageSet
from fewshot_nam.heads import CosineHead, Head, NAMHead, create

GRID = {
    "ridge": [0.1, 0.2, 0.5, 1.0],
    "plain": [0.0, 1.0, 2.0, 3.0, 4.0],
    "level": [0.0, 0.3, 0.5],
    "compete": [0.0, 0.3, 0.4, 0.5],
}
BACKED = {"plain": [2.0, 3.0, 4.0], "familiar": [0.2, 0.4, 0.6], "compete": [0.0, 0.2, 0.4]}
COSINES = ["cosine", "cosine-centred", "cosine-root", "cosine-root-centred"]
HIGHER, LOWER = ("accuracy", "auroc"), ("class_fpr@95tpr", "open_fpr@95tpr")
MOBILENET_TRANSFORM = {"mean": 0.5, "std": 0.5, "input_size": 160, "crop_pct": 1.0, "interpolation": "bilinear"}


@torch.inference_mode()
def few_pixels(backbone: backbones.Backbone, pictures: ImageSet) -> FeatureBank:
    """Return features of the pictures as a scan of 8x8 pixels would show them, at full contrast."""
    rows = []
    for number in range(len(pictures)):
        ink = backbone.transform(pictures.image(number).convert("L").resize((8, 8), Image.Resampling.BOX))
        rows.append(ink / ink.max())
    return FeatureBank(torch.cat([backbone(batch) for batch in torch.split(torch.stack(rows), 500)]), pictures.labels)


class Validation(NamedTuple):
    """Validation classes, and what is known of base classes."""

    bank: FeatureBank
    mean: Tensor
    background: Tensor


def validation_sets(data: Path) -> dict[str, Validation]:
    """Return the three sets of validation classes."""
    conv4, characters = backbones.create("conv4"), open_dataset("omniglot", data)["val"]
    mobilenet = backbones.create(
        "timm/mobilenetv2_100",
        data / "weights" / "mobilenetv2_100_imagenet.safetensors",
        model_options={"pad_type": "same"},
        transform_options=MOBILENET_TRANSFORM,
    )
    objects = open_dataset(f"folder:{data}/tiny-imagenet")
    base, known = extract(mobilenet, objects["base"]), conv4.base_statistics.prototypes
    if known is None:
        raise SystemExit("the bundled backbone comes without its base prototypes")
    return {
        "omniglot": Validation(extract(conv4, characters), known.mean(dim=0), known),
        "omniglot 8x8": Validation(few_pixels(conv4, characters), known.mean(dim=0), known),
        "tiny-imagenet": Validation(extract(mobilenet, objects["val"]), base.mean(), base.class_means(power_norm=True)),
    }


def candidates() -> dict[str, Head]:
    """Return the heads to compare: cosine, cosine whose classes compete, and NAM on the grid."""
    heads: dict[str, Head] = {"cosine": CosineHead()}
    for share in (0.3, 0.5):
        heads[f"cosine, compete {share}"] = CosineHead(compete=share, temperature=0.1)
    for values in itertools.product(*GRID.values()):
        settings = dict(zip(GRID, values, strict=True))
        if settings["plain"] or not settings["level"]:  # without the plain memory there is no level
            heads[", ".join(f"{name} {value}" for name, value in settings.items())] = NAMHead(**settings)  # type: ignore[arg-type]
    return heads


def over_background(known: Validation) -> dict[str, Head]:
    """Return the heads to compare where base classes are known: baselines, NAM less one part, and NAM on the grid."""
    names = [*COSINES, "plda", "mahalanobis", "protonet", "ridge", "nearest", "nam"]
    heads = {name: create(name, known.mean, known.background) for name in names}
    background = known.background
    heads["nam, no background"] = NAMHead()
    heads["nam, no familiarity"] = NAMHead(background=background, familiar=0.0)
    heads["nam, no competition"] = NAMHead(background=background, compete=0.0)
    heads["nam, no block memory"] = NAMHead(background=background, p_write=0.0)
    heads["nam, no plain memory"] = NAMHead(background=background, plain=0.0)
    for values in itertools.product(*BACKED.values()):
        settings = dict(zip(BACKED, values, strict=True))
        name = ", ".join(f"{key} {value}" for key, value in settings.items())
        heads[name] = NAMHead(background=background, **settings)  # type: ignore[arg-type]
    return heads


def against_the_best(reports: list[Report], name: str) -> list[str]:
    """Return the cells of a head: mean (worst) over all reports, against the best cosine classifier of each measure."""
    cells = []
    for measure in (*LOWER, *HIGHER):
        found = []
        for report in reports:
            ours = report.results[name][measure]["mean"]
            theirs = [report.results[cosine][measure]["mean"] for cosine in COSINES]
            found.append(ours / min(theirs) if measure in LOWER else 100 * (ours - max(theirs)))
        if measure in LOWER:
            cells.append(f"x {math.exp(sum(map(math.log, found)) / len(found)):.3f} ({max(found):.2f})")
        else:
            cells.append(f"{sum(found) / len(found):+.2f} ({min(found):+.2f})")
    return cells


def against_cosine(reports: list[Report], name: str) -> dict[str, float]:
    """Return ratios of false-alarm rates to cosine's and differences in points, over all reports."""
    found = {}
    for measure in ("class_fpr@95tpr", "open_fpr@95tpr"):
        pairs = [
            (report.results[name][measure]["mean"], report.results["cosine"][measure]["mean"]) for report in reports
        ]
        found[measure] = math.exp(sum(math.log(a / b) for a, b in pairs) / len(pairs))
    for measure in ("accuracy", "auroc"):
        differences = [
            report.results[name][measure]["mean"] - report.results["cosine"][measure]["mean"] for report in reports
        ]
        found[measure] = 100 * sum(differences) / len(differences)
    return found


def main() -> None:
    """Evaluate every setting on every set and print the table, best ``class_fpr@95tpr`` first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds omniglot-py, tiny-imagenet and weights")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--background", action="store_true", help="heads that know the base classes")
    options = parser.parse_args()
    reports = []
    for known in validation_sets(options.data).values():
        heads = over_background(known) if options.background else candidates()
        for shots in (1, 5):
            reports.append(evaluate(known.bank, heads, "open", shots=shots, queries=10, episodes=options.episodes))
    if options.background:
        print("| head: mean (worst) | class_fpr@95tpr | open_fpr@95tpr | accuracy | auroc |\n|---|---|---|---|---|")
        for name in heads:
            print(f"| {name} | {' | '.join(against_the_best(reports, name))} |")
        return
    rows = {name: against_cosine(reports, name) for name in heads}
    print("| setting | class_fpr@95tpr | open_fpr@95tpr | accuracy | auroc |\n|---|---|---|---|---|")
    for name, row in sorted(rows.items(), key=lambda item: item[1]["class_fpr@95tpr"]):
        ratios = f"x {row['class_fpr@95tpr']:.3f} | x {row['open_fpr@95tpr']:.3f}"
        print(f"| {name} | {ratios} | {row['accuracy']:+.2f} | {row['auroc']:+.2f} |")


if __name__ == "__main__":
    main()

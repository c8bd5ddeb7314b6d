"""Choose the settings of the NAM head on validation classes: ``python scripts/tune_nam.py DATA [--base]``.

There are three sets of validation classes, and no test class: Omniglot's (backbone ``conv4``), the same drawn with 8x8 pixels (few
pixels, as digits have), and Tiny ImageNet's (MobileNetV2). For each setting the table shows the geometric mean over the three sets
and over 1 and 5 shots of its ``class_fpr@95tpr`` and ``open_fpr@95tpr`` as multiples of a plain cosine classifier's, and the mean
difference of accuracy and AUROC to it, in points.

With ``--base`` heads use base classes too, and each is compared with the best of four cosine classifiers (raw, centred,
power-normalised, power-normalised and centred), which is taken anew for every measure, set and number of shots; "worst" is the
worst of the six.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

import backbones
from backbones.examples import mobilenetv2
from episodes import FeatureBank, Report, evaluate, extract, open_dataset
from episodes.data.image_dataset import ImageSet
from episodes.reporting.formatting import markdown_table
from episodes.reporting.summary import gain_over_best, ratio_to_best
from fewshot_nam.heads import BaseStatistics, CosineHead, Head, NAMHead, create

GRID = {
    "ridge": [0.1, 0.2, 0.5, 1.0],
    "prototype_weight": [0.0, 1.0, 2.0, 3.0, 4.0],
    "norm_exponent": [0.0, 0.3, 0.5],
    "log_partition_penalty": [0.0, 0.3, 0.4, 0.5],
}
BASE_GRID = {
    "prototype_weight": [2.0, 3.0, 4.0],
    "cohort_weight": [0.2, 0.4, 0.6],
    "log_partition_penalty": [0.0, 0.2, 0.4],
}
COSINES = ["cosine", "cosine-centred", "cosine-root", "cosine-root-centred"]
HIGHER, LOWER = ("accuracy", "auroc"), ("class_fpr@95tpr", "open_fpr@95tpr")


class Validation(NamedTuple):
    """Validation classes, and what heads may know of base classes."""

    bank: FeatureBank
    base: BaseStatistics


@torch.inference_mode()
def few_pixels(backbone: backbones.Backbone, images: ImageSet) -> FeatureBank:
    """Return features of the images reduced to 8x8 pixels at full contrast."""
    reduced = []
    for number in range(len(images)):
        ink = backbone.transform(images.image(number).convert("L").resize((8, 8), Image.Resampling.BOX))
        reduced.append(ink / ink.max())
    return FeatureBank(torch.cat([backbone(batch) for batch in torch.split(torch.stack(reduced), 500)]), images.labels)


def validation_sets(data: Path) -> dict[str, Validation]:
    """Return the three sets of validation classes."""
    conv4, characters = backbones.create("conv4"), open_dataset("omniglot", data)["val"]
    mobilenet = mobilenetv2(data / "weights" / "mobilenetv2_100_imagenet.safetensors")
    objects = open_dataset(f"folder:{data}/tiny-imagenet")
    known = conv4.base_statistics
    assert known is not None
    return {
        "omniglot": Validation(extract(conv4, characters), known),
        "omniglot 8x8": Validation(few_pixels(conv4, characters), known),
        "tiny-imagenet": Validation(
            extract(mobilenet, objects["val"]), extract(mobilenet, objects["base"]).base_statistics()
        ),
    }


def candidates(_: BaseStatistics) -> dict[str, Head]:
    """Return the heads to compare without base classes: cosine, cosine with a log-partition penalty, and NAM on the grid."""
    heads: dict[str, Head] = {"cosine": CosineHead()}
    for share in (0.3, 0.5):
        heads[f"cosine, log_partition_penalty {share}"] = CosineHead(log_partition_penalty=share, temperature=0.1)
    for values in itertools.product(*GRID.values()):
        settings = dict(zip(GRID, values, strict=True))
        if (
            settings["prototype_weight"] or not settings["norm_exponent"]
        ):  # without the prototype memory its norm exponent does nothing
            heads[", ".join(f"{name} {value}" for name, value in settings.items())] = NAMHead(**settings)  # type: ignore[arg-type]
    return heads


def with_base_classes(base: BaseStatistics) -> dict[str, Head]:
    """Return the heads to compare with base classes: baselines, NAM less one part, and NAM on the grid."""
    names = [*COSINES, "plda", "mahalanobis", "protonet", "ridge", "nearest", "nam"]
    heads = {name: create(name, base) for name in names}
    heads["nam, no base classes"] = NAMHead()
    heads["nam, no cohort score"] = NAMHead(base=base, cohort_weight=0.0)
    heads["nam, no log-partition penalty"] = NAMHead(base=base, log_partition_penalty=0.0)
    heads["nam, no joint write"] = NAMHead(base=base, p_write=0.0)
    heads["nam, no prototype memory"] = NAMHead(base=base, prototype_weight=0.0)
    for values in itertools.product(*BASE_GRID.values()):
        settings = dict(zip(BASE_GRID, values, strict=True))
        name = ", ".join(f"{key} {value}" for key, value in settings.items())
        heads[name] = NAMHead(base=base, **settings)  # type: ignore[arg-type]
    return heads


def row(reports: list[Report], name: str, others: list[str], with_worst: bool) -> list[str]:
    """Return the cells of a head over all reports, against the best of the other heads for each measure."""
    cells = []
    for measure in LOWER:
        mean, worst = ratio_to_best(reports, name, others, measure)
        cells.append(f"x {mean:.3f}" + (f" ({worst:.2f})" if with_worst else ""))
    for measure in HIGHER:
        mean, worst = (100 * value for value in gain_over_best(reports, name, others, measure))
        cells.append(f"{mean:+.2f}" + (f" ({worst:+.2f})" if with_worst else ""))
    return cells


def main() -> None:
    """Evaluate every setting on every set and print the table, lowest ``class_fpr@95tpr`` first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds omniglot-py, tiny-imagenet and weights")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--base", "--background", action="store_true", help="heads that use base classes")
    options = parser.parse_args()
    heads_of = with_base_classes if options.base else candidates
    reports, heads = [], dict[str, Head]()
    for known in validation_sets(options.data).values():
        heads = heads_of(known.base)
        for shots in (1, 5):
            reports.append(evaluate(known.bank, heads, "open", shots=shots, queries=10, episodes=options.episodes))
    names = list(heads)
    if not options.base:
        names.sort(key=lambda name: ratio_to_best(reports, name, ["cosine"], LOWER[0])[0])
    others = COSINES if options.base else ["cosine"]
    title = "head: mean (worst)" if options.base else "setting"
    rows = [[name, *row(reports, name, others, with_worst=options.base)] for name in names]
    print("\n".join(markdown_table([[title, *LOWER, *HIGHER], *rows])))


if __name__ == "__main__":
    main()

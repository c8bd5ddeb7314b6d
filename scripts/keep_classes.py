"""Learn classes beside those of a trained classifier: ``python scripts/keep_classes.py DATA [--json FILE] [--plot FILE]``.

Prints tables on stdout: what ``attach(model, keep_classes=..., base_images=...)`` gains and costs with MobileNetV2 and the classes
of ImageNet, against its rule in version 0.1 and a cosine classifier. DATA holds tiny-imagenet and weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from backbones.examples import mobilenetv2
from episodes.evaluation.kept_classes import (
    RULES,
    KeptClassesStudy,
    answers,
    at_equal_base_accuracy,
    curve,
    first_images,
    point,
)
from episodes.features.sources import banks_by_role, sets_by_role
from episodes.reporting.formatting import differing_options, markdown_table, percent
from episodes.reporting.plots import kept_classes_figure, save
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.numbers import whole_number
from fewshot_nam.cli.outputs import add_output
from fewshot_nam.heads import Head, KeptClassifierHead
from fewshot_nam.io.atomic import replacing

MEASURES = {
    "before": "base queries right before a class is learned",
    "base": "base queries right afterwards",
    "new": "new queries right",
    "taken": "base queries that are answered as a new class",
    "reported": "what `base_cost.share` says of it, from base images alone",
}
LEGEND = """# New classes beside a classifier that is kept

Made by `python scripts/keep_classes.py DATA{more} --json results/keep_classes.json --plot results/keep_classes.png >
results/keep_classes.md`: {deployments} deployments, half as many in the two tables after the curves, seed \
{seed}. Percent, 95% intervals
over deployments, which differ in base images, new classes and shots; the classifier and the base queries stay the same.

MobileNetV2 at 160x160 pixels on images of 64x64. Its classifier keeps {kept} of the 1,000 classes of ImageNet, and others of them
are learned anew from a few shots. {images} base images, without labels, of 100 of the kept classes; {queries} base queries, other
images of the same classes. **The backbone was trained on all of these classes, the learned ones included**: this says what new
classes cost the kept ones, and not how well classes are learned that the backbone has never seen. The other kept classes, of which
some look more like the learned ones, are not tested.

{meanings}

The rules: `kept` is `KeptClassifierHead`, which `attach` makes; `erased` is what `attach` made in version 0.1; `cosine` is the
cosine to class weights and to the means of the shots, all less the mean of the base images. Before a class is learned the last two
are the same; `kept` also uses the lengths of class weights.
"""
CHOSEN = """Chosen on {classes} validation classes, with other images of the base classes as queries, {deployments} deployments:
`ridge` and `length_exponent` in the middle of a flat range; `share_for_one` as the largest, in steps of 0.5%, at which no more
than a twentieth of the right base answers is lost. The defaults are 4, 0.5, 0.02 and 0.15. That the share grows with the root of
the number of classes was decided on 1, 5 and 25 validation classes, after a share that grew with the number itself had been seen to
recognise few classes badly, on the test classes too. `largest_share`, which 57 classes reach, is not measured.
"""


def study(data: Path, new: str, queries: bool, **options: Any) -> tuple[KeptClassesStudy, Tensor]:
    """Return a study of Tiny ImageNet's classes of role ``new``, and the biases of the kept classes.

    Args:
        data: holds tiny-imagenet and weights.
        new: "novel" or "validation".
        queries: whether base queries are images that nothing was chosen on.
        options: of the study.
    """
    from timm.data.imagenet_info import ImageNetInfo

    folder, weights = data / "tiny-imagenet", data / "weights" / "mobilenetv2_100_imagenet.safetensors"
    sets = sets_by_role(f"folder:{folder}", base_queries=f"folder:{folder}/base_unseen")
    banks = banks_by_role({role: sets[role] for role in ("base", "base_queries", new)}, mobilenetv2(weights)).banks
    learned = set(banks[new].classes)
    names: list[str] = ImageNetInfo("imagenet-1k").label_names()  # type: ignore[no-untyped-call]
    rows = [i for i, name in enumerate(names) if name not in learned]
    classifier = load_file(weights)
    kept = [names[i] for i in rows]
    asked = banks["base_queries"] if queries else None
    made = KeptClassesStudy(banks["base"], asked, banks[new], classifier["classifier.weight"][rows], kept, **options)
    return made, classifier["classifier.bias"][rows]


def row(name: str, found: dict[str, Any]) -> list[str]:
    """Return the cells of a rule's row."""
    return [name, *("" if found[measure] is None else percent(found[measure]) for measure in MEASURES)]


def table(title: str, rows: dict[str, Any]) -> list[str]:
    """Return the lines of a table of points by name, and an empty one."""
    return [*markdown_table([[title, *MEASURES], *(row(name, one) for name, one in rows.items())]), ""]


def curves(made: KeptClassesStudy, bias: Tensor) -> tuple[dict[str, Any], list[str]]:
    """Return the results of all rules with all classes, and what is printed of them."""
    found = made.answers(RULES)
    deployment = made.drawn(0)
    logits = deployment.base_queries @ made.class_weights.T + bias
    results: dict[str, Any] = {
        "points": {name: point(some) for name, some in found.items()},
        "curves": {name: curve(some) for name, some in found.items()},
        "at equal base accuracy": {
            name: at_equal_base_accuracy(found["kept"], found[name]) for name in RULES if name != "kept"
        },
        "logits": float((logits.argmax(dim=1) == deployment.base_targets).double().mean()),
    }
    lines = [["taken", *(f"{name}: {side}" for name in RULES for side in ("base", "new"))]]
    for rows in zip(*results["curves"].values(), strict=True):
        lines.append([f"{100 * rows[0]['taken']:g}", *(percent(one[side]) for one in rows for side in ("base", "new"))])
    own = f"{100 * results['logits']:.1f} of the base queries right"
    text = [
        *table(f"{made.new.num_classes} classes, {made.shots} shots", results["points"]),
        f"The classifier's own logits, with biases and without subtracting a mean, get {own}.",
        "",
        *(
            f"- At equal `base`, `kept` is ahead of `{name}` with the best single offset by {percent(gain)} of `new`, paired."
            for name, gain in results["at equal base accuracy"].items()
        ),
        "",
        "The curves: an offset on all new scores, for every deployment the one at which the share `taken` of its base queries is",
        "answered as a new class. By itself, `kept` chooses an offset by base images, and gives the point of the first table.",
        "",
        *markdown_table(lines),
        "",
    ]
    return results, text


def sizes(made: KeptClassesStudy) -> tuple[dict[str, Any], list[str]]:
    """Return points with fewer classes and shots, and with other numbers of base images."""
    by_size: dict[str, Any] = {}
    by_images: dict[str, Any] = {}
    for classes, shots in ((1, 5), (5, 5), (15, 5), (5, 1), (35, 1)):
        found = replace(made, classes=classes, shots=shots).answers({name: RULES[name] for name in ("kept", "erased")})
        by_size |= {f"{classes} x {shots}, {name}": point(some) for name, some in found.items()}
    for count in (50, 100, 200):
        found = replace(made, base_images=count).answers({"kept": RULES["kept"]})
        by_images[f"{count}"] = point(found["kept"])
    lines = [*table("classes x shots, rule", by_size), *table("base images, with 35 classes of 5 shots", by_images)]
    return {"sizes": by_size, "base images": by_images}, lines


def fixed_images(made: KeptClassesStudy) -> tuple[dict[str, Any], list[str]]:
    """Return points on the images of an earlier report."""
    fixed = first_images(made)
    found = {name: point([answers(rule(fixed.base_images), fixed, made.class_weights)]) for name, rule in RULES.items()}
    lines = [["first images", *MEASURES]]
    for name, one in found.items():
        lines.append([name, *("" if one[key] is None else f"{100 * one[key]['mean']:.1f}" for key in MEASURES)])
    text = [
        "The first four images of each base class as base queries, 400 in all, and the next four as base images. An earlier report",
        "measured on these queries: 38.0 before, and 18.0 and 56 with the rule of version 0.1.",
        "",
        *markdown_table(lines),
        "",
    ]
    return {"first images": found}, text


def choices(made: KeptClassesStudy) -> tuple[dict[str, Any], list[str]]:
    """Return points with other settings, for validation classes."""
    grid: list[tuple[str, float]] = (
        [("ridge", value) for value in (1.0, 2.0, 8.0, 16.0)]
        + [("length_exponent", value) for value in (0.0, 1.0)]
        + [("share_for_one", value) for value in (0.01, 0.015, 0.025, 0.03)]
    )
    rules: dict[str, Callable[[Tensor], Head]] = {"the defaults": KeptClassifierHead}
    for name, value in grid:
        setting: dict[str, Any] = {name: value}
        rules[f"{name}={value:g}"] = partial(KeptClassifierHead, **setting)
    found = {name: point(some) for name, some in made.answers(rules).items()}
    text = CHOSEN.format(classes=made.new.num_classes, deployments=made.deployments)
    return {"validation": found}, [text, *table("validation", found)]


def legend(made: KeptClassesStudy, seed: int, more: str) -> str:
    """Return what stands above the tables."""
    return LEGEND.format(
        more=more,
        seed=seed,
        deployments=made.deployments,
        kept=len(made.kept),
        images=made.base_images,
        queries=f"{len(made.drawn(0).base_queries):,}",
        meanings="\n".join(f"- `{measure}`: {meaning}." for measure, meaning in MEASURES.items()),
    )


def main() -> None:
    """Run the study, print the tables and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds tiny-imagenet and weights")
    parser.add_argument("--deployments", type=whole_number(2, 1_000_000), default=10)
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0)
    add_output(parser, "--json", "also write all numbers there")
    add_output(parser, "--plot", "write the figure of the curves there, as PNG", replaces="an image")
    options = parser.parse_args()
    counts = {"deployments": options.deployments, "seed": options.seed}
    fewer = counts | {"deployments": max(1, options.deployments // 2)}
    made, bias = study(options.data, "novel", queries=True, **counts)
    print(legend(made, options.seed, differing_options(parser, options, "deployments", "seed")))
    results: dict[str, Any] = {"config": {**counts, "base_images": made.base_images}}
    parts: list[Callable[[], tuple[dict[str, Any], list[str]]]] = [
        lambda: curves(made, bias),
        lambda: sizes(replace(made, **fewer)),
        lambda: fixed_images(made),
        lambda: choices(study(options.data, "validation", queries=False, **counts)[0]),
    ]
    for part in parts:
        found, lines = part()
        results |= found
        print("\n".join(lines), flush=True)
    if options.json:
        with replacing(options.json) as unfinished:
            unfinished.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        title = f"{made.new.num_classes} classes, {made.shots} shots"
        save(lambda: kept_classes_figure(results["curves"], results["points"], title), options.plot)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    raise SystemExit(exit_status(main))

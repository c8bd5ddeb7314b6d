"""Train Conv5 on the base classes of a split folder of photographs: by cosine softmax, or in episodes through a few-shot head.

    python scripts/pretrain_photos.py DIR --out conv5.safetensors
    python scripts/pretrain_photos.py DIR --start conv5.safetensors --head nam --out conv5-nam.safetensors --checkpoint conv5-nam.pt

DIR holds the directories "base" and, if there are validation classes, "val", each with a directory of images for every class.
Only base classes are trained on; validation classes show how training goes. The file has the weights and the base classes' mean
features, and ``episode_eval.py --backbone conv5 --weights conv5.safetensors`` uses it. A run that was stopped resumes after its
last complete epoch. ``--start`` begins with given weights. With ``--head`` every batch is an episode: the class weights of a few
classes are written from images, and the gradient flows through the write (``backbones.pretraining.episodic``). Without it,
``torchrun --nproc-per-node N scripts/pretrain_photos.py ...`` divides every batch among N processes.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

import backbones
from backbones.bundled import save_weights
from backbones.conv5 import Conv5, square, standardize
from backbones.pretraining.episodic import HEADS, EpisodeClassifier, EpisodeRecipe, StartedRecipe
from backbones.pretraining.photo_augment import PhotoExamples, PhotoRecipe
from backbones.pretraining.training import CosineSoftmax, Objective, Pretraining, train
from episodes.data.folders import folder
from episodes.data.image_dataset import ImageSet
from episodes.evaluation.evaluation import evaluate
from episodes.features.bank import FeatureBank
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.distributed import joined
from fewshot_nam.heap import keep_freed_memory
from fewshot_nam.memory import unit


def pixels(images: ImageSet) -> Tensor:
    """Return all images ``(n, 3, 64, 64)`` uint8."""
    stack = np.stack([np.asarray(square(images.image(i))) for i in range(len(images))])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous()


@torch.inference_mode()
def features(model: Conv5, levels: Tensor, images: ImageSet) -> FeatureBank:
    """Return the bank of ``levels`` ``(n, 3, 64, 64)`` uint8."""
    model.eval()
    device = next(model.parameters()).device
    batches = (standardize(batch.to(device).float().div_(255)) for batch in torch.split(levels, 256))
    rows = torch.cat([model(batch.contiguous(memory_format=torch.channels_last)) for batch in batches])
    return FeatureBank(rows.cpu(), images.labels, images.classes)


def accuracy(bank: FeatureBank, shots: int, episodes: int) -> tuple[float, float]:
    """Return the closed-set 5-way accuracy of a cosine head and its 95% interval, percent."""
    report = evaluate(bank, heads=["cosine"], protocol="closed", ways=5, shots=shots, queries=15, episodes=episodes)
    found = report.results["cosine"]["accuracy"]
    return 100 * found["mean"], 100 * found["ci95"]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line; every number of the recipe is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="holds base/ and perhaps val/, a directory a class in each"
    )
    parser.add_argument("--out", type=Path, required=True, help="the weights file to write, *.safetensors")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/conv5.pt"), help="written every epoch")
    parser.add_argument("--check-every", type=int, default=5, metavar="EPOCHS", help="validate every so many epochs")
    parser.add_argument(
        "--width", type=int, default=32, help="channels of the first convolution; features are 16 times"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--start", type=Path, metavar="WEIGHTS", help="begin with these weights, not with random ones")
    for field in fields(PhotoRecipe):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(field.default), default=field.default, help="default %(default)s")
    episodes = parser.add_argument_group("training in episodes")
    episodes.add_argument("--head", choices=HEADS, help="how class weights are written: a batch becomes an episode")
    episodes.add_argument(
        "--ways", type=int, default=EpisodeRecipe.ways, help="classes written in an episode (default %(default)s)"
    )
    episodes.add_argument(
        "--shots",
        type=int,
        nargs="+",
        default=EpisodeRecipe.shots,
        help="images that a class is written from; with several numbers, from each of them (default 1 5)",
    )
    episodes.add_argument(
        "--queries",
        type=int,
        default=EpisodeRecipe.queries,
        help="queries of each class written; the rest of the batch are queries of other classes (default %(default)s)",
    )
    episodes.add_argument(
        "--ridge", type=float, default=EpisodeRecipe.ridge, help="damping of the joint write (default %(default)s)"
    )
    return parser.parse_args(arguments)


def recipe_of(options: argparse.Namespace, start: str) -> PhotoRecipe:
    """Return the recipe that the options give; a run without ``--start`` and ``--head`` has today's."""
    given = {field.name: getattr(options, field.name) for field in fields(PhotoRecipe)}
    if options.head is not None:
        episodes = {name: getattr(options, name) for name in ("head", "ways", "queries", "ridge")}
        return EpisodeRecipe(**given, start=start, shots=tuple(options.shots), **episodes)
    return StartedRecipe(**given, start=start) if start else PhotoRecipe(**given)


def begin(options: argparse.Namespace) -> tuple[Conv5, str]:
    """Return the network to begin with and the fingerprint of its weights, empty for random ones."""
    if options.start is None:
        torch.manual_seed(options.seed)
        return Conv5(options.width), ""
    started = backbones.create("conv5", options.start, model_options={"width": options.width})
    torch.manual_seed(options.seed)
    return cast(Conv5, started.network.requires_grad_(True)), started.weights_hash


def classifier_of(means: Tensor, recipe: PhotoRecipe) -> Objective:
    """Return what is trained besides the network, with class weights along the mean features ``(classes, D)`` to begin with."""
    if isinstance(recipe, EpisodeRecipe):
        return EpisodeClassifier.from_means(means, recipe)
    softmax = CosineSoftmax(means.shape[1], len(means), recipe.scale)
    with torch.no_grad():
        softmax.weight.copy_(unit(means))
    return softmax


def main() -> None:
    """Train, evaluate on validation classes, and write the weights."""
    options = parse()
    with joined(options.device) as process, keep_freed_memory():
        pretrain(options, process)


def pretrain(options: argparse.Namespace, process: int) -> None:
    """Train, evaluate and write; a ``process`` other than the first only takes part in the training."""
    try:
        model, start = begin(options)
        recipe = recipe_of(options, start)
        data = {
            role: folder(options.folder / role)
            for role in ("base", "val")
            if role == "base" or (options.folder / role).is_dir()
        }
    except ValueError as error:
        raise SystemExit(f"pretrain_photos: {error}") from None
    check_role = "val" if "val" in data else None
    levels = {role: pixels(data[role]) for role in ("base", check_role) if role is not None}
    labels = torch.from_numpy(data["base"].labels)
    examples = PhotoExamples(levels["base"], labels, recipe)
    try:
        classifier = None
        if type(recipe) is not PhotoRecipe:
            means = features(model.to(options.device), levels["base"], data["base"]).class_means()
            classifier = classifier_of(means, recipe)
        run = Pretraining(model, examples, recipe, options.checkpoint, options.device, classifier)
    except ValueError as error:
        raise SystemExit(f"pretrain_photos: {error}") from None
    scores: dict[str, tuple[float, float]] = {}

    def check() -> str:
        if check_role is None:
            return "no validation classes"
        bank = features(model, levels[check_role], data[check_role])
        scores.update({f"{shots}-shot": accuracy(bank, shots, episodes=500) for shots in (1, 5)})
        return "validation 5-way " + ", ".join(f"{k} {mean:.1f} ± {ci95:.1f}%" for k, (mean, ci95) in scores.items())

    train(run, check, options.check_every)
    if process > 0:
        return
    bank = features(model, levels["base"], data["base"])
    card = {
        "recipe": asdict(recipe),
        "width": options.width,
        "base_classes": data["base"].classes,
        "validation": scores,
    }
    save_weights(options.out, model, bank.class_means(), card)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

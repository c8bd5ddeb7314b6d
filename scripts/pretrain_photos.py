"""Train Conv5 on the base classes of a split folder of photographs, by cosine softmax.

    python scripts/pretrain_photos.py DIR --out conv5.safetensors

DIR holds the directories "base" and, if there are validation classes, "val", each with a directory of images for every class.
Only base classes are trained on; validation classes show how training goes. The file has the weights and the base classes' mean
features, and ``episode_eval.py --backbone conv5 --weights conv5.safetensors`` uses it. A run that was stopped resumes after its
last complete epoch; ``torchrun --nproc-per-node N scripts/pretrain_photos.py ...`` divides every batch among N processes.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backbones.bundled import save_weights
from backbones.conv5 import Conv5, square, standardize
from backbones.pretraining.photo_augment import PhotoExamples, PhotoRecipe
from backbones.pretraining.training import Pretraining, train
from episodes.data.folders import folder
from episodes.data.image_dataset import ImageSet
from episodes.evaluation.evaluation import evaluate
from episodes.features.bank import FeatureBank
from fewshot_nam.distributed import joined
from fewshot_nam.heap import keep_freed_memory


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
    for field in fields(PhotoRecipe):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(field.default), default=field.default, help="default %(default)s")
    return parser.parse_args(arguments)


def main() -> None:
    """Train, evaluate on validation classes, and write the weights."""
    options = parse()
    with joined(options.device) as process, keep_freed_memory():
        pretrain(options, process)


def pretrain(options: argparse.Namespace, process: int) -> None:
    """Train, evaluate and write; a ``process`` other than the first only takes part in the training."""
    recipe = PhotoRecipe(**{field.name: getattr(options, field.name) for field in fields(PhotoRecipe)})
    try:
        data = {
            role: folder(options.folder / role)
            for role in ("base", "val")
            if role == "base" or (options.folder / role).is_dir()
        }
    except ValueError as error:
        raise SystemExit(f"pretrain_photos: {error}") from None
    check_role = "val" if "val" in data else None
    levels = {role: pixels(data[role]) for role in ("base", check_role) if role is not None}
    torch.manual_seed(recipe.seed)
    model = Conv5(options.width)
    labels = torch.from_numpy(data["base"].labels)
    examples = PhotoExamples(levels["base"], labels, recipe)
    run = Pretraining(model, examples, recipe, options.checkpoint, options.device)
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
    main()

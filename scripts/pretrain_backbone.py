"""Train the bundled backbone: Conv4 on Omniglot's background alphabets, by cosine softmax over characters in four quarter turns.

    python scripts/pretrain_backbone.py --data-dir DIR

writes the weights with their base prototypes (safetensors) and a card that says how they were trained and what they score. The
last five background alphabets are for validation. A run that was stopped resumes after its last complete epoch; ``torchrun
--nproc-per-node N scripts/pretrain_backbone.py ...`` divides every batch among N processes.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from backbones import create
from backbones.bundled import save_weights
from backbones.conv4 import Conv4, ink_transform
from backbones.pretraining.omniglot_augment import InkExamples, InkRecipe
from backbones.pretraining.training import Pretraining, train
from episodes.data.datasets import open_dataset
from episodes.data.image_dataset import ImageSet
from episodes.evaluation.evaluation import evaluate
from episodes.features.bank import FeatureBank
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.distributed import joined
from fewshot_nam.heap import keep_freed_memory

OUT = Path(__file__).resolve().parent.parent / "backbones" / "weights" / "conv4_omniglot.safetensors"
SETTINGS = [(5, 1), (5, 5), (20, 1), (20, 5)]
PUBLISHED = {(5, 1): 98.8, (5, 5): 99.7, (20, 1): 96.0, (20, 5): 98.9}  # Prototypical Networks, table 1


def training_images(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Return images ``(n, 56, 56)`` uint8, ink 255 on paper 0, twice the side of Conv4's input, and labels ``(n,)``."""
    size = (2 * Conv4.image_size, 2 * Conv4.image_size)
    grey = (images.image(i).convert("L").resize(size, Image.Resampling.BILINEAR) for i in range(len(images)))
    paper = np.stack([np.asarray(image) for image in grey])
    return torch.from_numpy(255 - paper), torch.from_numpy(images.labels)


@torch.inference_mode()
def features(model: Conv4, inputs: Tensor, images: ImageSet) -> FeatureBank:
    """Return the bank of ``inputs`` ``(n, 1, 28, 28)``, the images as Conv4 takes them."""
    model.eval()
    device = next(model.parameters()).device
    rows = torch.cat([model(batch.to(device)) for batch in torch.split(inputs, 512)])
    return FeatureBank(rows.cpu(), images.labels, images.classes)


def accuracy(bank: FeatureBank, ways: int, shots: int, episodes: int) -> tuple[float, float]:
    """Return the closed-set accuracy of a cosine head and its 95% interval, percent."""
    report = evaluate(bank, heads=["cosine"], protocol="closed", ways=ways, shots=shots, queries=15, episodes=episodes)
    found = report.results["cosine"]["accuracy"]
    return 100 * found["mean"], 100 * found["ci95"]


def card_text(
    recipe: InkRecipe, scores: dict[str, dict[str, tuple[float, float]]], counts: dict[str, tuple[int, int]]
) -> str:
    """Return the card, Markdown."""
    lines = [
        "# Conv4-64, trained on Omniglot's background alphabets",
        "",
        "Written by `python scripts/pretrain_backbone.py --data-dir DIR`.",
        "",
        "- Input: a 28x28 grey image, dark ink on light paper (`backbones.conv4.ink_transform`).",
        "- Output: 64 features, none of them negative.",
        f"- Base classes: {counts['base'][0]} characters ({counts['base'][1]:,} drawings) of Omniglot's background alphabets",
        "  (Lake et al., 2015; MIT licence), all but the last five by name.",
        f"- Validation: the characters of those five ({counts['val'][0]}, {counts['val'][1]:,} drawings). Neither they nor the",
        "  evaluation alphabets were trained on; the recipe was chosen on validation characters alone.",
        "- Method: cosine softmax over base characters in four quarter turns; AdamW, one cycle; bfloat16 convolutions.",
        f"- Recipe: {', '.join(f'{key} {value}' for key, value in asdict(recipe).items())}.",
        "- In the file besides the weights: the statistics of the base characters (`fewshot_nam.heads.BaseStatistics`: mean",
        "  features, covariance within classes), under `base_`, and their names. `--statistics` computes them again.",
        f"- Trained with torch {torch.__version__} on {platform.machine()}, CPU only.",
        "",
        "Cosine head, closed episodes, 15 queries a class, 1,000 episodes, seed 0; percent, with 95% intervals over episodes.",
        "Published are Prototypical Networks (Snell et al., 2017), which were trained on more characters, tested on a random split",
        "of characters and their turns rather than on alphabets never seen, and trained end to end for this task.",
        "",
        "| | 5-way 1-shot | 5-way 5-shot | 20-way 1-shot | 20-way 5-shot |",
        "|---|---|---|---|---|",
    ]
    for part, name in (("val", "validation alphabets"), ("novel", "evaluation alphabets")):
        cells = [f"{mean:.2f} ± {ci95:.2f}" for mean, ci95 in scores[part].values()]
        lines.append(f"| {name} ({counts[part][0]} characters) | {' | '.join(cells)} |")
    lines.append(f"| published | {' | '.join(f'{PUBLISHED[setting]:.1f}' for setting in SETTINGS)} |")
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line; every number of the recipe is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="where Omniglot is, or where --download puts it")
    parser.add_argument("--download", action="store_true", help="download Omniglot if it is not there")
    parser.add_argument("--out", type=Path, default=OUT, help="the weights file; the card goes beside it")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("checkpoints/conv4.pt"), help="written after every epoch"
    )
    parser.add_argument(
        "--check-every", type=int, default=5, metavar="EPOCHS", help="validation accuracy every so many epochs"
    )
    parser.add_argument(
        "--statistics", action="store_true", help="only compute the base statistics in the weights file again"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    for field in fields(InkRecipe):
        if field.name != "zoom":
            option = "--" + field.name.replace("_", "-")
            parser.add_argument(option, type=type(field.default), default=field.default, help="default %(default)s")
    return parser.parse_args(arguments)


def main() -> None:
    """Train, evaluate, and write weights and card."""
    options = parse()
    if options.statistics:
        write_statistics(options)
        return
    with joined(options.device) as process, keep_freed_memory():
        pretrain(options, process)


def write_statistics(options: argparse.Namespace) -> None:
    """Put the statistics of base characters into the weights file; the weights and the card stay."""
    base = open_dataset("omniglot", options.data_dir, options.download)["base"]
    model = create("conv4", options.out).network
    assert isinstance(model, Conv4)
    with safe_open(options.out, framework="pt") as file:
        card = json.loads(file.metadata()["card"])
    inputs = torch.stack([ink_transform(base.image(i)) for i in range(len(base))])
    save_weights(options.out, model, features(model, inputs, base).base_statistics(), card)
    print(f"wrote the statistics of {len(base.classes)} base classes to {options.out}")


def pretrain(options: argparse.Namespace, process: int) -> None:
    """Train, evaluate and write; a ``process`` other than the first only takes part in the training."""
    recipe = InkRecipe(
        **{field.name: getattr(options, field.name) for field in fields(InkRecipe) if field.name != "zoom"}
    )
    data = open_dataset("omniglot", options.data_dir, options.download)
    torch.manual_seed(recipe.seed)
    model = Conv4()
    examples = InkExamples(*training_images(data["base"]), recipe)
    run = Pretraining(model, examples, recipe, options.checkpoint, options.device)
    inputs = {
        role: torch.stack([ink_transform(part.image(i)) for i in range(len(part))]) for role, part in data.items()
    }

    def check() -> str:
        mean, ci95 = accuracy(features(model, inputs["val"], data["val"]), 20, 1, episodes=500)
        return f"validation 20-way 1-shot {mean:.2f} ± {ci95:.2f}%"

    train(run, check, options.check_every)
    if process > 0:
        return

    banks = {role: features(model, inputs[role], data[role]) for role in data}
    scores = {
        role: {
            f"{ways}-way {shots}-shot": accuracy(banks[role], ways, shots, episodes=1000) for ways, shots in SETTINGS
        }
        for role in ("val", "novel")
    }
    card = {"recipe": asdict(recipe), "scores": scores, "base_classes": data["base"].classes}
    save_weights(options.out, model, banks["base"].base_statistics(), card)
    counts = {role: (len(part.classes), len(part)) for role, part in data.items()}
    options.out.with_suffix(".md").write_text(card_text(recipe, scores, counts))
    print(f"wrote {options.out} and its card")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

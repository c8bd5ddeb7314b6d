"""Train Conv4 on the base supports of Omniglot's incremental protocol alone: five drawings of each of 1,200 characters.

    python scripts/pretrain_omniglot_fscil.py --data-dir DIR --out checkpoints/conv4_omniglot_fscil.safetensors

No query drawing and no character of a later session is seen, so ``incremental_eval.py --dataset omniglot-fscil`` with these weights
is comparable with published figures. The bundled ``conv4`` is not: it was trained on all drawings of most base characters, base
queries among them. A run that was stopped resumes after its last complete epoch; with ``--finish-in`` it is brought to an early end
instead.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backbones.bundled import save_weights
from backbones.conv4 import Conv4, ink_transform
from backbones.pretraining.omniglot_augment import InkExamples, InkRecipe
from backbones.pretraining.training import Pretraining, train
from episodes.data.image_dataset import ImageSet
from episodes.data.incremental import open_sessions
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.numbers import whole_number
from fewshot_nam.heads import BaseStatistics
from fewshot_nam.heap import keep_freed_memory


def training_images(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Return images ``(n, 56, 56)`` uint8, ink 255 on paper 0, twice the side of Conv4's input, and labels ``(n,)``."""
    size = (2 * Conv4.image_size, 2 * Conv4.image_size)
    grey = (images.image(i).convert("L").resize(size, Image.Resampling.BILINEAR) for i in range(len(images)))
    return torch.from_numpy(255 - np.stack([np.asarray(image) for image in grey])), torch.from_numpy(images.labels)


@torch.inference_mode()
def statistics(model: Conv4, images: ImageSet) -> BaseStatistics:
    """Return what heads may know of the base classes."""
    inputs = torch.stack([ink_transform(images.image(i)) for i in range(len(images))])
    rows = torch.cat([model.eval()(batch) for batch in torch.split(inputs, 512)])
    return BaseStatistics.from_targets(rows, torch.from_numpy(images.labels), len(images.classes))


class EarlyEnd(Pretraining):
    """A run whose rate falls from where its checkpoint is, linearly to 0 in ``epochs`` further epochs."""

    def finish_in(self, epochs: int) -> None:
        """Train to that end."""
        begin = self.epoch * self.steps_per_epoch
        highest, steps = super()._rate(begin), epochs * self.steps_per_epoch
        self._rate = lambda step: highest * max(1e-3, 1 - (step - begin) / steps)  # type: ignore[method-assign]
        for _ in range(epochs):
            found = self.run_epoch()
            print(
                f"epoch {self.epoch}: loss {found['loss']:.3f}, training accuracy {100 * found['accuracy']:.1f}%",
                flush=True,
            )


def main() -> None:
    """Train, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="where Omniglot is")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/conv4_omniglot_fscil.safetensors"))
    parser.add_argument("--checkpoint", type=Path, help="written after every epoch; default: beside --out")
    parser.add_argument("--width", type=int, default=128, help="features (default: %(default)s)")
    parser.add_argument("--epochs", type=whole_number(1, 10_000_000), default=60, help="default: %(default)s")
    parser.add_argument("--finish-in", type=int, metavar="N", help="end in N further epochs, the rate falling to 0")
    options = parser.parse_args()
    base = open_sessions("omniglot-fscil", options.data_dir)[0].support
    recipe = InkRecipe(epochs=options.epochs)
    torch.manual_seed(recipe.seed)
    model = Conv4(options.width)
    checkpoint = options.checkpoint or options.out.with_suffix(".pt")
    run = EarlyEnd(model, InkExamples(*training_images(base), recipe), recipe, checkpoint)
    with keep_freed_memory():
        if options.finish_in is None:
            train(run, lambda: "all epochs done", options.epochs)
        else:
            run.finish_in(options.finish_in)
    card = {"recipe": asdict(recipe), "width": options.width, "base_classes": base.classes}
    save_weights(options.out, model, statistics(model, base), card)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

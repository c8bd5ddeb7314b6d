"""A tiny network whose weights come from a formula, the same in every release of torch, and images to go with it."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fewshot_nam import NAMModel, attach


class Tiny(nn.Module):
    """A convolution, batch normalisation, a pool and a classifier: images ``(B, 3, 16, 16)`` to 5 classes by 12 features."""

    def __init__(self, shift: float = 0.0, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, stride=2)
        self.norm = nn.BatchNorm2d(12)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(12, classes)
        with torch.no_grad():
            for parameter in (self.stem.weight, self.stem.bias, self.fc.weight, self.fc.bias):
                count = torch.arange(parameter.numel(), dtype=torch.float64)
                parameter.copy_(((count * 37 + 11) % 23 / 23 - 0.5 + shift).reshape(parameter.shape))

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.norm(self.stem(images)).relu()).flatten(1)
        return self.fc(self.drop(features))


def prepare(image: Image.Image) -> Tensor:
    """Return an image as ``(3, 16, 16)`` in [0, 1]."""
    pixels = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


def paint(number: int, size: tuple[int, int] = (20, 24)) -> Image.Image:
    """Return image ``number``: coarse coloured noise, a different one for each."""
    pixels = np.frombuffer(hashlib.sha512(b"%d" % number).digest()[:60], dtype=np.uint8).reshape(4, 5, 3)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


@pytest.fixture
def tiny() -> Callable[..., Tiny]:
    return Tiny


@pytest.fixture
def painted() -> Callable[..., Image.Image]:
    return paint


@pytest.fixture
def transform() -> Callable[[Image.Image], Tensor]:
    return prepare


@pytest.fixture
def nam() -> NAMModel:
    """A model that knows nothing yet."""
    return attach(Tiny(), classifier="fc", transform=prepare)


@pytest.fixture
def attached() -> Callable[..., NAMModel]:
    """Attach to a tiny network with other arguments."""

    def make(shift: float = 0.0, **arguments: Any) -> NAMModel:
        return attach(Tiny(shift), **({"classifier": "fc", "transform": prepare} | arguments))

    return make

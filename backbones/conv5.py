"""Conv5, a small convolutional network for 64x64 photographs, which a plain CPU trains within an hour.

As Conv4 of the few-shot literature, but the first convolution already halves the image, channels double from block to block,
and the last map is averaged. It has no published weights: ``scripts/pretrain_photos.py`` trains it on your base classes.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

from fewshot_nam.vision.image_transform import check_aspect, opaque


class Conv5(nn.Module):
    """A convolution of stride 2 and four blocks of convolution, batch normalisation, ReLU and (but for the last) 2x2 max pooling.

    Args:
        width: channels of the first convolution, at least 1; there are ``16 * width`` features.

    Shapes: images ``(B, 3, S, S)`` as from ``standardize``, S at least 32 (64 is meant), to features ``(B, 16 * width)``,
    none of them negative.
    """

    image_size = 64

    def __init__(self, width: int = 32) -> None:
        if type(width) is not int or not 1 <= width <= 512:
            raise ValueError(f"Conv5: width must be a whole number from 1 to 512, got {width!r}")
        super().__init__()
        self.feature_dim = 16 * width
        stem = nn.Conv2d(3, width, kernel_size=4, stride=2, padding=1, bias=False)
        blocks: list[nn.Module] = [stem, nn.BatchNorm2d(width), nn.ReLU()]
        for doubling in range(4):
            channels = width * 2**doubling
            blocks += [
                nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(2 * channels),
                nn.ReLU(),
            ]
            if doubling < 3:
                blocks.append(nn.MaxPool2d(2))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features ``(B, 16 * width)`` of images ``(B, 3, S, S)``."""
        return self.blocks(images).mean(dim=(2, 3))


def standardize(levels: Tensor) -> Tensor:
    """Return levels in [0, 1] minus 0.45, divided by 0.25: the input of the network."""
    return (levels - 0.45) / 0.25


def square(image: Image.Image) -> Image.Image:
    """Return ``image`` as 64x64 RGB: its short side scaled to 64, its middle cut out."""
    rgb = opaque(image).convert("RGB")
    check_aspect(rgb)
    side = Conv5.image_size
    scale = side / min(rgb.size)
    width, height = (max(side, round(length * scale)) for length in rgb.size)
    if (width, height) != rgb.size:
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return rgb.crop((left, top, left + side, top + side))


def photo_transform(image: Image.Image) -> Tensor:
    """Return ``image`` as Conv5 takes it, ``(3, 64, 64)`` float; the ends of one that is not square are cut off."""
    levels = torch.frombuffer(bytearray(square(image).tobytes()), dtype=torch.uint8)
    return standardize(levels.reshape(Conv5.image_size, Conv5.image_size, 3).permute(2, 0, 1).float() / 255)

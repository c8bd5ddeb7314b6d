"""Conv4-64, the four-block convolutional network of the few-shot literature, for small grey images.

Source: Vinyals et al., "Matching Networks for One Shot Learning" (2016), section 4.1; Snell et al., "Prototypical Networks"
(2017), section 3.1. Each block is a 3x3 convolution, batch normalisation, ReLU and 2x2 max pooling.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

from fewshot_nam.vision.image_transform import opaque


class Conv4(nn.Module):
    """Four convolutional blocks; a 28x28 grey image becomes 64 non-negative features.

    Args:
        width: channels of every block, which is also the number of features: a 28x28 image is pooled to 1x1.

    Shapes: images ``(B, 1, 28, 28)`` float, ink 1 on paper 0, to features ``(B, width)``.
    """

    image_size = 28

    def __init__(self, width: int = 64) -> None:
        if type(width) is not int or not 1 <= width <= 4096:
            raise ValueError(f"Conv4: width must be a whole number from 1 to 4096, got {width!r}")
        super().__init__()
        self.feature_dim = width
        self.blocks = nn.Sequential(*(self._block(1 if i == 0 else width, width) for i in range(4)))

    @staticmethod
    def _block(channels_in: int, channels_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the features ``(B, width)`` of images ``(B, 1, 28, 28)``."""
        return self.blocks(images).flatten(start_dim=1)


def ink_transform(image: Image.Image) -> Tensor:
    """Return ``image`` as Conv4 takes it: ``(1, 28, 28)`` float in [0, 1], dark ink on light paper turned into 1 on 0.

    Transparent parts become white. One that is not square is stretched, as in the literature.
    """
    size = (Conv4.image_size, Conv4.image_size)
    grey = opaque(image).convert("L").resize(size, Image.Resampling.BILINEAR)
    levels = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).reshape(1, *size)
    return 1.0 - levels.float() / 255.0

"""What every transform does first with a picture: 8 bits a channel, and nothing transparent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from torch import Tensor


def opaque(picture: Image.Image) -> Image.Image:
    """Return ``picture`` with 8 bits a channel, laid on white paper where it was transparent.

    Args:
        picture: of any PIL mode; 16-bit grey is scaled to 8 bits.

    Raises:
        TypeError: it is not a PIL picture.
        ValueError: its mode ("I", "F") does not say which value is white.
    """
    if not isinstance(picture, Image.Image):
        raise TypeError(f"transform: expected a PIL.Image.Image, got {type(picture).__name__}")
    if picture.mode.startswith("I;16"):
        # PIL's own conversion clips at 255, which would turn nearly every 16-bit picture white.
        return Image.fromarray(np.rint(np.asarray(picture) / 257.0).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"transform: a picture of mode {picture.mode!r} does not say which value is white: scale it to 0..255 and "
            "convert it to 'L' or 'RGB' first"
        )
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture


class RGBTransform:
    """A library's transform, given opaque RGB pictures whatever the mode of the one that came in.

    A class and not a closure, because a data loader's workers receive it pickled.

    Args:
        transform: opaque RGB picture to ``(3, H, W)`` float.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, picture: Image.Image) -> Tensor:
        """Return ``picture`` as a tensor ``(3, H, W)`` float."""
        return self.transform(opaque(picture).convert("RGB"))

"""What every transform begins with (8 bits a channel, nothing transparent), and applying one with errors that name the image."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from PIL import Image
from torch import Tensor

from fewshot_nam.io.image_headers import check_sides


def check_aspect(image: Image.Image) -> None:
    """Raise ``ValueError`` for an image that would be too large once its short side is resized."""
    check_sides(*image.size)


def opaque(image: Image.Image) -> Image.Image:
    """Return ``image`` with 8 bits a channel, on a white background where it was transparent.

    Args:
        image: of any PIL mode; 16-bit grey is scaled to 8 bits.

    Raises:
        TypeError: it is not a PIL image.
        ValueError: its mode ("I", "F") does not say which value is white.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"transform: expected a PIL.Image.Image, got {type(image).__name__}")
    if image.mode.startswith("I;16"):
        # PIL's own conversion clips at 255, which would turn nearly every 16-bit image white.
        return Image.fromarray(np.rint(np.asarray(image) / 257.0).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"transform: an image of mode {image.mode!r} does not say which value is white: scale it to 0..255 and "
            "convert it to 'L' or 'RGB' first"
        )
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def without_addresses(text: str) -> str:
    """Return the ``repr`` of a transform without addresses in memory, which differ from one process to the next.

    Example:
        >>> without_addresses("<function crop at 0x7f3c5e0>")
        '<function crop>'
    """
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", text)


class RGBTransform:
    """A library's transform, which gets an opaque RGB image whatever the mode of its input.

    A class and not a closure, because a data loader's workers receive it pickled.

    Args:
        transform: opaque RGB image to ``(3, H, W)`` float.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        """Return ``image`` as a tensor ``(3, H, W)`` float."""
        check_aspect(image)
        return self.transform(opaque(image).convert("RGB"))


class TransformFailed(ValueError):
    """The transform raised an error on an image. The message names the image."""


def transformed(image: Image.Image, transform: Callable[[Image.Image], Tensor], place: str) -> Tensor:
    """Return an image as the transform gives it, ``(C, H, W)``.

    Args:
        image: opened and decoded.
        transform: image to tensor.
        place: the image's name, for the error.

    Raises:
        TransformFailed: the transform raised an error.
        MemoryError: raised by the transform; it is passed on, as the image is not the cause.
        ValueError: it returned something other than a tensor ``(C, H, W)``.
    """
    try:
        check_aspect(image)
        tensor = transform(image)
    except MemoryError:
        raise
    except Exception as error:  # a transform of any library, or the user's
        raise TransformFailed(
            f"the transform failed on {place}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(tensor, Tensor) or tensor.dim() != 3:
        got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"the transform gave {got} for {place}, expected a tensor (C, H, W)")
    return tensor

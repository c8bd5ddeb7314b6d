"""Images in any form (files, PIL images, arrays, tensors; one or several) as batches for a network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewshot_nam._deprecation import renamed_names
from fewshot_nam.io.image_io import decoded, read_image, upright
from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.image_transform import transformed

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray[Any, Any] | Tensor"
Images: TypeAlias = "ImageLike | Iterable[ImageLike]"

_KINDS = (
    "a file's path, its bytes, an open file, a PIL image, a uint8 array (H, W), (H, W, 3) or (H, W, 4), a uint8 tensor (C, H, W), "
    "or a float tensor (C, H, W) that is transformed already"
)

__getattr__ = renamed_names(__name__, {"Picture": "ImageLike", "as_pictures": "as_images"})


def as_images(images: Images) -> tuple[list[ImageLike], bool]:
    """Return images as a list, and whether a single one was given.

    Args:
        images: one image, an iterable of images, an array ``(B, H, W, 3)`` or a tensor ``(B, C, H, W)``. No file is opened yet.

    Raises:
        TypeError: it is none of these.
        ValueError: there are none.
    """
    if isinstance(images, (str, os.PathLike, bytes, Image.Image)) or _is_file(images):
        return [images], True  # type: ignore[list-item]
    if isinstance(images, Tensor):
        single = images.dim() == 3
    elif isinstance(images, np.ndarray):
        # (H, W, 3) is one coloured image. (B, H, W) of grey images looks the same where W is 3 or 4, so it is refused.
        single = images.ndim == 2 or (images.ndim == 3 and images.shape[-1] in (1, 3, 4))
    else:
        if not isinstance(images, Iterable) or isinstance(images, (bytearray, dict)):
            raise TypeError(f"images: expected {_KINDS}, or a list of these, got {type(images).__name__}")
        items = list(images)
        if not items:
            raise ValueError("images: the list is empty: needs at least one image")
        return items, False
    if not single and images.ndim != 4:
        raise ValueError(f"images: expected {_KINDS}, or a batch of these, got shape {tuple(images.shape)}")
    if not len(images):
        raise ValueError(f"images: the batch {tuple(images.shape)} is empty: needs at least one image")
    return ([images] if single else list(images)), single


def features_of(backbone: Backbone, images: Images, batch_size: int = 32) -> Tensor:
    """Return the features ``(n, D)`` of ``n`` images, on the backbone's device.

    Args:
        backbone: images to features.
        images: as ``as_images`` takes them. A float tensor ``(n, C, H, W)`` is transformed already, and is one batch.
        batch_size: images that go through the backbone at a time.

    Raises:
        OSError, UnreadableImage, ValueError, TypeError: an image that cannot be read or used; the message names it.
    """
    if isinstance(images, Tensor) and images.is_floating_point() and images.dim() == 4 and len(images):
        _check_range(images, backbone)
        return _run(backbone, images)
    items, _ = as_images(images)
    for item in items:
        if isinstance(item, Tensor) and item.is_floating_point():
            _check_range(item, backbone)
    return torch.cat([_run(backbone, batch) for batch in batches(items, backbone.transform, batch_size)])


def _check_range(images: Tensor, backbone: Backbone) -> None:
    """Raise ``ValueError`` for a float tensor of values that the transform cannot give, such as pixels from 0 to 255."""
    if backbone.value_range is None or not images.numel() or torch.compiler.is_compiling():
        return
    low, high = (float(end) for end in images.detach().aminmax())
    least, most = backbone.value_range
    slack = 0.5 * (most - least)  # resizing may overshoot
    if low < least - slack or high > most + slack:
        raise ValueError(
            f"images: a float tensor is taken to be transformed already, but its values from {low:.3g} to {high:.3g} cannot "
            f"come from this model's transform, which gives {least:.3g} to {most:.3g}: pass uint8 pixels, or apply "
            "model.backbone.transform"
        )


def _run(backbone: Backbone, batch: Tensor) -> Tensor:
    weight = next(backbone.network.parameters(), batch)
    return backbone(batch.to(weight.device, weight.dtype))


def batches(images: list[ImageLike], transform: Callable[[Image.Image], Tensor], batch_size: int) -> Iterator[Tensor]:
    """Yield the images, opened and transformed, as tensors ``(b, C, H, W)`` on the CPU.

    Tensors that are transformed already stay on their device.

    Raises:
        OSError, UnreadableImage, ValueError, TypeError: an image that cannot be read or used; the message names the file,
            or its place in the list.
    """
    for start in range(0, len(images), batch_size):
        tensors = [
            _transformed(image, start + i, transform) for i, image in enumerate(images[start : start + batch_size])
        ]
        for i, tensor in enumerate(tensors):
            if tensor.shape != tensors[0].shape:
                raise ValueError(
                    f"{_place(images[start + i], start + i)}: its tensor is {tuple(tensor.shape)}, that of "
                    f"{_place(images[start], start)} is {tuple(tensors[0].shape)}: the transform must give one size for all"
                )
        yield torch.stack(tensors)


def _transformed(image: ImageLike, index: int, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    place = _place(image, index)
    if isinstance(image, Tensor) and image.is_floating_point():
        if image.dim() != 3:
            raise ValueError(f"{place}: a transformed image must be (C, H, W), got shape {tuple(image.shape)}")
        return image
    return transformed(_opened(image, place), transform, place)


def _opened(image: ImageLike, place: str) -> Image.Image:
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return upright(lambda: image, place)
    if isinstance(image, bytes):
        return decoded(image, place)
    if _is_file(image):
        content = image.read()  # type: ignore[union-attr]
        if not isinstance(content, bytes):
            raise TypeError(f"{place}: the file is open as text: open it in binary mode")
        return decoded(content, place)
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.dim() != 3:
            raise ValueError(
                f"{place}: a tensor must be uint8 or float (C, H, W), got {image.dtype} {tuple(image.shape)}"
            )
        return _from_array(image.detach().permute(1, 2, 0).cpu().numpy(), place, "(C, H, W) with C 1, 3 or 4")
    if isinstance(image, np.ndarray):
        return _from_array(image, place, "(H, W), (H, W, 3) or (H, W, 4)")
    raise TypeError(f"{place}: expected {_KINDS}, got {type(image).__name__}")


def _from_array(array: np.ndarray[Any, Any], place: str, shapes: str) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if (
        array.dtype != np.uint8
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4)))
        or not array.size
    ):
        raise ValueError(
            f"{place}: an array of pixels must be uint8 {shapes}, got {array.dtype} {array.shape}: scale it to 0..255 and "
            "convert it"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _place(image: ImageLike, index: int) -> str:
    """Return where an image is, for an error: its file, or its place in the list."""
    name = image if isinstance(image, (str, os.PathLike)) else getattr(image, "filename", getattr(image, "name", ""))
    return os.fsdecode(name) if name and isinstance(name, (str, bytes, os.PathLike)) else f"images[{index}]"


def _is_file(image: object) -> bool:
    """Return whether this is a file that is open for reading, or like one."""
    return callable(getattr(image, "read", None))

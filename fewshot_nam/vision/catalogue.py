"""Backbones by name: the list of names, and ``create``. ``backbones.available`` and ``backbones.create`` are these functions.

The networks that come with fewshot-nam ("conv4", "conv5") are in the package ``backbones``, which is built on this one. It is
imported only when such a name is used: a user's project may have a directory ``backbones`` of its own.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch

from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.libraries.common import Library, LibraryNotInstalled
from fewshot_nam.vision.libraries.names import BUNDLED as BUNDLED_NAMES
from fewshot_nam.vision.libraries.registry import LIBRARIES


class UnknownBackbone(ValueError):
    """There is no backbone of that name. The message suggests similar names."""


def available() -> list[str]:
    """Return the names that ``create`` takes; those of libraries that are not installed are left out.

    A timm or torchvision name may also carry the tag of its weights ("timm/resnet50.a1_in1k",
    "torchvision/resnet50.IMAGENET1K_V1"); these are not listed.

    Example:
        >>> import backbones
        >>> [name for name in backbones.available() if "/" not in name]
        ['conv4', 'conv5']
    """
    names: list[str] = []
    for prefix in ("", *LIBRARIES):
        with contextlib.suppress(LibraryNotInstalled):
            library = LIBRARIES[prefix] if prefix else _bundled()
            names += [prefix + model for model in library.model_names()]
    return names


def create(
    name: str,
    pretrained: bool | str | os.PathLike[str] = True,
    *,
    model_options: Mapping[str, Any] | None = None,
    transform_options: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
) -> Backbone:
    """Return the backbone of that name, frozen and in eval mode.

    Args:
        name: one of ``available()``, such as "conv4", "timm/<model>" or "torchvision/<model>".
        pretrained: ``True`` for the published weights (timm and torchvision download theirs), ``False`` for random
            ones, or the path of a local file of weights, with or without a classifier.
        model_options: passed to the model, as ``{"pad_type": "same"}`` or ``{"img_size": 160}``.
        transform_options: in place of the transform's own settings. timm: ``input_size``, ``crop_pct``, ``crop_mode``,
            ``interpolation``, ``mean``, ``std``. torchvision: ``resize_size``, ``crop_size``, ``interpolation``,
            ``antialias``, ``mean``, ``std``.
        device: where to put it, as "cuda"; ``None`` leaves it on the CPU.

    Raises:
        LibraryNotInstalled: timm or torchvision is needed and not installed, or another package called ``backbones`` is
            found in place of the one that holds "conv4" and "conv5"; an ``ImportError`` and a ``ValueError``.
        ValueError: an unknown name or option, a failed download, a file of weights that does not fit, or a device that
            does not exist.

    Example:
        >>> import backbones
        >>> from PIL import Image
        >>> backbone = backbones.create("conv4")
        >>> image = backbone.transform(Image.new("L", (105, 105), "white"))
        >>> backbone(image.unsqueeze(0)).shape
        torch.Size([1, 64])
    """
    where = None if device is None else _checked_device(device)
    if not isinstance(pretrained, bool | str | os.PathLike):
        raise ValueError(f"create: pretrained is True, False or the path of a file, got {pretrained!r}")
    weights = pretrained if isinstance(pretrained, bool) else Path(pretrained)
    library = next((library for prefix, library in LIBRARIES.items() if name.startswith(prefix)), None) or _bundled(
        name
    )
    model = name.removeprefix(library.prefix)
    if not library.has_model(model):
        raise UnknownBackbone(_unknown(name))
    backbone = library.create(model, weights, model_options or {}, transform_options or {})
    return backbone if where is None else backbone.to(where)


def _bundled(name: str = "") -> Library:
    """Return the networks that come with fewshot-nam.

    Args:
        name: the backbone that is looked for, for the error.

    Raises:
        LibraryNotInstalled: the package ``backbones`` is not ours.
        UnknownBackbone: nor has ours a backbone of that name.
    """
    # Found before it is imported: the code of another project's package must not run.
    spec = importlib.util.find_spec("backbones")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    if PathFinder.find_spec("backbones.bundled", places) is None:
        if name and name not in BUNDLED_NAMES:
            raise UnknownBackbone(_unknown(name))
        found = "does not find it" if spec is None else f"finds {spec.origin or places[0]} in its place"
        raise LibraryNotInstalled(
            f"backbone {name!r}: names that do not start with {' or '.join(LIBRARIES)} are looked up in fewshot-nam's "
            f"package backbones, but Python {found}: rename what is in its place, or run where it is not on sys.path"
        )
    from backbones.bundled import BUNDLED

    return BUNDLED


def _unknown(name: str) -> str:
    names = available()
    # A name without its library is compared with what follows the library's, and may then mean either library's model.
    places: dict[str, list[str]] = {}
    for known in names:
        places.setdefault(known if "/" in name else known.rpartition("/")[2], []).append(known)
    near = [name] if name in places else difflib.get_close_matches(name, places, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(full for key in near for full in places[key])}? " if near else ""
    bundled = [known for known in names if "/" not in known]
    counts = [f"{prefix}<model> ({sum(known.startswith(prefix) for known in names)})" for prefix in LIBRARIES]
    return f"no backbone {name!r}: {hint}There are {', '.join([*bundled, *counts])}; backbones.available() lists them"


def _checked_device(device: str | torch.device) -> torch.device:
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"create: there is no device {str(device)!r} here: pass device='cpu' or leave it out"
        ) from error
    return where

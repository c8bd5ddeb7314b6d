"""Backbones by name: what there is, and making one."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from backbones import bundled as own
from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.libraries import timm_models, torchvision_models
from fewshot_nam.vision.libraries.common import LibraryNotInstalled


def available() -> list[str]:
    """Return the names that ``create`` takes; those of libraries that are not installed are left out.

    A timm or torchvision name may also carry the tag of its weights ("timm/resnet50.a1_in1k",
    "torchvision/resnet50.IMAGENET1K_V1"); these are not listed.
    """
    names = [*own.NETWORKS]
    for room in (timm_models, torchvision_models):
        try:
            names += [room.PREFIX + model for model in room.model_names()]
        except LibraryNotInstalled:
            continue
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
        name: "conv4" (comes with the package: handwritten characters), "conv5" (photographs; comes without weights),
            "timm/<model>" or "torchvision/<model>"; see ``available``.
        pretrained: ``True`` for the published weights (timm and torchvision download theirs), ``False`` for random
            ones, or the path of a local file of weights, with or without a classifier.
        model_options: passed to the model, as ``{"pad_type": "same"}`` or ``{"img_size": 160}``.
        transform_options: in place of the transform's own settings. timm: ``input_size``, ``crop_pct``, ``crop_mode``,
            ``interpolation``, ``mean``, ``std``. torchvision: ``resize_size``, ``crop_size``, ``interpolation``,
            ``antialias``, ``mean``, ``std``.
        device: where to, as "cuda"; ``None`` leaves it on the CPU.

    Raises:
        LibraryNotInstalled: timm or torchvision is needed and not there; an ``ImportError`` and a ``ValueError``.
        ValueError: an unknown name or option, a failed download, a file of weights that does not fit, or a device that
            is not there.

    Example::

        backbone = create("timm/resnet50", transform_options={"input_size": 160})
        features = backbone(backbone.transform(picture).unsqueeze(0))  # (1, 2048)
    """
    where = None if device is None else _checked_device(device)
    if not isinstance(pretrained, bool | str | os.PathLike):
        raise ValueError(f"create: pretrained is True, False or the path of a file, got {pretrained!r}")
    weights = pretrained if isinstance(pretrained, bool) else Path(pretrained)
    backbone = _maker(name)(weights, model_options or {}, transform_options or {})
    return backbone if where is None else backbone.to(where)


def _maker(name: str) -> Callable[[bool | Path, Mapping[str, Any], Mapping[str, Any]], Backbone]:
    if name in own.NETWORKS:
        return lambda *given: own.create_own(name, *given)
    model = name.partition("/")[2]
    if name.startswith(timm_models.PREFIX) and timm_models.has_model(model):
        return lambda *given: timm_models.create_timm(model, *given)
    if name.startswith(torchvision_models.PREFIX) and torchvision_models.has_model(model):
        return lambda *given: torchvision_models.create_torchvision(model, *given)
    raise ValueError(_unknown(name))


def _unknown(name: str) -> str:
    names = available()
    # A name without its library is compared with what follows the library's, and may then mean either library's model.
    places: dict[str, list[str]] = {}
    for known in names:
        places.setdefault(known if "/" in name else known.rpartition("/")[2], []).append(known)
    near = [name] if name in places else difflib.get_close_matches(name, places, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(full for key in near for full in places[key])}? " if near else ""
    counts = ", ".join(
        f"{prefix}<model> ({sum(known.startswith(prefix) for known in names)})"
        for prefix in (timm_models.PREFIX, torchvision_models.PREFIX)
    )
    return (
        f"no backbone {name!r}: {hint}There are {', '.join(own.NETWORKS)}, {counts}; backbones.available() lists them"
    )


def _checked_device(device: str | torch.device) -> torch.device:
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"create: there is no device {str(device)!r} here: pass device='cpu' or leave it out"
        ) from error
    return where

"""Every model of timm as a backbone: ``timm/<model>`` or ``timm/<model>.<tag>``."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.image_transform import RGBTransform
from fewshot_nam.vision.libraries.common import (
    GIVE_FILE,
    LARGEST_SIDE,
    FoundTransform,
    Library,
    build,
    check_options,
    library,
    removed_keys,
    three,
)
from fewshot_nam.vision.weight_files import fit_weights, read_weights

PREFIX = "timm/"
_TRANSFORM_OPTIONS = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
_CHOICES = {
    "crop_mode": ("center", "squash", "border"),
    "interpolation": ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
}
# Set by this module: weights are given by ``pretrained``, and the output are features.
_SMALLEST_CROP = 0.1  # share of a scaled image that is used; published transforms use 0.8 and more
_LARGEST_RESIZED = 2 * LARGEST_SIDE  # pixels of a side before the crop
_RESERVED = (
    "checkpoint_path",
    "features_only",
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
)


def model_names() -> list[str]:
    """Return the names of timm's models, without tags."""
    return list(library("timm").list_models())


def has_model(model: str) -> bool:
    """Say whether timm has ``model``, which may carry the tag of its weights ("resnet50.a1_in1k")."""
    timm = library("timm")
    architecture, _, tag = model.partition(".")
    return bool(timm.is_model(architecture)) and (not tag or model in timm.list_pretrained(f"{architecture}.*"))


def create_timm(
    model: str, pretrained: bool | Path, model_options: Mapping[str, Any], transform_options: Mapping[str, Any]
) -> Backbone:
    """Return a model of timm without its classifier.

    Args:
        model: a name for which ``has_model`` holds.
        pretrained: ``True`` to download timm's weights, ``False`` for random ones, or a file of weights.
        model_options: for ``timm.create_model``.
        transform_options: in place of what the weights were trained with: ``input_size`` (a side, or [3, H, W]),
            ``crop_pct``, ``crop_mode``, ``interpolation``, ``mean`` and ``std`` (a number, or one per colour).

    Raises:
        LibraryNotInstalled: timm is not installed.
        ValueError: an unknown option, a failed download, or a file that does not fit.
    """
    timm, name = library("timm"), PREFIX + model
    overrides = checked_transform_options(name, transform_options)
    reserved = [option for option in model_options if option in _RESERVED]
    if reserved:
        raise ValueError(f"backbone {name}: model option {reserved[0]!r} is set by backbones.create itself")
    if pretrained is True and not timm.models.is_model_pretrained(model):
        raise ValueError(f"backbone {name}: timm has no weights for it: {GIVE_FILE}, or False for random ones")
    builder = functools.partial(timm.create_model, model)
    featureless = functools.partial(builder, num_classes=0, pretrained=pretrained is True)
    network = build(name, featureless, model_options, downloads=pretrained is True)
    if isinstance(pretrained, Path):
        state = _renamed(read_weights(pretrained), network)
        fit_weights(network, state, pretrained, name, removed_keys(builder, model_options, network))
    transform, identity = timm_transform(network, overrides)
    return Backbone(name, network, transform, identity, model_options=model_options)


def timm_transform(network: nn.Module, overrides: Mapping[str, Any]) -> tuple[RGBTransform, str]:
    """Return the transform that a timm model's weights were trained with, and a text that changes with it.

    Args:
        network: a timm model, with or without its classifier.
        overrides: from ``checked_transform_options``.
    """
    config = library("timm", "data").resolve_data_config(dict(overrides), model=network)
    side = max(config["input_size"][1:]) / config["crop_pct"]
    if side > _LARGEST_RESIZED:
        raise ValueError(
            f"transform option crop_pct {config['crop_pct']} with input_size {list(config['input_size'])} scales images to "
            f"{side:,.0f} pixels, and at most {_LARGEST_RESIZED:,} are computed"
        )
    transform = RGBTransform(library("timm", "data").create_transform(**config, is_training=False))
    return transform, "timm eval, RGB on white paper " + json.dumps(config, sort_keys=True)


def checked_transform_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a transform in the form that timm takes; ``ValueError`` for those that it does not."""
    check_options(name, "transform", options, _TRANSFORM_OPTIONS)
    checked = dict(options)
    if "input_size" in options:
        size = options["input_size"]
        sizes = (3, size, size) if isinstance(size, int) else size
        if (
            not isinstance(sizes, list | tuple)
            or len(sizes) != 3
            or sizes[0] != 3
            or not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in sizes)
        ):
            raise ValueError(
                f"backbone {name}: transform option input_size is a side or [3, H, W], at most {LARGEST_SIDE}, got {size!r}"
            )
        checked["input_size"] = tuple(sizes)
    share = options.get("crop_pct", 1)
    if not isinstance(share, int | float) or not _SMALLEST_CROP <= share <= 1:
        raise ValueError(f"backbone {name}: transform option crop_pct is in [{_SMALLEST_CROP}, 1], got {share!r}")
    for option, choices in _CHOICES.items():
        if option in options and options[option] not in choices:
            raise ValueError(
                f"backbone {name}: transform option {option} is one of {', '.join(choices)}, got {options[option]!r}"
            )
    return checked | {option: three(name, option, options[option]) for option in ("mean", "std") if option in options}


def _renamed(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    # Files of the original authors have other names for the same weights, and position embeddings of another size:
    # next to a model that has such files timm keeps the function that its own downloads go through.
    rename = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return state
    try:
        renamed: dict[str, Tensor] = rename(dict(state), network)
    except Exception:  # another kind of file: the check of the keys names its contents
        return state
    return renamed


def _owns(network: nn.Module) -> bool:
    return hasattr(network, "get_classifier") and hasattr(network, "pretrained_cfg")


def _model_name(network: nn.Module) -> str:
    config: Any = network.pretrained_cfg
    return PREFIX + (config.get("architecture") or type(network).__name__)


def _classifiers(network: nn.Module) -> list[str]:
    """Return the names of a model's classifiers; distilled transformers have two."""
    get_classifier: Any = network.get_classifier
    given = get_classifier()
    wanted = list(given) if isinstance(given, tuple | list | nn.ModuleList) else [given]
    return [name for name, module in network.named_modules() if any(module is one for one in wanted)]


def _find_transform(network: nn.Module, options: Mapping[str, Any]) -> FoundTransform:
    name = _model_name(network)
    return FoundTransform(name, *timm_transform(network, checked_transform_options(name, options)), [])


TIMM = Library(
    prefix=PREFIX,
    model_names=model_names,
    has_model=has_model,
    create=create_timm,
    owns=_owns,
    model_name=_model_name,
    classifiers=_classifiers,
    find_transform=_find_transform,
)

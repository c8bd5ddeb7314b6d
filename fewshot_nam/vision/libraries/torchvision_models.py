"""Classification models of torchvision as backbones: ``torchvision/<model>`` or ``torchvision/<model>.<weights>``."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.image_transform import RGBTransform
from fewshot_nam.vision.libraries.common import (
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

PREFIX = "torchvision/"
_CLASSIFIERS = ("fc", "classifier", "heads", "head")
_AUXILIARY = ("aux1", "aux2", "AuxLogits")  # more classifiers, which GoogLeNet and Inception are trained with
_RESERVED = ("aux_logits", "num_classes", "weights")
# Their published weights expect the input to be normalised once more inside the model. torchvision switches that on
# with its own download only, but a local copy of the same file has to give the same features.
_SELF_NORMALISING = ("googlenet", "inception_v3")
# The densenet files keep names from before torch forbade dots in them.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


def model_names() -> list[str]:
    """Return the names of torchvision's classification models."""
    models = library("torchvision", "models")
    return list(models.list_models(module=models))


def has_model(model: str) -> bool:
    """Say whether torchvision has ``model``, which may name its weights ("resnet50.IMAGENET1K_V1")."""
    architecture, _, tag = model.partition(".")
    return architecture in model_names() and (
        not tag or tag in library("torchvision", "models").get_model_weights(architecture).__members__
    )


def create_torchvision(
    model: str, pretrained: bool | Path, model_options: Mapping[str, Any], transform_options: Mapping[str, Any]
) -> Backbone:
    """Return a classification model of torchvision without its last linear layer: the penultimate features.

    Args:
        model: a name for which ``has_model`` holds.
        pretrained: ``True`` to download torchvision's weights, ``False`` for random ones, or a file of weights.
        model_options: for ``torchvision.models.get_model``.
        transform_options: in place of what the weights were trained with: ``resize_size``, ``crop_size``, ``mean`` and
            ``std`` (a number, or one per colour), ``interpolation``, ``antialias``.

    Raises:
        LibraryNotInstalled: torchvision is not installed.
        ValueError: an unknown option, a failed download, or a file that does not fit.
    """
    models, name = library("torchvision", "models"), PREFIX + model
    architecture, _, tag = model.partition(".")
    weights_enum = models.get_model_weights(architecture)
    weights = weights_enum[tag] if tag else weights_enum.DEFAULT
    config = _transform_config(name, weights.transforms, transform_options)
    reserved = [option for option in model_options if option in _RESERVED]
    if reserved:
        raise ValueError(f"backbone {name}: model option {reserved[0]!r} is set by backbones.create itself")
    options = dict(model_options)
    builder = functools.partial(models.get_model, architecture)
    if architecture in _SELF_NORMALISING:
        options = {"transform_input": pretrained is not False} | options
        builder = functools.partial(builder, init_weights=pretrained is False)  # without it, torchvision warns
    if architecture.startswith("vit_"):
        options = {"image_size": weights.meta["min_size"][0]} | options  # as torchvision does with its own download
    chosen = functools.partial(builder, weights=weights if pretrained is True else None)
    network = build(name, chosen, options, downloads=pretrained is True)
    remove_classifier(network)
    if isinstance(pretrained, Path):
        state = read_weights(pretrained)
        if architecture.startswith("densenet"):
            state = {_OLD_DENSENET.sub(r"\1\2", key): tensor for key, tensor in state.items()}
        fit_weights(network, state, pretrained, name, removed_keys(builder, options, network))
    transform, identity = _transform(weights, config)
    return Backbone(name, network, transform, identity, model_options=options)


def remove_classifier(network: nn.Module) -> None:
    """Replace the last linear layer of a torchvision classifier by the identity, and drop auxiliary classifiers.

    Args:
        network: one of torchvision's classification models; changed in place.
    """
    drop_auxiliary(network)
    network.set_submodule(classifier_name(network), nn.Identity())


def drop_auxiliary(network: nn.Module) -> None:
    """Drop the auxiliary classifiers of a torchvision model, which only training uses."""
    for auxiliary in _AUXILIARY:
        if hasattr(network, auxiliary):
            setattr(network, auxiliary, None)


def classifier_name(network: nn.Module) -> str:
    """Return the name of the last linear layer of a torchvision classifier, or of the convolution in its place."""
    root = next(child for child in _CLASSIFIERS if hasattr(network, child))
    layers = {f"{root}.{key}".rstrip("."): layer for key, layer in network.get_submodule(root).named_modules()}
    linear = [key for key, layer in layers.items() if isinstance(layer, nn.Linear)]
    # SqueezeNet classifies by a 1x1 convolution.
    return (linear or [key for key, layer in layers.items() if isinstance(layer, nn.Conv2d)])[-1]


def torchvision_transform(network: nn.Module, options: Mapping[str, Any]) -> FoundTransform:
    """Return how a torchvision classifier's images are prepared.

    A model knows neither its own name nor its weights. The name is found by the number of its weights. Where the weights
    published under it need several transforms, that of torchvision's default is taken and the weights are listed.

    Args:
        network: one of torchvision's classification models, with its classifier, which may have any number of classes.
        options: in place of the transform's own settings, as in ``create_torchvision``.

    Raises:
        ValueError: no model of torchvision has as many weights.
    """
    name = _architecture(network)
    published = library("torchvision", "models").get_model_weights(name)
    configs = {weights: _transform_config(PREFIX + name, weights.transforms, options) for weights in published}
    size = getattr(network, "image_size", None)  # a transformer takes one size only
    configs = {weights: config for weights, config in configs.items() if size in (None, config["crop_size"])} or configs
    chosen = published.DEFAULT if published.DEFAULT in configs else next(iter(configs))
    alike = all(config == configs[chosen] for config in configs.values())
    alternatives = [] if alike else [str(weights) for weights in configs]
    return FoundTransform(PREFIX + name, *_transform(chosen, configs[chosen]), alternatives)


def _architecture(network: nn.Module) -> str:
    models = library("torchvision", "models")
    parts = dict(network.named_modules())
    classifier = parts[classifier_name(network)]
    outputs = int(next(classifier.parameters()).shape[0])
    spare = [part for key, part in parts.items() if key in _AUXILIARY]
    spare_outputs = [
        part for whole in spare for part in whole.modules() if getattr(part, "out_features", None) == outputs
    ]
    # The published numbers count auxiliary classifiers for some models and not for others.
    counts = {
        (_count(network), _count(classifier, *spare_outputs)),
        (_count(network) - _count(*spare), _count(classifier)),
    }
    for name in model_names():
        if models.get_model_builder(name).__module__ == type(network).__module__:
            for weights in models.get_model_weights(name):
                classes = len(weights.meta["categories"] or ())  # weights without a classifier name none
                for every, last in counts:
                    if weights.meta["num_params"] == every - last + last // outputs * classes:
                        return str(name)
    raise ValueError(f"{type(network).__name__}: no model of torchvision has its layers: pass its transform")


def _count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _transform(weights: Any, config: Mapping[str, Any]) -> tuple[RGBTransform, str]:
    described = {**config, "interpolation": config["interpolation"].value}
    identity = "torchvision eval, RGB on white paper " + json.dumps(described, sort_keys=True)
    return RGBTransform(weights.transforms(**config)), identity


def _transform_config(name: str, preset: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    config = {key: parameter.default for key, parameter in inspect.signature(preset).parameters.items()}
    check_options(name, "transform", options, config)
    config |= options
    for key in ("mean", "std"):
        config[key] = three(name, key, config[key])
    for key in ("resize_size", "crop_size"):
        if type(config[key]) is not int or not 1 <= config[key] <= LARGEST_SIDE:
            raise ValueError(
                f"backbone {name}: transform option {key} is a side of 1 to {LARGEST_SIDE} pixels, got {config[key]!r}"
            )
    if config["crop_size"] > config["resize_size"]:
        # torchvision would frame the image in black.
        raise ValueError(
            f"backbone {name}: a crop_size of {config['crop_size']} does not fit into a resize_size of "
            f"{config['resize_size']}: pass both as transform options"
        )
    modes = library("torchvision", "transforms").InterpolationMode
    if config["interpolation"] not in list(modes):
        names = [mode.value for mode in modes]
        if config["interpolation"] not in names:
            raise ValueError(
                f"backbone {name}: transform option interpolation is one of {', '.join(names)}, "
                f"got {config['interpolation']!r}"
            )
    config["interpolation"] = modes(config["interpolation"])
    return config


TORCHVISION = Library(
    prefix=PREFIX,
    model_names=model_names,
    has_model=has_model,
    create=create_torchvision,
    owns=lambda network: type(network).__module__.startswith("torchvision.models."),
    classifiers=lambda network: [classifier_name(network)],
    find_transform=torchvision_transform,
    drop_unused=drop_auxiliary,
)

"""Libraries of models: how one is described, imported, asked for a model, and how options are checked."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from fewshot_nam.vision.backbone import Backbone


class LibraryNotInstalled(ImportError, ValueError):
    """A package that a backbone or a file format needs is not installed; the message tells how to install it."""


GIVE_FILE = "give a file of weights (pretrained= of backbones.create, weights= of attach, --weights of the commands)"
"""How to mend missing weights, for errors. It names all three ways by which a user may have come here."""


class FoundTransform(NamedTuple):
    """How the images of a model are prepared.

    Attributes:
        name: what the model is called.
        transform: RGB image (PIL) to a tensor ``(C, H, W)``.
        transform_id: text that changes whenever the transform would give other tensors.
        alternatives: weights that need different transforms, where the model does not say which of them it has; else empty.
    """

    name: str
    transform: Callable[[Image.Image], Tensor]
    transform_id: str
    alternatives: list[str]


def _nothing(_network: nn.Module) -> None:
    """Do nothing."""


def _no_classifier(network: nn.Module) -> list[str]:
    raise ValueError(f"{type(network).__name__}: its library does not say which layer is the classifier")


def _no_transform(network: nn.Module, _options: Mapping[str, Any]) -> FoundTransform:
    raise ValueError(f"{type(network).__name__}: its library does not say how images are prepared: pass transform=")


@dataclass(frozen=True)
class Library:
    """A library of models: its models by name, and what ``attach`` needs to know of a model a user has built.

    Attributes:
        prefix: starts the names of its backbones, as "timm/".
        model_names: returns the names of its models, without the prefix; ``LibraryNotInstalled`` where it is not installed.
        has_model: returns whether it has a model of that name, which may carry the tag of its weights.
        create: makes a ``Backbone`` from a model's name, ``pretrained`` (``True``, ``False`` or a file), model options and
            transform options.
        owns: returns whether a module is a model of this library.
        model_name: returns what a module of this library is called.
        classifiers: returns the names of the submodules that classify; their input are the features.
        find_transform: returns how a module's images are prepared, given options in place of single settings.
        drop_unused: removes what only training uses, in place.
    """

    prefix: str
    model_names: Callable[[], list[str]]
    has_model: Callable[[str], bool]
    create: Callable[[str, bool | Path, Mapping[str, Any], Mapping[str, Any]], Backbone]
    owns: Callable[[nn.Module], bool] = lambda _network: False
    model_name: Callable[[nn.Module], str] = lambda network: class_name(network)
    classifiers: Callable[[nn.Module], list[str]] = _no_classifier
    find_transform: Callable[[nn.Module, Mapping[str, Any]], FoundTransform] = _no_transform
    drop_unused: Callable[[nn.Module], None] = _nothing


def class_name(network: nn.Module) -> str:
    """Return the full name of a module's class."""
    return f"{type(network).__module__}.{type(network).__qualname__}"


def library(name: str, submodule: str = "", extra: str = "vision") -> Any:
    """Return the module ``name`` or ``name.submodule`` of an optional library, which the extra ``extra`` of this package installs.

    Raises:
        LibraryNotInstalled: it is not installed.
    """
    try:
        found = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise LibraryNotInstalled(
            f'{name} is not installed, and its backbones need it: pip install "fewshot-nam[{extra}]"'
        ) from error
    return import_module(f"{name}.{submodule}") if submodule else found


LARGEST_SIDE = 4096
"""Pixels of a side of what a transform gives: sixteen times as many as networks are built for."""


def check_options(name: str, kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Check that every given option is known.

    Args:
        name: the backbone's.
        kind: "model" or "transform".
        given: names of the options that the caller passed.
        known: names of the options that exist.

    Raises:
        ValueError: an unknown option; it is named, with the options that exist.
    """
    known = list(known)
    unknown = [option for option in given if option not in known]
    if unknown:
        raise ValueError(
            f"backbone {name} has no {kind} option {', '.join(map(repr, unknown))}: there is "
            + (", ".join(known) if known else "none")
        )


def build(
    name: str, builder: Callable[..., nn.Module], options: Mapping[str, Any], downloads: bool = False
) -> nn.Module:
    """Return ``builder(**options)``; an error of the library becomes a ``ValueError`` of one line.

    Args:
        name: the backbone's.
        builder: the library's; takes the model options.
        options: the model options.
        downloads: the builder fetches weights.

    Raises:
        ValueError: an option that the model does not have or cannot be built with, or a failed download.
    """
    try:
        return builder(**options)
    except Exception as error:  # libraries and their network clients raise every kind
        if isinstance(error, TypeError) and (
            found := re.search(r"unexpected keyword argument(?:\(s\))?\W*(\w+)", str(error))
        ):
            check_options(name, "model", [found[1]], _option_names(builder))
        if downloads and _is_network(error):
            raise ValueError(
                f"backbone {name}: its weights could not be downloaded ({type(error).__name__}): download them on a "
                f"machine with a network, and {GIVE_FILE}"
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"backbone {name} cannot be built with model options {dict(options)}: {reason}") from error


def removed_keys(builder: Callable[..., nn.Module], options: Mapping[str, Any], network: nn.Module) -> set[str]:
    """Return the keys of the whole model's state dict that ``network``, without its classifier, lacks.

    Args:
        builder: builds the whole model.
        options: the model options.
        network: the model without its classifier.
    """
    return set(_skeleton(builder, options).state_dict()) - set(network.state_dict())


def three(name: str, option: str, value: Any) -> tuple[float, float, float]:
    """Return a number, or a list of one for each of red, green and blue, as three floats.

    Raises:
        ValueError: anything else, or a standard deviation that is not positive.
    """
    values = [value] * 3 if isinstance(value, int | float) else value
    fine = isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(v, int | float) for v in values)
    if not fine or not all(math.isfinite(v) and (v > 0 or option != "std") for v in values):
        kind = "positive number" if option == "std" else "number"
        raise ValueError(f"backbone {name}: transform option {option} is a {kind} or a list of three, got {value!r}")
    red, green, blue = values
    return float(red), float(green), float(blue)


def _skeleton(builder: Callable[..., nn.Module], options: Mapping[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"):  # no memory, no time for initial values
            return builder(**options)
    except (NotImplementedError, RuntimeError):  # some models compute with tensors while they are built
        return builder(**options)


def _option_names(builder: Callable[..., nn.Module]) -> list[str]:
    parameters = inspect.signature(type(_skeleton(builder, {}))).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "num_classes"]


def _is_network(error: Exception) -> bool:
    # Refused connections are OSErrors in the standard library; the clients that libraries use also raise their own.
    client = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or client in ("huggingface_hub", "httpx", "httpx2", "requests", "urllib3")

"""How ``attach`` finds the parts of a model: where its features are, how its images are prepared, which classes it knows."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from fewshot_nam import heads
from fewshot_nam.heads import BaseStatistics, Head, KeptClassifierHead, Label, NAMHead, ScoreNormHead
from fewshot_nam.heads.validation import as_labels
from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.catalogue import create
from fewshot_nam.vision.image_batches import Images, features_of
from fewshot_nam.vision.image_transform import RGBTransform, without_addresses
from fewshot_nam.vision.layers import LayerFeatures, Pool, find_layer
from fewshot_nam.vision.libraries.common import Library, class_name
from fewshot_nam.vision.libraries.registry import LIBRARIES, library_of

Transform = Callable[[Image.Image], Tensor]


class Parts(NamedTuple):
    """The parts of a ``NAMModel``.

    Attributes:
        backbone: images to features.
        head: features to scores, on the backbone's device.
        in_place: the head takes the place of the user's own classifier.
    """

    backbone: Backbone
    head: Head
    in_place: bool = False


def find_parts(
    model: str | nn.Module,
    head: Head | None = None,
    *,
    classifier: str | None = None,
    layer: str | None = None,
    pool: Pool | None = None,
    transform: Transform | None = None,
    transform_options: Mapping[str, Any] | None = None,
    keep_classes: bool | Iterable[Label] = False,
    base_images: Images | None = None,
    in_place: bool = False,
    weights: bool | str | os.PathLike[str] = True,
    model_options: Mapping[str, Any] | None = None,
) -> Parts:
    """Return the backbone and the head that ``attach`` makes of these arguments, which are documented there."""
    for_modules = {
        "classifier": classifier,
        "layer": layer,
        "pool": pool,
        "transform": transform,
        "in_place": in_place or None,
    }
    for_names = {"model_options": model_options, "weights": None if weights is True else weights}
    if isinstance(model, str):
        refuse("a name", for_modules)
        model = create(model, weights, model_options=model_options, transform_options=transform_options)
        transform_options = None
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise ValueError(
            "attach: the layers of a compiled model cannot be reached: attach the model first, then compile the result"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"attach: model is a module or a name such as 'timm/resnet18', got {type(model).__name__}")
    if isinstance(model, Backbone):
        refuse("a Backbone", for_modules | {"transform_options": transform_options})
        base = model.base_statistics
        head = _head(head, model, base_images, base)
        if keep_classes is not False:
            rows = None
            if base is not None:
                rows = base.power_means if head.power_normalised else base.prototypes
            _keep(head, keep_classes, rows, model.base_classes)
        return Parts(model, head)
    refuse("a module", for_names)
    if classifier is not None and layer is not None:
        raise ValueError("attach: classifier and layer each say where features are: give one")
    library = library_of(model)
    found = [] if layer is not None else [classifier] if classifier is not None else _classifiers(model, library)
    class_weights = _class_weights(model, found)
    preparation = _preparation(model, library, transform, transform_options or {})
    if in_place:
        _check_replaceable(model, found)
        network: nn.Module = LayerFeatures(model, found[0], at_input=True, pool=pool)
    elif layer is not None or classifier is not None:
        network = LayerFeatures(_copied(model), layer or found[0], at_input=layer is None, pool=pool)
    else:
        network = _without(_copied(model), library, found)
    backbone = Backbone(preparation.name, network, preparation.transform, preparation.transform_id)
    if keep_classes is not False and head is None and base_images is not None:
        with torch.no_grad():
            head, base_images = KeptClassifierHead(features_of(backbone, base_images).float()), None
    head = _head(head, backbone, base_images)
    if keep_classes is not False:
        if not head.mean.numel():
            raise ValueError(
                "attach: keep_classes needs base_images, a hundred ordinary images of what the classifier sees, or a head with a "
                "mean: without them nothing tells how much a new class takes from the classes that are kept"
            )
        if isinstance(head, ScoreNormHead):
            raise ValueError(
                "attach: keep_classes cannot take this head: the weights of a classifier are no mean features; leave the head out"
            )
        _keep(head, keep_classes, None if class_weights is None else class_weights + head.mean.to(class_weights), None)
    if in_place:
        model.register_forward_pre_hook(_stay_in_eval_mode)
        if library is not None:
            library.drop_unused(model)
    return Parts(backbone, head, in_place)


def refuse(kind: str, arguments: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for arguments of ``attach`` that are given and do not go with this kind of model."""
    wrong = [name for name, value in arguments.items() if value is not None]
    if wrong:
        raise ValueError(f"attach: {', '.join(wrong)} cannot be given with {kind} for a model")


def _classifiers(model: nn.Module, library: Library | None) -> list[str]:
    """Return the names of the submodules whose input are the features."""
    if library is None:
        last = ", ".join([name for name, _ in model.named_modules()][-5:])
        names = " or ".join(prefix.removesuffix("/") for prefix in LIBRARIES)
        raise ValueError(
            f"attach: {type(model).__name__} is no classifier of {names}: pass classifier=<the submodule whose "
            f"input are features> or layer=<the submodule whose output they are>; the last submodules are: {last}"
        )
    names_found = library.classifiers(model)
    if any(isinstance(find_layer(model, name), Head) for name in names_found):
        raise ValueError(
            f"attach: the classifier of this {type(model).__name__} is a head already: it was attached in place"
        )
    return names_found


def _class_weights(model: nn.Module, found: list[str]) -> Tensor | None:
    """Return the weights ``(classes, D)`` of the classifier, or ``None`` where it is not one linear layer."""
    layers = [find_layer(model, name) for name in found]
    if len(layers) != 1 or not isinstance(layers[0], (nn.Linear, nn.Conv2d)):
        return None
    return layers[0].weight.detach().flatten(start_dim=1)


def _head(
    head: Head | None, backbone: Backbone, base_images: Images | None, base: BaseStatistics | None = None
) -> Head:
    """Return the head to use, on the backbone's device: the one given, or a NAM head.

    Args:
        head: as given to ``attach``.
        backbone: gives the features of ``base_images``.
        base_images: a NAM head subtracts the mean of their features.
        base: without ``base_images``, the statistics of base classes that a NAM head is given.
    """
    if head is not None and base_images is not None:
        raise ValueError(
            "attach: base_images are for the head that attach makes; make a head of your own with base= and leave them out"
        )
    if head is None and base_images is not None:
        with torch.no_grad():
            mean = features_of(backbone, base_images).float().mean(dim=0)
        head = NAMHead(BaseStatistics.from_mean(mean))
    weight = next(backbone.network.parameters(), None)
    head = heads.create("nam", base=base) if head is None else head
    if not isinstance(head, Head):
        raise TypeError(
            f"attach: head must be a head, such as fewshot_nam.heads.create('cosine'), got {type(head).__name__} {head!r}"
        )
    return head if weight is None else head.to(weight.device)


def _keep(head: Head, keep: bool | Iterable[Label], weights: Tensor | None, names: Iterable[Label] | None) -> None:
    """Write the classes that are kept into the head."""
    if weights is None:
        raise ValueError("attach: keep_classes needs class weights, and this model has no single linear classifier")
    labels = as_labels(range(len(weights)) if names is None else names, None) if keep is True else as_labels(keep, None)
    if len(labels) != len(weights):
        raise ValueError(
            f"attach: keep_classes has {len(labels)} names, and the model's classifier {len(weights)} classes"
        )
    head.write_base(weights.float(), labels)


class _Preparation(NamedTuple):
    """The name of a model, and the transform of its images."""

    name: str
    transform: Transform
    transform_id: str


def _preparation(
    model: nn.Module, library: Library | None, transform: Transform | None, options: Mapping[str, Any]
) -> _Preparation:
    name = class_name(model) if library is None else library.model_name(model)
    if transform is not None:
        if options:
            raise ValueError(
                "attach: transform_options change a transform that is found; leave them out where one is given"
            )
        # torchvision's weights make their transform; Compose has a list of that name.
        made = getattr(transform, "transforms", None)
        own = made() if callable(made) else transform
        return _Preparation(name, RGBTransform(own), without_addresses(repr(own)))
    if library is None:
        raise ValueError(f"attach: how images are prepared for {name} is not known: pass transform=")
    found = library.find_transform(model, options)
    if found.alternatives:
        warnings.warn(
            f"attach: {library.prefix.removesuffix('/')} prepares images differently for {', '.join(found.alternatives)}: "
            f"{found.transform_id} is taken; pass transform=<the weights that this model was made with>",
            stacklevel=4,
        )
    return _Preparation(found.name, found.transform, found.transform_id)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # what a model keeps may refuse to be copied in any way
        raise ValueError(
            f"attach: this {type(model).__name__} cannot be copied ({type(error).__name__}: {error}): pass in_place=True, "
            "or a Backbone"
        ) from error


def _without(model: nn.Module, library: Library | None, classifiers: list[str]) -> nn.Module:
    """Return the model itself, its classifiers replaced by the identity."""
    for name in classifiers:
        model.set_submodule(name, nn.Identity())
    if library is not None:
        library.drop_unused(model)
    return model


def _check_replaceable(model: nn.Module, found: list[str]) -> None:
    """Raise ``ValueError`` unless a head can stand in the place of the classifier."""
    if len(found) != 1 or isinstance(find_layer(model, found[0]), nn.Conv2d):
        kind = f"{len(found)} classifiers" if len(found) != 1 else "a convolution for a classifier"
        raise ValueError(
            f"attach: in_place needs one classifier that takes features (B, D), {type(model).__name__} has {kind}: "
            "leave in_place out"
        )


def _stay_in_eval_mode(model: nn.Module, _inputs: object) -> None:
    """Put a model that is attached in place back into eval mode, before it runs."""
    if model.training:
        model.eval()

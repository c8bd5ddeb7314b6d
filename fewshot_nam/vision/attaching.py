"""``attach``: a classifier becomes a model with a memory for a head. How its features and its transform are found."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

import backbones
from backbones import Backbone
from fewshot_nam.heads import Head, Label, NAMHead
from fewshot_nam.heads.validation import as_labels
from fewshot_nam.vision.image_batches import Images
from fewshot_nam.vision.layers import LayerFeatures, Pool, find_layer
from fewshot_nam.vision.libraries.timm_models import checked_transform_options, timm_transform
from fewshot_nam.vision.libraries.torchvision_models import classifier_name, drop_auxiliary, torchvision_transform
from fewshot_nam.vision.model import NAMModel
from fewshot_nam.vision.rgb import RGBTransform

Transform = Callable[[Image.Image], Tensor]


def attach(
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
) -> NAMModel:
    """Return ``model`` with a memory for a head: it learns a class from a picture of it, without training.

    The backbone is frozen and in eval mode, whatever ``train()`` says. What goes into the classifier are the features.

    Args:
        model: a classifier of timm or torchvision; any other ``nn.Module`` with ``classifier`` or ``layer``; a ``Backbone``; or a
            name as ``backbones.create`` takes it, such as "timm/resnet18". A module is copied and left as it is, but with
            ``in_place``; a ``Backbone`` is taken as it is.
        head: features to scores; ``None`` for ``NAMHead()``, or what ``base_images`` make of it.
        classifier: the name of the submodule whose input are the features; found by itself for timm and torchvision.
        layer: the name of a submodule whose output are the features, in place of ``classifier``.
        pool: with ``classifier`` or ``layer``: what is taken there to features ``(B, D)``; ``None`` leaves ``(B, D)`` and takes
            the mean of ``(B, D, H, W)`` over places.
        transform: an RGB picture (PIL) to a tensor ``(C, H, W)``, or torchvision's weights, which know theirs. ``None``: timm's
            data config of the model; for torchvision that of the model's published weights.
        transform_options: in place of single settings of a transform that is found, as in ``backbones.create``.
        keep_classes: take over the classes of the model's linear classifier, by its rows of weights: their names in its
            order, or ``True`` for 0, 1, 2, ...; of a ``Backbone``, ``True`` takes the classes it was trained on. Rows are
            read by cosine: the bias and the lengths of the rows are dropped. They say how a class differs from the others, and
            pictures are told from them only by what differs from the mean picture: hence ``base_images``, or a head with a mean.
        base_images: a hundred ordinary pictures of what the model sees, or more, without labels: the mean of their features is
            subtracted from every feature (``NAMHead(base_rows="erased", mean=)``).
        in_place: for a model of timm or torchvision, or with ``classifier``: change ``model`` itself, whose classifier is then the
            head, so that ``model(x)`` gives the head's scores. The rest of it runs as before.
        weights: for a name: ``True`` for the published weights, ``False`` for random ones, or a file.
        model_options: for a name: passed to the model.

    Raises:
        LibraryNotInstalled: a name of timm or torchvision, and the library is not there.
        ValueError: features or transform cannot be found or do not fit, an unknown name, layer or option, not as many
            names as rows to keep, rows to keep and no mean, or arguments that do not go together.
        TypeError: ``model`` is neither a name nor a module.

    Example::

        nam = fewshot_nam.attach(timm.create_model("mobilenetv2_100", pretrained=True))
        nam.learn("badger.jpg", "badger").learn("marten.jpg", "marten")
        nam.predict("what.jpg")
    """
    placed = {
        "classifier": classifier,
        "layer": layer,
        "pool": pool,
        "transform": transform,
        "in_place": in_place or None,
    }
    named = {"model_options": model_options, "weights": None if weights is True else weights}
    if isinstance(model, str):
        _refuse("a name", placed)
        model = backbones.create(model, weights, model_options=model_options, transform_options=transform_options)
        transform_options = None
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise ValueError(
            "attach: a compiled model's parts cannot be reached: attach the model, then compile what comes out"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"attach: model is a module or a name such as 'timm/resnet18', got {type(model).__name__}")
    if isinstance(model, Backbone):
        _refuse("a Backbone", placed | {"transform_options": transform_options})
        head = _centred(head, model, base_images)
        if keep_classes is not False:
            _keep(head, keep_classes, model.base_prototypes, model.base_classes)
        return NAMModel(model, head)
    _refuse("a module", named)
    if classifier is not None and layer is not None:
        raise ValueError("attach: classifier and layer each say where features are: give one")
    found = [] if layer is not None else [classifier] if classifier is not None else _classifiers(model)
    rows = _rows(model, found)
    preparation = _preparation(model, transform, transform_options or {})
    if in_place:
        _check_replaceable(model, found)
        network: nn.Module = LayerFeatures(model, found[0], at_input=True, pool=pool)
    elif layer is not None or classifier is not None:
        network = LayerFeatures(_copied(model), layer or found[0], at_input=layer is None, pool=pool)
    else:
        network = _without(_copied(model), found)
    backbone = Backbone(preparation.name, network, preparation.transform, preparation.identity)
    head = _centred(head, backbone, base_images)
    if keep_classes is not False:
        if not head.mean.numel():
            raise ValueError(
                "attach: keep_classes needs base_images, a hundred ordinary pictures, or a head with a mean: without their mean "
                "every picture is more like a new class than like a row of the classifier"
            )
        if getattr(head, "base_rows", None) == "joint":
            raise ValueError(
                "attach: keep_classes needs NAMHead(base_rows='erased'): rows of a classifier are no mean features"
            )
        _keep(head, keep_classes, None if rows is None else rows + head.mean.to(rows), None)
    if in_place:
        model.register_forward_pre_hook(_frozen)
        if _is_torchvision(model):
            drop_auxiliary(model)
    return NAMModel(backbone, head, in_place)


class _Preparation(NamedTuple):
    """What a model is called, and how its pictures are prepared."""

    name: str
    transform: Transform
    identity: str


def _refuse(kind: str, arguments: Mapping[str, Any]) -> None:
    wrong = [name for name, value in arguments.items() if value is not None]
    if wrong:
        raise ValueError(f"attach: {', '.join(wrong)} cannot be given with {kind} for a model")


def _is_timm(model: nn.Module) -> bool:
    return hasattr(model, "get_classifier") and hasattr(model, "pretrained_cfg")


def _is_torchvision(model: nn.Module) -> bool:
    return type(model).__module__.startswith("torchvision.models.")


def _classifiers(model: nn.Module) -> list[str]:
    """Return the names of the classifiers of a timm or torchvision model; distilled transformers have two."""
    if _is_torchvision(model):
        return [classifier_name(model)]
    if not _is_timm(model):
        last = ", ".join([name for name, _ in model.named_modules()][-5:])
        raise ValueError(
            f"attach: {type(model).__name__} is no classifier of timm or torchvision: pass classifier=<the submodule whose "
            f"input are features> or layer=<the submodule whose output they are>; the last submodules are: {last}"
        )
    get_classifier: Any = model.get_classifier
    given = get_classifier()
    wanted = list(given) if isinstance(given, (tuple, list, nn.ModuleList)) else [given]
    if any(isinstance(module, Head) for module in wanted):
        raise ValueError(
            f"attach: the classifier of this {type(model).__name__} is a head already: it was attached in place"
        )
    return [name for name, module in model.named_modules() if any(module is one for one in wanted)]


def _rows(model: nn.Module, found: list[str]) -> Tensor | None:
    """Return the weights ``(classes, D)`` of the classifier, or ``None`` where it is not one linear layer."""
    layers = [find_layer(model, name) for name in found]
    if len(layers) != 1 or not isinstance(layers[0], (nn.Linear, nn.Conv2d)):
        return None
    return layers[0].weight.detach().flatten(start_dim=1)


def _centred(head: Head | None, backbone: Backbone, base_images: Images | None) -> Head:
    """Return the head to use, on the backbone's device: the one given, or a NAM head that knows the mean of ``base_images``."""
    if head is not None and base_images is not None:
        raise ValueError(
            "attach: base_images give a NAMHead its mean; make a head of your own with mean= and leave them out"
        )
    if head is not None:
        return NAMModel(backbone, head).head
    if base_images is None:
        return NAMModel(backbone, NAMHead()).head
    with torch.no_grad():
        features = NAMModel(backbone, NAMHead()).features(base_images)
    return NAMHead(base_rows="erased", mean=features.float().mean(dim=0)).to(features.device)


def _keep(head: Head, keep: bool | Iterable[Label], rows: Tensor | None, names: Iterable[Label] | None) -> None:
    """Write the classes that are kept into the head."""
    if rows is None:
        raise ValueError("attach: keep_classes needs rows to keep, and this model has no single linear classifier")
    labels = as_labels(range(len(rows)) if names is None else names, None) if keep is True else as_labels(keep, None)
    if len(labels) != len(rows):
        raise ValueError(
            f"attach: keep_classes has {len(labels)} names, and the model's classifier {len(rows)} classes"
        )
    head.write_base(rows.float(), labels)


def _preparation(model: nn.Module, transform: Transform | None, options: Mapping[str, Any]) -> _Preparation:
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    if _is_timm(model):
        config: Any = model.pretrained_cfg
        name = "timm/" + (config.get("architecture") or type(model).__name__)
    if transform is not None:
        if options:
            raise ValueError(
                "attach: transform_options change a transform that is found; leave them out where one is given"
            )
        made = getattr(
            transform, "transforms", None
        )  # torchvision's weights make theirs; Compose has a list of that name
        own = made() if callable(made) else transform
        return _Preparation(name, RGBTransform(own), repr(own))
    if _is_timm(model):
        return _Preparation(name, *timm_transform(model, checked_transform_options(name, options)))
    if not _is_torchvision(model):
        raise ValueError(f"attach: how pictures are prepared for {name} is not known: pass transform=")
    name, own, identity, several = torchvision_transform(model, options)
    if several:
        warnings.warn(
            f"attach: torchvision prepares pictures differently for {', '.join(several)}: {identity} is taken; pass "
            "transform=<the weights that this model was made with>",
            stacklevel=3,
        )
    return _Preparation(name, own, identity)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # what a model keeps may refuse to be copied in any way
        raise ValueError(
            f"attach: this {type(model).__name__} cannot be copied ({type(error).__name__}: {error}): pass in_place=True, "
            "or a Backbone"
        ) from error


def _without(model: nn.Module, classifiers: list[str]) -> nn.Module:
    """Return the model itself, its classifiers replaced by the identity."""
    for name in classifiers:
        model.set_submodule(name, nn.Identity())
    if _is_torchvision(model):
        drop_auxiliary(model)
    return model


def _check_replaceable(model: nn.Module, found: list[str]) -> None:
    """Raise ``ValueError`` unless a head can stand in the place of the classifier."""
    if len(found) != 1 or isinstance(find_layer(model, found[0]), nn.Conv2d):
        kind = f"{len(found)} classifiers" if len(found) != 1 else "a convolution for a classifier"
        raise ValueError(
            f"attach: in_place needs one classifier that takes features (B, D), {type(model).__name__} has {kind}: "
            "leave in_place out"
        )


def _frozen(model: nn.Module, _inputs: object) -> None:
    """Put a model that is attached in place back into eval mode, before it runs."""
    if model.training:
        model.eval()

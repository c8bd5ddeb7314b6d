"""``attach``: a vision model becomes one that learns classes from images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from fewshot_nam.heads import Head, Label
from fewshot_nam.vision.finding import Transform, find_parts
from fewshot_nam.vision.image_batches import Images
from fewshot_nam.vision.layers import Pool
from fewshot_nam.vision.model import NAMModel


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
    """Return ``model`` with a memory for a head: it learns a class from an image of it, without training.

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
        transform: an RGB image (PIL) to a tensor ``(C, H, W)``, or torchvision's weights, which know theirs. ``None``: timm's
            data config of the model; for torchvision that of the model's published weights.
        transform_options: in place of single settings of a transform that is found, as in ``backbones.create``.
        keep_classes: take over the classes of the model's linear classifier, by its rows of weights: their names in its
            order, or ``True`` for 0, 1, 2, ...; of a ``Backbone``, ``True`` takes the classes it was trained on. Rows are
            read by cosine: the bias and the lengths of the rows are dropped. They say how a class differs from the others, and
            images are told from them only by what differs from the mean image: hence ``base_images``, or a head with a mean.
        base_images: a hundred ordinary images of what the model sees, or more, without labels: the mean of their features is
            subtracted from every feature (``BaseStatistics.from_mean``).
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
    parts = find_parts(
        model,
        head,
        classifier=classifier,
        layer=layer,
        pool=pool,
        transform=transform,
        transform_options=transform_options,
        keep_classes=keep_classes,
        base_images=base_images,
        in_place=in_place,
        weights=weights,
        model_options=model_options,
    )
    return NAMModel(*parts)

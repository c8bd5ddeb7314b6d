"""``attach``: a vision model becomes one that learns classes from images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_nam.heads import Head, Label
from fewshot_nam.vision.finding import Transform, find_parts, refuse
from fewshot_nam.vision.image_batches import Images
from fewshot_nam.vision.layers import Pool
from fewshot_nam.vision.model import NAMModel
from fewshot_nam.vision.text_prior import PROMPTS, Text, image_backbone, is_clip, text_embeddings, write_text


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
    text: Text | None = None,
    text_shots: int = 1,
    prompts: Sequence[str] = PROMPTS,
    tokenizer: Callable[[list[str]], Tensor] | None = None,
) -> NAMModel:
    """Return ``model`` with a memory for a head: it learns a class from one image, without training.

    The backbone is frozen and stays in eval mode, also after ``train()``. The input of the model's classifier are the features.

    Args:
        model: a classifier of timm or torchvision; a CLIP model of open_clip, whose image tower is taken; any other ``nn.Module``
            with ``classifier`` or ``layer``; a ``Backbone``; or a name for ``backbones.create``, such as "timm/resnet18". A module
            is copied and left as it is, except with ``in_place``; a ``Backbone`` is used as it is.
        head: features to scores; ``None`` for a ``NAMHead`` that knows the backbone's base classes where it has any, or the
            mean of ``base_images``; with ``keep_classes`` and ``base_images``, for a ``KeptClassifierHead``.
        classifier: the name of the submodule whose input are the features; found automatically for timm and torchvision.
        layer: the name of a submodule whose output are the features, in place of ``classifier``.
        pool: with ``classifier`` or ``layer``: maps what is found there to features ``(B, D)``; ``None`` leaves ``(B, D)`` and
            averages ``(B, D, H, W)`` over height and width.
        transform: an RGB image (PIL) to a tensor ``(C, H, W)``, or torchvision's weights, which know theirs. ``None``: timm's
            data config of the model; for torchvision that of the model's published weights.
        transform_options: replace single settings of a transform that is found, as in ``backbones.create``.
        keep_classes: also know the classes of the model's linear classifier, by their class weights: their names in its order, or
            ``True`` for 0, 1, 2, ...; for a ``Backbone``, ``True`` keeps the classes it was trained on. The classes of a classifier
            need ``base_images``, or a head with a mean. What new classes take from them is in ``model.base_cost``.
        base_images: a hundred or more ordinary images of what the model sees, without labels. The mean of their features is
            subtracted from every feature (``BaseStatistics.from_mean``). With ``keep_classes`` they also tell in which directions
            ordinary images differ, and how many of them a new class would take (``KeptClassifierHead``): take none then that the
            classifier was trained on.
        in_place: for a model of timm or torchvision, or with ``classifier``: change ``model`` itself. The head replaces its
            classifier, and ``model(x)`` gives the head's scores. The rest of it runs as before.
        weights: for a name: ``True`` for the published weights, ``False`` for random ones, or a file.
        model_options: for a name: passed to the model.
        text: names of classes that a CLIP model is to know before the first image of them: for a model of open_clip the names; for
            any model, such as an image tower of timm, their embeddings ``(D,)`` by name. Give ``base_images`` with it.
        text_shots: as how many images a name counts; ``fewshot_nam.vision.text_prior.choose_text_shots`` chooses it.
        prompts: with names in ``text``: the texts that are embedded, ``{}`` standing for the name.
        tokenizer: with names in ``text``: as ``open_clip.get_tokenizer`` gives it; ``None`` for CLIP's own.

    Raises:
        LibraryNotInstalled: a name of timm or torchvision, and the library is not installed.
        ValueError: features or transform cannot be found or do not fit, an unknown name, layer or option, a different number
            of names and classes to keep, classes to keep and no mean, or arguments that exclude each other.
        ValueError: names in ``text`` and no CLIP model, or embeddings of another width than the image features.
        TypeError: ``model`` is neither a name nor a module.

    Example:
        >>> import numpy as np
        >>> import fewshot_nam
        >>> black, grey = np.zeros((28, 28), np.uint8), np.full((28, 28), 128, np.uint8)
        >>> nam = fewshot_nam.attach("conv4")
        >>> nam.learn(black, "black").learn(grey, "grey").predict([grey, black])
        ['grey', 'black']

    With a model of timm, and files::

        nam = fewshot_nam.attach(timm.create_model("mobilenetv2_100", pretrained=True))
        nam.learn("badger.jpg", "badger").learn("marten.jpg", "marten")
        nam.predict("what.jpg")
    """
    clip = model if is_clip(model) else None
    if isinstance(clip, nn.Module):
        given = {"classifier": classifier, "layer": layer, "pool": pool, "in_place": in_place or None}
        refuse("a CLIP model", given)
        model, transform = image_backbone(clip, transform), None
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
    made = NAMModel(*parts)
    if text is None:
        return made
    if not isinstance(text, Mapping):
        if not isinstance(clip, nn.Module):
            raise ValueError(
                "attach: names in text= need a CLIP model of open_clip; for another model give embeddings: text={name: embedding}"
            )
        text = text_embeddings(clip, text, tokenizer=tokenizer, prompts=prompts)
    try:
        text = {name: torch.as_tensor(row) for name, row in text.items()}  # NumPy's, and lists, too
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"attach: text= has an embedding that is no row of numbers: {error}") from error
    width = made.backbone.feature_dim
    wrong = next((name for name, row in text.items() if tuple(row.shape) != (width,)), None)
    if wrong is not None:
        raise ValueError(
            f"attach: the embedding of {wrong!r} in text= has shape {tuple(text[wrong].shape)}, the image features have width "
            f"{width}: give those of the same CLIP model, and of an image tower of timm the features after its projection "
            "(layer='head')"
        )
    device = next(made.backbone.parameters()).device
    write_text(made.head, {name: row.to(device) for name, row in text.items()}, text_shots)
    return made

"""The networks that come with fewshot-nam: Conv4, with weights for handwritten characters, and Conv5, which a user trains."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from backbones.conv4 import Conv4, ink_transform
from backbones.conv5 import Conv5, photo_transform
from fewshot_nam.heads import BaseStatistics
from fewshot_nam.io.tensor_files import write_tensors
from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.libraries.common import GIVE_FILE, Library, check_options
from fewshot_nam.vision.weight_files import fit_weights, read_weights

_PREFIX, _BASE = "model.", "base_"


class BundledNetwork(NamedTuple):
    """A network that comes with fewshot-nam.

    Attributes:
        network: its class; takes ``width``.
        transform: prepares its images.
        transform_id: describes the transform.
        weights: the name of the packaged file, or ``None``.
    """

    network: Callable[..., nn.Module]
    transform: Callable[[Image.Image], Tensor]
    transform_id: str
    weights: str | None


NETWORKS = {
    "conv4": BundledNetwork(
        Conv4,
        ink_transform,
        "ink on white paper, grey, 28x28 bilinear, dark 1 on light 0",
        "conv4_omniglot.safetensors",
    ),
    "conv5": BundledNetwork(
        Conv5,
        photo_transform,
        "RGB on white paper, short side 64 bilinear, middle 64x64, mean 0.45, std 0.25",
        None,
    ),
}


def create_bundled(
    name: str, pretrained: bool | Path, model_options: Mapping[str, Any], transform_options: Mapping[str, Any]
) -> Backbone:
    """Return Conv4, for dark strokes on light paper, or Conv5, for photographs.

    Args:
        name: a key of ``NETWORKS``.
        pretrained: ``True`` for the package's weights, ``False`` for random ones, or a file: one in the package's form
            (weights under "model.", base statistics under "base_", and a "card" in its metadata) or a plain state dict.
        model_options: ``width``: of conv4 the number of features (64), of conv5 a sixteenth of it (32).
        transform_options: none; each network has one transform.

    Raises:
        ValueError: an unknown option, a file that does not fit, or no weights in the package.
    """
    bundled = NETWORKS[name]
    check_options(name, "model", model_options, ["width"])
    check_options(name, "transform", transform_options, [])
    network = bundled.network(**model_options)
    base, classes = None, None
    if pretrained is True and bundled.weights is None:
        raise ValueError(
            f"backbone {name} comes without weights: train it with scripts/pretrain_photos.py, and {GIVE_FILE}"
        )
    if pretrained is True:
        packaged = resources.files("backbones") / "weights" / str(bundled.weights)
        with resources.as_file(packaged) as path:
            base, classes = _load(name, network, path)
    elif pretrained:
        base, classes = _load(name, network, pretrained)
    return Backbone(
        name,
        network,
        bundled.transform,
        bundled.transform_id,
        model_options=model_options,
        base_statistics=base,
        base_classes=classes,
    )


def save_weights(
    path: str | os.PathLike[str], network: nn.Module, base: BaseStatistics | Tensor, card: Mapping[str, Any]
) -> None:
    """Write the weights of a network, with what heads may know of the classes it was trained on, whole or not at all.

    Args:
        path: a ``.safetensors`` file, which ``backbones.create(name, path)`` reads; its directory is made if it does not exist.
        network: a ``Conv4`` or ``Conv5``, on any device.
        base: statistics of the classes of the training; or ``(B, D)``, their prototypes.
        card: facts about the training, kept as JSON; ``"base_classes"`` are the names of the B classes.

    Raises:
        ValueError: not as many class names as prototypes.
        OSError: the file cannot be written.
    """
    if len(card.get("base_classes", ())) != len(base):
        raise ValueError(
            f"save_weights: {len(base)} prototypes need as many names in card['base_classes'], "
            f"got {len(card.get('base_classes', ()))}"
        )
    known = {"prototypes": base} if isinstance(base, Tensor) else base.tensors()
    tensors = {_PREFIX + name: tensor for name, tensor in network.state_dict().items()}
    tensors |= {_BASE + name: tensor for name, tensor in known.items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {"card": json.dumps(card)})


def _load(name: str, network: nn.Module, path: Path) -> tuple[BaseStatistics | None, list[str] | None]:
    state = read_weights(path)
    if not any(key.startswith(_PREFIX) for key in state):
        fit_weights(network, state, path, name)
        return None, None
    known = {key.removeprefix(_BASE): state.pop(key) for key in list(state) if key.startswith(_BASE)}
    fit_weights(network, {key.removeprefix(_PREFIX): tensor for key, tensor in state.items()}, path, name)
    if not known:
        return None, None
    try:
        base = BaseStatistics(**known) if len(known) > 1 else BaseStatistics.from_prototypes(known["prototypes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"weights file {path}: what it says of base classes is damaged ({error})") from error
    return base, _base_classes(path)


def _base_classes(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return [str(name) for name in json.loads(file.metadata()["card"])["base_classes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"weights file {path}: base_prototypes need a JSON 'card' with 'base_classes' in the metadata"
            f" ({type(error).__name__}: {error})"
        ) from error


BUNDLED = Library(
    prefix="",
    model_names=lambda: list(NETWORKS),
    has_model=lambda name: name in NETWORKS,
    create=create_bundled,
)

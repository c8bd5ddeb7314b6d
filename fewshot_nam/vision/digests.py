"""SHA-256 digests of weights, tensors and text: what a saved memory and a feature cache are checked against."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewshot_nam.vision.layers import LayerFeatures

if TYPE_CHECKING:
    from fewshot_nam.vision.backbone import Backbone


def text_digest(text: str) -> str:
    """Return the digest of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """Return the digest of tensors in their order: of dtypes, shapes and values."""
    total = hashlib.sha256()
    for tensor in tensors:
        _add(total, "", tensor)
    return total.hexdigest()


def weights_digest(backbone: Backbone) -> str:
    """Return the digest of all weights and buffers of a backbone, whatever their names, without those of its classifier.

    A saved memory holds it: the same weights are the same backbone, however the user's code calls its layers.
    """
    network, state = backbone.network, backbone.network.state_dict()
    # A head may stand where the classifier was.
    classifier = (f"model.{network.layer}.",) if isinstance(network, LayerFeatures) and network.at_input else ()
    # Only training reads that counter, and files of early torch lack it.
    kept = [key for key in state if not key.startswith(classifier) and not key.endswith("num_batches_tracked")]
    parts = sorted(tensors_digest([state[key]]) for key in kept if isinstance(state[key], Tensor))
    return text_digest("".join(parts))


def features_digest(name: str, model_options: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Return the digest of all that decides which features a tensor gets; a feature cache is keyed by it.

    Args:
        name: of the backbone. Models with equal weights can differ in how they pad or pool, by name and options.
        model_options: what the network was built with.
        state: every weight and buffer.
    """
    options = json.dumps(model_options, sort_keys=True, default=lambda value: getattr(value, "__name__", str(value)))
    total = hashlib.sha256(f"{name}\n{options}\n".encode())
    for key, tensor in sorted(state.items()):
        _add(total, f"{key} ", tensor)
    return total.hexdigest()


def _add(total: hashlib._Hash, name: str, tensor: Tensor) -> None:
    """Add a tensor to a digest: its name, dtype, shape and values."""
    total.update(f"{name}{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

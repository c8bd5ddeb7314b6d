"""What a model has learned, in one safetensors file: written whole or not at all, and loaded only with the backbone it belongs to.

Format 1. Tensors: the head's state dict under ``head.``, and ``probe``, the features of a fixed image. Metadata: ``format``
("fewshot-nam model"), ``version`` ("1") and ``about``, JSON with ``made_by`` (version of this package), ``backbone`` (name),
``model_options`` and ``transform`` (of the backbone), ``weights`` (SHA-256 of the backbone's weights), ``head`` (class),
``settings`` (of the head), ``notes`` (what the writer needs to find the backbone again) and ``contents`` (SHA-256 of the
tensors). Class names are in the head's state, as JSON. Nothing in it is unpickled.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import os
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

import fewshot_nam
from fewshot_nam import heads
from fewshot_nam.heads import Head, NAMHead, NAMSettings
from fewshot_nam.heads.erased_weights import head_of_version_01
from fewshot_nam.heads.registry import specs
from fewshot_nam.io.regular_files import open_regular
from fewshot_nam.io.tensor_files import write_tensors
from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.digests import tensors_digest, text_digest, weights_digest
from fewshot_nam.vision.saved_settings import check_settings

FORMAT, VERSION = "fewshot-nam model", 1
_HEAD, _PROBE = "head.", "probe"
_LONGEST_HEADER = 100_000_000  # bytes, as in safetensors
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool)
# Features of one image differ by less than this between devices and releases of libraries (TF32 and bfloat16 included), and by
# more between transforms with another crop, normalisation or padding.
_SAME = 0.02


def save_head(
    path: str | os.PathLike[str], head: Head, backbone: Backbone, notes: Mapping[str, Any] | None = None
) -> None:
    """Write a head and a description of its backbone, with ``notes`` that JSON can hold.

    Raises:
        OSError: the directory is missing or cannot be written.
        ValueError: the head has settings that a file cannot hold.
    """
    about = {
        "backbone": backbone.name,
        "model_options": backbone.model_options,
        "transform": backbone.transform_id,
        "weights": weights_digest(backbone),
        "notes": dict(notes or {}),
    }
    write_head(path, head, about, probe(backbone))


def write_head(path: str | os.PathLike[str], head: Head, about: Mapping[str, Any], probed: Tensor) -> None:
    """Write a head with a description of its backbone: ``about`` and ``probed`` as ``read_head`` gives them.

    Raises:
        OSError: the directory is missing or cannot be written, or the disk is full.
        ValueError: the head has settings that a file cannot hold.
    """
    tensors = {_HEAD + key: value for key, value in head.state_dict().items()} | {_PROBE: probed}
    # Copies, since safetensors refuses tensors that share memory, which parts of a model may do.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    about = {
        **about,
        "made_by": fewshot_nam.__version__,
        "head": type(head).__name__,
        "settings": settings(head),
        "contents": tensors_digest(tensors[key] for key in sorted(tensors)),
    }
    text = json.dumps(about, default=_named)
    if _class_of(type(head).__name__) is type(head):
        try:  # as they will be read
            check_settings(type(head), current_settings(type(head), json.loads(text)["settings"]))
        except ValueError as error:
            raise ValueError(f"{path} is not written, since it could not be loaded again: {error}") from error
    metadata = {"format": FORMAT, "version": str(VERSION), "about": text, "about_sha256": text_digest(text)}
    write_tensors(path, tensors, metadata)


def holds_memory(path: str | os.PathLike[str]) -> bool:
    """Return whether a file says in its header that it is a memory; its tensors are not read."""
    path = Path(path)
    try:
        with open_regular(path) as file:
            _, metadata, _ = _header(file, path, os.fstat(file.fileno()).st_size)
    except (OSError, ValueError):  # nothing is there, or something else
        return False
    return metadata.get("format") == FORMAT


def load_head(path: str | os.PathLike[str], present: Head, backbone: Backbone) -> tuple[Head, dict[str, Any]]:
    """Return the head in a file, on the device of ``present``, which stays as it is, and the notes of the file.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: no such file, damaged, of a later format, or for another backbone, transform or head.
    """
    own = weights_digest(backbone)
    try:
        about, head, probed = read_head(path, present, own)
    except OtherWeights as error:
        raise ValueError(
            f"{path} was learned with {error}; this one is {backbone.name}, weights {own}: attach the one it was learned with, "
            "or learn again"
        ) from None
    if not same_features(probed, probe(backbone)):
        raise ValueError(
            f"{path} was learned with these weights, but features come out differently now: check transform, transform_options, "
            "layer and the options that the model was built with (padding, pooling, dtype)"
        )
    if head.feature_dim not in (None, backbone.feature_dim):
        raise ValueError(
            f"{path} is damaged: features have width {head.feature_dim}, the backbone's {backbone.feature_dim}"
        )
    return head.to(present.targets.device), dict(about.get("notes") or {})


class OtherWeights(ValueError):
    """A memory of another backbone; the message says of which."""


def read_head(
    path: str | os.PathLike[str], present: Head | None = None, weights: str | None = None
) -> tuple[dict[str, Any], Head, Tensor]:
    """Return the description in a file, its head, and the features of ``probe``.

    Args:
        path: the file.
        present: for a head of a class that is not of this package, or with settings that JSON cannot hold: one like it.
        weights: digest of the weights that it must have been learned with; ``None`` for any.

    Raises:
        OSError: the file is missing or cannot be read.
        OtherWeights: it was learned with others. It may not fit ``present`` then, and is not damaged.
        ValueError: no such file, damaged, of a later format, or for another head.
    """
    path = Path(path)
    about, tensors = _read(path)
    if weights is not None and about["weights"] != weights:
        raise OtherWeights(f"the backbone {about['backbone']}, weights {about['weights']}")
    probed = tensors.pop(_PROBE)
    try:
        old = head_of_version_01(about["head"], about["settings"], tensors, _HEAD)
    except Exception as error:  # of what a file may hold, not every combination is foreseen
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    head = _like(path, about, NAMHead() if present is None else present) if old is None else old
    _check_kinds(path, head, tensors)
    try:
        head.load_state_dict({key.removeprefix(_HEAD): tensor for key, tensor in tensors.items()})
    except Exception as error:
        raise ValueError(f"{path} does not fit {type(head).__name__}: {' '.join(str(error).split())}") from error
    _without_old_scale(path, about, head)
    head._source = str(path)
    return about, head, probed


def _is_path(noted: object) -> bool:
    return isinstance(noted, str) and "\0" not in noted


def probe(backbone: Backbone) -> Tensor:
    """Return the features ``(D,)`` of a fixed image with structure of all sizes, through transform and network."""
    x, y = np.meshgrid(np.arange(256), np.arange(256))
    pixels = np.stack([x ^ y, (x * x + 3 * y * y) // 64 % 256, 255 - (x + y) // 2], axis=-1).astype(np.uint8)
    image = backbone.transform(Image.fromarray(pixels)).unsqueeze(0)
    weight = next(backbone.network.parameters(), image)
    with torch.no_grad():
        return backbone(image.to(weight.device, weight.dtype))[0]


def same_features(expected: Tensor, found: Tensor) -> bool:
    """Return whether two results of ``probe`` are of one network and transform: equal but for rounding."""
    expected, found = (features.double().cpu() for features in (expected, found))
    return expected.shape == found.shape and bool((expected - found).norm() <= _SAME * expected.norm())


def settings(head: Head) -> dict[str, Any]:
    """Return the settings that a head was made with, but for tensors, which are in its state."""
    names = list(inspect.signature(type(head).__init__).parameters)[1:]
    # A setting that was left to the head is saved as such: the head keeps it under an underscore, and resolves it under its name.
    values = {name: getattr(head, f"_{name}", getattr(head, name, None)) for name in names}
    plain = {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))}
    grouped = {
        name: dataclasses.asdict(value)
        for name, value in values.items()
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
    }
    return plain | {name: list(value) for name, value in values.items() if isinstance(value, tuple)} | grouped


def current_settings(kind: type[Head], saved: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in a file by the names they have now."""
    renamed = getattr(kind.__init__, "renamed", {})
    return {renamed.get(name, name): value for name, value in saved.items()}


def _current_head(kind: str, saved: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the class and settings of a head that a file names: ``NAMHead`` of version 0.1 had modes, and other constants."""
    if kind != "NAMHead" or "settings" in saved:
        return kind, saved
    if saved.get("mode") not in ("sequential", "parallel"):
        return kind, {"settings": dataclasses.asdict(NAMSettings())}
    return "WriteRuleHead", {
        name: saved[name] for name in ("mode", "keys", "reading", "p_write", "p_erase") if name in saved
    }


def _without_old_scale(path: Path, about: dict[str, Any], head: Head) -> None:
    """Remove a threshold and a temperature that fit scores of another head; ``calibrate``'s threshold is computed again anyway."""
    replaced = about["head"] == "NAMHead" and "settings" not in about["settings"] and isinstance(head, NAMHead)
    if not replaced:
        return
    names = [name for name in ("threshold", "probability_temperature") if getattr(head, f"_{name}") is not None]
    for name in names:
        setattr(head, f"_{name}", None)
    head._outdate()
    if names:
        warnings.warn(
            f"{path}: written by an earlier version, whose head gave other scores. What was set for those was removed: "
            f"{', '.join(name.replace('_', ' ') for name in names)}. Set it anew, or call calibrate",
            stacklevel=4,
        )


def _named(value: object) -> str:
    """Return how an option of a model that JSON cannot hold, such as a class of layers, is written down."""
    return str(getattr(value, "__name__", value))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    content, metadata = _content(path)
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(f"{path}: cut short, or no file of a NAM model ({error})") from error
    version = metadata.get("version", "")
    if version != str(VERSION):
        raise ValueError(f"{path}: of format {version}, this release reads format {VERSION}: update fewshot-nam")
    try:
        about = json.loads(metadata["about"])
        whole = about["contents"] == tensors_digest(tensors[key] for key in sorted(tensors))
        # The first files had no digest of their description.
        whole = whole and metadata.get("about_sha256", text_digest(metadata["about"])) == text_digest(metadata["about"])
        notes = about.get("notes")
        fits = (
            isinstance(about["settings"], dict)
            and all(isinstance(about[key], str) for key in ("weights", "backbone", "head"))
            and (notes is None or (isinstance(notes, dict) and _is_path(notes.get("weights", ""))))
            and _PROBE in tensors
        )
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged: its description cannot be read ({type(error).__name__}: {error})"
        ) from error
    if not whole or not fits:
        raise ValueError(f"{path} is damaged: its contents are not those that were written")
    _check_tensors(path, tensors)
    return about, tensors


def _content(path: Path) -> tuple[bytes, dict[str, str]]:
    """Return a whole file and its metadata; the rest is read only where its header is that of a NAM model.

    Raises:
        OSError: it is missing, no regular file, cannot be read, or does not fit in memory.
        ValueError: it is of another kind, or cut short.
    """
    # One file opened once: another process may put a new one in its place meanwhile.
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        header, metadata, end = _header(file, path, size)
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path}: a safetensors file, but not of a NAM model: expected one that NAMModel.save wrote"
            )
        if end != size - len(header):
            raise ValueError(f"{path}: cut short, or longer than it says")
        try:
            return header + file.read(), metadata
        except MemoryError as error:
            raise OSError(f"{path}: {size:,} bytes do not fit in memory") from error


def _header(file: BinaryIO, path: Path, size: int) -> tuple[bytes, dict[str, str], int]:
    """Return the header of a safetensors file of so many bytes, the metadata in it, and where its tensors end behind it.

    Raises:
        ValueError: it is of another kind, or cut short.
    """
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _LONGEST_HEADER):
        raise ValueError(f"{path}: cut short, or no file of a NAM model")
    header = file.read(length)
    try:
        described = json.loads(header)
        metadata = described.pop("__metadata__", None) or {}
        end = max((entry["data_offsets"][1] for entry in described.values()), default=0)
        metadata.get("format")
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cut short, or no file of a NAM model ({type(error).__name__}: {error})") from error
    return start + header, metadata, end


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` for tensors that no head has saved, before anything is allocated by what they say."""
    for key, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{path} is damaged: {key} is of {tensor.dtype}, which no head holds")
        # Heads count images of a class that is known by a prototype alone as infinitely many.
        wrong = tensor.isnan() if key.endswith(".counts") else ~tensor.isfinite()
        if tensor.is_floating_point() and bool(wrong.any()):
            raise ValueError(f"{path} is damaged: {key} is NaN or infinite in places")
    targets, support = tensors.get(_HEAD + "targets"), tensors.get(_HEAD + "support")
    if targets is None or support is None:
        return  # a head that stores something else checks it itself
    if targets.dtype != torch.long or targets.dim() != 1 or support.dim() != 2 or len(targets) != len(support):
        raise ValueError(f"{path} is damaged: its targets do not fit its support features")
    if len(support) and not support.shape[1]:
        raise ValueError(f"{path} is damaged: its support features have no width")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(targets):
        raise ValueError(f"{path} is damaged: a target is no number of a class")


def _check_kinds(path: Path, head: Head, tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` for a tensor of a head with other dimensions than the head's own, or floats in place of whole numbers.

    Args:
        path: the file.
        head: of the class and settings in the file; how many classes it knows and how wide features are does not matter.
        tensors: of the file. Names that the head does not have are left to ``load_state_dict``.
    """
    for key, own in head.state_dict().items():
        held = tensors.get(_HEAD + key)
        if held is not None and (held.dim() != own.dim() or held.is_floating_point() != own.is_floating_point()):
            raise ValueError(
                f"{path} does not fit {type(head).__name__}: {key} is {held.dtype} of shape {tuple(held.shape)}"
            )


def _class_of(kind: str) -> type[Head] | None:
    """Return the class of heads with this name, of this package or registered; ``None`` where there is none."""
    if kind in heads.__all__:
        found: type[Head] = getattr(heads, kind)
        return found
    builders = (entry.builder() for entry in specs() if entry.requires is None or find_spec(entry.requires) is not None)
    return next((each for each in builders if isinstance(each, type) and each.__name__ == kind), None)


def _like(path: Path, about: dict[str, Any], present: Head) -> Head:
    """Return a head of the class and settings in the file, to be filled with its state."""
    kind, wanted = _current_head(about["head"], about["settings"])
    if type(present).__name__ == kind and settings(present) == current_settings(type(present), wanted):
        return copy.deepcopy(present)
    given = f"{path} holds a {kind} with settings {wanted}: attach with such a head before loading"
    known = _class_of(kind) or type(present)
    if known.__name__ != kind or not issubclass(known, Head):
        raise ValueError(f"{given} (a {kind} is not made from a file)")
    wanted = current_settings(known, wanted)
    try:
        check_settings(known, wanted)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    try:
        return known(**wanted)
    except (AttributeError, TypeError, ValueError) as error:  # the first: an object of another kind than it takes
        raise ValueError(f"{given} ({error})") from error

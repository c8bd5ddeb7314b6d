"""A model that has learned, for other runtimes: one ONNX file, or a ``torch.export`` program.

The learned tensors are kept apart from the graph, so that they can be replaced without a new export, with more classes or fewer. In
an ONNX file they are the initializers that ``memory_of`` names, which ``update_onnx`` replaces; in a program they are an input.
The graph maps ``pictures`` ``(batch, C, H, W)``, images that are transformed already, to ``scores`` ``(batch, classes)``. It checks
nothing: NaN in an image gives NaN scores.

Metadata of an ONNX file, format 1, every value JSON but for the first two and ``transform``: ``format`` ("fewshot-nam onnx"),
``version`` ("1"), ``classes`` (names in the order of the scores' columns), ``threshold`` (accept where the largest score reaches
it; ``null`` where none is set), ``temperature`` (of probabilities: ``softmax(scores / temperature)``; ``null`` where none was
fitted), ``transform`` (how images are prepared, in words and numbers), ``backbone`` (name) and ``graph`` (digests
and settings of what the graph was made from, which ``update_onnx`` checks).
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

import fewshot_nam
from fewshot_nam.heads import ErasedWeightsHead, Head, KeptClassifierHead
from fewshot_nam.heads.registry import exportable, specs
from fewshot_nam.io.atomic import replacing
from fewshot_nam.io.regular_files import open_regular
from fewshot_nam.memory.torch_modes import full_precision
from fewshot_nam.vision.digests import tensors_digest, weights_digest
from fewshot_nam.vision.image_transform import without_addresses
from fewshot_nam.vision.layers import LayerFeatures, find_layer
from fewshot_nam.vision.libraries.common import LibraryNotInstalled
from fewshot_nam.vision.model import NAMModel
from fewshot_nam.vision.saving import current_settings, settings

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FORMAT, VERSION = "fewshot-nam onnx", 1
_FOR_ATTACH = (KeptClassifierHead, ErasedWeightsHead)  # made by attach or loaded, not by name: no table lists them
_MOST_BYTES = 2**31 - 2**24  # what one protobuf file holds, less room for the graph


def memory_of(model: NAMModel) -> dict[str, Tensor]:
    """Return what a model has learned as the graph takes it: float32, one row a class in the order of ``model.classes``.

    Returns:
        ``memory`` ``(classes, W)``, where ``W`` is the width of features as the head embeds them: ``D`` for most heads. For a NAM
        head, one with score normalisation and a ``KeptClassifierHead`` also ``offsets`` ``(classes,)``.

    Raises:
        ValueError: no class is known yet, or a head that cannot be exported.
    """
    head = model.head
    if not (exportable(head) or type(head) in _FOR_ATTACH):
        names = sorted({entry.builder().__name__ for entry in specs() if entry.exports})
        raise ValueError(f"export: a {type(head).__name__} cannot be exported: attach with {' or '.join(names)}")
    if not head.classes:
        raise ValueError("export: the model knows no class yet: call learn(images, labels) first")
    with torch.no_grad(), full_precision(head.targets.device):
        tensors = head._export_tensors(head._current())
    return {name: tensor.detach().float() for name, tensor in tensors.items()}


def export_program(model: NAMModel) -> ExportedProgram:
    """Return the model as a program of ``torch.export`` that takes images and a memory, any number of images and classes.

    ``program.module()(images, memory_of(model))`` gives scores ``(batch, classes)``, also for a model that has learned other
    classes since, with the same backbone and the same settings of the head.

    Raises:
        ValueError: no class is known yet, a head that cannot be exported, or a backbone that ``torch.export`` cannot trace for any
            number of images.
    """
    model = model.snapshot()  # one state, whatever other threads learn meanwhile
    device, per_class = model.head.targets.device, model.head._per_class
    known = memory_of(model)
    # Traced with three classes: torch.export takes a size of 1 for a constant.
    memory = known | {name: known[name][:1].repeat_interleave(3, dim=0) for name in per_class if name in known}
    image = model.backbone.transform(Image.new("RGB", (256, 256))).unsqueeze(0).to(device)
    classes, batch = torch.export.Dim("classes"), torch.export.Dim("batch")
    shapes = ({0: batch}, {name: {0: classes} if name in per_class else {} for name in memory})
    images = image.expand(2, *image.shape[1:]).contiguous()
    try:
        with torch.no_grad(), full_precision(device):  # a graph of autocast holds casts that no runtime takes
            return torch.export.export(_Graph(model), (images, memory), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # a network may do anything that cannot be traced
        raise ValueError(
            f"export: torch.export cannot trace {model.backbone.name} for any number of images "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error


def export_onnx(model: NAMModel, path: str | os.PathLike[str]) -> None:
    """Write the model to one ONNX file, whole or not at all: backbone, what was learned, and metadata.

    Args:
        model: has learned; with a head that exports by the registry, as ``NAMHead`` and ``CosineHead`` do, of any settings.
        path: an existing file is replaced.

    Raises:
        LibraryNotInstalled: onnx or onnxscript is not installed.
        ValueError: as ``export_program``; weights that are not float32 or beyond 2 GiB, what one ONNX file holds; or a backbone
            with an operation that ONNX lacks.
        OSError: the directory is missing or cannot be written.
    """
    model = model.snapshot()  # its memory, names and threshold are of one state, whatever other threads learn meanwhile
    onnx, memory = _library("onnx"), memory_of(model)
    _library("onnxscript")  # torch's converter needs it
    weights = [*_without_heads(model.backbone.network)]
    other = {weight.dtype for weight in weights if weight.is_floating_point()} - {torch.float32}
    if other:
        raise ValueError(f"export: the backbone's weights are {other.pop()}: call model.float() first")
    if sum(tensor.numel() * tensor.element_size() for tensor in [*weights, *memory.values()]) > _MOST_BYTES:
        raise ValueError(
            "export: the model is beyond 2 GiB, which is what one ONNX file holds: take a smaller backbone"
        )
    program = export_program(model)
    try:
        with full_precision(model.head.targets.device):
            made = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["pictures", *memory],
                output_names=["scores"],
                opset_version=18,
                verbose=False,
            )
    except Exception as error:  # the converter raises many kinds
        raise ValueError(
            f"export: {model.backbone.name} cannot be written as ONNX ({type(error).__name__}: {_first_line(error)})"
        ) from error
    if made is None:
        raise ValueError("export: this release of torch cannot export to ONNX: update torch to 2.6 or later")
    file = made.model_proto
    _tidy(file)
    _put(onnx, file, memory, _metadata(model))
    onnx.checker.check_model(file)
    _write(file, path)


def update_onnx(path: str | os.PathLike[str], model: NAMModel) -> None:
    """Put what a model has learned by now into an ONNX file that was exported before; whole or not at all.

    Classes may be more, fewer or others; class names, threshold and temperature are replaced too. This takes as long as
    reading and writing the file.

    Raises:
        LibraryNotInstalled: onnx is not installed.
        OSError: the file is missing, or cannot be read or written.
        ValueError: it is not an ONNX file that ``export_onnx`` wrote; or it was exported from another backbone or a head
            with other settings. The file is as it was then.
    """
    model = model.snapshot()  # as in export_onnx
    onnx, memory, metadata = _library("onnx"), memory_of(model), _metadata(model)
    path = Path(path)
    try:
        with open_regular(path) as opened:
            file = onnx.load_model_from_string(opened.read())
    except OSError:
        raise
    except Exception as error:  # which one depends on the protobuf library
        raise ValueError(f"{path}: cut short, or no ONNX file ({_first_line(error)})") from error
    present = {entry.key: entry.value for entry in file.metadata_props}
    if present.get("format") != FORMAT:
        raise ValueError(f"{path}: an ONNX file, but not one that export_onnx wrote: export the model again")
    if present.get("version") != str(VERSION):
        raise ValueError(
            f"{path}: of format {present.get('version')}, this release writes format {VERSION}: export the model again"
        )
    try:
        own, other = json.loads(metadata["graph"]), json.loads(present["graph"])
        other["transform"] = without_addresses(other["transform"])  # files of the first releases have them
        other["settings"] = current_settings(type(model.head), other["settings"])
        names = [key for key in own if key != "made_by" and own[key] != other.get(key)]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its metadata cannot be read ({type(error).__name__}: {error})") from error
    if names:
        without_base = "constants" in names and "head" not in names
        hint = ", or attach with head=NAMHead() if that was made without base classes" if without_base else ""
        raise ValueError(
            f"{path}: exported from another model: {', '.join(names)} differ; load the memory that the file was made "
            f"from{hint}; or export this model to a new file"
        )
    outputs = [entry.name for entry in file.graph.output]
    if not file.graph.node or outputs != ["scores"]:
        raise ValueError(f"{path} is damaged: its graph gives no scores")
    _put(onnx, file, memory, metadata)
    try:
        onnx.checker.check_model(file)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"{path} is damaged: {_first_line(error)}") from error
    _write(file, path)


class _Graph(nn.Module):
    """The module that is exported: the backbone's network, and how its head reads a memory given as input."""

    def __init__(self, model: NAMModel) -> None:
        super().__init__()
        network = model.backbone.network
        self.network = _WholeRun(network) if isinstance(network, LayerFeatures) else network
        # The settings alone: a program keeps all buffers, and features of a user's images have no place in it.
        self.head = model.head.copy()
        self.head.forget(self.head.classes)
        self.head.threshold = None
        if isinstance(self.head, KeptClassifierHead):
            self.head.base_images = self.head.base_images[:0]
        self.numbers = _numbers(model.head)

    def forward(self, pictures: Tensor, memory: Mapping[str, Tensor]) -> Tensor:
        """Return scores ``(batch, classes)``. The name of the input is that of version 0.1."""
        query = self.head._embed(self.network(pictures)).unsqueeze(0)
        return self.head._score(self.head._from_export(memory, self.numbers), query).squeeze(0)


class _WholeRun(nn.Module):
    """Features at a layer of a network that runs to its end: a trace cannot stop in the middle. Unused parts are dropped."""

    def __init__(self, tapped: LayerFeatures) -> None:
        super().__init__()
        self.tapped = copy.deepcopy(tapped)
        if isinstance(find_layer(self.tapped.model, tapped.layer), Head):
            self.tapped.replace(nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(batch, D)``."""
        taken: list[Any] = []
        layer = find_layer(self.tapped.model, self.tapped.layer)
        if self.tapped.at_input:
            hook = layer.register_forward_pre_hook(lambda _layer, inputs: taken.append(inputs[0]))
        else:
            hook = layer.register_forward_hook(lambda _layer, _inputs, output: taken.append(output))
        try:
            self.tapped.model(images)
        finally:
            hook.remove()
        return self.tapped.pooled(taken[0])


def _without_heads(network: nn.Module) -> Iterator[Tensor]:
    """Yield weights and buffers of a network, but not of a head that stands in it: what that learned is the graph's input."""
    if not isinstance(network, Head):
        yield from network.parameters(recurse=False)
        yield from network.buffers(recurse=False)
        for child in network.children():
            yield from _without_heads(child)


def _metadata(model: NAMModel) -> dict[str, str]:
    head = model.head
    graph = {
        "made_by": fewshot_nam.__version__,
        "weights": weights_digest(model.backbone),
        "transform": model.backbone.transform_id,
        "head": type(head).__name__,
        "settings": settings(head),
        "constants": tensors_digest(head._export_constants()),
        **_numbers(head),
        "shapes": {name: list(rows.shape[name in head._per_class :]) for name, rows in memory_of(model).items()},
    }
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "classes": json.dumps(head.classes),
        "threshold": json.dumps(head.threshold),
        "temperature": json.dumps(head._probability_temperature),
        "transform": model.backbone.transform_id,
        "backbone": json.dumps(model.backbone.name),
        "graph": json.dumps(graph),
    }


def _numbers(head: Head) -> dict[str, float]:
    with torch.no_grad():
        return head._export_numbers(head._current())


def _tidy(file: Any) -> None:
    """Remove the source lines that each operation was traced from, and name the axes."""
    graph = file.graph
    for entry in [*graph.node, *graph.initializer, *graph.input, *graph.output, graph]:
        del entry.metadata_props[:]
        entry.doc_string = ""
    del graph.value_info[:], file.metadata_props[:]
    for entry in [*graph.input, *graph.output]:
        entry.type.tensor_type.shape.dim[0].dim_param = "batch"
    graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"


def _put(onnx: Any, file: Any, memory: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Set the initializers of the memory, which the converter left as inputs, and the metadata."""
    graph = file.graph
    for kind in (graph.input, graph.initializer):
        kept = [entry for entry in kind if entry.name not in memory]
        del kind[:]
        kind.extend(kept)
    graph.initializer.extend(onnx.numpy_helper.from_array(rows.cpu().numpy(), name) for name, rows in memory.items())
    onnx.helper.set_model_props(file, dict(metadata))


def _write(file: Any, path: str | os.PathLike[str]) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(file.SerializeToString())


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise LibraryNotInstalled(
            f'{error.name} is not installed, and ONNX needs it: pip install "fewshot-nam[export]"'
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

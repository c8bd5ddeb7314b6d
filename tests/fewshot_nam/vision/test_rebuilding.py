"""Backbones made anew from what a file says, and heads whose open settings stay open in a file."""

import pytest
import torch

import backbones
from fewshot_nam.vision import rebuilding
from fewshot_nam.vision.rebuilding import rebuild


def described(backbone):
    return {"backbone": backbone.name, "model_options": backbone.model_options, "transform": backbone.transform_id}


@pytest.mark.parametrize(
    ("name", "model_options", "transform_options"),
    [
        ("conv4", {"width": 8}, {}),
        ("timm/test_resnet", {}, {"input_size": [3, 48, 32], "mean": 0.3, "crop_mode": "squash"}),
        (
            "torchvision/mobilenet_v3_small",
            {"dropout": 0.1},
            {"crop_size": 40, "resize_size": 44, "interpolation": "nearest"},
        ),
    ],
)
def test_options_and_transform_come_back(name, model_options, transform_options):
    if "/" in name:
        pytest.importorskip(name.partition("/")[0])
    first = backbones.create(name, False, model_options=model_options, transform_options=transform_options)
    second = rebuild(described(first), weights=False)
    assert (second.name, second.model_options, second.transform_id) == (name, model_options, first.transform_id)
    assert second.feature_dim == first.feature_dim


def test_a_model_that_has_no_name_is_asked_for(nam):
    with pytest.raises(
        ValueError, match=r"learned with a model of its own, .*Tiny: attach that model and load the file"
    ):
        rebuild(described(nam.backbone))
    with pytest.raises(ValueError, match="there is no such file"):
        rebuild({"backbone": "conv4"}, weights="nothing.safetensors")


@pytest.mark.parametrize(
    ("name", "options"),
    [("conv4", {"width": 10**6}), ("timm/x", {"depth": 10**6}), ("timm/x", {"args": {"depths": [2, 10**6]}})],
)
def test_a_file_cannot_ask_for_a_network_larger_than_any(name, options):
    about = {"backbone": name, "model_options": options, "transform": ""}
    with pytest.raises(ValueError, match=r"backbone is larger than any: .*, and at most 8,192 is built"):
        rebuild(about, weights=False)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm/vit_tiny_patch16_224", {"embed_dim": 8192, "depth": 8192, "num_heads": 8}),
        ("timm/resnet50", {"layers": [8192] * 4}),
        ("conv4", {"width": 4096}),
    ],
)
def test_a_file_cannot_ask_for_a_network_of_unbounded_size(name, options, monkeypatch):
    """Each number is one that some network has; together they took all memory, one block after another."""
    if "/" in name:
        pytest.importorskip("timm")
    else:
        monkeypatch.setattr(rebuilding, "_MOST_BYTES", 10**8)
    monkeypatch.setattr(rebuilding, "_MOST_TENSORS", 500)  # as 10,000, in less time
    monkeypatch.setattr(rebuilding, "_built", recorded := Recorded(rebuilding._built))
    about = {"backbone": name, "model_options": options, "transform": ""}
    with pytest.raises(
        ValueError, match=rf"backbone is larger than any: {name} with .*, and at most twice the default"
    ):
        rebuild(about, weights=False)
    assert [counted.exceeded for counted in recorded.counts] == [True, False, True]


class Recorded:
    """A function whose results are kept."""

    def __init__(self, function):
        self.function, self.counts = function, []

    def __call__(self, *arguments):
        self.counts.append(self.function(*arguments))
        return self.counts[-1]


def test_options_may_make_a_network_up_to_twice_as_large_as_its_default(monkeypatch):
    monkeypatch.setattr(rebuilding, "_MOST_BYTES", 1)
    about = {"backbone": "conv4", "model_options": {"width": 80}, "transform": ""}
    torch.manual_seed(0)
    first = rebuild(about, weights=False)
    torch.manual_seed(0)
    second = backbones.create("conv4", False, model_options={"width": 80})
    assert torch.equal(next(first.network.parameters()), next(second.network.parameters()))  # counting draws no numbers


def test_a_network_that_cannot_be_built_without_memory_is_counted_with_it(monkeypatch):
    def create(name, weights, model_options):
        try:
            float(torch.ones(1))
        except RuntimeError as error:
            raise ValueError(f"{name} cannot be built") from error
        torch.zeros(5)

    monkeypatch.setattr(rebuilding, "create", create)
    counted = rebuilding._built("x", {}, 1000, 1000)
    assert (counted.tensors, counted.bytes, counted.exceeded) == (2, 24, False)
    assert rebuilding._built("x", {}, 23, 1000).exceeded


@pytest.mark.parametrize("options", [1, True, 1.5, "abc", ["width"]])
def test_options_that_are_none_are_refused(options):
    with pytest.raises(ValueError, match="the file is damaged"):
        rebuild({"backbone": "conv4", "model_options": options}, False)

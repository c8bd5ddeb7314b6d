"""Backbones made anew from what a file says, and heads whose open settings stay open in a file."""

import pytest

import backbones
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

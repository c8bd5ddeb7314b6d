import sys

import pytest
import torch
from torch import nn

import backbones
from fewshot_nam import attach
from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.libraries import registry
from fewshot_nam.vision.libraries.common import Library


def test_available_lists_every_kind():
    names = backbones.available()
    assert names[:2] == ["conv4", "conv5"]
    assert {"timm/resnet18", "timm/mobilenetv2_100", "torchvision/resnet18", "torchvision/squeezenet1_1"} <= set(names)
    assert len(names) == len(set(names))
    assert "torchvision/fcn_resnet50" not in names  # segments


def test_available_leaves_out_what_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    names = backbones.available()
    assert "torchvision/resnet18" in names
    assert not [name for name in names if name.startswith("timm/")]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("timm/resnet81", "timm/resnet18"),
        ("torchvision/mobilenetv2", "torchvision/mobilenet_v2"),
        ("conv3", "conv4"),
        ("resnet18", "timm/resnet18 or torchvision/resnet18"),
        ("resnet_18", "timm/resnet18"),
        ("timm/resnet50.imagenet", "timm/resnet50"),
        ("torchvision/resnet50.IMAGENET1K_V7", "torchvision/resnet50"),
    ],
)
def test_unknown_name_gets_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"no backbone '{name}': did you mean ") as caught:
        backbones.create(name)
    assert near in str(caught.value)
    assert "There are conv4, conv5, timm/<model> (" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "zzzzzz", "timm/", "keras/zzzzzz"])
def test_name_like_nothing_gets_what_there_is(name):
    with pytest.raises(ValueError, match=r"There are conv4, conv5, timm/<model> \(\d+\), torchvision/<model> \(\d+\)"):
        backbones.create(name)


@pytest.mark.parametrize("pretrained", [None, 1, 0.5])
def test_pretrained_is_a_choice_or_a_file(pretrained):
    with pytest.raises(ValueError, match="pretrained is True, False or the path of a file"):
        backbones.create("conv4", pretrained=pretrained)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.pth: there is no such file"):
        backbones.create("timm/test_resnet", pretrained=tmp_path / "nothing.pth")


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_device_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match=f"there is no device '{device}' here") as caught:
        backbones.create("conv4", pretrained=False, device=device)
    assert "\n" not in str(caught.value)


@pytest.fixture
def toy_library():
    """Register a library with one model, "toy/flat"."""

    def make(model, pretrained, model_options, transform_options):
        return Backbone(f"toy/{model}", nn.Flatten(), lambda image: torch.zeros(3, 2, 2), "zeros")

    registry.register(Library("toy/", lambda: ["flat"], lambda model: model == "flat", make))
    yield
    del registry.LIBRARIES["toy/"]


@pytest.mark.usefixtures("toy_library")
def test_a_registered_library_is_listed_made_and_named_in_errors():
    assert backbones.available()[-1] == "toy/flat"
    assert backbones.create("toy/flat").feature_dim == 12
    assert attach("toy/flat").backbone.name == "toy/flat"
    with pytest.raises(ValueError, match=r"did you mean toy/flat\? .*toy/<model> \(1\)"):
        backbones.create("toy/flap")
    with pytest.raises(ValueError, match="ends in '/' and is none of timm/, torchvision/, toy/, got 'toy/'"):
        registry.register(registry.LIBRARIES["toy/"])

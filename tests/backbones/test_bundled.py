import json
from importlib import resources

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import backbones
from backbones.bundled import save_weights
from backbones.conv4 import Conv4, ink_transform
from backbones.conv5 import Conv5, photo_transform

IMAGE = Image.radial_gradient("L")


def _features(backbone):
    return backbone(backbone.transform(IMAGE).unsqueeze(0))


def test_conv4_reads_the_file_form_of_the_package(bundled_file, conv4_state):
    backbone = backbones.create("conv4", pretrained=bundled_file())
    expected = Conv4()
    expected.load_state_dict(conv4_state)
    assert torch.equal(_features(backbone), expected.eval()(ink_transform(IMAGE).unsqueeze(0)))
    assert torch.equal(backbone.base_statistics.prototypes, torch.arange(192.0).reshape(3, 64))
    assert backbone.base_classes == ["Latin/a", "Latin/b", "Greek/alpha"]
    assert (backbone.name, backbone.feature_dim) == ("conv4", 64)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_conv4_reads_a_plain_state_dict(tmp_path, bundled_file, conv4_state, suffix):
    path = tmp_path / f"plain{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(conv4_state, path)
    backbone = backbones.create("conv4", pretrained=str(path))
    same = backbones.create("conv4", pretrained=bundled_file())
    assert backbone.base_statistics is None
    assert backbone.base_classes is None
    assert torch.equal(_features(backbone), _features(same))
    assert backbone.weights_hash == same.weights_hash


def test_conv4_of_another_width_has_random_weights():
    backbone = backbones.create("conv4", pretrained=False, model_options={"width": 11})
    assert backbone.feature_dim == 11
    assert _features(backbone).shape == (1, 11)


def test_conv4_of_another_width_does_not_take_the_weights(bundled_file):
    with pytest.raises(ValueError, match=r"does not fit conv4: .* of another shape"):
        backbones.create("conv4", pretrained=bundled_file(), model_options={"width": 11})


@pytest.mark.parametrize(
    "metadata",
    [{}, {"card": "{"}, {"card": "[]"}, {"card": json.dumps({"recipe": 1})}, {"card": '{"base_classes": 3}'}],
)
def test_prototypes_without_class_names_are_refused(bundled_file, metadata):
    with pytest.raises(ValueError, match="base_prototypes need a JSON 'card' with 'base_classes'"):
        backbones.create("conv4", pretrained=bundled_file(metadata=metadata))


def test_prototypes_of_another_number_of_classes_are_refused(bundled_file):
    with pytest.raises(
        ValueError, match=r"3 base classes and 64 features need base prototypes \(3, 64\), got \(2, 64\)"
    ):
        backbones.create("conv4", pretrained=bundled_file(prototypes=torch.ones(2, 64)))


def test_unknown_options_are_named_with_those_there_are():
    with pytest.raises(ValueError, match="conv4 has no model option 'depth': there is width"):
        backbones.create("conv4", pretrained=False, model_options={"depth": 5})
    with pytest.raises(ValueError, match="conv4 has no transform option 'mean': there is none"):
        backbones.create("conv4", pretrained=False, transform_options={"mean": 0.5})


def test_package_file_gives_prototypes_of_its_own_features():
    packaged = resources.files("backbones") / "weights" / "conv4_omniglot.safetensors"
    if not packaged.is_file():
        pytest.skip("the package's weights are still being trained")
    backbone = backbones.create("conv4")
    assert backbone.feature_dim == 64
    assert backbone.base_statistics.prototypes.shape == (len(backbone.base_classes), 64)
    assert len(set(backbone.base_classes)) == len(backbone.base_classes)
    # Mean features of a network that ends in a ReLU: none negative, and no two classes alike.
    assert (backbone.base_statistics.prototypes >= 0).all()
    assert len(backbone.base_statistics.prototypes.unique(dim=0)) == len(backbone.base_classes)


def test_conv5_comes_without_weights_and_says_where_to_get_them():
    with pytest.raises(ValueError, match=r"conv5 comes without weights: train it with scripts/pretrain_photos.py"):
        backbones.create("conv5")


@pytest.mark.parametrize(
    ("size", "mode"), [((64, 64), "RGB"), ((200, 90), "L"), ((1, 200), "RGBA"), ((31, 17), "CMYK")]
)
def test_conv5_takes_any_image(size, mode):
    backbone = backbones.create("conv5", pretrained=False, model_options={"width": 2})
    levels = backbone.transform(Image.new(mode, size))
    assert levels.shape == (3, 64, 64)
    features = backbone(levels.unsqueeze(0))
    assert features.shape == (1, 32)
    assert torch.all(features >= 0)


def test_conv5_sees_the_middle_of_a_long_image():
    image = Image.new("RGB", (300, 100))
    image.paste((255, 255, 255), (100, 0, 200, 100))
    levels = backbones.create("conv5", pretrained=False, model_options={"width": 2}).transform(image)
    inside = levels[:, :, 2:-2]  # the edge is a blend
    torch.testing.assert_close(inside, torch.full_like(inside, (1 - 0.45) / 0.25))


def test_conv5_reads_its_own_file_and_not_that_of_conv4(tmp_path, bundled_file):
    network = Conv5(2)
    path = tmp_path / "conv5.safetensors"
    tensors = {f"model.{key}": value for key, value in network.state_dict().items()}
    card = json.dumps({"base_classes": ["cat", "dog"]})
    save_file(tensors | {"base_prototypes": torch.ones(2, 32)}, path, metadata={"card": card})
    backbone = backbones.create("conv5", pretrained=path, model_options={"width": 2})
    assert torch.equal(_features(backbone), network.eval()(photo_transform(IMAGE).unsqueeze(0)))
    assert backbone.base_classes == ["cat", "dog"]
    with pytest.raises(ValueError, match="does not fit conv5"):
        backbones.create("conv5", pretrained=bundled_file())


def test_backbone_goes_to_the_device(bundled_file):
    # "meta" is there on every machine, and a backbone is never on it unless asked.
    device = "cuda" if torch.cuda.is_available() else "meta"
    backbone = backbones.create("conv4", pretrained=bundled_file(), device=device)
    assert {tensor.device.type for tensor in backbone.network.state_dict().values()} == {device}
    assert backbone.base_statistics.prototypes.device.type == device


def test_saved_weights_give_the_same_backbone(tmp_path):
    torch.manual_seed(0)
    network, prototypes = Conv4(), torch.rand(2, 64) + 0.1
    save_weights(tmp_path / "new" / "own.safetensors", network, prototypes, {"base_classes": ["a", "b"], "recipe": {}})
    backbone = backbones.create("conv4", tmp_path / "new" / "own.safetensors")
    assert torch.equal(_features(backbone), network.eval()(ink_transform(IMAGE).unsqueeze(0)))
    assert torch.equal(backbone.base_statistics.prototypes, prototypes)
    assert backbone.base_classes == ["a", "b"]
    with pytest.raises(ValueError, match="2 prototypes need as many names"):
        save_weights(tmp_path / "other.safetensors", network, prototypes, {"base_classes": ["a"]})


@pytest.mark.parametrize("width", ["a", None, True, [1], float("nan"), 1.5, 0, 10**9])
@pytest.mark.parametrize("name", ["conv4", "conv5"])
def test_a_width_is_a_whole_number(name, width):
    """Words, as the command line takes them, ended in a traceback."""
    with pytest.raises(ValueError, match="width must be a whole number from 1 to"):
        backbones.create(name, pretrained=False, model_options={"width": width})

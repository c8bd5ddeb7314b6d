from collections import OrderedDict

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import backbones

models = pytest.importorskip("torchvision.models")

from fewshot_nam.vision.libraries.torchvision_models import remove_classifier  # noqa: E402
from fewshot_nam.vision.weight_files import fit_weights, read_weights  # noqa: E402

IMAGE = Image.linear_gradient("L").resize((300, 280))
SMALL = {"crop_size": 64, "resize_size": 64}


def _small(model, **given):
    return backbones.create(f"torchvision/{model}", **{"pretrained": False, "transform_options": SMALL, **given})


def _vit():
    return models.VisionTransformer(64, 32, num_layers=1, num_heads=2, hidden_dim=12, mlp_dim=8, num_classes=7)


def _swin():
    return models.SwinTransformer([4, 4], 8, depths=[1, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=7)


def _maxvit():
    return models.MaxVit((64, 64), 8, 4, [8, 12], [1, 1], 4, 0.0, num_classes=7)


def _densenet():
    return models.DenseNet(4, (1, 2), 8, num_classes=7)


@pytest.mark.parametrize("build", [_vit, _swin, _maxvit, _densenet], ids=lambda build: build.__name__.strip("_"))
def test_last_linear_layer_is_what_is_removed(build):
    torch.manual_seed(0)
    network = build().eval()
    batch = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        scores = network(batch)
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        remove_classifier(network)
        features = network(batch)
        assert features.shape == (2, last.in_features)
        assert scores.shape == (2, 7)
        torch.testing.assert_close(last(features), scores)


@pytest.mark.parametrize(
    ("model", "removed"),
    [
        ("alexnet", {"classifier.6"}),
        ("vgg11_bn", {"classifier.6"}),
        ("convnext_tiny", {"classifier.2"}),
        ("mnasnet0_5", {"classifier.1"}),
        ("efficientnet_b0", {"classifier.1"}),
        ("inception_v3", {"fc", "AuxLogits.fc", "AuxLogits.conv0", "AuxLogits.conv1"}),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_only_classifiers_are_removed(model, removed):
    with torch.device("meta"):
        network = models.get_model(model, weights=None)
    before = set(network.state_dict())
    remove_classifier(network)
    gone = before - set(network.state_dict())
    assert gone
    assert {next((root for root in removed if key.startswith(root + ".")), key) for key in gone} == removed


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "googlenet"])
def test_file_with_classifiers_gives_the_penultimate_features(tmp_path, model):
    # MNASNet refuses weights that do not say their version, which safetensors cannot.
    path, save = (tmp_path / "w.safetensors", save_file) if model == "mnasnet0_5" else (tmp_path / "w.pth", torch.save)
    torch.manual_seed(0)
    extra = {"init_weights": False, "transform_input": True} if model == "googlenet" else {}
    whole = models.get_model(model, weights=None, num_classes=7, **extra).eval()
    save(whole.state_dict(), path)
    backbone = _small(model, pretrained=path)
    batch = backbone.transform(IMAGE).unsqueeze(0)
    features = backbone(batch)
    last = [module for module in whole.modules() if isinstance(module, nn.Linear)][-1]
    assert features.shape == (1, backbone.feature_dim)
    with torch.no_grad():
        torch.testing.assert_close(last(features), whole(batch))


def test_squeezenet_features_are_pooled_before_its_convolutional_classifier():
    backbone = _small("squeezenet1_1")
    batch = backbone.transform(IMAGE).unsqueeze(0)
    expected = backbone.network.features(batch).relu().mean(dim=(2, 3))
    assert backbone.feature_dim == 512
    torch.testing.assert_close(backbone(batch), expected)


def test_densenet_file_with_old_names_is_read(tmp_path):
    torch.manual_seed(0)
    state = models.get_model("densenet121", weights=None).state_dict()
    old = {}
    for key, value in state.items():
        for part in ("norm", "conv"):
            for number in "12":
                key = key.replace(f".{part}{number}.", f".{part}.{number}.") if "denselayer" in key else key
        old[key] = value
    assert set(old) != set(state)
    torch.save(old, tmp_path / "old.pth")
    backbone = _small("densenet121", pretrained=tmp_path / "old.pth")
    for key, value in backbone.network.state_dict().items():
        assert torch.equal(value, state[key])


def test_file_of_an_older_version_is_read_by_that_version(tmp_path):
    state = _vit().state_dict()
    old = OrderedDict(
        (key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."), value)
        for key, value in state.items()
    )
    old._metadata = {key: {} if "mlp" in key else kept for key, kept in state._metadata.items()}
    assert set(old) != set(state)
    torch.save(old, tmp_path / "old.pth")
    network = _vit()
    fit_weights(network, read_weights(tmp_path / "old.pth"), tmp_path / "old.pth", "vit")
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key])


def test_transform_is_that_of_the_weights():
    backbone = _small("resnet18", transform_options={})
    expected = models.ResNet18_Weights.DEFAULT.transforms()
    assert torch.equal(backbone.transform(IMAGE), expected(IMAGE.convert("RGB")))


def test_named_weights_bring_their_own_transform():
    sizes = {tag: _small(f"mobilenet_v2.IMAGENET1K_{tag}", transform_options={}).transform_id for tag in ("V1", "V2")}
    assert '"resize_size": 256' in sizes["V1"]
    assert '"resize_size": 232' in sizes["V2"]


def test_transform_takes_other_settings():
    options = {"resize_size": 40, "crop_size": 32, "mean": 0.5, "std": [0.5, 0.25, 1.0], "interpolation": "nearest"}
    backbone = _small("squeezenet1_1", transform_options=options)
    pixels = backbone.transform(Image.new("L", (50, 40), 255))
    assert pixels.shape == (3, 32, 32)
    assert pixels[:, 5, 5].tolist() == [1.0, 2.0, 0.5]
    assert backbone.transform_id.endswith(
        '{"antialias": true, "crop_size": 32, "interpolation": "nearest", "mean": [0.5, 0.5, 0.5], '
        '"resize_size": 40, "std": [0.5, 0.25, 1.0]}'
    )


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("input_size", 3, "has no transform option 'input_size': there is crop_size, resize_size, mean"),
        ("crop_size", 0, "crop_size is a side of 1 to 4096 pixels, got 0"),
        ("resize_size", 999_999, "resize_size is a side of 1 to 4096 pixels, got 999999"),
        ("crop_size", 500, "a crop_size of 500 does not fit into a resize_size of 256"),
        ("interpolation", "cubic", "interpolation is one of nearest, .*bilinear.*, got 'cubic'"),
        ("mean", [1, 2], "mean is a number or a list of three"),
    ],
)
def test_wrong_transform_options_are_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        _small("resnet18", transform_options={option: value})


def test_unknown_model_option_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"torchvision/resnet18 has no model option 'padding': there is .*groups"):
        _small("resnet18", model_options={"padding": "same"})


@pytest.mark.parametrize("option", ["num_classes", "weights", "aux_logits"])
def test_options_that_create_sets_are_refused(option):
    with pytest.raises(ValueError, match=f"model option '{option}' is set by backbones.create itself"):
        _small("googlenet", model_options={option: 10})


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(models.get_model("squeezenet1_1", weights=None).state_dict(), tmp_path / "s.pth")
    with pytest.raises(ValueError, match=r"s\.pth does not fit torchvision/resnet18: of \d+ keys \d+ missing"):
        _small("resnet18", pretrained=tmp_path / "s.pth")


def test_download_and_file_give_the_same_googlenet(monkeypatch, tmp_path):
    torch.manual_seed(0)
    state = models.get_model("googlenet", weights=None, init_weights=False).state_dict()
    torch.save(state, tmp_path / "g.pth")
    # The download itself is the only part that is replaced.
    monkeypatch.setattr(models.GoogLeNet_Weights, "get_state_dict", lambda *args, **kwargs: dict(state))
    downloaded, local = (_small("googlenet", pretrained=source) for source in (True, tmp_path / "g.pth"))
    batch = torch.rand(1, 3, 64, 64)
    assert torch.equal(downloaded(batch), local(batch))
    assert downloaded.weights_hash == local.weights_hash
    assert downloaded.network.transform_input
    assert not _small("googlenet").network.transform_input


def test_failed_download_is_one_line(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("try\nagain")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(ValueError, match=r"torchvision/resnet18: its weights could not be downloaded \(OSError\)"):
        backbones.create("torchvision/resnet18")


def test_vision_transformer_takes_the_size_of_its_weights(monkeypatch):
    monkeypatch.setitem(models.ViT_B_32_Weights.DEFAULT.meta, "min_size", (64, 64))
    backbone = _small("vit_b_32")
    assert backbone.model_options == {"image_size": 64}

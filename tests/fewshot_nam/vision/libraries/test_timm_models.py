import os
from pathlib import Path

import pytest
import torch
from PIL import Image

import backbones
from fewshot_nam.vision.libraries import timm_models

timm = pytest.importorskip("timm")

DATA = os.environ.get("FEWSHOT_DATA")
IMAGE = Image.linear_gradient("L").resize((200, 150))


def _small(model, **given):
    return backbones.create(f"timm/{model}", **{"pretrained": False, **given})


@pytest.mark.parametrize(
    "model", ["test_resnet", "test_vit", "test_efficientnet", "mobilenetv3_small_050", "test_vit.r160_in1k"]
)
def test_features_are_those_before_the_classifier(tmp_path, model):
    torch.manual_seed(0)
    whole = timm.create_model(model).eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    backbone = _small(model, pretrained=tmp_path / "whole.pth")
    batch = backbone.transform(IMAGE).unsqueeze(0)
    features = backbone(batch)
    assert features.shape == (1, backbone.feature_dim)
    torch.testing.assert_close(whole.get_classifier()(features), whole(batch))


def test_transform_is_that_of_the_weights():
    backbone = _small("test_resnet")
    config = timm.data.resolve_model_data_config(timm.create_model("test_resnet"))
    expected = timm.data.create_transform(**config, is_training=False)
    assert torch.equal(backbone.transform(IMAGE), expected(IMAGE.convert("RGB")))


@pytest.mark.parametrize("size", [32, [3, 32, 32], (3, 32, 32)])
def test_transform_takes_other_settings(size):
    options = {"input_size": size, "mean": 0.5, "std": [0.5, 0.25, 1.0], "crop_pct": 1.0, "interpolation": "nearest"}
    backbone = _small("test_resnet", transform_options=options)
    pixels = backbone.transform(Image.new("L", (50, 40), 255))
    assert pixels.shape == (3, 32, 32)
    assert pixels[:, 5, 5].tolist() == [1.0, 2.0, 0.5]
    assert backbone.transform_id.endswith(
        '{"crop_mode": "center", "crop_pct": 1.0, "input_size": [3, 32, 32], "interpolation": "nearest", '
        '"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 1.0]}'
    )


def test_transform_id_tells_close_settings_apart():
    ids = {_small("test_resnet", transform_options={"mean": mean}).transform_id for mean in (0.5, 0.500001)}
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("crop_size", 3, "has no transform option 'crop_size': there is input_size, crop_pct"),
        ("input_size", "large", "input_size is a side or"),
        ("input_size", [1, 32, 32], "input_size is a side or"),
        ("input_size", 0, "input_size is a side or"),
        ("input_size", True, "input_size is a side or"),
        ("input_size", 999_999, "at most 4096, got 999999"),
        ("crop_pct", 1.5, "crop_pct is in"),
        ("crop_pct", 1e-320, r"crop_pct is in \[0.1, 1\], got 1e-320"),
        ("crop_pct", 1e-4, "crop_pct is in"),
        ("crop_mode", "middle", "crop_mode is one of center, squash, border, got 'middle'"),
        ("interpolation", "random", "interpolation is one of nearest, bilinear, bicubic"),
        ("std", 0, "std is a positive number"),
    ],
)
def test_wrong_transform_options_are_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        _small("test_resnet", transform_options={option: value})


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "hrnet_w18_small"])
def test_unknown_model_option_is_named_with_those_there_are(model):
    with pytest.raises(ValueError, match=f"timm/{model} has no model option 'padding': there is .*in_chans"):
        _small(model, model_options={"padding": "same"})


@pytest.mark.parametrize("option", ["num_classes", "checkpoint_path", "pretrained_cfg_overlay"])
def test_options_that_create_sets_are_refused(option):
    with pytest.raises(ValueError, match=f"model option '{option}' is set by backbones.create itself"):
        _small("test_resnet", model_options={option: 10})


def test_size_that_the_model_cannot_take_is_found_at_once():
    with pytest.raises(
        ValueError, match=r"timm/vit_tiny_patch16_224 does not take the images \(3, 96, 96\) of its transform"
    ):
        _small("vit_tiny_patch16_224", transform_options={"input_size": 96})
    backbone = _small("vit_tiny_patch16_224", transform_options={"input_size": 96}, model_options={"img_size": 96})
    assert backbone(backbone.transform(IMAGE).unsqueeze(0)).shape == (1, backbone.feature_dim)


def test_weights_of_another_size_are_fitted_as_timm_does(tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    options = {"transform_options": {"input_size": 96}, "model_options": {"img_size": 96}}
    backbone = _small("test_vit", pretrained=tmp_path / "vit.pth", **options)
    assert backbone.network.pos_embed.shape[1] == 1 + (96 // 16) ** 2


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"vit\.pth does not fit timm/test_resnet: of \d+ keys \d+ missing \(conv1"):
        _small("test_resnet", pretrained=tmp_path / "vit.pth")


def test_model_options_change_the_hash_of_equal_weights(tmp_path):
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "m.pth")
    plain, same = (
        _small("test_efficientnet", pretrained=tmp_path / "m.pth", model_options=options)
        for options in ({}, {"pad_type": "same"})
    )
    assert plain.weights_hash != same.weights_hash


def test_failed_download_is_one_line(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("try\nagain")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"timm/resnet18: its weights could not be downloaded \(ConnectionError\)"):
        backbones.create("timm/resnet18")


def test_model_without_published_weights_says_so():
    published = {name.partition(".")[0] for name in timm.list_pretrained()}
    model = next(name for name in timm.list_models() if name not in published)
    with pytest.raises(ValueError, match=f"timm/{model}: timm has no weights for it: give a file of weights"):
        backbones.create(f"timm/{model}")


@pytest.mark.skipif(DATA is None, reason="FEWSHOT_DATA names no folder with weights and Tiny ImageNet")
def test_imagenet_weights_tell_classes_apart():
    file = Path(DATA) / "weights" / "mobilenetv2_100_imagenet.safetensors"
    backbone = backbones.create(
        "timm/mobilenetv2_100",
        pretrained=file,
        model_options={"pad_type": "same"},
        transform_options={"mean": 0.5, "std": 0.5, "input_size": 160, "crop_pct": 1.0},
    )
    assert backbone.feature_dim == 1280
    folders = sorted(path for path in (Path(DATA) / "tiny-imagenet" / "novel").iterdir() if path.is_dir())[:5]
    images = [sorted(folder.rglob("*.JPEG") or folder.rglob("*"))[:10] for folder in folders]
    batch = torch.stack([backbone.transform(Image.open(path)) for paths in images for path in paths])
    features = torch.nn.functional.normalize(backbone(batch), dim=-1).reshape(5, 10, -1)
    scores = features[:, 5:] @ features[:, :5].mean(dim=1).T
    accuracy = (scores.argmax(dim=-1) == torch.arange(5)[:, None]).float().mean()
    assert accuracy >= 0.7  # chance is 0.2; the usual accuracy over many episodes is 0.84


def test_images_are_not_scaled_to_gigabytes_before_the_crop():
    """A file named 4,096 pixels of which a ten-thousandth is used; 4,096 pixels with the usual crop stay possible."""
    network = _small("test_resnet").network
    _, identity = timm_models.timm_transform(network, {"input_size": (3, 4096, 4096), "crop_pct": 0.875})
    assert "4096" in identity
    with pytest.raises(
        ValueError, match=r"crop_pct 0.1 with input_size \[3, 4096, 4096\] scales images to 40,960 pixels"
    ):
        timm_models.timm_transform(network, {"input_size": (3, 4096, 4096), "crop_pct": 0.1})

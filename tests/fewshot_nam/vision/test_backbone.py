import copy
import pickle

import pytest
import torch
from PIL import Image
from torch import nn

from backbones import Backbone
from fewshot_nam.heads import BaseStatistics


def _transform(image):
    return torch.ones(3, 8, 8)


def _network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _backbone(network=None, **given):
    return Backbone("mine", network or _network(), _transform, "ones 8x8", **given)


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_backbone_measures_its_width(images):
    backbone = _backbone()
    assert backbone.feature_dim == 5
    assert backbone(images).shape == (2, 5)
    assert (backbone.name, backbone.transform_id) == ("mine", "ones 8x8")


def test_backbone_stays_frozen_when_told_to_train(images):
    backbone = _backbone(_network().train())
    before = backbone(images)
    assert backbone.train() is backbone
    nn.Sequential(backbone).train()
    assert not any(module.training for module in backbone.modules())
    assert torch.equal(backbone(images), before)
    assert torch.equal(backbone(images), before)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not before.requires_grad


def test_backbone_refuses_what_is_not_a_batch(images):
    with pytest.raises(ValueError, match=r"backbone mine: images need shape \(B, C, H, W\), got \(3, 8, 8\)"):
        _backbone()(images[0])


def test_backbone_refuses_images_that_change_the_width():
    backbone = _backbone(nn.Flatten())
    with pytest.raises(ValueError, match=r"give features \(2, 300\) where \(B, 192\) is due"):
        backbone(torch.rand(2, 3, 10, 10))


def test_backbone_refuses_a_network_that_cannot_take_its_transform():
    with pytest.raises(ValueError, match=r"backbone mine does not take the images \(3, 8, 8\)"):
        _backbone(nn.Conv2d(1, 5, 3))


def test_backbone_refuses_a_network_without_flat_features():
    with pytest.raises(ValueError, match=r"has to give features \(B, D\), one image gives \(1, 5, 6, 6\)"):
        _backbone(nn.Conv2d(3, 5, 3))


def test_weights_hash_is_the_same_for_equal_weights():
    first, second = _backbone(), _backbone()
    assert first.weights_hash == second.weights_hash == copy.deepcopy(first).weights_hash
    assert len(first.weights_hash) == 64


def _other_weight(backbone):
    backbone.network[0].weight[0, 0, 0, 0] += 1e-6


def _other_buffer(backbone):
    backbone.network[1].running_mean[1] = 1e-6


def _other_dtype(backbone):
    # All zeros in eight bytes either way.
    backbone.network[1].num_batches_tracked = backbone.network[1].num_batches_tracked.double()


def _other_shape(backbone):
    backbone.network[0].weight = nn.Parameter(backbone.network[0].weight.reshape(5, 9, 3))


def _other_name(backbone):
    backbone.name = "yours"


def _other_options(backbone):
    backbone.model_options["pad_type"] = "same"


@pytest.mark.parametrize(
    "change", [_other_weight, _other_buffer, _other_dtype, _other_shape, _other_name, _other_options]
)
def test_weights_hash_changes_with_whatever_changes_features(change):
    backbone = _backbone()
    before = backbone.weights_hash
    with torch.no_grad():
        change(backbone)
    assert backbone.weights_hash != before


def test_weights_hash_takes_options_that_are_classes():
    first, second = (_backbone(model_options={"act_layer": layer}) for layer in (nn.ReLU, nn.GELU))
    assert first.weights_hash != second.weights_hash
    assert first.weights_hash == _backbone(model_options={"act_layer": nn.ReLU}).weights_hash


def test_base_statistics_follow_the_weights():
    base = BaseStatistics.from_features(torch.eye(5)[:4], list("aabb"))
    backbone = _backbone(base_statistics=base, base_classes=["a", "b"])
    assert backbone.base_classes == ["a", "b"]
    assert torch.equal(backbone.base_statistics.prototypes, base.prototypes)
    assert backbone.base_statistics.counts.tolist() == [2, 2]
    assert torch.equal(backbone.base_statistics.within_covariance, base.within_covariance)
    assert backbone.to("meta").base_statistics.mean.device.type == "meta"
    assert not [key for key in backbone.state_dict() if "base" in key]
    assert (_backbone().base_statistics, _backbone().base_classes) == (None, None)


def test_base_prototypes_are_an_old_word_for_base_statistics():
    with pytest.warns(DeprecationWarning, match="base_prototypes= is deprecated .* use base_statistics="):
        backbone = _backbone(base_prototypes=torch.ones(2, 5), base_classes=["a", "b"])
    with pytest.warns(
        DeprecationWarning, match=r"Backbone\.base_prototypes is deprecated .* use base_statistics\.prototypes"
    ):
        assert torch.equal(backbone.base_prototypes, torch.ones(2, 5))
    with pytest.raises(TypeError, match="give base_statistics alone"):
        _backbone(base_prototypes=torch.ones(2, 5), base_statistics=backbone.base_statistics)


@pytest.mark.parametrize(
    ("prototypes", "classes"), [(torch.ones(2, 4), ["a", "b"]), (torch.ones(3, 5), ["a", "b"]), (None, ["a", "b"])]
)
def test_base_statistics_must_match_classes_and_width(prototypes, classes):
    base = None if prototypes is None else BaseStatistics.from_prototypes(prototypes)
    with pytest.raises(ValueError, match=r"2 base classes and 5 features need base prototypes \(2, 5\), got"):
        _backbone(base_statistics=base, base_classes=classes)


def test_backbone_can_be_sent_to_a_worker(images):
    backbone = _backbone()
    copied = pickle.loads(pickle.dumps(backbone))
    assert torch.equal(copied(images), backbone(images))
    assert torch.equal(copied.transform(Image.new("L", (4, 4))), torch.ones(3, 8, 8))

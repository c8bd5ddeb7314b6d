"""Any vision model becomes one with a memory: its features and its transform are found, and it is left as it was."""

import copy

import pytest
import torch
from torch import nn

import backbones
from fewshot_nam import attach
from fewshot_nam.heads import BaseStatistics, CosineHead, KeptClassifierHead, NAMHead, WriteRuleHead
from fewshot_nam.vision.saving import weights_digest

# One of each family, as small as it can be made, with random weights: model options and side of the image. In float64, since
# with such weights some give features to all images that are the same to seven digits.
TIMM = {
    "resnet10t": ({}, 32),
    "seresnext26t_32x4d": ({}, 32),
    "densenet121": ({}, 32),
    "ese_vovnet19b_dw": ({}, 32),
    "dla46_c": ({}, 32),  # classifies by a convolution
    "hgnetv2_b0": ({}, 32),
    "regnetx_002": ({}, 32),
    "regnety_002": ({}, 32),
    "efficientnet_b0": ({}, 32),
    "efficientnet_lite0": ({}, 32),
    "mixnet_s": ({}, 32),
    "mnasnet_small": ({}, 32),
    "rexnet_100": ({}, 32),
    "tinynet_e": ({}, 32),
    "mobilenetv2_035": ({}, 32),
    "mobilenetv3_small_050": ({}, 32),
    "mobilenetv4_conv_small_035": ({}, 32),
    "mobileone_s0": ({}, 32),
    "lcnet_035": ({}, 32),
    "ghostnet_050": ({}, 32),
    "convnext_atto": ({}, 32),
    "convnextv2_atto": ({}, 32),
    "inception_next_atto": ({}, 32),
    "edgenext_xx_small": ({}, 32),
    "fasternet_t0": ({}, 32),
    "starnet_s1": ({}, 32),
    "mambaout_femto": ({}, 32),
    "efficientvit_b0": ({}, 32),
    "fastvit_t8": ({}, 64),
    "mobilevit_xxs": ({}, 64),
    "repvit_m0_9": ({}, 64),
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 32),
    "deit3_small_patch16_224": ({"img_size": 32, "depth": 2}, 32),
    "deit_tiny_distilled_patch16_224": ({"img_size": 32, "depth": 2}, 32),  # two classifiers
    "eva02_tiny_patch14_224": ({"img_size": 28, "depth": 2}, 28),
    "cait_xxs24_224": ({"img_size": 32, "depth": 2}, 32),
    "xcit_nano_12_p16_224": ({"img_size": 32, "depth": 2}, 32),
    "convit_tiny": ({"img_size": 32, "depth": 3, "local_up_to_layer": 1}, 32),
    "levit_128s": ({"img_size": 64}, 64),  # two classifiers, each with a normalisation before it
    "pit_ti_224": ({"img_size": 64}, 64),
    "coat_lite_tiny": ({"img_size": 32}, 32),
    "pvt_v2_b0": ({}, 32),
    "hiera_tiny_224": ({"img_size": 64}, 64),
    "coatnet_nano_rw_224": ({"img_size": 64}, 64),
    "swin_tiny_patch4_window7_224": ({"img_size": 56, "depths": (1, 1, 1, 1), "embed_dim": 24}, 56),
    "swinv2_tiny_window8_256": ({"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": 24, "window_size": 2}, 64),
    "resmlp_12_224": ({}, 224),
    "gmlp_ti16_224": ({}, 224),
}
TORCHVISION = {
    "alexnet": ({}, 64),
    "vgg11": ({}, 32),
    "resnet18": ({}, 32),
    "resnext50_32x4d": ({}, 32),
    "densenet121": ({}, 32),
    "googlenet": ({"init_weights": False}, 32),
    "inception_v3": ({"init_weights": False}, 75),
    "squeezenet1_1": ({}, 32),  # classifies by a convolution
    "mobilenet_v2": ({}, 32),
    "mobilenet_v3_small": ({}, 32),
    "efficientnet_v2_s": ({}, 32),
    "regnet_x_400mf": ({}, 32),
    "regnet_y_400mf": ({}, 32),
    "shufflenet_v2_x0_5": ({}, 32),
    "mnasnet0_5": ({}, 32),
    "convnext_tiny": ({}, 32),
    "swin_t": ({}, 32),
}
several_weights = pytest.mark.filterwarnings("ignore:attach. torchvision prepares images differently")


def timm_model(name, **options):
    torch.manual_seed(0)
    return pytest.importorskip("timm").create_model(name, num_classes=3, **options)


def torchvision_model(name, **options):
    torch.manual_seed(0)
    return pytest.importorskip("torchvision").models.get_model(name, num_classes=3, **options)


def learns_two_images(nam, painted):
    nam.learn([painted(0), painted(1)], ["a", "b"])
    assert nam.predict([painted(1), painted(0)]) == ["b", "a"]


def linear_logits(model, features):
    """What the model's own classifier says of features; ``None`` where it is not one linear layer."""
    classifier = model.get_classifier()
    return classifier(features) if isinstance(classifier, nn.Linear) else None


def as_it_was(model, before):
    return model.training and all(
        p.requires_grad and torch.equal(p, other)
        for p, other in zip(model.state_dict(keep_vars=True).values(), before, strict=True)
        if p.is_floating_point() and isinstance(p, nn.Parameter)
    )


@pytest.mark.parametrize("name", TIMM)
def test_a_timm_model_learns(name, painted):
    options, size = TIMM[name]
    model = timm_model(name, **options)
    before = [value.double() for value in model.state_dict().values()]
    nam = attach(model.double(), transform_options={"input_size": size})
    assert nam.backbone.name == f"timm/{model.pretrained_cfg['architecture']}"
    learns_two_images(nam, painted)
    assert as_it_was(model, before)
    ready = nam.backbone.transform(painted(2)).unsqueeze(0).double()
    model.eval()
    with torch.no_grad():
        logits = linear_logits(model, nam.features(ready))
        if logits is not None:
            torch.testing.assert_close(logits, model(ready), rtol=1e-3, atol=1e-4)


@several_weights
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", TORCHVISION)
def test_a_torchvision_model_learns(name, painted):
    options, size = TORCHVISION[name]
    model = torchvision_model(name, **options)
    nam = attach(model.double(), transform_options={"resize_size": size, "crop_size": size})
    assert nam.backbone.name == f"torchvision/{name}"
    learns_two_images(nam, painted)
    assert model.training


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_vit", "test_efficientnet"])
def test_features_are_those_of_the_backbone_by_name(name, painted, tmp_path):
    model = timm_model(name)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    options = {"input_size": 160}
    backbone = backbones.create(f"timm/{name}", tmp_path / "weights.pt", transform_options=options)
    behind = attach(model, transform_options=options)
    named = attach(f"timm/{name}", weights=tmp_path / "weights.pt", transform_options=options)
    expected = backbone(backbone.transform(painted(0)).unsqueeze(0))
    assert torch.equal(behind.features(painted(0)), expected)
    assert torch.equal(named.features(painted(0)), expected)
    named.learn(painted(0), "a").save(tmp_path / "a.safetensors")
    inside = attach(copy.deepcopy(model), in_place=True, transform_options=options)
    for other in (behind, inside, attach(backbone)):
        assert torch.equal(other.load(tmp_path / "a.safetensors")(painted(1)), named(painted(1)))


# --- transforms


def test_torchvision_weights_and_options_say_how_images_are_prepared(painted):
    models = pytest.importorskip("torchvision").models
    model = torchvision_model("mobilenet_v2")
    with pytest.warns(
        UserWarning, match="differently for MobileNet_V2_Weights.IMAGENET1K_V1, MobileNet_V2_Weights.IMAGENET1K_V2"
    ):
        default = attach(model)
    chosen = attach(model, transform=models.MobileNet_V2_Weights.IMAGENET1K_V1)
    wanted = models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()(painted(0))
    assert torch.equal(chosen.backbone.transform(painted(0)), wanted)
    assert not torch.equal(default.backbone.transform(painted(0)), wanted)
    by_hand = attach(model, transform=models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms())
    assert torch.equal(by_hand.backbone.transform(painted(0)), wanted)


def test_a_timm_model_has_its_own_transform(painted):
    timm = pytest.importorskip("timm")
    model = timm_model("test_resnet")
    config = timm.data.resolve_data_config(model=model)
    wanted = timm.data.create_transform(**config, is_training=False)(painted(0))
    assert torch.equal(attach(model).backbone.transform(painted(0)), wanted)


# --- layers that are named


def test_features_are_what_goes_into_a_classifier_or_comes_out_of_a_layer(tiny, transform, painted):
    model = tiny().eval()
    ready = transform(painted(0)).unsqueeze(0)
    with torch.no_grad():
        maps = model.norm(model.stem(ready))
        pooled = model.pool(maps.relu()).flatten(1)
    wanted = {
        ("classifier", "fc"): pooled,
        ("classifier", "drop"): pooled,
        ("layer", "pool"): pooled,
        ("layer", "fc"): model.fc(pooled),
        ("layer", "norm"): maps.mean(dim=(2, 3)),
        ("classifier", "pool"): maps.relu().mean(dim=(2, 3)),
    }
    for (how, name), features in wanted.items():
        nam = attach(model, transform=transform, **{how: name})
        torch.testing.assert_close(nam.features(painted(0)), features)
        learns_two_images(nam, painted)
    own = attach(model, layer="norm", transform=transform, pool=lambda taken: taken.amax(dim=(2, 3)))
    torch.testing.assert_close(own.features(painted(0)), maps.amax(dim=(2, 3)))


def test_the_model_given_is_left_as_it_is(tiny, transform, painted):
    model = tiny()
    before = copy.deepcopy(model)
    nam = attach(model, classifier="fc", transform=transform).learn(painted(0), "a")
    answer = nam(painted(1))
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    ready = transform(painted(0)).unsqueeze(0)
    assert torch.equal(model.eval()(ready), before.eval()(ready))
    with torch.no_grad():
        model.stem.weight.add_(1)  # to train it further changes nothing here
    assert torch.equal(nam(painted(1)), answer)


class Tokens(nn.Module):
    """A network whose features are a sequence, and with a layer that it never uses."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.idle, self.fc = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, images):
        return self.fc(self.embed(images.mean(dim=1)).mean(dim=1))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_layer_of_torchscript_is_refused_in_words():
    """It was "register_forward_pre_hook is not supported on ScriptModules"."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    for made in (torch.jit.trace(network, torch.zeros(1, 3, 2, 2)), torch.jit.script(network)):
        with pytest.raises(
            ValueError, match=r"layer '1' is of TorchScript, where none can be read: attach to the model"
        ):
            attach(made, layer="1", transform=lambda image: torch.zeros(3, 2, 2))


def test_layers_that_do_not_do_are_refused(transform):
    with pytest.raises(ValueError, match=r"Tokens has no layer 'head'; its last are: .*fc"):
        attach(Tokens(), layer="head", transform=transform)
    with pytest.raises(ValueError, match=r"layer 'embed' gives \(1, 16, 8\), .*: pass pool="):
        attach(Tokens(), layer="embed", transform=transform)
    with pytest.raises(ValueError, match="layer 'idle' took no part in the forward pass of Tokens"):
        attach(Tokens(), layer="idle", transform=transform)
    assert attach(Tokens(), layer="embed", transform=transform, pool=lambda t: t[:, 0]).backbone.feature_dim == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Tokens is no classifier of timm or torchvision: pass classifier=.*fc"),
        ({"classifier": "fc"}, "how images are prepared for .*Tokens is not known: pass transform="),
        ({"classifier": "fc", "layer": "embed"}, "each say where features are: give one"),
        ({"classifier": "fc", "weights": False}, "weights cannot be given with a module"),
        ({"classifier": "fc", "model_options": {}}, "model_options cannot be given with a module"),
        ({"classifier": "fc", "transform": nn.Identity(), "transform_options": {"a": 1}}, "leave them out"),
        ({"layer": "embed", "in_place": True, "transform": nn.Identity()}, "in_place needs one classifier .* has 0 classifiers"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        attach(Tokens(), **arguments)


def test_the_default_head_knows_the_base_classes_of_the_backbone():
    backbone = backbones.create("conv4")
    known = attach("conv4").head.base_statistics
    assert torch.equal(known.prototypes, backbone.base_statistics.prototypes)
    plain = backbones.Backbone("plain", nn.Flatten(), backbone.transform, "ink")
    assert attach(plain).head.base_statistics is None


def test_names_and_backbones_take_what_is_theirs(painted):
    nam = attach("conv4", CosineHead(), keep_classes=True)
    assert nam.classes == backbones.create("conv4").base_classes
    assert isinstance(nam.learn(painted(0), "new").head, CosineHead)
    with pytest.raises(TypeError, match=r"head must be a head, such as .*create\('cosine'\), got str 'nam'"):
        attach("conv4", head="nam")
    with pytest.raises(ValueError, match="classifier cannot be given with a name"):
        attach("conv4", classifier="fc")
    with pytest.raises(ValueError, match="transform cannot be given with a Backbone"):
        attach(nam.backbone, transform=lambda image: image)
    with pytest.raises(ValueError, match="no backbone 'conv44'"):
        attach("conv44")
    with pytest.raises(TypeError, match="model is a module or a name such as 'timm/resnet18', got int"):
        attach(4)
    with pytest.raises(ValueError, match="attach the model first, then compile"):
        attach(torch.compile(Tokens()), classifier="fc")


# --- in place


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_a_timm_model_in_place_runs_as_before_and_gives_the_scores(name, painted):
    model = timm_model(name)
    ready = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model.eval().forward_features(ready)
    model.train()
    nam = attach(model, in_place=True)
    assert model.get_classifier() is nam.head
    learns_two_images(nam, painted)
    assert torch.equal(model.forward_features(ready), before)
    assert torch.equal(model(ready), nam(ready))
    assert torch.equal(nam(ready), attach(timm_model(name)).learn([painted(0), painted(1)], ["a", "b"])(ready))
    answer = model(ready)
    model.train()
    assert torch.equal(model(ready), answer)
    assert not model.training
    with pytest.raises(ValueError, match="is a head already: it was attached in place"):
        attach(model)


def test_a_torchvision_model_in_place_gives_the_scores(painted):
    model = torchvision_model("resnet18")
    nam = attach(model, in_place=True, transform_options={"resize_size": 32, "crop_size": 32})
    learns_two_images(nam, painted)
    ready = nam.backbone.transform(painted(0)).unsqueeze(0)
    assert model.fc is nam.head
    assert torch.equal(model(ready), nam(ready))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_classifiers_that_only_training_uses_have_no_part_in_the_hash():
    model = torchvision_model("googlenet", init_weights=False)
    options = {"resize_size": 32, "crop_size": 32}
    behind = attach(model, transform_options=options)
    inside = attach(model, in_place=True, transform_options=options)
    assert weights_digest(behind.backbone) == weights_digest(inside.backbone)


@pytest.mark.parametrize(
    ("name", "has"),
    [("deit_tiny_distilled_patch16_224", "2 classifiers"), ("dla46_c", "a convolution for a classifier")],
)
def test_in_place_is_refused_where_no_head_fits(name, has):
    options, size = TIMM[name]
    with pytest.raises(ValueError, match=f"in_place needs one classifier that takes features .* has {has}"):
        attach(timm_model(name, **options), in_place=True, transform_options={"input_size": size})


# --- classes that are kept


@pytest.fixture
def ordinary(painted):
    return [painted(i) for i in range(1000, 1100)]


def test_classes_of_the_classifier_are_kept_as_rows(tiny, transform, painted, ordinary):
    model = tiny()
    arguments = {"classifier": "fc", "transform": transform, "base_images": ordinary}
    nam = attach(model, keep_classes=["a", "b", "c", "d", 4], **arguments)
    assert nam.classes == ["a", "b", "c", "d", 4]
    assert attach(model, keep_classes=True, **arguments).classes == [0, 1, 2, 3, 4]
    # By cosine: what the classifier would say of centred features without bias, class weights counting by the root of their length.
    with torch.no_grad():
        features = nam.features([painted(i) for i in range(30)])
        mean = nam.features(ordinary).mean(dim=0)
        cosines = torch.nn.functional.normalize(features - mean) @ torch.nn.functional.normalize(model.fc.weight).T
        lengths = torch.linalg.vector_norm(model.fc.weight, dim=1)
    assert isinstance(nam.head, KeptClassifierHead)
    torch.testing.assert_close(nam.head.mean, mean)
    torch.testing.assert_close(nam.head(features), cosines * (lengths / lengths.mean()).sqrt(), atol=1e-5, rtol=1e-4)
    del arguments["base_images"]
    own = attach(model, CosineHead(base=BaseStatistics.from_mean(mean)), keep_classes=True, **arguments)
    torch.testing.assert_close(own.head(features), cosines, atol=1e-5, rtol=1e-4)


def test_what_new_classes_take_from_kept_ones_is_told(tiny, transform, painted, ordinary):
    arguments = {"classifier": "fc", "transform": transform, "keep_classes": list("abcde")}
    nam = attach(tiny(), base_images=ordinary, **arguments)
    assert nam.base_cost == (0.0, 0.0, 100)
    for i in range(6):
        nam.learn([painted(2 * i), painted(2 * i + 1)], i)
    assert nam.base_cost.limit == pytest.approx(0.02 * 6**0.5)
    assert nam.base_cost.share <= nam.base_cost.limit
    assert nam.forget([3, "a"]).base_cost.limit == pytest.approx(0.02 * 5**0.5)
    assert nam.snapshot().base_cost == nam.base_cost
    assert attach(tiny(), CosineHead(base=BaseStatistics.from_mean(torch.ones(12))), **arguments).base_cost is None
    assert attach(tiny(), classifier="fc", transform=transform, base_images=ordinary).base_cost is None


def test_a_new_class_is_erased_from_the_rows_that_are_kept(tiny, transform, painted, ordinary):
    mean = attach(tiny(), classifier="fc", transform=transform).features(ordinary).mean(dim=0)
    head = WriteRuleHead("parallel", p_erase=0.9, base=BaseStatistics.from_mean(mean))
    nam = attach(tiny(), head, classifier="fc", transform=transform, keep_classes=True)
    before = nam(painted(0))
    after = nam.learn(painted(0), "new")(painted(0))
    assert nam.predict(painted(0)) == "new"
    torch.testing.assert_close(after[:, :5], before / 10)  # a tenth of what was there is left


def test_classes_that_cannot_be_kept_are_refused(tiny, transform, ordinary):
    given = {"transform": transform, "base_images": ordinary}
    with pytest.raises(ValueError, match="keep_classes has 2 names, and the model's classifier 5 classes"):
        attach(tiny(), classifier="fc", keep_classes=["a", "b"], **given)
    with pytest.raises(ValueError, match="this model has no single linear classifier"):
        attach(tiny(), layer="pool", keep_classes=True, **given)
    with pytest.raises(ValueError, match="class 'a' is known already"):
        attach(tiny(), classifier="fc", keep_classes=list("abcda"), **given)
    with pytest.raises(
        ValueError,
        match="keep_classes needs base_images, a hundred ordinary images of what the classifier sees, or a head",
    ):
        attach(tiny(), classifier="fc", keep_classes=True, transform=transform)
    with pytest.raises(ValueError, match="keep_classes cannot take this head"):
        attach(
            tiny(),
            NAMHead(base=BaseStatistics.from_mean(torch.ones(12))),
            classifier="fc",
            keep_classes=True,
            transform=transform,
        )
    with pytest.raises(ValueError, match="base_images are for the head that attach makes"):
        attach(tiny(), CosineHead(), classifier="fc", **given)

"""Text embeddings of CLIP as a prior. The towers have random weights: what is tested is what is written, not how good it is."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fewshot_nam import attach
from fewshot_nam.heads import BaseStatistics, create
from fewshot_nam.memory.primitives import unit
from fewshot_nam.vision.text_prior import choose_text_shots, is_clip, text_embeddings, write_text

open_clip = pytest.importorskip("open_clip")
IMAGES = [np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8) for i in range(8)]
NO_MEAN = pytest.mark.filterwarnings("ignore:text. where images lie is not known")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    return open_clip.CLIP(24, vision, text).eval()


@pytest.fixture(scope="module")
def names_of(clip):
    return text_embeddings(clip, ["cat", "dog", "cow"])


def test_names_are_known_before_the_first_image_and_images_are_averaged_with_them(clip, names_of):
    model = attach(
        clip, create("cosine-centred", BaseStatistics.from_mean(torch.full((24,), 0.01))), text=["cat", "dog", "cow"]
    )
    assert model.classes == ["cat", "dog", "cow"]
    rows = torch.stack(list(names_of.values()))
    written = rows - rows.mean(dim=0) + 0.01
    torch.testing.assert_close(model.head.support, written)
    model.learn(IMAGES[0], "dog")
    image = model.features(IMAGES[0])[0] - 0.01
    prototype = unit(unit(unit(image) + unit(written[1] - 0.01)))
    query = model.features(IMAGES[1]) - 0.01
    torch.testing.assert_close(model(IMAGES[1])[:, 1], unit(query) @ prototype, rtol=1e-4, atol=1e-5)


def test_a_name_counts_as_many_images_as_are_asked_for(clip, names_of):
    head = write_text(create("cosine-centred", BaseStatistics.from_mean(torch.zeros(24))), names_of, text_shots=3)
    assert torch.bincount(head.targets).tolist() == [3, 3, 3]
    assert head.classes == ["cat", "dog", "cow"]


def test_features_are_those_of_the_image_tower_and_the_model_is_left_alone(clip):
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    model = attach(clip)
    ready = torch.stack([model.backbone.transform(image) for image in map(open_image, IMAGES)])
    with torch.no_grad():
        torch.testing.assert_close(model.features(IMAGES), unit(clip.encode_image(ready)))
    assert model.backbone.feature_dim == 24
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    assert all(parameter.requires_grad for parameter in clip.parameters())


def open_image(array):
    from PIL import Image

    return Image.fromarray(array)


def test_embeddings_of_several_prompts_are_averaged(clip):
    both = text_embeddings(clip, ["cat"], prompts=["a photo of a {}.", "{}"])["cat"]
    one, two = (text_embeddings(clip, ["cat"], prompts=[prompt])["cat"] for prompt in ("a photo of a {}.", "{}"))
    torch.testing.assert_close(both, unit(one + two))
    with torch.no_grad():
        plain = clip.encode_text(open_clip.SimpleTokenizer(context_length=77)(["a photo of a cat."]))
    torch.testing.assert_close(one, unit(plain)[0])


def test_ordinary_images_tell_where_images_lie(clip, names_of):
    model = attach(clip, base_images=IMAGES, text=["cat", "dog", "cow"])
    rows = torch.stack(list(names_of.values()))
    expected = rows - rows.mean(0) + model.features(IMAGES).mean(0)
    torch.testing.assert_close(model.head.support, expected)
    with pytest.warns(UserWarning, match="where images lie is not known"):
        attach(clip, text=["cat", "dog"])


@NO_MEAN
def test_a_memory_with_texts_is_saved_and_loaded(clip, tmp_path):
    model = attach(clip, text=["cat", "dog"]).learn(IMAGES[0], "cow")
    model.save(tmp_path / "memory.st")
    loaded = attach(clip).load(tmp_path / "memory.st")
    assert loaded.classes == ["cat", "dog", "cow"]
    torch.testing.assert_close(loaded(IMAGES[1]), model(IMAGES[1]))


@NO_MEAN
def test_a_tower_of_timm_takes_embeddings_after_its_projection():
    timm = pytest.importorskip("timm")
    tower = timm.create_model("test_vit", num_classes=16)
    embeddings = {name: torch.rand(16) for name in ("cat", "dog")}
    model = attach(tower, layer="head", text=embeddings)
    assert model.classes == ["cat", "dog"]
    with pytest.raises(ValueError, match=r"has shape \(16,\), the image features have width 64: .*layer='head'"):
        attach(tower, text=embeddings)
    with pytest.raises(ValueError, match="names in text= need a CLIP model of open_clip"):
        attach(tower, text=["cat"])
    rows = {name: row.tolist() if name == "cat" else row.numpy() for name, row in embeddings.items()}
    with pytest.raises(ValueError, match=r"has shape \(16,\)"):  # as those of torch
        attach(tower, text=rows)
    with pytest.raises(ValueError, match="is no row of numbers"):
        attach(tower, text={"cat": None})


def test_what_does_not_go_together_is_refused(clip, names_of):
    with pytest.raises(ValueError, match="layer cannot be given with a CLIP model"):
        attach(clip, layer="visual")
    with pytest.raises(ValueError, match="needs class names, and prompts"):
        text_embeddings(clip, ["cat"], prompts=["a photo"])
    for wrong in (0, 1.5, math.nan, True, 10**9):
        with pytest.raises(ValueError, match="text_shots must be a whole number from 1 to 10,000"):
            write_text(create("cosine"), names_of, wrong)
    with pytest.raises(ValueError, match="no class names"):
        write_text(create("cosine"), {})
    assert not is_clip(nn.Linear(2, 2))
    assert not is_clip("timm/resnet18")


def test_validation_classes_choose_how_much_a_name_counts():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 30, generator=generator)
    labels = [name for name in "abcd" for _ in range(12)]
    features = centres.repeat_interleave(12, 0) + 2.5 * torch.randn(48, 30, generator=generator) + 5
    mean = BaseStatistics.from_mean(torch.full((30,), 5.0))

    def head():
        return create("cosine-centred", mean)

    good = dict(zip("abcd", centres, strict=True))
    poor = dict(zip("abcd", torch.randn(4, 30, generator=generator), strict=True))
    assert choose_text_shots(good, features, labels, head=head) > 1, "names say more than one noisy image"
    assert choose_text_shots(poor, features, labels, head=head, shots=4) == 1
    with pytest.raises(ValueError, match="class 'a' has 12 images, and 12 are learned"):
        choose_text_shots(good, features, labels, head=head, shots=12)
    with pytest.raises(ValueError, match="an embedding for the name of every class"):
        choose_text_shots({"a": centres[0]}, features, labels)

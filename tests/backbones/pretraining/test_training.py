"""Pretraining: a run that is stopped ends at the same weights, and training learns what it is shown."""

import dataclasses

import pytest
import torch

from backbones.conv4 import Conv4
from backbones.conv5 import Conv5
from backbones.pretraining.omniglot_augment import InkExamples, InkRecipe, augment
from backbones.pretraining.photo_augment import PhotoExamples, PhotoRecipe
from backbones.pretraining.photo_augment import augment as change
from backbones.pretraining.training import CosineSoftmax, Pretraining, train

RECIPE = InkRecipe(epochs=3, batch_size=16, learning_rate=1e-2, seed=3)


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 24 images of three classes: a stroke down, across, or a square."""
    ink = torch.zeros(24, 56, 56, dtype=torch.uint8)
    labels = torch.arange(24) % 3
    for i, label in enumerate(labels.tolist()):
        at = 8 + i
        if label == 0:
            ink[i, 6:50, at : at + 5] = 255
        elif label == 1:
            ink[i, at : at + 3, 6:30] = 255
        else:
            ink[i, at : at + 14, at : at + 14] = 255
    return ink, labels


def run(checkpoint=None, recipe=RECIPE) -> Pretraining:
    torch.manual_seed(recipe.seed)
    return Pretraining(Conv4(8), InkExamples(*images(), recipe), recipe, checkpoint)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    whole = run()
    for _ in range(3):
        whole.run_epoch()
    run(tmp_path / "c.pt").run_epoch()
    resumed = run(tmp_path / "c.pt")
    assert resumed.epoch == 1
    resumed.run_epoch()
    torch.manual_seed(99)  # the global state plays no part once training has begun
    last = Pretraining(Conv4(8), InkExamples(*images(), RECIPE), RECIPE, tmp_path / "c.pt")
    last.run_epoch()
    assert last.epoch == 3
    for name, value in whole.model.state_dict().items():
        assert torch.equal(last.model.state_dict()[name], value), name


def test_every_epoch_sees_every_image_in_every_turn_once_in_an_order_of_its_own():
    training = run()
    orders: list[list[int]] = []
    batch = training.examples.batch

    def recorded(chosen: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        orders[-1].extend(chosen.tolist())
        return batch(chosen, generator)

    training.examples.batch = recorded  # type: ignore[method-assign]
    for _ in range(2):
        orders.append([])
        training.run_epoch()
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(4 * 24))
    assert orders[0] != orders[1]


def test_training_learns_what_it_is_shown():
    training = run(recipe=dataclasses.replace(RECIPE, epochs=12))
    seen: list[float] = []
    first = training.run_epoch(on_step=seen.append)
    assert len(seen) == training.steps_per_epoch == 6
    for _ in range(11):
        last = training.run_epoch()
    assert last["loss"] < 0.6 * first["loss"]
    assert last["accuracy"] > first["accuracy"] + 0.2


def test_a_checkpoint_of_another_recipe_or_other_classes_is_refused(tmp_path):
    run(tmp_path / "c.pt").run_epoch()
    with pytest.raises(ValueError, match=r"another recipe \(scale 20.0 not 7.0\): remove it"):
        run(tmp_path / "c.pt", dataclasses.replace(RECIPE, scale=7.0))
    ink, labels = images()
    with pytest.raises(ValueError, match="is for 12 classes, the data have 8"):
        Pretraining(Conv4(8), InkExamples(ink, labels % 2, RECIPE), RECIPE, tmp_path / "c.pt")


def test_augmented_images_depend_on_the_generator_alone_and_stay_in_range():
    ink = images()[0].float().div(255).unsqueeze(1)
    first, same, other = (augment(ink, RECIPE, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (24, 1, 28, 28)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1


def test_without_changes_augmenting_is_halving_the_side():
    still = dataclasses.replace(
        RECIPE, max_turn=0.0, max_shift=0.0, zoom=(1.0, 1.0), max_shear=0.0, thicken=0.0, blur=0.0, coarse=0.0
    )
    ink = torch.rand(5, 1, 56, 56)
    expected = torch.nn.functional.avg_pool2d(ink, 2)
    torch.testing.assert_close(augment(ink, still, torch.Generator()), expected, atol=1e-5, rtol=0)


PHOTOS = PhotoRecipe(epochs=8, batch_size=16, learning_rate=1e-2, side=32)


def photos() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 32 images of two classes: red above blue, or blue above red, in many shades."""
    labels = torch.arange(32) % 2
    images = torch.randint(0, 60, (32, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    upper = images[:, :, :32].clone()
    upper[torch.arange(32), 2 * labels] += 180
    lower = images[:, :, 32:].clone()
    lower[torch.arange(32), 2 - 2 * labels] += 180
    return torch.cat([upper, lower], dim=2), labels


def test_photographs_can_be_learned():
    torch.manual_seed(0)
    training = Pretraining(Conv5(4), PhotoExamples(*photos(), PHOTOS), PHOTOS)
    outcomes = [training.run_epoch() for _ in range(PHOTOS.epochs)]
    assert outcomes[-1]["loss"] < 0.5 * outcomes[0]["loss"]
    assert outcomes[-1]["accuracy"] > 0.9


def test_changed_photographs_depend_on_the_generator_alone_and_stay_in_range():
    levels = photos()[0].float() / 255
    first, same, other = (change(levels, PHOTOS, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (32, 3, 32, 32)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1


def test_a_photograph_without_changes_is_itself_or_its_mirror_image():
    still = dataclasses.replace(PHOTOS, side=64, smallest_part=1.0, stretch=1.0, light=0.0)
    levels = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    seen = change(levels, still, torch.Generator().manual_seed(3))
    straight = (seen - levels).abs().amax(dim=(1, 2, 3)) < 1e-4
    mirrored = (seen - levels.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert torch.all(straight ^ mirrored)
    assert straight.any()
    assert mirrored.any()


def test_a_part_of_a_photograph_stays_within_it():
    # Had a part reached over the edge, the reflection would bring the ramp's end twice.
    ramp = torch.linspace(0, 1, 64).expand(200, 3, 64, 64).contiguous()
    part = dataclasses.replace(PHOTOS, light=0.0)
    across = change(ramp, part, torch.Generator().manual_seed(4))[:, 0, 0]
    steps = across.diff(dim=-1)
    assert torch.all(steps.sign() == steps[:, :1].sign())


def test_training_goes_to_the_end_and_says_how_it_went(capsys):
    training = run()
    training.run_epoch()
    train(training, lambda: "all is well", check_every=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 2", "epoch 3"]
    assert all(line.endswith("%, all is well") for line in lines)


def test_training_logits_are_scaled_cosines():
    layer, features = CosineSoftmax(5, 3, scale=7.0), torch.randn(4, 5)
    expected = 7 * torch.cosine_similarity(features[:, None], layer.weight[None], dim=-1)
    torch.testing.assert_close(layer(features), expected)

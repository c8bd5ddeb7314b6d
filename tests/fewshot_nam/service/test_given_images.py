"""Images that a user gives: folders of them, what is left out, and how much memory it takes to read them."""

import io

import pytest
from PIL import Image, ImageFile

from fewshot_nam import attach
from fewshot_nam.service import given_images
from fewshot_nam.service.given_images import features_of, image_files, images_in_folder


def test_folders_and_files(digit_files, tmp_path):
    assert len(images_in_folder(str(digit_files[0][0].parent.parent))) == 400
    (tmp_path / "empty").mkdir()
    for folder, wrong in (
        ("", "no directory"),
        ("/none", "no directory"),
        (str(tmp_path / "empty"), "no class directories"),
    ):
        with pytest.raises(ValueError, match=wrong):
            images_in_folder(folder)
    assert image_files(["a.png", "b.txt", "c.JPG"]) == ["a.png", "c.JPG"]


def test_one_image_is_held_decoded_at_a_time(digit_files, monkeypatch):
    """A batch of small files with large images was held decoded until its thumbnails were made: 17 GB in 690 KB of files."""
    model, open_now, most = attach("conv4"), set(), []
    read = given_images.read_image

    class Held(Image.Image):
        def __del__(self):
            open_now.discard(id(self))

    def counted(path, most_pixels):
        image = read(path, most_pixels)
        image.__class__ = Held
        open_now.add(id(image))
        most.append(len(open_now))
        return image

    monkeypatch.setattr(given_images, "read_image", counted)
    found = features_of(model, digit_files[0][:5])
    assert found.values.shape == (5, model.backbone.feature_dim)
    assert max(most) <= 2  # the last one, and the one that takes its place


def test_an_image_of_too_many_pixels_is_left_out_before_it_is_decoded(digit_files, tmp_path, monkeypatch):
    Image.new("1", (9000, 8000)).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size < 20_000
    model = attach("conv4")
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # not called
    with pytest.raises(ValueError, match=r"large\.png: 9000 x 8000 pixels are too many: at most 64,000,000"):
        features_of(model, [tmp_path / "large.png"])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "I;16"])
def test_images_of_every_kind_have_a_thumbnail(mode, tmp_path):
    image = Image.new("L", (3000, 40), 200)
    image = image.convert(mode) if mode != "I;16" else image.convert("I").convert("I;16")
    found = features_of(attach("conv4"), [image])
    assert found.skipped == []
    assert Image.open(io.BytesIO(found.thumbnails[0])).size == (96, 1)

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.conv4 import ink_transform
from fewshot_nam.vision.image_transform import RGBTransform, opaque, without_addresses

SIZE = (5, 3)


def _pixels(image):
    assert image.mode == "RGB"
    assert image.size == SIZE
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


to_rgb = RGBTransform(_pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_transform_gets_rgb_of_every_mode(mode):
    assert (to_rgb(Image.new("RGB", SIZE, "white").convert(mode)) > 250).all()
    assert (to_rgb(Image.new("RGB", SIZE, "black").convert(mode)) < 5).all()


def test_transparent_images_lie_on_white_paper():
    clear = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    half = Image.new("RGBA", SIZE, (0, 0, 0, 128))
    assert (to_rgb(clear) == 255).all()
    assert (to_rgb(half) == 127).all()
    assert (ink_transform(clear) == 0).all()


def test_transparent_palette_colour_lies_on_white_paper():
    image = Image.new("P", SIZE, 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 1)
    image.info["transparency"] = 0
    pixels = to_rgb(image)
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]
    assert (pixels[:, 1:, 1:] == 255).all()


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_and_not_clipped(order):
    values = np.array([[0, 257, 300, 25700, 65535]] * 3)
    mode = "I;16" if order == "<u2" else "I;16B"
    image = Image.frombytes(mode, SIZE, values.astype(order).tobytes())
    assert to_rgb(image)[0, 0].tolist() == [0, 1, 1, 100, 255]
    assert opaque(image).mode == "L"


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_without_a_known_white_are_refused(mode):
    with pytest.raises(ValueError, match=f"mode '{mode}' does not say which value is white"):
        to_rgb(Image.new(mode, SIZE, 300))


def test_what_is_not_a_image_is_refused():
    with pytest.raises(TypeError, match=r"expected a PIL.Image.Image, got ndarray"):
        opaque(np.zeros(SIZE))


def test_opaque_leaves_its_input_alone():
    image = Image.new("RGBA", SIZE, (9, 8, 7, 100))
    before = image.tobytes()
    opaque(image)
    assert image.mode == "RGBA"
    assert image.tobytes() == before


def test_transform_can_be_sent_to_a_worker():
    copied = pickle.loads(pickle.dumps(RGBTransform(ink_transform)))
    assert torch.equal(copied(Image.new("L", SIZE, 51)), torch.full((1, 28, 28), 0.8))


def test_an_image_that_would_be_huge_once_resized_is_refused():
    transform = RGBTransform(lambda image: image.size)
    assert transform(Image.new("L", (1000, 1))) == (1000, 1)
    for size in ((30_000, 1), (1, 1001)):
        with pytest.raises(
            ValueError, match=f"an image of {size[0]}x{size[1]} pixels is too narrow .* factor of 1000: crop it"
        ):
            transform(Image.new("L", size))


def test_addresses_are_no_part_of_what_a_transform_is_called():
    assert without_addresses(repr(ink_transform)) == "<function ink_transform>"
    assert without_addresses("Resize(224)") == "Resize(224)"

"""One picture from a file: decoded whole and the right way up, or refused by name."""

import os

import numpy as np
import pytest
from PIL import Image

from fewshot_nam.io.image_io import UnreadablePicture, read_picture


def paint(path, shade=100, size=(6, 4), **options):
    Image.new("L", size, shade).save(path, **options)


def test_read_picture_turns_the_picture_as_its_exif_says(tmp_path):
    picture = Image.new("L", (6, 4), 200)
    picture.paste(0, (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    turned = read_picture(tmp_path / "a.png")
    assert turned.size == (4, 6)
    assert (turned.getpixel((3, 0)), turned.getpixel((0, 0))) == (0, 200)


def test_read_picture_with_a_broken_exif_block_is_read_as_it_stands(tmp_path):
    paint(tmp_path / "a.jpg", size=(6, 4), exif=b"Exif\0\0" + b"\xff" * 40)
    assert read_picture(tmp_path / "a.jpg").size == (6, 4)


def test_read_picture_decodes_wholly_and_leaves_no_file_open(tmp_path):
    paint(tmp_path / "a.png", 77)
    picture = read_picture(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    assert picture.getpixel((5, 3)) == 77
    if os.path.isdir("/proc/self/fd"):
        links = [os.path.realpath(f"/proc/self/fd/{entry}") for entry in os.listdir("/proc/self/fd")]
        assert not any(str(tmp_path) in link for link in links)


@pytest.mark.parametrize("kind", ["text", "empty", "cut.png", "cut.jpg", "broken.png"])
def test_unreadable_pictures_are_named_in_one_line(tmp_path, kind):
    path = tmp_path / (kind if "." in kind else f"{kind}.png")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))
    if kind == "text":
        path.write_text("not a picture")
    elif kind == "empty":
        path.touch()
    else:
        noise.save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if "cut" in kind else whole[:60] + b"\0" * 100 + whole[160:])
    with pytest.raises(UnreadablePicture, match=f"{path.name}: not a picture, or cut short") as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)

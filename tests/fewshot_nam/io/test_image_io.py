"""One image from a file: decoded whole and the right way up, or refused by name."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from fewshot_nam.io.image_io import UnreadableImage, decoded, read_image, upright


def paint(path, shade=100, size=(6, 4), **options):
    Image.new("L", size, shade).save(path, **options)


def test_read_image_turns_the_image_as_its_exif_says(tmp_path):
    image = Image.new("L", (6, 4), 200)
    image.paste(0, (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    turned = read_image(tmp_path / "a.png")
    assert turned.size == (4, 6)
    assert (turned.getpixel((3, 0)), turned.getpixel((0, 0))) == (0, 200)


def test_read_image_with_a_broken_exif_block_is_read_as_it_stands(tmp_path):
    paint(tmp_path / "a.jpg", size=(6, 4), exif=b"Exif\0\0" + b"\xff" * 40)
    assert read_image(tmp_path / "a.jpg").size == (6, 4)


def test_read_image_decodes_wholly_and_leaves_no_file_open(tmp_path):
    paint(tmp_path / "a.png", 77)
    image = read_image(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    assert image.getpixel((5, 3)) == 77
    if os.path.isdir("/proc/self/fd"):
        links = [os.path.realpath(f"/proc/self/fd/{entry}") for entry in os.listdir("/proc/self/fd")]
        assert not any(str(tmp_path) in link for link in links)


@pytest.mark.parametrize("kind", ["text", "empty", "cut.png", "cut.jpg", "broken.png"])
def test_unreadable_images_are_named_in_one_line(tmp_path, kind):
    path = tmp_path / (kind if "." in kind else f"{kind}.png")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))
    if kind == "text":
        path.write_text("not an image")
    elif kind == "empty":
        path.touch()
    else:
        noise.save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if "cut" in kind else whole[:60] + b"\0" * 100 + whole[160:])
    with pytest.raises(UnreadableImage, match=f"{path.name}: not an image, or cut short") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)


@pytest.mark.parametrize(
    ("brand", "module", "message"),
    [
        (
            b"heic",
            "pillow_heif",
            "a HEIC image, and the package that reads them is not installed: pip install pillow-heif",
        ),
        (b"avif", None, "an AVIF image, which this version of Pillow cannot read: update Pillow to 11.3 or later"),
    ],
)
def test_formats_that_take_another_package_say_which(tmp_path, monkeypatch, brand, module, message):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0" * 100)
    if module is not None:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(Image, "registered_extensions", dict)
    with pytest.raises(UnreadableImage, match=f"a.jpg: {message}"):
        read_image(tmp_path / "a.jpg")


def test_bytes_are_decoded_as_files_are(tmp_path):
    paint(tmp_path / "a.png", 77)
    assert decoded((tmp_path / "a.png").read_bytes(), "an upload").getpixel((0, 0)) == 77
    with pytest.raises(UnreadableImage, match="an upload: not an image, or cut short; mend"):
        decoded(b"\x89PNG", "an upload")


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)], ids=str)
def test_an_image_without_pixels_is_refused(size):
    with pytest.raises(UnreadableImage, match=rf"here: not an image, or cut short \({size[0]}x{size[1]} pixels\)"):
        upright(lambda: Image.new("L", size), "here")


@pytest.mark.parametrize("name", ["x.eps", "x.png"])
def test_no_program_is_run_for_an_image(tmp_path, monkeypatch, name):
    """Pillow hands PostScript to Ghostscript, a program in a language of its own, whatever the file is called."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/run\n")
    (tmp_path / "gs").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # it looks once for each process
    (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n(x) run\n")
    with pytest.raises(UnreadableImage, match="not an image"):
        read_image(tmp_path / name)
    assert not (tmp_path / "run").exists()

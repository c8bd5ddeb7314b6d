"""Images of every kind that people have: each becomes the right image, or an error that names it."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot_nam.io.image_io import UnreadableImage
from fewshot_nam.vision.image_batches import as_images, batches

RED, BLUE, WHITE = (200, 30, 40), (20, 40, 220), (255, 255, 255)


def plain(image):
    """A transform that keeps every pixel."""
    assert image.mode == "RGB"
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def corners(nam, images):
    """Return the colours of the top left and the bottom right pixel as the network gets them."""
    images, _ = as_images(images)
    (batch,) = batches(images, nam.backbone.transform, 8)
    return [tuple(int(v) for v in batch[0, :, y, x]) for y, x in ((0, 0), (-1, -1))], batch.shape[2:]


@pytest.fixture
def seen(attached):
    """A model whose transform keeps every pixel, behind the conversion to RGB that every found transform has."""
    nam = attached()
    nam.backbone.transform.transform = plain
    return nam


def two_colours(size=(6, 4)):
    """Red, with a blue pixel at the bottom right."""
    image = Image.new("RGB", size, RED)
    image.putpixel((size[0] - 1, size[1] - 1), BLUE)
    return image


def close(found, wanted, by=3):
    return all(
        abs(a - b) <= by for one, other in zip(found, wanted, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_images_of_every_type_are_the_same_image(seen, tmp_path):
    image = two_colours()
    image.save(tmp_path / "a.png")
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = corners(seen, image)
    assert expected == ([RED, BLUE], (4, 6))
    for form in (str(tmp_path / "a.png"), tmp_path / "a.png", array, tensor, tensor.float()):
        for given in (form, [form], iter([form])):
            assert corners(seen, given) == expected
    assert corners(seen, array[None]) == corners(seen, tensor[None]) == expected


def test_grey_arrays_and_tensors_are_grey_images(seen):
    grey = np.full((4, 6), 77, dtype=np.uint8)
    for form in (grey, grey[..., None], torch.from_numpy(grey)[None]):
        assert corners(seen, form)[0] == [(77, 77, 77)] * 2


def test_a_image_of_one_pixel_is_a_image(nam, seen, tmp_path):
    Image.new("RGB", (1, 1), RED).save(tmp_path / "one.png")
    assert corners(seen, tmp_path / "one.png") == ([RED, RED], (1, 1))
    assert nam.learn(tmp_path / "one.png", "red").predict(Image.new("RGB", (1, 1), RED)) == "red"


def test_images_of_16_bits_are_scaled_to_8(seen, tmp_path):
    Image.fromarray(np.array([[0, 257 * 100], [65535, 257 * 7]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert corners(seen, tmp_path / "deep.png") == ([(0, 0, 0), (7, 7, 7)], (2, 2))


def test_cmyk_images_get_their_colours(seen, tmp_path):
    two_colours((32, 32)).convert("CMYK").save(tmp_path / "print.jpg", quality=100, subsampling=0)
    with Image.open(tmp_path / "print.jpg") as kept:
        assert kept.mode == "CMYK"
    assert close(corners(seen, tmp_path / "print.jpg")[0][:1], [RED], by=6)


def test_a_palette_with_transparency_lies_on_white_paper(seen, tmp_path):
    image = Image.new("P", (6, 4), 1)
    image.putpalette([*BLUE, *RED])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "icon.gif", transparency=0)
    image.save(tmp_path / "icon.png", transparency=0)
    for name in ("icon.gif", "icon.png"):
        assert corners(seen, tmp_path / name)[0] == [WHITE, RED]


def test_an_animated_image_is_its_first_frame(seen, tmp_path):
    frames = [Image.new("RGB", (6, 4), colour) for colour in (RED, BLUE, WHITE)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=50)
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], duration=50, lossless=True)
    for name in ("moving.gif", "moving.webp"):
        assert close(corners(seen, tmp_path / name)[0], [RED, RED])


@pytest.mark.parametrize("opened", [False, True], ids=["path", "opened by the user"])
def test_a_image_with_an_exif_orientation_is_turned(seen, tmp_path, opened):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    two_colours().save(tmp_path / "phone.png", exif=exif)
    given = Image.open(tmp_path / "phone.png") if opened else tmp_path / "phone.png"
    colours, size = corners(seen, given)
    assert size == (6, 4)
    assert colours == [RED, RED]  # blue is at the bottom left now


def test_a_truncated_image_is_refused_by_name(nam, tmp_path, painted):
    painted(0, (64, 64)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-300])
    with pytest.raises(UnreadableImage, match=r"cut\.jpg: not an image, or cut short"):
        nam.learn([tmp_path / "whole.jpg", tmp_path / "cut.jpg"], "a")
    # Pillow opens it without a word, and stumbles when the pixels are wanted.
    with pytest.raises(UnreadableImage, match=r"cut\.jpg: not an image, or cut short"):
        nam.learn([painted(1), Image.open(tmp_path / "cut.jpg")], "a")
    with pytest.raises(UnreadableImage, match=r"images\[1\]: not an image, or cut short"):
        nam.learn([painted(1), Image.open(io.BytesIO((tmp_path / "cut.jpg").read_bytes()))], "a")
    nam.batch_size = 2
    with pytest.raises(UnreadableImage, match=r"images\[3\]: not an image, or cut short"):
        nam.learn([painted(1)] * 3 + [Image.open(io.BytesIO((tmp_path / "cut.jpg").read_bytes()))], "a")
    assert nam.classes == []


def test_a_file_that_is_no_image_is_refused_by_name(nam, tmp_path):
    (tmp_path / "notes.jpg").write_text("not an image")
    with pytest.raises(UnreadableImage, match=r"notes\.jpg: not an image"):
        nam.learn(tmp_path / "notes.jpg", "a")
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        nam.learn(str(tmp_path / "gone.png"), "a")
    with pytest.raises(UnreadableImage, match="not an image but a directory, pipe or device"):
        nam.learn(tmp_path, "a")


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (b"\x89PNG", UnreadableImage, r"images\[0\]: not an image, or cut short"),
        (bytearray(8), TypeError, "got bytearray"),
        (io.StringIO("text"), TypeError, r"images\[0\]: the file is open as text: open it in binary mode"),
        ([Image.new("L", (5, 0))], UnreadableImage, r"images\[0\]: not an image, or cut short \(5x0 pixels\)"),
        (7, TypeError, "got int"),
        ([None], TypeError, r"images\[0\]: expected a file's path, .* got NoneType"),
        ([], ValueError, "the list is empty"),
        (np.zeros((0, 4, 4, 3), np.uint8), ValueError, r"the batch \(0, 4, 4, 3\) is empty"),
        (np.zeros((4, 4, 3)), ValueError, r"images\[0\]: an array of pixels must be uint8 .* got float64"),
        (np.zeros((3, 6, 8), np.uint8), ValueError, "or a batch of these"),
        (np.zeros((4, 0, 3), np.uint8), ValueError, "must be uint8"),
        ([np.zeros((4, 4, 2), np.uint8)], ValueError, "must be uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), ValueError, r"a tensor must be uint8 or float .* got torch.int64"),
        (torch.zeros(3, 4), ValueError, r"got shape \(3, 4\)"),
        ([torch.zeros(3, 4)], ValueError, r"images\[0\]: a transformed image must be \(C, H, W\)"),
        ([torch.zeros(3, 16, 16), torch.zeros(3, 16, 8)], ValueError, r"images\[1\]: its tensor is \(3, 16, 8\), that of"),
        (Image.new("F", (4, 4)), ValueError, r"the transform failed on images\[0\]: .* does not say which value is white"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(nam, images, error, message):
    with pytest.raises(error, match=message):
        nam.learn(images, "a")
    assert nam.classes == []


def test_a_transform_that_gives_no_image_is_named(nam):
    nam.backbone.transform = lambda image: torch.zeros(3)
    with pytest.raises(
        ValueError, match=re.escape("the transform gave (3,) for images[0], expected a tensor (C, H, W)")
    ):
        nam.learn(Image.new("RGB", (4, 4)), "a")


def test_batches_are_no_larger_than_asked_and_in_order(nam, painted):
    given = [painted(i) for i in range(5)]
    whole = torch.cat(list(batches(given, nam.backbone.transform, 2)))
    assert [len(b) for b in batches(given, nam.backbone.transform, 2)] == [2, 2, 1]
    torch.testing.assert_close(whole, torch.stack([nam.backbone.transform(p) for p in given]))


def test_bytes_and_open_files_are_the_image_in_them(nam, painted, tmp_path):
    painted(1).save(tmp_path / "a.png")
    nam.learn(tmp_path / "a.png", "a")
    wanted, content = nam(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()
    with open(tmp_path / "a.png", "rb") as file:
        assert torch.equal(nam(file), wanted)
    assert torch.equal(nam(content), wanted)
    assert torch.equal(nam([content, io.BytesIO(content)]), torch.cat([wanted, wanted]))
    (tmp_path / "cut.png").write_bytes(content[:40])
    with open(tmp_path / "cut.png", "rb") as file, pytest.raises(UnreadableImage, match=r"cut\.png: not an image"):
        nam(file)


def test_an_image_too_narrow_to_resize_is_refused_before_any_transform(nam, tmp_path):
    """A transform of the user's own that resizes the short side would ask for gigabytes."""
    seen = []
    nam.backbone.transform = seen.append
    Image.new("L", (30_000, 1)).save(tmp_path / "narrow.png")
    with pytest.raises(ValueError, match=r"narrow\.png: an image of 30000x1 pixels is too narrow to resize"):
        nam.learn(tmp_path / "narrow.png", "a")
    assert seen == []

"""Images that a user gives: folders of them, what is left out, and how much memory it takes to read them."""

import io
import threading
import time
from types import SimpleNamespace

import pytest
from PIL import Image, ImageFile

from fewshot_nam import attach
from fewshot_nam.io.image_io import UnreadableImage
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
    decode = given_images._DECODER.decoded

    class Held(Image.Image):
        def __del__(self):
            open_now.discard(id(self))

    def counted(content, place, most_pixels):
        image = decode(content, place, most_pixels)
        image.__class__ = Held
        open_now.add(id(image))
        most.append(len(open_now))
        return image

    monkeypatch.setattr(given_images._DECODER, "decoded", counted)
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


def test_images_of_too_many_pixels_together_are_refused_before_all_are_decoded(digit_files, monkeypatch):
    """One small upload, named 2,000 times, kept a page busy for hours."""
    model, decode, decoded = attach("conv4"), given_images._DECODER.decoded, []

    def counted(content, place, most_pixels):
        decoded.append(place)
        return decode(content, place, most_pixels)

    monkeypatch.setattr(given_images._DECODER, "decoded", counted)
    files = digit_files[0][:9]
    assert len(features_of(model, files, most_pixels=9 * 1600).values) == 9
    decoded.clear()
    with pytest.raises(ValueError, match="more than 4,000 pixels together: give fewer at a time"):
        features_of(model, files, most_pixels=4000)
    assert len(decoded) == 3

    def slow_and_broken(content, place, most_pixels):
        decoded.append(place)
        raise UnreadableImage(f"{place}: not an image")

    decoded.clear()
    monkeypatch.setattr(given_images._DECODER, "decoded", slow_and_broken)
    # What cannot be read counts by its time: here a tenth of a second each.
    monkeypatch.setattr(given_images, "time", SimpleNamespace(monotonic=lambda: 0.1 * len(decoded)))
    with pytest.raises(ValueError, match="more than 1,500,000 pixels together"):
        features_of(model, files, most_pixels=1_500_000)
    assert len(decoded) == 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "I;16"])
def test_images_of_every_kind_have_a_thumbnail(mode, tmp_path):
    image = Image.new("L", (3000, 40), 200)
    image = image.convert(mode) if mode != "I;16" else image.convert("I").convert("I;16")
    found = features_of(attach("conv4"), [image])
    assert found.skipped == []
    assert Image.open(io.BytesIO(found.thumbnails[0])).size == (96, 1)


def test_who_gives_many_images_takes_turns_and_one_image_does_not_wait(digits, monkeypatch):
    """Two who gave many large images held up everyone until all were decoded."""
    model = attach("conv4")
    turns, order = given_images.Turns(1), []
    monkeypatch.setattr(given_images, "_TURNS", turns)
    prepared = given_images._prepared

    def noted(image, model):
        order.append(id(image))
        return prepared(image, model)

    monkeypatch.setattr(given_images, "_prepared", noted)
    threads = [threading.Thread(target=features_of, args=(model, digits[label][:3])) for label in (0, 1)]
    with turns.turn():
        for number, thread in enumerate(threads):
            thread.start()
            while len(turns._waiting) <= number:
                time.sleep(0.001)
        features_of(model, digits[2][:1])
    for thread in threads:
        thread.join()
    assert order == [id(digits[label][i]) for label, i in ((2, 0), (0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2))]
    assert turns._free == 1


def test_one_owner_has_half_of_the_turns():
    """24 cameras of one address, with frames of 64 million pixels, made everyone else wait for half a minute."""
    turns, running, held = given_images.Turns(4), [], threading.Event()
    lock = threading.Lock()

    def take(owner):
        with turns.turn(owner):
            with lock:
                running.append(owner)
            held.wait()

    threads = [threading.Thread(target=take, args=("a",)) for _ in range(9)]
    threads += [threading.Thread(target=take, args=(owner,)) for owner in ("b", "c", "")]
    for number, thread in enumerate(threads):
        thread.start()
        while len(running) + len(turns._waiting) <= number:
            time.sleep(0.001)
    assert sorted(running) == ["a", "a", "b", "c"]
    held.set()
    for thread in threads:
        thread.join()
    assert len(running) == 12
    assert (turns._free, turns._waiting, dict(turns._held)) == (4, [], {})
    single = given_images.Turns(1)
    with single.turn("a"):
        assert single._free == 0


def test_few_images_that_come_alone_are_decoded_at_a_time(digits, monkeypatch):
    """39 frames of 64 million pixels took five gigabytes."""
    model, here, most = attach("conv4"), [0], [0]
    prepared, lock = given_images._prepared, threading.Lock()

    def noted(image, model):
        with lock:
            here[0] += 1
            most[0] = max(most[0], here[0])
        time.sleep(0.02)
        with lock:
            here[0] -= 1
        return prepared(image, model)

    monkeypatch.setattr(given_images, "_prepared", noted)
    threads = [threading.Thread(target=features_of, args=(model, digits[0][i : i + 1])) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 4

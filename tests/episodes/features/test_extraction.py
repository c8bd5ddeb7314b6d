"""Extraction: features of the right images, cached, resumed to the same bits, and faults named with their image."""

import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch import nn

import episodes.features.cache as feature_cache_module
from episodes.data.datasets import UnreadableImage, folder
from episodes.data.image_dataset import ArrayImages
from episodes.features.bank import FeatureBank
from episodes.features.extraction import cache_key, extract
from episodes.features.loading import ImageBatches

N, CLASSES, WIDTH = 23, 3, 5


def to_tensor(image):
    return torch.from_numpy(np.array(image, dtype=np.float32)).unsqueeze(0) / 255


class Backbone(nn.Module):
    """A small network that counts what goes through it, and can fail after a given number of batches."""

    def __init__(self, transform=to_tensor, name="small", seed=0, fail_at=None, error=KeyboardInterrupt):
        super().__init__()
        self.name, self.transform_id, self.transform = name, "t1", transform
        self.feature_dim = WIDTH
        self.linear = nn.Linear(16, WIDTH, bias=False)
        self.drop = nn.Dropout(0.5)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(WIDTH, 16, generator=torch.Generator().manual_seed(seed)))
        self.seed, self.fail_at, self.error = seed, fail_at, error
        self.batches = []

    @property
    def weights_hash(self):
        return f"seed{self.seed}"

    def forward(self, images):
        if len(self.batches) == self.fail_at:
            raise self.error()
        self.batches.append(len(images))
        return self.drop(self.linear(images.flatten(1))) + 3


def images(n=N, seed=0, name="noise"):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 4, 4), dtype=np.uint8)
    return ArrayImages(name, pixels, np.arange(n) % CLASSES, ["a", "b", "c"])


def image_files(root, n=N):
    source = images(n)
    for i in range(n):
        path = root / source.classes[source.labels[i]] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        source.image(i).save(path)
    return folder(root)


def expected_features(backbone, dataset):
    backbone.eval()
    with torch.no_grad():
        return torch.cat([backbone(backbone.transform(dataset.image(i))[None]) for i in range(len(dataset))])


def same(one, other):
    return (
        torch.equal(one.features, other.features)
        and torch.equal(one.labels, other.labels)
        and (one.classes, one.skipped) == (other.classes, other.skipped)
    )


# --- features


@pytest.mark.parametrize("batch_size", [1, 7, N, 64])
@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
def test_features_are_those_of_each_image_by_itself(tmp_path, batch_size, cached):
    backbone = Backbone()
    bank = extract(backbone, images(), batch_size=batch_size, cache_dir=tmp_path if cached else None)
    torch.testing.assert_close(bank.features, expected_features(Backbone(), images()))
    assert backbone.batches == [batch_size] * (N // batch_size) + [N % batch_size] * (N % batch_size > 0)
    assert bank.labels.tolist() == images().labels.tolist()
    assert bank.classes == ["a", "b", "c"]
    assert bank.provenance["backbone"] == "small"
    assert bank.provenance["dataset_fingerprint"] == images().fingerprint
    assert bank.skipped == []
    assert not bank.features.is_inference()


def test_features_of_a_half_precision_backbone_come_back_as_float32():
    class Half(Backbone):
        def forward(self, batch):
            return super().forward(batch).bfloat16()

    assert extract(Half(), images(), cache_dir=None).features.dtype == torch.float32


def test_workers_change_nothing():
    assert same(
        extract(Backbone(), images(), batch_size=7, workers=2, cache_dir=None),
        extract(Backbone(), images(), batch_size=7, cache_dir=None),
    )


def test_work_for_workers_can_be_pickled_for_any_start_method():
    batches = ImageBatches(images(), to_tensor, 7, True)
    sent = pickle.loads(pickle.dumps(batches))
    assert torch.equal(sent[3].images, batches[3].images)
    assert len(sent) == 4


def test_backbone_keeps_the_mode_of_each_of_its_modules():
    backbone = Backbone().train()
    backbone.linear.eval()
    extract(backbone, images(), cache_dir=None)
    assert (backbone.training, backbone.linear.training, backbone.drop.training) == (True, False, True)
    backbone = Backbone(fail_at=0, error=RuntimeError).train()
    with pytest.raises(RuntimeError):
        extract(backbone, images(), cache_dir=None)
    assert backbone.drop.training


# --- the cache


def test_a_second_extraction_reads_the_cache_and_runs_nothing(tmp_path):
    first = extract(Backbone(), images(), cache_dir=tmp_path)
    again = Backbone()
    assert same(first, extract(again, images(), cache_dir=tmp_path))
    assert again.batches == []
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix != ".lock"] == [".safetensors"]


def test_a_bank_from_the_cache_has_the_name_of_the_set_that_asks(tmp_path):
    for name in ("val", "forest/val"):
        assert extract(Backbone(), images(name=name), cache_dir=tmp_path).provenance["dataset"] == name


def test_the_cache_key_follows_weights_transform_name_and_images():
    def key(dataset=None, **changed):
        backbone = Backbone()
        for name, value in changed.items():
            setattr(backbone, name, value)
        return cache_key(backbone, dataset or images())

    keys = [key(), key(seed=1), key(transform_id="t2"), key(name="other"), key(images(seed=1))]
    keys += [key(images().subset(["b", "a"]))]
    keys += [cache_key(Backbone(), images(), *how) for how in (("bfloat16",), ("float32", True), ("bfloat16", True))]
    assert len(set(keys)) == 9
    assert key() == keys[0]


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [("own", "xdg", "own"), (None, "xdg", "xdg/fewshot-nam"), (None, None, "home/.cache/fewshot-nam")],
    ids=["own", "xdg", "home"],
)
def test_the_cache_directory_follows_the_environment(tmp_path, monkeypatch, own, xdg, expected):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in (("FEWSHOT_NAM_CACHE", own), ("XDG_CACHE_HOME", xdg)):
        if value:
            monkeypatch.setenv(name, str(tmp_path / value))
        else:
            monkeypatch.delenv(name, raising=False)
    extract(Backbone(), images())
    assert (tmp_path / expected / f"{cache_key(Backbone(), images())}.safetensors").is_file()


def test_a_cache_that_cannot_be_written_is_a_warning_and_not_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(
        UserWarning, match=r"file/cache cannot be written \(Not a directory\).*FEWSHOT_NAM_CACHE"
    ) as caught:
        bank = extract(Backbone(), images(), cache_dir=tmp_path / "file" / "cache")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert same(bank, extract(Backbone(), images(), cache_dir=None))


def test_a_full_cache_serves_where_it_cannot_be_written(tmp_path, monkeypatch):
    first = extract(Backbone(), images(), cache_dir=tmp_path)

    def refuse(*_, **__):
        raise OSError("read-only")

    monkeypatch.setattr(feature_cache_module.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(feature_cache_module, "locked", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(first, extract(Backbone(), images(), cache_dir=tmp_path))


def test_a_broken_file_in_the_cache_is_made_again_with_a_warning(tmp_path):
    first = extract(Backbone(), images(), cache_dir=tmp_path)
    whole = FeatureBank(first.features.clone(), first.labels, first.classes, provenance=first.provenance)
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="not a whole feature bank .*; extracting its features again"):
        assert same(whole, extract(Backbone(), images(), cache_dir=tmp_path))
    FeatureBank.load(path)


# --- resuming


@pytest.mark.parametrize("batches_done", [0, 1, 3])
@pytest.mark.parametrize("ragged", [0, 1, 4 * WIDTH, 4 * WIDTH * 3 + 5], ids="{}-bytes-more".format)
def test_an_interrupted_extraction_goes_on_where_it_was_to_the_same_bits(tmp_path, batches_done, ragged):
    with pytest.raises(KeyboardInterrupt):
        extract(Backbone(fail_at=batches_done), images(), batch_size=5, cache_dir=tmp_path)
    partial = tmp_path / f"{cache_key(Backbone(), images())}.partial"
    assert partial.stat().st_size == batches_done * 5 * WIDTH * 4
    with open(partial, "ab") as file:  # what a run killed in the middle of a write leaves
        file.write(b"\1" * ragged)
    backbone = Backbone()
    bank = extract(backbone, images(), batch_size=5, cache_dir=tmp_path)
    assert backbone.batches == [5, 5, 5, 5, 3][batches_done:]
    assert same(bank, extract(Backbone(), images(), batch_size=5, cache_dir=None))
    assert not partial.exists()


def test_an_extraction_interrupted_after_the_last_batch_runs_nothing_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(FeatureBank, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            extract(Backbone(), images(), batch_size=5, cache_dir=tmp_path)
    backbone = Backbone()
    assert same(
        extract(backbone, images(), batch_size=5, cache_dir=tmp_path),
        extract(Backbone(), images(), batch_size=5, cache_dir=None),
    )
    assert backbone.batches == []


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")], ids=["zeros", "infinity", "nan"])
def test_rows_that_no_run_can_have_written_are_made_again_with_all_after_them(tmp_path, value):
    with pytest.raises(KeyboardInterrupt):
        extract(Backbone(fail_at=3), images(), batch_size=5, cache_dir=tmp_path)
    partial = next(tmp_path.glob("*.partial"))
    rows = np.fromfile(partial, dtype="<f4").reshape(-1, WIDTH)
    rows[7] = value
    rows.tofile(partial)
    backbone = Backbone()
    bank = extract(backbone, images(), batch_size=5, cache_dir=tmp_path)
    assert backbone.batches == [5, 5, 5, 3]
    assert same(bank, extract(Backbone(), images(), batch_size=5, cache_dir=None))


def test_a_process_killed_in_the_middle_is_resumed_by_another(tmp_path):
    script = f"""
import os, sys
sys.path[:0] = {[str(Path(feature_cache_module.__file__).parents[2]), str(Path(__file__).parent)]!r}
from test_extraction import Backbone, extract, images
class Killed(Backbone):
    def forward(self, batch):
        if len(self.batches) == 2:
            os.kill(os.getpid(), 9)
        return super().forward(batch)
extract(Killed(), images(), batch_size=5, cache_dir={str(tmp_path)!r})
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    backbone = Backbone()
    bank = extract(backbone, images(), batch_size=5, cache_dir=tmp_path)
    assert backbone.batches == [5, 5, 3]
    assert same(bank, extract(Backbone(), images(), batch_size=5, cache_dir=None))


def test_a_second_run_waits_for_the_first_and_takes_what_it_made(tmp_path, capsys):
    dataset, path = images(), tmp_path / f"{cache_key(Backbone(), images())}.safetensors"
    held = threading.Event()

    def first_run():
        with FileLock(path.with_suffix(".lock")):
            held.set()
            time.sleep(1.3)
            extract(Backbone(), dataset, cache_dir=tmp_path / "aside")
            os.replace(tmp_path / "aside" / path.name, path)

    other = threading.Thread(target=first_run)
    other.start()
    held.wait()
    backbone = Backbone()
    bank = extract(backbone, dataset, cache_dir=tmp_path)
    other.join()
    assert backbone.batches == []
    assert same(bank, extract(Backbone(), dataset, cache_dir=None))
    assert "another process is extracting these features" in capsys.readouterr().err


# --- images that cannot be read


def break_files(dataset, *indices):
    for index in indices:
        Path(dataset.describe(index)).write_text("no image")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(tmp_path, workers):
    dataset = image_files(tmp_path / "set")
    break_files(dataset, 9)
    with pytest.raises(UnreadableImage, match=f"{dataset.describe(9)}: not an image") as caught:
        extract(Backbone(), dataset, batch_size=5, workers=workers, cache_dir=None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
def test_unreadable_images_are_left_out_and_listed(tmp_path, cached):
    dataset = image_files(tmp_path / "set")
    whole = extract(Backbone(), dataset, batch_size=4, cache_dir=None)
    broken = [2, 8, 9, 10, 11, 22]  # the whole third batch among them
    break_files(dataset, *broken)
    dataset = folder(tmp_path / "set")
    keep = [i for i in range(N) if i not in broken]
    for _ in range(2):  # the second time from the cache, if there is one
        with pytest.warns(UserWarning, match="left out 6 unreadable images of set, the first is .*set/a/06.png"):
            bank = extract(
                Backbone(), dataset, batch_size=4, skip_unreadable=True, cache_dir=tmp_path if cached else None
            )
        torch.testing.assert_close(bank.features, whole.features[keep])
        assert bank.labels.tolist() == whole.labels[keep].tolist()
        assert bank.skipped == [dataset.describe(i) for i in broken]


def test_a_cache_made_with_skipping_does_not_hide_the_image_from_a_run_without(tmp_path):
    dataset = image_files(tmp_path / "set")
    break_files(dataset, 9)
    dataset = folder(tmp_path / "set")
    with pytest.warns(UserWarning, match="left out 1"):
        extract(Backbone(), dataset, batch_size=5, skip_unreadable=True, cache_dir=tmp_path)
    with pytest.raises(UnreadableImage, match=dataset.describe(9)):
        extract(Backbone(), dataset, batch_size=5, cache_dir=tmp_path)


def test_no_thread_outlives_an_error_whose_traceback_is_kept():
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt) as caught:
        extract(Backbone(fail_at=2), images(), batch_size=5, cache_dir=None)
    assert caught.traceback  # with the frames of everything that was under way
    assert not [thread for thread in set(threading.enumerate()) - before if "Pool" in thread.name]


@pytest.mark.parametrize("then_skip", [True, False])
def test_skipped_images_survive_an_interruption(tmp_path, then_skip):
    dataset = image_files(tmp_path / "set")
    break_files(dataset, 6)
    dataset = folder(tmp_path / "set")
    with pytest.raises(KeyboardInterrupt):
        extract(Backbone(fail_at=3), dataset, batch_size=5, skip_unreadable=True, cache_dir=tmp_path)
    if not then_skip:
        with pytest.raises(UnreadableImage, match=dataset.describe(6)):
            extract(Backbone(), dataset, batch_size=5, cache_dir=tmp_path)
        return
    backbone = Backbone()
    with pytest.warns(UserWarning, match="left out 1"):
        bank = extract(backbone, dataset, batch_size=5, skip_unreadable=True, cache_dir=tmp_path)
    assert backbone.batches == [5, 3]
    assert bank.skipped == [dataset.describe(6)]
    with pytest.warns(UserWarning, match="left out 1"):
        unbroken = extract(Backbone(), dataset, batch_size=5, skip_unreadable=True, cache_dir=None)
    assert same(bank, unbroken)


def test_no_readable_image_at_all_is_an_error(tmp_path):
    dataset = image_files(tmp_path / "set", n=3)
    break_files(dataset, 0, 1, 2)
    with pytest.raises(ValueError, match="none of the 3 images of set can be read and transformed"):
        extract(Backbone(), dataset, skip_unreadable=True, cache_dir=None)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_file_is_an_error_also_where_unreadable_ones_are_skipped(tmp_path, workers):
    dataset = image_files(tmp_path / "set")
    Path(dataset.describe(9)).unlink()
    with pytest.raises(FileNotFoundError, match=Path(dataset.describe(9)).name):
        extract(Backbone(), dataset, workers=workers, skip_unreadable=True, cache_dir=None)


def test_a_link_that_leads_nowhere_is_named_or_left_out_and_listed(tmp_path):
    dataset = image_files(tmp_path / "set")
    path = Path(dataset.describe(9))
    path.unlink()
    path.symlink_to(tmp_path / "nowhere.png")
    dataset = folder(tmp_path / "set")
    with pytest.raises(UnreadableImage, match=f"{path}: a link that leads nowhere"):
        extract(Backbone(), dataset, cache_dir=tmp_path)
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"left out 1 unreadable images of set, the first is {path}"):
            bank = extract(Backbone(), dataset, skip_unreadable=True, cache_dir=tmp_path)
        assert (len(bank), bank.skipped) == (N - 1, [str(path)])


# --- transforms and backbones that misbehave


def wrong_for(index, answer):
    """Return a transform that answers otherwise for image ``index``."""
    wanted = np.asarray(images().image(index)).tolist()

    def transform(image):
        return answer(image) if np.asarray(image).tolist() == wanted else to_tensor(image)

    return transform


def no_floats(image):
    if image.mode == "F":
        raise ValueError("mode F")
    return to_tensor(image)


def fail(_):
    raise KeyError("no such\nmode")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (fail, r"transform failed on noise\[13\]: KeyError: .*no such"),
        (lambda _: 3, r"transform gave int for noise\[13\], expected a tensor \(C, H, W\)"),
        (lambda _: torch.ones(4, 4), r"transform gave \(4, 4\) for noise\[13\]"),
        (
            lambda _: torch.ones(1, 4, 6),
            r"transform gave \(1, 4, 6\) for noise\[13\], and \(1, 4, 4\) for the images before",
        ),
    ],
    ids=["raises", "no tensor", "no channels", "another size"],
)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_transform_that_misbehaves_is_named_with_its_image(answer, message, batch_size):
    with pytest.raises(ValueError, match=message) as caught:
        extract(Backbone(wrong_for(13, answer)), images(), batch_size=batch_size, cache_dir=None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_image_that_the_transform_fails_on_is_left_out_where_unreadable_ones_are(tmp_path, workers):
    source = image_files(tmp_path / "set")
    path = tmp_path / "set" / "b" / "deep.tif"
    Image.new("F", (4, 4), 0.5).save(path)
    dataset = folder(tmp_path / "set")
    with pytest.raises(ValueError, match=f"transform failed on {path}: ValueError: mode F"):
        extract(Backbone(no_floats), dataset, workers=workers, cache_dir=tmp_path)
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"left out 1 unreadable images of set, the first is {path}"):
            bank = extract(Backbone(no_floats), dataset, workers=workers, skip_unreadable=True, cache_dir=tmp_path)
        assert bank.skipped == [str(path)]
        torch.testing.assert_close(bank.features, expected_features(Backbone(), source))


@pytest.mark.parametrize("answer", [lambda _: 3, lambda _: torch.ones(1, 4, 6)], ids=["no tensor", "another size"])
def test_a_transform_that_gives_something_else_is_an_error_also_where_images_are_skipped(answer):
    with pytest.raises(ValueError, match=r"transform gave .* for noise\[13\]"):
        extract(Backbone(wrong_for(13, answer)), images(), skip_unreadable=True, cache_dir=None)


def test_a_transform_that_fails_on_every_image_is_an_error_also_where_they_are_skipped():
    with pytest.raises(ValueError, match="none of the 23 images of noise can be read and transformed"):
        extract(Backbone(fail), images(), skip_unreadable=True, cache_dir=None)


@pytest.mark.parametrize(
    ("value", "fault"),
    [(float("nan"), "not finite"), (float("inf"), "not finite"), (0.0, "all zeros")],
    ids=["nan", "inf", "zero"],
)
def test_bad_features_are_named_with_their_image_and_never_cached(tmp_path, value, fault):
    class Bad(Backbone):
        def forward(self, batch):
            features = super().forward(batch)
            if len(self.batches) == 3:
                features[3] = value
            return features

    with pytest.raises(ValueError, match=rf"backbone small gave features that are {fault} for noise\[13\]"):
        extract(Bad(), images(), batch_size=5, cache_dir=tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    assert next(tmp_path.glob("*.partial")).stat().st_size == 10 * WIDTH * 4


def test_features_of_another_shape_are_refused():
    backbone = Backbone()
    backbone.feature_dim = 7
    with pytest.raises(ValueError, match=r"backbone small gave \(23, 5\), expected features \(23, 7\)"):
        extract(backbone, images(), cache_dir=None)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (images(0), {}, "noise has no images"),
        (images(), {"batch_size": 0}, "batch_size must be at least 1 .* got 0 and 0"),
        (images(), {"workers": -1}, "workers at least 0, got 64 and -1"),
    ],
    ids=["no images", "batch size", "workers"],
)
def test_impossible_settings_are_refused(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        extract(Backbone(), dataset, cache_dir=None, **options)


def test_the_bar_stays_away_from_stderr_unless_it_is_a_terminal(capsys):
    extract(Backbone(), images(), cache_dir=None, progress=True)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


# --- precision, layout, and images made ahead


class Convolution(Backbone):
    """A backbone whose arithmetic autocast changes, and whose weights have a layout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, WIDTH, 3, padding=1)

    def forward(self, batch):
        self.batches.append((batch.is_contiguous(memory_format=torch.channels_last), torch.is_autocast_enabled("cpu")))
        return self.convolution(batch.expand(-1, 3, -1, -1)).mean(dim=(2, 3)) + 3


def test_bfloat16_is_near_float32_and_cached_apart(tmp_path):
    exact = extract(Convolution(), images(), cache_dir=tmp_path)
    rounded = extract(Convolution(), images(), cache_dir=tmp_path, precision="bfloat16")
    torch.testing.assert_close(rounded.features, exact.features, rtol=2e-2, atol=2e-2)
    assert not torch.equal(rounded.features, exact.features)
    assert rounded.features.dtype == torch.float32
    assert (exact.provenance.get("precision"), rounded.provenance["precision"]) == (None, "bfloat16")
    again = Convolution()
    assert same(extract(again, images(), cache_dir=tmp_path, precision="bfloat16"), rounded)
    assert same(extract(again, images(), cache_dir=tmp_path), exact)
    assert again.batches == []


def test_channels_last_is_given_to_images_and_weights_and_taken_back():
    backbone = Convolution()
    found = extract(backbone, images(), cache_dir=None, channels_last=True)
    torch.testing.assert_close(found.features, extract(Convolution(), images(), cache_dir=None).features)
    assert backbone.batches == [(True, False)]
    assert backbone.convolution.weight.is_contiguous()
    assert not torch.is_autocast_enabled("cpu")


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, got 'half'"):
        extract(Backbone(), images(), cache_dir=None, precision="half")


def test_the_next_images_are_made_while_the_backbone_runs():
    made = threading.Semaphore(0)

    def transform(image):
        made.release()
        return to_tensor(image)

    class Waiting(Backbone):
        def forward(self, batch):
            due = min(len(self.batches) + 2, -(-N // 5)) * 5  # this batch's images and the next one's
            while self.seen < min(due, N):
                assert made.acquire(timeout=30), "the next images are not made while the backbone runs"
                self.seen += 1
            return super().forward(batch)

    backbone = Waiting(transform)
    backbone.seen = 0
    extract(backbone, images(), batch_size=5, cache_dir=None)
    assert backbone.batches == [5, 5, 5, 5, 3]

"""What was learned survives in one file: the same answers after loading, no half files, and no file under another backbone."""

import copy
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fewshot_nam.heads import (
    BaseStatistics,
    CosineHead,
    ErasedWeightsHead,
    KeptClassifierHead,
    LogisticHead,
    MahalanobisHead,
    NAMHead,
    PLDAHead,
    RidgeHead,
    available,
    create,
    needs_base,
)
from fewshot_nam.vision import saving

LABELS = ["badger", 7, "7", -1, "мышь", "a\nb", 10**20]
RELEASED = sorted((Path(__file__).parent / "data").glob("*.safetensors"))

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def teach(nam, painted):
    """What the files of released versions hold: two classes, the first of two images, and a threshold calibrated on 39 unknowns."""
    nam.learn([painted(0), painted(1), painted(2)], ["badger", 7, "badger"])
    nam.calibrate([painted(i) for i in range(100, 139)], [painted(0)], target_fpr=0.05, known_labels=["badger"])
    return nam


def background(width=12):
    return torch.rand(14, width, generator=torch.Generator().manual_seed(0)) + 0.1


HEADS = {
    "nam": NAMHead,
    "nam with other settings": lambda: NAMHead(settings={"log_partition_penalty": 0.1}),
    "nam over a background": lambda: NAMHead(
        base=BaseStatistics.from_prototypes(background()), settings={"ridge": 0.5}
    ),
    "nam, centred": lambda: NAMHead(base=BaseStatistics.from_mean(background()[0])),
    "cosine": lambda: CosineHead(3.0, log_partition_penalty=0.5, power_norm=True),
    "cosine with a scale to learn": lambda: CosineHead(3.0, learn_scale=True),
    "ridge": lambda: RidgeHead(0.3),
    "logistic": LogisticHead,
    "mahalanobis": lambda: MahalanobisHead("diagonal"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_saved_model_gives_the_same_answers_when_loaded_into_a_fresh_one(attached, painted, tmp_path, kind):
    nam = teach(attached(head=HEADS[kind]()), painted)
    nam.save(tmp_path / "a.safetensors")
    other = attached().load(tmp_path / "a.safetensors")
    assert type(other.head) is type(nam.head)
    assert other.classes == nam.classes
    images = [painted(i) for i in range(20)]
    assert torch.equal(other(images), nam(images))
    assert other.head.threshold == nam.head.threshold
    assert other.predict(images, unknown="?") == nam.predict(images, unknown="?")
    assert torch.equal(other.probabilities(images), nam.probabilities(images))
    assert torch.equal(other.learn(painted(30), "new")(images), nam.learn(painted(30), "new")(images))


def test_a_head_that_cannot_be_made_from_settings_is_asked_for(attached, painted, tmp_path):
    nam = attached(head=PLDAHead(BaseStatistics.from_prototypes(background()))).learn(
        [painted(0), painted(1)], ["a", "b"]
    )
    nam.save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"holds a PLDAHead with settings .*: attach with such a head before loading"):
        attached().load(tmp_path / "a.safetensors")
    other = attached(head=PLDAHead(BaseStatistics.from_prototypes(background() + 1))).load(tmp_path / "a.safetensors")
    assert torch.equal(other(painted(3)), nam(painted(3)))


def test_labels_come_back_as_what_they_were(attached, painted, tmp_path):
    nam = attached().learn([painted(i) for i in range(len(LABELS))], LABELS)
    nam.save(tmp_path / "a.safetensors")
    found = attached().load(tmp_path / "a.safetensors").classes
    assert found == LABELS
    assert [type(label) for label in found] == [type(label) for label in LABELS]


def test_an_empty_model_is_saved_and_loaded(attached, painted, tmp_path):
    attached().save(tmp_path / "a.safetensors")
    nam = attached().learn(painted(0), "a").load(tmp_path / "a.safetensors")
    assert nam.classes == []
    assert nam.learn(painted(0), "b").predict(painted(0)) == "b"


def test_a_model_in_place_and_one_behind_a_copy_read_each_others_files(attached, painted, tmp_path):
    teach(attached(in_place=True), painted).save(tmp_path / "a.safetensors")
    teach(attached(), painted).save(tmp_path / "b.safetensors")
    assert load_file(tmp_path / "a.safetensors").keys() == load_file(tmp_path / "b.safetensors").keys()
    behind, inside = attached().load(tmp_path / "a.safetensors"), attached(in_place=True)
    before = inside.head
    inside.load(tmp_path / "b.safetensors")
    assert not before._forward_pre_hooks  # the head that was replaced has nothing to do with the model any more
    assert torch.equal(behind(painted(3)), inside(painted(3)))
    ready = inside.backbone.transform(painted(3)).unsqueeze(0)
    assert torch.equal(inside.backbone.network.model(ready), behind(painted(3)))


# --- what does not belong together


def test_another_backbone_is_refused_with_both_hashes(attached, painted, tmp_path):
    nam = teach(attached(), painted)
    nam.save(tmp_path / "a.safetensors")
    other = attached(shift=0.001).learn(painted(9), "mine")
    with pytest.raises(ValueError, match=r"learned with the backbone .*Tiny") as caught:
        other.load(tmp_path / "a.safetensors")
    for model in (nam, other):
        assert saving.weights_digest(model.backbone) in str(caught.value)
    assert other.classes == ["mine"]


def test_another_transform_of_the_same_backbone_is_refused(attached, painted, transform, tmp_path):
    teach(attached(), painted).save(tmp_path / "a.safetensors")
    other = attached(transform=lambda image: 2 * transform(image) - 1)
    with pytest.raises(ValueError, match="features come out differently now: check transform"):
        other.load(tmp_path / "a.safetensors")


# --- files that are none


def refused(nam, path, message):
    classes = nam.classes
    with pytest.raises(ValueError, match=message) as caught:
        nam.load(path)
    assert path.name in str(caught.value)
    assert nam.classes == classes


def test_a_file_cut_short_anywhere_is_refused(attached, painted, tmp_path):
    teach(attached(), painted).save(tmp_path / "a.safetensors")
    whole, cut = (tmp_path / "a.safetensors").read_bytes(), tmp_path / "cut.safetensors"
    nam = attached().learn(painted(5), "mine")
    for length in [0, 1, 8, *range(50, len(whole), 173), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        refused(nam, cut, "cut short")


def test_a_file_with_a_changed_byte_is_refused_or_harmless(attached, painted, tmp_path):
    nam = teach(attached(), painted)
    nam.save(tmp_path / "a.safetensors")
    whole, bad = (tmp_path / "a.safetensors").read_bytes(), tmp_path / "bad.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    for position in range(header, len(whole), 7):
        bad.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        refused(attached(), bad, "is damaged: its contents are not those that were written")


def rewritten(source, target, metadata=None, **about):
    with safe_open(source, framework="pt") as file:
        kept = dict(file.metadata())
    kept["about"] = json.dumps(json.loads(kept["about"]) | about)
    kept["about_sha256"] = saving.text_digest(kept["about"])
    save_file(load_file(source), target, kept | (metadata or {}))
    return target


def test_files_that_are_something_else_are_refused(attached, painted, tmp_path):
    source = tmp_path / "a.safetensors"
    teach(attached(), painted).save(source)
    nam = attached().learn(painted(5), "mine")
    weights = tmp_path / "weights.safetensors"
    save_file({"fc.weight": torch.ones(2, 2)}, weights)
    refused(nam, weights, "not of a NAM model: expected one that NAMModel.save wrote")
    later = rewritten(source, tmp_path / "later.safetensors", {"version": "2"})
    refused(nam, later, "of format 2, this release reads format 1: update fewshot-nam")
    garbled = rewritten(source, tmp_path / "garbled.safetensors", {"about": "{"})
    refused(nam, garbled, "is damaged: its description cannot be read")
    for about in ({"notes": ["x"]}, {"notes": {"weights": 5}}, {"backbone": None}, {"head": {}}):
        refused(nam, rewritten(source, tmp_path / "wrong.safetensors", **about), "are not those that were written")
    foreign = rewritten(source, tmp_path / "foreign.safetensors", head="TheirHead")
    refused(nam, foreign, "holds a TheirHead with settings .* attach with such a head")
    (tmp_path / "text.safetensors").write_text("a pickle or whatever")
    refused(nam, tmp_path / "text.safetensors", "cut short, or no file of a NAM model")
    with pytest.raises(FileNotFoundError):
        nam.load(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("forged", "message"),
    [
        ({"head.targets": torch.tensor([0, 2**29])}, "a target is no number of a class"),
        ({"head.targets": torch.tensor([0, -1])}, "a target is no number of a class"),
        ({"head.targets": torch.tensor([0.0, 1.0])}, "its targets do not fit its support features"),
        ({"head.targets": torch.tensor([0])}, "its targets do not fit its support features"),
        ({"head.support": torch.ones(2, 12).to(torch.float8_e4m3fn)}, "head.support is of torch.float8_e4m3fn"),
        ({"head.mean": torch.tensor([torch.nan])}, "head.mean is NaN or infinite in places"),
        ({"head.base": torch.tensor(1.0)}, ""),
        ({"head.support": torch.tensor(1.0)}, "its targets do not fit its support features"),
        ({"head.support": torch.ones(2, 0)}, "its support features have no width"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_forged_file_with_right_digests_is_refused_before_it_costs_memory(
    attached, painted, tmp_path, forged, message
):
    source, target = tmp_path / "a.safetensors", tmp_path / "forged.safetensors"
    attached().learn([painted(0), painted(1)], ["a", "b"]).save(source)
    tensors = load_file(source) | forged
    contents = saving.tensors_digest(tensors[key] for key in sorted(tensors))
    rewritten(source, target, contents=contents)
    with safe_open(target, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, target, metadata)
    refused(attached(), target, f"forged.safetensors is damaged: {message}")


@pytest.mark.parametrize(
    ("forged", "message"),
    [
        ({"head.base": torch.ones(3)}, "base is torch.float32 of shape \\(3,\\)"),
        ({"head.support": torch.full((2, 12), 3e38)}, "2 of 2 vectors cannot be used"),
        ({"head.unknowns": torch.ones(0)}, "unknowns is torch.float32 of shape \\(0,\\)"),
        ({"head.stored_base.prototypes": torch.ones(4, 12)}, "base statistics: this state is damaged"),
    ],
    ids=["base", "support", "unknowns", "prototypes"],
)
def test_a_forged_state_does_not_fit(attached, painted, tmp_path, forged, message):
    source, target = tmp_path / "a.safetensors", tmp_path / "forged.safetensors"
    attached().learn([painted(0), painted(1)], ["a", "b"]).save(source)
    tensors = load_file(source) | forged
    rewritten(source, target, contents=saving.tensors_digest(tensors[key] for key in sorted(tensors)))
    with safe_open(target, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, target, metadata)
    refused(attached(), target, f"forged.safetensors does not fit NAMHead: .*{message}")


def test_a_head_over_prototypes_of_infinitely_many_images_comes_back(tmp_path):
    head = create("nam-recursive")
    head.write_base(torch.eye(4)[:2], ["x", "y"])
    head.write(torch.eye(4)[2:], ["a", "b"])
    saving.write_head(tmp_path / "a", head, {"backbone": "x", "weights": "y"}, torch.ones(4))
    _, found, _ = saving.read_head(tmp_path / "a")
    assert torch.equal(found(torch.ones(4)), head(torch.ones(4)))


@pytest.mark.parametrize(
    ("head", "settings", "message"),
    [
        ("klda", {"width": 100_000}, "width must be from 1 to 20,000"),
        ("ranpac", {"width": 10**9}, "width must be from 0 to 20,000"),
        *(
            (name, {"steps": 10**9}, "steps must be from 0 to 10,000")
            for name in ("finetune", "pt-map", "laplacian-shot")
        ),
    ],
)
def test_settings_of_a_file_that_would_cost_gigabytes_or_hours_are_refused(tmp_path, head, settings, message):
    """7 KB took 80 GB, or for ever."""
    found = create(head)
    found.write(torch.eye(4)[:2], ["a", "b"])
    saving.write_head(tmp_path / "a", found, {"backbone": "x", "weights": "y"}, torch.ones(4))
    with safe_open(tmp_path / "a", framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    rewritten(tmp_path / "a", tmp_path / "forged", settings={**about["settings"], **settings})
    with pytest.raises(ValueError, match=message):
        saving.read_head(tmp_path / "forged")


def forged_memory(place, name, settings=(), names=(), tensors=()):
    """Return the file of a head whose settings, names and tensors were replaced, with digests that are right."""
    head = create(name)
    if name != "cosine":  # of images of base classes some heads keep tensors of their own
        head.write_base_images(torch.rand(12, 6, generator=torch.Generator().manual_seed(0)) + 0.1, ["x", "y"] * 6)
    head.write(torch.eye(6)[:4], ["a", "b", "a", "b"])
    saving.write_head(place / "a", head, {"backbone": "x", "weights": "y"}, torch.ones(6))
    with safe_open(place / "a", framework="pt") as file:
        metadata = file.metadata()
    held = load_file(place / "a") | {f"head.{key}": tensor for key, tensor in dict(tensors).items()}
    saved = json.loads(bytes(held["head._extra_state"].tolist())) | dict(names)
    held["head._extra_state"] = torch.tensor(list(json.dumps(saved).encode()), dtype=torch.uint8)
    about = json.loads(metadata["about"])
    about["settings"] |= dict(settings)
    about["contents"] = saving.tensors_digest(held[key] for key in sorted(held))
    text = json.dumps(about)
    save_file(held, place / "forged", metadata | {"about": text, "about_sha256": saving.text_digest(text)})
    return place / "forged"


@pytest.mark.parametrize(
    ("head", "settings"),
    [
        ("klda", {"seed": [1]}),
        ("klda", {"seed": 10**30}),
        ("klda", {"gamma": 1e308}),
        ("klda", {"ridge": True}),
        ("ranpac", {"seed": "x"}),
        ("air", {"width": 0.5}),
        ("cosine", {"temperature": 10**30}),
        ("cosine", {"power_norm": "no"}),
        ("fecam", {"off_diagonal": 1e300}),
        ("fecam", {"share": float("nan")}),
        ("finetune", {"steps": 1e-320}),
        ("mahalanobis", {"ridge": 1e-320}),
        ("mahalanobis", {"covariance": "full"}),
        ("nam-recursive", {"settings": {"evenness": 10**30}}),
        ("klda", {"gamma": {"a": 1.0}}),
    ],
)
def test_a_setting_of_a_file_has_the_type_and_range_of_the_heads_own(tmp_path, head, settings):
    """Such files were read, and the first answer ended with a traceback."""
    (name,) = settings
    with pytest.raises(ValueError, match=rf"forged cannot be used: \w+: the setting {name} ") as error:
        saving.read_head(forged_memory(tmp_path, head, settings=settings))
    assert "\n" not in str(error.value)


def test_an_object_in_the_place_of_base_statistics_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="forged holds a CosineHead with settings") as error:
        saving.read_head(forged_memory(tmp_path, "cosine", settings={"base": {"a": 1.0}}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"), [("max_rejected", 1e-320), ("target_fpr", 1e-300), ("probability_temperature", 1e-320)]
)
def test_a_calibration_of_a_file_that_no_head_can_have_is_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        saving.read_head(forged_memory(tmp_path, "cosine", names={name: value}))


@pytest.mark.parametrize(
    ("head", "tensors"),
    [
        ("fecam", {"base_precisions": torch.ones(1)}),
        ("fecam", {"base_precisions": torch.ones(2, 5, 5)}),
        ("fecam", {"base_precisions": torch.ones(3, 6, 6)}),
        ("c-fecam", {"base_covariances": torch.ones(1, 6, 6)}),
        ("klda", {"base_means": torch.ones(1, 2000)}),
        ("klda", {"base_means": torch.ones(2, 7)}),
        ("klda", {"scatter": torch.ones(7, 7)}),
        ("ranpac", {"inverse": torch.ones(6, 6)}),
        ("acil", {"base_weights": torch.ones(6, 3)}),
        ("c-ranpac", {"base_covariances": torch.ones(2, 5, 5)}),
        ("nam-recursive", {"shot_sums.totals": torch.ones(1, dtype=torch.float64)}),
        ("nam-recursive", {"shot_sums.totals": torch.ones(1, 6, dtype=torch.float64)}),
        ("nam-recursive", {"base_sums.counts": torch.ones(3, dtype=torch.float64)}),
        ("nam-recursive", {"expansion.centre": torch.ones(1)}),
        ("nam-recursive", {"expansion.metric": torch.ones(2, 2), "expansion.centre": torch.ones(2)}),
        ("cosine", {"scale": torch.ones(3)}),
    ],
)
def test_a_tensor_of_a_file_has_the_shape_of_the_heads_own(tmp_path, head, tensors):
    with pytest.raises(ValueError, match=r"forged (does not fit|is damaged)") as error:
        saving.read_head(forged_memory(tmp_path, head, tensors=tensors))
    assert "\n" not in str(error.value)


def test_a_head_of_a_file_that_fails_when_it_is_used_says_that_the_file_cannot_be_used(tmp_path):
    """The matrix has no Cholesky factor: only the computation finds out."""
    path = forged_memory(tmp_path, "klda", tensors={"scatter": -torch.eye(1000)})
    _, head, _ = saving.read_head(path)
    with pytest.raises(ValueError, match=r"forged: this memory cannot be used: LinAlgError: linalg\.cholesky") as error:
        head(torch.ones(6))
    assert "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, torch.linalg.LinAlgError)
    with pytest.raises(ValueError, match="cannot be used"):
        copy.deepcopy(head).predict(torch.ones(6))
    _, whole, _ = saving.read_head(tmp_path / "a")
    with pytest.raises(TypeError, match="must be a float tensor"):  # a mistake of the caller stays what it is
        whole(torch.ones(6, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nam", {"keep_shots": 0}),
        ("cosine", {"power_norm": 1}),
        ("klda", {"seed": 2**63}),
        ("klda", {"ridge": True}),
        ("nam-sequential", {"p_erase": True}),
    ],
)
def test_what_could_not_be_loaded_again_is_not_written(tmp_path, name, options):
    """The file replaced a good one, and no load took it."""
    (tmp_path / "a").write_bytes(b"good")
    head = create(name, **options).write(torch.eye(6)[:4], ["a", "b", "a", "b"])
    with pytest.raises(ValueError, match="is not written, since it could not be loaded again"):
        saving.write_head(tmp_path / "a", head, {"backbone": "x", "weights": "y"}, torch.ones(6))
    assert (tmp_path / "a").read_bytes() == b"good"


def test_every_head_comes_back_from_a_file_with_settings_of_every_kind(tmp_path):
    made = [create("klda", seed=2**40, width=8, ridge=1), create("cosine", scale=2), create("nearest")]
    made += [create(name) for name in available() if not needs_base(name)]
    for head in made:
        head.write(torch.eye(6)[:4], ["a", "b", "a", "b"])
        saving.write_head(tmp_path / "a", head, {"backbone": "x", "weights": "y"}, torch.ones(6))
        _, found, _ = saving.read_head(tmp_path / "a")
        assert torch.equal(found(torch.ones(6)), head(torch.ones(6))), type(head).__name__


def test_a_description_nested_deeply_is_refused_in_one_line(attached, painted, tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "deep.safetensors"
    attached().learn(painted(0), "a").save(source)
    deep = "[" * 100_000
    save_file(load_file(source), target, {"format": saving.FORMAT, "version": "1", "about": deep})
    refused(attached(), target, "its description cannot be read")


def test_a_setting_that_changed_in_the_file_is_refused(attached, painted, tmp_path):
    source = tmp_path / "a.safetensors"
    teach(attached(), painted).save(source)
    content = source.read_bytes()
    assert content.count(b'\\"ridge\\": 16.0') == 1
    (tmp_path / "b.safetensors").write_bytes(content.replace(b'\\"ridge\\": 16.0', b'\\"ridge\\": 76.0'))
    refused(attached().learn(painted(5), "mine"), tmp_path / "b.safetensors", "is damaged")


def test_saving_where_there_is_no_directory_says_so(nam, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        nam.save(tmp_path / "nowhere" / "a.safetensors")


# --- crashes and company


def test_a_full_disk_is_an_error_of_the_system_and_leaves_the_old_file(nam, painted, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    nam.learn(painted(0), "a").save(path)
    before = path.read_bytes()

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match=r"cannot be written .*No space left on device.*: the old file is as it was"):
        nam.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def killed_at(stage, nam, path):
    """Save in a child process that is killed at a stage of the save."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    if stage == "half written":

        def half(tensors, target, metadata):
            save_file(tensors, target, metadata)
            os.truncate(target, os.path.getsize(target) // 2)
            die()

        safetensors.torch.save_file = half
    elif stage == "before fsync":
        os.fsync = die
    elif stage == "before replace":
        os.replace = die
    nam.save(path)
    os._exit(0)


@needs_fork
@pytest.mark.parametrize("stage", ["half written", "before fsync", "before replace", "done"])
def test_a_save_that_is_killed_leaves_the_file_that_was_there(attached, painted, tmp_path, stage):
    path = tmp_path / "a.safetensors"
    nam = attached().learn(painted(0), "old")
    nam.save(path)
    nam.learn(painted(1), "new")
    assert killed_at(stage, nam, path) == (0 if stage == "done" else signal.SIGKILL)
    assert attached().load(path).classes == (["old", "new"] if stage == "done" else ["old"])


def save_for_ever(nam, path, started):
    while True:
        nam.save(path)
        started.set()


@needs_fork
def test_a_process_killed_at_random_moments_leaves_a_loadable_file(attached, painted, tmp_path):
    path, fork = tmp_path / "a.safetensors", multiprocessing.get_context("fork")
    nam, chance = attached().learn([painted(i) for i in range(20)], range(20)), random.Random(0)
    for _ in range(15):
        started = fork.Event()
        child = fork.Process(target=save_for_ever, args=(nam, path, started))
        child.start()
        assert started.wait(60)
        time.sleep(chance.uniform(0, 0.03))
        child.kill()
        child.join()
        assert attached().load(path).classes == list(range(20))


def save_often(nam, path, times):
    for _ in range(times):
        nam._versions.clear()  # as one that never looked at the file
        nam.save(path)


@needs_fork
def test_two_processes_that_save_at_once_leave_one_whole_file(attached, painted, tmp_path):
    path, fork = tmp_path / "a.safetensors", multiprocessing.get_context("fork")
    models = [attached().learn([painted(i) for i in range(n)], range(n)) for n in (3, 30)]
    models[0].save(path)
    children = [fork.Process(target=save_often, args=(nam, path, 40)) for nam in models]
    for child in children:
        child.start()
    seen = set()
    while any(child.is_alive() for child in children):
        seen.add(len(attached().load(path).classes))
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert seen | {len(attached().load(path).classes)} <= {3, 30}
    assert list(tmp_path.iterdir()) == [path]


# --- other processes and other times


def test_a_new_process_gives_the_same_answers(attached, painted, tmp_path):
    nam = teach(attached(), painted)
    nam.save(tmp_path / "a.safetensors")
    painted(3).save(tmp_path / "3.png")
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import conftest, fewshot_nam\n"
        "nam = fewshot_nam.attach(conftest.Tiny(), classifier='fc', transform=conftest.prepare).load(sys.argv[1])\n"
        "print(nam.classes, nam.head.threshold, nam(sys.argv[2]).tolist(), nam.predict(sys.argv[2], unknown='?'))"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "a.safetensors"), str(tmp_path / "3.png")]
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    answer = nam.predict(painted(3), unknown="?")
    assert done.stdout.strip() == f"{nam.classes} {nam.head.threshold} {nam(painted(3)).tolist()} {answer}"


def test_there_is_a_file_of_every_released_format():
    assert [path.name for path in RELEASED] == ["v0.1.safetensors"]


def test_a_file_with_kept_classes_that_an_earlier_version_wrote_answers_as_then(attached, painted, tmp_path):
    ordinary = [painted(i) for i in range(1000, 1100)]
    nam = attached(keep_classes=["a", "b", "c", "d", 4], base_images=ordinary)
    assert isinstance(nam.learn(painted(0), "soon forgotten").head, KeptClassifierHead)
    nam.load(Path(__file__).parent / "data" / "kept_classes" / "v0.1.safetensors")
    assert isinstance(nam.head, ErasedWeightsHead)
    assert nam.base_cost is None
    assert nam.classes == ["a", "b", "c", "d", 4, "new", "other", "third"]
    expected = torch.tensor([-0.9771, -1.1469, -0.5103, -1.5388, -0.0998, -1.6068, 0.6641, 1.3655])
    torch.testing.assert_close(nam(painted(7))[0], expected, atol=1e-3, rtol=0)
    assert nam.predict([painted(i) for i in (6, 7, 8, 10, 14)]) == ["new", "third", "other", "b", "third"]
    nam.save(tmp_path / "again.safetensors")
    again = attached().load(tmp_path / "again.safetensors")
    assert torch.equal(again(painted(7)), nam(painted(7)))
    assert again.learn(painted(9), "later").forget("new").classes[-2:] == ["third", "later"]


def test_a_model_with_kept_classes_loads_with_its_base_images(attached, painted, tmp_path):
    ordinary = [painted(i) for i in range(1000, 1100)]
    nam = attached(keep_classes=list("abcde"), base_images=ordinary)
    nam.learn([painted(i) for i in range(6)], [1, 1, 2, 2, 3, 3]).save(tmp_path / "a.safetensors")
    images = [painted(i) for i in range(20)]
    for other in (attached(), attached(keep_classes=[1, 2, 3, 4, 5], base_images=ordinary[:50])):
        other.load(tmp_path / "a.safetensors")
        assert torch.equal(other(images), nam(images))
        assert other.base_cost == nam.base_cost
        torch.testing.assert_close(
            other.learn(painted(30), 4)(images), copy.deepcopy(nam).learn(painted(30), 4)(images)
        )


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_files_of_released_versions_load(attached, painted, path):
    nam, fresh = attached(), teach(attached(), painted)
    with pytest.warns(UserWarning, match="written by an earlier version, .* was removed: probability temperature"):
        nam.load(path)
    assert nam.classes == ["badger", 7]
    torch.testing.assert_close(nam(painted(3)), fresh(painted(3)))
    assert nam.head.threshold == pytest.approx(fresh.head.threshold, abs=1e-5)

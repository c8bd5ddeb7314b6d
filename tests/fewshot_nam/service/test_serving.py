"""A memory that is served: answers as the model's, changes saved before they are acknowledged, limits, several processes."""

import io
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from fewshot_nam.io.image_io import UnreadableImage
from fewshot_nam.service.serving import Limits, MemoryService, Metrics, Overloaded, Unusable
from fewshot_nam.vision import memory_lock
from fewshot_nam.vision.memory_files import new_model, open_model
from fewshot_nam.vision.saving import read_head, save_head, write_head


def content(image):
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


@pytest.fixture(scope="session")
def png(digits):
    """Return the digits as the bytes of PNG files."""
    return {label: [content(image) for image in images] for label, images in digits.items()}


@pytest.fixture
def memory(digits, tmp_path):
    path = tmp_path / "memory.safetensors"
    model, notes = new_model("conv4", path)
    for label in range(2):
        model.learn(digits[label][:3], f"digit {label}")
    save_head(path, model.head, model.backbone, notes)
    return path


@pytest.fixture
def service(memory):
    return MemoryService(memory)


def test_answers_are_those_of_the_model(service, memory, png, digits):
    model, _ = open_model(memory)
    found = service.predict([png[0][20], png[1][20]])
    assert found["threshold"] is None
    assert found["writes"] == 0
    for one, image in zip(found["predictions"], (digits[0][20], digits[1][20]), strict=True):
        assert one["label"] == one["best"] == model.predict(image)
        assert one["accepted"] is None
        scores = dict(zip(model.classes, model(image)[0].tolist(), strict=True))
        assert {row["label"]: row["score"] for row in one["ranking"]} == pytest.approx(scores, abs=1e-5)


def test_changes_are_in_the_file_when_they_are_acknowledged(service, memory, png):
    told = service.learn([png[2][0], png[2][1], png[2][0]], "two")
    assert told == {"label": "two", "learned": 2, "repeated": 1, "classes": 3, "writes": 1}
    model, notes = open_model(memory)
    assert model.classes == ["digit 0", "digit 1", "two"]
    assert notes["writes"] == 1
    assert service.forget(["digit 1"]) == {"forgotten": ["digit 1"], "classes": 2, "writes": 2}
    assert open_model(memory)[0].classes == ["digit 0", "two"]
    unknown = [image for label in range(4, 8) for image in png[label][:10]]
    told = service.calibrate(unknown, 0.1)
    assert told["unknowns"] == 40
    assert open_model(memory)[0].head.threshold == pytest.approx(told["threshold"])
    answer = service.predict([png[0][30]])["predictions"][0]
    assert answer["accepted"] == (answer["score"] >= told["threshold"])
    refused = service.predict(unknown)["predictions"]
    assert sum(one["label"] is None for one in refused) >= 36


def test_a_served_memory_equals_one_built_afresh(service, memory, png, digits):
    service.learn(png[2][:3], "two")
    service.learn(png[3][:1], "three")
    service.forget(["digit 0"])
    service.learn(png[2][3:4], "two")
    fresh, _ = new_model("conv4", memory)
    fresh.learn(digits[1][:3], "digit 1").learn(digits[2][:3], "two").learn(digits[3][:1], "three")
    fresh.learn(digits[2][3:4], "two")
    query = fresh.features(digits[2][20:30])
    assert service.current().head(query).sub(fresh.head(query)).abs().max() < 1e-5


def test_what_is_learned_already_changes_nothing(service, memory, png):
    before = memory.stat()
    assert service.learn(png[0][:2], "digit 0") == {
        **{"label": "digit 0", "learned": 0, "repeated": 2},
        **{"classes": 2, "writes": 0},
    }
    for label in ("nought", "digit 1"):  # the answer was the one to an image that is repeated
        with pytest.raises(ValueError, match=r"images\[1\] was learned as 'digit 0': leave it out, or forget"):
            service.learn([png[9][0], png[0][0]], label)
    assert memory.stat() == before


def test_images_of_unknowns_that_are_learned_are_unknown_no_more(service, png):
    """They held the threshold at the scores of their own class: nearly all known images were refused, without a word."""
    given = [image for label in (4, 5, 6) for image in png[label][:10]]
    service.calibrate(given, 0.05)
    learned = service.learn(png[4][:10], "four")
    assert "10 samples of unknowns are learned now: the threshold does without them" in learned["warning"]
    assert service.current().head.num_unknowns == 20
    assert [one["label"] for one in service.predict(png[4][:10])["predictions"]] == ["four"] * 10
    said = service.learn(png[5][:2], "five")["warning"]
    assert "2 samples of unknowns are learned now, and are still among those that the threshold follows from" in said
    assert "needs at least 19 samples of unknowns, got 18" in said
    assert service.current().head.num_unknowns == 20


@pytest.mark.parametrize("head", ["nam-recursive", "nam-expanded"])
def test_heads_that_keep_no_images_know_how_many_they_learned(head, png, digits, tmp_path):
    path = tmp_path / "memory.safetensors"
    model, notes = new_model("conv4", path, head=head)
    save_head(path, model.learn(digits[0][:3], "zero").learn(digits[1][0], "one").head, model.backbone, notes)
    service = MemoryService(path)
    service.learn(png[1][1:3], "one")
    service.learn(png[2][:5], "two")
    service.forget(["zero"])
    assert service.describe()["classes"] == [{"label": "one", "images": 3}, {"label": "two", "images": 5}]


def test_a_rate_that_cannot_be_kept_any_more_lets_nothing_through(memory, digits, digit_files):
    """The server answered with a class for every image, and counted them as accepted."""
    path = Path(memory)
    about, head, probed = read_head(path)
    unknown = torch.randn(19, head.feature_dim, generator=torch.Generator().manual_seed(0))
    head.calibrate(unknown, target_fpr=0.05, unknown_labels=[f"unknown {i}" for i in range(19)])
    write_head(path, head, about, probed)
    service, image = MemoryService(memory), digit_files[5][0].read_bytes()
    assert service.predict([image])["predictions"][0]["accepted"] in (True, False)
    learned = service.learn([digit_files[7][0].read_bytes()], "unknown 3")
    assert learned["warning"].startswith("nothing is answered: the rate of this memory cannot be kept any more (")
    with pytest.raises(Unusable, match="nothing is answered"):
        service.predict([image])
    assert "warning" in service.learn([digit_files[7][1].read_bytes()], "unknown 3")
    service.calibrate([file.read_bytes() for file in digit_files[6][:19]], 0.05)
    assert service.predict([image])["threshold"] is not None


def test_a_save_that_fails_changes_nothing(service, memory, png, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        service.learn(png[2][:1], "two")
    monkeypatch.undo()
    assert [one["label"] for one in service.describe()["classes"]] == ["digit 0", "digit 1"]
    assert service.learn(png[2][:1], "two")["writes"] == 1


def test_two_processes_on_one_file_see_each_other_at_once(service, memory, png):
    other = MemoryService(memory)
    service.learn(png[2][:1], "two")
    assert other.predict([png[2][0]])["predictions"][0]["best"] == "two"
    other.learn(png[3][:1], "three")
    service.forget(["two"])
    assert [one["label"] for one in other.describe()["classes"]] == ["digit 0", "digit 1", "three"]
    assert other.current().writes == service.current().writes == 3


def test_a_memory_of_another_backbone_in_its_place_is_refused(service, memory, png):
    model, notes = new_model("conv4", memory, "random")
    save_head(memory, model.head, model.backbone, notes)
    with pytest.raises(ValueError, match="of another backbone"):
        service.predict([png[0][0]])


def test_a_memory_of_another_backbone_is_not_called_damaged(service, memory, png, tmp_path):
    """Its state was loaded into the head of the one before, which it does not fit."""
    pytest.importorskip("timm")
    model, notes = new_model("timm/test_resnet", tmp_path / "other.safetensors", "random")
    model.learn([Image.open(io.BytesIO(png[0][0]))], "zero")
    save_head(tmp_path / "other.safetensors", model.head, model.backbone, notes)
    (tmp_path / "other.safetensors").replace(memory)
    with pytest.raises(Unusable, match="of another backbone: start the server again"):
        service.predict([png[0][0]])
    with pytest.raises(
        ValueError, match=r"was learned with the backbone timm/test_resnet, weights .*; this one is conv4"
    ):
        new_model("conv4", tmp_path / "new.safetensors")[0].load(memory)


def test_images_whose_client_has_gone_are_not_read(service, png, monkeypatch):
    """Sixteen requests that hung up at once kept who came next waiting for 25 seconds."""
    monkeypatch.setattr(service, "_transformed", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(Overloaded, match="the client has gone"):
        service.predict([png[0][0]], is_gone=lambda: True)


def test_changes_that_wait_for_each_other_and_for_the_file_wait_once(service, memory, monkeypatch):
    """The third waited fifteen minutes for a lock that another program never gave back."""
    monkeypatch.setattr(memory_lock, "_LOCK_SECONDS", 1.0)
    with memory_lock.exclusive(memory), ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        waiting = [pool.submit(service.forget, ["digit 0"]) for _ in range(4)]
        assert all(isinstance(one.exception(30), OSError) for one in waiting)
        assert time.monotonic() - began < 2.5
    assert service.forget(["digit 0"])["forgotten"] == ["digit 0"]


def test_a_memory_of_another_transform_in_its_place_is_refused(service, memory, png):
    """It was answered from with features of the first, and a change left a file that no program could open."""
    about, head, probed = read_head(memory)
    write_head(memory, head, about, probed.flip(0))
    content = memory.read_bytes()
    for ask in (lambda: service.predict([png[0][0]]), lambda: service.learn(png[2][:1], "two")):
        with pytest.raises(Unusable, match="of another transform"):
            ask()
    assert memory.read_bytes() == content


def test_limits(memory, png, digits):
    service = MemoryService(memory, limits=Limits(images=2, image_bytes=5000, pixels=1700, classes=2))
    with pytest.raises(ValueError, match="3 images are too many for one request: at most 2"):
        service.predict(png[0][:3])
    with pytest.raises(ValueError, match="no images"):
        service.predict([])
    with pytest.raises(UnreadableImage, match=r"images\[1\]: 6,000 bytes"):
        service.predict([png[0][0], b"x" * 6000])
    with pytest.raises(UnreadableImage, match=r"images\[0\]: 50 x 50 pixels are too many: at most 1,700"):
        service.predict([content(digits[0][0].resize((50, 50)))])
    with pytest.raises(UnreadableImage, match=r"images\[0\]: not an image"):
        service.predict([b"no image"])
    with pytest.raises(ValueError, match="2 classes, the most it may"):
        service.learn(png[2][:1], "two")
    assert service.learn(png[0][10:11], "digit 0")["learned"] == 1
    with pytest.raises(ValueError, match="no name"):
        service.learn(png[0][11:12], " ")
    with pytest.raises(ValueError, match="never written"):
        service.forget(["none"])


def test_the_pixels_of_a_request_are_bounded_together(memory, png):
    service = MemoryService(memory, limits=Limits(request_pixels=3 * 40 * 40))
    assert len(service.predict(png[0][:3])["predictions"]) == 3
    with pytest.raises(UnreadableImage, match="6,400 pixels are too many for one request: at most 4,800"):
        service.predict(png[0][:4])


def test_one_image_of_a_request_is_decoded_at_a_time(service, png, monkeypatch):
    """A bomb of 200 KB holds 64 million pixels; 64 of them at once would be 12 GB."""
    alive, decode, most = [], service._decoder.decoded, 0

    def counted(content, place, most_pixels):
        nonlocal most
        image = decode(content, place, most_pixels)
        alive.append(weakref.ref(image))
        most = max(most, sum(one() is not None for one in alive))
        return image

    monkeypatch.setattr(service._decoder, "decoded", counted)
    assert len(service.predict(png[0][:8])["predictions"]) == 8
    assert most <= 2  # the one before may be let go after the next is there


def test_few_large_images_are_decoded_at_a_time_and_small_ones_meanwhile(memory, png, monkeypatch):
    """Each of 64 million pixels takes a gigabyte, and as many were decoded at once as the backbone has threads."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    service = MemoryService(memory)
    small, decode, here, most, lock = png[0][0], service._decoder.decoded, [0], [0], threading.Lock()
    answered = threading.Event()

    def slow(content, place, most_pixels):
        if content != small:
            with lock:
                here[0] += 1
                most[0] = max(most[0], here[0])
            assert answered.wait(30)
            with lock:
                here[0] -= 1
        return decode(content, place, most_pixels)

    monkeypatch.setattr(service._decoder, "decoded", slow)
    large = io.BytesIO()
    Image.new("L", (2100, 2000)).save(large, "PNG")
    with ThreadPoolExecutor(5) as threads:
        waiting = [threads.submit(service.predict, [large.getvalue()]) for _ in range(5)]
        assert service.predict([small])["predictions"]  # not behind them
        answered.set()
        assert all(one.result()["predictions"] for one in waiting)
    assert most[0] == 2


def test_who_waits_for_a_file_that_changes_all_the_time_has_it_read_once(service, monkeypatch):
    """Each of those who waited read it anew, since it had changed again meanwhile."""
    read, reads, begun, go_on = service._read, [], threading.Event(), threading.Event()

    def slow():
        reads.append(len(reads))
        begun.set()
        assert go_on.wait(30)
        return read()._replace(file=Changed())

    class Changed:
        def is_at(self, path):
            return False

    monkeypatch.setattr(service, "_read", slow)
    service.state = service.state._replace(file=Changed())
    with ThreadPoolExecutor(9) as threads:
        first = threads.submit(service.current)
        assert begun.wait(30)
        waiting = [threads.submit(service.current) for _ in range(8)]
        time.sleep(0.2)
        go_on.set()
        assert len({id(one.result()) for one in [first, *waiting]}) == 2
    assert len(reads) == 2  # that which had begun before they asked, and one for all of them


def test_who_waits_for_a_file_that_cannot_be_read_is_refused_too(service, png, monkeypatch):
    """They were answered from the state before it, and a change among them was saved over what was there."""
    begun, go_on, there = threading.Event(), threading.Event(), service.path.read_bytes()

    def read_head(*_):
        begun.set()
        assert go_on.wait(30)
        raise ValueError("no memory")

    monkeypatch.setattr("fewshot_nam.service.serving.read_head", read_head)
    service.path.write_bytes(there + b"another")
    with ThreadPoolExecutor(9) as threads:
        first = threads.submit(service.current)
        assert begun.wait(30)
        waiting = [threads.submit(service.current) for _ in range(7)]
        waiting.append(threads.submit(service.learn, png[3][:1], "three"))
        time.sleep(0.3)
        go_on.set()
        for one in (first, *waiting):
            with pytest.raises(Unusable, match="replaced by what is none"):
                one.result()
    assert service.path.read_bytes() == there + b"another"


def test_too_many_that_wait_are_sent_away(memory, png):
    service = MemoryService(memory, limits=Limits(waiting=0))
    with pytest.raises(Overloaded):
        service.predict([png[0][0]])


def test_a_memory_that_knows_nothing_says_so_and_learns(memory, png):
    service = MemoryService(memory)
    service.forget(["digit 0", "digit 1"])
    with pytest.raises(ValueError, match="nothing was learned yet"):
        service.predict([png[0][0]])
    service.learn(png[0][:1], "zero")
    assert service.predict([png[0][1]])["predictions"][0]["label"] == "zero"


def test_readers_do_not_wait_for_a_writer_and_see_whole_states(service, png, monkeypatch):
    saving_now, go_on = threading.Event(), threading.Event()
    write = safetensors.torch.save_file

    def slow(*arguments, **named):
        saving_now.set()
        assert go_on.wait(30)
        write(*arguments, **named)

    monkeypatch.setattr("safetensors.torch.save_file", slow)
    writer = threading.Thread(target=service.learn, args=(png[2][:1], "two"))
    writer.start()
    assert saving_now.wait(30)
    found = service.predict([png[2][0]])  # while it is being saved
    assert found["writes"] == 0
    assert found["predictions"][0]["best"] != "two"
    go_on.set()
    writer.join(30)
    found = service.predict([png[2][0]])
    assert (found["writes"], found["predictions"][0]["best"]) == (1, "two")


def test_a_class_is_forgotten_by_any_spelling_that_learns_it(service, png):
    service.learn(png[2][:1], "caf\u00e9")
    assert service.learn(png[2][1:2], "cafe\u0301")["label"] == "caf\u00e9"
    assert service.forget(["cafe\u0301"])["forgotten"] == ["caf\u00e9"]


def test_many_writers_lose_nothing(service, memory, png, monkeypatch):
    monkeypatch.setattr(memory_lock, "_LOCK_SECONDS", 30)
    services = [service, MemoryService(memory)]
    threads = [threading.Thread(target=services[i % 2].learn, args=(png[i][5:6], f"class {i}")) for i in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(open_model(memory)[0].classes) == 8
    assert {one.current().writes for one in services} == {6}


def test_metrics_are_in_the_format_of_prometheus(service):
    metrics = Metrics()
    for seconds in (0.004, 0.02, 99.0):
        metrics.request("/predict", 200, seconds)
    metrics.request("/learn", 401, 0.001)
    metrics.answers(3, 2)
    lines = metrics.text(service.state).splitlines()
    assert 'fewshot_nam_requests_total{route="/predict",status="200"} 3' in lines
    buckets = [
        line.split()[-1] for line in lines if line.startswith('fewshot_nam_request_seconds_bucket{route="/predict"')
    ]
    assert buckets == ["1", "1", "2", "2", "2", "2", "2", "2", "2", "2", "2", "3"]
    assert 'fewshot_nam_request_seconds_count{route="/predict"} 3' in lines
    assert 'fewshot_nam_images_total{answer="refused"} 2' in lines
    assert "fewshot_nam_classes 2" in lines


def test_answers_of_batches_are_those_of_single_images(service, png):
    together = service.predict(png[0][:8] + png[1][:8])["predictions"]
    alone = [service.predict([one])["predictions"][0] for one in png[0][:8] + png[1][:8]]
    assert [one["best"] for one in together] == [one["best"] for one in alone]
    assert torch.tensor([one["score"] for one in together]).allclose(
        torch.tensor([one["score"] for one in alone]), atol=1e-5
    )

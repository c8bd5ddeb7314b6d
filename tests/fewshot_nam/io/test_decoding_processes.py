"""Images decoded in processes of their own: the same images, and bounds on memory and time."""

import gc
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot_nam.io import decoding_processes
from fewshot_nam.io.decoding_processes import DecodingProcesses
from fewshot_nam.io.image_io import UnreadableImage, decoded

MOST = 64_000_000


@pytest.fixture(scope="module")
def decoder():
    made = DecodingProcesses(seconds=300.0)  # tests may run beside others
    yield made
    made.close()


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


FILES = {
    "RGB": lambda: file_of(Image.fromarray(noise(7, 9, 3)), "PNG"),
    "RGBA": lambda: file_of(Image.fromarray(noise(7, 9, 4)), "PNG"),
    "LA": lambda: file_of(Image.fromarray(noise(7, 9, 4)).convert("LA"), "PNG"),
    "L with a transparent grey": lambda: file_of(
        Image.fromarray(noise(7, 9)), "PNG", transparency=int(noise(7, 9)[0, 0])
    ),
    "RGB with a transparent colour": lambda: file_of(
        Image.fromarray(noise(7, 9, 3)), "PNG", transparency=tuple(map(int, noise(7, 9, 3)[0, 0]))
    ),
    "1": lambda: file_of(Image.fromarray(noise(7, 9) > 128), "PNG"),
    "16 bits": lambda: file_of(Image.fromarray(noise(7, 9).astype(np.uint16) * 257), "PNG"),
    "palette": lambda: file_of(Image.fromarray(noise(7, 9, 3)).quantize(5), "PNG"),
    "palette with a transparent colour": lambda: file_of(
        Image.fromarray(noise(7, 9, 3)).quantize(5), "PNG", transparency=bytes([0, 128, 255])
    ),
    "GIF": lambda: file_of(Image.fromarray(noise(7, 9, 3)).quantize(5), "GIF", transparency=1),
    "CMYK": lambda: file_of(Image.fromarray(noise(16, 8, 3)).convert("CMYK"), "JPEG"),
    "a turned JPEG": lambda: file_of(Image.fromarray(noise(16, 8, 3)), "JPEG", exif=turned()),
    "float": lambda: file_of(Image.fromarray(noise(7, 9).astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_what_it_is_in_this_process(decoder, name):
    content = FILES[name]()
    ours, theirs = decoded(content, "file"), decoder.decoded(content, "file", MOST)
    assert (ours.mode, ours.size, ours.getpalette()) == (theirs.mode, theirs.size, theirs.getpalette())
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert ours.info.get("transparency") == theirs.info.get("transparency")
    if ours.mode != "F" and not ours.mode.startswith("I"):
        assert np.array_equal(np.asarray(ours.convert("RGBA")), np.asarray(theirs.convert("RGBA")))
    assert decoder.size(content, "file") == Image.open(io.BytesIO(content)).size


def test_one_process_decodes_one_image_after_the_other_and_others_what_comes_meanwhile(decoder):
    content = FILES["RGB"]()
    decoder.decoded(content, "file", MOST)
    process = decoder._idle[-1].pid
    for _ in range(3):
        decoder.decoded(content, "file", MOST)
        assert decoder._idle[-1].pid == process
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(decoder.decoded(content, "f", MOST).size)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(9, 7)] * 4
    assert 1 <= len(decoder._idle) <= max(2, os.cpu_count())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_waits_holds_no_image():
    decoder = DecodingProcesses(seconds=300.0)
    decoder.decoded(FILES["RGB"](), "file", MOST)
    status = Path(f"/proc/{decoder._idle[-1].pid}/status")

    def resident() -> int:
        return int(re.search(r"VmRSS:\s+(\d+) kB", status.read_text())[1]) // 1024

    before = resident()
    decoder.decoded(file_of(Image.new("RGB", (6000, 6000)), "PNG"), "file", MOST)
    for _ in range(100):  # it answers first, and lets go then
        if resident() < before + 50:
            break
        time.sleep(0.1)
    assert resident() < before + 50
    decoder.close()


def test_what_is_refused_is_refused_in_the_same_words(decoder):
    for content in (b"no image", FILES["RGB"]()[:-30], file_of(Image.new("1", (9000, 8000)), "PNG")):
        with pytest.raises(UnreadableImage) as ours:
            decoded(content, "file", MOST)
        with pytest.raises(UnreadableImage) as theirs:
            decoder.decoded(content, "file", MOST)
        assert str(ours.value) == str(theirs.value)
    with pytest.raises(UnreadableImage, match="file: not an image, or cut short"):
        decoder.size(b"no image", "file")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory differ between systems")
def test_an_image_that_takes_too_much_memory_is_refused_and_the_next_is_decoded():
    decoder = DecodingProcesses(memory=400 * 2**20, seconds=300.0)
    large = file_of(Image.new("RGB", (8000, 8000)), "PNG")
    with pytest.raises(UnreadableImage, match="takes too much memory to decode"):
        decoder.decoded(large, "file", MOST)
    assert decoder.decoded(FILES["RGB"](), "file", MOST).size == (9, 7)
    decoder.close()


def test_an_image_that_takes_too_long_is_refused_and_the_next_is_decoded(monkeypatch):
    monkeypatch.setattr(decoding_processes, "PIXELS_A_SECOND", float("inf"))
    decoder = DecodingProcesses(seconds=0.2)
    large = file_of(Image.new("RGB", (8000, 7000)), "PNG")
    began = time.monotonic()
    with pytest.raises(UnreadableImage, match="file: takes more than 0 seconds to decode"):
        decoder.decoded(large, "file", MOST)
    assert time.monotonic() - began < 30
    decoder.seconds = 60.0
    assert decoder.decoded(FILES["RGB"](), "file", MOST).size == (9, 7)
    decoder.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no limit on the time that a processor works here")
def test_time_in_which_others_work_does_not_count(monkeypatch, decoder):
    """A valid photograph was refused while the machine was busy."""
    decoder.decoded(FILES["RGB"](), "file", MOST)
    process = decoder._idle[-1]
    monkeypatch.setattr(decoder, "seconds", 1.0)
    monkeypatch.setattr(decoding_processes, "PIXELS_A_SECOND", float("inf"))
    os.kill(process.pid, signal.SIGSTOP)
    threading.Timer(2.0, os.kill, (process.pid, signal.SIGCONT)).start()
    assert decoder.decoded(FILES["RGB"](), "file", MOST).size == (9, 7)
    assert process.poll() is None


def test_a_process_that_was_killed_is_replaced(decoder):
    content = FILES["RGB"]()
    decoder.decoded(content, "file", MOST)
    for process in decoder._idle:
        process.kill()
        process.wait()
    assert decoder.decoded(content, "file", MOST).size == (9, 7)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows cannot stop a process")
def test_a_stop_of_the_whole_group_and_a_kill_say_nothing_of_the_image(decoder, monkeypatch):
    """A server that was stopped answered that good images are none, and so did one whose system had no memory left."""
    content = FILES["RGB"]()
    decoder.decoded(content, "file", MOST)
    (process,) = decoder._idle[-1:]
    os.kill(process.pid, signal.SIGTERM)
    assert decoder.decoded(content, "file", MOST).size == (9, 7)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGSTOP)
    threading.Timer(1.0, os.kill, (process.pid, signal.SIGKILL)).start()
    assert decoder.decoded(content, "file", MOST).size == (9, 7)
    assert process.poll() == -signal.SIGKILL

    def killed(*_):
        raise decoding_processes._Killed

    monkeypatch.setattr(decoder, "_answer", killed)
    with pytest.raises(UnreadableImage, match="file: was not decoded, because the process that does was killed"):
        decoder.decoded(content, "file", MOST)


def test_nothing_in_the_directory_it_is_started_in_is_imported(tmp_path):
    for name in ("base64", "json", "warnings", "contextlib", "PIL", "fewshot_nam"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()")
    program = (
        "import sys; sys.path[:] = [part for part in sys.path if part]; import os; from PIL import Image; "
        "from fewshot_nam.io.decoding_processes import DecodingProcesses; os.chdir(sys.argv[1]); made = DecodingProcesses(); "
        "print(made.size(open(sys.argv[2], 'rb').read(), 'file')); made.close()"
    )
    (tmp_path / "image.png").write_bytes(FILES["RGB"]())
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(tmp_path / "image.png")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "(9, 7)\n"
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="files cannot be closed so")
def test_it_starts_where_standard_error_is_closed(tmp_path):
    program = (
        "import sys; from fewshot_nam.io.decoding_processes import DecodingProcesses; made = DecodingProcesses(); "
        "print(made.size(open(sys.argv[1], 'rb').read(), 'file')); made.close()"
    )
    (tmp_path / "image.png").write_bytes(FILES["RGB"]())
    words = [sys.executable, "-c", program, str(tmp_path / "image.png")]
    found = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *words], stdout=subprocess.PIPE, text=True, check=True)
    assert found.stdout == "(9, 7)\n"


def test_what_takes_another_package_says_which_when_its_size_is_asked_for(decoder):
    with pytest.raises(UnreadableImage) as whole:
        decoder.decoded(b"\0\0\0\x18ftypheic" + bytes(40), "file", MOST)
    with pytest.raises(UnreadableImage) as size:
        decoder.size(b"\0\0\0\x18ftypheic" + bytes(40), "file")
    assert str(size.value) == str(whole.value)


def test_processes_end_with_the_one_that_asked(decoder):
    decoder.decoded(FILES["RGB"](), "file", MOST)
    process = decoder._idle[-1]
    decoder.close()
    assert process.poll() is not None
    assert decoder._idle == []
    kept = DecodingProcesses(seconds=300.0)
    kept.decoded(FILES["RGB"](), "file", MOST)
    process = kept._idle[-1]
    del kept
    gc.collect()
    assert process.poll() is not None

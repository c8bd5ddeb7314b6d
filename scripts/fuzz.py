"""Damaged and hostile input to all that reads a file or a command line: an answer, or an error of one line that names the fault.

    pip install ".[test]" && python scripts/fuzz.py [target ...] --minutes 10 --seed 0

Targets: ``images``, ``memories`` and ``banks`` (files with flipped, cut and spliced bytes, and forged ones with right digests),
``yaml`` and ``commands``. Whatever comes in, a reader returns what can be used or raises the errors that it documents; a command
ends with 0 or 2, says at most one line that begins with "error:", and changes no file that it was not told to write. Hypothesis
finds the smallest example of what breaks. The exit code is 1 where something did; the example is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from episodes import FeatureBank
from episodes.cli.main import main as evaluation
from fewshot_nam.cli.main import main as teaching
from fewshot_nam.heads import BaseStatistics, Head, available, create, needs_base
from fewshot_nam.io.image_io import UnreadableImage, decoded
from fewshot_nam.io.yaml_input import load_yaml
from fewshot_nam.vision.digests import tensors_digest, text_digest
from fewshot_nam.vision.image_transform import opaque
from fewshot_nam.vision.saving import read_head, write_head

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA")
WIDTH = 6
NUMBERS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from([2**31, 2**63, -1, 1e308]))
JSON = st.recursive(
    NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


# Bytes.


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return bytes with some flipped, set to extremes, cut out, put in, or copied; often near the beginning, where headers are."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        end = draw(st.sampled_from([32, 128, max(len(content) - 1, 0)]))
        place = draw(st.integers(0, max(min(end, len(content) - 1), 0)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "end", "insert", "copy"]))
        if not content:
            return bytes(content)
        if kind == "flip":
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            value = draw(
                st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1"])
            )
            content[place : place + len(value)] = value
        elif kind == "cut":
            del content[place : place + draw(st.integers(1, 64))]
        elif kind == "end":
            del content[place:]
        elif kind == "insert":
            content[place:place] = draw(st.binary(max_size=32))
        else:
            start = draw(st.integers(0, len(content) - 1))
            content[place:place] = content[start : start + draw(st.integers(1, 64))]
    return bytes(content)


def one_line(error: BaseException) -> None:
    """Raise ``AssertionError`` where an error's message is empty, long, or more than a line."""
    text = str(error)
    assert text, f"{type(error).__name__} without a message"
    assert "\n" not in text, f"more than a line: {text[:200]!r}"
    assert len(text) < 2000, f"{len(text)} characters: {text[:200]!r}"


# Images.


def image_files() -> list[bytes]:
    """Return small images in every format."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    files = []
    for mode in ("RGB", "L", "P", "RGBA", "1", "I;16"):
        grey = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        image = grey if mode == "I;16" else Image.fromarray(pixels).convert(mode)
        for name in FORMATS:
            buffer = io.BytesIO()
            with contextlib.suppress(OSError, ValueError):
                image.save(buffer, format=name, **({"exif": b"Exif\0\0MM\0*\0\0\0\b"} if name == "JPEG" else {}))
                files.append(buffer.getvalue())
    return files


def check_image(content: bytes) -> None:
    """Decode an image and prepare it as every transform does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about damaged files
            image = decoded(content, "file")
    except UnreadableImage as error:
        one_line(error)
        return
    assert all(image.size)
    if image.width * image.height < 1 << 22:
        with contextlib.suppress(ValueError, TypeError):  # which value is white may not be known
            opaque(image).convert("RGB").resize((8, 8))


# Memories.


def memory_files() -> list[bytes]:
    """Return the files of memories of every head that needs no base classes, and of some others, calibrated and not."""
    features = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(0)).abs() + 0.1
    base = BaseStatistics.from_features(features, torch.arange(24) % 6)
    made: list[Head] = [
        create("cosine"),
        create("nam"),
        create("nam", base=base),
        create("nam", base=base, keep_shots=False),
        *(create(name) for name in available() if not needs_base(name)),
    ]
    files = []
    for i, head in enumerate(made):
        head.write(features[:6], ["a", "b", "c"] * 2)
        if i in (1, 3):
            head.write_base(features[6:8], [1, 2]) if i == 1 else None
            head.calibrate(features[8:], target_fpr=0.2)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "memory"
            write_head(path, head, {"backbone": "x", "weights": "y", "notes": {}}, torch.ones(WIDTH))
            files.append(path.read_bytes())
    return files


@st.composite
def forged(draw: st.DrawFn, whole: bytes, description: str) -> bytes:
    """Return a file of safetensors with other tensors and another description, whose digests are right.

    Args:
        draw: of Hypothesis.
        whole: the file.
        description: the key of the metadata that holds JSON.
    """
    tensors = load_tensors(whole)
    with tempfile.NamedTemporaryFile() as file:
        file.write(whole)
        file.flush()
        with safe_open(file.name, framework="pt") as opened:
            metadata = opened.metadata()
    about = json.loads(metadata[description])
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["tensor", "names", "about", "drop"]))
        key = draw(st.sampled_from(sorted(tensors)))
        if kind == "names" and any(name.endswith("_extra_state") for name in tensors):
            key = next(name for name in tensors if name.endswith("_extra_state"))
            try:
                names = json.loads(bytes(tensors[key].tolist()))
                changed(draw, names)
                text = json.dumps(names).encode()
            except (ValueError, TypeError):
                text = draw(st.binary(max_size=20))
            tensors[key] = torch.tensor(list(text), dtype=torch.uint8)
        elif kind == "about":
            changed(draw, about)
        elif kind == "drop":
            del tensors[key]
        else:
            tensors[key] = draw(other_tensor(tensors[key]))
        if not tensors:
            break
    if "contents" in about:
        about["contents"] = tensors_digest(tensors[key] for key in sorted(tensors))
    metadata[description] = json.dumps(about)
    if "about_sha256" in metadata:
        metadata["about_sha256"] = text_digest(metadata[description])
    return save_tensors(tensors, metadata)


def changed(draw: st.DrawFn, content: Any) -> None:
    """Change one value somewhere in what JSON holds."""
    while True:
        keys = sorted(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return
        key = draw(st.sampled_from(keys))
        if isinstance(content[key], (dict, list)) and len(content[key]) and draw(st.booleans()):
            content = content[key]
            continue
        if isinstance(content, dict) and draw(st.booleans()):
            del content[key]
        else:
            content[key] = draw(JSON)
        return


@st.composite
def other_tensor(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    """Return a tensor of another shape, dtype or values."""
    kind = draw(st.sampled_from(["values", "dtype", "shape", "longer"]))
    if kind == "dtype":
        dtypes = [torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.int32]
        return tensor.float().nan_to_num().clamp(-100, 100).to(draw(st.sampled_from(dtypes)))
    if kind == "shape":
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        return torch.ones(shape).to(tensor.dtype)
    if kind == "longer" and tensor.dim():
        return torch.cat([tensor, tensor])
    flat = tensor.clone().flatten()
    if len(flat):
        values: list[float] = [0, 1, 255] if tensor.dtype == torch.uint8 else [-1, 0, 1, 2**29]
        if tensor.is_floating_point():
            values = [-1.0, 0.0, 1e38, float("nan"), float("inf")]
        flat[draw(st.integers(0, len(flat) - 1))] = draw(st.sampled_from(values))
    return flat.reshape(tensor.shape)


def check_memory(content: bytes) -> None:
    """Read a memory, and ask it."""
    with written(content) as path:
        try:
            _, head, _ = read_head(path)
        except (ValueError, OSError) as error:
            one_line(error)
            return
        try:
            scores = head(torch.ones(3, head.feature_dim or WIDTH, dtype=head._dtype()))
            assert scores.isfinite().all(), "scores that are not finite"
            assert scores.shape == (3, len(head.classes))
            assert head.threshold is None or head.threshold == head.threshold
        except ValueError as error:
            one_line(error)


def check_bank(content: bytes) -> None:
    """Read a bank."""
    with written(content) as path:
        try:
            bank = FeatureBank.load(path)
        except (ValueError, OSError) as error:
            one_line(error)
            return
        assert bank.features.float().isfinite().all()
        assert len(bank.features) == len(bank.labels)
        assert len(bank.classes) == bank.num_classes


def bank_files() -> list[bytes]:
    """Return the files of banks, of both kinds."""
    features, labels = torch.rand(8, WIDTH) + 0.1, torch.arange(8) % 3
    npz = io.BytesIO()
    np.savez(npz, features=features.numpy(), labels=labels.numpy(), classes=np.array(["a", "b", "c"]))
    with tempfile.TemporaryDirectory() as directory:
        FeatureBank(features, labels, ["a", "b", "c"]).save(Path(directory) / "bank")
        return [(Path(directory) / "bank").read_bytes(), npz.getvalue()]


# YAML.


def check_yaml(text: str) -> None:
    """Read YAML."""
    try:
        load_yaml(text, "run.yaml")
    except ValueError as error:
        one_line(error)


_PIECES = (
    *(
        "a: ",
        "b",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "&x ",
        "*x",
        "!!python/object:os.system ",
        "\n",
        "  ",
        "'",
        '"',
        "%",
        "@",
        "\t",
    ),
    *(": ", "? ", "<<: ", "2001-01-01", ".nan", "1e3", "\0", "\ufeff"),
)
YAML = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(_PIECES), max_size=60).map("".join),
    JSON.map(json.dumps),
)


# Commands.


def _words(text: str) -> list[str]:
    return text.split()


WORDS = (
    *_words(
        "learn predict forget inspect calibrate export --memory --out --label --backbone --weights --head --unknown --known"
    ),
    *_words(
        "--target --by-class --confidence --skip-unreadable --model-option --transform-option --json --quiet --device"
    ),
    *_words(
        "photos others memory broken.st empty.png text.png missing/x one two cosine nam conv4 timm/nothing random cpu cuda"
    ),
    *_words(
        "0.1 0 -1 2 nan 1e-9 a=b a= =b input_size=32 input_size=-1 pad=[1, '' . / .. memory/ photos/one/0.png ~ - --"
    ),
    *(
        "\n",
        "\udcff",
        "é" * 300,
        "x" * 5000,
        "$(id)",
        "*",
        "--help",
        "--version",
        "-h",
        "\t",
        "photos\0",
        "{}",
        "learn=1",
    ),
)
EVALUATION_WORDS = (
    *_words(
        "--dataset --protocol --ways --shots --queries --open-ways --episodes --seed --heads --split --base --validation"
    ),
    *_words(
        "--backbone --weights --threads --workers --batch-size --save-features --json --markdown --report --config"
    ),
    *_words("--episodes-file --data-dir --cache-dir none --quiet --skip-unreadable digits features:bank folder:photos"),
    *_words(
        "closed open generalized 1 2 0 -3 1e9 99999999999999999999 nan cosine nam protonet out.json bank config.yaml"
    ),
    *(
        "missing/x",
        "",
        ".",
        "photos",
        "memory",
        "\n",
        "=",
        "a,b",
        "1/1/1",
        "--help",
        "features:",
        "folder:",
        "x" * 3000,
    ),
)


def check_command(words: list[str], run: Callable[[list[str]], int], place: Path) -> None:
    """Run a command in a directory that holds images, a memory and a bank; inputs must stay as they are."""
    for name in os.listdir(place):
        if name not in INPUTS:
            remove(place / name)
    before = {path: digest(path) for path in sorted(place.rglob("*")) if path.is_file()}
    out, err = io.StringIO(), io.StringIO()
    with moved(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            code = run(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    said = err.getvalue()
    assert code in (0, 2), f"exit code {code}: {said[-300:]}"
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error:") or ": error:" in line]
    assert len(errors) == (code == 2), said[-1000:]
    named = {str(Path(word)) for word in words}
    for path, was in before.items():
        if path.name == "memory" and {"--memory", "--out", "memory"} & {*words}:
            continue  # a command may change the memory
        assert (path.exists() and digest(path) == was) or str(path.relative_to(place)) in named, f"{path} changed"


INPUTS = ("photos", "others", "memory", "broken.st", "empty.png", "text.png", "bank", "config.yaml")


def place_for_commands(place: Path) -> Path:
    """Fill a directory with what commands are given."""
    random = np.random.default_rng(0)
    for name in ("photos/one", "photos/two", "others"):
        (place / name).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            Image.fromarray(random.integers(0, 256, (12, 12), dtype=np.uint8)).save(place / name / f"{i}.png")
    (place / "empty.png").touch()
    (place / "text.png").write_text("no image")
    (place / "bank").write_bytes(bank_files()[0])
    (place / "config.yaml").write_text("ways: 2\nepisodes: 3\n")
    with contextlib.redirect_stdout(io.StringIO()):
        assert teaching(["learn", str(place / "photos"), "--out", str(place / "memory"), "--quiet"]) == 0
    (place / "broken.st").write_bytes((place / "memory").read_bytes()[:5000])
    return place


@contextlib.contextmanager
def moved(place: Path) -> Iterator[None]:
    """Work in another directory."""
    before = Path.cwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)


def digest(path: Path) -> str:
    """Return the digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def remove(path: Path) -> None:
    """Remove a file or a directory."""
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            remove(inner)
        path.rmdir()
    else:
        path.unlink()


@contextlib.contextmanager
def written(content: bytes) -> Iterator[Path]:
    """Give a file with this content."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        path.write_bytes(content)
        yield path


# Targets.

Case = tuple[st.SearchStrategy[Any], Callable[[Any], None]]


def cases(target: str, place: Path) -> list[Case]:
    """Return what is drawn for a target and what must hold of it.

    Args:
        target: one of ``TARGETS``.
        place: an empty directory.
    """
    if target == "images":
        whole = st.sampled_from(image_files())
        return [(whole.flatmap(damaged), check_image), (st.binary(max_size=200), check_image)]
    if target == "memories":
        whole = st.sampled_from(memory_files())
        return [
            (whole.flatmap(damaged), check_memory),
            (whole.flatmap(lambda file: forged(file, "about")), check_memory),
        ]
    if target == "banks":
        files = bank_files()
        return [
            (st.sampled_from(files).flatmap(damaged), check_bank),
            (forged(files[0], "fewshot_bank"), check_bank),
        ]
    if target == "yaml":
        return [(YAML, check_yaml)]
    filled = place_for_commands(place)

    def of_commands(run: Callable[[list[str]], int]) -> Callable[[list[str]], None]:
        return lambda words: check_command(words, run, filled)

    return [
        (
            st.lists(st.sampled_from(WORDS), min_size=1, max_size=9),
            lambda words: check_command(words, teaching, filled),
        ),
        (
            st.lists(st.sampled_from(EVALUATION_WORDS), max_size=8).map(
                lambda words: ["--episodes", "2", "--cache-dir", "none", *words]
            ),
            of_commands(evaluation),
        ),
    ]


TARGETS = ("images", "memories", "banks", "yaml", "commands")


def fuzz(target: str, examples: int, start: int, place: Path, until: float | None = None) -> list[str]:
    """Draw examples for a target and return what broke, as text.

    Args:
        target: one of ``TARGETS``.
        examples: how many of each kind are drawn at a time.
        start: seed.
        place: an empty directory.
        until: draw on until this ``time.monotonic()``; ``None`` for one time.
    """
    broken: list[str] = []
    drawn = cases(target, place)
    while True:
        for strategy, check in drawn:
            options = settings(
                max_examples=examples,
                deadline=None,
                database=None,
                print_blob=False,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.generate, Phase.shrink),
            )
            test = seed(start)(options(given(strategy)(check)))
            try:
                test()
            except Exception as error:
                broken += [told(each) for each in getattr(error, "exceptions", [error])]
        start += 1
        if broken or until is None or time.monotonic() > until:
            return broken


def told(error: BaseException) -> str:
    """Return where an error came from, what it says, and the smallest example."""
    place = "".join(traceback.format_tb(error.__traceback__)[-2:])
    notes = "\n".join(getattr(error, "__notes__", []))
    return f"{place}{type(error).__name__}: {error}\n{notes[:3000]}"


def main() -> int:
    """Fuzz the targets in turn and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="target", help=f"{', '.join(TARGETS)} (default: all)")
    parser.add_argument("--minutes", type=float, default=10, help="for each target (default: 10)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if wrong := [name for name in options.targets if name not in TARGETS]:
        parser.error(f"no target {wrong[0]!r}: there are {', '.join(TARGETS)}")
    torch.set_num_threads(1)
    failed = 0
    for target in options.targets or TARGETS:
        with tempfile.TemporaryDirectory() as directory:
            began = time.monotonic()
            broken = fuzz(target, 200, options.seed, Path(directory), began + 60 * options.minutes)
        print(f"{target}: {len(broken)} broken, {time.monotonic() - began:.0f} s", *broken, sep="\n", flush=True)
        failed += len(broken)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

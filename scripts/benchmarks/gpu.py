"""All that only a GPU can show, in one command and within ten minutes: CUDA tests, parity with the CPU, and speed.

    python scripts/benchmarks/gpu.py                 # writes results/benchmarks/gpu.md and gpu.json
    python scripts/benchmarks/gpu.py --part scan     # one part
    python scripts/benchmarks/gpu.py --dry-run       # every part with tiny sizes on the CPU, to check that it runs

Every part runs in a process of its own with a time limit, so that no failure stops the others. A part, or a row of one, whose
library is missing is skipped, and the report says so. The exit status is 0 where all parts passed, 1 where one failed or ran out
of time, and 2 without a GPU. ``--dry-run`` writes files only where ``--out`` says.

Speed is the median of runs that take turns, with the GPU synchronised before the clock is read. "forward + backward" is that of
half the squared length of the outputs, to all inputs and parameters. Differences are relative to the largest entry of the CPU's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarking import surroundings, table, take_turns
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.memory import (
    LSAM,
    NAMTransformerEncoderLayer,
    NAMTuringMachine,
    memory_scan,
    outer_product_attention,
    unit,
)

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "results" / "benchmarks"
Row = dict[str, Any]


class Skip(Exception):
    """A part, or a row of one, that cannot run here, with the reason."""


@dataclass(frozen=True)
class Place:
    """Where a part runs.

    Attributes:
        device: ``"cuda"``, or ``"cpu"`` in a dry run.
        dry: tiny sizes and one repeat.
    """

    device: str
    dry: bool

    @property
    def repeats(self) -> int:
        """Rounds of every timing."""
        return 1 if self.dry else 7

    def synchronize(self) -> None:
        """Wait until the GPU has finished."""
        if self.device == "cuda":
            torch.cuda.synchronize()


# --- the tests that need a GPU --------------------------------------------------------------------------------------------


def run_tests(place: Place) -> list[Row]:
    """Run the tests marked ``cuda``; in a dry run only collect them."""
    tests = ROOT / "tests"
    if importlib.util.find_spec("pytest") is None:
        raise Skip('needs pytest: pip install ".[test]"')
    if not tests.is_dir():
        raise Skip("needs the directory tests of a checkout")
    files = sorted(str(path) for path in tests.rglob("test_*.py") if "@pytest.mark.cuda" in path.read_text("utf-8"))
    if not files:
        raise Skip("no test is marked cuda")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", *(["--collect-only"] if place.dry else []), *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(f"pytest failed:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return [{"tests": f"{len(files)} files", "result": done.stdout.strip().splitlines()[-1]}]


# --- parity with the CPU --------------------------------------------------------------------------------------------------


def run_parity(place: Place) -> list[Row]:
    """Compare results and gradients with the CPU's; raise where one is beyond its tolerance."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    rows = [*_parity_of_memory(place), *_parity_of_evaluation(place)]
    if wrong := [row["what"] for row in rows if not row["difference"] <= row["tolerance"]]:
        raise RuntimeError(f"beyond the tolerance: {', '.join(wrong)}\n{table(rows)}")
    return rows


def _parity_of_memory(place: Place) -> list[Row]:
    size = 40 if place.dry else 300
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, size, 4, 32, generator=generator) for _ in range(3))
    gates = torch.rand(3, 2, size, 4, generator=generator).unbind(0)
    inputs = (unit(q), unit(k), v, *gates)
    x = torch.randn(2, size, 64, generator=generator)
    functions: dict[str, tuple[Callable[..., Tensor], Sequence[Tensor], float]] = {
        f"memory_scan, {backend}": (lambda *a, b=backend: memory_scan(*a, backend=b)[0], inputs, tolerance)
        for backend, tolerance in {"loop": 1e-5, "chunk": 1e-5, "chunk-autograd": 1e-5, "auto": 1e-5}.items()
    }
    functions["outer_product_attention"] = (lambda q, k, v: outer_product_attention(q, k, v)[0], inputs[:3], 1e-5)
    if place.device == "cuda" and importlib.util.find_spec("fla") is not None:
        functions["memory_scan, flash-linear-attention"] = (
            lambda *a: memory_scan(*a, backend="cuda" if a[0].is_cuda else "loop")[0],
            inputs,
            5e-3,  # its kernels may multiply in TF32
        )
    networks: dict[str, Callable[[], nn.Module]] = {
        "LSAM, 2 layers, bidirectional": lambda: LSAM(64, 64, 2, num_heads=4, batch_first=True, bidirectional=True),
        "NAMTransformerEncoderLayer, erase": lambda: NAMTransformerEncoderLayer(
            64, 4, 64, 0.0, batch_first=True, erase=True, gates=True
        ),
        "NAMTuringMachine": lambda: NAMTuringMachine(64, controller="mlp"),
        "NAMTuringMachine, no jump": lambda: NAMTuringMachine(64, controller="lstm", actions=("left", "noop", "right")),
    }
    rows = []
    for what, (function, given, tolerance) in functions.items():
        found = [_outputs_and_gradients(function, [a.to(device) for a in given]) for device in ("cpu", place.device)]
        rows.append({"what": what, "difference": _difference(*found), "tolerance": tolerance})
    for what, build in networks.items():
        found = []
        for device in ("cpu", place.device):
            torch.manual_seed(0)
            found.append(_run_network(build().to(device), x.to(device)))
        rows.append({"what": what, "difference": _difference(*found), "tolerance": 1e-4})
    return rows


def _run_network(network: nn.Module, x: Tensor) -> list[Tensor]:
    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        outputs = network(x)
        return outputs[0] if isinstance(outputs, tuple) else outputs

    return _outputs_and_gradients(run, [x, *network.parameters()])


def _outputs_and_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs and the gradients of half their squared length, on the CPU."""
    leaves = [x if x.requires_grad else x.detach().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    found = torch.autograd.grad(outputs, leaves, outputs.detach(), allow_unused=True)
    return [x.detach().cpu() for x in (outputs, *found) if x is not None]


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest difference of all tensors, each relative to the largest entry of its expectation."""
    pairs = zip(expected, found, strict=True)
    return max(((b - a).abs().max() / a.abs().max().clamp_min(1e-6)).item() for a, b in pairs)


def _parity_of_evaluation(place: Place) -> list[Row]:
    """Compare the measures of every head that needs no training, over the same episodes."""
    from episodes import FeatureBank, evaluate
    from fewshot_nam.heads import available

    generator = torch.Generator().manual_seed(0)
    classes, images, width = (16, 12, 32) if place.dry else (60, 40, 256)
    centres = torch.rand(2 * classes, 1, width, generator=generator)
    features = (centres + 0.7 * torch.rand(2 * classes, images, width, generator=generator)).flatten(0, 1)
    labels = torch.arange(2 * classes).repeat_interleave(images)
    names = [f"class {number}" for number in range(classes)]
    half = classes * images
    base = FeatureBank(features[:half], labels[:half], [f"base {name}" for name in names])
    bank = FeatureBank(features[half:], labels[half:] - classes, names)
    heads = ["nam", "cosine", "ridge"] if place.dry else [name for name in available() if name not in ("maml", "anil")]
    rows = []
    for head in heads:
        try:
            reports = [
                evaluate(bank, [head], episodes=20 if place.dry else 100, queries=5, base=base, device=device)
                for device in ("cpu", place.device)
            ]
        except ModuleNotFoundError as error:
            rows.append({"what": f"evaluate, {head}: skipped, {error}", "difference": 0.0, "tolerance": 0.0})
            continue
        cpu, gpu = (report.results[head] for report in reports)
        worst = max(abs(cpu[measure]["mean"] - gpu[measure]["mean"]) for measure in cpu)
        # A threshold that falls between two nearly equal scores moves a measure by one query of one episode.
        rows.append({"what": f"evaluate, {head}", "difference": worst, "tolerance": 2e-3})
    return rows


# --- speed ----------------------------------------------------------------------------------------------------------------


def _time(place: Place, works: dict[str, tuple[Callable[..., Tensor], list[Tensor]]], tokens: int) -> list[Row]:
    """Return a row for each work and direction: tokens a second and the peak memory of the GPU."""

    def run(function: Callable[..., Tensor], inputs: list[Tensor], backward: bool) -> None:
        if backward:
            outputs = function(*inputs)
            torch.autograd.grad(outputs, inputs, outputs.detach(), allow_unused=True)
        else:
            with torch.no_grad():
                function(*inputs)
        place.synchronize()

    rows: list[Row] = []
    for direction in ("forward", "forward + backward"):
        runs: dict[str, Callable[[], None]] = {}
        peaks: dict[str, float] = {}
        for name, (function, inputs) in works.items():
            one = partial(run, function, inputs, direction != "forward")
            try:
                one()  # compiles what is compiled on first use
                if place.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                    one()
                    peaks[name] = torch.cuda.max_memory_allocated() / 2**20
            except (RuntimeError, ValueError) as error:
                rows.append({"run": f"{name}: failed, {str(error).splitlines()[0][:80]}", "direction": direction})
                continue
            runs[name] = one
        for name, timing in take_turns(runs, place.repeats).items():
            rows.append(
                {
                    "run": name,
                    "direction": direction,
                    "tokens/s": tokens / timing.median,
                    "ms": 1e3 * timing.median,
                    "spread, ms": timing.spread(1e-3),
                    "peak MiB": peaks.get(name, 0.0),
                }
            )
    return rows


def run_scan(place: Place) -> list[Row]:
    """Time ``memory_scan`` against the kernels of flash-linear-attention and softmax attention (SDPA), causal."""
    fla = place.device == "cuda" and importlib.util.find_spec("fla") is not None
    rows = []
    lengths = (64,) if place.dry else (1024, 4096, 16384)
    for length in lengths:
        batch, heads, width = (1, 2, 16) if place.dry else (max(1, 16384 // length), 8, 64)
        generator = torch.Generator(place.device).manual_seed(length)

        def draw(
            dtype: torch.dtype,
            generator: torch.Generator = generator,
            shape: Sequence[int] = (batch, length, heads, width),
        ) -> list[Tensor]:
            q, k, v = (torch.randn(shape, generator=generator, device=place.device) for _ in range(3))
            gates = torch.rand(3, *shape[:-1], generator=generator, device=place.device).unbind(0)
            return [x.to(dtype).requires_grad_() for x in (unit(q), unit(k), v)] + [g.requires_grad_() for g in gates]

        single, half = draw(torch.float32), draw(torch.bfloat16)
        works: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
            "memory_scan, chunk, float32": (lambda *a: memory_scan(*a, backend="chunk")[0], single),
            "memory_scan, chunk, bfloat16": (lambda *a: memory_scan(*a, backend="chunk")[0], half),
            "no erase, chunk, bfloat16": (
                lambda q, k, v: memory_scan(q, k, v, p_erase=0.0, backend="chunk")[0],
                half[:3],
            ),
            "SDPA, causal, bfloat16": (_softmax_attention, half[:3]),
        }
        if fla:
            works["memory_scan, flash-linear-attention, bfloat16"] = (
                lambda *a: memory_scan(*a, backend="cuda")[0],
                half,
            )
            works["flash-linear-attention's delta rule, bfloat16"] = (_delta_rule, [*half[:3], half[4]])
        title = f"T = {length}, B = {batch}, H = {heads}, D = {width}"
        rows += [{"problem": title, **row} for row in _time(place, works, batch * length)]
    if not fla:
        reason = 'flash-linear-attention: skipped, not installed: pip install ".[cuda]"'
        rows.append({"problem": reason})
    return rows


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _delta_rule(q: Tensor, k: Tensor, v: Tensor, p_write: Tensor) -> Tensor:
    from fla.ops.delta_rule import chunk_delta_rule

    return chunk_delta_rule(q, k, v, p_write.to(q.dtype))[0]


def run_lsam(place: Place) -> list[Row]:
    """Time LSAM against cuDNN's LSTM of the same sizes."""
    rows = []
    sizes = ((2, 8, 16),) if place.dry else ((32, 64, 128), (128, 256, 256), (16, 1024, 256))
    for batch, length, width in sizes:
        x = torch.randn(batch, length, width, device=place.device).requires_grad_()
        networks = {
            "nn.LSTM" + (" (cuDNN)" if place.device == "cuda" else ""): nn.LSTM(width, width, batch_first=True),
            "LSAM, 4 heads": LSAM(width, width, num_heads=4, batch_first=True),
        }
        works: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {}
        for name, network in networks.items():
            network.to(place.device)
            works[name] = (lambda x, *_, n=network: n(x)[0], [x, *network.parameters()])
        title = f"B = {batch}, T = {length}, width {width}"
        rows += [{"problem": title, **row} for row in _time(place, works, batch * length)]
    return rows


def run_extraction(place: Place) -> list[Row]:
    """Time a backbone's forward with float32 and AMP, with and without channels-last, and ``extract`` from image files."""
    import numpy
    from PIL import Image

    import backbones
    from episodes import extract
    from episodes.data.folders import folder

    name, count, batch = ("conv4", 12, 4) if place.dry else ("torchvision/resnet50", 1024, 128)
    if not place.dry and importlib.util.find_spec("torchvision") is None:
        raise Skip('needs torchvision: pip install ".[vision]"')
    torch.manual_seed(0)
    backbone = backbones.create(name, pretrained=False)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        drawing = numpy.random.default_rng(0)
        images = Path(directory, "images", "class")
        images.mkdir(parents=True)
        for number in range(count):
            coarse = Image.fromarray(drawing.integers(0, 256, (16, 16, 3), dtype=numpy.uint8))
            coarse.resize((256, 256), Image.Resampling.BICUBIC).save(images / f"{number}.jpg")
        dataset = folder(images.parent)
        with Image.open(images / "0.jpg") as image:
            tensor = backbone.transform(image.convert("RGB"))
        inputs = torch.as_tensor(tensor).float().expand(batch, -1, -1, -1).contiguous().to(place.device)
        backbone.to(place.device)
        runs: dict[str, Callable[[], object]] = {}
        for precision in ("float32", "bfloat16"):
            for layout in ("channels first", "channels last"):

                def forward(precision: str = precision, layout: str = layout) -> None:
                    format_ = torch.channels_last if layout == "channels last" else torch.contiguous_format
                    amp = torch.autocast(place.device, torch.bfloat16) if precision == "bfloat16" else nullcontext()
                    backbone.to(memory_format=format_)
                    with torch.inference_mode(), amp:
                        backbone(inputs.contiguous(memory_format=format_))
                    place.synchronize()

                runs[f"forward, {precision}, {layout}"] = forward
        rows += [
            {"run": f"{name}, {run}", "images/s": batch / timing.median, "spread, ms": timing.spread(1e-3)}
            for run, timing in take_turns(runs, place.repeats).items()
        ]
        backbone.to(memory_format=torch.contiguous_format)
        workers = 0 if place.dry else min(8, os.cpu_count() or 1)
        both: tuple[dict[str, Any], ...] = ({}, {"precision": "bfloat16", "channels_last": True})
        for options in both:
            began = time.perf_counter()
            extract(
                backbone,
                dataset,
                batch_size=batch,
                workers=workers,
                device=place.device,
                cache_dir=None,
                progress=False,
                **options,
            )
            seconds = time.perf_counter() - began
            label = f"{name}, extract from JPEG, {options or 'float32'}, {workers} workers"
            rows.append({"run": label, "images/s": count / seconds, "spread, ms": ""})
    return rows


def run_nccl(place: Place) -> list[Row]:
    """Start one process by torchrun that joins a group, by NCCL (dry run: gloo), and sends and sums tensors."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command += [str(Path(__file__).resolve()), "--rank", place.device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or "processes agree" not in done.stdout:
        raise RuntimeError(f"torchrun failed with status {done.returncode}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    return [{"run": done.stdout.strip().splitlines()[-1]}]


def _rank(device: str) -> None:
    """Do the work of ``run_nccl`` in the process that torchrun started."""
    import torch.distributed as dist

    from fewshot_nam.distributed import broadcast_number, broadcast_tensor, joined, processes

    with joined(device):
        number, count = processes()
        x = torch.arange(5.0, device=device) + number
        dist.all_reduce(x)
        expected = count * torch.arange(5.0) + sum(range(count))
        sent = broadcast_tensor(torch.eye(3) if number == 0 else None, 2, torch.float32)
        if not (x.cpu().equal(expected) and sent.equal(torch.eye(3)) and broadcast_number(7, device) == 7):
            raise SystemExit("the processes disagree")
        print(f"{count} of {count} processes agree ({dist.get_backend()}, {device})", flush=True)


# --- the command ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        run: returns its rows; raises ``Skip`` where it cannot run here, any other error where it failed.
        seconds: its time limit on a GPU. All limits together are below ten minutes. A dry run has ten minutes for each part.
        title: its heading in the report.
    """

    run: Callable[[Place], list[Row]]
    seconds: int
    title: str


PARTS = {
    "tests": Part(run_tests, 120, "Tests that need a GPU"),
    "parity": Part(run_parity, 120, "Parity with the CPU: outputs, gradients, and measures of every head"),
    "scan": Part(run_scan, 120, "memory_scan against flash-linear-attention and SDPA"),
    "lsam": Part(run_lsam, 90, "LSAM against cuDNN's LSTM"),
    "extraction": Part(run_extraction, 100, "Feature extraction: AMP and channels-last"),
    "nccl": Part(run_nccl, 45, "NCCL with one process"),
}


def time_limit(name: str, place: Place) -> int:
    """Return a part's limit in seconds; a dry run, which measures no speed, may be on a busy machine."""
    return 600 if place.dry else PARTS[name].seconds


def run_part(name: str, place: Place, limit: float) -> dict[str, Any]:
    """Run a part in a process of its own; return its status, its seconds and its rows."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory, "rows.json")
        command = [sys.executable, str(Path(__file__).resolve()), "--child", name, "--rows", str(result)]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        try:
            done = subprocess.run(
                [*command, *(["--dry-run"] if place.dry else [])],
                capture_output=True,
                text=True,
                check=False,
                timeout=limit,
                env={**os.environ, "PYTHONPATH": paths},
            )
        except subprocess.TimeoutExpired:
            found: dict[str, Any] = {"status": f"failed: not finished after {limit:.0f} s", "rows": []}
        else:
            if result.is_file():
                found = json.loads(result.read_text(encoding="utf-8"))
            else:
                last = done.stderr.strip().splitlines()[-1:] or [""]
                found = {"status": f"failed: status {done.returncode}: {last[0]}", "rows": []}
    return {**found, "seconds": round(time.perf_counter() - began, 1)}


def _child(name: str, place: Place, result: Path) -> None:
    """Run a part in this process and write its status and rows."""
    warnings.simplefilter("ignore")
    try:
        found = {"status": "passed", "rows": PARTS[name].run(place)}
    except Skip as reason:
        found = {"status": f"skipped: {reason}", "rows": []}
    except Exception as error:  # the report names it
        found = {"status": f"failed: {type(error).__name__}: {error}", "rows": []}
    result.write_text(json.dumps(found), encoding="utf-8")


def about(place: Place) -> dict[str, str]:
    """Return what the figures depend on."""
    found = surroundings(torch.get_num_threads())
    if place.device == "cuda":
        found["device"] = torch.cuda.get_device_name()
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        found["float32 matmul"] = torch.get_float32_matmul_precision()
    for library in ("fla", "torchvision"):
        found[library] = "installed" if importlib.util.find_spec(library) else "not installed"
    return found


def as_markdown(settings: dict[str, str], parts: dict[str, dict[str, Any]]) -> str:
    """Return the report."""
    lines = ["# gpu", "", "`python scripts/benchmarks/gpu.py`", ""]
    lines += [", ".join(f"{key} {value}" for key, value in settings.items()), ""]
    for name, part in parts.items():
        status, *details = part["status"].splitlines()
        lines += [f"## {PARTS[name].title}", "", f"`--part {name}`: {status} ({part['seconds']} s)", ""]
        for block in ("\n".join(details), _tables(part["rows"])):
            if block:
                lines += ["```text", block, "```", ""]
    return "\n".join(lines)


def _tables(rows: Sequence[Row]) -> str:
    """Return rows as tables, a new one wherever the columns change."""
    blocks: list[list[Row]] = []
    for row in rows:
        if not blocks or list(blocks[-1][0]) != list(row):
            blocks.append([])
        blocks[-1].append(row)
    return "\n\n".join(table(block) for block in blocks)


def main() -> int:
    """Run the parts, print and write the report, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be repeated (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="every part with tiny sizes on the CPU")
    parser.add_argument("--out", type=Path, help="directory of the report (default: results/benchmarks)")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        _rank(options.rank)
        return 0
    if not options.dry_run and not torch.cuda.is_available():
        print("gpu.py: no CUDA device here; --dry-run runs every part on the CPU", file=sys.stderr)
        return 2
    place = Place("cpu" if options.dry_run else "cuda", options.dry_run)
    if options.child:
        _child(options.child, place, options.rows)
        return 0
    settings = about(place)
    print(", ".join(f"{key} {value}" for key, value in settings.items()), flush=True)
    parts = {}
    for name in options.part or PARTS:
        parts[name] = run_part(name, place, time_limit(name, place))
        print(f"\n== {name}: {parts[name]['status']} ({parts[name]['seconds']} s)", flush=True)
        if parts[name]["rows"]:
            print(_tables(parts[name]["rows"]), flush=True)
    out = options.out if options.out or options.dry_run else OUT
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.md").write_text(as_markdown(settings, parts), encoding="utf-8")
        content = {"surroundings": settings, "parts": parts}
        (out / "gpu.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return int(any(part["status"].startswith("failed") for part in parts.values()))


if __name__ == "__main__":
    raise SystemExit(main())

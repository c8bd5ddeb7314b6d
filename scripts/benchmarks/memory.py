"""Speed and memory of the memory networks: the scan against attention, LSAM and STM against LSTM, the ways of the Turing machine.

    python scripts/benchmarks/memory.py --threads 2

First the ways that are compared must give the same numbers on a small problem in float64 (outputs, states, all gradients), else
nothing is timed. Then, at each size, all runs take turns in float32 and report tokens a second, the median (range) of their
repeats in wall-clock time: as many repeats as fit the budget of a cell, 3 at least. "x tuned loop" is how many times faster than
that, by medians within one run of this script; on a shared machine nothing else can be compared.

Memory is measured with a process of its own for each run: how far its resident memory rises during one forward and backward
("peak"), and the tensors which autograd keeps between the two, inputs and parameters not counted ("kept"; what a run keeps by
other means shows in the peak alone).

"loop" is the backend that mirrors the equations, "tuned loop" the best loop there is to beat. "compiled" runs the kernels of
``fewshot_nam.memory.build_kernels``, which are built first (--no-kernels leaves them out); all else is torch alone.
The scan has unit keys and queries and gates in (0, 1). "linear" is the outer-product attention, which never erases; softmax
attention (SDPA) has no gates. A backward is that of half the squared length of the outputs, to inputs and parameters.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from benchmarking import save, surroundings
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fewshot_nam.cli.outputs import add_output
from fewshot_nam.memory.attention import outer_product_attention
from fewshot_nam.memory.lsam.layer import LSAM
from fewshot_nam.memory.native.kernels import build_kernels
from fewshot_nam.memory.primitives import unit
from fewshot_nam.memory.scan.scan import memory_scan
from fewshot_nam.memory.stm import STM
from fewshot_nam.memory.turing.machine import NAMTuringMachine

BATCH, HEADS, WIDTH = 4, 4, 64  # of the scan
PARITY = 1e-9
SWITCH = "FEWSHOT_NAM_COMPILE"
PARTS = ("scan", "lsam", "stm", "turing")


@dataclass(frozen=True)
class Work:
    """Something to time: a function, the tensors whose gradients a backward finds, and whether compiled kernels are used."""

    function: Callable[[], Tensor]
    leaves: list[Tensor]
    compiled: bool = False

    def forward(self) -> Tensor:
        """Return the outputs, found without autograd."""
        with torch.no_grad(), kernels(self.compiled):
            return self.function()

    def outputs_and_gradients(self) -> list[Tensor]:
        """Run, and return the outputs and the gradients of half their squared length."""
        with kernels(self.compiled):
            outputs = self.function()
            return [outputs.detach(), *torch.autograd.grad(outputs, self.leaves, outputs.detach())]


Runs = dict[str, Callable[[], Work]]
"""By name, what makes the work: inputs are made when a run is asked for."""


@dataclass(frozen=True)
class Problem:
    """What several runs do, each in its way.

    Attributes:
        part: one of ``PARTS``.
        title: part and sizes.
        tokens: how many one run goes through.
        references: runs with which all are compared.
        runs: the ways.
        too_large: runs that would keep more for their backward than this machine has room for, and how many bytes.
    """

    part: str
    title: str
    tokens: int
    references: tuple[str, ...]
    runs: Runs
    too_large: dict[str, int]


@functools.lru_cache(maxsize=1)
def scan_inputs(
    length: int, batch: int = BATCH, width: int = WIDTH, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Return unit queries and keys, values, and three gates of a sequence, all wanting gradients."""
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(batch, length, HEADS, width, generator=generator, dtype=dtype) for _ in range(3))
    gates = torch.rand(3, batch, length, HEADS, generator=generator, dtype=dtype)
    return [x.requires_grad_() for x in (unit(q), unit(k), v, *gates.unbind())]


def tuned_loop(q: Tensor, k: Tensor, v: Tensor, *gates: Tensor) -> tuple[Tensor, Tensor]:
    """Return what memory_scan returns, by the fastest loop over tokens that we know: three operations a token and no more."""
    p_read, p_write, p_erase = gates
    batch, _, heads, _ = v.shape
    factors = (q, k, p_erase.unsqueeze(-1) * k, p_write.unsqueeze(-1) * v)
    rows = (x.transpose(1, 2).flatten(0, 1).unsqueeze(-2).unbind(1) for x in factors)
    # Transposed: a row times a matrix takes a tenth of the time of a matrix times a column in torch's batched product.
    state = v.new_zeros(batch * heads, k.shape[-1], v.shape[-1])
    reads = []
    for query, key, erased, written in zip(*rows, strict=True):
        state = torch.addcmul(state, key.mT, torch.baddbmm(written, erased, state, alpha=-1))
        reads.append(query @ state)
    outputs = torch.cat(reads, dim=-2).reshape(batch, heads, -1, v.shape[-1]).transpose(1, 2)
    return p_read.unsqueeze(-1) * outputs, state.mT.reshape(batch, heads, v.shape[-1], k.shape[-1])


def scan_problem(length: int) -> Problem:
    """Return memory_scan by each backend, linear attention and softmax attention on one sequence length."""

    def scan(way: Callable[..., tuple[Tensor, Tensor]]) -> Work:
        inputs = scan_inputs(length)
        return Work(lambda: way(*inputs)[0], inputs)

    def linear(causal: bool) -> Work:
        inputs = scan_inputs(length)[:5]
        return Work(lambda: outer_product_attention(*inputs, causal=causal)[0], inputs)

    def softmax(causal: bool) -> Work:
        # In its own layout (B, H, T, D), made outside the timed part.
        q, k, v = (x.detach().transpose(1, 2).contiguous().requires_grad_() for x in scan_inputs(length)[:3])
        return Work(lambda: scaled_dot_product_attention(q, k, v, is_causal=causal), [q, k, v])

    runs: Runs = {"tuned loop": functools.partial(scan, tuned_loop)}
    for backend in ("loop", "chunk", "chunk-autograd"):
        runs[backend] = functools.partial(scan, functools.partial(memory_scan, backend=backend))
    runs |= {f"linear {name}": functools.partial(linear, name == "causal") for name in ("causal", "bidirectional")}
    runs |= {f"SDPA {name}": functools.partial(softmax, name == "causal") for name in ("causal", "full")}
    # A loop keeps a memory for each token, and its backward takes as much again.
    states = 4 * BATCH * length * HEADS * WIDTH * WIDTH
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    too_large = {"loop": states, "tuned loop": states} if states > room else {}
    title = f"scan: T = {length}, B = {BATCH}, H = {HEADS}, d = {WIDTH}"
    return Problem("scan", title, BATCH * length, ("tuned loop", "SDPA causal"), runs, too_large)


def module_work(
    module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, compiled: bool = False
) -> Work:
    """Return a recurrent module over one input, with gradients of the input and all parameters."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype).requires_grad_()
    return Work(lambda: module(x)[0], [x, *module.parameters()], compiled)


def lsam(backward: str, width: int = 128) -> LSAM:
    """Return an LSAM, always of the same weights."""
    torch.manual_seed(0)
    return LSAM(width, width, num_heads=4, batch_first=True, backward=backward)  # type: ignore[arg-type]


@contextlib.contextmanager
def kernels(wanted: bool) -> Iterator[None]:
    """Use compiled kernels inside, or do not."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1" if wanted else "0"
    try:
        yield
    finally:
        os.environ.pop(SWITCH)
        if before is not None:
            os.environ[SWITCH] = before


def lsam_problem(length: int, with_kernels: bool) -> Problem:
    """Return LSAM, with the hand-written backward (in torch and compiled) and by autograd, and torch's LSTM."""
    batch, width = 32, 128
    shape = (batch, length, width)
    runs: Runs = {
        "nn.LSTM": lambda: module_work(nn.LSTM(width, width, batch_first=True), shape),
        "LSAM": lambda: module_work(lsam("hand"), shape),
        "LSAM autograd": lambda: module_work(lsam("autograd"), shape),
    }
    if with_kernels:
        runs["LSAM compiled"] = lambda: module_work(lsam("hand"), shape, compiled=True)
    title = f"lsam: T = {length}, B = {batch}, H = 4, d = {width}"
    return Problem("lsam", title, batch * length, ("nn.LSTM",), runs, {})


def stm(width: int = 96) -> STM:
    """Return an STM, always of the same weights: the published one of associative retrieval."""
    torch.manual_seed(0)
    return STM(width, width, width, num_slots=2)


def stm_problem(length: int, with_kernels: bool) -> Problem:
    """Return STM with an output at the last step, in torch and compiled, and torch's LSTM."""
    batch, width = 32, 96
    asked = torch.arange(length) == length - 1

    def work(compiled: bool) -> Work:
        network = stm(width)
        x = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
        return Work(lambda: network(x, output_steps=asked)[0], [x, *network.parameters()], compiled)

    runs: Runs = {
        "nn.LSTM": lambda: module_work(nn.LSTM(width, width, batch_first=True), (batch, length, width)),
        "STM": functools.partial(work, False),
    }
    if with_kernels:
        runs["STM compiled"] = functools.partial(work, True)
    title = f"stm: T = {length}, B = {batch}, n = 2, d = {width}"
    return Problem("stm", title, batch * length, ("nn.LSTM", "STM"), runs, {})


def machine(backend: str, jump: bool, width: int = 32, cells: int = 64) -> NAMTuringMachine:
    """Return a Turing machine of 4 tapes, always of the same weights."""
    torch.manual_seed(0)
    actions = ("left", "noop", "right", "jump") if jump else ("left", "noop", "right")
    return NAMTuringMachine(4 * width, 4, width, tape_length=cells, actions=actions, backend=backend)


def turing_problem(length: int, batch: int, width: int, jump: bool, with_kernels: bool) -> Problem:
    """Return the Turing machine step by step, by the scan, and compiled."""
    cells = max(32, length)

    def work(backend: str, compiled: bool = False) -> Work:
        return module_work(machine(backend, jump, width, cells), (batch, length, 4 * width), compiled=compiled)

    runs: Runs = {backend: functools.partial(work, backend) for backend in ("loop", "scan")}
    if with_kernels:
        runs["compiled"] = functools.partial(work, "auto", compiled=True)
    title = f"turing{'' if jump else ', no jump'}: T = {length}, B = {batch}, 4 tapes of {cells} x {width}"
    return Problem("turing", title, batch * length, ("loop",), runs, {})


@dataclass(frozen=True)
class Plan:
    """What is to be measured: parts, lengths of the scan, whether all is to be small, and whether there are compiled kernels."""

    parts: tuple[str, ...]
    lengths: tuple[int, ...]
    quick: bool
    with_kernels: bool

    def problems(self) -> list[Problem]:
        """Return all of it."""
        found = [scan_problem(length) for length in self.lengths] if "scan" in self.parts else []
        if "lsam" in self.parts:
            found.append(lsam_problem(8 if self.quick else 64, self.with_kernels))
        if "stm" in self.parts:
            found.append(stm_problem(4 if self.quick else 31, self.with_kernels))
        if "turing" in self.parts:
            sizes = [(8, 2, 8)] if self.quick else [(64, 32, 32), (256, 16, 64)]
            found += [turing_problem(*size, jump, self.with_kernels) for size in sizes for jump in (True, False)]
        return found


def flat(reads_and_memory: tuple[Tensor, Tensor]) -> Tensor:
    """Return both as one vector."""
    return torch.cat([each.flatten() for each in reads_and_memory])


def same_numbers(parts: tuple[str, ...], with_kernels: bool) -> list[str]:
    """Return a line for each pair of ways that agree in float64; leave the script where two do not."""
    works: dict[tuple[str, str], tuple[Work, Work]] = {}
    if "scan" in parts:
        inputs = scan_inputs(100, 2, 16, torch.float64)  # no multiple of a chunk
        q, k, v, p_read, p_write, p_erase = inputs

        def scan(backend: str, erase: Tensor | float) -> Work:
            leaves = inputs if erase is p_erase else inputs[:5]
            return Work(lambda: flat(memory_scan(q, k, v, p_read, p_write, erase, backend=backend)), leaves)

        for backend in ("chunk", "chunk-autograd"):
            works[f"memory_scan by {backend}", "loop"] = scan(backend, p_erase), scan("loop", p_erase)
        works["tuned loop", "loop"] = Work(lambda: flat(tuned_loop(*inputs)), inputs), scan("loop", p_erase)
        linear = Work(lambda: flat(outer_product_attention(q, k, v, p_read, p_write, causal=True)), inputs[:5])
        works["linear causal", "loop without erase"] = linear, scan("loop", 0.0)
    sequence = (3, 20, 16)
    if "lsam" in parts:
        modules = [lsam(way, 16).double() for way in ("hand", "autograd")]
        by_hand, by_autograd = (module_work(module, sequence, torch.float64) for module in modules)
        works["LSAM by hand", "autograd"] = by_hand, by_autograd
        if with_kernels:
            works["LSAM compiled", "autograd"] = (
                module_work(modules[0], sequence, torch.float64, compiled=True),
                by_autograd,
            )
    if "stm" in parts and with_kernels:
        network = stm(16).double()
        ways = (module_work(network, sequence, torch.float64, compiled=compiled) for compiled in (True, False))
        works["STM compiled", "torch"] = (next(ways), next(ways))
    if "turing" in parts:
        for jump in (True, False):
            machines = (machine(way, jump, 4, 7).double() for way in ("scan", "loop"))
            scanned, looped = (module_work(module, sequence, torch.float64) for module in machines)
            name = f"Turing machine{'' if jump else ' without jump'}"
            works[f"{name} by scan", "loop"] = scanned, looped
            if with_kernels:
                built = machine("auto", jump, 4, 7).double()
                works[f"{name} compiled", "loop"] = module_work(built, sequence, torch.float64, compiled=True), looped
    lines = []
    for (one, other), pair in works.items():
        found = [work.outputs_and_gradients() for work in pair]
        apart = [(a - b).abs().max() / b.abs().max().clamp_min(1) for a, b in zip(*found, strict=True)]
        worst = torch.stack(apart).max().item()
        if not worst <= PARITY:  # NaN included
            raise SystemExit(
                f"not the same work: {one} and {other} differ by {worst:.1e}, more than {PARITY:.0e}: nothing timed"
            )
        lines.append(f"{one} equals {other} to {worst:.0e}, gradients included (float64)")
    return lines


def measure(problem: Problem, budget: float, most: int) -> dict[tuple[str, str], list[float]]:
    """Return wall-clock seconds of every repeat by run and direction, all of them taking turns."""
    cells: dict[tuple[str, str], Callable[[], object]] = {}
    for name, make in problem.runs.items():
        work = make()
        cells[name, "forward"] = work.forward
        if name not in problem.too_large:
            cells[name, "forward + backward"] = work.outputs_and_gradients
    for run in cells.values():
        run()
    seconds: dict[tuple[str, str], list[float]] = {cell: [] for cell in cells}
    for _ in range(most):
        for cell, run in cells.items():
            if len(seconds[cell]) < 3 or sum(seconds[cell]) < budget:
                began = time.perf_counter()
                run()
                seconds[cell].append(time.perf_counter() - began)
    return seconds


def resident(field: str) -> int:
    """Return bytes of this process: ``VmRSS`` now, ``VmHWM`` at most so far.

    ``resource.getrusage`` will not do: Linux lets a new process begin with the peak of the one that started it.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def memory_of(make: Callable[[], Work], warm_up: Callable[[], Work]) -> dict[str, int]:
    """Return by how many bytes this process grows in one forward and backward, and what autograd keeps in between."""
    warm_up().outputs_and_gradients()  # libraries load their parts and buffers at first use
    work = make()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the warm-up freed would hide growth
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = resident("VmRSS")
    work.outputs_and_gradients()
    peak = resident("VmHWM") - before
    kept: dict[int, Tensor] = {}  # alive until counted, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), kernels(work.compiled):
        outputs = work.function()
    for leaf in work.leaves:
        kept.pop(leaf.untyped_storage().data_ptr(), None)
    del outputs
    return {"peak_bytes": peak, "kept_bytes": sum(tensor.untyped_storage().nbytes() for tensor in kept.values())}


def answer_memory_of(answer: Connection, plan: Plan, index: int, name: str, threads: int) -> None:
    """Send ``memory_of`` one run of one problem; for a process of its own."""
    torch.set_num_threads(threads)
    problem = plan.problems()[index]
    small = next(p for p in Plan((problem.part,), (64,), True, plan.with_kernels).problems() if name in p.runs)
    answer.send(memory_of(problem.runs[name], small.runs[name]))


def memory_in_own_process(plan: Plan, index: int, name: str, threads: int) -> dict[str, int] | None:
    """Return ``memory_of`` from a fresh process; None where there is no /proc, or it was killed for memory."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    # A server that has imported the library and run nothing: its children start at once, and clean.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([outer_product_attention.__module__, LSAM.__module__, NAMTuringMachine.__module__])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answer_memory_of, args=(theirs, plan, index, name, threads))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return None
    finally:
        process.join()


def report(
    problem: Problem, seconds: dict[tuple[str, str], list[float]], memory: dict[str, Any]
) -> list[dict[str, Any]]:
    """Print a problem's two tables and return their rows."""
    rows: list[dict[str, Any]] = []
    print(f"\n{problem.title}")
    for way in ("forward", "forward + backward"):
        heads = "".join(f"{'x ' + name:>15}" for name in problem.references)
        heads += "" if way == "forward" else f"{'peak MiB':>10}{'kept MiB':>10}"
        print(f"{way:20}{'tokens/s':>12}{'':>23}{'repeats':>9}{heads}")
        for name in problem.runs:
            row: dict[str, Any] = {"problem": problem.title, "run": name, "direction": way}
            if times := seconds.get((name, way)):
                rates = sorted(problem.tokens / s for s in times)
                rate, spread = statistics.median(rates), f"({rates[0]:,.0f}-{rates[-1]:,.0f})"
                row |= {"tokens_per_second": rate, "range": [rates[0], rates[-1]], "repeats": len(rates)}
                line = f"{name:20}{rate:>12,.0f}{spread:>23}{len(rates):>9}"
                for reference in problem.references:
                    theirs = seconds.get((reference, way))
                    ratio = statistics.median(theirs) / statistics.median(times) if theirs else None
                    row[f"x {reference}"] = ratio
                    line += f"{'-' if ratio is None else f'{ratio:.2f}':>15}"
                if way != "forward":
                    used = memory.get(name) or {}
                    row |= used
                    numbers = [f"{used[key] / 2**20:.1f}" if used else "-" for key in ("peak_bytes", "kept_bytes")]
                    line += "".join(f"{number:>10}" for number in numbers)
            else:
                row["skipped"] = f"would keep {problem.too_large[name] / 2**30:.1f} GiB"
                line = f"{name:20} skipped: {row['skipped']}"
            print(line, flush=True)
            rows.append(row)
    return rows


def main() -> None:
    """Check, measure, print tables, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--lengths", type=int, nargs="+", default=None, help="of the scan; default 256 1024 4096 16384")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=5.0, help="seconds for the repeats of a cell, beyond 3 of them")
    parser.add_argument("--repeats", type=int, default=15, help="at most")
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat: whether it runs, not how fast")
    parser.add_argument("--no-kernels", action="store_true", help="leave out what needs a C++ compiler")
    add_output(parser, "--json", "write the result here")
    options = parser.parse_args()
    about = surroundings(options.threads)
    lengths = options.lengths or ([64, 128] if options.quick else [256, 1024, 4096, 16384])
    with_kernels = not options.no_kernels and build_kernels()
    plan = Plan(tuple(options.parts), tuple(lengths), options.quick, with_kernels)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    parity = same_numbers(plan.parts, with_kernels)
    print(*parity, sep="\n")
    rows: list[dict[str, Any]] = []
    for index, problem in enumerate(plan.problems()):
        memory = {
            name: memory_in_own_process(plan, index, name, options.threads)
            for name in problem.runs
            if name not in problem.too_large
        }
        rows += report(problem, measure(problem, options.budget, 1 if options.quick else options.repeats), memory)
    if options.json:
        save(options.json, about | {"parity": "; ".join(parity)}, vars(options), rows)


if __name__ == "__main__":
    main()

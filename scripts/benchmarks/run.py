"""All benchmarks, or some parts: each part is a script beside this one, and its figures are kept in a directory.

    python scripts/benchmarks/run.py [part ...]
    python scripts/benchmarks/run.py --short

Every part first checks that the ways that it compares give the same numbers, and times nothing where they do not. ``--short``
takes small sizes and one repeat and writes nothing: it shows that everything runs and agrees, not how fast it is. The exit code is
1 where a part failed. A part whose libraries are not installed is skipped with a message; where it was named, that is a failure.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE.parent.parent / "results" / "benchmarks"


@dataclass(frozen=True)
class Part:
    """A benchmark.

    Attributes:
        script: its file, beside this one.
        short: its arguments for ``--short``.
        library: that it needs.
        extra: of our package, which brings the library.
    """

    script: str
    short: str = "--short"
    library: str = "torch"
    extra: str = ""


PARTS = {
    "episodes": Part("episode_speed.py", library="easyfsl", extra="benchmark"),
    "heads": Part("heads.py"),
    "memory": Part("memory.py", "--quick --threads 1 --lengths 64"),
    "sequences": Part("sequences.py"),
    "long_range": Part("long_range.py"),
    "streaming": Part("streaming.py", library="lightning_fabric", extra="sequences"),
    "attach": Part("attach.py", library="timm", extra="vision"),
    "extraction": Part("extraction.py"),
    "startup": Part("startup.py"),
    "peak": Part("peak_memory.py"),
    "growth": Part("growth.py"),
    "first_answer": Part("first_answer.py"),
    "many_classes": Part("many_classes.py"),
}


def run(name: str, short: bool, out: Path) -> bool:
    """Run a part and print its output; unless ``short``, keep that and the figures in ``out``. Return whether it succeeded."""
    part = PARTS[name]
    arguments = part.short.split() if short else ["--json", str(out / f"{name}.json")]
    command = [sys.executable, str(HERE / part.script), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    lines = []
    for line in process.stdout or ():
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    if process.wait() != 0:
        return False
    if not short:
        shown = f"python scripts/benchmarks/run.py {name}"
        text = "\n".join([f"# {name}", "", f"`{shown}`", "", "```text", *lines, "```", ""])
        (out / f"{name}.md").write_text(text, encoding="utf-8")
    return True


def main() -> int:
    """Run the parts that were named, or all, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--short", action="store_true", help="only check that everything runs and agrees; writes nothing"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help="the directory of the figures (default: results/benchmarks)"
    )
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"no part {unknown[0]!r}: there are {', '.join(PARTS)}")
    if not options.short:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--out: {error}")
    failed = []
    for name in options.parts or PARTS:
        library, extra = PARTS[name].library, PARTS[name].extra
        if importlib.util.find_spec(library) is None:
            print(f'\n== {name}: skipped, it needs {library}: pip install ".[{extra}]"', flush=True)
            if options.parts:
                failed.append(name)
            continue
        print(f"\n== {name}", flush=True)
        began = time.perf_counter()
        if not run(name, options.short, options.out):
            failed.append(name)
        print(f"-- {name}: {'failed' if name in failed else 'done'}, {time.perf_counter() - began:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

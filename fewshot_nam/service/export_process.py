"""The ONNX export of a memory's file in a process of its own: ``torch.export`` changes what all threads of a process use."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import fewshot_nam

_SECONDS = 1800  # that an export may take
_KINDS: tuple[type[Exception], ...] = (ImportError, OSError, ValueError)


def export_memory(memory: str | Path, weights: str | Path | None, onnx: str | Path) -> None:
    """Write backbone and memory as one ONNX file, by a process of its own that takes one processor.

    Args:
        memory: the memory's file.
        weights: of the backbone: a file, "random", or ``None`` for the published ones.
        onnx: the file to write; an existing one is replaced.

    Raises:
        ImportError: the extra ``export`` is not installed, or the backbone's library.
        OSError: a file cannot be read or written.
        ValueError: as ``fewshot_nam.vision.export.export_onnx``; or the process was ended, or took more than half an hour.
    """
    # Isolated, and with this process's own path: a file json.py in the directory it is started in is not imported.
    path = [part for part in sys.path if part] + [str(Path(fewshot_nam.__file__).parent.parent)]
    program = f"import sys; sys.path[:] = {path!r}; from fewshot_nam.service.export_process import _main; _main()"
    asked = {"memory": str(memory), "weights": None if weights is None else str(weights), "onnx": str(onnx)}
    ours = os.pipe()  # nothing is written to it; it ends when this process does, however that is
    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-c", program, json.dumps(asked)],
            stdin=ours[0],
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the export took more than {_SECONDS // 60} minutes, and was ended") from None
    finally:
        for end in ours:
            os.close(end)
    try:
        found = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise ValueError(
            f"the export was ended (exit status {ended.returncode}): there may be too little memory"
        ) from None
    if found is not None:
        kinds = {kind.__name__: kind for kind in _KINDS}
        raise kinds[found["kind"]](found["text"])


def _main() -> None:
    """Export what the argument names, and say on standard output what was wrong: ``null`` for nothing."""
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    answer, sys.stdout = sys.stdout, sys.stderr  # libraries print
    nice: Callable[[int], int] | None = getattr(os, "nice", None)  # Windows has none
    if nice is not None:
        with contextlib.suppress(OSError):
            nice(5)  # answers of the page come first
    asked = json.loads(sys.argv[1])
    found: dict[str, str] | None = None
    try:
        import torch

        from fewshot_nam.vision.export import export_onnx
        from fewshot_nam.vision.memory_files import open_model

        torch.set_num_threads(1)
        model, _ = open_model(asked["memory"], asked["weights"])
        export_onnx(model, asked["onnx"])
    except _KINDS as error:
        kind = next(kind.__name__ for kind in _KINDS if isinstance(error, kind))
        found = {"kind": kind, "text": " ".join(str(error).split())}
    print(json.dumps(found), file=answer, flush=True)


def _end_with_standard_input() -> None:
    """End this process when the one that asked has ended: no one takes the file any more."""
    os.read(0, 1)
    os._exit(1)

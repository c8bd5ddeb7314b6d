"""``fewshot-nam serve`` in a process of its own, and images to give it; for the benchmarks of the server."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from fewshot_nam.service.client import Client


def digit_images() -> dict[int, list[bytes]]:
    """Return PNG files of scikit-learn's digits, 40 by 40 pixels, by digit."""
    data = load_digits()
    found: dict[int, list[bytes]] = {}
    for image, label in zip(data.images, data.target.tolist(), strict=True):
        written = io.BytesIO()
        Image.fromarray(np.uint8(255 - 15 * image)).resize((40, 40)).save(written, "PNG")
        found.setdefault(label, []).append(written.getvalue())
    return found


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
        return found


class Server:
    """``fewshot-nam serve`` in a process of its own."""

    def __init__(self, memory: Path, workers: int) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "fewshot_nam.cli.main", "serve", str(memory), "--port", str(port)]
        command += ["--workers", str(workers), "--threads", "1"]
        environment = {**os.environ, "FEWSHOT_NAM_TOKEN": "load"}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        client = Client(self.url)
        while True:
            try:
                client.classes()
                break
            except OSError:
                if self.process.poll() is not None:
                    raise
                time.sleep(0.02)
        client.close()

    def family(self) -> list[int]:
        """Return the process and those it started."""
        return _family(self.process.pid)

    def mebibytes(self) -> int:
        """Return the memory that all its processes hold."""
        pages = [int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in self.family()]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE") // 2**20

    def processor_seconds(self) -> float:
        """Return the processor time that its processes have taken: unlike time on the clock, it is the same on a busy machine."""
        ticks = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:13] for one in self.family()]
        return sum(int(one) for pair in ticks for one in pair) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """Kill all its processes at once."""
        for one in self.family():
            os.kill(one, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Stop it in peace."""
        self.process.terminate()
        self.process.wait()


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]

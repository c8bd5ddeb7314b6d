"""Decoding of images from unknown people, in processes of their own with limits on memory and time.

A few hundred bytes can make a decoder take gigabytes or minutes, in ways that no header tells. In a process of its own this ends
with that process, and with one line for who sent the image.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from weakref import finalize

from PIL import Image

import fewshot_nam
from fewshot_nam.io.decoding_worker import as_image
from fewshot_nam.io.image_io import UnreadableImage

MOST_MEMORY = 2 * 2**30  # bytes of address space of a process; an image of 64 million pixels takes half of it
SECONDS = 5.0  # of work for an image, and
PIXELS_A_SECOND = 8e6  # decoded beyond that
_SECRET = "FEWSHOT_NAM_TOKEN"  # of a server: a process that decodes what its clients send is not to know it
_START = 120.0  # seconds until a process is ready
_WAIT = 10 if hasattr(signal, "setitimer") else 1  # times as long it may take while others work


class _Killed(Exception):
    """A process was ended from outside: by the system, which has no memory left, or by a user."""


class DecodingProcesses:
    """Processes that decode images: as many as are asked at a time, but no more than processors, each kept for the next image.

    Args:
        memory: the most bytes of memory that one may take, where the system can limit it.
        seconds: the most that a processor works for an image, apart from ``PIXELS_A_SECOND``.
    """

    def __init__(self, memory: int = MOST_MEMORY, seconds: float = SECONDS) -> None:
        self.memory, self.seconds = memory, seconds
        self._lock = threading.Lock()
        self._running = threading.Semaphore(max(2, os.cpu_count() or 1))
        self._idle: list[subprocess.Popen[bytes]] = []
        finalize(self, _end_all, self._idle)

    def decoded(self, content: bytes, place: str, most_pixels: int) -> Image.Image:
        """Return the image in the bytes of a file, as ``fewshot_nam.io.image_io.decoded``.

        Raises:
            UnreadableImage: as there, or decoding takes too much memory or time.
        """
        asked = {"what": "image", "place": place, "most_pixels": most_pixels}
        found, pixels = self._ask(asked, content, self.seconds + most_pixels / PIXELS_A_SECOND)
        return as_image(found, pixels)

    def size(self, content: bytes, place: str) -> tuple[int, int]:
        """Return width and height of the image in the bytes of a file, by its header.

        Raises:
            UnreadableImage: it is no image, or opening it takes too much memory or time.
        """
        width, height = self._ask({"what": "size", "place": place}, content, self.seconds)[0]["size"]
        return int(width), int(height)

    def close(self) -> None:
        """End the processes that decode nothing."""
        with self._lock:
            _end_all(self._idle)

    def _ask(self, asked: dict[str, Any], content: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        with self._running:
            for _ in range(2):
                with contextlib.suppress(_Killed):  # which says nothing of the image
                    return self._answer(self._started(), asked, content, seconds)
        raise UnreadableImage(
            f"{asked['place']}: was not decoded, because the process that does was killed, perhaps for want of memory"
        )

    def _answer(
        self, process: subprocess.Popen[bytes], asked: dict[str, Any], content: bytes, seconds: float
    ) -> tuple[dict[str, Any], bytes]:
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds * _WAIT, stop)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(asked | {"bytes": len(content), "seconds": seconds}).encode() + b"\n")
            process.stdin.write(content)
            process.stdin.flush()
            found = json.loads(process.stdout.readline())
            pixels = process.stdout.read(found["bytes"])
            if len(pixels) != found["bytes"]:
                raise EOFError
        except (OSError, ValueError, EOFError) as error:  # it was killed, or it crashed
            with contextlib.suppress(subprocess.TimeoutExpired):  # what ends by itself says how
                process.wait(timeout=5)
            _end(process)
            if late.is_set() or (hasattr(signal, "SIGPROF") and process.returncode == -signal.SIGPROF):
                what = f"takes more than {seconds:.0f} seconds to decode"
            elif hasattr(signal, "SIGKILL") and process.returncode in (
                -signal.SIGKILL,
                -signal.SIGTERM,
                -signal.SIGHUP,
            ):
                raise _Killed from error
            else:
                what = "not an image that can be decoded"
            raise UnreadableImage(f"{asked['place']}: {what}") from error
        except BaseException:
            _end(process)
            raise
        finally:
            timer.cancel()
        with self._lock:
            self._idle.append(process)
        if "error" in found:
            raise UnreadableImage(found["error"])
        return found, pixels

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.poll() is None:
                    return process
                _end(process)
        # Isolated, and with this process's own path: a file json.py in the directory it is started in is not imported.
        path = [part for part in sys.path if part] + [str(Path(fewshot_nam.__file__).parent.parent)]
        program = (
            f"import sys; sys.path[:] = {path!r}; from fewshot_nam.io.decoding_worker import main; main({self.memory})"
        )
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name != _SECRET},
        )
        assert process.stdout is not None
        with contextlib.suppress(ImportError, AttributeError, OSError):  # larger pipes are faster, where there are any
            import fcntl

            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 2**20)
        timer = threading.Timer(_START, process.kill)
        timer.daemon = True
        timer.start()
        ready = any(line == b"{}\n" for line in process.stdout)  # Python may print something of its own before
        timer.cancel()
        if not ready:
            _end(process)
            raise OSError("the process that decodes images did not start")
        return process


def _end_all(processes: list[subprocess.Popen[bytes]]) -> None:
    while processes:
        _end(processes.pop())


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not written yet
                pipe.close()

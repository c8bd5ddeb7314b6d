"""What the process of ``fewshot-nam page`` holds after many rounds of teach, ask and forget, over HTTP and without a browser.

A round uploads an image and learns it, uploads another and asks for it, and forgets the class: what a visitor does, some fifty
times as fast. Every answer is checked. Memory is read at ten moments: a page in use for a day must not go on growing.

    python scripts/benchmarks/page_memory.py --rounds 5000 --json results/benchmarks/page_memory.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from server_process import digit_images, free_port

from fewshot_nam.cli.outputs import add_output
from fewshot_nam.io.atomic import replacing


class Visitor:
    """Who uses a page as its own JavaScript does: by Gradio's queue."""

    def __init__(self, url: str) -> None:
        self._http, self._name = httpx.Client(base_url=url, timeout=120), "visitor"
        settings = self._http.get("/config").raise_for_status().json()
        self._functions = {one["api_name"]: one["id"] for one in settings["dependencies"]}

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """Return what names an image in a call, after it was uploaded."""
        sent = self._http.post("/gradio_api/upload", files={"files": (name, content)}).raise_for_status()
        return {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}

    def call(self, name: str, *values: Any, **event: Any) -> list[Any]:
        """Call a function of the page; return its outputs.

        Raises:
            RuntimeError: the page said that it failed.
        """
        request = {
            "data": values,
            "fn_index": self._functions[name],
            "session_hash": self._name,
            "event_data": event or None,
        }
        joined = self._http.post("/gradio_api/queue/join", json=request).raise_for_status().json()
        with self._http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self._name}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed" and message["event_id"] == joined["event_id"]:
                    if not message["success"]:
                        raise RuntimeError(f"{name}: {message['output']}")
                    outputs: list[Any] = message["output"]["data"]
                    return outputs
        raise RuntimeError(f"{name}: the page gave no answer")


def held(process: subprocess.Popen[str]) -> float:
    """Return the memory that a process holds, in MiB."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measured(rounds: int) -> list[dict[str, float]]:
    """Return memory and the time of a round, at ten moments."""
    images = digit_images()
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as place:
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "fewshot_nam.cli.main",
            "page",
            f"{place}/memory.safetensors",
            "--backbone",
            "conv4",
        ]
        process = subprocess.Popen(
            [*command, "--port", str(port), "--quiet"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": place, "GRADIO_TEMP_DIR": f"{place}/gradio"},
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not re.search(r"http://\S+", line):
                raise SystemExit(f"the page did not start: {line}")
            page = Visitor(f"http://127.0.0.1:{port}")
            page.call("on_learn_files", "zero", [page.upload("0.png", images[0][0])], None, "", "0")
            began = time.perf_counter()
            for number in range(1, rounds + 1):
                taught = page.upload(f"{number}.png", images[7][number % 60])
                page.call("on_learn_files", "seven", [taught], None, "", "0")
                answer = page.call("on_asked", page.upload(f"{number}.png", images[7][60 + number % 60]))[0]
                forgot = page.call("on_forget", "", label="seven")[0]
                if '<div class="label">seven</div>' not in answer or "Forgot" not in forgot:
                    raise SystemExit(f"round {number}: {answer} {forgot}")
                if number in {rounds * i // 10 for i in range(1, 11)}:
                    took = (time.perf_counter() - began) * 1e3 / (number - (rows[-1]["rounds"] if rows else 0))
                    rows.append({"rounds": number, "MiB": round(held(process), 1), "ms a round": round(took, 1)})
                    print(json.dumps(rows[-1]), flush=True)
                    began = time.perf_counter()
        finally:
            process.terminate()
            process.wait(60)
    return rows


def main() -> None:
    """Run it, and print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5000, help="of teach, ask and forget (default: %(default)s)")
    add_output(parser, "--json", "write what was found there")
    options = parser.parse_args()
    if options.rounds < 10:
        parser.error("--rounds must be at least 10")
    rows = measured(options.rounds)
    if options.json:
        about = {"python": platform.python_version(), "cores": os.cpu_count(), "platform": platform.platform()}
        with replacing(options.json) as unfinished:
            unfinished.write_text(json.dumps({"about": about, "command": sys.argv[1:], "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

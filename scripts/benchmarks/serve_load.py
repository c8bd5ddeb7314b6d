"""Load on ``fewshot-nam serve`` over the loopback: speed beside a writer, answers that are never stale, and kills without loss.

Three parts, each in a fresh directory with a memory of digits:

1. ``reads``: clients ask as fast as they can, first alone, then beside a writer that learns and forgets all the time. Printed:
   requests a second, median and 99th percentile, and the same of the backbone's own forward in this process. An answer is stale
   when it was asked for after a change was acknowledged and is of a state before it; there must be none.
2. ``kills``: changes are made until the server is killed with SIGKILL at a random moment, again and again on the same file. What
   was acknowledged must be there, and answers must be those of a memory that is built afresh from what was acknowledged.
3. ``memory``: what the server holds before and after all the requests of the first part.

    python scripts/benchmarks/serve_load.py --seconds 30 --kills 30 --json results/serve.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from server_process import Server, digit_images

from fewshot_nam.cli.outputs import add_output
from fewshot_nam.io.image_io import decoded
from fewshot_nam.service.client import Client
from fewshot_nam.vision.memory_files import new_model, open_model
from fewshot_nam.vision.saving import save_head


def new_memory(path: Path, images: dict[int, list[bytes]]) -> None:
    """Write a memory of five digits, five images each."""
    model, notes = new_model("conv4", path)
    for label in range(5):
        model.learn([decoded(one, "digit") for one in images[label][:5]], f"digit {label}")
    save_head(path, model.head, model.backbone, notes)


def reads(
    server: Server, images: dict[int, list[bytes]], clients: int, seconds: float, writing: bool
) -> dict[str, Any]:
    """Return speed and faults of clients that ask for some seconds."""
    end, used = time.monotonic() + seconds, server.processor_seconds()
    acknowledged = Client(server.url).classes()["writes"]
    times: list[float] = []
    wrong: list[str] = []
    writes: list[float] = []

    def ask(number: int) -> None:
        client, chance, own = Client(server.url), random.Random(number), []
        while time.monotonic() < end:
            label, image = chance.randrange(5), chance.randrange(5)
            before, started = acknowledged, time.perf_counter()
            try:
                found = client.predict([images[label][image]])
            except (OSError, ValueError) as error:
                wrong.append(str(error))
                continue
            own.append(time.perf_counter() - started)
            if found["writes"] < before:
                wrong.append(f"stale: of {found['writes']}, after {before} was acknowledged")
            if found["predictions"][0]["best"] != f"digit {label}":
                wrong.append("another class than that of the learned image")
        times.extend(own)

    def change() -> None:
        nonlocal acknowledged
        client, i = Client(server.url, "load"), 0
        while time.monotonic() < end:
            started = time.perf_counter()
            try:
                name = f"extra {i % 20}"
                found = client.learn([images[5 + i % 5][i % 100]], name)
                acknowledged = found["writes"]
                writes.append(time.perf_counter() - started)
                acknowledged = client.forget([name])["writes"]
            except (OSError, ValueError) as error:
                wrong.append(f"writer: {error}")
            i += 1

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(clients)]
    threads += [threading.Thread(target=change)] if writing else []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {"clients": clients, "writer": writing, "requests": len(times), "requests_per_second": len(times) / seconds}
    found |= {"median_ms": 1000 * statistics.median(times), "p99_ms": 1000 * float(np.quantile(times, 0.99))}
    found["processor_ms_per_request"] = 1000 * (server.processor_seconds() - used) / len(times)  # changes included
    if writing:
        found |= {"writes": 2 * len(writes), "learn_median_ms": 1000 * statistics.median(writes)}
    return found | {"faults": len(wrong), "first_faults": sorted(set(wrong))[:3]}


def forward(memory: Path, images: dict[int, list[bytes]], seconds: float) -> dict[str, float]:
    """Return how many images a second the backbone takes in this process, one at a time: with decoding and transform, and alone."""
    model, _ = open_model(memory)
    tensor = model.backbone.transform(decoded(images[0][0], "digit")).unsqueeze(0)
    found = {}
    for name, work in (
        ("decode_transform_forward", lambda: model.features(decoded(images[0][0], "digit"))),
        ("forward", lambda: model.backbone(tensor)),
    ):
        count, started, used = 0, time.perf_counter(), time.process_time()
        with torch.no_grad():
            while time.perf_counter() - started < seconds:
                work()
                count += 1
        found[f"{name}_per_second"] = count / (time.perf_counter() - started)
        found[f"{name}_processor_ms"] = 1000 * (time.process_time() - used) / count
    return found


def kills(memory: Path, images: dict[int, list[bytes]], workers: int, times: int, seed: int) -> dict[str, Any]:
    """Return what was lost over kills at random moments, restarts on the same file in between."""
    chance, number, changes, lost, undecided = random.Random(seed), 0, 0, [], 0
    learned: dict[str, bytes] = {}
    for _ in range(times):
        server = Server(memory, workers)
        client = Client(server.url, "load")
        found = {row["label"] for row in client.classes()["classes"] if row["label"].startswith("new")}
        if found != set(learned):
            lost.append(f"expected {sorted(learned)}, found {sorted(found)}")
        killer = threading.Timer(0.2 + 0.8 * chance.random(), server.kill)
        killer.start()
        while True:
            if len(learned) > 8:
                name = chance.choice(sorted(learned))
                image = None
            else:
                name, image = f"new {number}", images[5 + number % 5][number // 5 % 165]
                number += 1
            try:
                if image is None:
                    client.forget([name])
                    learned.pop(name)
                else:
                    client.learn([image], name)
                    learned[name] = image
                changes += 1
            except (OSError, ValueError):
                break
        killer.join()
        present = {str(label) for label in open_model(memory)[0].classes if str(label).startswith("new")}
        if present ^ set(learned) == {name}:  # it was in the file, and not yet acknowledged
            undecided += 1
            if image is None:
                learned.pop(name)
            else:
                learned[name] = image
        elif present != set(learned):
            lost.append(f"expected {sorted(learned)}, found {sorted(present)}")
            break
    model, _ = open_model(memory)
    fresh, _ = new_model("conv4", memory)
    for digit in range(5):
        fresh.learn([decoded(one, "digit") for one in images[digit][:5]], f"digit {digit}")
    for label in map(str, model.classes[5:]):
        fresh.learn(decoded(learned[label], "digit"), label)
    query = fresh.features([decoded(one, "digit") for label in range(10) for one in images[label][-5:]])
    with torch.no_grad():
        gap = float((model.head(query) - fresh.head(query)).abs().max())
    return {
        **{"kills": times, "acknowledged_changes": changes, "saved_but_not_acknowledged": undecided},
        **{"lost": lost, "largest_difference_to_a_fresh_memory": gap},
        "leftover_files": sorted(one.name for one in memory.parent.iterdir() if one != memory),
    }


def main() -> int:
    """Run all parts; return 1 where anything was lost, stale or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of each part of reads (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="that ask at once (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes of the server (default: 1 2)")
    parser.add_argument("--kills", type=int, default=10, help="for each number of workers (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills (default: %(default)s)")
    add_output(parser, "--json", "write what was found there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, found, bad = digit_images(), [], False
    for workers in options.workers:
        with tempfile.TemporaryDirectory() as place:
            memory = Path(place) / "memory.safetensors"
            new_memory(memory, images)
            server = Server(memory, workers)
            reads(server, images, 1, 1, False)
            held = server.mebibytes()
            rows = [
                reads(server, images, clients, options.seconds, writing)
                for clients, writing in ((1, False), (options.clients, False), (options.clients, True))
            ]
            grown = server.mebibytes() - held
            server.stop()
            alone = forward(memory, images, min(options.seconds, 5))
            new_memory(memory, images)
            loss = kills(memory, images, workers, options.kills, options.seed)
        found.append({"workers": workers, "reads": rows, "mebibytes": held, "grown": grown, **alone, "kills": loss})
        bad = bad or bool(loss["lost"]) or any(row["faults"] for row in rows)
        print(json.dumps(found[-1], indent=2), flush=True)
    if options.json:
        load = os.getloadavg()[0]
        about = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count(), "load": load}
        options.json.write_text(json.dumps({"about": about, "command": sys.argv[1:], "found": found}, indent=2) + "\n")
    return int(bad)


if __name__ == "__main__":
    raise SystemExit(main())

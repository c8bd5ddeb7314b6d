"""A day of ``fewshot-nam serve`` in fast motion: mixed requests over the loopback, saves, loads, and kills at random moments.

Clients ask, a writer learns, forgets and calibrates, and now and then sends what must be refused. Half of all requests go to one
process; the others to one after another on the same file, each ended at a random moment, by SIGKILL or (one in six) by SIGTERM.
In pauses the file is read, and changed without the server, as ``fewshot-nam learn`` does. The script keeps a head of its own, to
which it applies what was acknowledged, and checks

- every answer: class, score, threshold and refusal are those of the state that the answer names (``writes``), and that is no
  older than what was acknowledged before the request;
- after each end and in each pause: the file holds what was acknowledged and nothing else, but for the one change that was under
  way at a kill; no other file is left when the server is up again;
- a head that is built afresh from the images that are acknowledged gives the same scores and threshold;
- memory: what the server's processes hold, over the first half of the requests and after each start.

    python scripts/benchmarks/soak.py --requests 100000 --kills 60 --json results/benchmarks/soak.json

The exit code is 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from server_process import Server, digit_images
from torch import Tensor

from fewshot_nam.cli.outputs import add_output
from fewshot_nam.heads import Head
from fewshot_nam.io.atomic import replacing
from fewshot_nam.io.image_io import decoded
from fewshot_nam.service.client import Client
from fewshot_nam.vision.memory_files import new_model, open_model
from fewshot_nam.vision.memory_lock import exclusive
from fewshot_nam.vision.saving import read_head, save_head

IMAGES = 60  # of each digit
BASE, LEARNED, UNKNOWN = (
    range(5),
    range(5, 8),
    range(8, 10),
)  # digits: known from the start, learned and forgotten, refused
STRETCH = 1000  # requests between two pauses
MOST_CLASSES, MOST_IMAGES = 25, 4  # beside those known from the start
SAME = 1e-4  # scores: features depend on the size of the batch in their last bits


class Expected(NamedTuple):
    """What a state of the memory answers: scores ``(images, classes)`` and the threshold."""

    labels: list[str]
    scores: Tensor
    threshold: float | None


class Answer(NamedTuple):
    """The answer to a client about one image, and the number of changes that were acknowledged before it asked."""

    image: int
    acknowledged: int
    found: dict[str, Any]


class Ledger:
    """All that was acknowledged, and a head that it was applied to."""

    def __init__(self, memory: Path, contents: list[bytes], digits: list[int]) -> None:
        self.memory, self.digits = memory, digits
        self.model, self.notes = new_model("conv4", memory)
        with torch.no_grad():
            self.features = torch.cat([self.model.features([decoded(one, "digit")]) for one in contents])
        self.head = self.model.head
        self.learned: dict[str, list[int]] = {}  # images by class, in the order of the first
        self.calibration: tuple[list[int], float] | None = None
        self.writes = 0
        for digit in BASE:
            self.learn(f"digit {digit}", [i for i, one in enumerate(digits) if one == digit][:5])
        save_head(memory, self.head, self.model.backbone, self.notes)
        self.expected = {0: self.state()}

    def learn(self, label: str, images: list[int]) -> None:
        """Learn images of a class."""
        self.head.write(self.features[images], [label] * len(images))
        self.learned.setdefault(label, []).extend(images)

    def forget(self, label: str) -> None:
        """Forget a class."""
        self.head.forget([label])
        del self.learned[label]

    def calibrate(self, images: list[int], target: float) -> None:
        """Set the threshold."""
        self.head.calibrate(self.features[images], target_fpr=target)
        self.calibration = (images, target)

    def acknowledge(self, writes: int) -> None:
        """Note that the state of the head is that of the server after this many changes."""
        self.expected[writes] = self.state()
        self.writes = writes
        for old in [one for one in self.expected if one < writes - 2 * STRETCH]:
            del self.expected[old]

    def state(self, head: Head | None = None) -> Expected:
        """Return what a head answers for all images."""
        taken = (head or self.head).snapshot()
        with torch.no_grad():
            return Expected([str(one) for one in taken.classes], taken(self.features), taken.threshold)

    def afresh(self) -> Expected:
        """Return what a new head answers that is taught all that is known, class after class."""
        head = new_model("conv4", self.memory)[0].head
        for label, images in self.learned.items():
            head.write(self.features[images], [label] * len(images))
        if self.calibration is not None:
            head.calibrate(self.features[self.calibration[0]], target_fpr=self.calibration[1])
        return self.state(head)

    def free(self, digits: range) -> list[int]:
        """Return the images of digits that are not learned."""
        taken = {image for images in self.learned.values() for image in images}
        return [i for i, digit in enumerate(self.digits) if digit in digits and i not in taken]


class Change(NamedTuple):
    """A change to ask for: the request, what it does to the ledger, and whether it changes anything at all."""

    kind: str
    ask: Callable[[Client], dict[str, Any]]
    apply: Callable[[], None]
    changes: bool = True


class Soak:
    """The run.

    Args:
        place: an empty directory.
        workers: processes of the server.
        clients: that ask at once, beside the writer.
        seed: of all that is drawn.
    """

    def __init__(self, place: Path, workers: int, clients: int, seed: int) -> None:
        images = digit_images()
        self.contents = [one for digit in range(10) for one in images[digit][:IMAGES]]
        digits = [digit for digit in range(10) for _ in range(IMAGES)]
        self.memory, self.workers, self.clients = place / "memory.safetensors", workers, clients
        self.ledger = Ledger(self.memory, self.contents, digits)
        self.chance = random.Random(seed)
        self.answered: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.number = 0
        self.undecided = self.ends = self.checks = 0
        self.largest_gap = 0.0
        self.held: list[dict[str, Any]] = []
        self.pending: Change | None = None
        self._counting = threading.Lock()

    @property
    def requests(self) -> int:
        """How many requests were answered."""
        return sum(self.answered.values())

    def count(self, kind: str) -> None:
        """Count an answered request."""
        with self._counting:
            self.answered[kind] += 1

    # Clients.

    def ask(self, server: Server, seed: int, goes_on: Callable[[], bool], answers: list[Answer]) -> None:
        """Ask until it is stopped, or the server is gone."""
        client, chance = Client(server.url), random.Random(seed)
        try:
            while goes_on():
                before, kind = self.ledger.writes, chance.random()
                if kind < 0.96:
                    image = chance.randrange(len(self.contents))
                    answers.append(Answer(image, before, client.predict([self.contents[image]])))
                    self.count("predict")
                elif kind < 0.98:
                    found = client.classes()
                    expected = self.ledger.expected.get(found["writes"])
                    labels = [one["label"] for one in found["classes"]]
                    if found["writes"] < before or (expected is not None and labels != expected.labels):
                        self.wrong.append(f"classes of state {found['writes']}, after {before}: {labels}")
                    self.count("classes")
                else:
                    try:
                        client.predict([b"no image"])
                        self.wrong.append("bytes that are no image were answered")
                    except ValueError as error:
                        if "not an image" not in str(error):
                            self.wrong.append(str(error))
                    self.count("refused")
        except OSError:
            if goes_on():  # the script has not ended it
                self.wrong.append("no answer from a server that runs")
        except ValueError as error:
            self.wrong.append(f"a request failed: {error}")
        finally:
            client.close()

    def change(self, server: Server, goes_on: Callable[[], bool], share: float) -> None:
        """Change the memory so often that changes are a share of all requests, until it is stopped or the server is gone."""
        client, outsider = Client(server.url, "load"), Client(server.url, "wrong")
        done, before = 0, self.requests
        try:
            while goes_on():
                if done > share * (self.requests - before):
                    time.sleep(0.002)
                    continue
                done += 1
                if self.chance.random() < 0.05:
                    self.refused(client, outsider)
                    continue
                self.pending = change = self.drawn()
                found = change.ask(client)
                if found["writes"] != self.ledger.writes + change.changes:
                    self.wrong.append(f"{change.kind}: state {found['writes']} after {self.ledger.writes}")
                if change.changes:
                    change.apply()
                    self.ledger.acknowledge(found["writes"])
                self.pending = None
                self.count(change.kind)
        except OSError:
            if goes_on():
                self.wrong.append("no answer from a server that runs, to the writer")
        except ValueError as error:
            self.wrong.append(f"a change failed: {error}")
        finally:
            client.close()
            outsider.close()

    def refused(self, client: Client, outsider: Client) -> None:
        """Ask for a change that must be refused."""
        image = self.contents[0]
        asked: list[Callable[[], object]] = [
            lambda: outsider.forget(["digit 0"]),
            lambda: client.forget(["digit 0", "none"]),
            lambda: client.learn([image, b"no image"], "half"),
            lambda: client.calibrate([image], 0.5),
            lambda: client.learn([image], " \n"),
        ]
        try:
            self.chance.choice(asked)()
            self.wrong.append("what must be refused was done")
        except ValueError:
            self.count("refused")

    def drawn(self) -> Change:
        """Draw a change."""
        ledger, chance = self.ledger, self.chance
        own = [label for label in ledger.learned if label.startswith("new")]
        few = [label for label in own if len(ledger.learned[label]) < MOST_IMAGES]
        kind = chance.random()
        if kind < 0.03:
            images, target = (
                chance.sample(ledger.free(UNKNOWN), chance.randrange(19, 50)),
                chance.choice([0.05, 0.1, 0.25]),
            )
            given = [self.contents[i] for i in images]
            return Change(
                "calibrate", lambda client: client.calibrate(given, target), lambda: ledger.calibrate(images, target)
            )
        if own and (kind < 0.45 or len(own) >= MOST_CLASSES):
            label = chance.choice(own)
            return Change("forget", lambda client: client.forget([label]), lambda: ledger.forget(label))
        if own and kind < 0.52:
            label = chance.choice(own)
            again = [self.contents[chance.choice(ledger.learned[label])]]
            return Change("learn again", lambda client: client.learn(again, label), lambda: None, changes=False)
        if few and kind < 0.7:
            label, images = chance.choice(few), [chance.choice(ledger.free(LEARNED))]
        else:
            label, images = f"new {self.number}", chance.sample(ledger.free(LEARNED), chance.randrange(1, 4))
            self.number += 1
        given = [self.contents[i] for i in images]
        return Change("learn", lambda client: client.learn(given, label), lambda: ledger.learn(label, images))

    # The run.

    def run(self, requests: int, ends: int, report: Callable[[], None]) -> None:
        """Run until so many requests were answered.

        Args:
            requests: how many.
            ends: of servers, all in the second half of the requests.
            report: called after every pause.
        """
        cuts = sorted(self.chance.uniform(0.5, 1) for _ in range(ends - 1))
        for life, end in enumerate([0.5, *cuts, 1.0] if ends else [1.0]):
            server = Server(self.memory, self.workers)
            try:
                self.check_no_other_files()
                while not self.wrong:
                    last = requests * end - self.requests <= STRETCH
                    until = round(requests * end) if last else self.requests + STRETCH
                    ended = self.stretch(server, until, ("term" if life % 6 == 5 else "kill") if last else None)
                    if not ended:
                        self.held.append({"life": life, "requests": self.requests, "mebibytes": server.mebibytes()})
                    self.check(afresh=ended or self.checks % 10 == 0)
                    if not ended:
                        self.change_the_file()
                    report()
                    if ended:
                        break
            finally:
                if server.process.poll() is None:
                    server.kill()
            if self.wrong:
                return

    def stretch(self, server: Server, until: int, end: str | None) -> bool:
        """Ask and change until so many requests were answered, and then end the server, if it is to end; return whether it did."""
        stop = threading.Event()
        answers: list[list[Answer]] = [[] for _ in range(self.clients)]

        def goes_on() -> bool:
            return not stop.is_set()

        threads = [
            threading.Thread(target=self.ask, args=(server, self.chance.getrandbits(32), goes_on, own))
            for own in answers
        ]
        threads.append(threading.Thread(target=self.change, args=(server, goes_on, 0.08)))
        for thread in threads:
            thread.start()
        while self.requests < until and all(thread.is_alive() for thread in threads):
            time.sleep(0.01)
        if end is not None:
            time.sleep(0.1 * self.chance.random())
        stop.set()
        if end == "kill":
            server.kill()
        elif end == "term":
            server.stop()
        for thread in threads:
            thread.join()
        if end is not None:
            self.ends += 1
        self.reconcile(end)
        for one in (one for own in answers for one in own):
            self.compare(one)
        return end is not None

    def reconcile(self, end: str | None) -> None:
        """Find out from the file whether a change was made that was under way when the server was ended."""
        writes = read_head(self.memory)[0]["notes"].get("writes", 0)
        change, self.pending = self.pending, None
        if writes == self.ledger.writes + 1 and change is not None and change.changes and end == "kill":
            change.apply()
            self.ledger.acknowledge(writes)
            self.undecided += 1
        elif writes != self.ledger.writes:
            self.wrong.append(f"the file holds state {writes}, acknowledged was {self.ledger.writes}")

    def compare(self, answer: Answer) -> None:
        """Compare an answer with what the state gives that it names."""
        found, expected = answer.found, self.ledger.expected.get(answer.found["writes"])
        if found["writes"] < answer.acknowledged:
            self.wrong.append(f"stale: of state {found['writes']}, after {answer.acknowledged} was acknowledged")
            return
        if expected is None:
            self.wrong.append(f"an answer of state {found['writes']}, which is unknown")
            return
        one, scores = found["predictions"][0], expected.scores[answer.image]
        rows = [(row["score"], float(scores[expected.labels.index(row["label"])])) for row in one["ranking"]]
        highest = scores.topk(len(rows)).values.tolist()
        same = all(
            abs(given - own) < SAME and abs(given - best) < SAME
            for (given, own), best in zip(rows, highest, strict=True)
        )
        threshold = found["threshold"]
        same = same and (threshold is None) == (expected.threshold is None)
        if threshold is not None and expected.threshold is not None:
            same = (
                same and abs(threshold - expected.threshold) < SAME and one["accepted"] == (one["score"] >= threshold)
            )
        same = same and one["label"] == (None if one["accepted"] is False else one["ranking"][0]["label"])
        if not same:
            self.wrong.append(f"image {answer.image} in state {found['writes']}: {one}, expected {highest}")

    def check(self, afresh: bool) -> None:
        """Read the file, and compare it with what was acknowledged; on demand, also with a head that is taught that afresh."""
        self.checks += 1
        expected = self.ledger.expected[self.ledger.writes]
        others = {"the file": self.ledger.state(read_head(self.memory)[1])}
        if afresh:
            others["a head built afresh"] = self.ledger.afresh()
        for name, other in others.items():
            if sorted(other.labels) != sorted(expected.labels):
                self.wrong.append(f"{name} knows {other.labels}, acknowledged was {expected.labels}")
                continue
            gap = float(
                (other.scores[:, [other.labels.index(one) for one in expected.labels]] - expected.scores).abs().max()
            )
            if (other.threshold is None) != (expected.threshold is None):
                gap = float("inf")
            elif other.threshold is not None and expected.threshold is not None:
                gap = max(gap, abs(other.threshold - expected.threshold))
            self.largest_gap = max(self.largest_gap, gap)
            if gap > SAME:
                self.wrong.append(f"{name} differs by {gap} from what was acknowledged")

    def check_no_other_files(self) -> None:
        """Note files that are beside the memory while nothing is being changed."""
        others = sorted(one.name for one in self.memory.parent.iterdir() if one != self.memory)
        if others:
            self.wrong.append(f"files are left: {others}")

    def change_the_file(self) -> None:
        """Learn and forget as the commands do, while the server runs and does not know of it."""
        with exclusive(self.memory):
            model, notes = open_model(self.memory)
            label, image = f"new {self.number}", self.chance.choice(self.ledger.free(LEARNED))
            self.number += 1
            model.learn(decoded(self.contents[image], "digit"), label)
            self.ledger.learn(label, [image])
            own = [one for one in self.ledger.learned if one.startswith("new")]
            if len(own) > MOST_CLASSES:
                model.forget(own[0])
                self.ledger.forget(own[0])
            save_head(self.memory, model.head, model.backbone, notes)
        self.ledger.acknowledge(self.ledger.writes)


def summary(soak: Soak, seconds: float) -> dict[str, Any]:
    """Return what was found so far."""
    first = [one for one in soak.held if one["life"] == 0]
    first = first[len(first) // 10 :]  # threads start and buffers grow to their size at the beginning
    slope = 0.0
    if len(first) > 2:
        slope = float(np.polyfit([one["requests"] for one in first], [one["mebibytes"] for one in first], 1)[0])
    later = [one["mebibytes"] for one in soak.held if one["life"]]
    return {
        "workers": soak.workers,
        "clients": soak.clients,
        "requests": soak.requests,
        "by_kind": dict(sorted(soak.answered.items())),
        "changes": soak.ledger.writes,
        "ends": soak.ends,
        "saved_but_not_acknowledged": soak.undecided,
        "files_compared": soak.checks,
        "largest_difference": soak.largest_gap,
        "seconds": round(seconds),
        "mebibytes_first_process": [first[0]["mebibytes"], first[-1]["mebibytes"]] if first else [],
        "mebibytes_per_10000_requests": 10_000 * slope,
        "mebibytes_later_processes": [min(later), max(later)] if later else [],
        "wrong": soak.wrong[:5],
    }


def main() -> int:
    """Run; return 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="that are answered (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=60, help="ends of servers (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="that ask at once (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")
    add_output(parser, "--json", "write what was found there, again at each pause")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)  # of thresholds that learned classes raise
    started = time.monotonic()

    def report() -> None:
        found = summary(soak, time.monotonic() - started)
        print(json.dumps({key: found[key] for key in ("requests", "changes", "ends", "seconds", "wrong")}), flush=True)
        if options.json:
            about = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
            with replacing(options.json) as unfinished:
                text = json.dumps(
                    {"about": about, "command": sys.argv[1:], "found": found, "held": soak.held}, indent=2
                )
                unfinished.write_text(text + "\n")

    with tempfile.TemporaryDirectory() as place:
        soak = Soak(Path(place), options.workers, options.clients, options.seed)
        soak.run(options.requests, options.kills, report)
        report()
    print(json.dumps(summary(soak, time.monotonic() - started), indent=2))
    return int(bool(soak.wrong))


if __name__ == "__main__":
    raise SystemExit(main())

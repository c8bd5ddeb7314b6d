"""A memory that programs use while it runs: predict, learn, forget and calibrate on one file; the logic of ``fewshot-nam serve``.

The file is the truth. A change is made on a copy of the head, saved whole (``fewshot_nam.io.atomic``), and only then seen by
readers and acknowledged: what was acknowledged survives a kill, and what was not is either in the file or left no trace. Several
processes may serve one file: a change takes a lock beside it, and every request looks whether the file is the one that was read.

Readers never wait for a writer: they use the head as it was, until the changed one is put in its place in one step.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewshot_nam.heads import Calibration, Head, Label
from fewshot_nam.heads.duplicates import distinct
from fewshot_nam.heads.validation import collected_warnings
from fewshot_nam.io.decoding_processes import DecodingProcesses
from fewshot_nam.io.image_io import UnreadableImage
from fewshot_nam.io.regular_files import file_version, open_regular
from fewshot_nam.service.class_names import class_name, known_class, known_classes
from fewshot_nam.service.thresholds import ready
from fewshot_nam.vision.image_transform import transformed
from fewshot_nam.vision.memory_files import open_model
from fewshot_nam.vision.memory_lock import taking_turns
from fewshot_nam.vision.saving import OtherWeights, read_head, same_features, write_head

MOST_SCORES = 100  # of an image that come back
_LARGE = 4_000_000  # pixels; one of 64 million takes a gigabyte while it is decoded and scaled down
_LARGE_AT_A_TIME = 2
_WRITES = "writes"  # in the notes of the file: how many changes were made by servers


class Limits(NamedTuple):
    """What one request may hold.

    Attributes:
        images: how many.
        image_bytes: of one image file.
        pixels: of one image.
        body_bytes: of all together.
        classes: that a memory may know.
        waiting: requests that wait for the backbone; more are sent away at once.
        request_pixels: of all images of a request together.
    """

    images: int = 64
    image_bytes: int = 20 * 2**20
    pixels: int = 64_000_000
    body_bytes: int = 64 * 2**20
    classes: int = 10_000
    waiting: int = 64
    request_pixels: int = 256_000_000


class Unusable(ValueError):
    """What is in the memory's place cannot be served: no fault of a request."""


class TooManyPixels(UnreadableImage):
    """The images of a request are too large together; none may be too large alone."""


class Overloaded(RuntimeError):
    """Too many requests wait already: try again later."""


class State(NamedTuple):
    """What readers see, replaced as a whole.

    Attributes:
        head: a snapshot.
        threshold: an image is accepted from this score on; ``None`` where nothing is refused.
        wrong: why the threshold cannot be given, where there is to be one; then nothing is answered.
        writes: how many changes were made by servers since the file began.
        file: the file that holds this, kept open: as long as it is, no other file can have its number (inode).
    """

    head: Head
    threshold: float | None
    wrong: str | None
    writes: int
    file: _File


class _File:
    """A version of the memory's file."""

    def __init__(self, path: Path) -> None:
        self._open = open_regular(path)  # to open a pipe would wait for a writer
        self._version = file_version(self._open.fileno())

    def is_at(self, path: Path) -> bool:
        """Return whether it is still what is there."""
        return file_version(path) == self._version

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self._open.close()


class MemoryService:
    """A memory's file, served.

    Args:
        path: the file, which exists.
        weights: a file of the backbone's weights, or "random"; ``None`` for those the memory notes.
        device: "cpu" or "cuda".
        limits: of requests.

    Attributes:
        path: as given.
        limits: as given.
        state: what readers see.

    Raises:
        OSError: the file cannot be read.
        ImportError, ValueError: it is no memory, or its backbone or weights are not there.
    """

    def __init__(
        self, path: str | Path, weights: str | None = None, device: str = "cpu", limits: Limits | None = None
    ) -> None:
        self.path, self.limits = Path(path), limits or Limits()
        self._model, _ = open_model(self.path, weights, device)
        self._device = device
        self._about, _, self._probed = read_head(self.path)
        self._change, self._reload = threading.Lock(), threading.Lock()
        self._decoder = DecodingProcesses()
        places = max(1, torch.get_num_threads() if device == "cpu" else 1)
        self._running = threading.Semaphore(places)
        self._large = threading.Semaphore(max(1, min(_LARGE_AT_A_TIME, places - 1)))  # one is left for small images
        self._waiting = 0
        self._reads_begun = self._last_read = 0  # both counted from 1
        self._count = threading.Lock()
        self.state = self._read()

    # Answers.

    def current(self) -> State:
        """Return what readers see, read again where another process has changed the file since this was called, or before."""
        state = self.state
        try:
            if not state.file.is_at(self.path):
                begun = self._reads_begun
                with self._reload:
                    # What was read from a later time on than this call is as new as can be asked for: where the file changes all
                    # the time, each of those who wait would read it anew.
                    if self._last_read <= begun and not self.state.file.is_at(self.path):
                        self._reads_begun = number = self._reads_begun + 1
                        self.state = self._read()
                        self._last_read = number  # not where that has failed: then the state is of before
                    state = self.state
        except OSError as error:
            raise Unusable(f"the memory cannot be read any more: {error}") from error
        return state

    def predict(
        self, images: Sequence[bytes], top: int = 5, is_gone: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """Return the answers to images: for each the class, or ``None`` where it is refused, and the ``top`` best scores.

        Args:
            images: files as bytes.
            top: how many scores of each.
            is_gone: asked when it is the images' turn; once the client has hung up, they are not read.

        Raises:
            UnreadableImage: bytes that are no image, or one that is too large; its position is named.
            ValueError: no image or too many, nothing was learned yet, or ``top`` is not from 1 to ``MOST_SCORES``.
            Overloaded: too many requests wait already.
        """
        if not 1 <= top <= MOST_SCORES:
            raise ValueError(f"top is how many of the best scores come back, from 1 to {MOST_SCORES}, got {top}")
        features = self._features(images, is_gone)
        state = self.current()  # after the features: as new as can be
        if not state.head.classes:
            raise ValueError("nothing was learned yet")
        if state.wrong is not None:  # to accept everything would be wrong
            raise Unusable(state.wrong)
        with torch.no_grad():
            scores = state.head(features)
        best = scores.topk(min(top, scores.shape[-1]))
        answers = []
        for values, columns in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            ranking = [{"label": state.head.classes[i], "score": s} for i, s in zip(columns, values, strict=True)]
            accepted = None if state.threshold is None else values[0] >= state.threshold
            label = None if accepted is False else ranking[0]["label"]
            answers.append(
                {
                    "label": label,
                    "best": ranking[0]["label"],
                    "score": values[0],
                    "accepted": accepted,
                    "ranking": ranking,
                }
            )
        return {"predictions": answers, "threshold": state.threshold, "writes": state.writes}

    def describe(self) -> dict[str, Any]:
        """Return the classes with their numbers of images, the threshold and the backbone."""
        state = self.current()
        counts = zip(state.head.classes, state.head.shots_per_class(), strict=True)
        return {
            "classes": [{"label": label, "images": count} for label, count in counts],
            "threshold": state.threshold,
            "writes": state.writes,
            "backbone": self._model.backbone.name,
            "head": type(state.head).__name__,
        }

    # Changes: acknowledged when they return.

    def learn(self, images: Sequence[bytes], label: str) -> dict[str, Any]:
        """Learn images of one class; those learned before are left out. Return what was learned, when it is saved.

        Raises:
            UnreadableImage, ValueError, Overloaded: as ``predict``; or a name that is none, or too many classes.
            OSError: the file cannot be written; nothing was learned.
        """
        name = class_name(label)
        features = self._features(images)

        def act(head: Head) -> tuple[bool, dict[str, Any]]:
            found = known_class(head.classes, name)
            known: Label = name if found is None else found
            learned = head.learned_before(features)
            for i, other in enumerate(learned):
                if other not in (None, known):
                    raise ValueError(
                        f"images[{i}] was learned as {str(other)!r}: leave it out, or forget that class first"
                    )
            new = torch.tensor([one is None for one in learned]) & distinct(features)
            if known not in head.classes and len(head.classes) >= self.limits.classes:
                raise ValueError(f"the memory knows {len(head.classes):,} classes, the most it may: forget some")
            count = int(new.sum())
            if count:
                head.write(features[new.to(features.device)], [known] * count)
            return count > 0, {"label": known, "learned": count, "repeated": len(new) - count}

        return self._changed(act)

    def forget(self, labels: Sequence[Label]) -> dict[str, Any]:
        """Forget classes; return which, when it is saved.

        Raises:
            ValueError: a class is not known; nothing is forgotten then.
            OSError: the file cannot be written; nothing was forgotten.
        """

        def act(head: Head) -> tuple[bool, dict[str, Any]]:
            known = known_classes(head.classes, map(str, labels))
            named = [label if (name := known[str(label)]) is None else name for label in labels]
            names = list(dict.fromkeys(named))
            head.forget(names)
            return True, {"forgotten": names}

        return self._changed(act)

    def calibrate(self, images: Sequence[bytes], target: float, confidence: float | None = None) -> dict[str, Any]:
        """Set the threshold from images of unknowns; return what ``Head.calibrate`` does, when it is saved.

        Raises:
            UnreadableImage, ValueError, Overloaded: as ``predict``, or too few images for the target.
            OSError: the file cannot be written; nothing has changed.
        """
        features = self._features(images)

        def act(head: Head) -> tuple[bool, dict[str, Any]]:
            found: Calibration = head.calibrate(features, target_fpr=target, confidence=confidence)
            return True, found._asdict()

        return self._changed(act)

    # Parts.

    def _changed(self, act: Callable[[Head], tuple[bool, dict[str, Any]]]) -> dict[str, Any]:
        """Change a copy of the head, save it, put it in place, and return what ``act`` says."""
        with taking_turns(self._change, self.path):
            state = self.current()
            head = state.head.copy()
            with collected_warnings() as said:
                changed, answer = act(head)
            writes = state.writes
            if changed:
                writes += 1
                about = {**self._about, "notes": {**(self._about.get("notes") or {}), _WRITES: writes}}
                made = ready(head)
                said += made.said
                write_head(self.path, head, about, self._probed)
                with self._reload:
                    self._about, self.state = about, State(*made[:3], writes, _File(self.path))
        if not changed and self.state.wrong is not None:
            said.append(self.state.wrong)
        warning = {"warning": "; ".join(said)} if said else {}
        return answer | {"classes": len(self.state.head.classes), "writes": writes} | warning

    def _read(self) -> State:
        """Return what is in the file. Called by one thread at a time."""
        while True:
            file = _File(self.path)
            try:
                about, head, probed = read_head(self.path, self._model.head, self._about["weights"])
            except OtherWeights as error:
                raise Unusable(
                    f"{self.path} was replaced by a memory of another backbone: start the server again"
                ) from error
            except ValueError as error:
                raise Unusable(f"the memory was replaced by what is none: {error}") from error
            if file.is_at(self.path):
                break
        if not same_features(self._probed, probed):
            raise Unusable(f"{self.path} was replaced by a memory of another transform: start the server again")
        self._about = about
        writes = (about.get("notes") or {}).get(_WRITES, 0)
        made = ready(head.to(self._model.head.targets.device))
        return State(*made[:3], writes if isinstance(writes, int) else 0, file)

    def _features(self, images: Sequence[bytes], is_gone: Callable[[], bool] = lambda: False) -> Tensor:
        if not images:
            raise ValueError("no images were given")
        if len(images) > self.limits.images:
            raise ValueError(f"{len(images)} images are too many for one request: at most {self.limits.images}")
        with self._count:
            if self._waiting >= self.limits.waiting:
                raise Overloaded("too many requests wait already: try again later")
            self._waiting += 1
        try:
            large = max(self._checked_sizes(images)) > _LARGE
            with self._large if large else contextlib.nullcontext(), self._running, torch.no_grad():
                if is_gone():
                    raise Overloaded("the client has gone")
                # One at a time: all of a request decoded at once could be hundreds of times as large as its files.
                tensors = [self._transformed(content, i) for i, content in enumerate(images)]
                return self._model.features(tensors)
        finally:
            with self._count:
                self._waiting -= 1

    def _checked_sizes(self, images: Sequence[bytes]) -> list[int]:
        """Return how many pixels each file has, by its header; raise ``UnreadableImage`` for what is too large."""
        sizes = []
        for i, content in enumerate(images):
            place = f"images[{i}]"
            if len(content) > self.limits.image_bytes:
                raise UnreadableImage(
                    f"{place}: {len(content):,} bytes are too many: at most {self.limits.image_bytes:,}"
                )
            width, height = self._decoder.size(content, place)
            if width * height > self.limits.pixels:
                raise UnreadableImage(
                    f"{place}: {width} x {height} pixels are too many: at most {self.limits.pixels:,}"
                )
            sizes.append(width * height)
        total = sum(sizes)
        if total > self.limits.request_pixels:
            raise TooManyPixels(
                f"{total:,} pixels are too many for one request: at most {self.limits.request_pixels:,}"
            )
        return sizes

    def _transformed(self, content: bytes, position: int) -> Tensor:
        place = f"images[{position}]"
        image = self._decoder.decoded(content, place, self.limits.pixels)
        return transformed(image, self._model.backbone.transform, place)


class Metrics:
    """Counts and times of requests, in Prometheus' text format."""

    BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[tuple[str, int]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        place = next((i for i, bound in enumerate(self.BOUNDS) if seconds <= bound), len(self.BOUNDS))
        with self._lock:
            self._requests[route, status] += 1
            self._buckets[route, place] += 1
            self._seconds[route] += seconds  # type: ignore[assignment]

    def answers(self, accepted: int, refused: int) -> None:
        """Count the images that were answered with a class and as unknown."""
        with self._lock:
            self._answers["accepted"] += accepted
            self._answers["refused"] += refused

    def text(self, state: State) -> str:
        """Return all of it, with the size of the memory."""
        with self._lock:
            requests, buckets = dict(self._requests), dict(self._buckets)
            seconds, answers = dict(self._seconds), dict(self._answers)
        lines = ["# TYPE fewshot_nam_requests_total counter"]
        lines += [
            f'fewshot_nam_requests_total{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(requests.items())
        ]
        lines.append("# TYPE fewshot_nam_request_seconds histogram")
        for route in sorted(seconds):
            below = 0
            for i, bound in enumerate((*map(str, self.BOUNDS), "+Inf")):
                below += buckets.get((route, i), 0)
                lines.append(f'fewshot_nam_request_seconds_bucket{{route="{route}",le="{bound}"}} {below}')
            lines.append(f'fewshot_nam_request_seconds_sum{{route="{route}"}} {seconds[route]:.6f}')
            lines.append(f'fewshot_nam_request_seconds_count{{route="{route}"}} {below}')
        lines.append("# TYPE fewshot_nam_images_total counter")
        lines += [f'fewshot_nam_images_total{{answer="{key}"}} {count}' for key, count in sorted(answers.items())]
        for name, value in (
            ("classes", len(state.head.classes)),
            ("learned_images", len(state.head.targets)),
            ("writes", state.writes),
        ):
            lines += [f"# TYPE fewshot_nam_{name} gauge", f"fewshot_nam_{name} {value}"]
        return "\n".join(lines) + "\n"

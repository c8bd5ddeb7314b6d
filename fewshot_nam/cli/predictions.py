"""What ``fewshot-nam predict`` answers: for images that are named, and for a stream of paths."""

from __future__ import annotations

import io
import json
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from fewshot_nam.cli.outputs import naming_standard_output
from fewshot_nam.io.one_line import one_line
from fewshot_nam.io.regular_files import file_version

if TYPE_CHECKING:
    from torch import Tensor

    from fewshot_nam.heads import Head
    from fewshot_nam.vision.model import NAMModel


def predictions(head: Head, features: Tensor, images: list[str], refuse: bool) -> list[dict[str, Any]]:
    """Return what ``--json`` prints of each image.

    Args:
        head: of the model, a snapshot.
        features: ``(n, D)``, of the images.
        images: their names.
        refuse: whether images below the threshold have no label.

    Raises:
        ValueError: ``refuse``, and there is no threshold.
    """
    answers, classes, threshold = [], head.classes, head.threshold
    if refuse and threshold is None:
        raise ValueError("the memory has no threshold to refuse below: run fewshot-nam calibrate first")
    for image, row in zip(images, head(features).tolist(), strict=True):
        score = max(row)
        accepted = None if threshold is None else score >= threshold
        best = classes[row.index(score)]
        label = None if refuse and not accepted else best
        # The key is a name of version 0.1, which programs read.
        answers.append({"picture": image, "label": label, "best": best, "score": score, "accepted": accepted})
    return answers


def line_of(answer: dict[str, Any]) -> str:
    """Return what is printed of an image without ``--json``: path, label and score, or path, nothing and what is wrong.

    >>> line_of({"picture": "a.png", "label": None, "score": 0.5}).split()
    ['a.png', 'unknown', '0.5000']
    """
    if "error" in answer:
        return f"{one_line(answer['picture'])}\t\t{one_line(answer['error'])}"
    label = "unknown" if answer["label"] is None else one_line(str(answer["label"]))
    if answer["label"] == "unknown":  # a class of this name
        label = "'unknown'"
    return f"{one_line(answer['picture'])}\t{label}\t{answer['score']:.4f}"


def given_paths() -> Iterator[str]:
    """Return the lines of standard input, each a path, whatever bytes they hold; of one that is too long for a path its begin.

    Raises:
        ValueError: it is closed.
    """
    if sys.stdin is None:
        raise ValueError("- reads paths from standard input, which is closed")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    return _lines(sys.stdin)


_LONGEST = 32_767  # characters of a path: Windows has the longest
_SHOWN = 100  # characters of a longer one


def _lines(file: TextIO) -> Iterator[str]:
    """Yield lines; of one that is too long, which may never end, as many characters as show that it is."""
    while line := file.readline(_LONGEST + 2):  # its end may be two characters
        yield line
        while not line.endswith("\n") and (line := file.readline(_LONGEST)):
            pass


def error_answer(image: str, error: object) -> dict[str, Any]:
    """Return what ``--json`` prints of an image that cannot be read.

    >>> error_answer("a.png", "it is none"), error_answer(100_000 * "a", "it is none")["error"]
    ({'picture': 'a.png', 'error': 'it is none'}, 'a line of more than 32,767 characters is no path')
    """
    if len(image) > _LONGEST:
        image, error = f"{image[:_SHOWN]}...", f"a line of more than {_LONGEST:,} characters is no path"
    return {"picture": image, "error": " ".join(str(error).split())}


def answer_stream(
    paths: Iterable[str],
    out: TextIO,
    model: NAMModel,
    memory: str,
    read: tuple[int, int, int, int],
    refuse: bool = False,
    as_json: bool = False,
) -> None:
    """Answer each path with one line, in order and as soon as it comes; what has come meanwhile is one batch.

    An image that cannot be read gets a line that says so, and the stream goes on. When the memory's file is replaced, the next
    answers are those of the new one.

    Args:
        paths: one a line.
        out: where answers go.
        model: of the memory.
        memory: its file.
        read: ``file_version`` of the file before the model was read from it.
        refuse: whether images below the threshold are answered as unknown.
        as_json: an object a line.

    Raises:
        OSError, ValueError: the memory was replaced by one that cannot be used.
    """
    for batch in _batches(paths, model.batch_size):
        while (present := file_version(memory)) != read:  # again where it changes while it is read
            model.load(memory)
            read = present
        head = model.head.snapshot()
        for answer in _answers(model, head, batch, refuse):
            with naming_standard_output():
                out.write((json.dumps(answer) if as_json else line_of(answer)) + "\n")
        with naming_standard_output():
            out.flush()


def _answers(model: NAMModel, head: Head, images: list[str], refuse: bool) -> Iterator[dict[str, Any]]:
    """Yield the answer to each image; one by one where not all can be read."""
    import torch

    try:
        if not head.classes:
            raise ValueError("the memory knows no class")
        with torch.no_grad():
            yield from predictions(head, model.features(images), images, refuse)
    except (OSError, ValueError) as error:
        if len(images) == 1:
            yield error_answer(images[0], error)
            return
        for image in images:
            yield from _answers(model, head, [image], refuse)


def _batches(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield lines without their ends: the next one as soon as it is there, with at most ``size - 1`` that have come meanwhile."""
    waiting: queue.Queue[str | None] = queue.Queue(maxsize=4 * size)
    failed: list[Exception] = []

    def read() -> None:
        try:
            for line in lines:
                if name := line.removesuffix("\n").removesuffix("\r"):
                    waiting.put(name)
        except Exception as error:
            failed.append(error)
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    line: str | None = ""
    while line is not None:
        batch: list[str] = []
        while (not batch or (len(batch) < size and not waiting.empty())) and (line := waiting.get()) is not None:
            batch.append(line)
        if batch:
            yield batch
    if failed:
        raise failed[0]

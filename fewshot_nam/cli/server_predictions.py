"""``fewshot-nam predict --server``: the answers of a running ``fewshot-nam serve``; nothing heavy is imported here."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from fewshot_nam.cli.image_arguments import images_in
from fewshot_nam.cli.outputs import naming_standard_output
from fewshot_nam.cli.predictions import error_answer, given_paths, line_of
from fewshot_nam.io.one_line import one_line
from fewshot_nam.io.regular_files import open_regular
from fewshot_nam.service.client import LARGEST_SCORE, Client, ServerRefusal

_BATCH = 32  # images in one request
_MOST_BYTES = 2**28  # of one image; servers take less
_BATCH_BYTES = 16 * 2**20  # of the files in one request, unless one alone is larger
_BUSY_SECONDS = 120.0  # in which a server that is busy is asked again
_T = TypeVar("_T")


def predict_by_server(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]] | None:
    """Return what ``fewshot-nam predict`` answers; ``None`` where a stream was answered line by line.

    Raises:
        OSError: the server cannot be reached, or a file cannot be read.
        ValueError: the server refuses an image, and ``--skip-unreadable`` is not given; the server is busy for two minutes, or
            refuses for another reason than an image; or an option that is for memories.
    """
    wrong = [f"--{name}" for name in ("weights",) if getattr(options, name)]
    wrong += ["--device"] if options.device != "cpu" else []
    if wrong:
        raise ValueError(f"{', '.join(wrong)} cannot be set with --server: the server has its own")
    client = Client(options.server)
    if options.unknown and _threshold(client, _when_free(client.classes)) is None:
        raise ValueError(f"{options.server} has no threshold to refuse below: calibrate it first")
    if options.images == ["-"]:
        for line in given_paths():
            if name := line.removesuffix("\n").removesuffix("\r"):
                (answer,) = _answers(client, [name], options.unknown, keep_errors=True)
                answer.pop("threshold", None)
                with naming_standard_output():
                    print(json.dumps(answer) if options.json else line_of(answer), flush=True)
        return None
    images = [str(path) for path in images_in(options.images)]
    found = list(_answers(client, images, options.unknown, options.skip_unreadable))
    left_out = [one["picture"] for one in found if "error" in one]
    if len(left_out) == len(found):
        raise ValueError(f"no image can be read: {len(left_out)} of {len(found)} left out")
    if left_out and not options.quiet:
        print(f"note: left out, because they cannot be read: {', '.join(map(one_line, left_out))}", file=sys.stderr)
    answers = [one for one in found if "error" not in one]
    threshold = answers[-1]["threshold"]
    if all(one["threshold"] == threshold for one in answers):
        for one in answers:
            del one["threshold"]
    elif not options.quiet:
        print("note: the threshold was changed meanwhile: each prediction has its own", file=sys.stderr)
    return {"server": options.server, "threshold": threshold, "predictions": answers}, [line_of(one) for one in answers]


def _threshold(client: Client, answer: dict[str, Any]) -> float | None:
    """Return the threshold in an answer of a server."""
    found = answer.get("threshold", "missing")
    wrong = isinstance(found, bool) or not isinstance(found, (float, int, type(None)))
    if wrong or not (found is None or -LARGEST_SCORE <= found <= LARGEST_SCORE):
        raise ValueError(f"{client.url}: does not say its threshold as a fewshot-nam serve does")
    return found


def _answers(client: Client, images: list[str], refuse: bool, keep_errors: bool) -> Iterator[dict[str, Any]]:
    """Yield the answer to each image in turn; with ``keep_errors``, what is wrong with one that cannot be read."""
    batch: list[tuple[str, bytes]] = []
    size = 0
    for image in images:
        try:
            with open_regular(image) as file:
                if (length := os.fstat(file.fileno()).st_size) > _MOST_BYTES:
                    raise ValueError(
                        f"{image}: {length:,} bytes are too many for an image to send: at most {_MOST_BYTES:,}"
                    )
                content = file.read()
        except (OSError, ValueError) as error:  # a ValueError: the name holds a NUL
            if not keep_errors:
                raise
            yield from _batch_answers(client, batch, refuse, keep_errors)
            yield _error(image, error)
            batch, size = [], 0
            continue
        if len(batch) == _BATCH or size + len(content) > _BATCH_BYTES:
            yield from _batch_answers(client, batch, refuse, keep_errors)
            batch, size = [], 0
        batch.append((image, content))
        size += len(content)
    yield from _batch_answers(client, batch, refuse, keep_errors)


def _batch_answers(
    client: Client, batch: list[tuple[str, bytes]], refuse: bool, keep_errors: bool
) -> Iterator[dict[str, Any]]:
    """Yield the answer to each image of a batch, asked for at once, or in halves where the server refuses them together."""
    if not batch:
        return
    try:
        answer = _when_free(lambda: client.predict([content for _, content in batch], top=1))
    except ServerRefusal as refused:
        # Too many images are 400, too many bytes or pixels 413, and one that is no image 422.
        if len(batch) > 1 and (refused.status in (400, 413) or (refused.status == 422 and keep_errors)):
            middle = len(batch) // 2
            yield from _batch_answers(client, batch[:middle], refuse, keep_errors)
            yield from _batch_answers(client, batch[middle:], refuse, keep_errors)
            return
        if refused.status not in (413, 422):  # nothing is wrong with the images
            raise
        text = str(refused)
        for i, (image, _) in enumerate(batch):
            text = text.replace(f"images[{i}]:", f"{image}:")
        if not keep_errors:
            raise ValueError(text) from refused
        yield _error(batch[0][0], text)
        return
    threshold = _threshold(client, answer)
    for (image, _), one in zip(batch, answer["predictions"], strict=True):
        if refuse and one["accepted"] is None:  # another memory than before, perhaps
            text = f"{client.url} has no threshold to refuse below: calibrate it first"
            if not keep_errors:
                raise ValueError(text)
            yield _error(image, text)
            continue
        label = None if refuse and one["accepted"] is False else one["best"]
        shown = {key: one[key] for key in ("best", "score", "accepted")}
        yield {"picture": image, "label": label, **shown, "threshold": threshold}


def _error(image: str, error: object) -> dict[str, Any]:
    answer = error_answer(image, error)
    return {**answer, "error": one_line(answer["error"])}


def _when_free(ask: Callable[[], _T]) -> _T:
    """Return the server's answer, asked for again while the server is busy."""
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return ask()
        except ServerRefusal as refused:
            wait = min(refused.retry_after or 1, _BUSY_SECONDS)
            if refused.status != 503 or time.monotonic() + wait > end:
                raise
            time.sleep(wait)

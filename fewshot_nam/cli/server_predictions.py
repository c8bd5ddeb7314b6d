"""``fewshot-nam predict --server``: the answers of a running ``fewshot-nam serve``; nothing heavy is imported here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewshot_nam.cli.image_arguments import images_in
from fewshot_nam.cli.predictions import given_paths, line_of
from fewshot_nam.service.client import Client

_BATCH = 32  # images in one request


def predict_by_server(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]] | None:
    """Return what ``fewshot-nam predict`` answers; ``None`` where a stream was answered line by line.

    Raises:
        OSError: the server cannot be reached, or a file cannot be read.
        ValueError: the server refuses an image, and ``--skip-unreadable`` is not given; or an option that is for memories.
    """
    wrong = [f"--{name}" for name in ("weights",) if getattr(options, name)]
    wrong += ["--device"] if options.device != "cpu" else []
    if wrong:
        raise ValueError(f"{', '.join(wrong)} cannot be set with --server: the server has its own")
    client = Client(options.server)
    if options.images == ["-"]:
        for line in given_paths():
            if name := line.removesuffix("\n").removesuffix("\r"):
                (answer,) = _answers(client, [name], options.unknown, keep_errors=True)
                print(json.dumps(answer) if options.json else line_of(answer), flush=True)
        return None
    if options.unknown and client.classes()["threshold"] is None:
        raise ValueError(f"{options.server} has no threshold to refuse below: calibrate it first")
    images = [str(path) for path in images_in(options.images)]
    found: list[dict[str, Any]] = []
    for start in range(0, len(images), _BATCH):
        found += _answers(client, images[start : start + _BATCH], options.unknown, options.skip_unreadable)
    left_out = [one["picture"] for one in found if "error" in one]
    if len(left_out) == len(found):
        raise ValueError(f"no image can be read: {len(left_out)} of {len(found)} left out")
    if left_out and not options.quiet:
        print(f"note: left out, because they cannot be read: {', '.join(left_out)}", file=sys.stderr)
    answers = [one for one in found if "error" not in one]
    threshold = client.classes()["threshold"]
    return {"server": options.server, "threshold": threshold, "predictions": answers}, [line_of(one) for one in answers]


def _answers(client: Client, images: list[str], refuse: bool, keep_errors: bool) -> Iterator[dict[str, Any]]:
    """Yield the answer to each image; with ``keep_errors``, one by one where not all can be read."""
    try:
        found = client.predict([Path(image) for image in images], top=1)["predictions"]
    except ValueError as error:
        text = str(error)
        for i, image in enumerate(images):
            text = text.replace(f"images[{i}]:", f"{image}:")
        if not keep_errors:
            raise ValueError(text) from error
        if len(images) == 1:
            yield {"picture": images[0], "error": text}
            return
        for image in images:
            yield from _answers(client, [image], refuse, keep_errors)
        return
    except FileNotFoundError as error:
        if not keep_errors or len(images) > 1:
            raise
        yield {"picture": images[0], "error": str(error)}
        return
    for image, one in zip(images, found, strict=True):
        label = None if refuse and one["accepted"] is False else one["best"]
        yield {"picture": image, "label": label, **{key: one[key] for key in ("best", "score", "accepted")}}

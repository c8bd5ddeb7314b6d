"""The command ``fewshot-nam``: answers go to standard output; progress, notes and errors to standard error."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.options import DEFAULT_BACKBONE, DEFAULT_HEAD, key_values, parser
from fewshot_nam.cli.outputs import check_output, naming_standard_output, refuse_input, writable
from fewshot_nam.cli.predictions import line_of
from fewshot_nam.cli.starting import end
from fewshot_nam.heap import keep_freed_memory
from fewshot_nam.io.one_line import one_line
from fewshot_nam.service.class_names import known_classes, one_spelling
from fewshot_nam.vision.libraries import names

if TYPE_CHECKING:
    from torch import Tensor

    from fewshot_nam.heads import Head, Label
    from fewshot_nam.vision.model import NAMModel

Answer = tuple[dict[str, Any], list[str]]
"""The object that ``--json`` prints, and the lines that are printed without it."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for input that cannot be used, 130 when interrupted."""
    options = parser().parse_args(arguments)

    def answer() -> None:
        with keep_freed_memory(), _warnings_as_notes(options):
            answered = _COMMANDS[options.command](options)
        if answered is not None:
            found, lines = answered
            saved = _SAVED.get(options.command)
            with naming_standard_output(f"{getattr(options, saved)} is saved all the same" if saved else ""):
                print(json.dumps(found, indent=2) if options.json else "\n".join(lines), flush=True)

    return exit_status(answer, "interrupted; a memory is changed whole or not at all", ends_with_reader=True)


# The commands.


def _learn(options: argparse.Namespace) -> Answer:
    from fewshot_nam.cli.image_arguments import images_in, images_of_classes
    from fewshot_nam.heads.validation import as_labels
    from fewshot_nam.vision.memory_lock import exclusive
    from fewshot_nam.vision.saving import save_head

    path = writable(options.memory)
    if options.label is None:
        found = images_of_classes(options.images, "with --label LABEL, its images are of that class")
    else:
        if not options.label.strip():
            raise ValueError("--label is empty: a shell variable may not be set")
        as_labels(options.label, 1)  # before images are read
        found = [(image, options.label) for image in images_in(options.images)]
    _note_other_files(options.images, options)
    with exclusive(path):
        if path.exists():
            given = ("backbone", "head", "model_option", "transform_option")
            wrong = [f"--{name.replace('_', '-')}" for name in given if getattr(options, name)]
            if wrong:
                raise ValueError(f"{path} exists already, and {', '.join(wrong)} can be set for a new memory only")
            model, notes = _open(options)
        else:
            model, notes = _new(options)
        labels = _written(model.classes, [label for _, label in found])
        features, kept = _features(model, [image for image, _ in found], options)
        labels = [labels[i] for i in kept]
        repeated = _note_repeated(model.head, features, options)
        model.head.write(features, labels)
        save_head(path, model.head, model.backbone, notes)
    _note_threshold(model.head, options)
    learned = {str(label): count for label, count in Counter(labels).items()}
    lines = [f"{one_line(str(path))}: learned {_counted(learned)}; knows {_classes(len(model.classes))}"]
    answer = {"memory": str(path), "learned": learned, "repeated": repeated, "classes": model.classes}
    cost = model.base_cost
    if cost is not None:
        lines.append(
            f"{cost.share:.1%} of {_images(cost.images)} of base classes are answered as a learned class (limit {cost.limit:.1%})"
        )
        answer["base_cost"] = cost._asdict()
    return answer, lines


def _predict(options: argparse.Namespace) -> Answer | None:
    from fewshot_nam.cli.image_arguments import images_in
    from fewshot_nam.cli.predictions import answer_stream, given_paths, predictions
    from fewshot_nam.io.regular_files import file_version

    if options.server is not None:
        from fewshot_nam.cli.server_predictions import predict_by_server

        return predict_by_server(options)
    stream = options.images == ["-"]
    images = [] if stream else images_in(options.images)
    if not stream:
        _note_other_files(options.images, options)
    read = file_version(options.memory) if stream else None  # before the model is: it may change meanwhile
    model, _ = _open(options, knows_classes=True)
    if options.unknown and model.head.threshold is None:
        raise ValueError(f"{options.memory} has no threshold to refuse below: run fewshot-nam calibrate first")
    if read is not None:
        answer_stream(given_paths(), sys.stdout, model, options.memory, read, options.unknown, options.json)
        return None
    features, kept = _features(model, images, options)
    head = model.head.snapshot()
    answers = predictions(head, features, [str(images[i]) for i in kept], options.unknown)
    lines = [line_of(one) for one in answers]
    return {"memory": options.memory, "threshold": head.threshold, "predictions": answers}, lines


def _forget(options: argparse.Namespace) -> Answer:
    from fewshot_nam.service.noted_unknowns import NOTED
    from fewshot_nam.vision.memory_lock import exclusive
    from fewshot_nam.vision.saving import read_head, write_head

    if not options.labels and not options.unknowns:
        raise ValueError("name what is to be forgotten: labels of classes, or --unknowns")
    path = writable(options.memory)
    with exclusive(path):
        about, head, probed = read_head(path)
        labels, unknowns = _written(head.classes, list(dict.fromkeys(options.labels))), 0
        if options.unknowns:
            unknowns, head.threshold = head.num_unknowns, None
            (about.get("notes") or {}).pop(NOTED, None)  # those that the page waits to set a rate with
        if labels:
            head.forget(labels)
        write_head(path, head, about, probed)
    _note_threshold(head, options)
    forgotten = [one_line(str(label)) for label in labels]
    if options.unknowns:
        forgotten.append(f"{_images(unknowns)} of unknowns and the threshold")
    lines = [f"{one_line(str(path))}: forgot {', '.join(forgotten)}; knows {_classes(len(head.classes))}"]
    return {"memory": str(path), "forgotten": labels, "unknowns": unknowns, "classes": head.classes}, lines


def _inspect(options: argparse.Namespace) -> Answer:
    from fewshot_nam.vision.saving import read_head

    about, head, _ = read_head(options.memory)
    counts = head.shots_per_class()
    try:
        threshold, refusal = head.threshold, None
    except ValueError as error:  # calibrated, but no class is left, or too few unknown images
        threshold, refusal = None, one_line(" ".join(str(error).split()))
    # The rate of calibrate --by-class holds for each new class of unknowns: it rests on their number.
    samples, groups = head._resting_on()
    calibrated = (
        None
        if head._target_fpr is None
        else {
            "target_fpr": head._target_fpr,
            "confidence": head._confidence,
            "strangers": samples,
            "stranger_classes": groups,
        }
    )
    answer = {
        "memory": options.memory,
        **{key: about.get(key) for key in ("made_by", "backbone", "model_options", "transform", "weights", "notes")},
        "head": about["head"],
        "settings": about["settings"],
        "feature_dim": head.feature_dim,
        "classes": [{"label": label, "pictures": count} for label, count in zip(head.classes, counts, strict=True)],
        "threshold": threshold,
        "calibrated": calibrated,
    }
    source = (about.get("notes") or {}).get("weights")
    (answer["notes"] or {}).pop("unknowns", None)  # features that the page keeps there
    refusing = refusal or (
        "refuses nothing: not calibrated" if threshold is None else f"accepts scores from {threshold:.4f}"
    )
    if calibrated is not None and threshold is not None:
        often = "on average over" if head._confidence is None else f"in {100 * head._confidence:g}% of"
        of = (
            ""
            if groups is None
            else f" of {_classes(groups)}"
            if head._unknown_groups is None
            else f" in {groups} groups"
        )
        refusing += f" (at most {head._target_fpr:g} of unknowns {often} calibrations, from {samples} samples{of})"
    lines = [
        f"{one_line(options.memory)}: {one_line(about['head'])} of {_classes(len(head.classes))}, "
        f"{head.feature_dim or 'no'} features, {refusing}",
        f"backbone {one_line(about['backbone'])}"
        + (f", weights {one_line(source)}" if source else "")
        + f", SHA-256 {one_line(about['weights'])}",
        *(f"  {one_line(str(label))}\t{_images(count)}" for label, count in zip(head.classes, counts, strict=True)),
    ]
    return answer, lines


def _calibrate(options: argparse.Namespace) -> Answer:
    from fewshot_nam.cli.image_arguments import images_in, images_of_classes
    from fewshot_nam.vision.memory_lock import exclusive
    from fewshot_nam.vision.saving import save_head

    path = writable(options.memory)
    labels = None
    if options.by_class:
        by_class = images_of_classes(options.unknown_images, "without --by-class, its images are unknown ones")
        unknown, labels = [image for image, _ in by_class], [label for _, label in by_class]
    else:
        unknown = images_in(options.unknown_images)
    _note_other_files(options.unknown_images, options)
    known = None if options.known is None else images_of_classes([options.known], "--known needs them")
    with exclusive(path):
        model, notes = _open(options, knows_classes=True)
        features, kept = _features(model, unknown, options)
        known_features, known_labels = None, None
        if known is not None:
            known_features, known_kept = _features(model, [image for image, _ in known], options)
            known_labels = _written(model.classes, [known[i][1] for i in known_kept])
        found = model.head.calibrate(
            features,
            known_features,
            target_fpr=options.target,
            unknown_labels=None if labels is None else _written(model.classes, [labels[i] for i in kept]),
            known_labels=known_labels,
            confidence=options.confidence,
        )
        save_head(path, model.head, model.backbone, notes)
    of = "" if found.groups is None else f" of {_classes(found.groups)}"
    line = (
        f"{one_line(str(path))}: accepts scores from {found.threshold:.4f}; at most {found.bound:.4g} of unknowns are accepted "
        f"on average over calibrations, from {found.unknowns} samples{of}"
    )
    if found.bound > options.target and not options.quiet:
        print(
            f"note: more than {options.target:g} on average: --confidence {options.confidence:g} asks for no more than that",
            file=sys.stderr,
        )
    if found.bound_95 is not None:
        line += f"; at most {found.bound_95:.4g} in 95% of calibrations"
    if found.known_accepted is not None:
        line += f"; {found.known_accepted:.4g} of the known images are accepted"
        if found.known_accepted < 0.5 and not options.quiet:
            print(
                "note: most known images are refused: learn from more images of each class, or allow a larger --target",
                file=sys.stderr,
            )
    words = {"strangers": found.unknowns, "stranger_classes": found.groups}  # of version 0.1
    return {"memory": str(path), **found._asdict(), **words}, [line]


def _export(options: argparse.Namespace) -> Answer:
    from fewshot_nam.vision.export import export_onnx
    from fewshot_nam.vision.noted_weights import NOT_FILES, weights_file

    path = writable(options.onnx)
    check_output(path)
    model, notes = _open(options, knows_classes=True)
    if notes["weights"] not in NOT_FILES:
        refuse_input(path, weights_file(options.memory, notes["weights"]), "the backbone's weights")
    export_onnx(model, path)
    lines = [
        f"{one_line(str(path))}: {_classes(len(model.classes))}, images of {'x'.join(map(str, _input_shape(model)))}"
    ]
    return {"memory": options.memory, "onnx": str(path), "classes": model.classes}, lines


def _page(options: argparse.Namespace) -> Answer:
    from fewshot_nam.cli import page

    return page.run(options, DEFAULT_BACKBONE)


def _serve(options: argparse.Namespace) -> None:
    from fewshot_nam.cli import serve

    serve.run(options)


_COMMANDS: dict[str, Callable[[argparse.Namespace], Answer | None]] = {
    "learn": _learn,
    "predict": _predict,
    "forget": _forget,
    "inspect": _inspect,
    "calibrate": _calibrate,
    "export": _export,
    "page": _page,
    "serve": _serve,
}

_SAVED = {"learn": "memory", "forget": "memory", "calibrate": "memory", "export": "onnx"}
"""By command, the option that names what it has written before it answers."""


# Models.


def _new(options: argparse.Namespace) -> tuple[NAMModel, dict[str, Any]]:
    """Return a model without classes, and the notes for its file."""
    from fewshot_nam.vision.memory_files import new_model

    if options.backbone is None and not options.quiet:
        print(
            f"note: the backbone is {DEFAULT_BACKBONE}, which is for handwritten characters; for photographs, start a memory with "
            f"--backbone {names.forms()}",
            file=sys.stderr,
        )
    return new_model(
        options.backbone or DEFAULT_BACKBONE,
        options.memory,
        options.weights,
        head=options.head or DEFAULT_HEAD,
        model_options=key_values("--model-option", options.model_option),
        transform_options=key_values("--transform-option", options.transform_option),
        device=options.device,
    )


def _open(options: argparse.Namespace, knows_classes: bool = False) -> tuple[NAMModel, dict[str, Any]]:
    """Return the model of a memory's file, and the file's notes.

    Args:
        options: of the command line.
        knows_classes: refuse a memory that knows no class.
    """
    from fewshot_nam.vision.memory_files import open_model

    model, notes = open_model(options.memory, options.weights, options.device)
    if knows_classes and not model.classes:
        raise ValueError(f"{options.memory} knows no class: run fewshot-nam learn first")
    return model, notes


def _features(model: NAMModel, images: list[Path], options: argparse.Namespace) -> tuple[Tensor, list[int]]:
    """Return the features of images, and the positions of those that were read: all, but with ``--skip-unreadable``."""
    import torch
    from tqdm import tqdm

    from fewshot_nam.io.image_io import UnreadableImage
    from fewshot_nam.vision.image_transform import TransformFailed

    parts: list[Tensor] = []
    kept: list[int] = []
    with torch.no_grad(), tqdm(total=len(images), unit="image", disable=True if options.quiet else None) as bar:
        for start in range(0, len(images), model.batch_size):
            positions = range(start, min(start + model.batch_size, len(images)))
            try:
                parts.append(model.features([images[i] for i in positions]))
                kept += positions
            except (UnreadableImage, TransformFailed):
                if not options.skip_unreadable:
                    raise
                for i in positions:
                    with contextlib.suppress(UnreadableImage, TransformFailed):
                        parts.append(model.features([images[i]]))
                        kept.append(i)
            bar.update(len(positions))
    if not kept:
        raise ValueError(f"no image can be read: {len(images)} of {len(images)} left out")
    skipped = [str(images[i]) for i in sorted({*range(len(images))} - {*kept})]
    if skipped and not options.quiet:
        print(
            f"note: left out, because they cannot be read: {_images(len(skipped))}: {', '.join(map(one_line, skipped))}",
            file=sys.stderr,
        )
    return torch.cat(parts), kept


def _note_repeated(head: Head, features: Tensor, options: argparse.Namespace) -> int:
    """Return how many of the features are learned already, or are given twice, and say so."""
    from fewshot_nam.heads.duplicates import distinct, first_equal

    different = features[distinct(features).to(features.device)]
    repeated = len(features) - int((first_equal(different, head.support) < 0).sum())
    if repeated and not options.quiet:
        print(
            f"note: {_images(repeated)} of {len(features)} learned before or given twice: each counts again",
            file=sys.stderr,
        )
    return repeated


def _note_threshold(head: Head, options: argparse.Namespace) -> None:
    """Say what the classes that are known now did to a threshold: that it cannot be kept, or rose."""
    from fewshot_nam.service.thresholds import threshold_of

    for said in threshold_of(head)[1]:
        if not getattr(options, "quiet", False):
            print(f"note: {one_line(' '.join(said.split()))}", file=sys.stderr)


@contextlib.contextmanager
def _warnings_as_notes(options: argparse.Namespace) -> Iterator[None]:
    """Print warnings as notes of one line each, and none with ``--quiet``."""

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if not getattr(options, "quiet", False):
            print(f"note: {one_line(' '.join(str(message).split()))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = note
        yield


def _note_other_files(paths: list[str], options: argparse.Namespace) -> None:
    """Say which files of the directories are left out because of their endings."""
    from fewshot_nam.io.image_folders import other_files

    found = other_files(Path(given).expanduser() for given in paths)
    if found and not options.quiet:
        endings = ", ".join(f"{one_line(ending)} ({count})" for ending, count in sorted(found.items()))
        print(f"note: files are left out whose endings are no image's: {endings}", file=sys.stderr)


def _written(classes: list[Label], labels: list[str]) -> list[Label]:
    """Return the classes that are written so in a shell or on a disk; a new one in one spelling, the same on every system.

    One that was learned in Python may be a number, or have a name that the page and the server would not take.
    """
    known = known_classes(classes, labels) | {name: name for name in classes if isinstance(name, str)}
    return [one_spelling(label) if (name := known[label]) is None else name for label in labels]


def _input_shape(model: NAMModel) -> tuple[int, ...]:
    from PIL import Image

    return tuple(model.backbone.transform(Image.new("RGB", (256, 256))).shape)


# Files and words.


def _counted(learned: dict[str, int]) -> str:
    shown = [f"{one_line(label)} ({_images(count)})" for label, count in list(learned.items())[:10]]
    return ", ".join(shown) + (f", ... ({len(learned)} classes)" if len(learned) > 10 else "")


def _classes(count: int) -> str:
    return f"{count:,} class{'' if count == 1 else 'es'}"


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


if __name__ == "__main__":
    raise SystemExit(end(main()))

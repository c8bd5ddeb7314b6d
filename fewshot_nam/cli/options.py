"""The options of ``fewshot-nam``. Nothing heavy is imported here, so that ``--help`` is fast."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from fewshot_nam import __version__
from fewshot_nam.cli import page as page_options
from fewshot_nam.cli import serve as serve_options
from fewshot_nam.heads import registry
from fewshot_nam.io.yaml_input import load_yaml, shown
from fewshot_nam.vision.libraries import names

DEFAULT_BACKBONE = "conv4"
DEFAULT_HEAD = "nam"

_DESCRIPTION = """\
Teach a vision model classes from a few images each, recognise them, and refuse images of unknown classes.

All that is learned is kept in one file, the memory. The backbone that turns images into features is never changed.
"""

_EXAMPLES = """\
examples:
  fewshot-nam learn photos/ --backbone timm/resnet18 --out shop.safetensors    (a directory of images for each class)
  fewshot-nam learn cup.jpg --label cup --out shop.safetensors                 (adds to a memory that is there)
  fewshot-nam predict what.jpg more/ --memory shop.safetensors
  find /camera | fewshot-nam predict - --memory shop.safetensors               (starts once, answers line by line)
  fewshot-nam calibrate others/ --target 0.05 --memory shop.safetensors
  fewshot-nam predict what.jpg --unknown --memory shop.safetensors             (refuses unknown classes)
  fewshot-nam forget cup --memory shop.safetensors
  fewshot-nam inspect --memory shop.safetensors
  fewshot-nam export shop.onnx --memory shop.safetensors
  fewshot-nam page shop.safetensors                                            (the same in a browser)
  fewshot-nam serve shop.safetensors                                           (the same for programs, over HTTP)
  fewshot-nam predict what.jpg --server http://127.0.0.1:8000
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the options)\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the command's name is in ``command``."""
    made = _Parser(
        prog="fewshot-nam",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

    learn = _command(commands, "learn", "learn classes from images, in a new memory or in an existing one")
    learn.add_argument(
        "images",
        nargs="+",
        metavar="PATH",
        help="directories that hold a directory of images for each class; with --label, images or directories of them",
    )
    learn.add_argument("--label", metavar="LABEL", help="the class of all these images")
    _memory(learn, "--out", "--memory", help="the memory's file; classes are added to an existing one")
    learn.add_argument(
        "--backbone",
        metavar="NAME",
        help=f"of a new memory: {names.help_line()} (default: {DEFAULT_BACKBONE})",
    )
    learn.add_argument(
        "--head",
        choices=head_names(),
        metavar="HEAD",
        help=f"of a new memory: {', '.join(head_names())} (default: {DEFAULT_HEAD})",
    )
    for kind, example in (("model", "pad_type=same"), ("transform", "input_size=160")):
        learn.add_argument(
            f"--{kind}-option",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"of a new memory: an option of the {kind}, such as {example}; may be repeated",
        )
    _images(learn)
    _machine(learn)

    predict = _command(commands, "predict", "print the class of each image")
    predict.add_argument(
        "images",
        nargs="+",
        metavar="PATH",
        help="images, or directories of them; - alone reads paths from standard input, one a line, and answers each as it comes",
    )
    source = predict.add_mutually_exclusive_group(required=True)
    source.add_argument("--memory", metavar="FILE", help="the memory's file")
    source.add_argument(
        "--server", metavar="URL", help="a running fewshot-nam serve, which answers at once: nothing is loaded here"
    )
    predict.add_argument(
        "--unknown", action="store_true", help="refuse images of unknown classes: needs calibrate first"
    )
    _images(predict)
    _machine(predict)

    forget = _command(commands, "forget", "forget classes: the memory is then the same as one that never learned them")
    forget.add_argument("labels", nargs="*", metavar="LABEL")
    forget.add_argument(
        "--unknowns",
        action="store_true",
        help="the images of unknowns: there is no threshold then, and nothing is refused",
    )
    _memory(forget)

    inspect = _command(commands, "inspect", "show the classes of a memory, and its backbone")
    _memory(inspect)

    calibrate = _command(
        commands, "calibrate", "set the score below which images are refused, from images of unknown classes"
    )
    calibrate.add_argument(
        "unknown_images", nargs="+", metavar="PATH", help="images that are to be refused, or directories of them"
    )
    _memory(calibrate)
    calibrate.add_argument(
        "--target",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="at most this share of unknown images is accepted; it takes 1 / SHARE - 1 of them (default: %(default)s)",
    )
    calibrate.add_argument(
        "--by-class",
        action="store_true",
        help="PATH holds a directory for each unknown class; the bound then holds for images of further unknown classes",
    )
    calibrate.add_argument(
        "--known",
        metavar="DIR",
        help="further images of known classes, a directory for each: tells how many of them are accepted",
    )
    calibrate.add_argument(
        "--confidence",
        type=float,
        metavar="SHARE",
        help="keep the target in this share of calibrations, not only on average over them; takes more images",
    )
    _images(calibrate)
    _machine(calibrate)

    export = _command(commands, "export", "write backbone and memory as one ONNX file, for onnxruntime and others")
    export.add_argument("onnx", metavar="FILE", help="the ONNX file; an existing one is replaced")
    _memory(export)
    _machine(export)

    page_options.add_options(
        _command(commands, "page", "teach and ask in a browser: by camera, images or folders"), DEFAULT_BACKBONE
    )
    serve_options.add_options(_command(commands, "serve", "answer other programs over HTTP, and learn from them"))
    return made


def head_names() -> list[str]:
    """Return the heads that a memory can have: those that can be read back from its file, which needs no base prototypes.

    Transductive heads are left out: what they answer for an image would depend on the images beside it.
    """
    return [
        entry.name
        for entry in registry.specs()
        if entry.train is None and entry.needs != "prototypes" and not entry.transductive
    ]


def _command(commands: argparse._SubParsersAction[_Parser], name: str, meaning: str) -> argparse.ArgumentParser:
    made = commands.add_parser(
        name, help=meaning, description=meaning[0].upper() + meaning[1:] + ".", allow_abbrev=False
    )
    made.add_argument("--json", action="store_true", help="answer in JSON")
    return made


def _memory(command: argparse.ArgumentParser, *flags: str, help: str = "the memory's file") -> None:
    command.add_argument(*(flags or ("--memory",)), dest="memory", required=True, metavar="FILE", help=help)


def _machine(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--weights",
        metavar="FILE",
        help="the backbone's weights: a file, or 'random' (to try things out); otherwise those that the memory was learned with, "
        "and for a new one the backbone's own, which timm and torchvision fetch",
    )
    command.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    command.add_argument("--quiet", action="store_true", help="no progress bar and no notes")


def _images(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--skip-unreadable", action="store_true", help="leave out images that cannot be read, and list them"
    )


def key_values(option: str, pairs: list[str] | None) -> dict[str, Any]:
    """Return ``KEY=VALUE`` texts as a dict; values are read as YAML: numbers, lists, true and false are what they look like.

    Raises:
        ValueError: a text of another form; ``option`` is named.
    """
    found = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"{option}: expected KEY=VALUE, got {shown(pair)}")
        try:
            found[key] = load_yaml(value, option)
        except ValueError:
            raise ValueError(f"{option}: the value of {shown(pair)} is not YAML, or has aliases") from None
    return found

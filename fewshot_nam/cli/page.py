"""``fewshot-nam page``: the options of the teaching page, and what starts it. Nothing heavy is imported before it starts."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from fewshot_nam.cli.numbers import whole_number
from fewshot_nam.cli.serve import add_allowed_hosts
from fewshot_nam.vision.libraries import names


def add_options(command: argparse.ArgumentParser, default_backbone: str) -> None:
    """Add the options of the page to its command."""
    command.add_argument(
        "memory", nargs="?", metavar="MEMORY", help="the memory's file: opened, or made by the first save"
    )
    command.add_argument(
        "--backbone", metavar="NAME", help=f"of a new memory: {names.help_line()} (default: {default_backbone})"
    )
    command.add_argument(
        "--weights", metavar="FILE", help="the backbone's weights: a file, or 'random'; otherwise those of the memory"
    )
    command.add_argument(
        "--port", type=whole_number(1, 65535), metavar="N", help="of the page (default: a free one from 7860 on)"
    )
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="the address to listen on (default: %(default)s, which this machine alone reaches); any other lets all who reach it "
        "teach and read the memory, but not name folders of this machine",
    )
    add_allowed_hosts(command)
    command.add_argument("--open", action="store_true", help="open it in the browser")
    command.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    command.add_argument("--quiet", action="store_true", help="no notes")


def run(options: argparse.Namespace, default_backbone: str) -> tuple[dict[str, Any], list[str]]:
    """Serve the page until it is stopped.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the port is taken, or the memory cannot be read.
        ValueError: the memory or the backbone cannot be used.
    """
    try:
        from fewshot_nam.service import page
    except ModuleNotFoundError as error:
        raise ImportError(f"the page needs {error.name}: pip install 'fewshot-nam[page]'") from error
    from fewshot_nam.service.teaching import TeachingSession

    session = TeachingSession.open(
        options.memory,
        backbone=options.backbone,
        weights=options.weights,
        device=options.device,
        default_backbone=default_backbone,
    )
    if not options.quiet and session.model.backbone.name == default_backbone:
        print(
            f"note: the backbone is {default_backbone}, which is for handwritten characters; for photographs, start a memory with "
            f"--backbone {names.forms()}",
            file=sys.stderr,
        )
    page.serve(session, options.host, options.port, open_browser=options.open, hosts=options.allow_host)
    if session.version and not session.saved and not options.quiet:
        print("note: the memory was changed since it was last saved; these changes are lost", file=sys.stderr)
    return {"memory": options.memory, "classes": session.model.classes}, ["the page is stopped"]

"""``fewshot-nam serve``: the options of the server, and what starts it. Nothing heavy is imported before it starts."""

from __future__ import annotations

import argparse

from fewshot_nam.cli.numbers import whole_number


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the server to its command."""
    command.add_argument("memory", metavar="MEMORY", help="the memory's file, which exists")
    command.add_argument("--weights", metavar="FILE", help="the backbone's weights; otherwise those of the memory")
    command.add_argument("--port", type=whole_number(1, 65535), default=8000, metavar="N", help="default: %(default)s")
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="the address to listen on (default: %(default)s, which this machine alone reaches)",
    )
    add_allowed_hosts(command)
    command.add_argument(
        "--workers",
        type=whole_number(1, 256),
        default=1,
        metavar="N",
        help="processes that answer, one file between them (default: %(default)s)",
    )
    command.add_argument(
        "--threads",
        type=whole_number(1, 1024),
        metavar="N",
        help="of torch in each process (default: torch's choice)",
    )
    for flag, meaning in (("--max-images", "images in one request"), ("--max-megabytes", "of one request")):
        command.add_argument(
            flag, type=whole_number(1, 100_000), default=64, metavar="N", help=f"{meaning} (default: %(default)s)"
        )
    command.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    command.epilog = (
        "Changes (learn, forget, calibrate) need a token: set FEWSHOT_NAM_TOKEN. Without one, the server answers only."
    )


def _host_name(text: str) -> str:
    """Return the name of a host; an address of a page, or a name with a port, would never be asked for."""
    if not text.strip() or "/" in text or (":" in text and text.count(":") < 2) or len(text.split()) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a host: give it without http:// and without a port")
    if "*" in text:
        raise argparse.ArgumentTypeError(f"{text!r} stands for many names: give each by itself")
    if not text.isascii():  # Python knows the rules of 2003, by which some names are another's
        raise argparse.ArgumentTypeError(f"{text!r}: give it as browsers ask for it, in letters of ASCII (xn--...)")
    return text


def add_allowed_hosts(command: argparse.ArgumentParser) -> None:
    """Add the option that names what else a server or page answers to."""
    command.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        type=_host_name,
        help="a name that a proxy before it passes on, or by which others reach it; may be repeated. It answers to the names "
        "of this machine and, where --host is not the loopback, to addresses; and to its own pages alone",
    )


def run(options: argparse.Namespace) -> None:
    """Serve until stopped.

    Raises:
        ImportError: FastAPI or uvicorn is not installed.
        OSError: the memory cannot be read.
        ValueError: the memory or an option cannot be used.
    """
    try:
        from fewshot_nam.service import http_server
    except ModuleNotFoundError as error:
        raise ImportError(f"the server needs {error.name}: pip install 'fewshot-nam[serve]'") from error
    from fewshot_nam.service.serving import Limits

    limits = Limits(images=options.max_images, body_bytes=options.max_megabytes * 2**20)
    http_server.serve(
        options.memory,
        options.host,
        options.port,
        weights=options.weights,
        device=options.device,
        workers=options.workers,
        threads=options.threads,
        limits=limits,
        hosts=options.allow_host,
    )

"""The command ``fewshot-nam-eval``, which is also ``scripts/episode_eval.py``.

Nothing heavy is imported before the options are understood.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from episodes.cli.options import DEFAULT_HEADS, command_line, parser, read_options, with_scores
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.options import key_values
from fewshot_nam.cli.outputs import check_output
from fewshot_nam.distributed import joined, processes
from fewshot_nam.io.image_folders import EXTENSIONS
from fewshot_nam.io.one_line import one_line
from fewshot_nam.io.regular_files import open_regular

if TYPE_CHECKING:
    from episodes.features.sources import Sources
    from episodes.reporting.collectors import ReportCollector
    from episodes.reporting.report import Report


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for what cannot be used or written, 130 when interrupted."""

    def evaluate_and_print() -> None:
        options = read_options(arguments)
        with joined(options.device):
            run(options)

    return exit_status(evaluate_and_print, "interrupted; features extracted so far are kept")


def run(options: argparse.Namespace) -> Report | None:
    """Evaluate as the options say, write the output files, print the table, and return the report.

    Of several processes (``torchrun``) only the first evaluates; the others help to extract features and return ``None``.

    Raises:
        ValueError, OSError, ImportError: an input that cannot be used, in one line. No file is written in part.
    """
    began = time.perf_counter()
    _check_outputs(options)
    if options.base_queries is not None and options.protocol != "generalized":
        raise ValueError("--base-queries needs --protocol generalized")
    if options.validation is not None and options.protocol == "closed":
        raise ValueError("--validation chooses thresholds, and --protocol closed has none: leave one of them out")

    import dataclasses

    import torch

    from episodes.evaluation.evaluation import EvaluationSettings, as_device, evaluate, usable_heads

    if options.threads is not None:
        if not 1 <= options.threads <= 1024:
            raise ValueError(f"--threads must be from 1 to 1024, got {options.threads}")
        torch.set_num_threads(options.threads)
    fields = [field.name for field in dataclasses.fields(EvaluationSettings)]
    chosen = {name: getattr(options, name) for name in fields if hasattr(options, name)}
    settings = EvaluationSettings(**{**chosen, "device": as_device(options.device)})
    _check_used(options)
    sources = _sources(options)
    banks, known, notes = sources.banks, sources.base_statistics, list(sources.notes)
    unused = [] if sources.images else parser().marked("for images")
    for name in unused:
        if getattr(options, name) != parser().get_default(name):
            raise ValueError(f"--{name.replace('_', '-')}: the features are given, so nothing uses it; leave it out")
    if processes()[0] > 0:
        return None
    named = with_scores(options.heads or DEFAULT_HEADS, options.score or [])
    heads, without = usable_heads(named, has_base=known is not None or "base" in banks)
    if without and options.heads:
        raise ValueError(f"the head {without[0]!r} needs base classes: give them with --base or --split")
    notes += [f"{name} is left out: it needs base classes (--base or --split)" for name in without]
    if "nam" in heads and known is None and "base" not in banks:
        notes.append("nam has no base classes here: with some (--base or --split) it raises fewer false alarms")
    extracted = time.perf_counter()
    collected = None
    if options.report is not None:
        from episodes.reporting.collectors import ReportCollector

        collected = ReportCollector()
    report = evaluate(
        banks["novel"],
        heads,
        settings,
        base=banks.get("base"),
        base_queries=banks.get("base_queries"),
        validation=banks.get("validation"),
        base_statistics=known,
        episodes_file=options.episodes_file,
        progress=not options.quiet and sys.stderr.isatty(),
        callback=collected,
    )
    if report.config["seed"] is None:
        notes.append("the episodes are those that --episodes-file held: --episodes and --seed drew none")
    given = {name: getattr(options, name) for name in parser().marked("in the report") if name not in unused}
    report = dataclasses.replace(report, config={**report.config, "options": given}, notes=notes + report.notes)
    try:  # files first: who reads the table may keep it waiting, or interrupt it
        page = _write(report, options, sources, collected)
    finally:
        print(report.table(), end="")
        print(
            f"  time: {extracted - began:.1f} s to start and get the features, {report.seconds:.1f} s for "
            f"{report.config['episodes']:,} episodes and {len(report.results)} heads",
            flush=True,
        )
    if page is not None:
        print(f"  report: {one_line(str(page))}", flush=True)
    return report


def _write(
    report: Report, options: argparse.Namespace, sources: Sources, collected: ReportCollector | None
) -> Path | None:
    """Write the files that the options ask for, and return the path of the page, if there is one."""
    if options.save_features:
        sources.banks["novel"].save(options.save_features)
    if options.json:
        report.save_json(options.json)
    if options.markdown:
        report.save_markdown(options.markdown)
    if collected is None:
        return None
    from episodes.reporting.html_report import write_page

    return write_page(options.report, report, collected, sources.banks, sources.images, command_line(options))


def _check_outputs(options: argparse.Namespace) -> None:
    """Raise ``ValueError``, before the work starts, for an output that cannot be written or that is an input.

    Raises ``ImportError`` if ``--report`` is given and matplotlib, which it needs, is not installed.
    """
    files = {f"--{name.replace('_', '-')}": getattr(options, name) for name in parser().marked("file to write")}
    taken: dict[Path, str] = {}
    for flag, given in files.items():
        if given is None:
            continue
        path = Path(given).resolve()
        if not given or path.is_dir():
            raise ValueError(f"{flag}: {given!r} names no file")
        if not path.parent.is_dir():
            raise ValueError(f"{flag}: the directory of {given} does not exist")
        if not os.access(path.parent, os.W_OK):
            raise ValueError(f"{flag}: the directory of {given} cannot be written")
        if path in taken:
            raise ValueError(f"{flag} and {taken[path]} name the same file, {given}")
        taken[path] = flag
    if options.report is not None:
        page = _check_report(options.report)
        if page in taken:
            raise ValueError(f"{taken[page]}: {page} is where the page of --report goes")
    _check_inputs_are_kept(options, taken)
    if options.report is not None and not page.exists() and any(page.parent.glob("*.png")):
        raise ValueError(
            f"--report: {page.parent} holds PNG files and no report: name another directory, or remove them"
        )
    for path, flag in taken.items():
        try:
            check_output(path, "a safetensors file" if flag in ("--save-features", "--episodes-file") else None)
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None


def _check_report(given: str) -> Path:
    """Return the path of the page; raise ``ValueError`` or ``ImportError`` if it cannot be written."""
    path = Path(given)
    if not given:
        raise ValueError("--report: '' names no directory")
    if path.exists() and not path.is_dir():
        raise ValueError(f"--report: {given!r} is a file: name a directory")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--report: the directory above {given} does not exist")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ValueError(f"--report: {given} cannot be written")
    if (path / "index.html").is_dir():
        raise ValueError(f"--report: {path / 'index.html'} is a directory where the page should go")

    if (path / "index.html").exists() and not _is_report(path / "index.html"):
        raise ValueError(f"--report: {path / 'index.html'} is no report, and is not replaced: name another directory")

    from episodes.reporting.plots import require_matplotlib

    require_matplotlib()
    return (path / "index.html").resolve()


def _is_report(page: Path) -> bool:
    with open_regular(page) as file:
        return re.search(rb"fewshot-nam [0-9][\w.]*, PyTorch ", file.read()) is not None


def _check_inputs_are_kept(options: argparse.Namespace, outputs: Mapping[Path, str]) -> None:
    """Raise ``ValueError`` where an output would overwrite an input, or add a file to a directory of images.

    ``--episodes-file`` is both input and output: it is read if it exists.
    """
    for flag, given in _inputs(options):
        path = Path(given).expanduser().resolve()
        for output, its_flag in outputs.items():
            if output == path or (output.exists() and path.exists() and output.samefile(path)):
                raise ValueError(f"{its_flag}: {output} is the input of {flag}: name another file")
            if path.is_dir() and path in output.parents and output.suffix.lower() in EXTENSIONS:
                raise ValueError(f"{its_flag}: {output} would be an image of {flag}: name a file elsewhere")
        if options.report is not None and path.is_dir():
            page = Path(options.report).resolve()
            if page == path or path in page.parents:
                raise ValueError(f"--report: {page} lies in the images of {flag}: name a directory elsewhere")


def _inputs(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield the flags that name files or directories to read, with what they name."""
    made = parser()
    for name in made.marked("specification"):
        kind, colon, path = (getattr(options, name) or "").partition(":")
        if colon and path:
            yield f"--{name.replace('_', '-')} {kind}:", path
    for name in made.marked("file to read"):
        if getattr(options, name):
            yield f"--{name}", getattr(options, name)


def _check_used(options: argparse.Namespace) -> None:
    """Raise ``ValueError`` for an option that the protocol or the data set does not use."""
    from episodes.data import registry

    if options.protocol == "closed" and options.open_ways != parser().get_default("open_ways"):
        raise ValueError("--open-ways: the closed protocol has no unknown classes; leave it out")
    entry, _ = registry.find(options.dataset)
    for name in ("data_dir", "download"):
        if getattr(options, name) and name not in entry.options:
            raise ValueError(f"--{name.replace('_', '-')}: {options.dataset} needs none; leave it out")


def _sources(options: argparse.Namespace) -> Sources:
    """Return the feature banks that the options name."""
    from episodes.features.sources import ROLES, banks_by_role, sets_by_role
    from episodes.sampling.sampler import check_enough

    unused = {"closed": ("validation", "base_queries"), "open": ("base_queries",)}.get(options.protocol, ())
    sets = sets_by_role(
        options.dataset,
        data_dir=options.data_dir,
        download=options.download,
        split=options.split,
        seed=options.seed,
        base=options.base,
        base_queries=options.base_queries,
        validation=options.validation,
        roles=[role for role in ROLES if role not in unused],
    )
    if options.episodes_file is None or not Path(options.episodes_file).exists():
        # Before the extraction, which may take hours, and not after it.
        open_ways = 0 if options.protocol == "closed" else options.open_ways
        check_enough(sets["novel"], options.ways, options.shots, options.queries, open_ways)
    return banks_by_role(
        sets,
        options.backbone,
        weights=options.weights,
        model_options=key_values("--model-option", options.model_option),
        transform_options=key_values("--transform-option", options.transform_option),
        device=options.device,
        workers=options.workers,
        cache_dir=None if options.cache_dir == "none" else options.cache_dir,
        skip_unreadable=options.skip_unreadable,
        progress=not options.quiet,
        precision=options.precision,
        channels_last=options.channels_last,
    )


if __name__ == "__main__":
    raise SystemExit(main())

"""The HTML page of a report: one file with all figures in it, readable offline, in light and dark mode, on a phone.

What was found comes first, then the false alarms themselves, then figures, and last how the page was made. But for the date at its
end, which ``SOURCE_DATE_EPOCH`` sets, the same seed gives the same page.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

import fewshot_nam
from episodes.data.image_dataset import ImageSet
from episodes.features.bank import FeatureBank
from episodes.metrics.registry import MEASURES
from episodes.reporting.collectors import ReportCollector
from episodes.reporting.formatting import head_meanings, heading, in_unit
from episodes.reporting.html_alarms import add_alarms, add_confusions
from episodes.reporting.html_page import Page, escape
from episodes.reporting.html_style import STYLE
from episodes.reporting.html_tables import measures_table
from episodes.reporting.plots import save, sections
from episodes.reporting.report import Report
from fewshot_nam.io.atomic import replacing
from fewshot_nam.io.regular_files import file_version
from fewshot_nam.vision.memory_lock import exclusive

_KEY_FIGURES = 4
_VERSIONS = f"fewshot-nam {fewshot_nam.__version__}, PyTorch {torch.__version__}"
_HASHES = {
    "weights_hash": "weights of the backbone",
    "dataset_fingerprint": "data set",
    "fingerprint": "features",
}
"""What banks are known by in ``Report.config``, and what to call it."""


def write_page(
    directory: str | os.PathLike[str],
    report: Report,
    collected: ReportCollector,
    banks: Mapping[str, FeatureBank],
    images: Mapping[str, ImageSet],
    command: str,
) -> Path:
    """Write ``index.html`` and the PNG files that are in it, and return the page's path.

    The PNG files come first and the page last, each whole or not at all. Two that write one directory do so one after the other.

    Args:
        directory: for the page and its PNG files; it is made if it does not exist, but its parent must.
        report: the result of the evaluation.
        collected: the callback of the same evaluation.
        banks: ``"novel"``, which the episodes were drawn from, and where there are base classes ``"base"``.
        images: the images of these banks, by the same names; none for a bank that was given as features.
        command: the command that makes the report again, to be shown on the page.

    Raises:
        OSError: the directory cannot be made or written, another evaluation has been writing there for five minutes, or an image no
            longer exists.
        ModuleNotFoundError: matplotlib is not installed.
    """
    page = Page(Path(directory))
    page.directory.mkdir(exist_ok=True)
    path = page.directory / "index.html"
    # Another evaluation may write there, and the page takes its images from files of fixed names.
    with exclusive(path):
        if not path.exists():  # what an interrupt leaves is known as ours, and the command can be run again
            with replacing(path) as unfinished:
                unfinished.write_text(
                    f"<!DOCTYPE html>\n<p>Not finished: make it again. {_VERSIONS}</p>\n", encoding="utf-8"
                )
        # Of an earlier report, which may have had more of them.
        names = [
            old for old in page.directory.glob("false_alarm_*.png") if re.fullmatch(r"false_alarm_\d+\.png", old.name)
        ]
        before = {old: file_version(old) for old in names}
        _add_verdict(page, report)
        _add_tables(page, report)
        add_alarms(page, report, collected, banks, images)
        add_confusions(page, report, collected, banks)
        _add_figures(page, report, collected)
        _add_meanings(page, report)
        _add_making(page, report, command)
        page.add("</main></body></html>", "")
        with replacing(path) as unfinished:
            unfinished.write_text("\n".join(page.parts), encoding="utf-8")
        for old, version in before.items():
            if file_version(old) == version:
                old.unlink()
    return path


def _add_verdict(page: Page, report: Report) -> None:
    title = escape(report.title())
    page.add(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>",
        f"<h1>{title}</h1>",
    )
    first, *more = report.findings() or [""]
    if first:
        page.add(f'<p class="verdict">{escape(first)}</p>')
    if more:
        page.add(f"<p>{escape(' '.join(more))}</p>")
    found, cards = report.results[report.main_head], []
    for measure in report.columns[:_KEY_FIGURES]:
        other = "" if report.reference in (None, report.main_head) else _reference(report, measure)
        cards.append(
            f"<div><dt>{escape(heading(measure))}</dt><dd>{escape(in_unit(measure, found[measure]))}"
            f"{'%' if MEASURES[measure].unit == 'share' else ''}<small>{other}</small></dd></div>"
        )
    facts = [f"<dt>{word}</dt><dd>{escape(line)}</dd>" for word, line in report.facts()]
    page.add('<dl class="key">', *cards, "</dl>", '<dl class="facts">', *facts, "</dl>")
    page.add(*(f"<p>Note: {escape(note)}.</p>" for note in report.notes))


def _reference(report: Report, measure: str) -> str:
    assert report.reference is not None
    return f"{escape(report.reference)}: {escape(in_unit(measure, report.results[report.reference][measure]))}"


def _add_tables(page: Page, report: Report) -> None:
    page.add('<section id="results"><h2>Results</h2>')
    for columns, what in (
        (report.columns, ""),
        (report.frozen_columns, ", thresholds and bias frozen on validation classes"),
    ):
        if not columns:
            continue
        page.add(*measures_table(f"Percent, mean ± 95% interval over episodes{what}", report.results, columns))
        if report.reference:
            caption = f"Difference to {report.reference} on the same episodes, points{what}"
            page.add(*measures_table(caption, report.differences, columns, signed=True))
    if report.paired:
        page.add(
            '<p>A difference whose interval excludes 0 is marked: <span class="better">+* better</span>, '
            '<span class="worse">-* worse</span>.'
            f" {escape(report.stars(report.paired, report.measures))}.</p>"
        )
    page.add("<details><summary>Every measure, and every pair of heads</summary>")
    page.add(*measures_table("Percent, mean ± 95% interval over episodes", report.results, report.measures))
    if report.paired:
        caption = "Differences on the same episodes, points"
        page.add(*measures_table(caption, report.paired, report.measures, signed=True))
    if report.has_class_intervals:
        caption = "The same differences, 95% intervals over classes (jackknife)"
        page.add(*measures_table(caption, report.over_classes, report.measures, signed=True))
    page.add("</details></section>")


def _add_figures(page: Page, report: Report, collected: ReportCollector) -> None:
    for section in sections(report, collected):
        if not section.panels:
            page.leave_out(section.title, section.caption)
            continue
        page.add(f'<section id="{section.name}"><h2>{escape(section.title)}</h2><figure><div class="panels">')
        for panel in section.panels:
            save(panel.draw, page.directory / f"{panel.name}.png")
            save(panel.draw, page.directory / f"{panel.name}_dark.png", dark=True)
            page.add(page.picture(panel.name, panel.alt))
        page.add(f"</div><figcaption>{escape(section.caption)}</figcaption></figure></section>")


def _add_meanings(page: Page, report: Report) -> None:
    heads = head_meanings(report.results)
    page.add('<section id="meanings"><h2>What the names mean</h2><dl class="facts">')
    page.add(*(f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in heads.items()))
    page.add(
        *(
            f"<dt>{escape(name)}</dt><dd>{MEASURES[name].better} is better: {escape(MEASURES[name].meaning)}</dd>"
            for name in report.measures
        )
    )
    page.add("</dl></section>")


def _add_making(page: Page, report: Report, command: str) -> None:
    """Add how the page was made: command, versions, hashes, settings, date, and what it does not have."""
    config = report.to_dict()["config"]
    facts = [("command", f"<code>{escape(command)}</code>")]
    facts.append(("versions", escape(_VERSIONS)))
    for role in ("bank", "base", "validation"):
        bank = config.get(role) or {}
        known = [
            f"{meaning} <code>{escape(str(bank[key]))}</code>" for key, meaning in _HASHES.items() if bank.get(key)
        ]
        if known:
            facts.append((f"hashes, {'data' if role == 'bank' else role}", "<br>".join(known)))
    date = _date()
    facts.append(("written", f'<time datetime="{date}">{date}</time>'))
    page.add('<section id="making"><h2>How this was made</h2><dl class="facts">')
    page.add(*(f"<dt>{word}</dt><dd>{line}</dd>" for word, line in facts), "</dl>")
    if page.left_out:
        page.add('<p class="small">Not on this page:</p><ul class="small">')
        page.add(*(f"<li>{escape(what)}: {escape(reason)}.</li>" for what, reason in page.left_out), "</ul>")
    settings = "\n".join(map(escape, json.dumps(config, indent=2, ensure_ascii=False).split("\n")))
    page.add(f"<details><summary>All settings</summary><pre>{settings}</pre></details></section>")


def _date() -> str:
    """Return the date in UTC; that of ``SOURCE_DATE_EPOCH`` where it is set, as reproducible builds do."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    if fixed.isdecimal():
        return datetime.datetime.fromtimestamp(int(fixed), datetime.timezone.utc).date().isoformat()
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()

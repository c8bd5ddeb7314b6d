"""The HTML page of a report: one file with all figures in it, readable offline, in light and dark mode, on a phone.

The same seed gives the same page: it holds no dates, no times and no names of output files.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from episodes.data.image_dataset import ImageSet
from episodes.features.bank import FeatureBank
from episodes.metrics.registry import MEASURES
from episodes.reporting.collectors import FalseAlarm, ReportCollector
from episodes.reporting.formatting import Table, cell, head_meanings, heading, row_name, verdict
from episodes.reporting.plots import save, sections, shown_heads
from episodes.reporting.report import Report
from fewshot_nam.io.atomic import replacing
from fewshot_nam.vision.image_transform import opaque

_SIDE = 112  # of an image on the page, in pixels

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1b1b; --paper: #fff; --soft: #f3f3f0; --line: #c9c9c4; --good: #00664a; --bad: #a33f00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e4; --paper: #161718; --soft: #232526; --line: #4a4d4f; --good: #55d6ab; --bad: #ff9c66; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; min-width: 0; }
pre, .scroll { overflow-x: auto; } pre, code { font: .875em/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .75rem; border-radius: .4rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
caption { text-align: left; padding: .3rem 0; }
.better { color: var(--good); font-weight: 600; } .worse { color: var(--bad); font-weight: 600; }
figure { margin: 1rem 0; } figure > img { display: block; width: 100%; height: auto; background: #fff; border-radius: .4rem; }
figcaption, .absent { font-size: .9rem; } .absent { background: var(--soft); padding: .75rem; border-radius: .4rem; }
.alarms { display: grid; grid-template-columns: repeat(auto-fill, minmax(15.5rem, 1fr)); gap: 1rem; padding: 0; list-style: none; }
.alarms li { background: var(--soft); padding: .75rem; border-radius: .4rem; font-size: .875rem; }
.alarms img { display: block; max-width: 100%; margin-bottom: .5rem; image-rendering: pixelated; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
"""


class _Page:
    """The HTML of the page as it grows, and the directory that it goes to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.parts: list[str] = []

    def add(self, *lines: str) -> None:
        self.parts.extend(lines)

    def image(self, name: str, alt: str) -> str:
        """Return the tag of an image in the directory, its bytes in the tag."""
        data = base64.b64encode((self.directory / f"{name}.png").read_bytes()).decode("ascii")
        return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def write_page(
    directory: str | os.PathLike[str],
    report: Report,
    collected: ReportCollector,
    banks: Mapping[str, FeatureBank],
    images: Mapping[str, ImageSet],
    command: str,
) -> Path:
    """Write ``index.html`` and the PNG files that are in it, and return the page's path.

    The PNG files come first and the page last, each whole or not at all.

    Args:
        directory: for the page and its PNG files; it is made if it does not exist, but its parent must.
        report: the result of the evaluation.
        collected: the callback of the same evaluation.
        banks: ``"novel"``, which the episodes were drawn from, and where there are base classes ``"base"``.
        images: the images of these banks, by the same names; none for a bank that was given as features.
        command: the command that makes the report again, to be shown on the page.

    Raises:
        OSError: the directory cannot be made or written, or an image no longer exists.
        ModuleNotFoundError: matplotlib is not installed.
    """
    page = _Page(Path(directory))
    page.directory.mkdir(exist_ok=True)
    for old in page.directory.glob("false_alarm_*.png"):  # of an earlier report, which may have had more of them
        old.unlink()
    _add_head(page, report, command)
    _add_tables(page, report)
    for section in sections(report, collected):
        page.add(f'<section id="{section.name}"><h2>{escape(section.title)}</h2>')
        if section.draw is None:
            page.add(f'<p class="absent">Not here: {escape(section.caption)}.</p></section>')
            continue
        save(section.draw, page.directory / f"{section.name}.png")
        page.add(
            f"<figure>{page.image(section.name, section.title)}",
            f"<figcaption>{escape(section.caption)}</figcaption></figure></section>",
        )
    _add_alarms(page, report, collected, banks, images)
    _add_meanings(page, report)
    page.add("</main></body></html>", "")
    path = page.directory / "index.html"
    with replacing(path) as unfinished:
        unfinished.write_text("\n".join(page.parts), encoding="utf-8")
    return path


def _add_head(page: _Page, report: Report, command: str) -> None:
    title = escape(report.title())
    facts = [("command", f"<code>{escape(command)}</code>")]
    facts += [(word, escape(line)) for word, line in report.facts()]
    page.add(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{title}</h1><dl>",
        *(f"<dt>{word}</dt><dd>{line}</dd>" for word, line in facts),
        "</dl>",
    )
    conclusion = report.conclusion()
    if conclusion is not None:
        page.add(f"<p><strong>{escape(conclusion)}.</strong></p>")
    page.add(*(f"<p>Note: {escape(note)}.</p>" for note in report.notes))


def _add_tables(page: _Page, report: Report) -> None:
    page.add('<section id="results"><h2>Results</h2>')
    for columns, what in (
        (report.columns, ""),
        (report.frozen_columns, ", thresholds and bias frozen on validation classes"),
    ):
        if not columns:
            continue
        page.add(*_table(f"Percent, mean ± 95% interval over episodes{what}", report.results, columns))
        if report.reference:
            page.add(
                *_table(
                    f"Difference to {report.reference} on the same episodes, points{what}",
                    report.differences,
                    columns,
                    signed=True,
                )
            )
    if report.paired:
        page.add(
            '<p>A difference whose interval excludes 0 is marked: <span class="better">+* better</span>, '
            '<span class="worse">-* worse</span>.'
            f" {escape(report.stars(report.paired, report.measures))}.</p>"
        )
    page.add("<details><summary>Every measure, and every pair of heads</summary>")
    page.add(*_table("Percent, mean ± 95% interval over episodes", report.results, report.measures))
    if report.paired:
        page.add(*_table("Differences on the same episodes, points", report.paired, report.measures, signed=True))
    if report.has_class_intervals:
        caption = "The same differences, 95% intervals over classes (jackknife)"
        page.add(*_table(caption, report.over_classes, report.measures, signed=True))
    page.add("</details></section>")


def _table(caption: str, rows: Table, columns: Sequence[str], signed: bool = False) -> list[str]:
    """Return a table of heads, or pairs of heads, by measures; differences are coloured as they are marked."""
    headings = "".join(
        f'<th scope="col" title="{escape(MEASURES[c].meaning)}">{escape(heading(c)).replace("@", "<br>@", 1)}</th>'
        for c in columns
    )
    lines = [f'<div class="scroll"><table><caption>{escape(caption)}</caption>', f"<tr><th></th>{headings}</tr>"]
    for name, found in rows.items():
        values = ""
        for column in columns:
            kind = verdict(column, found[column]) if signed else "even"
            marked = "" if kind == "even" else f" class={kind}"
            values += f"<td{marked}>{escape(cell(column, found[column], signed))}</td>"
        lines.append(f'<tr><th scope="row">{escape(row_name(name))}</th>{values}</tr>')
    return [*lines, "</table></div>"]


def _add_alarms(
    page: _Page,
    report: Report,
    collected: ReportCollector,
    banks: Mapping[str, FeatureBank],
    images: Mapping[str, ImageSet],
) -> None:
    head = shown_heads(report)[0]
    found = collected.heads[head]
    alarms = found.false_alarms()
    page.add(f'<section id="alarms"><h2>Most confident false alarms of {escape(head)}</h2>')
    reason = None
    if not found.queries.episodes:
        reason = "the episodes have no unknown queries"
    elif "novel" not in images:
        reason = "the episodes come from a file of features, which holds no images"
    elif not alarms:
        reason = "no unknown query was accepted in any episode"
    if reason is not None:
        page.add(f'<p class="absent">Not here: {reason}.</p></section>')
        return
    page.add(
        f"<p>Unknown queries that {escape(head)} accepted with the largest margin over their episode's threshold "
        "(open_fpr@95tpr), every image once, all episodes. Left: the query. Right: an image of the class it was accepted as, "
        'the support image or one of a base class.</p><ol class="alarms">'
    )
    opened = {role: _Opened(banks[role], images.get(role)) for role in ("novel", "base") if role in banks}
    for number, alarm in enumerate(alarms, start=1):
        name = f"false_alarm_{number:02}"
        page.add(f"<li>{_alarm(page, name, alarm, opened)}</li>")
    page.add("</ol></section>")


def _alarm(page: _Page, name: str, alarm: FalseAlarm, opened: Mapping[str, _Opened]) -> str:
    """Write the image of a false alarm and return its HTML."""
    novel, answered = opened["novel"], opened["base" if alarm.support is None else "novel"]
    bank = answered.bank
    example = int(bank.order[bank.starts[alarm.answer]]) if alarm.support is None else alarm.support
    true, answer = (str(each) for each in (novel.bank.classes[alarm.true_class], bank.classes[alarm.answer]))
    shown, name_of_image = [novel.image(alarm.image), answered.image(example)], novel.describe(alarm.image)
    with replacing(page.directory / f"{name}.png") as unfinished:
        _side_by_side(image for image in shown if image is not None).save(unfinished, format="PNG")
    return (
        page.image(name, f"an unknown image of {true}, accepted as {answer}")
        + f"<b>{escape(true)}</b> accepted as <b>{escape(answer)}</b>"
        + (" (base class)" if alarm.support is None else "")
        + f"<br>score {alarm.score:.3f}, threshold {alarm.threshold:.3f}<br>{alarm.margin:.3f} above it, "
        f"episode {alarm.episode}" + (f"<br>{escape(name_of_image)}" if name_of_image is not None else "")
    )


class _Opened:
    """A bank and the images that its features were extracted from, if they are known."""

    def __init__(self, bank: FeatureBank, images: ImageSet | None) -> None:
        self.bank, self._images = bank, images
        skipped = set(bank.skipped)
        # A row of the bank is the number of its image, except where unreadable images were left out.
        self._left = (
            [i for i in range(len(images)) if images.describe(i) not in skipped] if images and skipped else None
        )

    def image(self, row: int) -> Image.Image | None:
        """Return the image of a row of the bank; ``None`` where the bank was given as features."""
        return None if self._images is None else self._images.image(self._number(row))

    def describe(self, row: int) -> str | None:
        """Return where the image of a row of the bank is from: its class directory and file; ``None`` as ``image``."""
        return None if self._images is None else "/".join(Path(self._images.describe(self._number(row))).parts[-2:])

    def _number(self, row: int) -> int:
        return row if self._left is None else self._left[row]


def _side_by_side(images: Iterable[Image.Image]) -> Image.Image:
    """Return images in a row, each fitted into a square; small ones grow by a whole factor, so that pixels stay square."""
    fitted = [_fitted(image) for image in images]
    row = Image.new("RGB", (_SIDE * len(fitted) + 8 * (len(fitted) - 1), _SIDE), "white")
    for i, image in enumerate(fitted):
        row.paste(image, (i * (_SIDE + 8) + (_SIDE - image.width) // 2, (_SIDE - image.height) // 2))
    return row


def _fitted(image: Image.Image) -> Image.Image:
    # A mode without a known white (32 bits, floats) is one that the user's own transform takes: Pillow clips it.
    plain = (image if image.mode in ("I", "F") else opaque(image)).convert("RGB")
    factor = _SIDE / max(plain.size)
    if factor >= 1:
        return plain.resize((plain.width * int(factor), plain.height * int(factor)), Image.Resampling.NEAREST)
    return plain.resize(
        (max(round(plain.width * factor), 1), max(round(plain.height * factor), 1)), Image.Resampling.LANCZOS
    )


def _add_meanings(page: _Page, report: Report) -> None:
    heads = head_meanings(report.results)
    config = json.dumps(report.to_dict()["config"], indent=2, ensure_ascii=False)
    page.add('<section id="meanings"><h2>What the names mean</h2><dl>')
    page.add(*(f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in heads.items()))
    page.add(
        *(
            f"<dt>{escape(name)}</dt><dd>{MEASURES[name].better} is better: {escape(MEASURES[name].meaning)}</dd>"
            for name in report.measures
        )
    )
    page.add("</dl></section><details><summary>All settings</summary>", f"<pre>{escape(config)}</pre>", "</details>")

"""Tables of the page: every cell knows its heading, since on a phone each row is a card and the headings are gone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from episodes.metrics.registry import MEASURES
from episodes.reporting.formatting import Table, cell, heading, row_name, verdict
from episodes.reporting.html_page import escape


def measures_table(caption: str, rows: Table, columns: Sequence[str], signed: bool = False) -> list[str]:
    """Return a table of heads, or pairs of heads, by measures; differences are coloured as they are marked."""
    headings = [
        f'<th scope="col" title="{escape(MEASURES[c].meaning)}">{escape(heading(c)).replace("@", "<br>@", 1)}</th>'
        for c in columns
    ]
    lines = []
    for name, found in rows.items():
        values = ""
        for column in columns:
            kind = verdict(column, found[column]) if signed else "even"
            marked = "" if kind == "even" else f" class={kind}"
            values += (
                f'<td{marked} data-label="{escape(heading(column))}">{escape(cell(column, found[column], signed))}</td>'
            )
        lines.append(f'<tr><th scope="row">{escape(row_name(name))}</th>{values}</tr>')
    return _table(caption, ["<th></th>", *headings], lines)


def words_table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table of words: the first column names the row."""
    lines = []
    for first, *rest in rows:
        cells = "".join(
            f'<td class=name data-label="{escape(name)}">{escape(value)}</td>'
            for name, value in zip(headings[1:], rest, strict=True)
        )
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return _table(caption, [f'<th scope="col">{escape(name)}</th>' for name in headings], lines)


def _table(caption: str, headings: Sequence[str], rows: Sequence[str]) -> list[str]:
    return [
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>',
        f"<thead><tr>{''.join(headings)}</tr></thead><tbody>",
        *rows,
        "</tbody></table></div>",
    ]

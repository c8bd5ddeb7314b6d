"""What the teaching page shows, as HTML: answers, classes, promises, histograms and confusions. Every name is escaped."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape as escape_html

from fewshot_nam.heads import Label
from fewshot_nam.heads.validation import as_unicode
from fewshot_nam.service.class_names import LONGEST_NAME, alike
from fewshot_nam.service.findings import Answer, Check, ClassView, Learned, Promise

MOST_CLASSES = 50  # shown at a time
_SHOWN_IMAGES = 6
_BINS = 24
_SHOWN_SKIPPED = 5
_MOST_CONFUSED = 20
_STATE = re.compile("[0-9a-f]{1,32} [0-9]{1,20}")  # of ``of_state``
_LEFT, _RIGHT, _ROW = 90, 710, 90  # of the plot: ends of the axis, and the height of one row

CSS = """
:root, .dark { --nam-known: #2a78d6; --nam-unknown: #e07b00; --nam-base: #8a6fd1; --nam-good: #1a8a4a; --nam-bad: #c2372e; }
.dark { --nam-known: #6ca8f0; --nam-unknown: #f0a24a; --nam-base: #b6a0f0; --nam-good: #4fc481; --nam-bad: #ff8278; }
.gradio-container { width: 100%; max-width: 1200px !important; margin: auto; }
.gradio-container main { width: 100%; }
#status { position: sticky; top: 0; z-index: 20; background: var(--body-background-fill); }
.nam-note { padding: 8px 12px; border-radius: 8px; border: 1px solid var(--border-color-primary); min-height: 1.2em; }
.nam-note.good { border-color: var(--nam-good); } .nam-note.bad { border-color: var(--nam-bad); color: var(--nam-bad); }
.nam-answer { padding: 12px; border-radius: 8px; border: 1px solid var(--border-color-primary); }
.nam-answer .label { font-size: 1.7em; font-weight: 600; line-height: 1.2; }
.nam-answer .label.known { color: var(--nam-good); } .nam-answer .label.unknown { color: var(--nam-unknown); }
.nam-answer .small, .nam-small { opacity: .8; font-size: .9em; }
.nam-bars { display: grid; grid-template-columns: minmax(4em, 30%) 1fr 4.2em;
  gap: 4px 8px; align-items: center; margin-top: 8px; }
.nam-bars .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.nam-bars .number { text-align: right; font-variant-numeric: tabular-nums; }
.nam-track { position: relative; height: 14px; background: var(--border-color-primary); border-radius: 7px; }
.nam-track .fill { position: absolute; inset: 0 auto 0 0; border-radius: 7px; background: var(--nam-known); opacity: .55; }
.nam-track.first .fill { opacity: 1; } .nam-track.refused .fill { background: var(--nam-unknown); }
.nam-track .mark { position: absolute; top: -3px; bottom: -3px; width: 3px; background: var(--body-text-color); }
#undo, [class^="nam-"] { overflow-wrap: anywhere; } .nam-scroll { overflow-wrap: normal; }
.nam-classes { display: grid; grid-template-columns: minmax(0, 1fr); gap: 8px; }
.nam-class { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 4px 12px; padding: 8px 12px; border-radius: 8px;
  border: 1px solid var(--border-color-primary); align-items: center; }
.nam-class .title { font-weight: 600; }
.nam-class .images { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: 4px; }
.nam-class img { height: 56px; width: auto; max-width: 112px; border-radius: 4px; margin: 0; }
.nam-class button { padding: 6px 14px; min-height: 40px; border-radius: 8px; cursor: pointer;
  border: 1px solid var(--border-color-primary);
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color); }
.nam-class button:hover { border-color: var(--nam-bad); color: var(--nam-bad); }
.nam-before { display: none; margin-top: 8px; } #before, #seen, #learned { display: none; }
.nam-warn { color: var(--nam-unknown); }
.nam-scroll { overflow-x: auto; }
.nam-scroll table { border-collapse: collapse; } .nam-scroll td, .nam-scroll th { padding: 4px 10px; text-align: right;
  border: 1px solid var(--border-color-primary); }
.nam-scroll th:first-child { text-align: left; } .nam-scroll td.right { color: var(--nam-good); font-weight: 600; }
.nam-scroll td.wrong { color: var(--nam-bad); font-weight: 600; }
.nam-plot { width: 100%; min-width: 560px; max-width: 720px; height: auto; color: var(--body-text-color); }
"""


def escape(text: str) -> str:
    r"""Return HTML that shows a text as it is; names of files that are not UTF-8, which no answer can hold, are escaped.

    Example:
        >>> print(escape("<caf\udce9>"))
        &lt;caf\udce9&gt;
    """
    return escape_html(as_unicode(text))


def note(text: str, kind: str = "") -> str:
    """Return a line that says what happened; ``kind`` is "good", "bad" or nothing."""
    return f'<div class="nam-note {kind}" role="status">{escape(text)}</div>'


def learned_note(learned: Learned) -> str:
    """Return the line after learning."""
    names = list(learned.counts.items())
    listed = ", ".join(f"{name} ({_images(count)})" for name, count in names[:8])
    listed += f" and {len(names) - 8} more classes" if len(names) > 8 else ""
    text = f"Learned {listed}."
    if learned.repeated:
        text += f" Left out, learned before: {_images(learned.repeated)}."
    text += skipped_text(learned.skipped)
    return note(" ".join([text, *(f"Note: {one}." for one in learned.warnings)]), "good")


def skipped_text(skipped: Sequence[str]) -> str:
    """Return a sentence on the images that could not be read; empty for none."""
    if not skipped:
        return ""
    more = f"; and {len(skipped) - _SHOWN_SKIPPED} more" if len(skipped) > _SHOWN_SKIPPED else ""
    return f" Left out, {_images(len(skipped))}: {'; '.join(skipped[:_SHOWN_SKIPPED])}{more}."


def answer_html(answer: Answer, ends: tuple[float, float]) -> str:
    """Return the answer to an image: its class or "unknown", and a bar with the score of each class.

    Args:
        answer: of ``TeachingSession.answer``.
        ends: the scores at the two ends of the bars, as ``TeachingSession.score_range`` gives them.
    """
    low = min(ends[0], answer.score, *([] if answer.threshold is None else [answer.threshold]))
    high = max(ends[1], answer.score, *([] if answer.threshold is None else [answer.threshold]))

    def place(score: float) -> float:
        return 100 * min(1.0, max(0.0, (score - low) / (high - low))) if high > low else 100.0

    if answer.label is None:
        head = '<div class="label unknown">unknown</div>'
        best = escape(str(answer.best))
        text = f"most like {best}, but its score {answer.score:.3f} is below the threshold {answer.threshold or 0:.3f}"
    elif answer.threshold is None:
        head = f'<div class="label">{_named(answer.label)}</div>'
        text = "nothing is refused yet: set a false-alarm rate under Refuse"
    else:
        head = f'<div class="label known">{_named(answer.label)}</div>'
        text = f"score {answer.score:.3f}, accepted from {answer.threshold:.3f}"
    mark = ""
    if answer.threshold is not None:
        mark = f'<span class="mark" title="threshold" style="left:calc({place(answer.threshold):.1f}% - 1px)"></span>'
    bars = []
    for i, (label, score) in enumerate(answer.ranking):
        refused = answer.threshold is not None and score < answer.threshold
        kind = "nam-track" + (" first" if i == 0 else "") + (" refused" if refused else "")
        bars.append(
            f'<span class="name" title="{escape(str(label))}">{escape(str(label))}</span><span class="{kind}">'
            f'<span class="fill" style="width:{place(score):.1f}%"></span>{mark}</span><span class="number">{score:.3f}</span>'
        )
    return (
        f'<div class="nam-answer" role="status">{head}<div class="small">{text} · {1000 * answer.seconds:.0f} ms</div>'
        f'<div class="nam-bars">{"".join(bars)}</div></div>'
    )


def waiting_html(text: str) -> str:
    """Return the place of an answer before there is one."""
    return f'<div class="nam-answer"><div class="small">{escape(text)}</div></div>'


def of_state(shown: str, state: str, now: bool) -> str:
    """Return an answer or figures with the state of the memory that they are of, and a note that is shown once it is of before.

    Args:
        shown: HTML.
        state: letters, digits and spaces.
        now: whether the memory is as it was; otherwise the note is shown from the beginning.
    """
    text = note("The memory has changed since: what is shown here is of before. Give the images again.", "bad")
    return f'<div data-of="{state}">{shown}<div class="nam-before"{"" if now else " style=display:block"}>{text}</div></div>'


def shown_html(state: str) -> str:
    """Return what a page's script reads to tell what it shows: letters, digits, spaces and "="."""
    return f'<i data-shown="{escape(state)}"></i>'


def learned_html(click: str) -> str:
    """Return the number of a click whose files were learned, for the page's script; nothing where that sent something else."""
    return f'<i data-learned="{click}"></i>' if re.fullmatch("[0-9]{1,9}", click) else ""


def style_of_before(states: Iterable[str]) -> str:
    """Return what shows the notes of ``of_state`` that are of these states; what a page's script cannot have sent is left out."""
    rules = (
        f'[data-of="{state}"] > .nam-before {{ display: block !important; }}'
        for state in states
        if _STATE.fullmatch(state)
    )
    return f"<style>{' '.join(sorted(rules))}</style>"


def classes_html(views: Sequence[ClassView], threshold: float | None, find: str = "") -> str:
    """Return the list of classes, each with its images, its rival and a button to forget it.

    Args:
        views: of ``TeachingSession.classes``.
        threshold: an image is accepted from this score on; ``None`` where nothing is refused.
        find: show the classes whose names hold this text, of which 100 characters count; at most ``MOST_CLASSES``.
    """
    if not views:
        text = "No class is known yet. Hold something to the camera or choose images, name it, and learn it."
        return f'<div class="nam-small">{text}</div>'
    text = alike(find[:LONGEST_NAME]).casefold()
    wanted = [view for view in views if text in alike(str(view.label)).casefold()]
    shown = [_class_html(view, threshold) for view in wanted[:MOST_CLASSES]]
    total = sum(view.images for view in views)
    line = f"{count_of_classes(len(views))}, {_images(total)}" + (
        f"; {len(shown)} shown" if len(shown) < len(views) else ""
    )
    return f'<div class="nam-classes"><div class="nam-small">{line}</div>{"".join(shown)}</div>'


def _class_html(view: ClassView, threshold: float | None) -> str:
    name = escape(str(view.label))
    images = "".join(
        f'<img alt="{name}" src="data:image/jpeg;base64,{base64.b64encode(one).decode()}">'
        for one in view.thumbnails[:_SHOWN_IMAGES]
    )
    if not images:
        images = '<span class="nam-small">learned earlier: a memory keeps features, no images</span>'
    count = _images(view.images) if view.images else "known beforehand"
    about = ""
    if view.rival is not None:
        about = f" · nearest rival: <bdi>{escape(str(view.rival))}</bdi>, score {view.rival_score:.3f}"
        if view.accepted_as_rival:
            about += ' <span class="nam-warn">above the threshold: easily confused, give both more images</span>'
    button = f'<button type="button" data-forget="{name}" aria-label="forget {name}">Forget</button>'
    return (
        f'<div class="nam-class"><div><bdi class="title">{name}</bdi> <span class="nam-small">{count}{about}</span></div>'
        f'{button}<div class="images">{images}</div></div>'
    )


def refusal_html(threshold: float | None, promise: Promise | None, wrong: str | None = None) -> str:
    """Return from which score on an image is accepted, and what the calibration promised, if nothing has changed since.

    Args:
        threshold: from which on an image is accepted.
        promise: of the last calibration.
        wrong: why there is no threshold, where there is to be one.
    """
    if wrong is not None:
        return note(wrong, "bad")
    if threshold is None:
        return waiting_html("Nothing is refused yet.")
    if promise is not None:
        return promise_html(promise)
    return note(
        f"An image is accepted from the score {threshold:.3f} on. Set the rate again to see what it promises and costs now."
    )


def promise_html(promise: Promise) -> str:
    """Return what a calibration promises, and what it costs."""
    lines = [
        f"<b>Promise.</b> At most {promise.bound:.2%} of unknown images are accepted, on average over calibrations, if they are "
        f"like the {promise.unknowns:,} given."
    ]
    if promise.bound_95 is not None:
        lines.append(f"In 95% of calibrations at most {promise.bound_95:.2%}.")
    lines.append(
        f"Of these images themselves {promise.unknowns_accepted:.2%} are accepted. For others nothing is promised."
    )
    if promise.known_accepted is None:
        lines.append(
            "<b>Cost.</b> Not known: it takes classes with two images or more to tell how many known images are refused."
        )
    else:
        lines.append(
            f"<b>Cost.</b> About {1 - promise.known_accepted:.1%} of images of known classes are called unknown: measured on "
            f"{_images(promise.known_images)}, each scored by a memory that learned the others."
        )
    lines.append(f"An image is accepted from the score {promise.threshold:.3f} on.")
    lines += [f'<span class="nam-warn">{escape(one)}</span>' for one in promise.warnings]
    return f'<div class="nam-answer" role="status">{"<br>".join(lines)}</div>'


def check_html(check: Check) -> str:
    """Return histograms of the scores of known, unknown and base images, and the table of confusions."""
    parts = [_verdict(check), f'<div class="nam-scroll">{histogram_svg(check)}</div>', confusion_table(check)]
    parts += [f'<div class="nam-small">{escape(one)}</div>' for one in check.doubts]
    if check.skipped:
        parts.append(f'<div class="nam-small">{escape(skipped_text(check.skipped))}</div>')
    return "".join(parts)


def _verdict(check: Check) -> str:
    known = sum(count for (truth, _), count in check.confusions.items() if truth is not None)
    right = sum(count for (truth, answer), count in check.confusions.items() if truth is not None and truth == answer)
    refused = sum(count for (truth, answer), count in check.confusions.items() if truth is not None and answer is None)
    others = sum(check.confusions.values()) - known
    alarms = others - check.confusions.get((None, None), 0)
    lines = []
    if known:
        wrong = known - right - refused
        lines.append(f"Of {_images(known)} of known classes {right} right, {refused} called unknown, {wrong} wrong.")
    if others:
        share = f"{alarms / others:.1%}"
        lines.append(
            f"Of {_images(others)} of other classes {others - alarms} refused, {alarms} false alarms ({share})."
        )
    if check.threshold is None:
        lines.append("Nothing is refused yet: calibrate first.")
    return f'<div class="nam-answer" role="status">{" ".join(lines)}</div>'


def histogram_svg(check: Check) -> str:
    """Return the shares of scores in bins, one row a kind, above one axis, with the threshold."""
    rows = [("known", check.known), ("unknown", check.unknown), ("base", check.base)]
    rows = [(kind, scores) for kind, scores in rows if scores]
    every = [score for _, scores in rows for score in scores]
    ends = [*every, *([] if check.threshold is None else [check.threshold])]
    low, high = min(ends), max(ends)
    margin = 0.02 * (high - low) or 0.5
    low, high = low - margin, high + margin
    height, step = _ROW * len(rows) + 30, (_RIGHT - _LEFT) / _BINS

    def x(score: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (score - low) / (high - low)

    parts = []
    for row, (kind, scores) in enumerate(rows):
        counts = [0] * _BINS
        for score in scores:
            counts[min(_BINS - 1, int((score - low) / (high - low) * _BINS))] += 1
        bottom = _ROW * row + 80
        parts.append(_text(0, bottom - 30, kind, size=15) + _text(0, bottom - 12, _images(len(scores))))
        parts.append(
            f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{bottom}" y2="{bottom}" stroke="currentColor" opacity=".4"/>'
        )
        for place, count in enumerate(counts):
            tall = 70 * count / max(counts)
            box = (
                f'x="{_LEFT + place * step + 1:.1f}" y="{bottom - tall:.1f}" width="{step - 2:.1f}" height="{tall:.1f}"'
            )
            title = f"<title>{count} of {len(scores)}</title>"
            parts.append(f'<rect {box} rx="2" style="fill:var(--nam-{kind})">{title}</rect>' if count else "")
    parts.append(_text(x(low + margin), height - 10, f"{low + margin:.2f}"))
    parts.append(_text(x(high - margin), height - 10, f"{high - margin:.2f}", anchor="end"))
    if check.threshold is not None:
        at = x(check.threshold)
        ends_at = f'x1="{at:.1f}" x2="{at:.1f}" y1="5" y2="{height - 25}"'
        parts.append(f'<line {ends_at} stroke="currentColor" stroke-width="2" stroke-dasharray="5 3"/>')
        parts.append(_text(at, height - 10, f"threshold {check.threshold:.2f}", anchor="middle"))
    about = "Histograms of the largest score of each image"
    return f'<svg class="nam-plot" viewBox="0 0 {_RIGHT + 10} {height}" role="img" aria-label="{about}">{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="currentColor" font-size="{size}" text-anchor="{anchor}">{text}</text>'


def _named(label: Label) -> str:
    """Return the name of a class where "unknown" may stand too: a class that is called so is in quotes."""
    return "&#x27;unknown&#x27;" if str(label) == "unknown" else escape(str(label))


def confusion_table(check: Check) -> str:
    """Return how often images of each class got each answer; classes with the most images first, and what is beyond 20 together."""
    counts = Counter(check.confusions)
    truths, answers = _most(truth for truth, _ in counts.elements()), _most(answer for _, answer in counts.elements())
    rows = truths[:_MOST_CONFUSED]
    answered = set(answers)  # a row has the column of its right answers
    columns = [*(name for name in rows if name in answered), *(name for name in answers if name not in rows)]
    columns = columns[:_MOST_CONFUSED]
    cells: Counter[tuple[str | None, str | None]] = Counter()
    for (truth, answer), count in counts.items():
        cells[_place(truth, rows), _place(answer, columns)] += count
    further_rows, further_columns = (len(names) - len(shown) for names, shown in ((truths, rows), (answers, columns)))
    shown_rows: list[_Titled] = [*((name, escape(name)) for name in rows), *_together(further_rows)]
    shown_columns: list[_Titled] = [*((name, _named(name)) for name in columns), *_together(further_columns)]
    if any(truth is None for truth, _ in counts):
        shown_rows.append((None, "<em>other classes</em>"))
    if any(answer is None for _, answer in counts):
        shown_columns.append((None, "unknown"))
    head = "".join(f'<th scope="col">{title}</th>' for _, title in shown_columns)
    body = []
    for truth, title in shown_rows:
        found = []
        for answer, _ in shown_columns:
            count = cells[truth, answer]
            mixed = truth == _FURTHER or (answer is None and truth is not None)  # of right and wrong ones, or neither
            kind = "" if mixed else "right" if truth == answer else "wrong"
            found.append(f'<td class="{kind if count else ""}">{count or ""}</td>')
        body.append(f'<tr><th scope="row">{title}</th>{"".join(found)}</tr>')
    return (
        f'<div class="nam-scroll"><table><caption class="nam-small">rows: what the images are; columns: the answers</caption>'
        f"<tr><th></th>{head}</tr>{''.join(body)}</table></div>"
    )


_FURTHER = ""  # no name of a class
_Titled = tuple[str | None, str]


def _most(names: Iterable[str | None]) -> list[str]:
    """Return the classes among names, the most frequent first."""
    counts = Counter(name for name in names if name is not None)
    return sorted(counts, key=lambda name: (-counts[name], name))


def _place(name: str | None, shown: Sequence[str]) -> str | None:
    return name if name is None or name in shown else _FURTHER


def _together(further: int) -> list[_Titled]:
    return [(_FURTHER, f"<em>{count_of_classes(further)} more</em>")] if further else []


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def count_of_classes(count: int) -> str:
    """Return "1 class", or so many classes."""
    return f"{count:,} class{'' if count == 1 else 'es'}"

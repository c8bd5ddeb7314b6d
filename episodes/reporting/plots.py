"""The figures of a report, drawn with matplotlib (the extra ``plot``) from what a ``ReportCollector`` has collected.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart. A head has the same colour, dash and
marker in every figure. Every caption says which episodes are in the figure and how to read it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from episodes.metrics.scores import threshold_at_tpr
from episodes.reporting.collectors import HeadCollector, ReportCollector, accuracies_at, bias_curve, roc_points
from episodes.reporting.report import Report
from fewshot_nam.io.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from episodes.evaluation.incremental_report import IncrementalReport

DARK_PAPER = "#161718"
"""The colour behind figures in dark mode: that of the page."""
_HEADS: dict[str, dict[str, Any]] = {
    "nam": {"color": "#D55E00", "linestyle": "-"},
    "cosine": {"color": "#0072B2", "linestyle": (0, (4, 2))},
}
_OTHER_COLOURS = ["#E69F00", "#56B4E9", "", "#009E73", "#CC79A7", "#888888"]
_OTHER_DASHES: list[Any] = [(0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (2, 2))]
_MARKERS = "osD^vP*X"
_KNOWN, _UNKNOWN = "#009E73", "#CC79A7"
_DARK = {name: DARK_PAPER for name in ("figure.facecolor", "axes.facecolor", "savefig.facecolor")}
_BINS = 60
_PANEL = (5.4, 4.4)  # inches: the letters can still be read on a phone
_NO_UNKNOWN = "the episodes have no unknown queries (closed protocol, or no open ways)"


class Panel(NamedTuple):
    """One figure.

    Attributes:
        name: of its file, without the ending.
        alt: what it shows, in a line.
        draw: returns the figure.
    """

    name: str
    alt: str
    draw: Callable[[], Figure]


class Section(NamedTuple):
    """Figures of the page that belong together, or the reason why there are none.

    Attributes:
        name: of the section.
        title: its heading.
        caption: how to read the figures and which episodes are in them; without figures, why there are none.
        panels: the figures; empty where there are none.
    """

    name: str
    title: str
    caption: str
    panels: list[Panel]


def require_matplotlib() -> None:
    """Raise ``ModuleNotFoundError``, which says how to install it, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            '--report: needs matplotlib, which is not installed: pip install "fewshot-nam[plot]"'
        ) from error


def sections(report: Report, collected: ReportCollector) -> list[Section]:
    """Return the figures of a report, in the order of the page; nothing is drawn yet."""
    heads, shown = collected.heads, shown_heads(report)
    first = next(iter(heads.values()))
    total = report.config["episodes"]
    has_unknown, has_margins = first.queries.episodes > 0, first.margins.episodes > 0
    frozen = " A star is a threshold frozen on validation classes." if report.frozen_columns else ""
    return [
        Section(
            "roc",
            "Known against unknown: ROC",
            "First: a query is accepted where its largest score reaches the threshold. Second: every class is a detector. Up and "
            "to the left is better. Curves: one threshold for all episodes together, "
            f"{_taken(first.queries.episodes, total)} in the first, {_taken(first.pairs.episodes, total)} in the second "
            "(the axis ends at twice the largest rate of the table). Circles: open_fpr@95tpr and class_fpr@95tpr of the table, "
            f"each episode with its own threshold. {_whole_numbers(report, first)}{frozen}"
            if has_unknown
            else _NO_UNKNOWN,
            [Panel(f"roc_{kind.name}", f"ROC, {kind.title}", partial(_roc, report, heads, kind)) for kind in _ROCS]
            if has_unknown
            else [],
        ),
        Section(
            "scores",
            "Scores of known and unknown queries",
            f"Share of queries by their largest score, {_taken(first.queries.episodes, total)}; each head has its own scale. "
            "The less the two overlap, the better. The line is one threshold for all episodes: at least 95% of the known queries "
            "are right of it, and the unknown queries that are there too are false alarms."
            if has_unknown
            else _NO_UNKNOWN,
            [
                Panel(
                    f"scores_{number}",
                    f"scores of known and unknown queries by {name}",
                    partial(_scores, name, heads[name]),
                )
                for number, name in enumerate(shown, start=1)
            ]
            if has_unknown
            else [],
        ),
        Section(
            "base_novel",
            "Base accuracy against novel accuracy",
            f"A bias on all novel scores sweeps from low to high, {_taken(first.margins.episodes, total)} together. A curve "
            "further up and to the right is better; the points of one curve are different trade-offs. Circles: no bias."
            + (" Stars: the bias chosen on validation classes." if first.bias is not None else "")
            if has_margins
            else "there are no base classes in the label space (only the generalized protocol has them)",
            [Panel("base_novel", "base accuracy against novel accuracy", lambda: _base_novel(heads))]
            if has_margins
            else [],
        ),
        Section(
            "position",
            "Accuracy by write position",
            f"Known queries given their own class, by the position in which their class was written, all {total:,} episodes, "
            "with 95% intervals. The order of classes is random, so a line that rises to the right shows a head that forgets "
            "what it wrote first; a flat line shows that the order does not matter.",
            [Panel("position", "accuracy by the position in which a class was written", lambda: _position(heads))],
        ),
    ]


def growth_figure(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Return the figure of a ``GrowthStudy``: known and unknown queries accepted as classes are learned.

    Args:
        rows: as ``GrowthStudy.run`` returns them; those after forgetting are left out.
        title: above the figure.
    """
    figure = _figure(10.5, 4.8)
    panels = (("known", "known queries accepted, %"), ("unknown", "unknown queries accepted, %"))
    names = list(dict.fromkeys(row["head"] for row in rows))
    for axes, (measure, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for name, style in styles(names).items():
            of_head = [row for row in rows if row["head"] == name and not row["forgotten"]]
            axes.errorbar(
                [row["classes"] for row in of_head],
                [100 * row[measure]["mean"] for row in of_head],
                [100 * np.nan_to_num(row[measure]["ci95"]) for row in of_head],
                label=_label(name),
                linewidth=1.4,
                markersize=5,
                capsize=2,
                **style,
            )
        if measure == "known":
            axes.axhline(95, color="#888888", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", xlabel="classes learned (the threshold is set at the first size)", ylabel=label)
        axes.set_ylim(top=min(102.0, axes.get_ylim()[1]))
        sizes = sorted({row["classes"] for row in rows})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    figure.suptitle(title)
    _legend(figure, len(names))
    return figure


def incremental_figure(report: IncrementalReport, title: str, heads: Sequence[str] | None = None) -> Figure:
    """Return what happens session by session: accuracy, the base and novel part of it, and false alarms of classes still to come.

    Args:
        report: of ``evaluate_incremental``.
        title: above the figure.
        heads: those to show, where the report has them; ``None`` for all.
    """
    figure = _figure(13.5, 4.8)
    panels = (
        ("accuracy", "accuracy on all classes seen, %"),
        ("harmonic_mean", "harmonic mean of base and novel, %"),
        ("unarrived_fpr@equal", "unarrived accepted, all equally right, %"),
    )
    shown = [name for name in report.sessions if heads is None or name in heads]
    all_styles = styles(shown)
    for axes, (measure, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name in shown:
            found = report.sessions[name]
            axes.errorbar(
                report.seen,
                [100 * value["mean"] for value in found[measure]],
                [100 * np.nan_to_num(value["ci95"]) for value in found[measure]],
                label=_label(name),
                linewidth=2.4 if name.startswith("nam") else 1.2,
                elinewidth=0.7,
                markersize=4,
                capsize=1.5,
                **all_styles[name],
            )
        axes.set_title(label, fontsize="medium")  # beside the axis it would touch the next panel
        axes.set(xlabel="classes learned")
        axes.set_xticks(report.seen, [str(size) for size in report.seen], rotation=45 if len(report.seen) > 8 else 0)
    figure.suptitle(title)
    _legend(figure, len(shown))
    return figure


def kept_classes_figure(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], points: Mapping[str, Mapping[str, Any]], title: str
) -> Figure:
    """Return base against new accuracy of rules that keep a classifier: a curve for each, and the point it takes by itself.

    Args:
        curves: by rule, as ``episodes.evaluation.kept_classes.curve`` returns them.
        points: by rule, as ``episodes.evaluation.kept_classes.point`` returns them.
        title: above the figure.
    """
    figure = _figure(7.0, 5.2)
    axes = figure.subplots()
    for number, (name, rows) in enumerate(curves.items()):
        style = (
            {**_HEADS["nam"], "marker": "o"}
            if not number
            else {
                "color": _OTHER_COLOURS[number] or _ink(),
                "linestyle": _OTHER_DASHES[number],
                "marker": _MARKERS[number],
            }
        )
        axes.errorbar(
            [100 * row["base"]["mean"] for row in rows],
            [100 * row["new"]["mean"] for row in rows],
            [100 * np.nan_to_num(row["new"]["ci95"]) for row in rows],
            label=name,
            linewidth=1.4,
            markersize=3,
            capsize=2,
            **style,
        )
        own = [100 * points[name][side]["mean"] for side in ("base", "new")]
        axes.plot(*own, marker="*", markersize=17, color=style["color"], markeredgecolor=_ink(), linestyle="none")
    axes.set(xlabel="base queries right, %", ylabel="new queries right, %")
    figure.suptitle(f"{title}; a star is what the rule does by itself")
    _legend(figure, len(curves))
    return figure


def shown_heads(report: Report) -> list[str]:
    """Return the one or two heads of figures that show no more: nam or the first head, and cosine or the next one."""
    main = report.main_head
    others = [name for name in report.results if name != main]
    return [main, *(["cosine"] if "cosine" in others else others[:1])]


def save(draw: Callable[[], Figure], path: str | os.PathLike[str], dark: bool = False) -> None:
    """Draw a figure into a PNG file, whole or not at all. The same figure gives the same bytes in any user style.

    Args:
        draw: returns the figure.
        path: the file.
        dark: light on the dark colour of the page.
    """
    import matplotlib.style

    style: list[Any] = ["default", "dark_background", _DARK] if dark else ["default"]
    with matplotlib.style.context(style), replacing(Path(path)) as unfinished:
        draw().savefig(unfinished, format="png", dpi=144, metadata={"Software": None})


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour, dash and marker of each head, the same in every figure."""
    found = dict(_HEADS)
    for i, name in enumerate(name for name in names if name not in _HEADS):
        # Six colours and five dashes make thirty heads that look different.
        found[name] = {
            "color": _OTHER_COLOURS[i % len(_OTHER_COLOURS)] or _ink(),
            "linestyle": _OTHER_DASHES[i % len(_OTHER_DASHES)],
        }
    return {name: {**found[name], "marker": _MARKERS[i % len(_MARKERS)]} for i, name in enumerate(names)}


class _Roc(NamedTuple):
    """A kind of ROC curve, and the words of its figure."""

    name: str
    title: str
    x: str
    y: str
    measure: str
    frozen: str


_ROCS = (
    _Roc(
        "queries",
        "queries: known against unknown",
        "unknown queries accepted, %",
        "known queries accepted, %",
        "open_fpr@95tpr",
        "tpr:frozen",
    ),
    _Roc(
        "pairs",
        "every class a detector",
        "wrong (query, class) pairs accepted, %",
        "true pairs accepted, %",
        "class_fpr@95tpr",
        "class_tpr:frozen",
    ),
)


def _roc(report: Report, heads: dict[str, HeadCollector], kind: _Roc) -> Figure:
    figure = _figure(*_PANEL)
    axes: Axes = figure.subplots()
    of_queries = kind.name == "queries"
    for name, style in styles(list(heads)).items():
        head, found = heads[name], report.results[name]
        fpr, tpr = roc_points(*(head.queries if of_queries else head.pairs).pooled())
        line = {key: style[key] for key in ("color", "linestyle")}
        # Between two scores of known queries only the share of unknown queries changes.
        axes.plot(100 * fpr, 100 * tpr, drawstyle="steps-post", label=_label(name), linewidth=1.6, **line)
        _mark(axes, found[kind.measure]["mean"], head.tpr()[not of_queries], "o", style)
        if f"{kind.measure}:frozen" in found:
            _mark(axes, found[f"{kind.measure}:frozen"]["mean"], found[kind.frozen]["mean"], "*", style)
    axes.axhline(95, color="#888888", linewidth=0.8, linestyle=":")
    # With many classes the false positive rate is small, and all curves would lie on the left edge.
    end = min(102.0, 200 * max(found[kind.measure]["mean"] for found in report.results.values()) + 2)
    axes.set(
        title=f"{kind.title} (o {kind.measure})", xlabel=kind.x, ylabel=kind.y, xlim=(-0.02 * end, end), ylim=(-2, 102)
    )
    axes.title.set_fontsize(10)
    _legend(figure, len(heads))
    return figure


def _scores(name: str, head: HeadCollector) -> Figure:
    from matplotlib.colors import to_rgba

    figure = _figure(*_PANEL)
    axes: Axes = figure.subplots()
    known, unknown = head.queries.pooled()
    edges = np.histogram_bin_edges(np.concatenate([known, unknown]), bins=_BINS).tolist()
    for scores, colour, hatch, label in ((known, _KNOWN, "", "known"), (unknown, _UNKNOWN, "////", "unknown")):
        weights = np.full(len(scores), 100 / len(scores))
        fill: dict[str, Any] = {
            "facecolor": to_rgba(colour, 0.3),
            "edgecolor": colour,
            "hatch": hatch,
            "linewidth": 1.6,
        }
        axes.hist(scores, edges, weights=weights, histtype="stepfilled", label=label, **fill)
    threshold = float(threshold_at_tpr(torch.from_numpy(known)))
    taken, accepted = (100 * float((scores >= threshold).mean()) for scores in (known, unknown))
    axes.axvline(threshold, color=_ink(), linewidth=1, linestyle="--", label=f"accepts {taken:.1f}% of the known")
    axes.set(
        title=f"{_label(name)}: {accepted:.1f}% of unknown accepted at {taken:.1f}% of known",
        xlabel=f"largest score of {_label(name)} (its own scale)",
        ylabel="share of queries per bin, %",
    )
    axes.title.set_fontsize(10)
    _legend(figure, 3)
    return figure


def _base_novel(heads: dict[str, HeadCollector]) -> Figure:
    figure = _figure(*_PANEL)
    axes: Axes = figure.subplots()
    for name, style in styles(list(heads)).items():
        margins = heads[name].margins.pooled()
        base, novel = bias_curve(*margins)
        line = {key: style[key] for key in ("color", "linestyle")}
        axes.plot(100 * novel, 100 * base, label=_label(name), linewidth=1.6, **line)
        for bias, marker in ((0.0, "o"), (heads[name].bias, "*")):
            if bias is not None:
                base_at, novel_at = accuracies_at(bias, *margins)
                _mark(axes, float(novel_at), float(base_at), marker, style)
    axes.set(xlabel="novel accuracy, %", ylabel="base accuracy, %", xlim=(-2, None), ylim=(-2, None))
    _legend(figure, len(heads))
    return figure


def _position(heads: dict[str, HeadCollector]) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure = _figure(*_PANEL)
    axes: Axes = figure.subplots()
    for i, (name, style) in enumerate(styles(list(heads)).items()):
        mean, ci95 = heads[name].accuracy_by_position()
        # Side by side, so that intervals of heads with similar values do not hide each other.
        place = np.arange(1, len(mean) + 1) + 0.05 * (i - (len(heads) - 1) / 2)
        axes.errorbar(
            place,
            100 * mean,
            100 * np.nan_to_num(ci95),
            label=_label(name),
            linewidth=1.4,
            markersize=5,
            capsize=2,
            **style,
        )
    axes.set(xlabel="position in which the class was written", ylabel="accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, len(heads))
    return figure


def _mark(axes: Axes, x: float, y: float, marker: str, style: dict[str, Any]) -> None:
    """Mark a point, given as fractions; hollow, so that one head's point does not hide another's."""
    size = {"o": 10, "*": 15}[marker]
    hollow = {"markerfacecolor": "none", "markeredgecolor": style["color"], "markeredgewidth": 2}
    axes.plot(100 * x, 100 * y, marker=marker, markersize=size, linestyle="none", zorder=3, **hollow)


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches. It belongs to no window, so it needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _legend(figure: Figure, entries: int) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(entries, 5), frameon=False)


def _label(name: str) -> str:
    """Return a head's name so that matplotlib shows it literally: ``$`` would start mathematics, a first ``_`` hide it."""
    return " " * name.startswith("_") + name.replace("$", r"\$")


def _ink() -> str:
    """Return the colour of text in the style that a figure is drawn in."""
    import matplotlib

    return str(matplotlib.rcParams["text.color"])


def _whole_numbers(report: Report, head: HeadCollector) -> str:
    """Return what the thresholds of the episodes really accept, which is more than 95% where queries are few."""
    queries, pairs = (f"{100 * share:.1f}%" for share in head.tpr())
    both = queries if queries == pairs else f"{queries} and {pairs}"
    count = "" if head.margins.episodes else f" of the {report.config['ways'] * report.config['queries']}"
    return f"It accepts {both} of the known, not 95%, because it accepts a whole number{count} of an episode."


def _taken(kept: int, total: int) -> str:
    return f"all {total:,} episodes" if kept == total else f"the first {kept:,} of {total:,} episodes"

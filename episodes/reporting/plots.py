"""The figures of a report, drawn with matplotlib (the extra ``plot``) from what a ``ReportCollector`` has collected.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart. A head has the same colour, dash and
marker in every figure. Every caption says which episodes are in the figure and how to read it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
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

_HEADS: dict[str, dict[str, Any]] = {
    "nam": {"color": "#D55E00", "linestyle": "-"},
    "cosine": {"color": "#0072B2", "linestyle": (0, (4, 2))},
}
_OTHER_COLOURS = ["#E69F00", "#56B4E9", "#000000", "#009E73", "#CC79A7", "#888888"]
_OTHER_DASHES: list[Any] = [(0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (2, 2))]
_MARKERS = "osD^vP*X"
_KNOWN, _UNKNOWN = "#009E73", "#CC79A7"
_BINS = 60
_NO_UNKNOWN = "the episodes have no unknown queries (closed protocol, or no open ways)"


class Section(NamedTuple):
    """One figure of the page, or the reason why there is none.

    Attributes:
        name: of its file, without the ending.
        title: its heading.
        caption: how to read it and which episodes are in it; without a figure, why there is none.
        draw: returns the figure; ``None`` where there is none.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure] | None


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
            "Left: a query is accepted where its largest score reaches the threshold. Right: every class is a detector. Up and "
            "to the left is better. Curves: one threshold for all episodes together, "
            f"{_taken(first.queries.episodes, total)} left, {_taken(first.pairs.episodes, total)} right "
            "(the axis ends at twice the largest rate of the table). Circles: open_fpr@95tpr and class_fpr@95tpr of the table, "
            "each episode with its own threshold, which accepts a little more than 95% because it accepts a whole number of "
            f"queries.{frozen}"
            if has_unknown
            else _NO_UNKNOWN,
            (lambda: _roc(report, heads)) if has_unknown else None,
        ),
        Section(
            "scores",
            "Scores of known and unknown queries",
            f"Share of queries by their largest score, {_taken(first.queries.episodes, total)}; each head has its own scale. "
            "The less the two overlap, the better. The line is one threshold for all episodes: 95% of the known queries are "
            "right of it, and the unknown queries that are there too are false alarms."
            if has_unknown
            else _NO_UNKNOWN,
            (lambda: _scores({name: heads[name] for name in shown})) if has_unknown else None,
        ),
        Section(
            "base_novel",
            "Base accuracy against novel accuracy",
            f"A bias on all novel scores sweeps from low to high, {_taken(first.margins.episodes, total)} together. A curve "
            "further up and to the right is better; the points of one curve are different trade-offs. Circles: no bias."
            + (" Stars: the bias chosen on validation classes." if first.bias is not None else "")
            if has_margins
            else "there are no base classes in the label space (only the generalized protocol has them)",
            (lambda: _base_novel(heads)) if has_margins else None,
        ),
        Section(
            "position",
            "Accuracy by write position",
            f"Known queries given their own class, by the position in which their class was written, all {total:,} episodes, "
            "with 95% intervals. The order of classes is random, so a line that rises to the right shows a head that forgets "
            "what it wrote first; a flat line shows that the order does not matter.",
            lambda: _position(heads),
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
            else {"color": _OTHER_COLOURS[number], "linestyle": _OTHER_DASHES[number], "marker": _MARKERS[number]}
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
        axes.plot(*own, marker="*", markersize=17, color=style["color"], markeredgecolor="#000000", linestyle="none")
    axes.set(xlabel="base queries right, %", ylabel="new queries right, %")
    figure.suptitle(f"{title}; a star is what the rule does by itself")
    _legend(figure, len(curves))
    return figure


def shown_heads(report: Report) -> list[str]:
    """Return the one or two heads of figures that show no more: nam or the first head, and cosine or the next one."""
    names = list(report.results)
    main = "nam" if "nam" in names else names[0]
    others = [name for name in names if name != main]
    return [main, *(["cosine"] if "cosine" in others else others[:1])]


def save(draw: Callable[[], Figure], path: str | os.PathLike[str]) -> None:
    """Draw a figure into a PNG file, whole or not at all. The same figure gives the same bytes in any user style."""
    import matplotlib.style

    with matplotlib.style.context("default"), replacing(Path(path)) as unfinished:
        draw().savefig(unfinished, format="png", dpi=144, metadata={"Software": None})


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour, dash and marker of each head, the same in every figure."""
    found = dict(_HEADS)
    for i, name in enumerate(name for name in names if name not in _HEADS):
        # Six colours and five dashes make thirty heads that look different.
        found[name] = {
            "color": _OTHER_COLOURS[i % len(_OTHER_COLOURS)],
            "linestyle": _OTHER_DASHES[i % len(_OTHER_DASHES)],
        }
    return {name: {**found[name], "marker": _MARKERS[i % len(_MARKERS)]} for i, name in enumerate(names)}


def _roc(report: Report, heads: dict[str, HeadCollector]) -> Figure:
    figure = _figure(10.5, 5.2)
    panels = (
        (
            "queries: known against unknown",
            "unknown queries accepted, %",
            "known queries accepted, %",
            "open_fpr@95tpr",
        ),
        (
            "every class a detector",
            "wrong (query, class) pairs accepted, %",
            "true pairs accepted, %",
            "class_fpr@95tpr",
        ),
    )
    for kind, (axes, (title, x, y, measure)) in enumerate(zip(figure.subplots(1, 2), panels, strict=True)):
        for name, style in styles(list(heads)).items():
            head, found = heads[name], report.results[name]
            fpr, tpr = roc_points(*(head.queries if kind == 0 else head.pairs).pooled())
            line = {key: style[key] for key in ("color", "linestyle")}
            # Between two scores of known queries only the share of unknown queries changes.
            axes.plot(100 * fpr, 100 * tpr, drawstyle="steps-post", label=_label(name), linewidth=1.6, **line)
            _mark(axes, found[measure]["mean"], head.tpr()[kind], "o", style)
            if f"{measure}:frozen" in found:
                accepted = found["tpr:frozen" if kind == 0 else "class_tpr:frozen"]["mean"]
                _mark(axes, found[f"{measure}:frozen"]["mean"], accepted, "*", style)
        axes.axhline(95, color="#888888", linewidth=0.8, linestyle=":")
        # With many classes the false positive rate is small, and all curves would lie on the left edge.
        end = min(102.0, 200 * max(found[measure]["mean"] for found in report.results.values()) + 2)
        axes.set(title=f"{title} (o {measure})", xlabel=x, ylabel=y, xlim=(-0.02 * end, end), ylim=(-2, 102))
    _legend(figure, len(heads))
    return figure


def _scores(heads: dict[str, HeadCollector]) -> Figure:
    from matplotlib.colors import to_rgba

    figure = _figure(10.5, 4.2)
    for axes, (name, head) in zip(figure.subplots(1, len(heads), squeeze=False)[0], heads.items(), strict=True):
        known, unknown = head.queries.pooled()
        edges = np.histogram_bin_edges(np.concatenate([known, unknown]), bins=_BINS)
        for scores, colour, hatch, label in ((known, _KNOWN, "", "known"), (unknown, _UNKNOWN, "////", "unknown")):
            weights = np.full(len(scores), 100 / len(scores))
            fill = {"facecolor": to_rgba(colour, 0.3), "edgecolor": colour, "hatch": hatch, "linewidth": 1.6}
            axes.hist(scores, edges, weights=weights, histtype="stepfilled", label=label, **fill)
        threshold = float(threshold_at_tpr(torch.from_numpy(known)))
        accepted = 100 * float((unknown >= threshold).mean())
        axes.axvline(threshold, color="black", linewidth=1, linestyle="--", label="accepts 95% of the known")
        axes.set(
            title=f"{_label(name)}: {accepted:.1f}% of unknown accepted at 95% of known",
            xlabel=f"largest score of {_label(name)} (its own scale)",
            ylabel="share of queries per bin, %",
        )
        axes.title.set_fontsize(10)
    _legend(figure, 3)
    return figure


def _base_novel(heads: dict[str, HeadCollector]) -> Figure:
    figure = _figure(6.8, 5.6)
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

    figure = _figure(7.5, 4.6)
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


def _taken(kept: int, total: int) -> str:
    return f"all {total:,} episodes" if kept == total else f"the first {kept:,} of {total:,} episodes"

"""What may be claimed of a head: tables over many reports, against the best of several heads and against each of several.

The best of several heads is taken anew for every report and measure, which favours them. A difference is starred once where its
paired interval over episodes excludes 0, and twice where its interval over classes (a jackknife) does so too: only then is it a
statement about further classes. There is no second star where all classes of a data set are in every episode, and none where the
jackknife finds no variance of classes beside that of episodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from episodes.reporting.formatting import better, markdown_table, verdict

Reports = Mapping[str, Mapping[str, Any]]
Verdict = Literal["better", "worse", "even"]


class Difference(NamedTuple):
    """A head against another, in one report and measure.

    Attributes:
        mean: of the head less that of the other, a fraction.
        ratio: of the two means; NaN where the other's is 0.
        over_episodes: whether the head is better, worse or even by the interval over episodes.
        over_classes: likewise by the interval over classes.
    """

    mean: float
    ratio: float
    over_episodes: Verdict
    over_classes: Verdict


def difference(report: Mapping[str, Any], head: str, other: str, measure: str) -> Difference:
    """Return how a head differs from another.

    Raises:
        KeyError: the report has no such heads, or not this measure.
    """
    means = [report["results"][name][measure]["mean"] for name in (head, other)]
    sign, pair = (1, f"{head}-{other}") if f"{head}-{other}" in report["paired"] else (-1, f"{other}-{head}")
    mean, ci95 = report["paired"][pair][measure].values()
    wider = report["paired_over_classes"].get(pair, {}).get(measure, {}).get("ci95")
    if wider is None or not wider > ci95:
        wider = math.nan  # the jackknife found no variance of classes to add, which is no proof that there is none
    verdicts = [verdict(measure, {"mean": sign * mean, "ci95": width}) for width in (ci95, wider)]
    return Difference(means[0] - means[1], means[0] / means[1] if means[1] else math.nan, verdicts[0], verdicts[1])


def best_of(report: Mapping[str, Any], others: Sequence[str], measure: str) -> str:
    """Return the name of the best of some heads in a measure."""
    ranked = sorted(others, key=lambda name: report["results"][name][measure]["mean"])
    return ranked[-1 if better(measure) == "higher" else 0]


def against_best(reports: Reports, head: str, others: Sequence[str], measures: Mapping[str, str], lead: int) -> str:
    """Return a table: a head against the best of others, a line for each report, then means and the worst line.

    Args:
        reports: by name, as ``Report.to_dict`` returns them or as read from JSON.
        head: the head to judge.
        others: of which the best is taken for every cell.
        measures: ``"+"``, shown in points, or ``"x"``, shown as a ratio, by measure.
        lead: how many of the reports, from the first, the means are over; further ones are shown only.
    """
    found = {
        name: {measure: difference(report, head, best_of(report, others, measure), measure) for measure in measures}
        for name, report in reports.items()
    }
    rows = [[f"{head} against the best of {len(others)}", *measures]]
    rows += [[name, *(_cell(of[m], kind) for m, kind in measures.items())] for name, of in found.items()]
    first = list(found.values())[:lead]
    rows.append([f"**mean of {len(first)}**", *(_mean([of[m] for of in first], kind) for m, kind in measures.items())])
    rows.append(
        [f"**worst of {len(first)}**", *(_worst([of[m] for of in first], m, kind) for m, kind in measures.items())]
    )
    return "\n".join(markdown_table(rows)) + "\n\n" + _stars([d for of in found.values() for d in of.values()])


def against_each(reports: Reports, head: str, others: Iterable[str], measures: Mapping[str, str]) -> str:
    """Return a table: a head against each of some others, the mean over all reports and in how many it is better and worse."""
    rows = [[f"{head} against", *measures]]
    every = []
    for other in others:
        cells = []
        for measure, kind in measures.items():
            found = [difference(report, head, other, measure) for report in reports.values()]
            every += found
            counts = [sum(d.over_episodes == verdict for d in found) for verdict in ("better", "worse")]
            sure = [sum(d.over_classes == verdict for d in found) for verdict in ("better", "worse")]
            cells.append(f"{_mean(found, kind)}; {counts[0]}/{counts[1]} ({sure[0]}/{sure[1]})")
        rows.append([other, *cells])
    return "\n".join(markdown_table(rows)) + "\n\n" + _stars(every)


def losses(reports: Reports, head: str, others: Iterable[str], measures: Mapping[str, str]) -> str:
    """Return a table of all differences in which a head is worse by the interval over episodes, the others beside it."""
    rows = [["worse than", "line", "measure", "by"]]
    for other in others:
        for name, report in reports.items():
            for measure, kind in measures.items():
                if measure not in report["results"][other]:
                    continue
                found = difference(report, head, other, measure)
                if found.over_episodes == "worse":
                    rows.append([other, name, measure, _cell(found, kind)])
    return "\n".join(markdown_table(rows))


def _cell(found: Difference, kind: str) -> str:
    sign = {"better": "+", "worse": "-", "even": ""}[found.over_episodes]
    stars = "" if not sign else sign + ("**" if found.over_classes == found.over_episodes else "*")
    shown = f"{100 * found.mean:+.2f}" if kind == "+" else f"x {found.ratio:.3f}"
    return f"{shown} {stars}".rstrip().replace("*", r"\*")


def _mean(found: Sequence[Difference], kind: str) -> str:
    if kind == "+":
        return f"{100 * sum(d.mean for d in found) / len(found):+.2f}"
    return f"x {math.exp(sum(math.log(d.ratio) for d in found) / len(found)):.3f}"


def _worst(found: Sequence[Difference], measure: str, kind: str) -> str:
    values = [d.mean if kind == "+" else d.ratio for d in found]
    worst = min(values) if better(measure) == "higher" else max(values)
    return f"{100 * worst:+.2f}" if kind == "+" else f"x {worst:.3f}"


def _stars(found: Sequence[Difference]) -> str:
    starred = sum(d.over_episodes != "even" for d in found)
    twice = sum(d.over_episodes == d.over_classes != "even" for d in found)
    return (
        f"{starred} of {len(found)} differences are starred (about {len(found) / 20:.0f} would be by chance if heads did not "
        f"differ), {twice} of them over classes too."
    )

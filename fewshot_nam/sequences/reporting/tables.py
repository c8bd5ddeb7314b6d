"""Tables of accuracy: a row a model, a column a test set or a length, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence

from fewshot_nam.sequences.reporting.plan import Experiment
from fewshot_nam.sequences.reporting.records import Record

_MEASURES = {
    "exact": "Percent of sequences that are right in every asked token",
    "token": "Percent of asked tokens that are right",
    "bits": "Bits an asked token (the mean of -log2 of its probability; less is better)",
}


def table(experiment: Experiment, records: Sequence[Record]) -> str:
    """Return a page in Markdown: the budget, the table, figures of others, and the commands.

    A cell is the mean over seeds, in percent or in bits, and the worst and best seed where they differ.

    Raises:
        ValueError: there is no record.
    """
    if not records:
        raise ValueError(f"{experiment.name}: no finished run")
    tests = [*records[0].result["accuracy"], *records[0].lengths]
    lines = [
        f"# {experiment.name}",
        "",
        f"Task `{experiment.task or experiment.name}`. {_budget(records)} {_MEASURES[experiment.measure]}: the mean "
        "over seeds, and in brackets the worst and the best seed.",
        "",
        "| model | parameters | seeds | " + " | ".join(_heading(test) for test in tests) + " | seconds, shared core |",
        "|---" * (len(tests) + 4) + "|",
    ]
    for label in experiment.models:
        rows = [record for record in records if record.label == label]
        if not rows:
            continue
        cells = [
            _cell(
                [{**row.result["accuracy"], **row.lengths}[test][experiment.measure] for row in rows],
                experiment.measure,
            )
            for test in tests
        ]
        seconds = sum(row.result["seconds"] for row in rows) / len(rows)
        lines.append(
            f"| {label} | {rows[0].result['parameters']:,} | {len(rows)} | {' | '.join(cells)} | {seconds:.0f} |"
        )
    sizes = sorted({values["sequences"] for row in records for values in row.lengths.values() if "sequences" in values})
    if sizes:
        lines += ["", f"At each length: {' or '.join(f'{size:,}' for size in sizes)} sequences."]
    if experiment.axis != "length":
        lines += ["", f"Tests are at a {experiment.axis}."]
    if experiment.published:
        lines += ["", "Published:", "", *(f"- {line}" for line in experiment.published)]
    lines += ["", "Made by, with other seeds in place of 0:", "", "```bash"]
    lines += [experiment.command(label, 0) for label in experiment.models if any(r.label == label for r in records)]
    return "\n".join([*lines, "```", ""])


def _budget(records: Sequence[Record]) -> str:
    """Return a sentence on what all runs were given."""
    parts = []
    for name, text in (("steps", "{} steps"), ("batch_size", "of {} sequences")):
        values = {record.settings[name] for record in records}
        parts.append(text.format(values.pop() if len(values) == 1 else " or ".join(map(str, sorted(values)))))
    chosen = {record.settings.get("select", "ood_easy") for record in records}
    where = " or ".join(sorted("at the last step" if name is None else f"on `{name}` lengths" for name in chosen))
    return f"Every model was given {' '.join(parts)}; weights were chosen {where}."


def _heading(test: str) -> str:
    return f"at {test}" if test.isdigit() else f"`{test}`"


def _cell(values: Sequence[float], measure: str) -> str:
    numbers = (sum(values) / len(values), min(values), max(values))
    mean, low, high = (f"{value:.3f}" if measure == "bits" else f"{100 * value:.1f}" for value in numbers)
    return mean if low == high else f"{mean} ({low} to {high})"

"""Plots of trained sequence models: accuracy against length, and the heads of Turing machines.

They need matplotlib, the extra ``plot``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fewshot_nam.memory import draw_heads
from fewshot_nam.sequences.models.turing import TuringModel
from fewshot_nam.sequences.reporting.plan import Experiment
from fewshot_nam.sequences.reporting.records import Record
from fewshot_nam.sequences.tasks import SequenceTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# What a value is multiplied by, and what it is called.
_SHOWN = {"exact": (100, "sequences right, %"), "token": (100, "tokens right, %"), "bits": (1, "bits a token")}


def plot_lengths(experiment: Experiment, records: Sequence[Record], trained_to: int | None = None) -> Figure:
    """Return a figure of accuracy against length: for every model a line for the mean over seeds, and a band from worst to best.

    Args:
        experiment: whose models, in this order.
        records: its runs.
        trained_to: the longest length of training, which is marked; ``None`` for no mark.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    styles = ["-", "--", "-.", ":"]
    scale, shown = _SHOWN[experiment.measure]
    for number, label in enumerate(experiment.models):
        rows = [record.lengths for record in records if record.label == label]
        if not rows:
            continue
        lengths = [int(length) for length in rows[0]]
        values = [[scale * row[str(length)][experiment.measure] for row in rows] for length in lengths]
        axes.plot(
            lengths,
            [sum(value) / len(value) for value in values],
            styles[number // 10 % 4],
            color=f"C{number % 10}",
            marker=".",
            label=label,
        )
        axes.fill_between(
            lengths, [min(v) for v in values], [max(v) for v in values], color=f"C{number % 10}", alpha=0.15
        )
    if experiment.measure != "bits":
        axes.set_ylim(-3, 112)
    if trained_to is not None:
        axes.axvline(trained_to, color="gray", linewidth=1, linestyle=":")
        place = 102 if experiment.measure != "bits" else axes.get_ylim()[1]
        axes.text(trained_to, place, f"trained to {trained_to}", color="gray", fontsize=8, ha="center", va="bottom")
    axes.set_xscale("log")
    lengths = sorted({int(length) for record in records for length in record.lengths})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel(experiment.axis)
    axes.set_ylabel(shown)
    axes.set_title(experiment.name, pad=14 if experiment.measure == "bits" else None)
    axes.legend(fontsize=8)
    return figure


@torch.no_grad()
def plot_heads(model: TuringModel, task: SequenceTask, length: int, layer: int = 0) -> Figure:
    """Return a figure of the heads of one machine of a model over a sequence, see ``fewshot_nam.memory.draw_heads``.

    Args:
        model: a trained NAM-TM of residual wiring.
        task: whose first fixed sequence of that length is shown.
        length: of the sequence.
        layer: which machine, 0 for the first.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    tokens = task.examples(length, 1).inputs
    machine = model.machines[layer]
    inputs: list[torch.Tensor] = []
    handle = machine.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    try:
        model.eval()(tokens)
    finally:
        handle.remove()
    trace = machine(inputs[0], return_trace=True)[2]
    return draw_heads(trace, tokens=[task.vocabulary[token] for token in tokens[0].tolist()])

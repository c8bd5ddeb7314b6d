"""A plot of the heads of a NAM Turing Machine over time. It needs matplotlib, the extra ``plot``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fewshot_nam.memory.turing.state import TuringTrace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_heads(trace: TuringTrace, example: int = 0, *, tokens: Sequence[str] | None = None) -> Figure:
    """Return a figure of head positions over time, with a row for each tape, write heads left and read heads right.

    Colours are the weights of the head on the cells, from -1 (blue) to 1 (red). The line below is the gate ``p_w`` or ``p_r`` of
    each step: where it is 0, the head does nothing.

    Args:
        trace: the last result of a machine called with ``return_trace=True``.
        example: index of the sequence in the batch.
        tokens: one label for each of the ``T`` steps; default: their numbers.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError: ``trace`` is not a trace, or ``example`` not an integer.
        ValueError: the batch has no such example, or the number of labels is not that of the steps.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'draw_heads: needs matplotlib, which is not installed: pip install "fewshot-nam[plot]"'
        ) from error

    if not isinstance(trace, TuringTrace):
        raise TypeError(f"draw_heads: trace must be a TuringTrace, got {type(trace).__name__}: pass return_trace=True")
    if not isinstance(example, int):
        raise TypeError(f"draw_heads: example must be an integer, got {example!r}")
    batch, steps, tapes, cells = trace.read_heads.shape
    if not 0 <= example < batch:
        raise ValueError(f"draw_heads: example must be one of the batch's 0 to {batch - 1}, got {example}")
    if tokens is not None and len(tokens) != steps:
        raise ValueError(f"draw_heads: tokens must have one label for each of {steps} steps, got {len(tokens)}")
    columns = (("write", trace.write_heads, trace.p_write), ("read", trace.read_heads, trace.p_read))
    figure = Figure(
        figsize=(2 * min(2.5 + 0.18 * steps, 10.0), tapes * min(2.0 + 0.06 * cells, 6.0)), layout="constrained"
    )
    grid = figure.subplots(2 * tapes, 2, sharex=True, squeeze=False, height_ratios=[6, 1] * tapes)
    for tape in range(tapes):
        for column, (name, heads, gate) in enumerate(columns):
            places, opening = grid[2 * tape, column], grid[2 * tape + 1, column]
            weights = heads[example, :, tape].detach().float().cpu().numpy()
            image = places.imshow(weights.T, origin="lower", aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1)
            places.set_title(f"{name} head, tape {tape}")
            places.set_ylabel("cell")
            opening.step(
                range(steps), gate[example, :, tape].detach().float().cpu().numpy(), where="mid", color="black"
            )
            opening.set_ylim(-0.05, 1.05)
            opening.set_ylabel(f"$p_{name[0]}$")
            if tokens is not None:
                opening.set_xticks(range(steps), tokens)
    for axis in grid[-1]:
        axis.set_xlabel("step" if tokens is None else "token")
    figure.colorbar(image, ax=grid[:, -1].tolist(), label="weight of the cell")
    return figure

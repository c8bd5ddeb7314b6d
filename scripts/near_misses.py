"""What a trained recogniser compares: ``python scripts/near_misses.py RUN [RUN ...]``, a table on stdout.

RUN is what ``scripts/train_sequence.py`` wrote for ``marked_copy`` or ``marked_reversal``. In the test sets of these tasks, the
place of the mark alone gives 92 to 95% of the answers. So three kinds of strings with the mark in its place are asked for: strings
of the language, the same with one letter changed, and the first word with another random word behind the mark. Percent that
are answered "yes"; a network that compares all letters would have 100, 0 and 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from episodes.reporting.formatting import markdown_table
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.numbers import whole_number
from fewshot_nam.sequences import tasks
from fewshot_nam.sequences.models import SequenceModel
from fewshot_nam.sequences.training import load_trained

LENGTHS = (19, 39, 99, 199, 399)


def near_misses(task: tasks.SequenceTask, count: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Return ``count`` strings of each kind, ``{kind: (count, length)}``, of an odd length of at least 3."""
    generator = torch.Generator().manual_seed(seed)
    members: list[Tensor] = []
    while sum(len(part) for part in members) < count:
        inputs, targets, _ = task.sample(count, generator, lengths=length)
        members.append(inputs[targets[:, -1] == task.vocabulary.index("yes"), :-1])
    member = torch.cat(members)[:count]
    half = length // 2
    changed, other = member.clone(), member.clone()
    places = torch.randint(half, (count,), generator=generator)
    places += torch.randint(2, (count,), generator=generator) * (half + 1)
    changed[torch.arange(count), places] = 1 - changed[torch.arange(count), places]
    other[:, half + 1 :] = torch.randint(2, (count, half), generator=generator)
    same = (other == member).all(dim=1)
    other[same, -1] = 1 - other[same, -1]
    return {"of the language": member, "one letter changed": changed, "another second word": other}


@torch.no_grad()
def answered_yes(model: SequenceModel, task: tasks.SequenceTask, strings: Tensor) -> float:
    """Return the share of strings ``(B, T)`` that the model takes for more likely in the language than not."""
    asked = torch.full((len(strings), 1), task.vocabulary.index("?"))
    scores = model(torch.cat([strings, asked], dim=1))[:, -1]
    yes, no = (scores[:, task.vocabulary.index(word)] for word in ("yes", "no"))
    return (yes > no).float().mean().item()


def main(arguments: list[str] | None = None) -> None:
    """Print the table for the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a finished training run")
    parser.add_argument(
        "--size", type=whole_number(1, 10_000_000), default=1000, help="strings of each kind and length (default: 1000)"
    )
    options = parser.parse_args(arguments)
    rows = [["run", "strings", *(f"at {length}" for length in LENGTHS)]]
    for run in options.runs:
        try:
            model, task = load_trained(run)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        if "#" not in task.vocabulary:
            parser.error(f"{run} is trained on a task without a mark")
        shares = [
            {
                kind: answered_yes(model, task, strings)
                for kind, strings in near_misses(task, options.size, length).items()
            }
            for length in LENGTHS
        ]
        rows += [[run.name, kind, *(f"{100 * share[kind]:.1f}" for share in shares)] for kind in shares[0]]
    print(*markdown_table(rows), sep="\n")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

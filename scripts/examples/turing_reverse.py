"""Train a NAM Turing Machine to reverse strings of up to 10 digits, test it on longer ones, and plot its heads.

    python scripts/examples/turing_reverse.py --plot heads.png

The input is a delimiter, the digits, a delimiter and as many masks as digits; at the masks the machine must output the digits in
reverse. (The published generator has the answer in the input and the masks in the target, so that there is nothing to learn.) Every
step draws new strings, so that test strings are new except for the shortest lengths.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from fewshot_nam.cli.outputs import add_output
from fewshot_nam.memory.turing.machine import NAMTuringMachine
from fewshot_nam.memory.turing.plot import draw_heads

DIGITS, DELIMITER, MASK = 10, 10, 11
NAMES = [*"0123456789", "|", "?"]


class Reverser(nn.Module):
    """Embedding, one machine, and a classifier over the digits.

    Dropout makes the machine generalise to long strings: to be right with half of the features of a read missing, it must read one
    cell and not a mixture of several. So its moves become sharp, and stay sharp over many steps.
    """

    def __init__(self, width: int, tapes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, width)
        self.machine = NAMTuringMachine(width, tapes, controller="mlp", actions=("left", "noop", "right"))
        self.dropout = nn.Dropout(0.5)
        self.classify = nn.Linear(width, DIGITS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits ``(B, T, 10)`` for ``tokens (B, T)``."""
        outputs, _ = self.machine(self.embed(tokens))
        return self.classify(self.dropout(outputs))


def draw_batch(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return tokens ``(count, 2 length + 2)`` and the reversed digits ``(count, length)`` due at the last ``length`` tokens."""
    digits = torch.randint(DIGITS, (count, length), generator=generator)
    delimiter = torch.full((count, 1), DELIMITER)
    masks = torch.full((count, length), MASK)
    return torch.cat([delimiter, digits, delimiter, masks], dim=1), digits.flip(1)


def train(model: Reverser, args: argparse.Namespace, generator: torch.Generator) -> None:
    """Train with Adam on batches of one length each, the longest length growing over the first half of the steps."""
    optimiser = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, total_steps=args.steps, pct_start=0.1)
    began = time.perf_counter()
    for step in range(1, args.steps + 1):
        longest = min(args.longest, 2 + int(2 * args.longest * step / args.steps))
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        tokens, wanted = draw_batch(args.batch, length, generator)
        loss = nn.functional.cross_entropy(model(tokens)[:, -length:].flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % max(1, args.steps // 8) == 0:
            print(f"step {step:5d}  length {length:2d}  loss {loss.item():.4f}  {time.perf_counter() - began:5.1f} s")


@torch.no_grad()
def exactly_right(model: Reverser, length: int, count: int, generator: torch.Generator) -> float:
    """Return the share of strings of which every digit comes out right."""
    tokens, wanted = draw_batch(count, length, generator)
    return (model(tokens)[:, -length:].argmax(-1) == wanted).all(dim=1).float().mean().item()


@torch.no_grad()
def plot(model: Reverser, length: int, path: Path, generator: torch.Generator) -> None:
    """Draw the heads while the machine reverses one string."""
    tokens, _ = draw_batch(1, length, generator)
    trace = model.machine(model.embed(tokens), return_trace=True)[-1]
    draw_heads(trace, tokens=[NAMES[token] for token in tokens[0]]).savefig(path, dpi=120)


def main() -> None:
    """Train, test and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--longest", type=int, default=10, help="longest string to train on")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--tapes", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--strings", type=int, default=200, help="strings of each length to test on")
    add_output(parser, "--plot", "where to draw the heads, a png", replaces="an image")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    model = Reverser(args.width, args.tapes)
    train(model, args, generator)
    model.eval()
    for length in (1, 2, 5, 10, 15, 20, 30, 50, 100):
        kind = "trained" if length <= args.longest else "longer "
        print(f"length {length:3d}  {kind}  exactly right {exactly_right(model, length, args.strings, generator):6.1%}")
    if args.plot:
        plot(model, args.longest, args.plot, generator)


if __name__ == "__main__":
    main()

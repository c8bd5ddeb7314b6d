"""LSAM in place of an LSTM: recall the value of a key, for keys and values that are paired at random in every sequence.

    python scripts/examples/lsam_for_lstm.py

Each sequence shows 8 pairs of one of 16 keys and one of 8 values, one pair in each step, then one of the keys, whose value is to be
named; chance is 1 in 8. Both networks have about 25,000 parameters and train on the same sequences with the same optimiser. (A key
and its value in one step is easy: as two tokens, associative recall needs ``conv_size``.)
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.memory.lsam.layer import LSAM

KEYS, VALUES, PAIRS = 16, 8, 8


class Recall(nn.Module):
    """A recurrent network and a linear layer that names the value. This is all that changes: ``LSAM`` for ``nn.LSTM``."""

    def __init__(self, network: nn.LSTM | LSAM) -> None:
        super().__init__()
        self.network = network
        self.name = nn.Linear(network.hidden_size, VALUES)

    def forward(self, sequences: Tensor) -> Tensor:
        """Return the logits ``(B, VALUES)`` after the last step of ``sequences`` ``(B, T, KEYS + VALUES)``."""
        output, (_, _) = self.network(sequences)
        return self.name(output[:, -1])


def draw(batch: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return sequences ``(batch, PAIRS + 1, KEYS + VALUES)``, one-hot, and the value that each asks for."""
    keys = torch.rand(batch, KEYS, generator=chance).argsort(1)[:, :PAIRS]  # no key twice
    values = torch.randint(VALUES, (batch, PAIRS), generator=chance)
    asked = torch.randint(PAIRS, (batch, 1), generator=chance)
    shown = torch.cat([F.one_hot(keys, KEYS), F.one_hot(values, VALUES)], dim=-1)
    question = F.pad(F.one_hot(keys.gather(1, asked), KEYS), (0, VALUES))
    return torch.cat([shown, question], dim=1).float(), values.gather(1, asked).squeeze(1)


def learn(model: Recall, steps: int, seed: int) -> float:
    """Train ``model`` and return its accuracy on 2,000 sequences that it has not seen."""
    chance = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        sequences, wanted = draw(64, chance)
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(sequences), wanted))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    sequences, wanted = draw(2000, chance)
    with torch.inference_mode():
        return (model(sequences).argmax(1) == wanted).float().mean().item()


def main() -> None:
    """Train both networks and print what each has learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="batches of 64 sequences (default 600)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    networks: dict[str, nn.LSTM | LSAM] = {
        "LSTM": nn.LSTM(KEYS + VALUES, 68, batch_first=True),
        "LSAM": LSAM(KEYS + VALUES, 80, num_heads=4, batch_first=True),
    }
    for name, network in networks.items():
        begun = time.perf_counter()
        accuracy = learn(Recall(network), options.steps, options.seed)
        size = sum(parameter.numel() for parameter in network.parameters())
        seconds = time.perf_counter() - begun
        print(f"{name}: {size:,} parameters, {accuracy:.1%} of 2,000 new sequences right, {seconds:.0f} s to learn")


if __name__ == "__main__":
    main()

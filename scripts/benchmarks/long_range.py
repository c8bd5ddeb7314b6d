"""Attention over long sequences: softmax, linear and NAM Transformers in training, and token by token, at the same sizes.

    python scripts/benchmarks/long_range.py --lengths 1024 2048 4096

Training: a step (forward, loss, backward, Adam) of an encoder of the size that the NAM paper takes for ListOps and text of the
long-range arena: 4 layers of 4 heads, width 256, hidden layers of 1,024, on bytes, every token attending to all (with erase, which
has an order, to itself and earlier ones). Streaming: one more token after so many, where softmax attention keeps the keys and
values of all tokens and NAM one memory of a fixed size. "x softmax" is how many times as fast as softmax attention in the same run.
Times are of the processor, on one thread.

First, streaming must give what the whole sequence gives at its last token. Softmax attention is torch's
``scaled_dot_product_attention``, which keeps no matrix of scores where it can avoid it; dropout is 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarking import Row, check_same, options_of, print_surroundings, save, surroundings, table, take_turns
from torch import Tensor, nn
from torch.nn import functional as F

import fewshot_nam
from fewshot_nam.memory import NAMTransformerEncoder, NAMTransformerEncoderLayer
from fewshot_nam.sequences.models.linear_transformer import _Layer as LinearLayer

WORDS = 256


class SoftmaxLayer(nn.Module):
    """A layer with softmax attention, normalised first, that can also run token by token with the keys and values it keeps."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.project, self.combine = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """Return the next features of tokens ``(B, T, d)``."""
        q, k, v = self._split(x)
        return self._rest(x, F.scaled_dot_product_attention(q, k, v, is_causal=causal))

    def start(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next features of tokens, causal, and the keys and values to keep, with a free place for one token more."""
        q, k, v = self._split(x)
        features = self._rest(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return features, F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))

    def step(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the next features of one token ``(B, 1, d)``, whose key and value go to the free place."""
        q, k, v = self._split(x)
        keys[:, :, -1:], values[:, :, -1:] = k, v
        return self._rest(x, F.scaled_dot_product_attention(q, keys, values))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = torch.unflatten(self.project(self.norms[0](x)), -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        return q, k, v

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.combine(attended.transpose(1, 2).flatten(2))
        features: Tensor = x + self.narrow(F.gelu(self.widen(self.norms[1](x))))
        return features


class Classifier(nn.Module):
    """An encoder between an embedding of bytes and two classes, read at the mean of all tokens."""

    def __init__(self, width: int, layers: list[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.embed, self.classify = nn.Embedding(WORDS, width), nn.Linear(width, 2)
        self.layers = layers
        self.parts = nn.ModuleList(layer for layer in layers if isinstance(layer, nn.Module))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits ``(B, 2)`` of tokens ``(B, T)``."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.classify(x.mean(dim=1))
        return logits


class NAMStack(nn.Module):
    """Layers of a NAM-Transformer without dropout; causal where they erase."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int, erase: bool) -> None:
        super().__init__()
        options: dict[str, Any] = {"batch_first": True, "norm_first": True, "erase": erase, "activation": "gelu"}
        layer = NAMTransformerEncoderLayer(width, heads, hidden, dropout=0.0, **options)
        self.encoder, self.causal = NAMTransformerEncoder(layer, layers), erase

    def forward(self, x: Tensor) -> Tensor:
        """Return the next features of tokens ``(B, T, d)``."""
        features: Tensor = self.encoder(x, is_causal=self.causal)
        return features


class LinearStack(nn.Module):
    """Layers of a linear Transformer; every token attends to all."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LinearLayer(width, heads, hidden, 0.0, causal=False) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Return the next features of tokens ``(B, T, d)``."""
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        for layer in self.layers:
            x = layer(x, mask)
        return x


def training_steps(width: int, heads: int, layers: int, tokens: Tensor) -> dict[str, Callable[[], None]]:
    """Return, by name, functions that take one training step on ``tokens`` ``(B, T)``."""
    sizes = (width, heads, 4 * width)
    stacks: dict[str, list[Any]] = {
        "softmax": [SoftmaxLayer(*sizes) for _ in range(layers)],
        "linear": [LinearStack(*sizes, layers)],
        "nam": [NAMStack(*sizes, layers, erase=False)],
        "nam, erase": [NAMStack(*sizes, layers, erase=True)],
    }
    answers = torch.arange(len(tokens)) % 2

    def step_of(model: Classifier) -> Callable[[], None]:
        optimiser = torch.optim.Adam(model.parameters(), 1e-4)

        def step() -> None:
            loss = F.cross_entropy(model(tokens), answers)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        return step

    return {name: step_of(Classifier(width, stack)) for name, stack in stacks.items()}


def streams(width: int, heads: int, layers: int, features: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return, by name, functions that take in the last of the tokens ``(B, T, d)``, after all before it."""
    before, last = features[:, :-1], features[:, -1]
    softmax = [SoftmaxLayer(width, heads, 4 * width).eval() for _ in range(layers)]
    kept, x, whole = [], before, features
    for layer in softmax:
        x, keys, values = layer.start(x)
        kept.append((keys, values))
        whole = layer(whole, causal=True)

    def softmax_step() -> Tensor:
        x = last.unsqueeze(1)
        for layer, (keys, values) in zip(softmax, kept, strict=True):
            x = layer.step(x, keys, values)
        return x.squeeze(1)

    check_same("softmax attention, streamed and at once", float((softmax_step() - whole[:, -1]).abs().max()), 1e-3)
    runs: dict[str, Callable[[], Tensor]] = {"softmax": softmax_step}
    for name, erase in (("nam", False), ("nam, erase", True)):
        encoder = NAMStack(width, heads, 4 * width, layers, erase).eval().encoder
        _, state = encoder.extend(before, encoder.init_state(len(features)))
        runs[name] = lambda encoder=encoder, state=state: encoder.step(last, state)[0]  # type: ignore[misc]
        difference = (runs[name]() - encoder(features, is_causal=True)[:, -1]).abs().max()
        check_same(f"{name}, streamed and at once", float(difference), 1e-3)
    return runs


def main() -> None:
    """Check, measure, print a table, and write JSON if asked to."""
    parser = options_of(__doc__, "64 tokens, one repeat, width 16", repeats=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096], help="tokens")
    parser.add_argument("--batch", type=int, default=1, help="sequences of a step (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    options = parser.parse_args()
    width, lengths, repeats = (16, [64], 1) if options.short else (256, options.lengths, options.repeats)
    about = surroundings(options.threads)
    print_surroundings(about)
    rows: list[Row] = []
    for length in lengths:
        torch.manual_seed(0)
        tokens = torch.randint(WORDS, (options.batch, length))
        with fewshot_nam.keep_freed_memory():
            times = take_turns(training_steps(width, 4, options.layers, tokens), repeats, time.process_time)
            with torch.inference_mode():
                runs = streams(width, 4, options.layers, torch.randn(1, length, width))
                single = take_turns(runs, 10 * repeats, time.process_time)
        for what, found in (("training step", times), ("one more token", single)):
            rows += [
                {
                    "tokens": length,
                    "what": what,
                    "attention": name,
                    "ms": time.median * 1e3,
                    "range": time.spread(),
                    "x softmax": found["softmax"].median / time.median,
                }
                for name, time in found.items()
            ]
    print(
        f"\n{options.layers} layers, width {width}, medians of {repeats}, of {10 * repeats} for one token\n{table(rows)}"
    )
    save(options.json, about, vars(options), rows)


if __name__ == "__main__":
    main()

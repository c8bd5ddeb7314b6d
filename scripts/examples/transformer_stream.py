"""A causal NAM-Transformer on a stream: the cost of one more token after many, in time and in memory.

    python scripts/examples/transformer_stream.py

Two encoders of equal size with random weights process one more token after 128, 512, ... tokens, on one core. torch's encoder has
to process all earlier tokens again. Or it could keep keys and values in a cache, which it does not support: timed is one token
through its layers plus softmax attention over such a cache. The NAM-Transformer keeps one matrix for each head and layer and takes
a ``step``. The script first checks that steps give the results of one pass over the whole sequence.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.memory.attention import AttentionState
from fewshot_nam.memory.transformer import NAMTransformerEncoder, NAMTransformerEncoderLayer

WIDTH, HEADS, HIDDEN, LAYERS = 128, 4, 256, 2


def build() -> tuple[NAMTransformerEncoder, nn.TransformerEncoder]:
    """Return the two encoders, built with the same arguments."""
    ours = NAMTransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True, norm_first=True)
    return (
        NAMTransformerEncoder(ours, LAYERS, nn.LayerNorm(WIDTH)).eval(),
        nn.TransformerEncoder(theirs, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False).eval(),
    )


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Return the fastest of ``repeats`` calls."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def largest_difference(encoder: NAMTransformerEncoder, tokens: Tensor) -> float:
    """Return how far the steps over ``tokens`` ``(B, T, WIDTH)`` are from one pass over all of them."""
    state, outputs = encoder.init_state(len(tokens)), []
    for token in tokens.unbind(1):
        output, state = encoder.step(token, state)
        outputs.append(output)
    return (torch.stack(outputs, 1) - encoder(tokens, is_causal=True)).abs().max().item()


@torch.inference_mode()
def main() -> None:
    """Compare, then time, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[128, 512, 2048, 4096], help="tokens that came before"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # which is the slower one here, sevenfold at 2048 tokens
    ours, theirs = build()
    difference = largest_difference(ours, torch.randn(2, 200, WIDTH))
    print(f"200 steps against one pass: largest difference {difference:.1e}")
    if difference > 1e-4:
        raise SystemExit("the steps do not give the numbers of the whole pass")
    print(f"{'tokens':>7}{'NAM state':>12}{'step':>10}{'torch cache':>14}{'cached':>10}{'seen again':>13}")
    for length in options.lengths:
        tokens = torch.randn(1, length + 1, WIDTH)
        token, heads = tokens[:, -1], torch.randn(3, 1, HEADS, length + 1, WIDTH // HEADS)
        _, state = ours.extend(tokens[:, :-1], ours.init_state(1))
        causal = nn.Transformer.generate_square_subsequent_mask(length + 1)

        def step(token: Tensor = token, state: tuple[AttentionState, ...] = state) -> object:
            return ours.step(token, state)

        def cached(token: Tensor = token, heads: Tensor = heads) -> object:
            for _ in range(LAYERS):
                F.scaled_dot_product_attention(heads[0, :, :, -1:], heads[1], heads[2])
            return theirs(token.unsqueeze(1))

        def again(tokens: Tensor = tokens, causal: Tensor = causal) -> object:
            return theirs(tokens, causal, is_causal=True)

        kept = sum(part.nbytes for layer in state for part in layer) / 1024
        cache = LAYERS * heads[1:].nbytes / 1024
        times = [milliseconds(step, 50), milliseconds(cached, 50), milliseconds(again, 3)]
        print(
            f"{length:>7}{kept:>8.0f} KiB{times[0]:>7.2f} ms{cache:>10.0f} KiB{times[1]:>7.2f} ms{times[2]:>10.2f} ms"
        )


if __name__ == "__main__":
    main()

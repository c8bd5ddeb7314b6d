"""One more byte of a language model after 1,024 to 16,384: time and memory of NAM-Transformer, softmax Transformer and LSTM.

    python scripts/benchmarks/streaming.py --positions 1024 4096 16384

The models are those of ``imdb_bytes`` in ``results/sequences``, untrained, with about 460,000 parameters: two layers, width 128.
The softmax Transformer keeps the keys and values of all tokens, in memory that doubles when it is full; NAM keeps a memory of a
fixed size for each head. Times are of the processor, on one thread; "kept" is the size of the state. First, every model must give
token by token what it gives for the whole sequence.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from benchmarking import Row, check_same, options_of, print_surroundings, save, surroundings, table, take_turns
from torch import Tensor

from fewshot_nam.sequences import models, tasks
from fewshot_nam.sequences.models.causal_transformer import KeyValueCache
from fewshot_nam.sequences.training import preset

MODELS = ("transformer-causal", "nam-attention", "nam-attention-erase", "lstm-forward")


class Bytes(tasks.SequenceTask):
    """The vocabulary of ``imdb_bytes``, without its files."""

    name, causal = "imdb_bytes", True
    vocabulary = tuple(map(str, range(258)))


def kept(state: Any) -> int:
    """Return the bytes of all tensors of a state; of a cache those that are in use."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, KeyValueCache):
        assert state._kept is not None
        return kept(state._kept[:, :, :, : state.length])
    if isinstance(state, int):
        return 8
    return sum(kept(part) for part in state)


def main() -> None:
    """Check, measure, print a table, and write JSON if asked to."""
    parser = options_of(__doc__, "after 64 tokens, one repeat", repeats=30)
    parser.add_argument(
        "--positions", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384], help="tokens before"
    )
    options = parser.parse_args()
    positions, repeats = ([64], 1) if options.short else (options.positions, options.repeats)
    about = surroundings(1)
    print_surroundings(about)
    task = Bytes()
    rows: list[Row] = []
    torch.manual_seed(0)
    networks = {name: models.create(name, task, **preset(f"imdb_bytes/{name}").model_options).eval() for name in MODELS}
    with torch.inference_mode():
        short = torch.randint(256, (1, 65))
        for name, model in networks.items():
            state = model.extend(short[:, :-1], model.init_state(1))[1]
            single = model.step(short[:, -1], state)[0]
            check_same(f"{name}, streamed and at once", float((single - model(short)[:, -1]).abs().max()), 1e-3)
        for position in positions:
            tokens = torch.randint(256, (1, position))
            states = {}
            for name, model in networks.items():
                state = model.init_state(1)
                for part in torch.split(tokens, 1024, dim=1):
                    state = model.extend(part, state)[1]
                states[name] = state
            sizes = {name: kept(state) for name, state in states.items()}
            last = tokens[:, -1]
            runs = {name: partial(model.step, last, states[name]) for name, model in networks.items()}
            times = take_turns(runs, repeats, time.process_time)
            rows += [
                {
                    "tokens before": position,
                    "model": name,
                    "ms": found.median * 1e3,
                    "range": found.spread(),
                    "kept, KiB": sizes[name] / 1024,
                }
                for name, found in times.items()
            ]
    print(f"\nmedians of {repeats}\n{table(rows)}")
    save(options.json, about, vars(options), rows)


if __name__ == "__main__":
    main()

"""Compare every few-shot head and every open-set score on the same episodes of frozen features.

One run makes the tables of ``results/comparison.md``: inductive heads, open-set scores on one head, and transductive heads apart.
Settings are chosen on the validation bank (``--tune`` episodes), and then used unchanged on the novel bank.

    python scripts/compare_methods.py --banks DIR/tiny-mobilenet --json results/comparison.json --markdown results/comparison.md

measures at one and at five shots; ``--shots 5`` adds the rows of five to a file that has those of one. It reads
``DIR/tiny-mobilenet-base.safetensors``, ``-val`` and ``-novel``, which ``fewshot-nam-eval --save-features`` writes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import episodes.training.registry  # noqa: F401  registers the trained heads
from episodes import EpisodeSampler, FeatureBank, evaluate, open_bank
from episodes.reporting.formatting import differing_options
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.numbers import whole_number
from fewshot_nam.cli.outputs import add_output
from fewshot_nam.heads import BaseStatistics, Head, create, open_scores
from fewshot_nam.heads.open_scores import OpenScoreHead
from fewshot_nam.heads.open_scores import registry as score_registry
from fewshot_nam.heads.open_scores.registry import split_name
from fewshot_nam.heads.registry import spec, transductive
from fewshot_nam.io.atomic import replacing
from fewshot_nam.io.json_files import read_mapping
from fewshot_nam.io.naming import naming

INNER = "cosine-centred"  # the head that open-set scores are added to
TIMED = 40  # episodes
Settings = Mapping[str, Any]

# Every method with the settings that are tried on validation classes; the heads of this project bring theirs.
INDUCTIVE: dict[str, Mapping[str, Sequence[Any]]] = {
    "nam": {},
    "nam-sequential": {},
    "cosine": {},
    "cosine-centred": {},
    "cosine-snorm": {},
    "lda-snorm": {},
    "plda-snorm": {},
    "protonet": {},
    "nearest": {},
    "ridge": {"ridge": [0.3, 1.0, 3.0]},
    "logistic": {},
    "mahalanobis": {},
    "matching": {"temperature": [0.05, 0.1, 0.2]},
    "finetune": {"temperature": [5.0, 15.0], "steps": [20, 50]},
    "relation": {},
    "feat": {},
}
SCORES: dict[str, Mapping[str, Sequence[Any]]] = {
    "msp": {},
    "energy": {},
    "gen": {"gamma": [0.1, 0.5]},
    "knn": {"neighbours": [1, 2, 3]},
    "rmds": {},
    "rmds-unit": {},
    "vim": {"dimensions": [256, 512]},
    "fdbd": {},
    "nci": {"norm_weight": [0.0, 1e-4, 1e-3]},
}
TRANSDUCTIVE: dict[str, Mapping[str, Sequence[Any]]] = {
    "bd-cspn": {"sharpness": [3.0, 10.0, 20.0]},
    "laplacian-shot": {"laplacian_weight": [0.3, 0.7, 1.5]},
    "pt-map": {"concentration": [5.0, 10.0]},
    "tim": {"temperature": [5.0, 15.0], "rate": [1e-3, 3e-3]},
    "finetune-transductive": {"temperature": [5.0, 15.0], "rate": [1e-5, 3e-5, 1e-4, 3e-4]},
}
MEASURES = ("accuracy", "auroc", "open_fpr@95tpr", "oscr")
NEEDS = {"nothing": "nothing", "mean": "mean base feature", "prototypes": "base prototypes"}


class Bench:
    """The banks, and how a method is made of them."""

    def __init__(self, banks: str, ways: int, queries: int, seed: int) -> None:
        self.base, self.val, self.novel = (
            open_bank(f"{banks}-{role}.safetensors") for role in ("base", "val", "novel")
        )
        self.known: BaseStatistics = self.base.base_statistics()
        self.ways, self.queries, self.seed = ways, queries, seed

    def build(self, name: str, settings: Settings, shots: int) -> Head:
        """Return the head of this name with settings, trained or fitted on base classes where it has to be."""
        head_name, score = split_name(name)
        train = spec(head_name).trainer()
        if train is not None:
            return train(self.base, head_name, self.ways, shots, self.queries, seed=self.seed)
        head = create(head_name, self.known, **({} if score else settings))
        if score is None:
            return head
        return OpenScoreHead(head, open_scores.create(score, **settings)).fit(self.base.features, self.base.labels)

    def results(
        self, bank: FeatureBank, heads: Mapping[str, Head], shots: int, count: int, **options: Any
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Return the measures of heads on episodes of a bank."""
        options = {"open_ways": self.ways, **options}
        found = evaluate(
            bank, heads, ways=self.ways, shots=shots, queries=self.queries, episodes=count, seed=self.seed, **options
        ).results
        return {name: {key: of[key] for key in MEASURES if key in of} for name, of in found.items()}

    def tuned(self, name: str, grid: Mapping[str, Sequence[Any]], shots: int, count: int) -> dict[str, Any]:
        """Return the settings of a grid with the best ``oscr`` on validation classes: right answers that are also accepted."""
        choices = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        if len(choices) == 1:
            return choices[0]
        heads = {str(i): self.build(name, choice, shots) for i, choice in enumerate(choices)}
        found = self.results(self.val, heads, shots, count)
        return choices[int(max(found, key=lambda key: found[key]["oscr"]["mean"]))]

    def cost(self, head: Head, shots: int) -> float:
        """Return microseconds of processor time a query, learning included, with features at hand."""
        drawn = EpisodeSampler(self.novel, self.ways, shots, self.queries, 0, seed=self.seed).sample(0, TIMED)
        support, query = self.novel.features[drawn.support], self.novel.features[drawn.query.flatten(1)]
        spent = []
        with torch.inference_mode():
            for _ in range(3):
                began = time.process_time()
                head.score_episodes(support, query, check=False)
                spent.append(time.process_time() - began)
        return 1e6 * min(spent) / query.shape[:2].numel()

    def needs(self, name: str) -> str:
        """Return what a method has to know besides the support."""
        head_name, score = split_name(name)
        entry = spec(head_name)
        known = [NEEDS[entry.needs] if entry.needs != "nothing" or not entry.uses_base else "base classes, if known"]
        if name in ("nam", "lda-snorm"):
            known = ["base images (their covariance)"]
        if entry.train is not None:
            known = ["base images, to be trained on"]
        if score is not None:
            known.append("base images" if score_registry.spec(score).needs_base else "")
        if transductive(name):
            known.append("all queries at once")
        if len(known) > 1:
            known = [word for word in known if word not in ("nothing", "")]
        return ", ".join(known) or "nothing"


def compare(
    bench: Bench,
    shots: int,
    count: int,
    tune: int,
    only: Sequence[str] | None = None,
    measured: Callable[[dict[str, dict[str, Any]]], None] = lambda rows: None,
) -> dict[str, dict[str, Any]]:
    """Return all rows of one number of shots, or those of the methods named; ``measured`` is called with all rows after each."""
    rows: dict[str, dict[str, Any]] = {}
    groups = {
        "inductive": INDUCTIVE,
        "scores": {f"{INNER}+{score}": grid for score, grid in SCORES.items()},
        "transductive": TRANSDUCTIVE,
    }
    for group, methods in groups.items():
        for name, grid in methods.items():
            if only is not None and name not in only:
                continue
            began = time.perf_counter()
            settings = bench.tuned(name, grid, shots, tune)
            head = bench.build(name, settings, shots)
            row = {
                "group": group,
                "settings": settings,
                "needs": bench.needs(name),
                "cost_us": round(bench.cost(head, shots), 1),
                "open": bench.results(bench.novel, {name: head}, shots, count)[name],
            }
            if group == "transductive" or name in ("nam", INNER):
                closed = {"protocol": "closed", "open_ways": 0}
                row["closed"] = bench.results(bench.novel, {name: head}, shots, count, **closed)[name]
                row["closed, unequal"] = bench.results(bench.novel, {name: head}, shots, count, dirichlet=2, **closed)[
                    name
                ]
            rows[name] = row
            measured(rows)
            print(f"{shots}-shot {name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return rows


def cell(row: Mapping[str, Any], protocol: str, measure: str) -> str:
    """Return a value in percent with its interval, or a dash."""
    value = row.get(protocol, {}).get(measure)
    return "-" if value is None else f"{100 * value['mean']:.1f} ± {100 * value['ci95']:.1f}"


def markdown(found: Mapping[str, Any]) -> str:
    """Return the tables."""
    config = found["config"]
    lines = [
        "# Every head and every open-set score on the same episodes",
        "",
        f"{config['ways']}-way, {config['queries']} queries of each class, {config['ways']} unknown classes beside them, "
        f"{config['episodes']:,} episodes, seed {config['seed']}, frozen features ({config['banks']}). Settings were chosen on "
        f"{config['tune']} episodes of validation classes by `oscr`. Percent, mean ± 95% interval over episodes. *Cost* is "
        "processor time of one core a query, learning included, with features at hand.",
        "",
        f"`{config['command']}`",
    ]
    for shots, rows in found["results"].items():
        by_group = {
            group: {n: r for n, r in rows.items() if r["group"] == group}
            for group in ("inductive", "scores", "transductive")
        }
        lines += ["", f"## {shots}-shot", "", "### Heads", ""]
        lines += ["| head | accuracy | auroc | open_fpr@95tpr | cost, µs | needs |", "|---|---|---|---|---|---|"]
        for name, row in by_group["inductive"].items():
            cells = (cell(row, "open", m) for m in MEASURES[:3])
            lines.append(f"| `{name}` | {' | '.join(cells)} | {row['cost_us']:.0f} | {row['needs']} |")
        lines += ["", f"### Open-set scores, on the answers of `{INNER}`", ""]
        lines += [
            "| score | accuracy | auroc | open_fpr@95tpr | oscr | cost, µs | needs |",
            "|---|---|---|---|---|---|---|",
        ]
        inner = {
            name: row for name, row in by_group["inductive"].items() if name == INNER
        }  # with --only not yet, perhaps
        for name, row in {**inner, **by_group["scores"]}.items():
            cells = (cell(row, "open", m) for m in MEASURES)
            shown = split_name(name)[1] or "none: the largest cosine"
            lines.append(f"| {shown} | {' | '.join(cells)} | {row['cost_us']:.0f} | {row['needs']} |")
        lines += ["", "### Transductive heads, which see all queries at once; two that do not, to compare", ""]
        lines += [
            "| head | accuracy | accuracy, no unknowns | accuracy, unequal classes | auroc | open_fpr@95tpr | cost, µs | needs |",
            "|---|---|---|---|---|---|---|---|",
        ]
        others = {name: by_group["inductive"][name] for name in (INNER, "nam") if name in by_group["inductive"]}
        for name, row in {**by_group["transductive"], **others}.items():
            shown = f"`{name}` (transductive)" if transductive(name) else f"`{name}`"
            values = [cell(row, p, "accuracy") for p in ("open", "closed", "closed, unequal")]
            values += [cell(row, "open", m) for m in ("auroc", "open_fpr@95tpr")]
            lines.append(f"| {shown} | {' | '.join(values)} | {row['cost_us']:.0f} | {row['needs']} |")
    lines += [
        "",
        "`maml` and `anil` have no row: they train the network that makes the features, in episodes of images. On frozen features "
        "what is left of them is a few steps of gradient descent on class weights, which is `finetune`.",
        "",
        "Settings that validation classes chose:",
        "",
    ]
    for shots, rows in found["results"].items():
        chosen = [
            f"`{n}` {', '.join(f'{k} {v}' for k, v in r['settings'].items())}" for n, r in rows.items() if r["settings"]
        ]
        lines.append(f"- {shots}-shot: {'; '.join(chosen)}.")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison and write its files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--banks", required=True, help="what the names of the three banks begin with")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--queries", type=int, default=15)
    parser.add_argument("--episodes", type=whole_number(1, 10_000_000), default=1000)
    parser.add_argument("--tune", type=int, default=100, help="episodes of validation classes for each setting")
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser, "--json", "where the figures go; those that are there are kept", required=True)
    add_output(parser, "--markdown", "write the tables there")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="METHOD",
        help="measure these alone, by their names in --json, and keep its other rows",
    )
    options = parser.parse_args(arguments)
    methods = [*INDUCTIVE, *(f"{INNER}+{score}" for score in SCORES), *TRANSDUCTIVE]
    if unknown := [name for name in options.only or [] if name not in methods]:
        parser.error(f"--only: no method {unknown[0]!r}; there are {', '.join(methods)}")
    bench = Bench(options.banks, options.ways, options.queries, options.seed)
    name = Path(options.banks).name
    differing = differing_options(parser, options, "ways", "queries", "episodes", "tune", "seed")
    command = f"python scripts/compare_methods.py --banks DIR/{name}{differing}"
    words = {word: getattr(options, word) for word in ("ways", "queries", "episodes", "tune", "seed")}
    config = {**words, "banks": name, "command": command}
    results: dict[str, dict[str, Any]] = {}
    if options.json.exists():
        before = read_mapping(options.json, meaning := "holds no rows of this script")
        with naming(options.json, meaning):
            same = {word: before["config"][word] for word in (*words, "banks")} == {**words, "banks": name}
            results = {str(int(shots)): dict(rows) for shots, rows in before["results"].items()}
        if not same:
            parser.error(f"{options.json} has rows of other settings or features: name another file")
    found: dict[str, Any] = {"config": config, "results": results}
    for shots in options.shots:
        kept = results.get(str(shots), {})  # until each is measured again

        def write(rows: dict[str, dict[str, Any]], shots: int = shots, kept: dict[str, Any] = kept) -> None:
            results[str(shots)] = {**kept, **rows}
            found["results"] = {key: results[key] for key in sorted(results, key=int)}
            with replacing(options.json) as unfinished:
                unfinished.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

        compare(bench, shots, options.episodes, options.tune, options.only, write)
        if options.markdown:
            with replacing(options.markdown) as unfinished:
                unfinished.write_text(markdown(found), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

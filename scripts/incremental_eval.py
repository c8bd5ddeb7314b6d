"""Evaluate few-shot heads on classes that keep arriving: a base session, then sessions of new classes with a few images each.

    python scripts/incremental_eval.py --dataset omniglot-fscil --data-dir DIR
    python scripts/incremental_eval.py --dataset folder:photos --base-queries folder:photos/base_unseen --orders 5
    python scripts/incremental_eval.py --dataset features:novel.safetensors --base features:base.safetensors

Prints tables on stdout. A published benchmark (``episodes.data.incremental``) brings its sessions; of other data, orders of the
novel classes are drawn by the seed.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch

import backbones
from episodes.cli.options import with_scores
from episodes.data.incremental import benchmarks, open_sessions
from episodes.evaluation.incremental import DEFAULT_HEADS, evaluate_incremental, session_features
from episodes.evaluation.incremental_report import IncrementalReport
from episodes.features.sources import banks_by_role, sets_by_role
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.options import key_values
from fewshot_nam.cli.outputs import add_output
from fewshot_nam.heads import open_scores
from fewshot_nam.heads.registry import specs

_NOT_PUBLISHED = ("base", "base_queries", "ways", "shots", "sessions", "orders", "queries")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--dataset", default="omniglot-fscil", help=f"{', '.join(benchmarks())}, or as of fewshot-nam-eval"
    )
    made.add_argument("--data-dir", metavar="DIR", help="where the files of the data set are")
    made.add_argument("--base", metavar="SPEC", help="images or features of base classes, where --dataset has none")
    made.add_argument("--base-queries", metavar="SPEC", help="other images of base classes; default: a fifth of them")
    made.add_argument("--backbone", metavar="NAME", help="of images (default: conv4)")
    made.add_argument("--weights", metavar="FILE", help="a weights file, or 'random'")
    made.add_argument("--model-option", nargs="+", metavar="KEY=VALUE", help="options of the model")
    made.add_argument("--transform-option", nargs="+", metavar="KEY=VALUE", help="options of the transform")
    made.add_argument("--ways", type=int, metavar="N", help="classes a session (default: 5)")
    made.add_argument("--shots", type=int, metavar="K", help="images a class (default: 5)")
    made.add_argument("--sessions", type=int, metavar="S", help="sessions after the first (default: as many as fit)")
    made.add_argument("--orders", type=int, metavar="O", help="orders of the classes (default: 5)")
    made.add_argument("--queries", type=int, metavar="Q", help="query images of a novel class (default: all others)")
    made.add_argument(
        "--heads",
        nargs="+",
        metavar="HEAD",
        default=list(DEFAULT_HEADS),
        help=f"among {', '.join(entry.name for entry in specs() if entry.train is None)} (default: %(default)s)",
    )
    made.add_argument(
        "--score",
        nargs="+",
        metavar="SCORE",
        default=[],
        help=f"evaluate every head once more with each open-set score, among {', '.join(open_scores.available())}",
    )
    made.add_argument("--seed", type=int, default=0, help="of the orders (default: %(default)s)")
    add_output(made, "--json", "write all numbers there")
    add_output(made, "--markdown", "write the tables there")
    add_output(made, "--plot", "write the figure there, as PNG", replaces="an image")
    made.add_argument("--quiet", action="store_true", help="show no progress")
    return made


def evaluated(options: argparse.Namespace) -> IncrementalReport:
    """Return the report of what the options name, which says what that is."""
    backbone = options.backbone or "conv4"
    report = _evaluated(options, backbone)
    own = options.dataset.startswith("features:")  # of a backbone that only their file knows
    named = {"dataset": options.dataset} | ({} if own else {"backbone": backbone, "weights": options.weights})
    return dataclasses.replace(report, config={**report.config, **named})


def _evaluated(options: argparse.Namespace, backbone_name: str) -> IncrementalReport:
    common: dict[str, Any] = {
        "heads": with_scores(options.heads, options.score),
        "seed": options.seed,
        "progress": not options.quiet,
    }
    model: dict[str, Any] = {
        "model_options": key_values("--model-option", options.model_option),
        "transform_options": key_values("--transform-option", options.transform_option),
    }
    if options.dataset not in benchmarks():
        sets = sets_by_role(
            options.dataset,
            data_dir=options.data_dir,
            base=options.base,
            base_queries=options.base_queries,
            roles=["novel", "base", "base_queries"],
        )
        if "base" not in sets:
            raise ValueError(f"{options.dataset} has no base classes: give some with --base")
        if options.backbone is not None and options.dataset.startswith("features:"):
            raise ValueError("--backbone: the features are given, so nothing uses it; leave it out")
        banks = banks_by_role(sets, backbone_name, weights=options.weights, progress=not options.quiet, **model).banks
        asked = {name: getattr(options, name) for name in ("ways", "shots", "orders")}
        numbers: dict[str, Any] = {name: 5 if value is None else value for name, value in asked.items()}
        return evaluate_incremental(
            banks["base"],
            banks["novel"],
            base_queries=banks.get("base_queries"),
            **numbers,
            sessions=options.sessions,
            queries=options.queries,
            **common,
        )
    if given := [f"--{name.replace('_', '-')}" for name in _NOT_PUBLISHED if getattr(options, name) is not None]:
        raise ValueError(
            f"{', '.join(given)}: the sessions of {options.dataset} are published as they are; leave it out"
        )
    pretrained = True if options.weights is None else False if options.weights == "random" else options.weights
    backbone = backbones.create(backbone_name, pretrained=pretrained, **model)
    sessions = session_features(backbone, open_sessions(options.dataset, options.data_dir), progress=not options.quiet)
    return evaluate_incremental(sessions=sessions, **common)


def main(arguments: list[str] | None = None) -> int:
    """Evaluate, print the tables, and write the files; return the exit status."""
    options = parser().parse_args(arguments)

    def evaluate_and_write() -> None:
        report = evaluated(options)
        print(report.table(), end="")
        if options.json:
            report.save_json(options.json)
        if options.markdown:
            report.save_markdown(options.markdown)
        if options.plot:
            from episodes.reporting.plots import incremental_figure, save

            title = ", ".join(str(report.config[name]) for name in ("dataset", "backbone") if name in report.config)
            save(lambda: incremental_figure(report, title), options.plot)

    return exit_status(evaluate_and_write)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    raise SystemExit(main())

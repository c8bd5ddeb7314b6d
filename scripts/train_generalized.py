"""Train and compare classifiers of base and novel classes together, the paper's own few-shot setting, on frozen features.

    python scripts/train_generalized.py --dataset omniglot --data-dir DATA --out results/generalized_paper_omniglot

trains base class weights by plain cross-entropy, then each generator of novel ones (averaging, attention, NAM gates, both) in
episodes over base classes, for 1 and 5 shots; tests them beside cosine classifiers and the untrained ``nam`` on the same 600
episodes; and writes OUT.json and OUT.md. A run that was stopped resumes after its last complete epoch.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from episodes.evaluation.generalized import Contender, NovelAndBase, compare
from episodes.features.bank import FeatureBank
from episodes.features.holdout import hold_out
from episodes.features.sources import banks_by_role, sets_by_role
from episodes.reporting.formatting import heading, markdown_table, percent, verdict
from episodes.training.generators import GeneratorRecipe, GeneratorTraining, train_class_weights
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.numbers import whole_number
from fewshot_nam.cli.options import key_values
from fewshot_nam.heads import GeneratorHead, create
from fewshot_nam.heads.generator import Ingredient, Order
from fewshot_nam.io.atomic import replacing
from fewshot_nam.memory.primitives import unit

# Ingredients, order of erasing, and whether the base class weights are trained too or stay the class means.
GENERATORS: dict[str, tuple[Sequence[Ingredient], Order, bool]] = {
    "averaging": ((), "sequential", True),
    "attention": (("attention",), "sequential", True),
    "nam gates": (("write", "erase"), "sequential", True),
    "nam gates, parallel": (("write", "erase"), "parallel", True),
    "nam gates + attention": (("attention", "write", "erase"), "sequential", True),
    "averaging, rows fixed": ((), "sequential", False),
    "nam gates, rows fixed": (("write", "erase"), "sequential", False),
}
COSINES = ("cosine", "cosine-centred", "cosine-root", "cosine-root-centred")
UNTRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in COSINES},
    "nam": ("nam", {}),
    "nam, rows erased": ("nam-parallel", {}),
}
# Names as the Markdown prints them; JSON, --generators and checkpoints keep the keys above.
PRINTED = {
    "averaging, rows fixed": "averaging, fixed class weights",
    "nam gates, rows fixed": "nam gates, fixed class weights",
    "nam, rows erased": "nam, erased class weights",
    "cosine, trained rows": "cosine, trained class weights",
}
COLUMNS = (
    *("joint_accuracy", "base_accuracy:alone", "novel_accuracy:alone", "base_accuracy", "novel_accuracy"),
    *("novel_to_base", "base_to_novel", "harmonic_mean", "harmonic_mean:frozen", "ausuc"),
)
DIFFERENCES = [  # what is added, the head with it, the head without it
    ("training the class weights", "cosine, trained rows", "cosine"),
    ("episodes", "averaging", "cosine, trained rows"),
    ("attention", "attention", "averaging"),
    ("gates", "nam gates", "averaging"),
    ("gates, parallel", "nam gates, parallel", "averaging"),
    ("attention beside gates", "nam gates + attention", "nam gates"),
    ("gates beside attention", "nam gates + attention", "attention"),
    ("gates, class weights fixed at the means", "nam gates, rows fixed", "averaging, rows fixed"),
    ("gates, trained against untrained", "nam gates", "nam, rows erased"),
    ("gates, trained against untrained nam", "nam gates", "nam"),
]
GATES_AGAINST = [
    ("nam gates", "averaging"),
    ("nam gates, parallel", "averaging"),
    ("nam gates + attention", "attention"),
    ("nam gates", "attention"),
    ("nam gates, rows fixed", "averaging, rows fixed"),
]
SHOWN = {f"{ours}-{theirs}" for ours, theirs in [*(row[1:] for row in DIFFERENCES), *GATES_AGAINST]}
AGAINST_COSINES = tuple(f"-{name}" for name in COSINES)


class Banks(NamedTuple):
    """Features to train on, and of classes and base images that nothing here is trained on."""

    base: FeatureBank
    validation: NovelAndBase
    test: NovelAndBase


def banks_of(options: argparse.Namespace) -> Banks:
    """Return the features that the options name; base queries are split in halves for validation and test."""
    sets = sets_by_role(
        options.dataset,
        data_dir=options.data_dir,
        split=options.split,
        seed=options.seed,
        base_queries=options.base_queries,
    )
    missing = [part for part, role in (("base", "base"), ("val", "validation"), ("novel", "novel")) if role not in sets]
    if missing:
        raise SystemExit(f"error: {options.dataset} has no {missing[0]} classes: give --split, say 6/2/2")
    banks = banks_by_role(
        sets,
        options.backbone,
        weights=options.weights,
        model_options=key_values("--model-option", options.model_option),
        transform_options=key_values("--transform-option", options.transform_option),
        progress=True,
    ).banks
    base, queries = banks["base"], banks.get("base_queries")
    if queries is None:
        base, queries = hold_out(base, share=0.25, seed=options.seed)
    tested, validated = hold_out(queries, share=0.5, seed=options.seed)
    return Banks(base, NovelAndBase(banks["validation"], validated), NovelAndBase(banks["novel"], tested))


def base_class_weights(base: FeatureBank, recipe: GeneratorRecipe, path: Path) -> Tensor:
    """Return the class weights of stage 1: from ``path`` if this recipe saved them there, else trained and saved."""
    made = {"recipe": json.dumps(asdict(recipe)), "trained_on": base.fingerprint}
    if path.exists():
        kept = FeatureBank.load(path)
        if kept.provenance != made:
            raise SystemExit(f"error: {path} was made with another recipe or other data: remove it to start again")
        return kept.features
    with tqdm(total=recipe.epochs * recipe.steps, desc="base class weights", leave=False, mininterval=1) as bar:
        class_weights = train_class_weights(base, recipe, on_step=lambda _loss: bar.update())
    path.parent.mkdir(parents=True, exist_ok=True)
    FeatureBank(class_weights, torch.arange(len(class_weights)), base.classes, provenance=made).save(path)
    return class_weights


def trained(
    name: str, class_weights: Tensor, banks: Banks, recipe: GeneratorRecipe, checkpoint: Path
) -> GeneratorTraining:
    """Return the finished training of a generator."""
    ingredients, order, weights_train = GENERATORS[name]
    torch.manual_seed(recipe.seed)
    head = GeneratorHead(class_weights if weights_train else unit(banks.base.class_means()), ingredients, order=order)
    head.base_weights.requires_grad_(weights_train)
    run = GeneratorTraining(head, banks.base, *banks.validation, recipe, checkpoint)
    while run.epoch < recipe.epochs:
        what = f"{name}, {recipe.shots} shots, epoch {run.epoch + 1}/{recipe.epochs}"
        with tqdm(total=recipe.steps, desc=what, leave=False, mininterval=1) as bar:
            line = run.run_epoch(on_step=lambda _loss, bar=bar: bar.update())  # type: ignore[misc]
        print(f"{what}: " + ", ".join(f"{key} {line[key]:.4f}" for key in ("loss", "accuracy", "joint_accuracy")))
    return run


def contenders(banks: Banks, class_weights: Tensor, trainings: dict[str, GeneratorTraining]) -> dict[str, Contender]:
    """Return all heads to compare, each with its base class weights."""
    base, found = banks.base.base_statistics(), {}
    for name, (kind, settings) in UNTRAINED.items():
        head = create(kind, base, **settings)
        found[name] = Contender(head, base.power_means if head.power_normalised else base.prototypes)
    found["cosine, trained rows"] = Contender(create("cosine"), class_weights)
    for name, run in trainings.items():
        best = run.best_head()
        found[name] = Contender(best, best.base_weights)
    return found


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [f"# {report['title']}", "", f"`{report['command']}`", "", *report["notes"]]
    head = ["", *map(_heading, COLUMNS)]
    for shots, found in report["shots"].items():
        results, pairs = found["results"], found["paired"]
        lines += ["", f"## {shots}-shot", ""]
        lines += markdown_table(
            [head, *([_printed(name), *(percent(row[m]) for m in COLUMNS)] for name, row in results.items())]
        )
        lines += [
            "",
            "What each part adds: differences on the same episodes, percentage points; * if the interval excludes 0.",
            "",
        ]
        best = max(COSINES, key=lambda name: results[name]["ausuc"]["mean"])
        compared = [
            (f"{what}: {_printed(ours)} - {_printed(theirs)}", f"{ours}-{theirs}") for what, ours, theirs in DIFFERENCES
        ]
        compared += [
            (f"against the cosine of best ausuc: {_printed(name)} - {best}", f"{name}-{best}")
            for name in results
            if name not in COSINES
        ]
        rows = [
            [label, *(_difference(m, pairs[pair][m]) for m in COLUMNS)] for label, pair in compared if pair in pairs
        ]
        lines += [*markdown_table([head, *rows]), "", *_verdicts(pairs), "", *_openness(found["chosen"])]
    return "\n".join(lines) + "\n"


def _printed(name: str) -> str:
    return PRINTED.get(name, name)


def _heading(measure: str) -> str:
    """Return a measure with its arrow; one among one kind of classes has the arrow of the measure itself."""
    return heading(measure.removesuffix(":alone")).replace(measure.removesuffix(":alone"), measure)


def _difference(measure: str, value: dict[str, float]) -> str:
    return percent(value, signed=True) + ("" if verdict(measure, value) == "even" else " *")


def _verdicts(pairs: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Return a line for each use of the gates: which measures they make better, worse, or leave within the interval."""
    lines = []
    for ours, theirs in GATES_AGAINST:
        verdicts: dict[str, list[str]] = {"better": [], "worse": [], "even": []}
        for measure, value in pairs.get(f"{ours}-{theirs}", {}).items():
            if measure in COLUMNS:
                verdicts[verdict(measure, value)].append(measure)
        said = "; ".join(
            f"{kind.replace('even', 'no different')}: {', '.join(measures)}"
            for kind, measures in verdicts.items()
            if measures
        )
        if said:
            lines.append(f"- {_printed(ours)} beside {_printed(theirs)}: {said}.")
    return lines


def _openness(chosen: dict[str, dict[str, float]]) -> list[str]:
    """Return lines on the mean of the trained gates."""
    lines = []
    for name, line in chosen.items():
        means = [f"{gate} {line[gate]:.2f}" for gate in ("p_write", "p_erase") if gate in line]
        if means:
            lines.append(f"- {_printed(name)}: mean over novel images {', '.join(means)}; epoch {line['epoch']:.0f}.")
    return lines


def chosen_epoch(run: GeneratorTraining, novel: Tensor) -> dict[str, float]:
    """Return the line of the epoch that is kept, with the mean of each gate over ``novel`` features ``(n, D)``."""
    head, keys = run.best_head(), unit(novel.float())
    gates = {"p_write": head.write_gate, "p_erase": head.erase_gate}
    return {**run.best, **{name: gate(keys).mean().item() for name, gate in gates.items() if gate is not None}}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line; every number of the recipe but the shots is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, metavar="SPEC", help="digits, omniglot or folder:PATH")
    parser.add_argument("--data-dir", help="where omniglot is")
    parser.add_argument("--split", metavar="B/V/N", help="of a data set that is not split: base, validation and novel")
    parser.add_argument(
        "--base-queries", metavar="SPEC", help="other images of the base classes (default: a quarter is held out)"
    )
    parser.add_argument("--backbone", default="conv4", metavar="NAME", help="default %(default)s")
    parser.add_argument("--weights", metavar="FILE", help="a weights file (default: the backbone's own)")
    parser.add_argument("--model-option", nargs="+", metavar="KEY=VALUE")
    parser.add_argument("--transform-option", nargs="+", metavar="KEY=VALUE")
    parser.add_argument("--all-shots", nargs="+", type=int, default=[1, 5], metavar="K", help="default 1 5")
    parser.add_argument("--generators", nargs="+", choices=list(GENERATORS), default=list(GENERATORS), metavar="NAME")
    parser.add_argument("--test-ways", type=int, default=5, help="novel classes a test episode; default %(default)s")
    parser.add_argument(
        "--episodes", type=whole_number(1, 10_000_000), default=600, help="test episodes; default %(default)s"
    )
    parser.add_argument("--title", default="Base and novel classes in one label space")
    parser.add_argument("--note", action="append", default=[], metavar="TEXT", help="a line for the report")
    parser.add_argument("--checkpoints", type=Path, help="a directory, by default checkpoints/ and the name of OUT")
    parser.add_argument("--out", type=Path, required=True, help="OUT.json and OUT.md are written")
    for field in fields(GeneratorRecipe):
        if field.name != "shots":
            option = "--" + field.name.replace("_", "-")
            parser.add_argument(option, type=type(field.default), default=field.default, help="default %(default)s")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train, compare and write the two files."""
    options = parse(arguments)
    given = {field.name: getattr(options, field.name) for field in fields(GeneratorRecipe) if field.name != "shots"}
    recipes = {shots: GeneratorRecipe(**given, shots=shots) for shots in options.all_shots}
    banks = banks_of(options)
    folder = options.checkpoints or Path("checkpoints") / options.out.name
    class_weights = base_class_weights(banks.base, GeneratorRecipe(**given), folder / "rows.safetensors")
    report: dict[str, Any] = {
        "title": options.title,
        "command": shlex.join(
            ["python", "scripts/train_generalized.py", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "recipe": given,
        "banks": {
            "base": _described(banks.base),
            "base queries": _described(banks.test.base),
            "validation": _described(banks.validation.novel),
            "novel": _described(banks.test.novel),
        },
        "shots": {},
    }
    report["notes"] = [
        *(f"- {note}" for note in options.note),
        *(
            f"- {role}: {bank['classes']} classes, {bank['pictures']:,} images."
            for role, bank in report["banks"].items()
        ),
        f"- Training: {options.epochs} epochs of {options.steps} steps of {options.batch} episodes; the epoch is chosen by joint",
        f"  accuracy in {options.validation_episodes} episodes of validation classes.",
        f"- Test: {options.episodes} episodes (seed 0) of {options.test_ways} novel classes, {options.validation_queries} queries",
        "  of each and as many of base classes in all; percent, 95% intervals over episodes.",
        "- `:alone`: base (novel) queries classified among base (novel) classes. `:frozen`: novel bias chosen on validation",
        "  classes. Everywhere else the scores are taken as they are.",
    ]
    for shots, recipe in recipes.items():
        trainings = {
            name: trained(name, class_weights, banks, recipe, folder / f"{name} {shots}.pt")
            for name in options.generators
        }
        results, pairs = compare(
            contenders(banks, class_weights, trainings),
            banks.test,
            banks.validation,
            ways=options.test_ways,
            shots=shots,
            queries=recipe.validation_queries,
            episodes=options.episodes,
        )
        chosen = {name: chosen_epoch(run, banks.test.novel.features) for name, run in trainings.items()}
        shown = {pair: value for pair, value in pairs.items() if pair in SHOWN or pair.endswith(AGAINST_COSINES)}
        report["shots"][str(shots)] = {"results": results, "paired": shown, "chosen": chosen}
    for ending, text in ((".json", json.dumps(report, indent=2) + "\n"), (".md", markdown(report))):
        path = options.out.with_name(options.out.name + ending)
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


def _described(bank: FeatureBank) -> dict[str, Any]:
    shape = {"pictures": len(bank), "classes": bank.num_classes, "features": bank.feature_dim}
    return {**bank.provenance, **shape, "fingerprint": bank.fingerprint}


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

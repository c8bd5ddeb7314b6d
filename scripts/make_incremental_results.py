"""Write results/incremental again: ``python scripts/make_incremental_results.py DATA --conv5 FILE --omniglot FILE``.

DATA holds omniglot-py, tiny-imagenet and weights. ``--conv5`` are weights of ``scripts/pretrain_photos.py``, and ``--omniglot``
those of ``scripts/pretrain_omniglot_fscil.py``. ``--only`` writes some of the results. Some heads take minutes an order: with
``--answers`` a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import backbones
from backbones.examples import mobilenetv2
from episodes.data.incremental import open_sessions
from episodes.evaluation.incremental import evaluate_incremental, session_features
from episodes.evaluation.incremental_report import IncrementalReport
from episodes.features.sources import banks_by_role, sets_by_role
from episodes.reporting.plots import incremental_figure, save
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.heads import BaseStatistics, Head, create
from fewshot_nam.io.atomic import replacing

OUT = Path(__file__).resolve().parent.parent / "results" / "incremental"
HEADS = (
    *("nam-recursive", "nam-expanded", "nam", "ncm", "teen", "ranpac", "acil", "air", "klda"),
    *("lda-snorm", "cosine-snorm"),
)
TINY = (
    *(
        "nam-expanded",
        "nam-recursive",
        "nam",
        "ncm",
        "teen",
        "ranpac",
        "ranpac balanced",
        "c-ranpac",
        "acil",
        "air",
        "klda",
    ),
    *("lda-snorm", "cosine-snorm"),
)
COVARIANCES = ("c-fecam", "fecam")  # 0.7 GB and minutes an order with 1,280 features
PUBLISHED_WIDTH = ("ranpac 10,000",)  # two minutes an order
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ranpac 10,000": ("ranpac", {"width": 10_000}),  # as published
    "c-ranpac 10,000": ("c-ranpac", {"width": 10_000}),  # for --heads: over ten minutes an order
    "ranpac balanced": ("ranpac", {"balanced": True}),
}
"""Heads of the registry with other settings than theirs, by the name in the tables."""
SHOWN = ("nam-expanded", "nam-recursive", "ncm", "teen", "c-fecam", "ranpac", "air", "klda")


def made_heads(names: Sequence[str], base: BaseStatistics) -> dict[str, Head]:
    """Return a new head for each name."""
    chosen = {name: VARIANTS.get(name, (name, {})) for name in names}
    return {name: create(head, base, **settings) for name, (head, settings) in chosen.items()}


def tiny(options: argparse.Namespace, backbone: Any, heads: tuple[str, ...], **settings: Any) -> IncrementalReport:
    """Return the report on Tiny ImageNet: 100 base classes, then sessions of 5-way 5-shot; 50 queries of each class."""
    folder = f"folder:{options.data}/tiny-imagenet"
    sets = sets_by_role(
        folder, base_queries=f"{folder}/base_unseen", roles=["novel", "base", "base_queries", "validation"]
    )
    roles = ["base", "base_queries", "validation" if settings.pop("validation", False) else "novel"]
    banks = banks_by_role({role: sets[role] for role in roles}, backbone).banks
    return evaluate_incremental(
        banks["base"],
        banks[roles[-1]],
        base_queries=banks["base_queries"],
        queries=50,
        heads=made_heads(heads, banks["base"].base_statistics()),
        progress=True,
        keep_answers=options.answers,
        **settings,
    )


def omniglot(options: argparse.Namespace, backbone: Any, heads: tuple[str, ...]) -> IncrementalReport:
    """Return the report on Omniglot's published sessions."""
    sessions = session_features(backbone, open_sessions("omniglot-fscil", options.data))
    base = sessions[0].support.base_statistics()
    return evaluate_incremental(
        sessions=sessions, heads=made_heads(heads, base), progress=True, keep_answers=options.answers
    )


def conv5(options: argparse.Namespace) -> Any:
    """Return the network that was trained on the base classes of Tiny ImageNet alone."""
    return backbones.create("conv5", pretrained=options.conv5)


def base_supports(options: argparse.Namespace) -> Any:
    """Return the network that was trained on Omniglot's base supports alone."""
    return backbones.create("conv4", pretrained=options.omniglot, model_options={"width": options.width})


def mobilenet(options: argparse.Namespace) -> Any:
    """Return MobileNetV2, trained on ImageNet."""
    return mobilenetv2(options.data / "weights" / "mobilenetv2_100_imagenet.safetensors")


RESULTS: dict[str, tuple[str, Callable[[argparse.Namespace], IncrementalReport]]] = {
    "tiny-conv5": (
        "Tiny ImageNet, conv5 trained on the base classes alone",
        lambda o: tiny(o, conv5(o), o.heads or (*TINY, *COVARIANCES, *PUBLISHED_WIDTH)),
    ),
    "tiny-mobilenet": (
        "Tiny ImageNet, MobileNetV2; all of these classes were among those that it was trained on",
        lambda o: tiny(o, mobilenet(o), o.heads or (*TINY, *COVARIANCES, *PUBLISHED_WIDTH)),
    ),
    "omniglot-base-supports": (
        "Omniglot's published sessions, conv4 trained on the base supports alone",
        lambda o: omniglot(o, base_supports(o), o.heads or HEADS),
    ),
    "omniglot-bundled": (
        "Omniglot's published sessions, the bundled conv4: NOT comparable with published figures, since it was trained on other "
        "drawings of most base classes, base queries among them",
        lambda o: omniglot(o, backbones.create("conv4"), o.heads or HEADS),
    ),
}


def main() -> None:
    """Write the results that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds omniglot-py, tiny-imagenet and weights")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=RESULTS, default=list(RESULTS), help=", ".join(RESULTS)
    )
    parser.add_argument("--conv5", type=Path, default=Path("checkpoints/conv5.safetensors"))
    parser.add_argument("--omniglot", type=Path, default=Path("checkpoints/conv4_omniglot_fscil.safetensors"))
    parser.add_argument("--width", type=int, default=128, help="of the network of --omniglot (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--heads", nargs="+", metavar="HEAD", help="these alone, by their names in the tables")
    parser.add_argument(
        "--answers", type=Path, metavar="DIR", help="keep the answers of each head there, and read those that are"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        title, run = RESULTS[name]
        report = run(options)
        report.save_json(options.out / f"{name}.json")
        command = (
            f"Made by `python scripts/make_incremental_results.py DATA --conv5 FILE --omniglot FILE --only {name}`."
        )
        with replacing(options.out / f"{name}.md") as unfinished:
            unfinished.write_text(f"# {title}\n\n{command}\n\n{report.markdown()}", encoding="utf-8")
        save(lambda report=report, title=title: incremental_figure(report, title, SHOWN), options.out / f"{name}.png")  # type: ignore[misc]
        print(report.table())


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    raise SystemExit(exit_status(main))

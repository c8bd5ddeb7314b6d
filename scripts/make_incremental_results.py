"""Write results/incremental again: ``python scripts/make_incremental_results.py DATA --conv5 FILE --omniglot FILE``.

DATA holds omniglot-py, tiny-imagenet and weights. ``--conv5`` are weights of ``scripts/pretrain_photos.py``, and ``--omniglot``
those of ``scripts/pretrain_omniglot_fscil.py``. ``--only`` writes some of the results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import backbones
from backbones.examples import mobilenetv2
from episodes.data.incremental import open_sessions
from episodes.evaluation.incremental import IncrementalReport, evaluate_incremental, session_features
from episodes.features.sources import banks_by_role, sets_by_role
from episodes.reporting.plots import incremental_figure, save
from fewshot_nam.io.atomic import replacing

OUT = Path(__file__).resolve().parent.parent / "results" / "incremental"
HEADS = ("nam-recursive", "nam", "ncm", "teen", "ranpac", "acil", "air", "klda")
SLOW = (
    "nam-recursive",
    "ncm",
    "teen",
    "c-ranpac",
    "fecam",
    "c-fecam",
)  # a (D, D) matrix for each class: minutes an order
SHOWN = ("nam-recursive", "nam", "ncm", "teen", "ranpac", "c-fecam", "c-ranpac", "air")


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
        heads=heads,
        progress=True,
        **settings,
    )


def omniglot(options: argparse.Namespace, backbone: Any, heads: tuple[str, ...]) -> IncrementalReport:
    """Return the report on Omniglot's published sessions."""
    sessions = session_features(backbone, open_sessions("omniglot-fscil", options.data))
    return evaluate_incremental(sessions=sessions, heads=heads, progress=True)


def conv5(options: argparse.Namespace) -> Any:
    """Return the network that was trained on the base classes of Tiny ImageNet alone."""
    return backbones.create("conv5", pretrained=options.conv5)


def mobilenet(options: argparse.Namespace) -> Any:
    """Return MobileNetV2, trained on ImageNet."""
    return mobilenetv2(options.data / "weights" / "mobilenetv2_100_imagenet.safetensors")


RESULTS: dict[str, tuple[str, Callable[[argparse.Namespace], IncrementalReport]]] = {
    "tiny-conv5": (
        "Tiny ImageNet, conv5 trained on the base classes alone",
        lambda o: tiny(o, conv5(o), HEADS),
    ),
    "tiny-conv5-covariances": (
        "Tiny ImageNet, conv5: heads that keep a covariance for each class, in fewer orders",
        lambda o: tiny(o, conv5(o), SLOW, orders=2),
    ),
    "tiny-mobilenet": (
        "Tiny ImageNet, MobileNetV2; all of these classes were among those that it was trained on",
        lambda o: tiny(o, mobilenet(o), HEADS),
    ),
    "omniglot-base-supports": (
        "Omniglot's published sessions, conv4 trained on the base supports alone",
        lambda o: omniglot(o, backbones.create("conv4", pretrained=o.omniglot), HEADS),
    ),
    "omniglot-bundled": (
        "Omniglot's published sessions, the bundled conv4: NOT comparable with published figures, since it was trained on other "
        "drawings of most base classes, base queries among them",
        lambda o: omniglot(o, backbones.create("conv4"), ("nam-recursive", "nam", "ncm", "teen", "air")),
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
    parser.add_argument("--out", type=Path, default=OUT)
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
    main()

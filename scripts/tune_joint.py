"""What each part of the joint write over base classes contributes: ``python scripts/tune_joint.py DATA [--conv5 FILE]``.

The generalized protocol on Omniglot's validation classes (backbone ``conv4``) and Tiny ImageNet's (MobileNetV2, and with
``--conv5`` a Conv5 of ``scripts/pretrain_photos.py``), 1 and 5 shots: ``ausuc`` and, in brackets, the harmonic mean at bias 0,
of cosine classifiers, of the NAM head, and of the NAM head with one part changed. Settings were chosen from this table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import backbones
from backbones.examples import mobilenetv2
from episodes import FeatureBank, evaluate
from episodes.features.sources import banks_by_role, sets_by_role
from episodes.reporting.formatting import markdown_table
from fewshot_nam.heads import Head, NAMHead, create
from fewshot_nam.heads.nam import base_attention

COSINES = ["cosine", "cosine-centred", "cosine-root", "cosine-root-centred"]


def validation_sets(data: Path, conv5: Path | None) -> Iterator[tuple[str, dict[str, FeatureBank]]]:
    """Yield the sets of validation classes: a name, and banks by role."""
    characters = sets_by_role("omniglot", data_dir=data, roles=["base", "validation"])
    yield "Omniglot", banks_by_role(characters, "conv4").banks
    unseen = f"folder:{data}/tiny-imagenet/base_unseen"
    objects = sets_by_role(
        f"folder:{data}/tiny-imagenet", base_queries=unseen, roles=["base", "base_queries", "validation"]
    )
    weights = data / "weights" / "mobilenetv2_100_imagenet.safetensors"
    yield "Tiny ImageNet, MobileNetV2", banks_by_role(objects, mobilenetv2(weights)).banks
    if conv5 is not None:
        yield "Tiny ImageNet, Conv5", banks_by_role(objects, backbones.create("conv5", conv5)).banks


def variants() -> Iterator[tuple[str, Head, dict[str, float]]]:
    """Yield a name, a head, and the constants of ``fewshot_nam.heads.nam.base_attention`` to change for it."""
    yield "nam", NAMHead(), {}
    yield "nam, base class weights erased", NAMHead(base_write="erased"), {}
    yield "nam, no prototype memory", NAMHead(prototype_weight=0.0), {}
    yield "nam, no joint write", NAMHead(p_write=0.0, p_erase=0.0, ridge=1e6), {}
    yield "nam, no base-class attention", NAMHead(), {"ATTENTION_WEIGHT": 0.0}
    yield "nam, novel scale 1", NAMHead(), {"NOVEL_SCALE": 1.0}
    for weight in (0.5, 2.0, 3.0):
        yield f"nam, prototype weight {weight:g}", NAMHead(prototype_weight=weight), {}
    for ridge in (0.1, 0.5, 1.0):
        yield f"nam, ridge {ridge:g}", NAMHead(ridge=ridge), {}
    for name, values in (
        ("CENTRING", (0.0, 0.5, 1.0)),
        ("ATTENTION_WEIGHT", (0.15, 0.5)),
        ("SHARPNESS", (15.0, 60.0)),
        ("NOVEL_SCALE", (1.15, 1.5)),
    ):
        for value in values:
            yield f"nam, {name.lower().replace('_', ' ')} {value:g}", NAMHead(), {name: value}


def main() -> None:
    """Evaluate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds omniglot-py, tiny-imagenet and weights")
    parser.add_argument(
        "--conv5", type=Path, metavar="FILE", help="weights of a Conv5 trained on Tiny ImageNet's base classes"
    )
    parser.add_argument("--episodes", type=int, default=200)
    options = parser.parse_args()
    heading, rows = ["head"], dict[str, list[str]]()
    for set_name, banks in validation_sets(options.data, options.conv5):
        known = banks["base"].base_statistics()
        for shots in (1, 5):
            heading.append(f"{set_name}, {shots}-shot")
            changed = [(dict[str, float](), {name: create(name, known) for name in COSINES})]
            changed += [(constants, {name: head}) for name, head, constants in variants()]
            for constants, heads in changed:
                with patch.dict(vars(base_attention), constants):
                    report = evaluate(
                        banks["validation"],
                        heads,
                        "generalized",
                        shots=shots,
                        episodes=options.episodes,
                        base=banks["base"],
                        base_queries=banks.get("base_queries"),
                    )
                for name, found in report.results.items():
                    ausuc, mean = (100 * found[measure]["mean"] for measure in ("ausuc", "harmonic_mean"))
                    rows.setdefault(name, []).append(f"{ausuc:.1f} ({mean:.1f})")
    print("\n".join(markdown_table([heading, *([name, *cells] for name, cells in rows.items())])))


if __name__ == "__main__":
    main()

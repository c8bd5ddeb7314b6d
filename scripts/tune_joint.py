"""What each part of joint base rows is worth, on validation classes: ``python scripts/tune_joint.py DATA [--conv5 FILE]``.

The generalized protocol on Omniglot's validation classes (backbone ``conv4``) and Tiny ImageNet's (MobileNetV2, and with
``--conv5`` a Conv5 of ``scripts/pretrain_photos.py``), 1 and 5 shots: ``ausuc`` and, in brackets, the harmonic mean at bias 0,
of cosine classifiers, of the NAM head, and of the NAM head with one part changed. Settings were chosen from this table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import backbones
from episodes import FeatureBank, evaluate, extract, open_dataset
from fewshot_nam.heads import Head, NAMHead, create
from fewshot_nam.heads.nam import joint_write as joint

COSINES = ["cosine", "cosine-centred", "cosine-root", "cosine-root-centred"]
MOBILENET_TRANSFORM = {"mean": 0.5, "std": 0.5, "input_size": 160, "crop_pct": 1.0, "interpolation": "bilinear"}


class Validation(NamedTuple):
    """Validation classes and the base classes beside them; base queries are held out of the base where there are none."""

    name: str
    bank: FeatureBank
    base: FeatureBank
    base_queries: FeatureBank | None = None


def validation_sets(data: Path, conv5: Path | None) -> Iterator[Validation]:
    """Yield the sets of validation classes."""
    conv4, characters = backbones.create("conv4"), open_dataset("omniglot", data)
    yield Validation("Omniglot", extract(conv4, characters["val"]), extract(conv4, characters["base"]))
    objects = open_dataset(f"folder:{data}/tiny-imagenet")
    unseen = open_dataset(f"folder:{data}/tiny-imagenet/base_unseen")["novel"]
    networks = {
        "Tiny ImageNet, MobileNetV2": backbones.create(
            "timm/mobilenetv2_100",
            data / "weights" / "mobilenetv2_100_imagenet.safetensors",
            model_options={"pad_type": "same"},
            transform_options=MOBILENET_TRANSFORM,
        )
    }
    if conv5 is not None:
        networks["Tiny ImageNet, Conv5"] = backbones.create("conv5", conv5)
    for name, network in networks.items():
        yield Validation(name, *(extract(network, part) for part in (objects["val"], objects["base"], unseen)))


def variants() -> Iterator[tuple[str, Head, dict[str, float]]]:
    """Yield a name, a head, and the constants of ``fewshot_nam.heads.nam.joint_write`` to change for it."""
    yield "nam", NAMHead(), {}
    yield "nam, base rows erased", NAMHead(base_rows="erased"), {}
    yield "nam, no plain memory", NAMHead(plain=0.0), {}
    yield "nam, no joint memory", NAMHead(p_write=0.0, p_erase=0.0, ridge=1e6), {}
    yield "nam, nothing borrowed", NAMHead(), {"BORROW": 0.0}
    yield "nam, no lift", NAMHead(), {"LIFT": 1.0}
    for plain in (0.5, 2.0, 3.0):
        yield f"nam, plain {plain:g}", NAMHead(plain=plain), {}
    for ridge in (0.1, 0.5, 1.0):
        yield f"nam, ridge {ridge:g}", NAMHead(ridge=ridge), {}
    for name, values in (
        ("CENTRE", (0.0, 0.5, 1.0)),
        ("BORROW", (0.15, 0.5)),
        ("SHARPNESS", (15.0, 60.0)),
        ("LIFT", (1.15, 1.5)),
    ):
        for value in values:
            yield f"nam, {name.lower()} {value:g}", NAMHead(), {name: value}


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
    for given in validation_sets(options.data, options.conv5):
        for shots in (1, 5):
            heading.append(f"{given.name}, {shots}-shot")

            def run(heads: dict[str, Head], given: Validation = given, shots: int = shots) -> None:
                report = evaluate(
                    given.bank,
                    heads,
                    "generalized",
                    shots=shots,
                    episodes=options.episodes,
                    base=given.base,
                    base_queries=given.base_queries,
                )
                for name, found in report.results.items():
                    ausuc, mean = (100 * found[measure]["mean"] for measure in ("ausuc", "harmonic_mean"))
                    rows.setdefault(name, []).append(f"{ausuc:.1f} ({mean:.1f})")

            run({name: create(name, given.base.mean(), given.base.class_means(power_norm=True)) for name in COSINES})
            for name, head, constants in variants():
                with patch.dict(vars(joint), constants):
                    run({name: head})
    print(f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

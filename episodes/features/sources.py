"""From words to features: the data sets and the backbone that a user names become feature banks by role.

What ``fewshot-nam-eval`` does with its options, for scripts and notebooks too::

    sets = sets_by_role("omniglot", data_dir="data")
    sources = banks_by_role(sets, "conv4")
    evaluate(sources.banks["novel"], ["nam", "cosine"], base=sources.banks["base"])

The roles are ``novel`` (classes to evaluate on), ``base`` (classes that heads may know beforehand), ``base_queries`` (other images
of the base classes) and ``validation`` (classes for choosing thresholds).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from episodes.data import registry
from episodes.data.datasets import open_dataset
from episodes.data.image_dataset import ImageSet
from episodes.data.splits import Split, apply_split
from episodes.features.bank import FeatureBank, open_bank
from episodes.features.extraction import Backbone, extract
from fewshot_nam.heads import BaseStatistics

ROLES = ("novel", "base", "base_queries", "validation")

_PARTS = {"novel": "novel", "base": "base", "base_queries": "base", "validation": "val"}  # of a data set with parts

Data = ImageSet | FeatureBank


@dataclass(frozen=True)
class Sources:
    """Feature banks by role, and where they come from.

    Attributes:
        banks: a bank for each role that is there, keys from ``ROLES``.
        images: the images that features were extracted from, by role; a role whose features were given has none.
        base_statistics: what the backbone brings of the classes it was trained on, on the CPU; ``None`` where it brings nothing,
            where no backbone was used, or where ``banks`` has base classes, which take precedence.
        notes: what a report should say about the data, one sentence each.
    """

    banks: dict[str, FeatureBank]
    images: dict[str, ImageSet] = field(default_factory=dict)
    base_statistics: BaseStatistics | None = None
    notes: list[str] = field(default_factory=list)


def sets_by_role(
    dataset: str | Data = "digits",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    split: Split | None = None,
    seed: int = 0,
    base: str | Data | None = None,
    base_queries: str | Data | None = None,
    validation: str | Data | None = None,
    roles: Iterable[str] = ROLES,
) -> dict[str, Data]:
    """Return the images, or the features where these are given, of each role. No image is read yet.

    Args:
        dataset: a name of ``episodes.data.registry`` (``"omniglot"``, ``"folder:photos"``, ``"features:bank.safetensors"``), or a
            set of images or a bank. If it has parts ``base``, ``base_queries`` and ``val``, these get the roles base, base_queries
            and validation.
        data_dir: where the files of data sets are; see ``open_dataset``.
        download: whether ``dataset`` may be downloaded.
        split: divides ``dataset`` into base, validation and novel classes; see ``split_classes``.
        seed: which of the splits by counts or fractions.
        base: the base classes, in place of those of ``dataset``; as ``dataset``. Of a data set with parts it is the base part.
        base_queries: other images of the base classes; likewise. Few data sets have such a part of their own.
        validation: the validation classes; likewise, of a data set with parts the ``val`` part.
        roles: which roles to return, where they are there.

    Raises:
        ValueError: an unknown or damaged data set, a split of what is split already, one that leaves no novel classes, or an
            unknown role.

    Example:
        >>> {role: part.classes for role, part in sets_by_role("digits", split="5/0/5").items()}
        {'novel': ['0', '2', '3', '6', '7'], 'base': ['1', '4', '5', '8', '9']}
    """
    roles = list(roles)
    for role in roles:
        if role not in ROLES:
            raise ValueError(f"sets_by_role: unknown role {role!r}, expected some of {', '.join(ROLES)}")
    parts = _parts(dataset, data_dir, download)
    if split is not None:
        if len(parts) > 1:
            raise ValueError(f"split {split}: {dataset} is split already, into {', '.join(parts)}; leave the split out")
        parts = dict(apply_split(parts["novel"], split, seed))  # type: ignore[type-var]
        if "novel" not in parts:
            raise ValueError(f"split {split} leaves no novel classes to evaluate on; give it some")
    chosen: dict[str, Data] = {}
    for role, given in (("novel", None), ("base", base), ("base_queries", base_queries), ("validation", validation)):
        if role not in roles:
            continue
        if given is not None:
            other = _parts(given, data_dir, download=False)
            chosen[role] = other.get(role, other.get(_PARTS[role], other["novel"]))
        else:
            part = role if role == "base_queries" else _PARTS[role]
            if part in parts:
                chosen[role] = parts[part]
    return chosen


def banks_by_role(
    data: str | Data | Mapping[str, Data] = "digits",
    backbone: str | Backbone = "conv4",
    *,
    weights: str | os.PathLike[str] | None = None,
    model_options: Mapping[str, Any] | None = None,
    transform_options: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    workers: int = 0,
    cache_dir: str | os.PathLike[str] | None = "auto",
    skip_unreadable: bool = False,
    progress: bool = False,
    precision: str = "float32",
    channels_last: bool = False,
) -> Sources:
    """Return the features of images by role, extracted by a backbone or read from the cache.

    Args:
        data: what ``sets_by_role`` returns, or what its ``dataset`` may be. Banks are taken as they are.
        backbone: a name for ``backbones.create``, or a backbone. It is not made where all features are given.
        weights: a weights file, ``"random"``, or ``None`` for the backbone's own, which timm and torchvision download.
        model_options: of the network, say ``{"pad_type": "same"}``; see ``backbones.create``.
        transform_options: of the transform, say ``{"input_size": 160}``; likewise.
        device: where the backbone runs, ``"cpu"`` or ``"cuda"``.
        workers: processes that read images; see ``extract`` for this and what follows.
        cache_dir: where features are kept; ``None`` for nowhere.
        skip_unreadable: leave out images that cannot be read, and say so in ``notes``.
        progress: whether to show a bar.
        precision: ``"float32"`` or ``"bfloat16"``.
        channels_last: lay images and weights out with channels last.

    Raises:
        ValueError, OSError, ImportError: as ``backbones.create`` and ``extract`` raise; or weights and options that nothing would
            use, because all features are given or the backbone is.

    Example:
        >>> sources = banks_by_role("digits", weights="random", cache_dir=None)
        >>> sources.banks["novel"]
        FeatureBank(1797 items, 10 classes, 64 features, float32)
    """
    parts = data if isinstance(data, Mapping) else sets_by_role(data)
    images = {role: part for role, part in parts.items() if not isinstance(part, FeatureBank)}
    given = {"weights": weights, "model_options": model_options, "transform_options": transform_options}
    unused = next((name for name, value in given.items() if value), None)
    if unused and (not images or not isinstance(backbone, str)):
        why = "the features are given, so no backbone is used" if not images else "the backbone is given already"
        raise ValueError(f"{unused.replace('_', ' ')}: {why}; leave this out")
    banks = {role: part for role, part in parts.items() if isinstance(part, FeatureBank)}
    if not images:
        return Sources(banks)
    if isinstance(backbone, str):
        import backbones  # a user who has features needs no backbones

        backbone = backbones.create(
            backbone,
            pretrained=True if weights is None else False if weights == "random" else weights,
            model_options=model_options,
            transform_options=transform_options,
            device=device,
        )
    notes = []
    for role, part in images.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="extract: left out")  # becomes a note, with the whole list
            banks[role] = extract(
                backbone,
                part,
                workers=workers,
                device=device,
                cache_dir=cache_dir,
                skip_unreadable=skip_unreadable,
                progress=progress,
                precision=precision,
                channels_last=channels_last,
            )
        skipped = banks[role].skipped
        if skipped:
            notes.append(f"{len(skipped)} unreadable images of {part.name} are left out: {', '.join(skipped)}")
    base: BaseStatistics | None = getattr(backbone, "base_statistics", None)
    if base is None or "base" in banks:
        return Sources(banks, images, None, notes)
    notes.append(f"base classes: the {len(base)} that the backbone was trained on")
    return Sources(banks, images, base.to("cpu"), notes)


def _parts(data: str | Data, data_dir: str | os.PathLike[str] | None, download: bool) -> dict[str, Data]:
    """Return the parts of a data set under ``"base"``, ``"val"`` and ``"novel"``."""
    if not isinstance(data, str):
        return {"novel": data}
    if registry.find(data)[0].holds_features:
        return {"novel": open_bank(data)}
    return dict(open_dataset(data, data_dir, download))

"""The heads by name: how each is made, what it needs to know of base classes, and what else the toolkit asks about it.

A new head is a file beside this one and an entry here. Heads of other packages are added by ``register``. Importing this module
imports no head and no torch, so that ``--help`` of a command can list the heads at once.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from fewshot_nam._deprecation import warn_renamed
from fewshot_nam.heads.open_scores import registry as open_scores

if TYPE_CHECKING:
    from torch import Tensor

    from fewshot_nam.heads.base import Head
    from fewshot_nam.heads.base_statistics import BaseStatistics

Needs = Literal["nothing", "mean", "prototypes"]


@dataclass(frozen=True)
class HeadSpec:
    """A head in the registry.

    Attributes:
        name: what ``create``, tables and the command line call it.
        build: the class of the head, or a function that returns one; called with ``settings`` and the caller's options. It may be
            given as ``"module:name"``, to be imported when it is used.
        summary: one line on what the head is.
        settings: keyword arguments that are part of the definition.
        needs: what must be known of base classes: nothing, their mean feature, or their prototypes.
        uses_base: whether ``create`` passes ``base=`` on where it is given.
        exports: whether a model with this head can be written as ONNX (``fewshot_nam.vision.export``); ``build`` is the head's
            class then, and ``Head._export_tensors`` and ``Head._from_export`` fit what its ``_learn`` returns.
        transductive: whether the scores of a query depend on the other queries of its batch; tables mark such heads.
        requires: the optional package that the head needs, as it is imported; ``None`` for none.
        train: for a head that is trained on episodes of base classes before it is used: the function that does it, called by
            ``episodes.evaluate`` as ``train(base_bank, name, ways, shots, queries, seed=seed)``. ``create`` refuses such a head.
            It may be given as ``"module:name"`` too.
    """

    name: str
    build: str | Callable[..., Head]
    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: Needs = "nothing"
    uses_base: bool = False
    exports: bool = False
    transductive: bool = False
    requires: str | None = None
    train: str | Callable[..., Head] | None = None

    def __post_init__(self) -> None:
        if self.needs != "nothing" and not self.uses_base:
            raise ValueError(f"HeadSpec {self.name!r}: needs={self.needs!r} takes uses_base=True")
        if self.exports and not isinstance(self.build, type | str):
            raise ValueError(f"HeadSpec {self.name!r}: exports=True takes the head's class for build")

    def builder(self) -> Callable[..., Head]:
        """Return ``build``, imported where it was given by name."""
        return _imported(self.build)

    def trainer(self) -> Callable[..., Head] | None:
        """Return ``train``, imported where it was given by name; ``None`` for a head that needs no training."""
        return None if self.train is None else _imported(self.train)


def _imported(function: str | Callable[..., Head]) -> Callable[..., Head]:
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    found: Callable[..., Head] = getattr(import_module(module), name)
    return found


_SPECS: dict[str, HeadSpec] = {}


def register(spec: HeadSpec) -> HeadSpec:
    """Add a head to the registry; return its entry.

    Registering an equal entry again changes nothing.

    Raises:
        ValueError: the name is taken by another head.
    """
    if _SPECS.setdefault(spec.name, spec) != spec:
        raise ValueError(f"register: there is a head {spec.name!r} already: choose another name")
    return spec


def specs() -> list[HeadSpec]:
    """Return all entries in the order of registration, those of trained heads included."""
    return list(_SPECS.values())


def spec(name: str) -> HeadSpec:
    """Return the entry of a head.

    Raises:
        ValueError: no head has this name.
    """
    if name not in _SPECS:
        near = difflib.get_close_matches(name, _SPECS, n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no head {name!r}{hint} There are: {', '.join(_SPECS)}")
    return _SPECS[name]


def available() -> dict[str, str]:
    """Return the names of the heads that ``create`` makes, each with a line on what it is."""
    return {entry.name: entry.summary for entry in specs() if entry.train is None}


def needs_base(name: str) -> bool:
    """Return whether the head ``name``, or its open-set score, needs something known of base classes.

    Names that are not in the registry need nothing: ``create`` refuses them.
    """
    name, score = open_scores.split_name(name)
    scored = score is not None and score in open_scores.available() and open_scores.spec(score).needs_base
    return scored or (name in _SPECS and _SPECS[name].needs != "nothing")


def transductive(name: str) -> bool:
    """Return whether the scores of the head ``name`` depend on the other queries of a batch; with an open-set score too."""
    name, _ = open_scores.split_name(name)
    return name in _SPECS and _SPECS[name].transductive


def exportable(head: Head) -> bool:
    """Return whether a head is of a class that can be exported, by the registry."""
    return any(entry.exports and type(head) is entry.builder() for entry in specs())


def create(
    name: str,
    base: BaseStatistics | None = None,
    background: Tensor | None = None,
    *,
    mean: Tensor | None = None,
    **options: Any,
) -> Head:
    """Return a new head by name.

    Args:
        name: one of ``available()``; or such a name, "+" and that of an open-set score (``open_scores.available()``): the head then
            accepts its answers by that score (``OpenScoreHead``).
        base: what is known of base classes. Only heads that are defined by it or improve with it (``HeadSpec.uses_base``) take
            it; the others are made without.
        background: deprecated, use ``base``: prototypes ``(B, D)``.
        mean: deprecated, use ``base``: the mean base feature ``(D,)``.
        options: settings of the head's class, such as ``ridge``.

    Raises:
        ValueError: an unknown name, a head that needs ``base`` without it, a head that has to be trained first, or settings that
            the head refuses.
        ImportError: the head needs a package that is not installed.

    Example:
        >>> import torch
        >>> from fewshot_nam.heads import BaseStatistics, create
        >>> base = BaseStatistics.from_prototypes(torch.eye(4) + 0.1)
        >>> create("cosine-centred", base=base).write(torch.eye(4)[:2], ["cat", "dog"]).predict(torch.eye(4)[1])
        'dog'
        >>> create("cosine-centred")
        Traceback (most recent call last):
        ...
        ValueError: the head 'cosine-centred' subtracts the mean base feature, and none is known: give base=
    """
    from torch import Tensor

    from fewshot_nam.heads.base_statistics import base_from_old_words

    name, score = open_scores.split_name(name)
    if score is not None:
        from fewshot_nam.heads.open_scores.head import OpenScoreHead

        scored = open_scores.create(score)
        return OpenScoreHead(create(name, base, background, mean=mean, **options), scored)
    entry = spec(name)
    if isinstance(base, Tensor):  # the second parameter of version 0.1
        base, mean = None, base
    if background is not None or mean is not None:
        if base is not None:
            raise TypeError("create: mean= and background= are old words for base=: give base alone")
        old = [word for word, value in (("mean", mean), ("background", background)) if value is not None]
        warn_renamed(f"create: {' and '.join(f'{word}=' for word in old)}", "base=BaseStatistics")
        base = base_from_old_words(mean, background)
    if entry.train is not None:
        raise ValueError(
            f"the head {name!r} has to be trained on episodes of base classes first: episodes.evaluate does it"
        )
    if entry.needs == "mean" and base is None:
        raise ValueError(f"the head {name!r} subtracts the mean base feature, and none is known: give base=")
    if entry.needs == "prototypes" and not base:
        raise ValueError(f"the head {name!r} needs the prototypes of base classes, and none are known: give base=")
    if entry.requires is not None and importlib.util.find_spec(entry.requires) is None:
        raise ImportError(f"the head {name!r} needs the package {entry.requires}, which is not installed")
    if entry.uses_base and base is not None and (entry.needs != "nothing" or len(base)):
        options.setdefault("base", base)
    try:
        return entry.builder()(**{**entry.settings, **options})
    except TypeError as error:
        raise ValueError(f"the head {name!r} cannot take these settings: {error}") from None


# Constants of the heads that nam is compared with, chosen as its own: on the same validation classes, with as many trials.
COSINE_SNORM = {
    "centre_share": 0.7,
    "identity_share": 1.0,
    "norm_exponent": 0.15,
    "cohort_temperature": 0.08,
    "query_cohort_weight": 0.4,
    "class_cohort_weight": 0.3,
    "log_partition_penalty": 0.3,
    "temperature": 0.02,
}
LDA_SNORM = {
    "identity_share": 0.95,
    "cohort_temperature": 0.1,
    "query_cohort_weight": 0.6,
    "class_cohort_weight": 0.3,
    "log_partition_penalty": 0.2,
    "temperature": 0.03,
}

for _entry in (
    HeadSpec(
        "nam",
        "fewshot_nam.heads.nam.head:NAMHead",
        "Neural Attention Memory: a joint write in the space of base classes, with score normalisation",
        uses_base=True,
        exports=True,
    ),
    HeadSpec(
        "nam-sequential",
        "fewshot_nam.heads.nam.write_rule:WriteRuleHead",
        "the paper's rule: one prototype written after another",
        {"mode": "sequential"},
        exports=True,
    ),
    HeadSpec(
        "nam-parallel",
        "fewshot_nam.heads.nam.write_rule:WriteRuleHead",
        "the paper's rule with every prototype erased from the same earlier memory",
        {"mode": "parallel"},
        exports=True,
    ),
    HeadSpec(
        "nam-recursive",
        "fewshot_nam.heads.nam.recursive:NAMRecursiveHead",
        "the joint write as recursive least squares: a key for each class, no image is kept but the first",
        uses_base=True,
    ),
    HeadSpec(
        "nam-expanded",
        "fewshot_nam.heads.nam.recursive:NAMRecursiveHead",
        "nam-recursive, with 2,000 fixed random features beside the space of base classes once their images are learned",
        {"settings": {"random_features": 2000}},
        uses_base=True,
    ),
    HeadSpec("cosine", "fewshot_nam.heads.cosine:CosineHead", "cosine to the class prototypes", exports=True),
    HeadSpec(
        "cosine-centred",
        "fewshot_nam.heads.cosine:CosineHead",
        "cosine after subtracting the mean base feature (CL2N)",
        needs="mean",
        uses_base=True,
        exports=True,
    ),
    HeadSpec(
        "cosine-root",
        "fewshot_nam.heads.cosine:CosineHead",
        "cosine of power-normalised features",
        {"power_norm": True},
        exports=True,
    ),
    HeadSpec(
        "cosine-root-centred",
        "fewshot_nam.heads.cosine:CosineHead",
        "cosine of power-normalised features, centred by their mean over base classes",
        {"power_norm": True},
        needs="prototypes",
        uses_base=True,
        exports=True,
    ),
    HeadSpec(
        "cosine-msp",
        "fewshot_nam.heads.cosine:CosineHead",
        "cosine, accepted by its largest softmax probability",
        {"log_partition_penalty": 1.0, "temperature": 1.0},
        exports=True,
    ),
    HeadSpec(
        "cosine-snorm",
        "fewshot_nam.heads.score_norm:ScoreNormHead",
        "cosine of power-normalised, centred features with nam's score normalisation and penalty: nam without its memory and space",
        {"settings": COSINE_SNORM},
        needs="prototypes",
        uses_base=True,
        exports=True,
    ),
    HeadSpec(
        "lda-snorm",
        "fewshot_nam.heads.score_norm:ScoreNormHead",
        "the same in the space whitened within classes: nam without its memory",
        {"settings": LDA_SNORM},
        needs="prototypes",
        uses_base=True,
        exports=True,
    ),
    HeadSpec("ncm", "fewshot_nam.heads.ncm:NCMHead", "cosine to the mean feature of each class"),
    HeadSpec(
        "teen",
        "fewshot_nam.heads.teen:TEENHead",
        "the same, means of new classes moved towards base classes like them",
        needs="prototypes",
        uses_base=True,
    ),
    HeadSpec("fecam", "fewshot_nam.heads.fecam:FeCAMHead", "Mahalanobis distance under each class's own covariance"),
    HeadSpec(
        "c-fecam",
        "fewshot_nam.heads.fecam:FeCAMHead",
        "the same, mean and covariance of new classes calibrated by base classes",
        {"calibrated": True},
    ),
    HeadSpec("ranpac", "fewshot_nam.heads.ranpac:RanPACHead", "ridge regression over random features"),
    HeadSpec(
        "c-ranpac",
        "fewshot_nam.heads.ranpac:RanPACHead",
        "the same, new classes learned from features drawn by calibrated statistics",
        {"calibrated": True},
    ),
    HeadSpec(
        "acil",
        "fewshot_nam.heads.ranpac:RanPACHead",
        "recursive ridge regression onto one-hot classes",
        {"width": 0, "power_norm": True},
    ),
    HeadSpec(
        "air",
        "fewshot_nam.heads.ranpac:RanPACHead",
        "the same, every class counting equally",
        {"width": 0, "power_norm": True, "balanced": True},
    ),
    HeadSpec("klda", "fewshot_nam.heads.klda:KLDAHead", "linear discriminant analysis over random Fourier features"),
    HeadSpec("protonet", "fewshot_nam.heads.protonet:ProtoNetHead", "Euclidean distance to the class prototypes"),
    HeadSpec("nearest", "fewshot_nam.heads.nearest:NearestHead", "cosine to the nearest support image"),
    HeadSpec("ridge", "fewshot_nam.heads.ridge:RidgeHead", "ridge regression"),
    HeadSpec(
        "logistic",
        "fewshot_nam.heads.logistic:LogisticHead",
        "logistic regression (scikit-learn)",
        {"inverse_penalty": 10.0},
        requires="sklearn",
    ),
    HeadSpec(
        "mahalanobis",
        "fewshot_nam.heads.mahalanobis:MahalanobisHead",
        "nearest class mean under the shrunk pooled covariance of the support",
    ),
    HeadSpec(
        "mahalanobis-diagonal",
        "fewshot_nam.heads.mahalanobis:MahalanobisHead",
        "a Gaussian for each class with shrunk variances: PEELER's score without its training",
        {"covariance": "diagonal"},
    ),
    HeadSpec(
        "plda",
        "fewshot_nam.heads.plda:PLDAHead",
        "likelihood ratio of class to any class: Gaussians, covariance from base prototypes",
        needs="prototypes",
        uses_base=True,
    ),
    HeadSpec(
        "plda-snorm",
        "fewshot_nam.heads.plda_snorm:PLDASNormHead",
        "plda with the score normalisation and penalty that nam has",
        needs="prototypes",
        uses_base=True,
    ),
    HeadSpec(
        "matching",
        "fewshot_nam.heads.matching:MatchingHead",
        "attention over the support by cosine (Matching Networks without context embeddings)",
        uses_base=True,
    ),
    HeadSpec(
        "finetune",
        "fewshot_nam.heads.finetune:FinetuneHead",
        "prototypes fine-tuned by gradient descent on the support",
        uses_base=True,
    ),
    HeadSpec(
        "finetune-transductive",
        "fewshot_nam.heads.finetune:FinetuneHead",
        "the same, and the entropy of the queries' predictions is lowered too",
        {"conditional_entropy_weight": 1.0},
        uses_base=True,
        transductive=True,
    ),
    HeadSpec(
        "tim",
        "fewshot_nam.heads.finetune:FinetuneHead",
        "TIM: mutual information of queries and their predictions is raised",
        {"cross_entropy_weight": 0.1, "conditional_entropy_weight": 0.1, "marginal_entropy_weight": 1.0},
        uses_base=True,
        transductive=True,
    ),
    HeadSpec(
        "bd-cspn",
        "fewshot_nam.heads.bd_cspn:BDCSPNHead",
        "BD-CSPN: prototypes rectified by pseudo-labelled queries",
        uses_base=True,
        transductive=True,
    ),
    HeadSpec(
        "laplacian-shot",
        "fewshot_nam.heads.laplacian_shot:LaplacianShotHead",
        "LaplacianShot: neighbouring queries are given the same class",
        uses_base=True,
        transductive=True,
    ),
    HeadSpec(
        "pt-map",
        "fewshot_nam.heads.pt_map:PTMAPHead",
        "PT-MAP: optimal transport of queries to classes of equal size",
        transductive=True,
    ),
):
    register(_entry)

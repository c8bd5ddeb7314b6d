"""The contract of every few-shot head: write classes, forget them, score features; one image at a time or by episodes.

A head keeps what it was given (support features, prototypes of base classes) as buffers and derives the rest from it. So a
class can be added or forgotten at any time, and the head is the same as a new one that was given what is left.

Legend: ``E`` episodes, ``N`` ways, ``K`` shots, ``Q`` queries, ``D`` features, ``n`` support features, ``B`` base classes,
``C = B + N`` columns of scores, base classes first.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fewshot_nam._deprecation import renamed_attribute
from fewshot_nam.heads.calibration import CalibratedHead
from fewshot_nam.heads.duplicates import first_equal
from fewshot_nam.heads.power_norm import power_normalise
from fewshot_nam.heads.state import BUFFERS, Computation, Snapshot, appended, changes, whole
from fewshot_nam.heads.validation import Label, as_labels, check_type, checked_vectors, listed
from fewshot_nam.memory.torch_modes import autocasts, full_precision

HeadT = TypeVar("HeadT", bound="Head")


_MOST_ADDED = 64  # features: for more of them than this, all is derived again rather than extended
_ROWS = 4096  # features summed at a time
_FOLDS = 20  # times that shots are left out
_LARGEST_ONE_HOT = 1 << 20  # numbers in a one-hot matrix; a larger one is slower to multiply with than sums by index


class Support(NamedTuple):
    """What a head learns from, for ``E`` episodes at once.

    Attributes:
        features: ``(E, n, D)``, at least one of every class from column ``B`` to ``C - 1``, which first occur in that order.
        targets: ``(n,)`` long, the column of each feature.
        base: ``(B, D)``, prototypes of classes known beforehand, columns ``0`` to ``B - 1``; ``B`` may be 0.
        columns: ``C``, the number of classes.
        sums: of all shots, by a head that does not keep them and has one feature a class here: means ``(1, N, W)``, counts
            ``(N,)`` and sum of products ``(D, D)``, as ``fewshot_nam.heads.nam.shot_sums`` gives them; ``None``: all are here.
    """

    features: Tensor
    targets: Tensor
    base: Tensor
    columns: int
    sums: tuple[Tensor, Tensor, Tensor] | None = None

    def one_hot(self) -> Tensor:
        """Return ``(n, C)``, 1 where a feature is of a class and 0 elsewhere, in the dtype of the features."""
        columns = torch.arange(self.columns, device=self.targets.device)
        return (self.targets.unsqueeze(-1) == columns).to(self.features.dtype)

    def class_means(self, features: Tensor) -> Tensor:
        """Return ``(E, N, D)``, the mean over each written class of ``features`` ``(E, n, D)``, ordered as ``self.features``."""
        novel = self.columns - len(self.base)
        if features.shape[1] == novel:  # one shot each, in the order of the columns
            return features
        if len(self.targets) * novel > _LARGEST_ONE_HOT:
            counts = torch.bincount(self.targets, minlength=self.columns)[len(self.base) :]
            return self.class_sums(features) / counts.to(features).unsqueeze(-1)
        members = self.one_hot()[:, len(self.base) :]
        return (members / members.sum(dim=0)).mT @ features

    def class_sums(self, features: Tensor) -> Tensor:
        """Return ``(E, N, D)``, the sum over each written class of ``features`` ``(E, n, D)``, ordered as ``self.features``."""
        sums = features.new_zeros(len(features), self.columns - len(self.base), features.shape[-1])
        return sums.index_add(1, self.targets - len(self.base), features)

    def all_targets(self) -> Tensor:
        """Return ``(B + n,)``, the columns of what ``with_base`` gives for base classes and support features."""
        base = torch.arange(len(self.base), device=self.targets.device)
        return torch.cat([base, self.targets]) if len(self.base) else self.targets

    def with_base(self, base: Tensor, novel: Tensor) -> Tensor:
        """Return ``(E, C, D)``: ``base`` ``(B, D)``, the same in every episode, then ``novel`` ``(E, N, D)``."""
        return torch.cat([base.expand(len(novel), -1, -1), novel], dim=1) if len(base) else novel


def places_in_class(targets: Tensor) -> Tensor:
    """Return ``(n,)`` long, the place of each image among those of its class, for classes ``(n,)`` from 0.

    Example:
        >>> places_in_class(torch.tensor([1, 0, 1, 1])).tolist()
        [0, 0, 1, 2]
    """
    counts, order = torch.bincount(targets), torch.argsort(targets, stable=True)
    place = torch.empty_like(targets)
    place[order] = torch.arange(len(targets), device=targets.device) - (counts.cumsum(0) - counts)[targets[order]]
    return place


class Head(CalibratedHead):
    """A classifier that learns classes from a few features each, without training.

    Subclasses give ``_learn``, what is derived from the support (prototypes, a memory, ...), and ``_score``; or in place of
    ``_score``, where scores follow from products of a query with class weights and from its length, ``_class_weights`` and
    ``_scores_from``.

    Such a class may opt in to gather-free scoring (``fewshot_nam.heads.gather_free_scoring``), which scores episodes about twice
    as fast: ``class MyHead(Head, gather_free=True)``. It states that ``score_episodes`` gives what ``_learn``, ``_class_weights``
    and ``_scores_from`` give, and that ``_transform`` is all that is done to features first, but for scaling them to length 1,
    unless it ``embeds_beforehand``. Classes derived from it do not inherit this: they opt in themselves.

    What is done to each feature by itself (``_embed``) may be costly. A class with ``embeds_beforehand = True`` has this done once
    for all images of a bank, before episodes are scored.

    Attributes:
        gather_free: whether the class opted in.

    Args:
        base: what is known of base classes: their mean is subtracted from every feature first; ``None`` subtracts nothing.
    """

    # What subclasses give.

    def _learn(self, support: Support) -> Any:
        """Return whatever ``_score`` needs, derived from the support (already embedded)."""
        raise NotImplementedError

    def _score(self, learned: Any, query: Tensor) -> Tensor:
        """Return scores ``(E, Q, C)`` of queries ``(E, Q, D)`` (already embedded)."""
        products = query @ self._class_weights(learned).mT
        # Dividing the few scores by the length is the same as, and cheaper than, dividing the many features.
        return self._scores_from(learned, products, torch.linalg.vector_norm(query, dim=-1, keepdim=True))

    def _class_weights(self, learned: Any) -> Tensor:
        """Return the class weights ``(E, C, D)`` that queries are multiplied with."""
        raise NotImplementedError

    def _scores_from(self, learned: Any, products: Tensor, lengths: Tensor) -> Tensor:
        """Return scores ``(E, Q, C)`` from products of queries with class weights, and the queries' lengths ``(E, Q, 1)``."""
        raise NotImplementedError

    # Gather-free scoring, for classes that opt in.

    gather_free = False
    embeds_beforehand = False

    def __init_subclass__(cls, gather_free: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.gather_free = gather_free

    @property
    def power_normalised(self) -> bool:
        """Whether features are power-normalised, so that power means are better base prototypes than means."""
        return False

    rooted = renamed_attribute("rooted", "power_normalised")

    # Export (``fewshot_nam.vision.export``), for classes that are registered with ``exports=True``. What is here is enough where
    # ``_learn`` returns one tensor ``(E, C, ...)``; other classes override all of ``_export_tensors`` and ``_from_export``.

    _per_class: tuple[str, ...] = ("memory",)
    """Which of the exported tensors have one row for each class."""

    def _export_tensors(self, learned: Any) -> dict[str, Tensor]:
        """Return what the graph takes as input, by name, from what was learned ``(E = 1)``; without the dimension of episodes."""
        return {"memory": learned[0]}

    def _export_numbers(self, learned: Any) -> dict[str, float]:
        """Return numbers of what was learned that are fixed in the graph, by name."""
        return {}

    def _export_constants(self) -> list[Tensor]:
        """Return the tensors of the head that are fixed in the graph or decide about its form; a model with others is refused."""
        return [
            self.mean,
            *self.parameters(),
            *(buffer for name, buffer in self.named_buffers() if name not in BUFFERS),
        ]

    def _from_export(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> Any:
        """Return what ``_learn`` had returned, for ``_score``: the reverse of ``_export_tensors`` and ``_export_numbers``."""
        return tensors["memory"].unsqueeze(0)

    # Learning and forgetting.

    @changes
    def write(self: HeadT, features: Tensor, labels: Label | Iterable[Label] | Tensor) -> HeadT:
        """Learn features of new classes, or more features of classes that were written before; return the head.

        Args:
            features: ``(n, D)``, or ``(D,)`` for one. Those that ``calibrate`` was given as samples of unknowns are none any more:
                it does without them, if enough are left for its target; otherwise a warning says so.
            labels: ``n`` ints or strings; a single one is the class of all features.

        Returns:
            The head itself.

        Raises:
            ValueError: NaN, infinite or zero features, another width than before, no features, not as many labels as
                features, or a label of a base class (its prototype is fixed: forget it first).
            TypeError: a label is neither an int nor a string, or features are not floats.

        Example:
            >>> from fewshot_nam.heads import create
            >>> head = create("cosine").write(torch.eye(4)[:2], ["cat", "dog"])
            >>> head.write(torch.eye(4)[2], "cow").classes
            ['cat', 'dog', 'cow']
        """
        features = self._checked_features(features, "features")
        self._write_rows(features, as_labels(labels, len(features)))
        self._drop_unknowns(features)
        return self

    def _write_rows(self, features: Tensor, names: list[Label]) -> None:
        """Keep checked features ``(n, D)`` of ``n`` classes, as ``write`` takes them."""
        base_classes = set(self._base_classes)
        for name in names:
            if name in base_classes:
                raise ValueError(
                    f"write: {name!r} is a base class with a fixed prototype; forget it first to learn it again"
                )
        column = self._columns_of_written()
        only_new = not any(name in column for name in names)
        new = {
            name: len(column) + i for i, name in enumerate(dict.fromkeys(name for name in names if name not in column))
        }
        places = [new[name] if name in new else column[name] for name in names]
        self._append_support(features)
        self.targets = torch.cat([self.targets, torch.tensor(places, device=self.targets.device)])
        column.update(new)  # both in place: a class costs the same after thousands of others
        self._written_classes.extend(new)
        self._outdate(only_new_classes=only_new)

    def shots_per_class(self) -> list[int]:
        """Return how many features each class was learned from, in the order of ``classes``; 0 for one known by a prototype."""
        with self._lock:
            return [0] * len(self._base_classes) + self._shots_of_written()

    def _shots_of_written(self) -> list[int]:
        counts: list[int] = torch.bincount(self.targets, minlength=len(self._written_classes)).tolist()
        return counts

    def learned_before(self, features: Tensor) -> list[Label | None]:
        """Return for each of ``features`` ``(n, D)`` the class as which the same image was learned before; ``None`` if it was not.

        A head that keeps no shots knows the first image of each class alone. Features of one image are the same but for rounding
        (``fewshot_nam.heads.duplicates``). The time hardly grows with what was learned.

        Example:
            >>> from fewshot_nam.heads import create
            >>> create("cosine").write(torch.eye(3)[:2], ["cat", "dog"]).learned_before(torch.eye(3)[1:])
            ['dog', None]
        """
        with self._lock:
            places = first_equal(self._checked_features(features, "features"), self.support)
            return [None if i < 0 else self._written_classes[int(self.targets[i])] for i in places.tolist()]

    @changes
    def write_base(self: HeadT, prototypes: Tensor, labels: Iterable[Label] | Tensor) -> HeadT:
        """Add classes that are known by one prototype each, such as base classes, to the label space; return the head.

        Args:
            prototypes: ``(B, D)``, mean features (not of unit length, not centred).
            labels: ``B`` ints or strings, none of them known yet.

        Raises:
            ValueError: as ``write``, or a label that is repeated or known already.
            TypeError: a label is neither an int nor a string.
        """
        prototypes = self._checked_features(prototypes, "prototypes")
        names = as_labels(labels, len(prototypes))
        known = set(self.classes)
        for name in names:
            if name in known:
                raise ValueError(
                    f"write_base: class {name!r} is known already; forget it first, or give it another name"
                )
            known.add(name)
        self.base = appended(self.base, prototypes, self.targets.device)
        self._base_classes = self._base_classes + names
        self._outdate()
        return self

    @changes
    def write_base_images(self: HeadT, features: Tensor, labels: Iterable[Label] | Tensor) -> HeadT:
        """Add classes that are known by many images each, such as base classes, to the label space; return the head.

        Each becomes a base class with the mean of its features as its prototype, or the power mean where ``power_normalised``.
        Some heads also learn how its images differ. What is kept does not grow with the number of images.

        Args:
            features: ``(n, D)``.
            labels: ``n`` ints or strings, none of them known yet. Classes are added in the order in which they first occur.

        Raises:
            ValueError: as ``write``, or a label that is known already.
            TypeError: a label is neither an int nor a string.

        Example:
            >>> from fewshot_nam.heads import create
            >>> images = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
            >>> create("cosine").write_base_images(images, ["cat", "cat", "dog"]).base
            tensor([[2., 0.],
                    [0., 4.]])
        """
        features = self._checked_features(features.detach(), "features")
        names = as_labels(labels, len(features))
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        targets = torch.tensor([number[name] for name in names], device=features.device)
        rows = power_normalise(features) if self.power_normalised else features
        sums = rows.new_zeros(len(number), rows.shape[1], dtype=torch.float64)
        for some, its in zip(torch.split(rows, _ROWS), torch.split(targets, _ROWS), strict=True):
            sums.index_add_(0, its, some.double())
        means = sums / torch.bincount(targets).unsqueeze(-1)
        means = (means * means.abs() if self.power_normalised else means).to(rows.dtype)
        before = [(part, dict(part._buffers)) for part in self.modules()], list(self._base_classes)
        self.write_base(means, list(number))
        try:
            self._learn_base_images(features, len(self._base_classes) - len(number) + targets)
        except Exception:  # all of it or nothing
            for part, buffers in before[0]:
                part._buffers.update(buffers)
            self._base_classes = before[1]
            self._outdate()
            raise
        return self

    @property
    def _knows_base_images(self) -> bool:
        """Whether ``_learn`` takes what images of base classes have left, for which there is no place among episodes."""
        return False

    def _learn_base_images(self, features: Tensor, targets: Tensor) -> None:
        """Learn more of images of base classes than ``write_base`` did; to be overridden by heads that do.

        Args:
            features: ``(n, D)``, checked and not embedded.
            targets: ``(n,)``, positions in the base classes. These classes are new.
        """

    @changes
    def forget(self: HeadT, labels: Label | Iterable[Label] | Tensor) -> HeadT:
        """Forget classes: the head is then the one that would never have seen them. Return the head.

        What ``calibrate`` kept of these classes is forgotten too: samples of unknowns with their labels, and the temperature of
        ``probabilities``, since known images of these classes may have taken part in it. Samples of unknowns that were dropped
        because they were learned do not come back: calibrate again.

        Raises:
            ValueError: a label was never written; nothing is forgotten then.

        Example:
            >>> from fewshot_nam.heads import create
            >>> create("cosine").write(torch.eye(4)[:2], ["cat", "dog"]).forget("cat").classes
            ['dog']
        """
        names = set(as_labels(labels, None))
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise ValueError(f"forget: class {unknown[0]!r} was never written; there are: {listed(self.classes)}")
        stay = torch.tensor(
            [name not in names for name in self._written_classes], device=self.targets.device, dtype=torch.bool
        )
        kept = stay[self.targets] if len(self.targets) else torch.empty(0, dtype=torch.bool, device=self.targets.device)
        renumbered = stay.long().cumsum(0) - 1
        self.support = self.support[kept]
        self.targets = renumbered[self.targets[kept]]
        base_stay = [i for i, name in enumerate(self._base_classes) if name not in names]
        self.base = self.base[base_stay]
        self._written_classes = [name for name in self._written_classes if name not in names]
        self._base_classes = [self._base_classes[i] for i in base_stay]
        self._forget_calibration(names)
        self._outdate()
        return self

    # Scoring.

    def forward(self, features: Tensor) -> Tensor:
        """Return scores ``(..., C)`` of features ``(..., D)``, columns as in ``classes``; larger means more like the class.

        Raises:
            ValueError: no class is known yet, NaN, infinite or zero features, or another width than that of the classes.
        """
        return self._scores(self._snapshot(), features)

    def _scores(self, snapshot: Snapshot, features: Tensor) -> Tensor:
        """Return scores ``(..., C)`` of features ``(..., D)`` by one state of the head."""
        if not snapshot.classes:
            raise ValueError(f"{type(self).__name__} knows no class yet: call write(features, labels) first")
        checked = self._checked_features(features, "features", keep_shape=True)
        flat = checked.reshape(1, -1, checked.shape[-1]).to(snapshot.dtype)
        if flat.dtype.itemsize < checked.dtype.itemsize:  # a number may not fit any more
            checked_vectors(flat, "features")
        with full_precision(flat.device):
            if self._source is None:  # a compiler traces this
                scores = self._score(snapshot.learned, self._embed(flat))
            else:
                with Computation(self._source):
                    scores = self._score(snapshot.learned, self._embed(flat))
        return scores.reshape(*checked.shape[:-1], len(snapshot.classes))

    def predict(self, features: Tensor, unknown: Label | None = None) -> Label | list[Label]:
        """Return the best class of each feature.

        Args:
            features: ``(n, D)``, or ``(D,)`` for one.
            unknown: the answer where the largest score is below ``threshold``; ``None`` never refuses.

        Returns:
            A list of ``n`` labels; for ``(D,)`` one label.

        Raises:
            ValueError: as calling the head, more than two dimensions, or ``unknown`` given while ``threshold`` is not
                set, or the name of a known class.

        Example:
            >>> from fewshot_nam.heads import create
            >>> head = create("cosine").write(torch.eye(4)[:2], ["cat", "dog"])
            >>> head.threshold = 0.8
            >>> head.predict(torch.tensor([[1.0, 0.1, 0.0, 0.0], [1.0, 0.1, 2.0, 0.0]]), unknown="neither")
            ['cat', 'neither']
        """
        check_type(features, "features")
        if features.dim() > 2:
            raise ValueError(f"predict: features must be (n, D) or (D,), got shape {tuple(features.shape)}")
        with torch.no_grad():
            snapshot = self._snapshot()
            threshold = None if unknown is None else self._threshold_of(snapshot)
            if unknown is not None and threshold is None:
                raise ValueError(
                    "predict: unknown= needs a threshold to refuse below: call head.calibrate or set head.threshold first"
                )
            if unknown is not None and unknown in snapshot.classes:
                raise ValueError(
                    f"predict: unknown={unknown!r} is a known class: choose another word for what is refused"
                )
            best, column = self._scores(snapshot, features).max(dim=-1)
        answers = [snapshot.classes[i] for i in column.reshape(-1).tolist()]
        if unknown is not None and threshold is not None:
            # As Python floats: a tensor comparison would round the threshold to the scores' dtype, and a tie is to accept.
            refused = [score < threshold for score in best.reshape(-1).tolist()]
            answers = [unknown if no else answer for answer, no in zip(answers, refused, strict=True)]
        return answers[0] if features.dim() == 1 else answers

    def score_episodes(
        self, support: Tensor, query: Tensor, base: Tensor | None = None, *, check: bool = True
    ) -> Tensor:
        """Return the scores ``(E, Q, B + N)`` of many episodes at once; what was written into the head plays no part.

        For every episode the result is that of a head with the same settings after ``write_base(base)`` and ``write`` of the
        episode's support, class by class.

        Args:
            support: ``(E, N, K, D)``.
            query: ``(E, Q, D)``.
            base: ``(B, D)``, prototypes of base classes that share the label space; ``None`` for none.
            check: refuse NaN, infinite and zero features; ``False`` only for features that were checked before.

        Raises:
            TypeError: support or query is no plain tensor of floats.
            ValueError: shapes that do not fit, an empty support set, or NaN, infinite or zero features; a head whose answers
                rest on images of base classes that it has learned (make a new one).
        """
        if self._knows_base_images:
            raise ValueError(
                "score_episodes: this head has learned images of base classes, and episodes have none: make a new one"
            )
        check_type(support, "support")
        check_type(query, "query")
        if support.dim() != 4 or query.dim() != 3 or support.shape[0] != query.shape[0]:
            raise ValueError(
                "score_episodes: needs support (E, N, K, D) and query (E, Q, D) of the same episodes, "
                f"got {tuple(support.shape)} and {tuple(query.shape)}"
            )
        if not (support.shape[1] and support.shape[2]):
            raise ValueError(f"score_episodes: the support set {tuple(support.shape)} (E, N, K, D) is empty")
        if check:
            for name, features in (("support", support), ("query", query), ("base", base)):
                if features is not None:
                    checked_vectors(features, name, width=self._fixed_width() or support.shape[-1])
                    if self.mean.numel():
                        checked_vectors(self._embed(features), f"{name} minus the mean")
        if autocasts(support.device):
            support = whole(support)
        with full_precision(support.device):
            known = None if base is None else self._embed(base.to(support.dtype))
            return self._score_embedded(self._embed(support), self._embed(query.to(support.dtype)), known)

    def _score_embedded(self, support: Tensor, query: Tensor, base: Tensor | None = None) -> Tensor:
        """Return what ``score_episodes`` returns, for features that are embedded already."""
        return self._score(self._learn_episodes(support, base), query)

    def _learn_episodes(self, support: Tensor, base: Tensor | None = None) -> Any:
        """Return what is learned from support ``(E, N, K, D)`` and base prototypes ``(B, D)``, both embedded."""
        _, ways, shots, width = support.shape
        prototypes = support.new_empty(0, width) if base is None else base
        targets = len(prototypes) + torch.arange(ways, device=support.device).repeat_interleave(shots)
        return self._learn(Support(support.flatten(1, 2), targets, prototypes, len(prototypes) + ways))

    def _current(self) -> Any:
        """Return what ``_learn`` derives from the buffers; kept until they change, unless gradients must flow through it."""
        return self._snapshot().learned

    def _snapshot(self) -> Snapshot:
        """Return the state as readers use it."""
        derived = self._derived
        if derived is not None:
            return derived
        if torch.compiler.is_compiling():  # a lock cannot be traced
            return self._derive()
        with self._lock:
            return self._derive() if self._derived is None else self._derived

    def _derive(self) -> Snapshot:
        trainable, dtype = self._trainable(), self._dtype()
        classes, learned = [*self._base_classes, *self._written_classes], None
        if classes:
            # A tensor made in inference mode could never take part in autograd later.
            grad = trainable and torch.is_grad_enabled()
            # The mode is set where it is constructed, so this must be inside: leaving inference_mode would restore it otherwise.
            with (
                torch.inference_mode(False),
                torch.set_grad_enabled(grad),
                full_precision(self.targets.device),
                Computation(self._source),
            ):
                learned = None if trainable else self._extended(dtype)
                learned = self._learn(self._all_support(dtype)) if learned is None else learned
        derived = Snapshot(classes, learned, dtype, self._refusal(), self._probability_temperature)
        if not trainable:
            self._derived = derived
        return derived

    def _all_support(self, dtype: torch.dtype) -> Support:
        """Return everything that was written, embedded."""
        width = self.support.shape[-1] or self.base.shape[-1]
        written, base = (
            self._embed(buffer.reshape(len(buffer), width).to(dtype)) for buffer in (self.support, self.base)
        )
        columns = len(base) + len(self._written_classes)
        return Support(written.unsqueeze(0), len(base) + self.targets, base, columns)

    def _extended(self, dtype: torch.dtype) -> Any | None:
        """Return what ``_learn`` would derive, by extending what it derived before classes were added."""
        previous = self._previous
        if previous is None or previous.dtype != dtype or previous.learned is None:
            return None
        before, known = len(previous.refusal.shots[0]), len(previous.classes) - len(self.base)
        if len(self.support) - before > _MOST_ADDED:
            self._previous = None
            return None
        features = self._embed(self.support[before:].to(dtype))
        targets, columns = self.targets[before:] - known, len(self._written_classes) - known
        added = Support(features.unsqueeze(0), targets, features[:0], columns)
        extended = self._learn_more(previous.learned, added)
        self._previous = None if extended is None else previous
        return extended

    def _learn_more(self, learned: Any, added: Support) -> Any | None:
        """Return what ``_learn`` would derive from all that was written; ``None``: it has to be derived again.

        To be overridden where this is faster.

        Args:
            learned: what ``_learn`` derived before. It must not be changed.
            added: features of further classes, columns from 0, and no base classes.
        """
        return None

    def _held_out_scores(self, snapshot: Snapshot) -> tuple[Tensor, int]:
        """Return the acceptance scores of shots by heads that learned the others, and of how many classes they are.

        One shot of each class is left out at a time (of classes with many shots, as many as it takes to be done in
        ``_FOLDS`` times). A class with one shot keeps it, and gives no score.
        """
        (support, targets), base = snapshot.refusal.shots, snapshot.refusal.base
        counts, order, place = torch.bincount(targets), torch.argsort(targets, stable=True), places_in_class(targets)
        several = counts[targets] > 1
        found = []
        device = self.targets.device
        with torch.inference_mode(False), torch.no_grad(), full_precision(device), Computation(self._source):
            width = support.shape[-1] or base.shape[-1]
            written, base = (
                self._embed(buffer.reshape(len(buffer), width).to(snapshot.dtype)) for buffer in (support, base)
            )
            for fold in range(min(int(counts.max()), _FOLDS) if len(counts) else 0):
                held = several & (place % _FOLDS == fold)
                kept = order[~held[order]]  # class by class, so that classes come in the order of their columns
                rest = Support(written[kept].unsqueeze(0), len(base) + targets[kept], base, len(snapshot.classes))
                found.append(self._score(self._learn(rest), written[held].unsqueeze(0)).squeeze(0).amax(dim=-1))
        return torch.cat(found).cpu() if found else torch.empty(0), int((counts > 1).sum())

    def _dtype(self) -> torch.dtype:
        """Return the dtype that scores are computed in: that of what was written, float32 at least."""
        written = [buffer.dtype for buffer in (self.support, self.base) if buffer.numel()]
        return functools.reduce(torch.promote_types, written, torch.float32)

    def extra_repr(self) -> str:
        """Return how many classes are known."""
        return f"classes={len(self.classes)}, feature_dim={self.feature_dim}, centred={bool(self.mean.numel())}"


def with_log_partition_penalty(scores: Tensor, share: float, temperature: float) -> Tensor:
    """Return ``s - share * T * log sum_c exp(s_c / T)`` for scores ``s`` ``(..., C)``.

    The same number is subtracted for all classes of a query, so their order and their softmax do not change. Share 0 leaves
    the scores as they are, share 1 makes them log-probabilities times the temperature ``T``.
    """
    if not share:
        return scores
    return scores - share * temperature * torch.logsumexp(scores / temperature, dim=-1, keepdim=True)

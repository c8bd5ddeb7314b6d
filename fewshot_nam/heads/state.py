"""What a head has learned, as buffers and JSON: saved and loaded without pickling, and checked when it is loaded.

What is derived from it (prototypes, a memory, a calibrated threshold) is not saved but computed again.

Threads: any number of threads may read a head (score, predict, probabilities, classes, threshold) while others change it (write,
write_base, forget, calibrate, threshold, load_state_dict). Changes take a lock, one after another. Readers use a ``Snapshot`` of
the state, which is replaced as a whole, so each answer comes from one state, either before or after a change. Training parameters,
moving a head to another device and switching modes are not thread-safe.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from fewshot_nam.heads.base_statistics import BaseStatistics, accepts_old_base_words
from fewshot_nam.heads.conformal import SMALLEST_TARGET
from fewshot_nam.heads.growing_rows import GrowingRows
from fewshot_nam.heads.power_norm import Transform
from fewshot_nam.heads.validation import Label, as_unicode, checked_vectors
from fewshot_nam.memory.torch_modes import autocasts, full_precision

BUFFERS = ("support", "targets", "base", "mean", "unknowns")
StateT = TypeVar("StateT", bound="HeadState")
P = ParamSpec("P")
R = TypeVar("R")


class Refusal(NamedTuple):
    """What determines the threshold.

    Attributes:
        threshold: as set by the user; ignored if ``target_fpr`` is set.
        target_fpr: largest share of unknowns to accept; ``None`` if the head is not calibrated; then ``labels``,
            ``groups`` and ``confidence`` are ``None`` too.
        unknowns: ``(m, D)``, samples of unknowns.
        labels: classes of the unknowns; ``None`` if not given.
        groups: groups of the unknowns; ``None`` if not given.
        confidence: as given to ``calibrate``.
        calibrated_classes: the classes of the head when it was calibrated; ``None`` if not recorded.
        max_rejected: largest share of known images to reject, if the threshold follows from the shots; ``None`` otherwise.
        shots: ``(n, D)``, the features written, and ``(n,)``, positions in the written classes.
        base: ``(B, D)``, prototypes of base classes.
    """

    threshold: float | None
    target_fpr: float | None
    unknowns: Tensor
    labels: list[Label] | None
    groups: list[Label] | None
    confidence: float | None
    calibrated_classes: list[Label] | None
    max_rejected: float | None
    shots: tuple[Tensor, Tensor]
    base: Tensor


class Snapshot(NamedTuple):
    """A state of a head as readers use it. It is never changed, only replaced.

    Attributes:
        classes: in the order of the score columns.
        learned: what ``_learn`` derived from the state; ``None`` if the head has no classes.
        dtype: dtype in which scores are computed.
        refusal: what determines the threshold.
        temperature: divisor of scores for probabilities; ``None`` if not fitted.
    """

    classes: list[Label]
    learned: Any
    dtype: torch.dtype
    refusal: Refusal
    temperature: float | None


def changes(method: Callable[Concatenate[StateT, P], R]) -> Callable[Concatenate[StateT, P], R]:
    """Decorate a method that changes the state of a head: take the lock, and refuse on a snapshot."""

    @functools.wraps(method)
    def change(self: StateT, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._is_snapshot:
            raise ValueError(
                f"{method.__name__}: a snapshot cannot change: change the head that it was taken from, and take another snapshot"
            )
        device = self.targets.device
        if autocasts(device):
            args = tuple(whole(one) for one in args)  # type: ignore[assignment]
            kwargs = {name: whole(one) for name, one in kwargs.items()}  # type: ignore[assignment]
        # A buffer made in inference mode could not be loaded into later.
        with self._lock, torch.inference_mode(False), full_precision(device):
            return method(self, *args, **kwargs)

    return change  # type: ignore[return-value]


def whole(given: Any) -> Any:
    """Return features that autocast has rounded in float32; what is learned stays when the caller has left it."""
    return given.float() if isinstance(given, Tensor) and given.dtype in (torch.float16, torch.bfloat16) else given


class Computation:
    """Context of a computation with a state that may come from a file: what fails there is the file's fault, and is said so.

    A file may hold tensors and settings of the right kinds whose numbers do not go together, such as a matrix without a Cholesky
    factor. Trying it when it is read would double the time of reading, so the first use finds out.

    Args:
        source: the file; ``None`` for a state that comes from no file, whose errors stay as they are.
    """

    def __init__(self, source: str | None) -> None:
        self._source = source

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if self._source is None or not isinstance(error, (ArithmeticError, LookupError, RuntimeError, TypeError)):
            return
        said = " ".join(str(error).split())
        if "out of memory" in said or "DefaultCPUAllocator" in said:
            return
        raise ValueError(
            f"{self._source}: this memory cannot be used: {type(error).__name__.lstrip('_')}: {said}"
        ) from error


class HeadState(nn.Module):
    """The learned state of a head.

    Args:
        base: its ``mean`` is subtracted from every feature first; ``None`` subtracts nothing.

    Attributes:
        support: ``(n, D)``, features written.
        targets: ``(n,)`` long, positions in the written classes.
        base: ``(B, D)``, prototypes of base classes.
        mean: ``(D,)``, subtracted from every feature first; empty if nothing is subtracted.
        unknowns: ``(m, D)``, the samples of unknowns that the threshold is calibrated on; empty if the head is not calibrated.
    """

    _exact: tuple[str, ...] = ()
    """Names of buffers that keep their dtype, and move to other devices alone."""

    support: Tensor
    targets: Tensor
    base: Tensor
    mean: Tensor
    unknowns: Tensor
    _source: str | None = None
    """The file that the state was read from: an error of a computation with it then names the file."""

    @accepts_old_base_words
    def __init__(self, base: BaseStatistics | None = None) -> None:
        super().__init__()
        self.register_buffer("support", torch.empty(0, 0))
        self.register_buffer("targets", torch.empty(0, dtype=torch.long))
        self.register_buffer("base", torch.empty(0, 0))
        self.register_buffer("mean", torch.empty(0) if base is None else base.mean.clone())
        self.register_buffer("unknowns", torch.empty(0, 0))
        self._base_classes: list[Label] = []
        self._written_classes: list[Label] = []
        self._place_of_written: tuple[list[Label], dict[Label, int]] | None = None
        self._unknown_labels: list[Label] | None = None
        self._unknown_groups: list[Label] | None = None
        self._different_unknowns: tuple[Tensor, Tensor] | None = None
        self._target_fpr: float | None = None  # if set, the threshold follows from the unknowns
        self._confidence: float | None = None
        self._calibrated_classes: list[Label] | None = None  # the classes known at the time
        self._max_rejected: float | None = None  # if set, the threshold follows from the shots
        self._threshold: float | None = None
        self._probability_temperature: float | None = None
        self._is_snapshot = False
        self._lock = threading.RLock()
        self._rows = GrowingRows()
        self._outdate()

    def _outdate(self, only_new_classes: bool = False) -> None:
        """Drop what was derived from the state. Call it after a change, holding the lock.

        Args:
            only_new_classes: new classes were written and nothing else changed, so that what was derived may be extended.
        """
        previous = None
        if only_new_classes:
            previous = self._derived if self._previous is None else self._previous
        self._previous: Snapshot | None = previous
        self._derived: Snapshot | None = None
        self._derived_threshold: tuple[Snapshot, float] | None = None

    def _columns_of_written(self) -> dict[Label, int]:
        """Return the position of each written class; code that extends ``_written_classes`` in place extends it too."""
        if self._place_of_written is None or self._place_of_written[0] is not self._written_classes:
            self._place_of_written = (self._written_classes, {name: i for i, name in enumerate(self._written_classes)})
        return self._place_of_written[1]

    def _append_support(self, features: Tensor) -> None:
        """Add ``features`` ``(k, D)`` to the support, in the wider of the two dtypes."""
        support, features = self.support, features.detach().to(self.targets.device)
        if not support.numel():
            support = features.new_empty(0, features.shape[1])
        dtype = torch.promote_types(support.dtype, features.dtype)
        self.support = self._rows.append(support.to(dtype), features.to(dtype))

    def _snapshot(self) -> Snapshot:
        raise NotImplementedError

    def _refusal(self) -> Refusal:
        return Refusal(
            self._threshold,
            self._target_fpr,
            self.unknowns,
            self._unknown_labels,
            self._unknown_groups,
            self._confidence,
            self._calibrated_classes,
            self._max_rejected,
            (self.support, self.targets),
            self.base,
        )

    def _outdate_refusal(self) -> None:
        """Use another threshold or temperature and keep what was learned. Call it holding the lock."""
        if self._derived is not None:
            self._derived = self._derived._replace(refusal=self._refusal(), temperature=self._probability_temperature)

    @property
    def classes(self) -> list[Label]:
        """The known classes in the order of the score columns: base classes first, then in order of writing."""
        derived = self._derived
        if derived is not None:
            return list(derived.classes)
        if torch.compiler.is_compiling():  # a lock cannot be traced
            return [*self._base_classes, *self._written_classes]
        with self._lock:
            return [*self._base_classes, *self._written_classes]

    def snapshot(self: StateT) -> StateT:
        """Return the head as it is now, for serving: it answers as this head does now, and refuses to change.

        Features are shared and not copied. Parameters, where a head has any, are copied.

        Example:
            >>> from fewshot_nam.heads import create
            >>> head = create("cosine").write(torch.eye(3)[:2], ["cat", "dog"])
            >>> served = head.snapshot()
            >>> _ = head.forget("cat")
            >>> served.predict(torch.tensor([1.0, 0.1, 0.0])), head.classes
            ('cat', ['dog'])
            >>> served.write(torch.ones(3), "cow")
            Traceback (most recent call last):
            ...
            ValueError: write: a snapshot cannot change: change the head that it was taken from, and take another snapshot
        """
        with self._lock:
            derived = self._snapshot()
            taken = copy.copy(self)
            taken._derived_threshold, taken._different_unknowns = self._derived_threshold, self._different_unknowns
            parts = (part for part in self.modules() if getattr(part, "shares_buffers", False))
            shared = {id(buffer): buffer for part in parts for buffer in part.buffers(recurse=False)}
            taken._modules = {name: copy.deepcopy(module, shared) for name, module in taken._modules.items()}
            taken._parameters = {name: copy.deepcopy(parameter) for name, parameter in taken._parameters.items()}
        taken._is_snapshot = True
        taken._derived = derived if not self._trainable() else None
        return taken

    def copy(self: StateT) -> StateT:
        """Return a head of its own in this state, which may be changed, also where this is a snapshot."""
        made = copy.deepcopy(self)
        made._is_snapshot, made._different_unknowns = False, self._different_unknowns
        return made

    def __getstate__(self) -> dict[str, Any]:
        # A copy or pickle holds one state, without the lock and without what can be derived again. Writers replace tensors and
        # extend containers, so all containers are copied while the lock is held, and no tensor.
        with self._lock:
            state = _containers_copied(self.__dict__)
            state["_written_classes"] = list(self._written_classes)
        derived = ("_previous", "_derived", "_derived_threshold", "_different_unknowns", "_place_of_written")
        for name in ("_lock", "_rows", *derived):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.__dict__.setdefault("_is_snapshot", False)
        self._different_unknowns = None
        self._lock = threading.RLock()
        self._rows = GrowingRows()
        self._place_of_written = None
        self._outdate()

    def _fixed_width(self) -> int:
        """Return the width of features if the settings alone determine it, else 0."""
        return len(self.mean)

    @property
    def feature_dim(self) -> int | None:
        """Width of the features; ``None`` while it is not known."""
        holders = (self.support, self.base, self.unknowns)
        known = next((buffer for buffer in holders if buffer.numel()), None)
        return (self._fixed_width() or None) if known is None else known.shape[-1]

    def get_extra_state(self) -> Tensor:
        """Return names and numbers as UTF-8 JSON in a uint8 tensor."""
        return torch.tensor(list(json.dumps(self._saved_names()).encode()), dtype=torch.uint8)

    def _saved_names(self) -> dict[str, Any]:
        """Return what is saved beside the buffers: names and numbers that JSON can hold."""
        return {
            "base_classes": self._base_classes,
            "written_classes": self._written_classes,
            "threshold": self._threshold,
            "unknown_labels": self._unknown_labels,
            "unknown_groups": self._unknown_groups,
            "target_fpr": self._target_fpr,
            "confidence": self._confidence,
            "calibrated_classes": self._calibrated_classes,
            "max_rejected": self._max_rejected,
            "probability_temperature": self._probability_temperature,
        }

    def set_extra_state(self, state: Tensor) -> None:
        """Load names and numbers from ``get_extra_state``."""
        try:
            self._load_names(json.loads(bytes(state.tolist())))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{type(self).__name__}: the names and settings in this state are damaged ({error})"
            ) from None

    def _load_names(self, saved: Mapping[str, Any]) -> None:
        """Load what ``_saved_names`` gave; nothing is changed before all of it was checked.

        Raises:
            ValueError, KeyError, TypeError: it is damaged.
        """
        learned = dict(saved)
        if "stranger_labels" in learned:  # files written before it was renamed to "unknown_labels"
            learned["unknown_labels"] = learned.pop("stranger_labels")
        classes = [_labels(learned, name) or [] for name in ("base_classes", "written_classes")]
        if len({*classes[0], *classes[1]}) != len(classes[0]) + len(classes[1]):
            raise ValueError("a class is listed twice")
        calibrated = {name: _labels(learned, name) for name in _CALIBRATION_LABELS}
        numbers = {name: _number(learned, name, *bounds) for name, bounds in _NUMBERS.items()}
        self._base_classes, self._written_classes = classes
        for name, value in {**calibrated, **numbers}.items():
            setattr(self, f"_{name}", value)
        self._outdate()

    @changes
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state; after an error, the head is unchanged.

        A state does not include the arguments that the head was made with, but for the constants in ``settings`` of heads that
        have these.

        Raises:
            ValueError: the state is damaged, or of another width.
            RuntimeError: parts are missing, or there are too many (``strict``).
        """
        # Try it on a copy first: parts are loaded one by one, and a later one may be refused.
        nn.Module.load_state_dict(copy.deepcopy(self), state_dict, strict, assign)
        for module in self.modules():  # loading would change tensors that copies may share
            module._buffers = {name: None if held is None else held.clone() for name, held in module._buffers.items()}
        return super().load_state_dict(state_dict, strict, assign)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state at one moment, as ``torch.nn.Module`` does."""
        with self._lock:
            state = super().state_dict(*args, **kwargs)
            prefix = kwargs.get("prefix", "")
            if prefix + "support" in state:  # without the spare memory for further rows
                state[prefix + "support"] = self.support.clone()
            return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if prefix + "strangers" in state_dict:  # files written before it was renamed to "unknowns"
            state_dict[prefix + "unknowns"] = state_dict.pop(prefix + "strangers")
        # The number of features and classes is learned, so these buffers take the shape of what is loaded.
        for name in BUFFERS:
            loaded, present = state_dict.get(prefix + name), getattr(self, name)
            if (
                loaded is not None
            ):  # a new buffer even where the shape is the same, since a snapshot may use the old one
                dtype = present.dtype if loaded.shape == present.shape else loaded.dtype
                setattr(self, name, present.new_empty(loaded.shape, dtype=dtype))
        self._outdate()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._check_state()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape that each further buffer must have where it is not empty; asked when a state was loaded."""
        return {}

    def _check_state(self) -> None:
        """Raise ``ValueError`` if loaded features, targets and class names do not match."""
        shapes = {"support": 2, "base": 2, "unknowns": 2, "mean": 1, "targets": 1}
        for name, dimensions in shapes.items():
            buffer = getattr(self, name)
            if buffer.dim() != dimensions or buffer.is_floating_point() == (name == "targets"):
                raise ValueError(
                    f"{type(self).__name__}: this state is damaged: {name} is {buffer.dtype} of shape {tuple(buffer.shape)}"
                )
        present = torch.bincount(self.targets.clamp_min(0), minlength=len(self._written_classes))
        fits = (
            len(self.support) == len(self.targets)
            and len(self.base) == len(self._base_classes)
            and len(present) == len(self._written_classes)
            and bool((present > 0).all())
            and not bool((self.targets < 0).any())
            and (not len(self.unknowns) or self._target_fpr is not None)
            and all(
                names is None or len(names) == len(self.unknowns)
                for names in (self._unknown_labels, self._unknown_groups)
            )
        )
        holders = [buffer for buffer in (self.support, self.base, self.unknowns) if buffer.numel()]
        fits = fits and len({buffer.shape[-1] for buffer in holders} | {self._fixed_width()} - {0}) <= 1
        reason = None if fits else "features, targets and class names do not belong together"
        for buffer in (self.support, self.base, self.mean, self.unknowns):
            if buffer.numel():
                try:
                    checked_vectors(buffer, "features", zero_allowed=buffer is self.mean)
                except ValueError as error:
                    reason = reason or str(error)
        if reason is None:
            held = {name: (tuple(getattr(self, name).shape), shape) for name, shape in self._shapes().items()}
            reason = next(
                (f"{name} is of shape {a}, not {b}" for name, (a, b) in held.items() if a != b and 0 not in a), None
            )
        if reason is not None:
            raise ValueError(f"{type(self).__name__}: this state is damaged: {reason}")

    def _trainable(self) -> bool:
        """Whether parameters may change, so that nothing derived from them can be kept."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def _transform(self) -> Transform:
        """What is done to every feature first, unless ``_embed`` does more."""
        return Transform(centre=self.mean if self.mean.numel() else None)

    def _embed(self, features: Tensor) -> Tensor:
        """Return features ``(..., D)`` as heads learn and score them: what is done to each by itself."""
        return self._transform(features)

    def _checked_features(self, features: Tensor, name: str, keep_shape: bool = False) -> Tensor:
        features = checked_vectors(features, name, width=self.feature_dim)
        if self.mean.numel():
            checked_vectors(self._embed(features), f"{name} minus the mean")
        if keep_shape:
            return features
        if features.dim() not in (1, 2) or not features.numel():
            raise ValueError(f"{name} must be (n, D) or (D,) with n at least 1, got shape {tuple(features.shape)}")
        return features.reshape(-1, features.shape[-1])

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        def held() -> list[Any]:
            return [*((p.device, p.dtype) for p in self.parameters()), *map(id, self.buffers())]

        before, exact = held(), {name: getattr(self, name) for name in self._exact}
        moved = super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        for name, kept in exact.items():
            if not kept.is_meta:
                setattr(self, name, kept.to(getattr(self, name).device))
        if held() != before:  # a move to the present device and dtype changes nothing
            self._outdate()
        return moved


_CALIBRATION_LABELS = ("unknown_labels", "unknown_groups", "calibrated_classes")
_NUMBERS = {  # the range of each
    "threshold": (-math.inf, math.inf),
    "target_fpr": (math.nextafter(SMALLEST_TARGET, 0), 1.0),
    "confidence": (0.0, 1.0),
    "max_rejected": (math.nextafter(SMALLEST_TARGET, 0), 1.0),
    "probability_temperature": (torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max),
}
_LATER = (
    "unknown_groups",
    "calibrated_classes",
    "confidence",
    "max_rejected",
)  # the first files of version 0.1 are without


def _containers_copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a module with containers and submodules of their own, and the same tensors in them."""
    state = attributes.copy()
    for name in ("_buffers", "_parameters"):
        state[name] = state[name].copy()
    state["_modules"] = {name: _shallow_copy(module) for name, module in state["_modules"].items()}
    return state


def _shallow_copy(module: nn.Module | None) -> nn.Module | None:
    copied = copy.copy(module)
    if copied is not None:
        copied.__dict__ = _containers_copied(copied.__dict__)
    return copied


def _labels(learned: Mapping[str, Any], name: str) -> list[Label] | None:
    """Return a list of labels, or ``None``; raise ``ValueError`` for anything else."""
    value = learned.get(name) if name in _LATER else learned[name]
    if value is None:
        return None
    if not isinstance(value, list) or not all(
        isinstance(label, (int, str)) and not isinstance(label, bool) for label in value
    ):
        raise ValueError(f"{name} must be ints and strings")
    # Files of the first releases may hold names that no answer could be written with; refused, what was learned would be lost.
    return [as_unicode(label) if isinstance(label, str) else label for label in value]


def _number(learned: Mapping[str, Any], name: str, above: float, below: float) -> float | None:
    """Return a number between two bounds, or ``None``; raise ``ValueError`` for anything else."""
    value = learned.get(name) if name in _LATER else learned[name]
    if value is not None and not (isinstance(value, (int, float)) and above < value < below):
        raise ValueError(f"{name} is {value!r}")
    return None if value is None else float(value)


def appended(stored: Tensor, features: Tensor, device: torch.device) -> Tensor:
    """Return ``stored`` ``(n, D)`` with ``features`` below it; a normal tensor even if ``features`` is an inference tensor."""
    with torch.inference_mode(False), torch.no_grad():
        if not stored.numel():
            return features.detach().to(device).clone()
        dtype = torch.promote_types(stored.dtype, features.dtype)
        return torch.cat([stored.to(dtype), features.detach().to(device=stored.device, dtype=dtype).clone()])

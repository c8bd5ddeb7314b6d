"""One memory while it is taught: learn, ask, forget, undo, calibrate, measure, save and export; the logic of the teaching page.

Nothing here knows the web library. Any number of threads may use one session. Changes are made one after the other, and what is
answered and shown is the state after the last change that has ended: with thousands of classes a change takes seconds, since it
derives the threshold anew.
"""

from __future__ import annotations

import copy
import math
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewshot_nam.heads import Label
from fewshot_nam.heads.conformal import ROUNDING
from fewshot_nam.heads.duplicates import distinct, first_equal
from fewshot_nam.heads.validation import as_unicode, collected_warnings
from fewshot_nam.io.regular_files import file_version
from fewshot_nam.service.checks import check_of
from fewshot_nam.service.class_names import alike, class_name, known_class
from fewshot_nam.service.class_views import views_of
from fewshot_nam.service.export_process import export_memory
from fewshot_nam.service.findings import Answer, Check, ClassView, Learned, Promise, images_were, listed
from fewshot_nam.service.given_images import GivenImage, Progress, features_of
from fewshot_nam.service.noted_unknowns import NOTED, noted_unknowns, unknowns_of
from fewshot_nam.service.thresholds import Ready, promise_of, ready
from fewshot_nam.service.undo_steps import Before, UndoSteps
from fewshot_nam.vision.memory_files import new_model, open_model
from fewshot_nam.vision.memory_lock import exclusive
from fewshot_nam.vision.model import NAMModel
from fewshot_nam.vision.noted_weights import NOT_FILES, weights_file
from fewshot_nam.vision.saving import read_head, save_head

_THUMBNAILS = 12  # kept for each class
_MOST_UNKNOWN = 10_000  # images of unknowns, also those given again
_MOST_UNDO = 128 * 2**20  # bytes
_SMALLEST_SHARE = 0.0001
_READS = 10  # of a file that another program changes meanwhile
_SECONDS_FOR_THE_FILE = 10.0  # that a save waits for another program
_EXPORTING = threading.Lock()  # each export takes a processor, and loads the backbone


class _Published(NamedTuple):
    """What is answered from and shown, until the next change has ended."""

    version: int
    ready: Ready
    thumbnails: dict[Label, list[bytes]]


class TeachingSession:
    """A model, its file, and what happened to them since they were opened.

    Args:
        model: what is taught. It belongs to the session from then on.
        path: where ``save`` writes; ``None`` for a memory without a file.
        notes: of the memory's file.

    Attributes:
        model: as given.
        path: as given.
        most_pixels: of all images that are given at a time; ``None``, the default, for no bound.
        most_unknown: images of unknowns that are held, also those given again.
        most_learned: images that are learned; ``None``, the default, for no bound.
        most_undo: bytes that the steps of undo hold; the oldest are forgotten first, and the last one stays.

    Example:
        >>> from PIL import Image
        >>> session = TeachingSession.open(backbone="conv4")
        >>> session.learn([Image.new("L", (28, 28), "black")], "black").counts
        {'black': 1}
        >>> session.answer(Image.new("L", (28, 28), "black")).label
        'black'
        >>> session.forget("black")
        >>> session.undo()
        "forget 'black'"
        >>> session.classes()[0].label
        'black'
    """

    def __init__(self, model: NAMModel, path: Path | None = None, notes: dict[str, Any] | None = None) -> None:
        self.model, self.path, self.notes = model, path, dict(notes or {})
        self.most_pixels: int | None = None
        self.most_unknown = _MOST_UNKNOWN
        self.most_learned: int | None = None
        self.most_undo = _MOST_UNDO
        self._lock = threading.RLock()  # of a change
        self._viewing = threading.Lock()
        self._published: _Published | None = None
        self._file_lock = threading.Lock()  # of what reads or writes the file, which may wait for another program
        self._undo = UndoSteps()
        self._thumbnails: dict[Label, list[bytes]] = {}
        self._unknown = unknowns_of(model.head, self.notes.pop(NOTED, None), model.backbone.feature_dim, path)
        self._counted = (self._unknown.new_empty(0), 0)  # the images of unknowns, and how many of them are different
        self._file = _version_of(path)
        self._written = self._file is not None  # whether it holds what the session knows
        self._noted_beside = path or Path("memory.safetensors")  # the file that the notes tell the weights' place by
        self._views: tuple[_Published, list[ClassView], tuple[float, float]] | None = None
        self._promise: tuple[int, Promise] | None = None

    @classmethod
    def open(
        cls,
        memory: str | Path | None = None,
        *,
        backbone: str | None = None,
        weights: str | None = None,
        device: str = "cpu",
        default_backbone: str = "conv4",
    ) -> TeachingSession:
        """Return a session on a memory's file, or on a new memory.

        Args:
            memory: a file that exists, or one that ``save`` will write; ``None`` for a memory without a file.
            backbone: of a new memory; a name, as ``backbones.create`` takes it.
            weights: a file of the backbone's weights, or "random"; ``None`` for those the memory notes or the published ones.
            device: "cpu" or "cuda".
            default_backbone: of a new memory where ``backbone`` is ``None``.

        Raises:
            OSError: the file cannot be read, or another program writes it all the time.
            ImportError, ValueError: it is no memory but a directory, say, its weights are not there, or ``backbone`` is given for a
                memory that exists.
        """
        path = None if memory is None else Path(memory).expanduser()
        if path is not None and path.is_dir():
            raise ValueError(f"{path} is a directory: name the file of a memory")
        if path is not None and path.exists():
            if backbone is not None:
                raise ValueError(f"{path} exists already, and --backbone can be set for a new memory only")
            present, made = _read_whole(path, weights, device)
            session = cls(*_in_order(made, path))
            session._file = present
            return session
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"the directory of {path} does not exist")
        made = new_model(backbone or default_backbone, path or Path("memory.safetensors"), weights, device=device)
        return cls(*_in_order(made, path))

    def copy(self) -> TeachingSession:
        """Return a session of its own on the same backbone, with what was learned so far and without a file."""
        model = NAMModel(self.model.backbone, copy.deepcopy(self.model.head))
        model.batch_size = self.model.batch_size
        session = TeachingSession(model, None, self.notes)
        session.most_pixels, session.most_unknown = self.most_pixels, self.most_unknown
        session.most_learned, session.most_undo = self.most_learned, self.most_undo
        session._noted_beside = self._noted_beside
        session._unknown = self._unknown
        return session

    # Teaching.

    def learn(self, images: Sequence[GivenImage], label: str, progress: Progress | None = None) -> Learned:
        """Learn images of one class. Images that cannot be read, and those learned before, are left out and counted.

        Args:
            images: paths or PIL images, ``MOST_IMAGES`` at most.
            label: the class.
            progress: called after every batch.

        Raises:
            ValueError: no image, too many, none that can be read, all learned before, or a name that is no name.
        """
        return self.learn_classes([(image, label) for image in images], progress)

    def learn_classes(self, images: Sequence[tuple[GivenImage, str]], progress: Progress | None = None) -> Learned:
        """Learn images of several classes, each given with the name of its class; otherwise as ``learn``."""
        first: dict[str, str] = {}  # one name for those that are alike
        labels = [first.setdefault(alike(name), name) for name in (class_name(label) for _, label in images)]
        found = features_of(self.model, [image for image, _ in images], progress, self.most_pixels)
        with self._lock:
            new = (first_equal(found.values, self.model.head.support) < 0) & distinct(found.values)
            positions = new.nonzero().flatten().tolist()
            if not positions:
                raise ValueError(f"{images_were(len(found.kept))} learned before: take others")
            learned = sum(self.model.head.shots_per_class())
            if self.most_learned is not None and learned + len(positions) > self.most_learned:
                raise ValueError(
                    f"{self.most_learned:,} images are the most that are learned here, and there are {learned:,}"
                )
            names = [self._known(labels[found.kept[i]]) for i in positions]
            counts = Counter(str(name) for name in names)
            before = self._before(f"learn {listed(counts)}")
            with collected_warnings():  # of images of unknowns that are learned now, which is said below
                self.model.head.write(found.values[positions], names)
            for name, i in zip(names, positions, strict=True):
                kept = self._thumbnails.get(name, [])
                if len(kept) < _THUMBNAILS:
                    self._thumbnails[name] = [*kept, found.thumbnails[i]]
            taught = found.values[positions].cpu()
            known = first_equal(self._unknown, taught) >= 0 if len(self._unknown) else torch.zeros(0, dtype=torch.bool)
            doubt = None
            if known.any():  # of what is known, no rate can be promised
                gone, self._unknown = self._unknown[known], self._unknown[~known]
                doubt = self._set_again(gone)
            self._changed(before)
            said = self._now().ready.said
            if known.any():
                count = "they count as this class now" if doubt is None else f"the rate counts them so still ({doubt})"
                said = [*said, f"{images_were(int(distinct(gone).sum()))} given as unknown before: {count}"]
        return Learned(dict(counts), len(found.kept) - len(positions), found.skipped, said)

    def _set_again(self, learned: Tensor) -> str | None:
        """Set the rate again, if one is set, after images of unknowns were learned; return why it cannot be, or ``None``.

        Then the threshold stays one for all of them, which refuses more than it has to.
        """
        head = self.model.head
        if head._target_fpr is None:
            return None
        try:
            if head._unknown_labels is not None or head._unknown_groups is not None:
                if bool((first_equal(learned.to(head.targets.device), head.unknowns) < 0).all()):
                    return None  # the head does without them already
                raise ValueError("it holds for each new class of unknowns")
            with collected_warnings():
                unknown = self._unknown.to(head.targets.device)
                head.calibrate(unknown, target_fpr=head._target_fpr, confidence=head._confidence)
        except ValueError as error:
            return str(error)
        return None

    def forget(self, label: Label) -> None:
        """Forget a class: the memory is then the same as one that never learned it.

        Raises:
            ValueError: there is no such class.
        """
        with self._lock:
            name = self._known(str(label))
            before = self._before(f"forget {str(name)!r}")
            self.model.head.forget([name])
            self._thumbnails.pop(name, None)
            self._changed(before)

    def undo(self, version: int | None = None) -> str:
        """Take back the last change; return what it was.

        Args:
            version: of the session, when it was shown what would be taken back; ``None`` for whatever it is now.

        Raises:
            ValueError: there is nothing to take back, or the session was changed since that version.
        """
        with self._lock:
            if version is not None and version != self.version:
                raise ValueError("nothing is undone: the memory was changed elsewhere meanwhile; look, and undo again")
            if not self._undo:
                raise ValueError("there is nothing to undo")
            before = self._undo.take()
            self.model._set_head(before.head.copy())  # a file that was read may have held another kind of head
            self._thumbnails, self._unknown = dict(before.thumbnails), before.unknown
            if before.reloaded:  # what another program wrote is not known any more, and not to be written over
                self._file = before.file
            self._changed(None)
            return before.what

    @property
    def undoable(self) -> str | None:
        """What ``undo`` would take back; ``None`` for nothing."""
        last = self._undo.last
        return None if last is None else last.what

    # Looking.

    @property
    def version(self) -> int:
        """A number that grows with every change."""
        return 0 if self._published is None else self._published.version

    @property
    def threshold(self) -> float | None:
        """An image is accepted from this score on; ``None`` where nothing is refused."""
        return self._now().ready.threshold

    @property
    def not_refusing(self) -> str | None:
        """Why nothing is answered: a rate was set, and cannot be kept with these classes; ``None`` where it can."""
        return self._now().ready.wrong

    def classes(self) -> list[ClassView]:
        """Return all classes in the order they were learned, with the class that each is most easily taken for."""
        return self._viewed()[0]

    def score_range(self) -> tuple[float, float]:
        """Return the lowest and highest score that the learned images have for any class: the ends of a score bar."""
        return self._viewed()[1]

    def _viewed(self) -> tuple[list[ClassView], tuple[float, float]]:
        with self._viewing:  # one thread makes them for all
            now = self._now()
            if self._views is None or self._views[0] is not now:
                self._views = (now, *views_of(now.ready.head, now.thumbnails, now.ready.threshold))
            return self._views[1:]

    def answer(self, image: GivenImage) -> Answer:
        """Return the answer to one image.

        Raises:
            ValueError: it is no image, nothing was learned yet, or the rate that was set cannot be kept (``not_refusing``).
        """
        started = time.perf_counter()
        head, threshold, wrong, _ = self._now().ready
        if not head.classes:
            raise ValueError("nothing was learned yet: teach a class first")
        if wrong is not None:
            raise ValueError(wrong)
        found = features_of(self.model, [image])
        with torch.no_grad():
            scores = head(found.values)[0]
        top = scores.topk(min(5, len(scores)))
        ranking = [(head.classes[i], score) for i, score in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
        best, score = ranking[0]
        label = best if threshold is None or score >= threshold else None
        return Answer(label, best, score, threshold, ranking, time.perf_counter() - started)

    # Refusing.

    @property
    def unknown_images(self) -> int:
        """How many different images of unknowns ``calibrate`` rests on."""
        unknown = self._unknown
        if self._counted[0] is not unknown:
            self._counted = unknown, int(self.model.head._different(unknown).sum())
        return self._counted[1]

    @property
    def target(self) -> float | None:
        """The share of unknown images that is accepted at most, as ``calibrate`` was given it; ``None`` before."""
        found: float | None = self.model.head._target_fpr
        return found

    @property
    def smallest_target(self) -> float | None:
        """The smallest share that ``calibrate`` takes with these images of unknowns; ``None`` without any."""
        return None if not len(self._unknown) else max(_SMALLEST_SHARE, 1 / (self.unknown_images + 1))

    def add_unknown(self, images: Sequence[GivenImage], progress: Progress | None = None) -> tuple[int, list[str]]:
        """Add images of what is to be refused; return how many are new, and why others could not be read.

        One that was given before counts again where the rate needs it, see ``Head.calibrate``: it may come up more often.

        Raises:
            ValueError: no image, too many, or one that was learned.
        """
        found = features_of(self.model, images, progress, self.most_pixels)
        with self._lock:
            learned = int((first_equal(found.values, self.model.head.support) >= 0).sum())
            if learned:
                raise ValueError(f"{images_were(learned)} learned as known classes: unknown images must be others")
            given = found.values.cpu()
            if len(self._unknown) + len(given) > self.most_unknown:
                raise ValueError(
                    f"{self.most_unknown:,} images of unknowns are the most, and there are {len(self._unknown):,}"
                )
            before, had = self._before(f"add {len(given)} unknown images"), self.unknown_images
            self._unknown = torch.cat([self._unknown, given]) if len(self._unknown) else given
            self._changed(before)
            return self.unknown_images - had, found.skipped

    def clear_unknown(self) -> None:
        """Forget the images of unknowns; then nothing is refused."""
        with self._lock:
            # A rate that cannot be kept has no threshold, and stands until it is taken back here.
            nothing = self.threshold is None and self.not_refusing is None
            if nothing and not len(self._unknown) and not len(self.model.head.unknowns):
                return
            before = self._before("forget the unknown images")
            self._unknown = self._unknown.new_empty(0, 0)
            self.model.head.threshold = None
            self._changed(before)

    def calibrate(self, target: float) -> Promise:
        """Set the threshold so that at most ``target`` of unknown images is accepted; return what this promises and costs.

        Where this was the last change already, it is none.

        Raises:
            ValueError: nothing was learned, no images of unknowns, or too few for the target.
        """
        with self._lock:
            head = self.model.head
            if not head.classes:
                raise ValueError("nothing was learned yet: teach a class first")
            smallest = self.smallest_target
            if smallest is None:
                raise ValueError("there are no images of unknowns yet: give some that the model is to refuse")
            if target < smallest * (1 - ROUNDING):
                needed, shown = math.ceil((1 - ROUNDING) / target) - 1, math.ceil(smallest * 1e4 * (1 - ROUNDING)) / 1e4
                raise ValueError(
                    f"a rate of {target:.2%} takes {needed} images of unknowns, and there are "
                    f"{self.unknown_images}: give more, or choose at least {shown:.2%}"
                )
            if head._unknown_labels is not None or head._unknown_groups is not None:
                raise ValueError(
                    "the rate of this memory holds for each new class of unknowns (fewshot-nam calibrate --by-class), and would "
                    "hold for images alone: go on with that command, or forget the images of unknowns first"
                )
            if (made := self.promise) is not None and made.target == target:
                return made
            before = self._before(f"set the false-alarm rate to {target:.2%}")
            with collected_warnings() as said:
                # As sure as the memory's owner asked for, if they did.
                found = head.calibrate(
                    self._unknown.to(head.targets.device), target_fpr=target, confidence=head._confidence
                )
            self._changed(before)
            version, taken, unknown = self.version, head.snapshot(), self._unknown
        promise = promise_of(taken, found, unknown, target, said)
        with self._lock:
            # Another thread may have been faster with a newer one.
            if self._promise is None or self._promise[0] < version:
                self._promise = version, promise
        return promise

    @property
    def shown(self) -> tuple[int, bool, bool]:
        """What differs from before whenever there is something new to show; a promise and a save come after their version."""
        return self.version, self.promise is not None, self.saved

    @property
    def promise(self) -> Promise | None:
        """What the last calibration promised; ``None`` if there was none, or if anything has changed since."""
        made = self._promise
        return made[1] if made is not None and made[0] == self.version else None

    def check(
        self,
        known: Sequence[tuple[GivenImage, str]] = (),
        unknown: Sequence[GivenImage] = (),
        base: Sequence[GivenImage] = (),
        progress: Progress | None = None,
    ) -> Check:
        """Return the answers to images of known classes, of unknowns and of base classes; nothing is learned.

        Args:
            known: images with their classes.
            unknown: images that are to be refused.
            base: images of classes that the backbone was trained on; answers to them count as for ``unknown``.
            progress: called after every batch.

        Raises:
            ValueError: no image, too many, none that can be read, nothing was learned yet, or the rate cannot be kept.
        """
        now = self._now()
        if not now.ready.head.classes:
            raise ValueError("nothing was learned yet: teach a class first")
        if now.ready.wrong is not None:
            raise ValueError(now.ready.wrong)
        found = check_of(self.model, now.ready, self._unknown, known, unknown, base, progress, self.most_pixels)
        return found._replace(version=now.version)

    # Files.

    @property
    def saved(self) -> bool:
        """Whether all that the session knows was written to the file, and the file is still there."""
        return self._written and _version_of(self.path) is not None

    def save(self) -> Path:
        """Write the memory's file, whole or not at all; return its path. Changes and answers go on meanwhile.

        Images of unknowns are saved with it, also those that no rate was set with yet.

        Raises:
            ValueError: the session has no file, another program has changed it since it was opened or saved, or there are more
                images of unknowns without a rate than a file holds.
            OSError: the file cannot be written, or another program has been writing it for some seconds.
        """
        if self.path is None:
            raise ValueError(
                "this memory has no file: download it, or start the page with one: fewshot-nam page FILE.safetensors"
            )
        with self._file_lock, exclusive(self.path, _SECONDS_FOR_THE_FILE):
            # A file that is gone is written again: nothing of another program is lost.
            if _version_of(self.path) not in (None, self._file):
                raise ValueError(
                    f"{self.path.name} was changed by another program since it was opened here: reload it, or download this memory"
                )
            version = self._write(self.path)
            with self._lock:
                self._file, self._written = _version_of(self.path), self.version == version
        return self.path

    def reload(self) -> None:
        """Read the memory's file again. ``undo`` brings back what was not saved, for a download: ``save`` refuses then.

        Raises:
            ValueError: the session has no file, or it does not fit this backbone.
            OSError: the file cannot be read.
        """
        if self.path is None or not self.path.exists():
            raise ValueError("this memory was never saved to a file")
        with self._file_lock:
            present = _version_of(self.path)
            about, head, _ = read_head(self.path)
            head._snapshot()  # likewise
            notes = dict(about.get("notes") or {})  # other programs count their changes there
            unknown = unknowns_of(head, notes.pop(NOTED, None), self.model.backbone.feature_dim, self.path)
            with self._lock:
                before = self._before("reload the file")._replace(reloaded=True, file=self._file)
                self.model.load(self.path)
                self.notes = notes | {name: self.notes[name] for name in ("weights",) if name in self.notes}
                self._file, self._unknown = present, unknown
                learned = set(self.model.classes)
                self._thumbnails = {label: kept for label, kept in self._thumbnails.items() if label in learned}
                self._changed(before)
                self._written = True

    def copy_to(self, directory: str | Path) -> Path:
        """Write the memory to a file in ``directory``, for a download; return its path.

        Weights that are a file are looked for beside it: it does not tell where they lie on this machine.
        """
        name = "memory.safetensors" if self.path is None else as_unicode(self.path.name)
        path = Path(directory) / name
        self._write(path, folders=False)
        return path

    def export_to(self, directory: str | Path) -> Path:
        """Write backbone and memory as one ONNX file in ``directory``; return its path.

        Exports are made one after the other, each in a process of its own: ``torch.export`` changes what answers use meanwhile.
        A model of your own, which no other process can build, is exported in this one: ask nothing until it has ended.

        Raises:
            ImportError: the extra ``export`` is not installed.
            OSError: a file cannot be written.
            ValueError: as ``fewshot_nam.vision.export.export_onnx``, or the process was ended.
        """
        from fewshot_nam.vision.export import export_onnx, memory_of

        path = Path(directory) / ("memory" if self.path is None else as_unicode(self.path.stem))
        path = path.with_name(path.name + ".onnx")
        memory_of(self.model)  # raises what is wrong before a process is started
        with _EXPORTING:
            source = self.notes.get("weights")
            if source is None:  # a model of the user's own, which no other process can build
                model = NAMModel(copy.deepcopy(self.model.backbone), copy.deepcopy(self.model.head))
                export_onnx(model, path)
                return path
            weights = None if source == "published" else source
            if source not in NOT_FILES:
                weights = weights_file(self._noted_beside, source)
            with tempfile.TemporaryDirectory() as place:
                self._write(memory := Path(place) / "memory.safetensors")
                export_memory(memory, weights, path)
        return path

    # Parts.

    def _now(self) -> _Published:
        """Return the state after the last change that has ended; what was done to the head beside the session counts as one."""
        if self._lock.acquire(blocking=self._published is None):  # while a change is made, nothing waits for it
            try:
                if self._published is None or self._published.ready.head._snapshot() is not self.model.head._snapshot():
                    self._publish(self.version)
            finally:
                self._lock.release()
        assert self._published is not None
        return self._published

    def _publish(self, version: int) -> None:
        self._published = _Published(version, ready(self.model.head), dict(self._thumbnails))

    def _write(self, path: Path, folders: bool = True) -> int:
        """Write the memory as it is at the beginning, with the folder of its weights or without it; return its version."""
        with self._lock:
            version, head, unknown, notes = self.version, self.model.head.snapshot(), self._unknown, dict(self.notes)
        if not folders and notes.get("weights", "published") not in NOT_FILES:
            notes["weights"] = Path(notes["weights"]).name
        notes |= noted_unknowns(unknown, head)
        save_head(path, head, self.model.backbone, notes)
        return version

    def _before(self, what: str) -> Before:
        return Before(what, self.model.head.snapshot(), dict(self._thumbnails), self._unknown)

    def _changed(self, before: Before | None) -> None:
        if before is not None:
            self._undo.add(before, self.most_undo)
        self._written = False
        self._publish(self.version + 1)

    def _known(self, label: str) -> Label:
        """Return the class that is shown so; one that was learned in Python may be a number."""
        found = known_class(self.model.classes, label)
        return label if found is None else found


def _read_whole(
    path: Path, weights: str | None, device: str
) -> tuple[tuple[int, int, int, int] | None, tuple[NAMModel, dict[str, Any]]]:
    """Return what is in a memory's file, all of one version, and which."""
    for _ in range(_READS):
        present = _version_of(path)
        made = open_model(path, weights, device)
        made[0].head._snapshot()  # what cannot be answered from is refused here, not whenever the page is drawn
        if _version_of(path) == present:
            return present, made
    raise OSError(f"{path} was written by another program each time it was read: try again later")


def _in_order(made: tuple[NAMModel, dict[str, Any]], path: Path | None) -> tuple[NAMModel, Path | None, dict[str, Any]]:
    return made[0], path, made[1]


def _version_of(path: Path | None) -> tuple[int, int, int, int] | None:
    """Return which version of a file is there; ``None`` for none."""
    try:
        return None if path is None else file_version(path)
    except OSError:
        return None

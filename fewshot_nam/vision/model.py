"""A vision model with a memory for a head: frozen backbone and few-shot head in one module that takes images."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewshot_nam._deprecation import renamed_parameter
from fewshot_nam.heads import BaseCost, Calibration, Head, KeptClassifierHead, Label
from fewshot_nam.heads.validation import as_labels, warn_user
from fewshot_nam.io.regular_files import file_version
from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.hub import HubMethods
from fewshot_nam.vision.image_batches import Images, as_images, features_of
from fewshot_nam.vision.layers import LayerFeatures
from fewshot_nam.vision.memory_lock import exclusive
from fewshot_nam.vision.noted_weights import notes_for
from fewshot_nam.vision.saving import load_head, save_head

ModelT = TypeVar("ModelT", bound="NAMModel")


class NAMModel(HubMethods, nn.Module):
    """A model that learns a class from one image of it, and forgets it again; made by ``fewshot_nam.attach``.

    ``images`` is everywhere one image or several: the path of a file, a PIL image, a uint8 array ``(H, W, 3)`` or ``(H, W)``, a
    uint8 tensor ``(C, H, W)``; an iterable of these in any mixture, an array ``(B, H, W, 3)`` or a tensor ``(B, C, H, W)``.
    **A float tensor stands for images that went through the transform already.** Files and PIL images are turned as their EXIF
    orientation says.

    Args:
        backbone: images to features, frozen; stays in eval mode.
        head: features to scores.
        in_place: the head replaces the layer whose input are the features, so that the user's own model gives its scores.

    Attributes:
        backbone: as given.
        head: what was learned; ``head.threshold`` may be set by hand.
        batch_size: images that go through the backbone at a time. A float tensor is one batch.

    Example:
        >>> import numpy as np
        >>> from fewshot_nam import attach
        >>> black, grey = np.zeros((28, 28), np.uint8), np.full((28, 28), 128, np.uint8)
        >>> model = attach("conv4").learn([black, grey], ["black", "grey"])
        >>> model.predict(black)
        'black'
        >>> model.forget("black").classes
        ['grey']
    """

    head: Head
    backbone: Backbone

    def __init__(self, backbone: Backbone, head: Head, in_place: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.batch_size = 32
        self._in_place = in_place
        self._notes: dict[str, Any] = {}  # of the file that was loaded, which a file that is saved has too
        self._loaded_from = Path()
        self._versions: dict[str, tuple[int, int, int, int]] = {}  # of the files that were loaded or saved here
        weight = next(backbone.network.parameters(), None)
        self._set_head(head if weight is None else head.to(weight.device))

    # Learning and forgetting.

    def learn(self: ModelT, images: Images, labels: Label | Iterable[Label] | Tensor) -> ModelT:
        """Learn new classes, or further images of classes learned before; return the model.

        Where classes of a classifier are kept, ``base_cost`` says afterwards what that takes from them. A warning says if an image
        was learned before: it counts again.

        Args:
            images: ``n`` images.
            labels: ``n`` ints or strings, or one for all images.

        Raises:
            OSError: a file is missing or cannot be read.
            ValueError: a file is no image or is cut short (``UnreadableImage``), images and labels differ in number, or
                ``Head.write`` refuses the features. Nothing is learned then.
            TypeError: a label is neither an int nor a string, or an image has none of the forms above.
        """
        items, _ = as_images(images)
        names = as_labels(labels, len(items))
        with torch.no_grad():
            features = self.features(items)
            before = self.head.learned_before(features)
            self.head.write(features, names)
        repeated = [(name, earlier) for name, earlier in zip(names, before, strict=True) if earlier is not None]
        if repeated:
            count = "1 image was" if len(repeated) == 1 else f"{len(repeated)} images were"
            warn_user(
                f"learn: {count} learned before (the first, given as {repeated[0][0]!r}, as {repeated[0][1]!r}): it counts again; "
                "forget the class first to learn it anew"
            )
        return self

    def forget(self: ModelT, labels: Label | Iterable[Label] | Tensor) -> ModelT:
        """Forget classes: the model is then the same as one that never learned them. Return the model.

        Raises:
            ValueError: a label was never learned; nothing is forgotten then.
        """
        self.head.forget(labels)
        return self

    def snapshot(self) -> NAMModel:
        """Return the model as it is now, for serving: it answers as this one does now, while this one may learn in another thread.

        The backbone and the learned features are shared, not copied. A snapshot refuses to change: ``ValueError``.
        """
        taken = NAMModel(self.backbone, self.head.snapshot())
        taken.batch_size, taken._notes, taken._loaded_from = self.batch_size, self._notes, self._loaded_from
        taken._versions = self._versions  # a file that one of them saves is known to both
        return taken

    @property
    def classes(self) -> list[Label]:
        """The known classes in the order of the score columns: classes kept from the classifier, then learned ones by age."""
        return self.head.classes

    @property
    def base_cost(self) -> BaseCost | None:
        """What learned classes take from the classes kept from a classifier: the share of ``base_images`` that they answer.

        ``None`` without ``attach(..., keep_classes=..., base_images=...)``, or with a head of one's own.
        """
        return self.head.base_cost if isinstance(self.head, KeptClassifierHead) else None

    # Answers.

    def features(self, images: Images) -> Tensor:
        """Return the features ``(n, D)`` of ``n`` images, on the backbone's device.

        Raises:
            OSError, ValueError, TypeError: images as in ``learn``.
        """
        return features_of(self.backbone, images, self.batch_size)

    def forward(self, images: Images) -> Tensor:
        """Return scores ``(n, classes)`` of ``n`` images, columns as in ``classes``; larger means more like the class.

        Raises:
            OSError, ValueError, TypeError: images as in ``learn``, or no class is known yet.
        """
        self._check_knows_classes()
        return self.head(self.features(images))

    def predict(self, images: Images, unknown: Label | None = None) -> Label | list[Label]:
        """Return the best class of each image.

        Args:
            images: ``n`` images.
            unknown: the answer where the largest score is below ``head.threshold``; ``None`` never refuses.

        Returns:
            A list of ``n`` labels; for an image that is not in a list, one label.

        Raises:
            OSError, ValueError, TypeError: as calling the model, or ``unknown`` given before ``calibrate``.
        """
        self._check_knows_classes()
        items, single = as_images(images)
        with torch.no_grad():
            features = self.features(images if isinstance(images, Tensor) and not single else items)
        return self.head.predict(features[0] if single else features, unknown)

    def probabilities(self, images: Images) -> Tensor:
        """Return the probability of each class, ``(n, classes)``, for images of known classes; see ``Head.probabilities``.

        Raises:
            OSError, ValueError, TypeError: as calling the model, or ``calibrate`` was not given ``known_labels``.
        """
        self._check_knows_classes()
        return self.head.probabilities(self.features(images))

    @renamed_parameter("strangers", "unknown")
    def calibrate(
        self,
        unknown: Images,
        known: Images | None = None,
        *,
        target_fpr: float = 0.01,
        unknown_labels: Label | Iterable[Label] | Tensor | None = None,
        known_labels: Label | Iterable[Label] | Tensor | None = None,
        groups: Label | Iterable[Label] | Tensor | None = None,
        confidence: float | None = None,
    ) -> Calibration:
        """Set the threshold below which ``predict(..., unknown=)`` refuses; return what it rests on. See ``Head.calibrate``.

        Args:
            unknown: ``m`` images of what the model is to refuse, none of them learned.
            known: further images of known classes, not the learned ones: tells how many of them are accepted.
            target_fpr: at most this share of unknown images is accepted; it takes ``m >= 1 / target_fpr - 1`` of them, or as
                many classes with labels.
            unknown_labels: the classes of ``unknown``, for a bound that holds for unknown images of new classes.
            known_labels: the classes of ``known``: fits the temperature of ``probabilities`` as well.
            groups: images of ``unknown`` that are alike, such as the frames of a burst, share a label here: they count as one.
            confidence: the share of calibrations that is to keep ``target_fpr``; ``None`` keeps it on average.

        Raises:
            OSError, ValueError, TypeError: images as in ``learn``, or input that ``Head.calibrate`` refuses. Nothing changes then.

        Example:
            >>> import numpy as np
            >>> from fewshot_nam import attach
            >>> black = np.zeros((28, 28), np.uint8)
            >>> noise = np.random.default_rng(0).integers(0, 256, (9, 28, 28, 3), dtype=np.uint8)
            >>> model = attach("conv4").learn(black, "black")
            >>> model.calibrate(noise, target_fpr=0.1).bound
            0.1
            >>> model.predict([black, noise[0]], unknown="?")
            ['black', '?']
        """
        self._check_knows_classes()
        with torch.no_grad():
            refused = self.features(unknown)
            accepted = None if known is None else self.features(known)
        return self.head.calibrate(
            refused,
            accepted,
            target_fpr=target_fpr,
            unknown_labels=unknown_labels,
            known_labels=known_labels,
            groups=groups,
            confidence=confidence,
        )

    # Files.

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that was learned to one safetensors file. A crash leaves the old file or the new one.

        It holds what the head learned (features of images, classes, threshold or calibration) and its settings, and which backbone
        they belong to, but no weights of the backbone. What programs noted in a file that was loaded stays there: images of
        unknowns that the page was given, and where the weights are. Programs that change one file wait for each other.

        Raises:
            OSError: the directory is missing or cannot be written, or another program has been changing the file for five minutes.
            ValueError: the head has settings that JSON cannot hold, or this file was changed elsewhere since it was loaded or saved
                here: what was learned there would be lost.
        """
        with self._saving(path):
            save_head(path, self.head, self.backbone, notes_for(path, self._notes, self._loaded_from))

    @contextlib.contextmanager
    def _saving(self, path: str | os.PathLike[str]) -> Iterator[None]:
        """Let the block write a file: no other program changes it meanwhile, nor has since it was loaded or saved here."""
        place = os.path.realpath(path)
        with exclusive(Path(path)):
            known = self._versions.get(place)
            if known is not None and os.path.exists(place) and file_version(place) != known:
                raise ValueError(
                    f"{path} was changed elsewhere since it was loaded or saved here: load it and learn again, or save to another "
                    "file"
                )
            before = file_version(place) if os.path.exists(place) else None
            try:
                yield
            finally:  # what follows the save may fail, such as an upload
                if os.path.exists(place) and (after := file_version(place)) != before:
                    self._versions[place] = after

    def load(self: ModelT, path: str | os.PathLike[str]) -> ModelT:
        """Replace all that was learned, settings included, by what ``save`` wrote; return the model.

        Raises:
            OSError: the file is missing or cannot be read.
            ValueError: it is no such file, damaged, of a later format, or belongs to another backbone or another transform.
                Nothing changes then.
        """
        place = os.path.realpath(path)
        version = file_version(place)  # before it is read: what changes it meanwhile is noticed
        head, self._notes = load_head(path, self.head, self.backbone)
        self._loaded_from, self._versions[place] = Path(path).absolute(), version
        self._set_head(head)
        return self

    def _check_knows_classes(self) -> None:
        if not self.classes:
            raise ValueError("the model knows no class yet: call learn(images, labels) first")

    def _set_head(self, head: Head) -> None:
        if self._in_place and isinstance(self.backbone.network, LayerFeatures):
            self.backbone.network.replace(head)
        self.head = head

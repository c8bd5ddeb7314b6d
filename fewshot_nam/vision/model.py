"""A vision model with a memory for a head: frozen backbone and few-shot head in one module that takes pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from fewshot_nam.heads import Calibration, Head, Label
from fewshot_nam.heads.validation import as_labels
from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.hub import HubMethods
from fewshot_nam.vision.image_batches import Images, as_pictures, features_of
from fewshot_nam.vision.layers import LayerFeatures
from fewshot_nam.vision.saving import load_head, save_head

ModelT = TypeVar("ModelT", bound="NAMModel")


class NAMModel(HubMethods, nn.Module):
    """A model that learns a class from a picture of it, and forgets it again; made by ``fewshot_nam.attach``.

    ``images`` is everywhere one picture or many: the path of a file, a PIL picture, a uint8 array ``(H, W, 3)`` or ``(H, W)``, a
    uint8 tensor ``(C, H, W)``; an iterable of these, mixed as you like, an array ``(B, H, W, 3)`` or a tensor ``(B, C, H, W)``.
    **A float tensor is taken for pictures that went through ``transform`` already.** Files and PIL pictures are turned as their
    EXIF orientation says.

    Args:
        backbone: pictures to features, frozen; stays in eval mode.
        head: features to scores.
        in_place: the head takes the place of the layer whose input the backbone's network gives, and not only stands behind it.

    Attributes:
        backbone: as given.
        head: what was learned; ``head.threshold`` may be set by hand.
        batch_size: pictures that go through the backbone at a time, where they are not one float tensor.
    """

    head: Head
    backbone: Backbone

    def __init__(self, backbone: Backbone, head: Head, in_place: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.batch_size = 32
        self._in_place = in_place
        weight = next(backbone.network.parameters(), None)
        self._take(head if weight is None else head.to(weight.device))

    # Learning and forgetting.

    def learn(self: ModelT, images: Images, labels: Label | Iterable[Label] | Tensor) -> ModelT:
        """Learn new classes, or more pictures of classes that were learned before; return the model.

        Args:
            images: ``n`` pictures.
            labels: ``n`` ints or strings, or a single one for all pictures.

        Raises:
            OSError: a file is missing or cannot be read.
            ValueError: a picture that is none or is cut short (``UnreadablePicture``), not as many labels as pictures, or what
                ``Head.write`` refuses. Nothing is learned then.
            TypeError: a label is neither an int nor a string, or a picture nothing of the kind.
        """
        pictures, _ = as_pictures(images)
        names = as_labels(labels, len(pictures))
        with torch.no_grad():
            self.head.write(self.features(pictures), names)
        return self

    def forget(self: ModelT, labels: Label | Iterable[Label] | Tensor) -> ModelT:
        """Forget classes: the model is then the one that never saw them. Return the model.

        Raises:
            ValueError: a label was never learned; nothing is forgotten then.
        """
        self.head.forget(labels)
        return self

    @property
    def classes(self) -> list[Label]:
        """The known classes in the order of the score columns: classes kept from the classifier first, then as they came."""
        return self.head.classes

    # Answers.

    def features(self, images: Images) -> Tensor:
        """Return the features ``(n, D)`` of ``n`` pictures, on the backbone's device.

        Raises:
            OSError, ValueError, TypeError: pictures as in ``learn``.
        """
        return features_of(self.backbone, images, self.batch_size)

    def forward(self, images: Images) -> Tensor:
        """Return scores ``(n, classes)`` of ``n`` pictures, columns as in ``classes``; larger means more like the class.

        Raises:
            OSError, ValueError, TypeError: pictures as in ``learn``, or no class is known yet.
        """
        return self.head(self.features(images))

    def predict(self, images: Images, unknown: Label | None = None) -> Label | list[Label]:
        """Return the best class of each picture.

        Args:
            images: ``n`` pictures.
            unknown: what to answer where the largest score is below ``head.threshold``; ``None`` never refuses.

        Returns:
            A list of ``n`` labels; for a picture that came alone, one label.

        Raises:
            OSError, ValueError, TypeError: as calling the model, or ``unknown`` given before ``calibrate``.
        """
        pictures, single = as_pictures(images)
        with torch.no_grad():
            features = self.features(images if isinstance(images, Tensor) and not single else pictures)
        return self.head.predict(features[0] if single else features, unknown)

    def probabilities(self, images: Images) -> Tensor:
        """Return how likely each class is, ``(n, classes)``, for pictures of known classes; see ``Head.probabilities``.

        Raises:
            OSError, ValueError, TypeError: as calling the model, or ``calibrate`` was not given ``known_labels``.
        """
        return self.head.probabilities(self.features(images))

    def calibrate(
        self,
        strangers: Images,
        known: Images | None = None,
        *,
        target_fpr: float = 0.01,
        unknown_labels: Label | Iterable[Label] | Tensor | None = None,
        known_labels: Label | Iterable[Label] | Tensor | None = None,
    ) -> Calibration:
        """Set the threshold below which ``predict(..., unknown=)`` refuses; return what it rests on. See ``Head.calibrate``.

        Args:
            strangers: ``m`` pictures of what the model is to refuse, none of them learned.
            known: other pictures of known classes than were learned: tells how many of them are accepted.
            target_fpr: at most this share of strangers is accepted; it takes ``m >= 1 / target_fpr - 1`` of them, or as many
                classes with labels.
            unknown_labels: the strangers' classes, for a bound that holds for strangers of new classes.
            known_labels: the known pictures' classes: fits the temperature of ``probabilities`` as well.

        Raises:
            OSError, ValueError, TypeError: pictures as in ``learn``, or what ``Head.calibrate`` refuses. Nothing has changed then.
        """
        with torch.no_grad():
            unknown = self.features(strangers)
            accepted = None if known is None else self.features(known)
        return self.head.calibrate(
            unknown, accepted, target_fpr=target_fpr, unknown_labels=unknown_labels, known_labels=known_labels
        )

    # Files.

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that was learned to one safetensors file, whole or not at all: a crash leaves the file that was there.

        It holds what the head learned (features of pictures, classes, threshold or strangers) and its settings, and which
        backbone they belong to, but no weights of the backbone.

        Raises:
            OSError: the directory is missing or cannot be written.
            ValueError: the head has settings that JSON cannot hold.
        """
        save_head(path, self.head, self.backbone)

    def load(self: ModelT, path: str | os.PathLike[str]) -> ModelT:
        """Take over what ``save`` wrote, in place of all that was learned here, settings included; return the model.

        Raises:
            OSError: the file is missing or cannot be read.
            ValueError: it is no such file, damaged, of a later format, or belongs to another backbone or another transform of
                its pictures. Nothing has changed then.
        """
        self._take(load_head(path, self.head, self.backbone))
        return self

    def _take(self, head: Head) -> None:
        if self._in_place and isinstance(self.backbone.network, LayerFeatures):
            self.backbone.network.replace(head)
        self.head = head

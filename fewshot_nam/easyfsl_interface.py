"""A head with easyfsl's interface for few-shot classifiers, so that easyfsl's evaluation loops can run it.

easyfsl (1.5.0) calls ``process_support_set(images, labels)`` and then the classifier on the query images. It does not check the
class of the classifier, so this one needs no easyfsl.
"""

from __future__ import annotations

from torch import Tensor, nn

from fewshot_nam.heads import Head, create

__all__ = ["EasyFSLClassifier"]


class EasyFSLClassifier(nn.Module):
    """A backbone and a head as a few-shot classifier of easyfsl.

    Args:
        head: a name from ``fewshot_nam.heads.available()``, or a head that knows no class yet.
        backbone: images to features ``(n, D)``; ``None`` where the images given are features already.

    Raises:
        ValueError: an unknown head, one that needs base classes, or one that has learned classes.

    Example:
        >>> import torch
        >>> classifier = EasyFSLClassifier("nam")
        >>> classifier.process_support_set(torch.eye(3), torch.tensor([2, 0, 1]))
        >>> classifier(torch.eye(3)).argmax(dim=1).tolist()
        [2, 0, 1]
    """

    def __init__(self, head: str | Head = "nam", backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.head = create(head) if isinstance(head, str) else head
        if self.head.classes:
            raise ValueError(
                f"EasyFSLClassifier: this {type(self.head).__name__} knows {len(self.head.classes)} classes already, and every "
                "support set replaces what was learned: give a head that knows none"
            )
        self.backbone = nn.Identity() if backbone is None else backbone

    def process_support_set(self, support_images: Tensor, support_labels: Tensor) -> None:
        """Learn a support set, which replaces the one before.

        Args:
            support_images: ``(n, ...)``, as the backbone takes them.
            support_labels: ``(n,)`` ints from 0 to C - 1, each at least once, in any order.

        Raises:
            ValueError: other labels (easyfsl gives NaN then), features that are not ``(n, D)``, or those that heads refuse.
        """
        labels = support_labels.flatten()
        found = sorted(set(labels.tolist()))
        if found != list(range(len(found))):
            raise ValueError(
                f"process_support_set: labels must be 0 to {len(found) - 1}, as there are {len(found)} different ones, got "
                f"{found}: number the classes of the task"
            )
        features = self.compute_features(support_images)
        # Classes are written in the order of their labels, so that column c is label c.
        order = labels.argsort(stable=True)
        self.head.forget(self.head.classes)
        self.head.write(features[order], labels[order])

    def forward(self, query_images: Tensor) -> Tensor:
        """Return the head's scores ``(n, C)`` of images ``(n, ...)``; column c is label c.

        Raises:
            ValueError: no support set was processed, or features that heads refuse.
        """
        scores: Tensor = self.head(self.compute_features(query_images))
        return scores

    def compute_features(self, images: Tensor) -> Tensor:
        """Return features ``(n, D)``; ``ValueError`` where the backbone gives another shape."""
        features: Tensor = self.backbone(images)
        if features.dim() != 2:
            raise ValueError(
                f"EasyFSLClassifier: the backbone must give features (n, D), got shape {tuple(features.shape)}: pool or flatten"
            )
        return features

    def is_transductive(self) -> bool:
        """Return whether the scores of a query depend on the others that it is given with."""
        return self.head.transductive

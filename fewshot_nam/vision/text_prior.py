"""CLIP's text embeddings as a prior: classes are known by name before the first image of them.

An image tower and a text tower of CLIP map into one space, so the embedding of a name can be written as if it were an image of the
class. Images that are learned later are averaged with it.

How much an image then counts: the text counts as ``text_shots`` images, by default as one, so that n images and a name are n + 1
shots. That is the rule of Lin et al., "Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning with Multimodal Models"
(2023), section 3. It was not measured here, where no weights of CLIP are. ``choose_text_shots`` chooses the number on validation
classes of your own.

Embeddings of texts lie apart from those of images (Liang et al., "Mind the Gap", 2022). Where the mean feature of ordinary images
is known, texts are moved by the difference of the two means, so that a class with images and a class with a name alone can be
compared. Without it they cannot: images are closer to images than to texts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fewshot_nam.heads import Head, Label, create
from fewshot_nam.heads.validation import as_labels, checked_vectors, warn_user
from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.image_transform import RGBTransform, without_addresses

PROMPTS = ("a photo of a {}.",)
_MOST_SHOTS = 10_000  # that a text counts as
"""What a class name is put into before it is embedded; the embeddings of several prompts are averaged."""

Text = Iterable[str] | Mapping[str, Tensor]
"""Class names, or their embeddings ``(D,)`` by name."""


class ImageTower(nn.Module):
    """The image tower of a CLIP model of open_clip: images to features of length 1, ``(B, D)``.

    Args:
        visual: the model's ``visual``.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        """Return features of images ``(B, C, H, W)``."""
        found = self.visual(images)
        features: Tensor = found[0] if isinstance(found, tuple) else found
        return normalize(features, dim=-1)


def is_clip(model: object) -> bool:
    """Return whether a model has an image and a text tower, as those of open_clip."""
    named = all(callable(getattr(model, name, None)) for name in ("encode_image", "encode_text"))
    return named and isinstance(getattr(model, "visual", None), nn.Module)


def image_backbone(model: nn.Module, transform: Callable[[Any], Tensor] | None) -> Backbone:
    """Return the image tower of a CLIP model as a backbone. The model is copied and left as it is.

    Args:
        model: for which ``is_clip`` holds.
        transform: an RGB image to a tensor; ``None`` for open_clip's own for this model.

    Raises:
        ValueError: there is no transform, and open_clip does not know one.
    """
    visual = model.visual
    assert isinstance(visual, nn.Module)
    if transform is None:
        try:
            import open_clip

            size, mean, std = (getattr(visual, name, None) for name in ("image_size", "image_mean", "image_std"))
            transform = open_clip.image_transform(size or 224, is_train=False, mean=mean, std=std)
        except ImportError:
            raise ValueError(
                f"attach: how images are prepared for {type(model).__name__} is not known: install open_clip, or pass transform="
            ) from None
    assert transform is not None
    own = RGBTransform(transform)
    name = f"open_clip/{type(model).__name__}"
    return Backbone(name, ImageTower(copy.deepcopy(visual)), own, without_addresses(repr(transform)))


def text_embeddings(
    model: nn.Module,
    names: Iterable[str],
    *,
    tokenizer: Callable[[list[str]], Tensor] | None = None,
    prompts: Sequence[str] = PROMPTS,
) -> dict[str, Tensor]:
    """Return the embedding of every class name, ``(D,)`` of length 1.

    Args:
        model: of open_clip.
        names: of classes.
        tokenizer: texts to tokens, as ``open_clip.get_tokenizer`` gives it; ``None`` for CLIP's own, which is wrong for models with
            another text tower than CLIP's.
        prompts: each with ``{}`` for the name.

    Raises:
        ValueError: no names, no prompts, a prompt without ``{}``, or no tokenizer and open_clip is not installed.
    """
    wanted = [str(name) for name in names]
    if not wanted or not prompts or any("{}" not in prompt for prompt in prompts):
        raise ValueError(f"text: needs class names, and prompts with {{}} in each, got {wanted} and {list(prompts)}")
    if tokenizer is None:
        try:
            from open_clip import SimpleTokenizer
        except ImportError:
            raise ValueError("text: class names need a tokenizer: install open_clip, or pass tokenizer=") from None
        tokenizer = SimpleTokenizer(context_length=getattr(model, "context_length", 77))
    encode_text: Any = model.encode_text
    found = {}
    weight = next(model.parameters())
    with torch.no_grad():
        for name in wanted:
            tokens = tokenizer([prompt.format(name) for prompt in prompts]).to(weight.device)
            found[name] = normalize(normalize(encode_text(tokens).float(), dim=-1).mean(dim=0), dim=-1)
    return found


def write_text(head: Head, embeddings: Mapping[str, Tensor], text_shots: int = 1) -> Head:
    """Write classes that are known by the embeddings of their names; return the head.

    Args:
        head: what it subtracts from features, or the base classes that it knows, tells where images lie.
        embeddings: ``(D,)`` by class name, of the width of image features.
        text_shots: as how many images a name counts, 1 to 10,000.

    Raises:
        ValueError: no embeddings, NaN, infinite or zero ones, those of another width, or fewer than 1 text shot.
    """
    if isinstance(text_shots, bool) or not isinstance(text_shots, Integral) or not 1 <= text_shots <= _MOST_SHOTS:
        raise ValueError(f"text_shots must be a whole number from 1 to {_MOST_SHOTS:,}, got {text_shots!r}")
    if not embeddings:
        raise ValueError("text: there are no class names")
    names = as_labels(list(embeddings), len(embeddings))
    rows = torch.stack([torch.as_tensor(row) for row in embeddings.values()])
    width = head.feature_dim
    if width is not None and rows.shape[-1] != width:
        raise ValueError(
            f"text: the embeddings have width {rows.shape[-1]}, the image features {width}: give those of the same CLIP model"
        )
    rows = _moved(checked_vectors(rows, "text embeddings"), _image_mean(head))
    return head.write(
        rows.repeat_interleave(int(text_shots), dim=0), [name for name in names for _ in range(text_shots)]
    )


def _image_mean(head: Head) -> Tensor | None:
    """Return the mean feature of ordinary images, as far as the head knows it."""
    if head.mean.numel():
        return head.mean
    base = getattr(head, "base_statistics", None)
    return None if base is None else base.mean


def _moved(texts: Tensor, image_mean: Tensor | None) -> Tensor:
    """Return embeddings ``(n, D)`` where images lie."""
    if image_mean is None:
        warn_user(
            "text: where images lie is not known, so a class with images and a class with a name alone cannot be compared: give "
            "attach base_images, a hundred ordinary images"
        )
        return texts
    if len(texts) < 2:  # there is no mean that one name could be told from
        return texts
    return texts - texts.mean(dim=0) + image_mean.to(texts)


def choose_text_shots(
    embeddings: Mapping[str, Tensor],
    features: Tensor,
    labels: Iterable[Label] | Tensor,
    *,
    head: Callable[[], Head] = lambda: create("cosine"),
    shots: int = 1,
    candidates: Sequence[int] = (1, 2, 4, 8, 16),
    episodes: int = 50,
    seed: int = 0,
) -> int:
    """Return the number of images that a name should count as, by accuracy on validation classes; of equals the least.

    In each episode ``shots`` images of every class are learned beside its name, and all others are answered.

    Args:
        embeddings: ``(D,)`` by name of the validation classes.
        features: ``(n, D)`` of images of these classes.
        labels: ``n`` names.
        head: makes a new head, such as ``lambda: create("nam", base=base)``.
        shots: images a class, as later in use.
        candidates: numbers to try, each at least 1.
        episodes: how often images are drawn.
        seed: of the draws.

    Raises:
        ValueError: no candidates, a label that is no name, or a class with no more images than ``shots``.
    """
    names = as_labels(labels, len(features))
    places = {name: [i for i, label in enumerate(names) if label == name] for name in embeddings}
    if not candidates or set(names) - set(embeddings):
        raise ValueError("choose_text_shots: needs candidates, and an embedding for the name of every class")
    few = next((name for name, own in places.items() if len(own) <= shots), None)
    if few is not None:
        raise ValueError(
            f"choose_text_shots: class {few!r} has {len(places[few])} images, and {shots} are learned: give more"
        )
    generator, right = torch.Generator().manual_seed(seed), dict.fromkeys(candidates, 0)
    for _ in range(episodes):
        mixed = {name: [own[i] for i in torch.randperm(len(own), generator=generator)] for name, own in places.items()}
        taught = [i for own in mixed.values() for i in own[:shots]]
        asked = [i for own in mixed.values() for i in own[shots:]]
        for candidate in candidates:
            made = write_text(head(), embeddings, candidate).write(features[taught], [names[i] for i in taught])
            columns = made(features[asked]).argmax(dim=-1).tolist()
            right[candidate] += sum(made.classes[c] == names[i] for c, i in zip(columns, asked, strict=True))
    return max(sorted(candidates), key=lambda candidate: right[candidate])

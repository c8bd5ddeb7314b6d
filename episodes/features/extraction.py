"""Extraction of features: images pass through a frozen backbone into a feature bank, which is cached on disk.

The cache file's name is a hash of the backbone's name, weights and transform and of the images' ``change_token``. While a bank is
extracted, a ``.partial`` file beside it collects raw float32 rows, one for each image, NaN for a skipped one. A run that was
interrupted continues after the whole batches in that file; with the same batch size the result is the same bit for bit.
Another thread, or worker processes, open and transform the next images while the backbone runs. Where ``torchrun`` has started
several processes, they divide the batches among themselves (``episodes.features.distributed``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from episodes.data.class_names import odd_name
from episodes.data.image_dataset import ImageSet
from episodes.features.bank import FeatureBank
from episodes.features.cache import cached_bank, default_cache_dir, locked, rows_to_keep, writable
from episodes.features.distributed import broadcast_bank
from episodes.features.loading import ImageBatch, ImageBatches, check_size, unchanged
from fewshot_nam.distributed import broadcast_number, gather_rows, processes
from fewshot_nam.heap import keep_freed_memory
from fewshot_nam.io.one_line import one_line

EXTRACTION_FORMAT = 1  # increase it when the same backbone and images would give other features than before

PRECISIONS = ("float32", "bfloat16")


class Backbone(Protocol):
    """What extraction needs of a backbone: an ``nn.Module`` from images ``(B, C, H, W)`` to features ``(B, D)``."""

    @property
    def name(self) -> str:
        """For reports and the cache."""
        ...

    @property
    def feature_dim(self) -> int:
        """D."""
        ...

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        """From an image to a tensor ``(C, H, W)``; to be used with workers, it must be possible to pickle it."""
        ...

    @property
    def transform_id(self) -> str:
        """A text that changes with the transform."""
        ...

    @property
    def weights_hash(self) -> str:
        """A text that changes with the weights."""
        ...

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return features ``(B, D)``."""
        ...

    def modules(self) -> Iterable[torch.nn.Module]:
        """As ``nn.Module`` has it."""
        ...

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """As ``nn.Module`` has it."""
        ...

    def eval(self) -> Any:
        """As ``nn.Module`` has it."""
        ...

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As ``nn.Module`` has it."""
        ...


def extract(
    backbone: Backbone,
    dataset: ImageSet,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    cache_dir: str | os.PathLike[str] | None = "auto",
    skip_unreadable: bool = False,
    progress: bool = True,
    precision: str = "float32",
    channels_last: bool = False,
) -> FeatureBank:
    """Return the features of all images, from the cache where they are in it.

    In a group of processes (``fewshot_nam.distributed.joined``) all call this with the same arguments and get the same bank.

    Args:
        backbone: used in evaluation mode on ``device``; afterwards it is in the mode and on the device that it was before.
        dataset: n images.
        batch_size: images at a time; another batch size may change the last bits of features.
        workers: processes that open and transform images; with 0, a thread of this process does.
        device: where the backbone runs. The features are returned on the CPU.
        cache_dir: a directory; None for no cache; "auto" for ``$FEWSHOT_NAM_CACHE``, else ``$XDG_CACHE_HOME/fewshot-nam``, else
            ``~/.cache/fewshot-nam``. If it cannot be written, there is a warning and nothing is cached.
        skip_unreadable: leave out images that cannot be decoded, or for which the transform raises an error, and list them in
            the bank's ``skipped``, with a warning; else they are errors.
        progress: show a bar on stderr, if that is a terminal and the work takes more than a second.
        precision: ``"float32"``, or ``"bfloat16"`` for torch's autocast: several times as fast on hardware with bfloat16, and
            features are right to two or three digits. Each precision has its own cache file.
        channels_last: store images and weights with channels last, which is often faster for convolutions. It may change the last
            bits of features, so these have their own cache file.

    Returns:
        A bank of ``(n - skipped, D)`` float32 features with the classes of ``dataset``; mapped from its file where it is cached.

    Raises:
        UnreadableImage: an image that cannot be decoded, or a link that leads nowhere, without ``skip_unreadable``.
        OSError: an image's file is missing or cannot be read, also with ``skip_unreadable``.
        ValueError: no images, or none that can be read and transformed; a transform that fails, without ``skip_unreadable``, or
            whose tensors differ in size; features of another shape, not finite, or all zeros. The message names the image.

    Example:
        >>> import backbones
        >>> from episodes.data.image_dataset import ArrayImages
        >>> pixels = np.zeros((2, 28, 28), dtype=np.uint8)
        >>> pixels[0, 5:9], pixels[1, :, 5:9] = 255, 255
        >>> images = ArrayImages("lines", pixels, [0, 1], ["across", "down"])
        >>> extract(backbones.create("conv4"), images, cache_dir=None, progress=False)
        FeatureBank(2 items, 2 classes, 64 features, float32)
    """
    if not len(dataset):
        raise ValueError(f"extract: {dataset.name} has no images")
    if batch_size < 1 or workers < 0:
        raise ValueError(
            f"extract: batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}"
        )
    if precision not in PRECISIONS:
        raise ValueError(f"extract: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    work = _Work(
        backbone,
        dataset,
        batch_size,
        workers,
        torch.device(device),
        skip_unreadable,
        progress,
        precision,
        channels_last,
    )
    folder = default_cache_dir() if cache_dir == "auto" else None if cache_dir is None else Path(cache_dir).expanduser()
    with keep_freed_memory():
        bank = _together(work, folder) if processes()[1] > 1 else _alone(work, folder)
    if bank.skipped:
        warnings.warn(
            f"extract: left out {len(bank.skipped)} unreadable images of {dataset.name}, the first is {bank.skipped[0]}",
            stacklevel=2,
        )
    return bank


def cache_key(backbone: Backbone, dataset: ImageSet, precision: str = "float32", channels_last: bool = False) -> str:
    """Return the name, without ending, under which the features of ``dataset`` by ``backbone`` are cached."""
    parts = [EXTRACTION_FORMAT, backbone.name, backbone.weights_hash, backbone.transform_id, backbone.feature_dim]
    if precision != "float32":
        parts.append(precision)
    if channels_last:  # it changes the last bits of features
        parts.append("channels last")
    token = dataset.change_token if hasattr(dataset, "change_token") else dataset.fingerprint
    return hashlib.sha256(json.dumps([*parts, token]).encode()).hexdigest()


class _Work(NamedTuple):
    backbone: Backbone
    dataset: ImageSet
    batch_size: int
    workers: int
    device: torch.device
    skip_unreadable: bool
    progress: bool
    precision: str
    channels_last: bool


def _together(work: _Work, folder: Path | None) -> FeatureBank:
    """Return the bank in every process: process 0 works as a single process does, and calls the others when there is work."""
    if processes()[0] == 0:
        bank = _alone(work, folder)
        broadcast_number(len(work.dataset))  # no work left
        return broadcast_bank(bank)
    while (start := broadcast_number()) < len(work.dataset):
        _run(work, start, lambda start, rows: None)
    return broadcast_bank(None)


def _run(work: _Work, start: int, take: Callable[[int, np.ndarray], None]) -> None:
    """Hand the features of image ``start`` and all after it to ``take``, batch by batch.

    Args:
        work: what to do.
        start: the number of the first image, a multiple of the batch size.
        take: called with the number of a batch's first image and its rows ``(b, D)``, NaN for an image that is skipped.
    """
    from tqdm import tqdm

    rank, count = processes()
    if count > 1 and rank == 0:
        broadcast_number(start)
    n, size = len(work.dataset), work.batch_size
    bar = tqdm(
        total=n,
        initial=start,
        desc=one_line(f"{work.backbone.name} {work.dataset.name}"),
        unit="image",
        delay=1.0,
        disable=None if work.progress and rank == 0 else True,  # None: no bar where stderr is not a terminal
        leave=False,
    )
    first, last = start // size, -(-n // size)
    none = np.empty((0, work.backbone.feature_dim), dtype=np.float32)
    with bar, contextlib.closing(_features(work, range(first + rank, last, count))) as own:
        for turn in range(first, last, count):
            rows = next(own) if turn + rank < last else none
            # One batch of each process, in the order of the batches.
            for number, part in enumerate([rows] if count == 1 else _gathered(rows, size), turn):
                if number < last:
                    whole = part[: n - number * size]
                    take(number * size, whole)
                    bar.update(len(whole))


def _gathered(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [part.numpy() for part in gather_rows(torch.from_numpy(rows), size)]


def _features(work: _Work, numbers: range) -> Generator[np.ndarray, None, None]:
    """Yield the features ``(b, D)`` of the batches ``numbers``, NaN for an image that is skipped."""
    dataset = work.dataset
    batches = ImageBatches(dataset, work.backbone.transform, work.batch_size, work.skip_unreadable)
    source: contextlib.AbstractContextManager[Iterable[ImageBatch]] = _ahead(batches, numbers)
    if work.workers:
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=numbers,  # type: ignore[arg-type]
            num_workers=work.workers,
            collate_fn=unchanged,
        )
        source = contextlib.nullcontext(loader)
    layout = torch.channels_last if work.channels_last else torch.preserve_format
    size: torch.Size | None = None
    with _ready(work.backbone, work.device, layout), source as made:
        for batch in made:
            if batch.error is not None:
                raise batch.error
            rows = np.full((len(batch.indices), work.backbone.feature_dim), np.nan, dtype=np.float32)
            if batch.images is not None:
                size = size or batch.images.shape[1:]
                check_size(dataset, batch.kept[0], batch.images[0], size)
                # Entered for each batch: a context that a generator is inside of applies to its caller too.
                autocast = torch.autocast(work.device.type, torch.bfloat16, enabled=work.precision == "bfloat16")
                with torch.inference_mode(), autocast:
                    features = work.backbone(batch.images.to(work.device, memory_format=layout))
                rows[[i - batch.indices.start for i in batch.kept]] = _checked(work, features, batch.kept)
            yield rows


@contextlib.contextmanager
def _ahead(batches: ImageBatches, numbers: range) -> Iterator[Iterator[ImageBatch]]:
    """Enter a context that gives the batches ``numbers``; a thread prepares the next one while the caller uses this one.

    It is a context so that the thread ends here and now. A generator that holds the thread would outlive an error, whose traceback
    keeps it, until the garbage collector closes it: at any time, in any thread. In one that is just starting, ``threading`` holds
    the lock that the end of another thread needs, and both wait for ever.
    """
    with ThreadPoolExecutor(1) as thread:

        def made() -> Iterator[ImageBatch]:
            pending = None
            for number in numbers:
                following = thread.submit(batches.__getitem__, number)
                if pending is not None:
                    yield pending.result()
                pending = following
            if pending is not None:
                yield pending.result()

        yield made()


def _checked(work: _Work, features: Tensor, indices: list[int]) -> np.ndarray:
    expected = (len(indices), work.backbone.feature_dim)
    if not isinstance(features, Tensor) or features.shape != expected:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"extract: backbone {work.backbone.name} gave {got}, expected features {expected}")
    values = features.float().cpu().numpy()
    for fault, bad in (("not finite", ~np.isfinite(values).all(1)), ("all zeros", ~values.any(1))):
        if bad.any():
            image = work.dataset.describe(indices[int(np.flatnonzero(bad)[0])])
            raise ValueError(
                f"extract: backbone {work.backbone.name} gave features that are {fault} for {image}; "
                "check the image, or use another backbone or precision"
            )
    return values


@contextlib.contextmanager
def _ready(backbone: Backbone, device: torch.device, layout: torch.memory_format) -> Iterator[None]:
    """Put the backbone on ``device``, in evaluation mode and in ``layout``; restore device and modes afterwards."""
    training = [module for module in backbone.modules() if module.training]
    home = next((parameter.device for parameter in backbone.parameters()), None)
    backbone.eval()
    backbone.to(device)
    backbone.to(memory_format=layout)
    try:
        yield
    finally:
        if home is not None:
            backbone.to(home)
            if layout == torch.channels_last:
                backbone.to(memory_format=torch.contiguous_format)
        for module in training:
            module.training = True


def _bank(work: _Work, rows: np.ndarray) -> FeatureBank:
    """Return the bank of ``rows`` (n, D), one for each image, without those that are NaN."""
    skipped = np.flatnonzero(np.isnan(rows[:, 0]))
    labels = work.dataset.labels
    if len(skipped) == len(rows):
        raise ValueError(f"extract: none of the {len(rows)} images of {work.dataset.name} can be read and transformed")
    if len(skipped):
        rows, labels = np.delete(rows, skipped, axis=0), np.delete(labels, skipped)
    provenance = {
        "backbone": work.backbone.name,
        "weights_hash": work.backbone.weights_hash,
        "transform_id": work.backbone.transform_id,
        "dataset": work.dataset.name,
        "dataset_fingerprint": work.dataset.fingerprint,
        **({} if work.precision == "float32" else {"precision": work.precision}),
        "skipped": json.dumps([work.dataset.describe(int(index)) for index in skipped]),
    }
    return FeatureBank(rows, labels, work.dataset.classes, provenance=provenance)


def _without_cache(work: _Work) -> FeatureBank:
    rows = np.empty((len(work.dataset), work.backbone.feature_dim), dtype=np.float32)

    def take(start: int, batch: np.ndarray) -> None:
        rows[start : start + len(batch)] = batch

    _run(work, 0, take)
    return _bank(work, rows)


def _alone(work: _Work, folder: Path | None) -> FeatureBank:
    if folder is None:
        return _without_cache(work)
    path = folder / f"{cache_key(work.backbone, work.dataset, work.precision, work.channels_last)}.safetensors"
    bank = cached_bank(path, work.skip_unreadable)  # before any lock, so that a read-only cache can be used
    if bank is not None:
        # The same images may be in the cache under another name, or from a version with another fingerprint.
        bank.provenance |= {"dataset": work.dataset.name, "dataset_fingerprint": work.dataset.fingerprint}
        return bank
    if not writable(folder):
        return _without_cache(work)
    with locked(path, work.progress):
        bank = cached_bank(path, work.skip_unreadable)  # another process may have written it while this one waited
        if bank is None:
            _into_cache(work, path)
            bank = FeatureBank.load(path, check=False)
    return bank


def _into_cache(work: _Work, path: Path) -> None:
    if (reason := odd_name(work.dataset.classes)) is not None:  # before the work, since the bank could not be saved
        raise ValueError(f"extract: {work.dataset.name}: {reason}")
    partial = path.with_suffix(".partial")
    n, width = len(work.dataset), work.backbone.feature_dim
    start = rows_to_keep(partial, width, work.batch_size, n, work.skip_unreadable) if partial.exists() else 0
    with open(partial, "ab") as file:
        file.truncate(start * width * 4)

        def take(_: int, batch: np.ndarray) -> None:
            file.write(batch.astype("<f4").tobytes())
            file.flush()

        if start < n:
            _run(work, start, take)
    rows = np.memmap(partial, dtype="<f4", mode="r", shape=(n, width))
    _bank(work, rows).save(path)
    del rows  # Windows cannot delete a file that is still mapped
    partial.unlink()

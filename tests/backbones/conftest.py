"""Small files of weights, made on the spot."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

BASE_CLASSES = ["Latin/a", "Latin/b", "Greek/alpha"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Run these small networks on one thread: with more they only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bundled_file(tmp_path: Path, conv4_state: dict[str, Tensor]) -> Callable[..., Path]:
    """Write a file in the form of the package's weights; keywords replace the prototypes or the metadata."""

    def write(prototypes: Tensor | None = None, metadata: dict[str, str] | None = None) -> Path:
        tensors = {f"model.{key}": value for key, value in conv4_state.items()}
        tensors["base_prototypes"] = torch.arange(3 * 64.0).reshape(3, 64) if prototypes is None else prototypes
        card = {"base_classes": BASE_CLASSES, "recipe": "made up"}
        path = tmp_path / "conv4.safetensors"
        save_file(tensors, path, metadata={"card": json.dumps(card)} if metadata is None else metadata)
        return path

    return write

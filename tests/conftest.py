"""What all tests share: one processor thread, hypothesis without chance or deadlines, and where the real data are."""

import os
from pathlib import Path

# Small tensors gain nothing from threads, and threads that wait for each other on a busy machine lose a lot. Libraries read this
# when they are imported, and programs that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from torch import Tensor

# The same examples on every run, and no deadline: a slow machine is no failure.
settings.register_profile("house", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("house")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread():
    """Leave one thread behind, whatever a test has set: sums of two threads have other bits, which later tests compare."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Keep features out of the user's cache."""
    monkeypatch.setenv("FEWSHOT_NAM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return where the real data sets are laid out; skip where FEWSHOT_DATA is unset."""
    place = os.environ.get("FEWSHOT_DATA")
    if not place:
        pytest.skip("FEWSHOT_DATA is not set: it names the directory of real data sets")
    return Path(place)


@pytest.fixture(scope="session")
def conv4_state() -> dict[str, Tensor]:
    """A state dict of Conv4 whose every value differs from a fresh network's."""
    from backbones.conv4 import Conv4

    generator = torch.Generator().manual_seed(3)
    return {
        key: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value + 7
        for key, value in Conv4().state_dict().items()
    }

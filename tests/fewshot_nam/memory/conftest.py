"""The networks with and without compiled kernels."""

import os
import shlex
import shutil
from collections.abc import Iterator
from ctypes import CDLL

import pytest

from fewshot_nam.memory.native import kernels


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> CDLL:
    """Return kernels built for this session; skip where there is no compiler."""
    compilers = [*shlex.split(os.environ.get("CXX", "c++"))[:1], "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        pytest.skip("no C++ compiler to build kernels with")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_NAM_CACHE", str(tmp_path_factory.mktemp("kernels")))
        patch.delenv("FEWSHOT_NAM_COMPILE", raising=False)
        assert kernels.build_kernels()
        return kernels.library()


@pytest.fixture(scope="module", params=["torch", "compiled"])
def either(request) -> Iterator[str]:
    """Run a module's tests once without kernels and once with them."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "compiled":
            request.getfixturevalue("built")
        patch.setenv("FEWSHOT_NAM_COMPILE", "0" if request.param == "torch" else "1")
        yield request.param


@pytest.fixture(scope="module")
def compiled(built) -> Iterator[None]:
    """Run a module's tests with kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_NAM_COMPILE", "1")
        yield

"""A server may open more files than a shell lets its programs, as far as the system allows."""

import subprocess
import sys

import pytest

resource = pytest.importorskip("resource", reason="Windows has no such limit")


@pytest.mark.parametrize(("soft", "hard", "expected"), [(256, 1024, 1024), (1024, 20000, 16384), (18000, 20000, 18000)])
def test_the_limit_is_raised_and_never_lowered(soft, hard, expected):
    if (most := resource.getrlimit(resource.RLIMIT_NOFILE)[1]) != resource.RLIM_INFINITY and most < hard:
        pytest.skip(f"this system allows {most} files")
    asked = (
        "import resource; from fewshot_nam.service.open_files import raise_open_files; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
        "print(raise_open_files(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    assert found == [str(expected), str(expected), str(hard)]

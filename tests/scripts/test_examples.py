"""The examples run from beginning to end, with little to learn: that they work, not how well."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "scripts" / "examples"


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("lsam_for_lstm.py", ["--steps", "3"], "LSAM: 26,040 parameters"),
        ("tensor_memory.py", [], "the same key reads the value again"),
        ("transformer_stream.py", ["--lengths", "16", "32"], "largest difference"),
        ("turing_reverse.py", ["--steps", "8", "--strings", "2", "--plot", "heads.png"], "longer   exactly right"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith(".py") else None,
)
def test_example_runs(name, arguments, said, tmp_path):
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert not done.stderr
    if "--plot" in arguments:
        assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")


def test_every_example_is_run():
    listed = test_example_runs.pytestmark[0].args[1]
    assert {path.name for path in EXAMPLES.glob("*.py")} == {case[0] for case in listed}

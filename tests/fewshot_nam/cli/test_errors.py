"""How commands end where standard output cannot be written: with their files, and with an exit status that is true."""

import os
import subprocess
import sys

import pytest

COMMAND = """
import sys
from pathlib import Path
from fewshot_nam.cli.errors import exit_status

def work():
    for _ in range(3):
        print("m\\u00fcg \\u2193" * 10_000, flush=True)
    Path(sys.argv[1]).write_text("whole")
    if sys.argv[2:]:
        raise BrokenPipeError("the server has gone")

raise SystemExit(exit_status(work))
"""


def ended(tmp_path, out, *more, **environment):
    out = open(out, "w") if isinstance(out, str) else out  # noqa: SIM115  closed below
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "file"), *more]
    with out:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, env={**os.environ, **environment}, text=True, check=False
        )
    assert (tmp_path / "file").read_text() == "whole"
    return done.returncode, done.stderr


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def test_a_reader_that_has_gone_costs_no_file(tmp_path):
    """A script that printed before it wrote its files ended with exit status 0 and without them."""
    assert ended(tmp_path, closed_pipe()) == (0, "")


def test_a_closed_standard_error_costs_no_work(tmp_path):
    """What asks it whether it is a terminal, as progress bars do, ended the work."""
    code = "import sys; from fewshot_nam.cli.errors import exit_status; sys.exit(exit_status(lambda: print(sys.stderr.isatty())))"
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "False\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_on_a_full_disk_costs_no_file_and_is_said(tmp_path):
    wrong = "error: standard output cannot be written (No space left on device)"
    said = f"{wrong}: files that were asked for are written all the same\n"
    assert ended(tmp_path, "/dev/full") == (2, said)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_characters_that_the_output_has_not_are_escaped(tmp_path, encoding):
    assert ended(tmp_path, str(tmp_path / "out"), PYTHONIOENCODING=encoding) == (0, "")
    assert "\\u2193" in (tmp_path / "out").read_text(encoding)


def test_another_pipe_that_breaks_is_an_error(tmp_path):
    assert ended(tmp_path, str(tmp_path / "out"), "raise") == (2, "error: the server has gone\n")

"""The commands that an installation makes: an interrupt ends them in one line from their first import on."""

import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11 and later

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
# What pip writes, and an interrupt at the import of a module.
START = """
import sys

at = sys.argv.pop(1)

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == at:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from {module} import {function}
sys.exit({function}())
"""


def started(command, *words):
    module, function = COMMANDS[command].split(":")
    code = START.format(module=module, function=function)
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("module", ["argparse", "fewshot_nam.cli.errors", "fewshot_nam.vision.libraries"])
def test_an_interrupt_while_a_command_starts_is_one_line(command, module):
    """It was a traceback, in the first half second."""
    done = started(command, module, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_not_interrupted_runs(command):
    assert started(command, "no.module", "--version").stdout.startswith(f"{command} ")


def test_threads_that_go_on_do_not_abort_the_process():
    """A page that was stopped while it read images ended with SIGABRT: "terminate called without an active exception"."""
    program = """
import atexit, sys, threading, time
import torch
from fewshot_nam.cli.starting import end

def work():
    network, image = torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 64, 64)
    while True:
        network(image)
        begun.set()

atexit.register(print, "removed")
begun = threading.Event()
threading.Thread(target=work, daemon=True).start()
begun.wait(60)
sys.stdout.write("said ")
sys.exit(end(3))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said removed\n", "")

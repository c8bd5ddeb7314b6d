"""A project with directories ``backbones`` and ``episodes`` of its own can use everything but the bundled networks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LIBRARY = """
import sys
import numpy as np, timm, torch
import fewshot_nam
from fewshot_nam import NAMClassifier, attach
from fewshot_nam.vision.catalogue import available

torch.manual_seed(0)
images = np.zeros((4, 64, 64, 3), dtype=np.uint8)
images[2:] = 255
for model in (attach(timm.create_model("test_resnet")), attach("timm/test_resnet", weights=False)):
    model.learn(images, ["a", "a", "b", "b"])
    assert model.predict(images) == ["a", "a", "b", "b"]
features = np.eye(4)
assert list(NAMClassifier().fit(features, [0, 1, 2, 3]).predict(features)) == [0, 1, 2, 3]
assert not [name for name in available() if "/" not in name]
try:
    attach("conv4")
except ImportError as error:
    print(error)
try:
    attach("nonsense")
except ValueError as error:
    assert str(error).startswith("no backbone 'nonsense': "), error
else:
    raise AssertionError
assert not {"backbones", "episodes"} & set(sys.modules)
"""

COMMAND = """
import contextlib, io, sys
from PIL import Image
from fewshot_nam.cli.main import main

Image.new("RGB", (64, 64), "red").save("red.png")
with contextlib.suppress(SystemExit):
    main(["--help"])
machine = ["--weights", "random", "--quiet"]
assert main(["learn", "red.png", "--label", "red", "--out", "m.st", "--backbone", "timm/test_resnet", *machine]) == 0
assert main(["predict", "red.png", "--memory", "m.st", *machine]) == 0
assert main(["learn", "red.png", "--label", "red", "--out", "n.st", *machine]) == 2
assert not {"backbones", "episodes"} & set(sys.modules)
"""


@pytest.fixture
def run_in_own_project(tmp_path):
    """Run code in a directory whose ``backbones`` and ``episodes`` must not be imported."""
    for name in ("backbones", "episodes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('the project's own {name}')\n")

    def run(code):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_attach_and_the_estimators_work(run_in_own_project, tmp_path):
    done = run_in_own_project(LIBRARY)
    assert done.returncode == 0, done.stderr
    assert "backbone 'conv4': names that do not start with timm/ or torchvision/ are looked up in" in done.stdout
    assert f"finds {tmp_path / 'backbones' / '__init__.py'} in its place: rename" in done.stdout


def test_the_command_works(run_in_own_project):
    done = run_in_own_project(COMMAND)
    assert done.returncode == 0, done.stderr
    assert "usage: fewshot-nam" in done.stdout
    assert "learned red (1 " in done.stdout
    assert "error: backbone 'conv4'" in done.stderr

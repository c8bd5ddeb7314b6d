"""The reference lists every public name."""

import importlib
import re
from pathlib import Path

import pytest

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
PACKAGES = [
    "backbones",
    "episodes",
    "fewshot_nam",
    "fewshot_nam.heads",
    "fewshot_nam.memory",
    "fewshot_nam.sequences.models",
    "fewshot_nam.sequences.tasks",
    "fewshot_nam.sequences.training",
    "fewshot_nam.vision",
]


def resolved(name):
    """Return the object of this dotted name; where a function and its module have one name, the function."""
    found = importlib.import_module(name.partition(".")[0])
    path = found.__name__
    for part in name.split(".")[1:]:
        path += f".{part}"
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(path)
    return found


@pytest.fixture(scope="module")
def listed():
    """Return what the pages of the reference document, by its name on the page."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in REFERENCE.glob("*.md"))
    names = re.findall(r"^\.\. auto(?:class|data|function):: ([\w.]+)$", text, re.MULTILINE)
    return {name: resolved(name) for name in names}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package, listed):
    module = importlib.import_module(package)
    absent = [name for name in module.__all__ if not any(getattr(module, name) is found for found in listed.values())]
    assert not absent, f"list these in docs/reference: {', '.join(f'{package}.{name}' for name in absent)}"

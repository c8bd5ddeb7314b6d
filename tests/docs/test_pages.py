"""Every Python block and every command of the documentation runs, in the order of its page, and prints what the page says.

A page is one session in an empty directory that holds ``photos/`` and ``unknown/``, handwritten digits as image files. Python
blocks share their names. A block of ``text`` right after a block is what that prints; ``...`` in it stands for anything. Of
``bash`` blocks, the two commands of the project are run, up to a comment.
"""

import contextlib
import doctest
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import episodes.cli.main
import fewshot_nam.cli.main
from episodes.data import registry as data_sets
from episodes.metrics import registry as measures
from fewshot_nam.heads import registry as head_registry
from fewshot_nam.vision.libraries import registry as libraries

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
BLOCK = re.compile(r"^```(?P<kind>[\w{}-]*)[^\n]*\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = {"fewshot-nam": fewshot_nam.cli.main.main, "fewshot-nam-eval": episodes.cli.main.main}
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

# Commands that need what a test must not fetch or what the page makes the reader supply.
NOT_RUN = ("omniglot", "timm/", "torchvision/", "DIR", "FILE", "DATA", "torchrun")


def blocks(page: Path) -> list[tuple[int, str, str, str | None]]:
    """Return line, kind and body of each block of a page that runs, and what the page says it prints, or ``None``."""
    text = page.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    runs = []
    for block, following in zip(found, [*found[1:], None], strict=False):
        if block["kind"] in ("python", "bash"):
            said = None
            if following is not None and following["kind"] == "text":
                between = text[block.end() : following.start()].strip()
                said = following["body"] if between in ("", "prints", "It prints") else None
            runs.append((text.count("\n", 0, block.start()) + 1, block["kind"], block["body"], said))
    return runs


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Stand in a directory with images: of zero to four to learn from, and of the other digits."""
    digits = load_digits()
    for name, label in zip(NAMES, range(10), strict=True):
        place = tmp_path / ("photos" if label < 5 else "unknown") / name
        place.mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == label][:30]):
            ink = Image.fromarray(np.uint8(255 - 15 * image)).resize((32, 32), Image.Resampling.BICUBIC)
            ink.save(place / f"{name}_{number:02}.png")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def registries():
    """Forget afterwards what a page registers."""
    changed = [data_sets._ENTRIES, head_registry._SPECS, libraries.LIBRARIES, measures.MEASURES]
    before = [dict(registry) for registry in changed]
    yield
    for registry, entries in zip(changed, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.mark.usefixtures("desk", "registries")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run_and_print_what_the_page_says(page):
    names: dict[str, object] = {}
    for line, kind, body, said in blocks(page):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            if kind == "python":
                exec(compile("\n" * line + body, str(page), "exec"), names)
            else:
                ran = [run_command(command) for command in body.replace("\\\n", " ").splitlines()]
                if not any(ran):
                    continue
        if said is not None:
            checker = doctest.OutputChecker()
            same = checker.check_output(said, out.getvalue(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            assert same, f"{page.name}, line {line}: the page says\n{said}\nand it prints\n{out.getvalue()}"


def run_command(line: str) -> bool:
    """Run one of our commands and return True; leave any other line alone."""
    words = shlex.split(line, comments=True)
    if not words or words[0] not in COMMANDS or any(word in line for word in NOT_RUN):
        return False
    assert COMMANDS[words[0]](words[1:]) == 0, line
    return True


def test_pages_are_reached_from_the_first_one():
    reached, waiting = set(), [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for tree in re.findall(
            r"^```\{toctree\}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        ):
            entries = [line.strip() for line in tree.splitlines() if line.strip() and not line.startswith(":")]
            paths = [re.sub(r".*<(.*)>", r"\1", entry) for entry in entries]
            waiting += [page.parent / f"{path}.md" for path in paths]
    assert reached == set((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_names_exists(page):
    tops = "fewshot_nam|episodes|backbones|scripts|tests|docs|results|requirements"
    for path in re.findall(rf"`((?:{tops})/[\w./*-]*)`", page.read_text(encoding="utf-8")):
        assert list(ROOT.glob(path.rstrip("/"))), f"{page.name} names {path}"

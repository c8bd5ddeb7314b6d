"""The page "systems of the papers": no empty cell, no unknown name, and nothing left out."""

import re
from pathlib import Path

from fewshot_nam import memory
from fewshot_nam.sequences import models, tasks
from fewshot_nam.sequences.reinforcement import MODELS, environments

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "explanation" / "systems.md").read_text(encoding="utf-8")
NOT_OF_THESE_PAPERS = {  # the suites of the Chomsky hierarchy, of state tracking and of recall
    *("parity", "even_pairs", "cycle_navigation", "modular_arithmetic", "reverse_string", "duplicate_string"),
    *("odds_first", "missing_duplicate", "stack_manipulation", "binary_addition", "bucket_sort", "marked_copy"),
    *("marked_reversal", "mqar", "s5", "a5"),
}


def rows(title):
    """Return the cells of the first table below a heading."""
    table = re.search(r"(^\|.*\n)+", PAGE.split(f"\n## {title}\n")[1], re.MULTILINE)[0]
    lines = table.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names(cell):
    return re.findall(r"`([\w-]+)`", cell)


def test_no_cell_is_empty_and_every_test_exists():
    for title, columns in (("Systems", 6), ("Tasks", 7)):
        for row in rows(title):
            assert len(row) == columns, row
            assert all(row), row
            place = row[3].strip("`")
            assert place == "not built yet" or (ROOT / place).exists(), place


def test_every_model_and_every_task_of_the_papers_is_named():
    listed = {name for row in rows("Systems") for name in names(row[2])}
    assert set(models.available()) <= listed
    unknown = {name for name in listed if name not in models.available() and not hasattr(memory, name)}
    assert unknown <= {"nam", "nam-sequential"}, unknown
    listed = {name for row in rows("Tasks") for name in names(row[2])}
    here = set(tasks.available()) - NOT_OF_THESE_PAPERS | set(environments.available())
    assert here <= listed
    assert listed - here <= {*models.available(), *MODELS}  # of a task that is ours, and of agents


def test_results_are_those_of_the_files():
    found = 0
    for row in rows("Systems"):
        for percents, file in re.findall(r"\w+ ([\d. /]+), \d+ seeds?: `([\w/.]+)`", row[4]):
            lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
            cells = [[re.sub(r" \(.*\)", "", cell.strip()) for cell in line.strip("|").split("|")] for line in lines]
            measured = {" / ".join(cell[3:6]) for cell in cells if cell[0] in names(row[2])}
            assert percents in measured, (row[0], percents, measured)
            found += 1
    assert found >= 2

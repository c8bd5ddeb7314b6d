"""The README's promises that can be run: its two commands are those of CI, and the first prints what the README shows."""

import doctest
import re
from pathlib import Path

import pytest

import episodes.cli.main
import episodes.cli.options
import fewshot_nam.cli.options
import fewshot_nam.cli.sequence_results
import fewshot_nam.cli.train_agent
import fewshot_nam.cli.train_sequence

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
COMMANDS = re.findall(r"```bash\n(.*?)\n```", README)[:2]
OF_OTHERS = {
    "--hook-type",
    "--nproc-per-node",
    "--data-binary",
    "--short",
    "--repeats",
    "--dist",
    "--require-hashes",
}  # of other programs and benchmarks
OF_SCRIPTS = re.compile(r"""(?:add_argument\(|add_output\(\w+,)\s*"(--[a-z][a-z-]+)\"""")


def test_the_two_commands_are_what_ci_runs():
    assert COMMANDS[0] == "pip install . && python scripts/episode_eval.py --ways 5 --shots 1"
    ci = [line.strip() for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()]
    for command in COMMANDS:
        assert command.replace("pip install", "pip install -q") in ci


def test_the_first_command_prints_what_the_readme_shows(capsys):
    shown = re.search(r"```text\n(5-way 1-shot.*?)```", README, re.DOTALL)[1]
    assert episodes.cli.main.main(["--ways", "5", "--shots", "1", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS), (
        "README.md shows another table. If the change is meant, as for a new column or row, put this there in place of the old "
        f"one, with ... for what differs from run to run:\n{printed}"
    )


def test_the_readme_fits_a_screen_and_a_half():
    assert len(README.splitlines()) <= 140


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    subparsers = next(one for one in fewshot_nam.cli.options.parser()._actions if one.dest == "command").choices
    known = [episodes.cli.options.parser(), fewshot_nam.cli.options.parser(), *subparsers.values()]
    known += [fewshot_nam.cli.train_sequence.parser(), fewshot_nam.cli.sequence_results.parser()]
    known += [fewshot_nam.cli.train_agent.parser()]
    there = {option for parser in known for option in parser._option_string_actions} | OF_OTHERS
    for name in set(re.findall(r"(?<![\w/])scripts/[\w/]+\.py", text)):
        there.update(OF_SCRIPTS.findall((ROOT / name).read_text(encoding="utf-8")))
    assert set(re.findall(r"(?<=[\s`])--[a-z][a-z-]+", text)) <= there

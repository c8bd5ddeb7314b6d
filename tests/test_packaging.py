"""What the package says of itself is true: one version, lower bounds that CI installs, links that lead somewhere."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import episodes.cli.options
import fewshot_nam
import fewshot_nam.cli.options

tomllib = pytest.importorskip("tomllib")  # Python 3.11 and later

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOT_IN_THE_MINIMUM = {"cuda"}  # needs an NVIDIA GPU


def lower_bounds() -> dict[str, str]:
    """Return the lower bound of every requirement that declares one with ">=", by its name."""
    lists = [PROJECT["dependencies"], *(EXTRAS[extra] for extra in EXTRAS.keys() - NOT_IN_THE_MINIMUM)]
    found = [re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", requirement) for one in lists for requirement in one]
    pairs = {match.groups() for match in found if match}
    assert len({name for name, _ in pairs}) == len(pairs), "two lower bounds of one package"
    return dict(pairs)


def test_the_version_is_written_once():
    assert "version" in PROJECT["dynamic"]
    assert version("fewshot-nam") == fewshot_nam.__version__


@pytest.mark.parametrize("options", [episodes.cli.options, fewshot_nam.cli.options], ids=lambda module: module.__name__)
def test_both_commands_say_their_version(options, capsys):
    with pytest.raises(SystemExit) as end:
        options.parser().parse_args(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.endswith(f" {fewshot_nam.__version__}\n")


def test_the_version_has_notes_and_is_the_one_to_cite():
    assert re.search(rf"^## {re.escape(fewshot_nam.__version__)} \(20\d\d-\d\d-\d\d\)$", read("CHANGELOG.md"), re.M)
    assert f"version: {fewshot_nam.__version__}\n" in read("CITATION.cff")


def test_what_ci_installs_the_wheel_with_is_pinned_to_the_digest():
    """Of all that the package requires, and of what that requires: pip refuses a list in which one has none."""
    text = read("requirements/locked.txt")
    pinned = re.findall(r"^([a-z0-9-]+)==[0-9.]+[^\n]*\\\n +--hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert len(pinned) == len(re.findall(r"^[a-z0-9]", text, re.MULTILINE))
    required = {re.match(r"[a-z0-9-]+", one)[0] for one in PROJECT["dependencies"]}
    assert required | {"torchvision"} <= set(pinned)
    assert "--require-hashes -r requirements/locked.txt" in read(".ci/run")


def test_ci_installs_every_lower_bound():
    lines = read("requirements/minimum.txt").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pinned == {name: padded(bound) for name, bound in lower_bounds().items()}
    assert "-c requirements/minimum.txt" in read(".ci/run")


def test_all_switches_on_every_extra_of_users():
    chosen = re.search(r"\[(.*)\]", EXTRAS["all"][0]).group(1).split(",")
    others = {"all", "benchmark", "cuda", "dev", "docs", "learn2learn", "lint", "test"}
    assert set(chosen) == EXTRAS.keys() - others


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_every_extra_is_explained(extra):
    assert f"`{extra}`" in read("docs/how-to/install.md")


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md"])
def test_links_also_work_away_from_the_repository(name):
    """The package index shows these pages, where a path relative to the repository leads nowhere."""
    home = PROJECT["urls"]["Homepage"]
    for target in re.findall(r"\]\(([^)]+)\)", read(name)):
        assert target.startswith(("https://", "#")), f"{name}: {target} is relative"
        if target.startswith(home + "/"):
            path = re.sub(r"^/(?:blob|tree|raw)/main/", "", target.removeprefix(home)).split("#")[0]
            assert path == "/issues" or (ROOT / path).exists(), f"{name}: nothing is at {path}"


def padded(bound: str) -> str:
    """Return a version with the three numbers that a release has: 2.5 is 2.5.0."""
    return bound if bound.count(".") > 1 else bound + ".0"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_bill_of_materials_holds_what_is_required_and_no_extra(tmp_path):
    path = tmp_path / "bom.json"
    subprocess.run([sys.executable, str(ROOT / ".ci" / "sbom.py"), str(path)], check=True, capture_output=True)
    content = json.loads(path.read_text())
    names = {one["name"] for one in content["components"]}
    assert {"torch", "numpy", "pillow", "safetensors"} <= names
    assert not {"gradio", "timm", "pytest", "fewshot-nam"} & names
    assert all(
        one["version"] and one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}" for one in content["components"]
    )
    known = {one["bom-ref"] for one in content["components"]} | {content["metadata"]["component"]["bom-ref"]}
    assert {one for each in content["dependencies"] for one in [each["ref"], *each["dependsOn"]]} == known

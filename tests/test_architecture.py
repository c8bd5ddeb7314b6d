"""The house: who may import whom, what is public, and that nothing heavy is imported before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["fewshot_nam", "episodes", "backbones"]

# Each room and the rooms of ours that it may import, itself aside.
MAY_IMPORT = {
    "fewshot_nam.memory": set(),
    "fewshot_nam.heads": {"fewshot_nam.memory"},
    "fewshot_nam.estimators": {"fewshot_nam.heads"},
    "fewshot_nam.easyfsl_interface": {"fewshot_nam.heads"},
    "fewshot_nam.io": set(),
    "fewshot_nam.heap": set(),
    "fewshot_nam.vision": {"fewshot_nam.io", "fewshot_nam.heads", "backbones"},  # embeds heads into vision models
    "fewshot_nam.cli": {
        "fewshot_nam.io",
        "fewshot_nam.heap",
        "fewshot_nam.vision",
        "fewshot_nam.heads",
        "backbones",
    },
    "backbones": {"fewshot_nam.vision", "fewshot_nam.io"},
    "episodes": {"backbones", "fewshot_nam.io", "fewshot_nam.heads", "fewshot_nam.heap", "fewshot_nam.memory"},
}
EXEMPT = {
    "episodes/cli/main.py": {
        "backbones",
        "fewshot_nam.cli",
    },  # the installed command, which does what a script would
    "fewshot_nam/__init__.py": {
        "fewshot_nam.estimators",
        "fewshot_nam.heap",
        "fewshot_nam.vision",
    },  # by their short names
}


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def room_of(module: str) -> str | None:
    return next((room for room in MAY_IMPORT if module == room or module.startswith(room + ".")), None)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    relative = path.relative_to(ROOT)
    own = room_of(".".join(relative.with_suffix("").parts).removesuffix(".__init__"))
    allowed = MAY_IMPORT.get(own or "", set()) | EXEMPT.get(relative.as_posix(), set())
    for module in imports(path):
        other = room_of(module)
        assert other is None or other == own or other in allowed, f"{relative} imports {module}"
        assert not module.startswith("scripts"), f"{relative} imports {module}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no module docstring"


def test_scripts_are_no_package():
    assert not list((ROOT / "scripts").rglob("__init__.py"))


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        (
            "fewshot_nam.memory",
            [
                "HeadContext",
                "Jump",
                "LSAM",
                "LSAMCell",
                "NAMAttention",
                "NAMTransformerEncoder",
                "NAMTransformerEncoderLayer",
                "NAMTuringMachine",
                "Shift",
                "TensorMemory",
                "TuringState",
                "TuringTrace",
                "build_kernels",
                "choose_backend",
                "draw_heads",
                "memory_scan",
                "memory_step",
                "outer_product_attention",
                "read",
                "tensor_read",
                "tensor_write",
                "tensor_write_sequence",
                "unit",
                "write",
                "write_block",
                "write_sequence",
            ],
        ),
        (
            "fewshot_nam.heads",
            [
                "Calibration",
                "CosineHead",
                "GeneratorHead",
                "Head",
                "Label",
                "LogisticHead",
                "MahalanobisHead",
                "NAMHead",
                "NearestHead",
                "PLDAHead",
                "ProtoNetHead",
                "RidgeHead",
                "available",
                "create",
                "needs_base",
            ],
        ),
        (
            "episodes",
            [
                "MEASURES",
                "EpisodeSampler",
                "Episodes",
                "FeatureBank",
                "Report",
                "apply_split",
                "evaluate",
                "extract",
                "open_bank",
                "open_dataset",
                "split_classes",
            ],
        ),
        ("backbones", ["Backbone", "available", "create"]),
        ("fewshot_nam", ["CosineClassifier", "NAMClassifier", "NAMModel", "attach", "keep_freed_memory"]),
        ("fewshot_nam.vision", ["NAMModel", "attach"]),
    ],
)
def test_public_names_are_those_that_we_mean(package, expected):
    import importlib

    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(expected)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import episodes, backbones, fewshot_nam",
        "import episodes.cli.options, episodes.cli.main",
        "import fewshot_nam.cli.options, fewshot_nam.cli.main",
    ],
)
def test_importing_is_cheap_until_something_is_used(statement):
    heavy = "torch numpy sklearn timm torchvision matplotlib yaml PIL"
    code = f"import sys; {statement}; print(*[m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

"""The house: which room may import which, that no two files import each other, what is public, and that imports are cheap."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["fewshot_nam", "episodes", "backbones"]

# Each room and the rooms that it may import besides itself and those below it. Imports run one way.
MAY_IMPORT = {
    "fewshot_nam._deprecation": {"fewshot_nam._moved_modules"},
    "fewshot_nam._moved_modules": set(),
    "fewshot_nam.distributed": set(),
    "fewshot_nam.heap": set(),
    "fewshot_nam.intervals": set(),
    "fewshot_nam.io": set(),
    "fewshot_nam.memory": set(),
    "fewshot_nam.sequences": {"fewshot_nam.heap", "fewshot_nam.intervals", "fewshot_nam.io", "fewshot_nam.memory"},
    "fewshot_nam.heads": {"fewshot_nam.memory"},
    "fewshot_nam.estimators": {"fewshot_nam.heads"},
    "fewshot_nam.easyfsl_interface": {"fewshot_nam.heads"},
    "fewshot_nam.vision": {"fewshot_nam.heads", "fewshot_nam.heap", "fewshot_nam.io", "fewshot_nam.memory"},
    "fewshot_nam.service": {"fewshot_nam.heads", "fewshot_nam.heap", "fewshot_nam.io", "fewshot_nam.vision"},
    "fewshot_nam.cli": {
        "fewshot_nam.heads",
        "fewshot_nam.heap",
        "fewshot_nam.io",
        "fewshot_nam.memory",
        "fewshot_nam.sequences",
        "fewshot_nam.service",
        "fewshot_nam.vision",
    },
    "backbones": {
        "fewshot_nam.distributed",
        "fewshot_nam.heads",
        "fewshot_nam.io",
        "fewshot_nam.memory",
        "fewshot_nam.vision",
    },
    "episodes": {"backbones", "fewshot_nam"},
}
FOR_ALL = {"fewshot_nam", "fewshot_nam._deprecation"}  # the version, and old names
# The name of a bundled network is looked up late: everything else in vision works without our package backbones.
LATE = {("fewshot_nam.vision.catalogue", "backbones.bundled")}


def paths():
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in paths()}


def statements(node):
    """Yield the import statements below a node, late ones included, without those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from statements(child)


def imports(path):
    """Return the full names of what a file imports: modules, for names of ours the module that they are in."""
    found = set()
    for statement in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        else:
            assert statement.level == 0, f"{path}: relative import"
            for alias in statement.names:
                full = f"{statement.module}.{alias.name}"
                found.add(full if full in MODULES else statement.module)
    return found


def room_of(module):
    """Return the longest room that a module is in, or ``None`` for a module that is not of ours."""
    rooms = [room for room in MAY_IMPORT if module == room or module.startswith(room + ".")]
    return max(rooms, key=len, default=None)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    own = room_of(module)
    assert own is not None or module == "fewshot_nam", f"{module} is in no room: add it to MAY_IMPORT"
    allowed = MAY_IMPORT.get(own, set())
    for other in imports(MODULES[module]):
        assert other.partition(".")[0] not in ("scripts", "tests"), f"{module} imports {other}"
        ours = other.partition(".")[0] in PACKAGES
        if not ours or other in FOR_ALL or (module, other) in LATE or room_of(other) == own:
            continue
        assert any(other == room or other.startswith(room + ".") for room in allowed), f"{module} imports {other}"


def test_no_two_files_import_each_other():
    graph = {
        module: {other for other in imports(path) if other in MODULES and (module, other) not in LATE} - {module}
        for module, path in MODULES.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"files import each other in a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("package", ["episodes", "fewshot_nam"])
def test_no_two_rooms_import_each_other(package):
    """Rooms are the folders of a package; its own ``__init__`` only names what is in them."""
    graph = {}
    for module, path in MODULES.items():
        room = ".".join(module.split(".")[:2])
        if module.startswith(package + "."):
            others = {".".join(other.split(".")[:2]) for other in imports(path) if other.startswith(package + ".")}
            graph.setdefault(room, set()).update(others - {room})
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"rooms import each other in a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_for(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8"))), "no module docstring"


def test_scripts_are_no_package_and_import_no_other_script():
    scripts = sorted((ROOT / "scripts").rglob("*.py"))
    assert not [path for path in scripts if path.name == "__init__.py"]
    names = {path.stem for path in scripts} - {"benchmarking", "server_process"}  # what the benchmarks share
    for path in scripts:
        assert not {module.partition(".")[0] for module in imports(path)} & (names | {"scripts", "tests"}), path


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
                "NAMCrossAttention",
                "NAMLanguageModel",
                "NAMTransformerDecoderLayer",
                "NAMTransformerEncoder",
                "NAMTransformerEncoderLayer",
                "NAMTuringMachine",
                "STM",
                "STMState",
                "SelfAttentiveMemory",
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
                "BaseCost",
                "BaseStatistics",
                "Calibration",
                "CosineHead",
                "ErasedWeightsHead",
                "GeneratorHead",
                "Head",
                "HeadSpec",
                "KeptClassifierHead",
                "Label",
                "LogisticHead",
                "MahalanobisHead",
                "NAMHead",
                "NAMSettings",
                "NearestHead",
                "PLDAHead",
                "PLDASNormHead",
                "ProtoNetHead",
                "RidgeHead",
                "ScoreNormHead",
                "ScoreNormSettings",
                "WriteRuleHead",
                "available",
                "create",
                "needs_base",
                "register",
            ],
        ),
        (
            "episodes",
            [
                "MEASURES",
                "EpisodeSampler",
                "Episodes",
                "EvaluationSettings",
                "FeatureBank",
                "Report",
                "apply_split",
                "evaluate",
                "evaluate_incremental",
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

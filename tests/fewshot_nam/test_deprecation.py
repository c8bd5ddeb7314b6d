"""Old names warn once, name their successor, and give what it gives."""

import importlib
import subprocess
import sys
import warnings

import pytest

from fewshot_nam._deprecation import (
    REMOVED_IN,
    forward_moved_modules,
    renamed_attribute,
    renamed_names,
    renamed_parameter,
)
from fewshot_nam._moved_modules import MOVED_MODULES

# What users could import by full path before the modules moved: names in the README, the scripts and the tests of that time.
OLD_NAMES = {
    "backbones": ["Backbone", "available", "create"],
    "backbones.backbone": ["Backbone"],
    "backbones.conv4": ["Conv4"],
    "backbones.conv5": ["Conv5"],
    "backbones.ink": ["InkExamples", "InkRecipe", "augment"],
    "backbones.photos": ["PhotoExamples", "PhotoRecipe", "augment"],
    "backbones.pictures": ["RGBTransform", "opaque"],
    "backbones.pretraining": ["CosineSoftmax", "Examples", "Pretraining", "Recipe", "train"],
    "backbones.torchvision_models": ["remove_classifier"],
    "backbones.weights": ["fit_weights", "read_weights"],
    "episodes.bank": ["FeatureBank"],
    "episodes.cifar": ["cifar10"],
    "episodes.command": ["main"],
    "episodes.datasets": ["digits", "folder", "omniglot", "open_bank", "open_dataset"],
    "episodes.distributed": ["joined"],
    "episodes.evaluation": ["PROTOCOLS", "as_device", "evaluate"],
    "episodes.extraction": ["extract"],
    "episodes.folders": ["folder"],
    "episodes.generalized": ["Contender", "Pictures", "compare"],
    "episodes.generator_training": ["GeneratorRecipe", "GeneratorTraining", "train_rows"],
    "episodes.holdout": ["hold_out"],
    "episodes.intervals": ["interval", "paired"],
    "episodes.learn2learn_tasks": ["as_meta_dataset", "as_taskset", "episodes_from_taskset"],
    "episodes.measures": ["MEASURES", "accuracy", "auroc", "ausuc", "class_fpr", "harmonic_mean", "open_fpr", "oscr"],
    "episodes.meta_learning": ["MetaLearnedHead", "meta_train"],
    "episodes.omniglot_runs": ["omniglot_runs"],
    "episodes.pictures": ["ArrayPictures", "FilePictures", "PictureSet"],
    "episodes.report": ["Report"],
    "episodes.sampler": ["EpisodeSampler", "Episodes"],
    "episodes.splits": ["apply_split", "save_split", "split_classes"],
    "fewshot_nam.command.main": ["main"],
    "fewshot_nam.easyfsl_interface": ["EasyFSLClassifier"],
    "fewshot_nam.estimators": ["CosineClassifier", "NAMClassifier"],
    "fewshot_nam.files.atomic": ["replacing"],
    "fewshot_nam.files.folders": ["EXTENSIONS"],
    "fewshot_nam.files.pictures": ["UnreadablePicture", "read_picture"],
    "fewshot_nam.heads": ["CosineHead", "Head", "NAMHead", "available", "create", "needs_base"],
    "fewshot_nam.heads.background": ["Background"],
    "fewshot_nam.heads.calibrated": ["Calibration"],
    "fewshot_nam.heads.conformal": ["conformal_threshold"],
    "fewshot_nam.heads.nam": ["NAMHead"],
    "fewshot_nam.heads.temperature": ["fit_temperature"],
    "fewshot_nam.memory.attention": ["NAMAttention", "NAMAttentionState", "outer_product_attention"],
    "fewshot_nam.memory.kernels": ["build_kernels"],
    "fewshot_nam.memory.lsam": ["LSAM", "LSAMCell"],
    "fewshot_nam.memory.primitives": ["read", "unit", "write", "write_sequence"],
    "fewshot_nam.memory.scan": ["choose_backend", "memory_scan", "memory_step"],
    "fewshot_nam.memory.tensor": ["TensorMemory", "tensor_read", "tensor_write", "tensor_write_sequence"],
    "fewshot_nam.memory.turing": ["NAMTuringMachine", "TuringState"],
    "fewshot_nam.memory.turing_heads": ["HeadContext", "Jump", "Shift"],
    "fewshot_nam.memory.turing_plot": ["draw_heads"],
    "fewshot_nam.memory.turing_presets": ["PRESETS"],
    "fewshot_nam.vision": ["NAMModel", "attach"],
    "fewshot_nam.vision.export": ["export_onnx", "export_program", "memory_of", "update_onnx"],
    "fewshot_nam.vision.images": ["as_pictures", "batches"],
    "fewshot_nam.vision.saving": ["read_head", "weights_digest"],
}


@pytest.mark.parametrize(("old", "new"), MOVED_MODULES.items())
def test_an_old_module_path_gives_the_module_with_at_most_one_warning(old, new):
    sys.modules.pop(old, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = importlib.import_module(old)
    assert module is importlib.import_module(new)
    assert (module.__name__, module.__spec__.name) == (new, new)
    said = [str(warning.message) for warning in caught if "is deprecated" in str(warning.message)]
    assert said == (
        [] if hasattr(module, "__path__") else [f"{old} is deprecated and will be removed in {REMOVED_IN}: use {new}"]
    )


@pytest.mark.parametrize("module", OLD_NAMES)
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_every_public_name_of_the_first_states_imports(module):
    found = importlib.import_module(module)
    for name in OLD_NAMES[module]:
        assert getattr(found, name) is not None


def test_the_warning_of_a_moved_module_blames_the_file_that_imports_it(tmp_path):
    script = tmp_path / "old.py"
    script.write_text("from fewshot_nam.files.atomic import replacing\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stderr.count("DeprecationWarning") == 1
    assert f"{script}:1: DeprecationWarning: fewshot_nam.files.atomic is deprecated" in done.stderr


def test_modules_of_a_users_own_package_are_not_forwarded(tmp_path):
    (tmp_path / "backbones").mkdir()
    (tmp_path / "backbones" / "__init__.py").touch()
    (tmp_path / "backbones" / "backbone.py").write_text("OWN = True\n")
    code = "import fewshot_nam, backbones.backbone as own; print(own.OWN)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_forwarding_twice_leaves_one_finder():
    before = list(sys.meta_path)
    forward_moved_modules("fewshot_nam")
    assert len(sys.meta_path) == len(before)


@renamed_parameter("background", "base", "0.9")
def make(name, base=None):
    """Return what came in."""
    return name, base


def test_a_renamed_parameter_warns_and_gives_its_value_to_the_new_one():
    with pytest.warns(
        DeprecationWarning, match=r"make: background= is deprecated and will be removed in 0\.9: use base="
    ) as caught:
        assert make("nam", background=3) == ("nam", 3)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make("nam", base=3) == make("nam", 3) == ("nam", 3)


def test_a_renamed_parameter_and_its_successor_together_are_an_error():
    with pytest.raises(TypeError, match=r"make: background is the old name of base: give base alone"):
        make("nam", base=1, background=2)


def test_a_renamed_name_warns_and_gives_the_new_one():
    get = renamed_names("fewshot_nam", {"learn": "attach", "unit": "fewshot_nam.memory.primitives.unit"})
    with pytest.warns(DeprecationWarning, match=r"fewshot_nam\.learn is deprecated .* use fewshot_nam\.attach"):
        assert get("learn") is importlib.import_module("fewshot_nam").attach
    with pytest.warns(DeprecationWarning, match=r"use fewshot_nam\.memory\.primitives\.unit"):
        assert get("unit").__name__ == "unit"
    with pytest.raises(AttributeError, match=r"module 'fewshot_nam' has no attribute 'other'"):
        get("other")


def test_a_renamed_attribute_warns_and_gives_the_new_one():
    class Set:
        images = (1, 2)
        pictures = renamed_attribute("pictures", "images")

    with pytest.warns(DeprecationWarning, match=r"Set\.pictures is deprecated .* use images"):
        assert Set().pictures == (1, 2)

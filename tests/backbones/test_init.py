import subprocess
import sys

import pytest

import backbones


def test_package_names_what_is_public():
    assert backbones.__all__ == ["Backbone", "available", "create"]
    assert set(backbones.__all__) <= set(dir(backbones))


@pytest.mark.parametrize("name", ["Backbone", "available", "create"])
def test_package_finds_every_public_name(name):
    assert getattr(backbones, name).__name__ == name


def test_package_has_no_other_names():
    with pytest.raises(AttributeError, match="'backbones' has no attribute 'bacbone'"):
        backbones.bacbone  # noqa: B018


def test_import_loads_neither_torch_nor_a_library():
    code = "import sys, backbones; print([m for m in ('torch', 'timm', 'torchvision', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bundled_backbone_loads_neither_timm_nor_torchvision():
    code = (
        "import sys, backbones; backbones.create('conv4', pretrained=False); "
        "print([m for m in ('timm', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

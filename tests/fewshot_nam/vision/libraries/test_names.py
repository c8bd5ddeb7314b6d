"""The names that help texts read are those that exist."""

from backbones.bundled import NETWORKS
from fewshot_nam.vision.libraries import names
from fewshot_nam.vision.libraries.registry import LIBRARIES


def test_names_are_those_of_the_bundled_networks_and_the_libraries():
    assert list(names.BUNDLED) == list(NETWORKS)
    assert {prefix: library.prefix for prefix, library in LIBRARIES.items()} == {name: name for name in names.LIBRARIES}


def test_help_names_each():
    for name in [*names.BUNDLED, *(f"{prefix}MODEL" for prefix in names.LIBRARIES)]:
        assert name in names.help_line()

"""The registry of heads: what each entry says holds, and others can add theirs."""

import pytest
import torch

from fewshot_nam.heads import BaseStatistics, CosineHead, HeadSpec, NAMHead, available, create, needs_base, register
from fewshot_nam.heads import registry as heads
from fewshot_nam.heads.registry import exportable, spec, specs, transductive

BASE = BaseStatistics.from_prototypes(torch.rand(12, 5, generator=torch.Generator().manual_seed(0)) + 0.1)
MEAN = BaseStatistics.from_mean(BASE.mean)
NAMES = list(available())


@pytest.fixture
def _own_registry(monkeypatch):
    monkeypatch.setattr(heads, "_SPECS", dict(heads._SPECS))


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_what_the_head_needs(name):
    entry = spec(name)
    assert entry.summary == available()[name]
    assert needs_base(name) == (entry.needs != "nothing")
    assert create(name, BASE).transductive == entry.transductive == transductive(name) == transductive(f"{name}+knn")
    for needs, base in (("nothing", None), ("mean", MEAN), ("prototypes", BASE)):
        enough = ("nothing", "mean", "prototypes").index(needs) >= ("nothing", "mean", "prototypes").index(entry.needs)
        if enough:
            assert isinstance(create(name, base), entry.builder())
        else:
            with pytest.raises(ValueError, match=f"the head '{name}' .* none (is|are) known: give base="):
                create(name, base)


@pytest.mark.parametrize("name", NAMES)
def test_a_head_that_uses_no_base_is_made_without_it(name):
    with_base, without = create(name, BASE), None if needs_base(name) else create(name)
    if not spec(name).uses_base:
        assert repr(with_base) == repr(without)
    elif without is not None:
        assert repr(with_base) != repr(without)


def test_heads_that_export_are_those_whose_class_does():
    assert {name for name in NAMES if exportable(create(name, BASE))} == {
        entry.name for entry in specs() if entry.exports
    }

    class Own(NAMHead):
        pass

    assert not exportable(Own())


@pytest.mark.usefixtures("_own_registry")
def test_a_head_that_is_registered_is_made_by_name():
    entry = HeadSpec("warm-cosine", CosineHead, "cosine at another scale", {"scale": 7.0})
    assert register(entry) is entry
    assert register(HeadSpec("warm-cosine", CosineHead, "cosine at another scale", {"scale": 7.0})) == entry
    assert float(create("warm-cosine").scale) == 7.0
    assert available()["warm-cosine"] == "cosine at another scale"
    with pytest.raises(ValueError, match="there is a head 'warm-cosine' already"):
        register(HeadSpec("warm-cosine", NAMHead, "another"))
    with pytest.raises(ValueError, match="no head 'warm-cosin': did you mean 'warm-cosine'"):
        create("warm-cosin")


@pytest.mark.usefixtures("_own_registry")
def test_a_head_that_is_trained_first_is_listed_and_not_created():
    register(HeadSpec("trained", CosineHead, "trained on episodes", train=lambda *_: CosineHead()))
    assert "trained" not in available()
    assert "trained" in [entry.name for entry in specs()]
    with pytest.raises(ValueError, match="the head 'trained' has to be trained on episodes of base classes first"):
        create("trained")


@pytest.mark.usefixtures("_own_registry")
def test_a_package_that_is_missing_is_named():
    register(HeadSpec("elsewhere", CosineHead, "needs a package", requires="no_such_package"))
    with pytest.raises(ImportError, match="the head 'elsewhere' needs the package no_such_package"):
        create("elsewhere")


def test_an_entry_that_exports_has_a_class():
    with pytest.raises(ValueError, match="exports=True takes the head's class for build"):
        HeadSpec("odd", lambda: CosineHead(), "odd", exports=True)


def test_an_entry_that_needs_base_must_use_it():
    with pytest.raises(ValueError, match=r"needs='mean' takes uses_base=True"):
        HeadSpec("odd", CosineHead, "odd", needs="mean")


def test_settings_that_a_head_refuses_are_named():
    with pytest.raises(ValueError, match=r"the head 'nam' cannot take these settings.*rigde"):
        create("nam", rigde=1.0)

"""The registry of open-set scores, and names of heads with a score in them."""

import subprocess
import sys

import pytest

from fewshot_nam.heads import create, needs_base, open_scores
from fewshot_nam.heads.open_scores import registry
from fewshot_nam.heads.open_scores.score_based import MSPScore


@pytest.mark.parametrize("name", open_scores.available())
def test_every_score_is_made_by_name_and_says_whether_it_needs_base_classes(name):
    assert open_scores.create(name).needs_base == registry.spec(name).needs_base
    assert needs_base(f"cosine+{name}") == registry.spec(name).needs_base
    assert needs_base(f"plda+{name}")


def test_unknown_names_are_explained():
    with pytest.raises(ValueError, match="no open-set score 'enrgy': did you mean 'energy'"):
        create("cosine+enrgy")
    with pytest.raises(ValueError, match="no head 'cosin'"):
        create("cosin+energy")


def test_scores_are_registered_once(monkeypatch):
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    mine = registry.ScoreSpec("mine", MSPScore, "as msp", {"temperature": 2.0})
    assert open_scores.register(mine) is mine
    assert open_scores.register(mine) == mine
    assert float(create("cosine+mine").score.temperature) == 2
    with pytest.raises(ValueError, match="an open-set score 'msp' already"):
        open_scores.register(registry.ScoreSpec("msp", MSPScore, "another"))
    with pytest.raises(ValueError, match="text without '\\+'"):
        open_scores.register(registry.ScoreSpec("a+b", MSPScore, "another"))


def test_listing_the_scores_imports_no_torch():
    code = "import sys; from fewshot_nam.heads.open_scores.registry import available; available(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

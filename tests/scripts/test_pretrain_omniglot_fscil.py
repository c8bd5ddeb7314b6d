"""``scripts/pretrain_omniglot_fscil.py``: a run that is brought to an early end."""

import runpy
from pathlib import Path

import pytest
import torch

from backbones.conv4 import Conv4
from backbones.pretraining.omniglot_augment import InkExamples, InkRecipe

MODULE = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "pretrain_omniglot_fscil.py"))


def test_an_early_end_lets_the_rate_fall_from_where_the_run_was(tmp_path, capsys):
    recipe = InkRecipe(epochs=10, batch_size=8)
    images = torch.randint(0, 255, (8, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def begun():
        torch.manual_seed(0)
        return MODULE["EarlyEnd"](Conv4(4), InkExamples(images, torch.arange(8), recipe), recipe, tmp_path / "run.pt")

    first = begun()
    for _ in range(3):
        first.run_epoch()
    run, rates = begun(), []
    assert run.epoch == 3
    usual = run._rate(12)
    run.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    run.finish_in(2)
    expected = [recipe.learning_rate * usual * max(1e-3, 1 - i / 8) for i in range(8)]
    assert rates == pytest.approx(expected)
    assert run.epoch == 5
    assert capsys.readouterr().out.count("training accuracy") == 2

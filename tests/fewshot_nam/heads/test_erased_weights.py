"""The rule of version 0.1 for kept classes, by its formulas, and which heads of that version are taken for it."""

import pytest
import torch

from fewshot_nam.heads import BaseStatistics, ErasedWeightsHead
from fewshot_nam.heads.erased_weights import head_of_version_01

PREFIX = "head."
SETTINGS = {
    "mode": "block",
    "keys": "shots",
    "reading": "unit",
    "p_write": 1.0,
    "p_erase": 1.0,
    "ridge": 0.25,
    "temperature": 0.1,
}


@pytest.mark.parametrize("kept", [0, 4])
def test_scores_are_those_of_the_formulas(kept):
    generator = torch.Generator().manual_seed(0)
    mean = torch.rand(7, generator=generator).double()
    weights, shots, queries = (torch.randn(n, 7, generator=generator).double() for n in (kept, 5, 6))
    head = ErasedWeightsHead(BaseStatistics.from_mean(mean))
    if kept:
        head.write_base(weights + mean, list("abcd"))
    head.write(shots + mean, ["x", "x", "y", "z", "z"])

    unit = torch.nn.functional.normalize
    keys, rows = unit(shots), torch.cat([unit(weights), torch.zeros(3, 7).double()])
    values = torch.zeros(kept + 3, 5).double()
    values[[kept, kept, kept + 1, kept + 2, kept + 2], range(5)] = 1
    erased = (values - rows @ keys.T) @ torch.linalg.inv(keys @ keys.T + 0.2 * torch.eye(5)) @ keys
    means = torch.stack([keys[:2].mean(0), keys[2], keys[3:].mean(0)])
    memory = rows + erased
    memory[kept:] += 3 * unit(means) * means.norm(dim=1, keepdim=True) ** -0.3
    memory[:kept] += 3 * unit(weights)
    scores = unit(queries) @ memory.T
    scores -= 0.04 * torch.logsumexp(scores / 0.1, dim=1, keepdim=True)
    torch.testing.assert_close(head(queries + mean), scores)


@pytest.mark.parametrize(
    "names", [{}, {"prototype_weight": "plain", "norm_exponent": "level", "base_write": "base_rows"}]
)
def test_heads_of_version_01_with_kept_classes_are_found(names):
    wanted = {**SETTINGS, "base_write": "erased", "prototype_weight": 2.0, "norm_exponent": 0.5}
    state = {"head.base": torch.rand(3, 5), "head.stored_base.prototypes": torch.empty(0, 0)}
    head = head_of_version_01(
        "NAMHead", {names.get(name, name): value for name, value in wanted.items()}, state, PREFIX
    )
    assert (head.ridge, head.prototype_weight, head.norm_exponent) == (0.25, 2.0, 0.5)
    assert head.log_partition_penalty == 0.4


@pytest.mark.parametrize(
    ("name", "settings", "base", "cohort"),
    [
        ("CosineHead", {"base_write": "erased"}, 3, 0),
        ("NAMHead", {"base_write": "joint"}, 3, 0),
        ("NAMHead", {"base_write": "erased", "mode": "sequential"}, 3, 0),
        ("NAMHead", {"base_write": "erased"}, 0, 0),
        ("NAMHead", {"base_write": "erased"}, 3, 12),
    ],
)
def test_other_heads_are_left_to_others(name, settings, base, cohort):
    state = {"head.base": torch.rand(base, 5), "head.stored_base.prototypes": torch.rand(cohort, 5)}
    assert head_of_version_01(name, SETTINGS | settings, state, PREFIX) is None

"""The joint write: every form of it gives the memory of ``write_block``."""

import pytest
import torch

from fewshot_nam.heads import NAMHead
from fewshot_nam.heads.base import Support
from fewshot_nam.heads.nam.joint_write import write_classes, write_sums
from fewshot_nam.memory.primitives import unit, write_block


@pytest.mark.parametrize(("n", "width"), [(3, 17), (12, 17), (24, 5)])
def test_sums_of_keys_and_sums_of_classes_are_those_of_write_block(n, width):
    generator = torch.Generator().manual_seed(n)
    keys = unit(torch.randn(4, n, width, generator=generator, dtype=torch.float64))
    targets = torch.arange(3).repeat_interleave(n // 3)
    support = Support(keys, targets, keys.new_empty(0, width), 3)
    values = support.one_hot()
    wanted = write_block(keys.new_zeros(4, 3, width), keys, values.expand(4, -1, -1), 0.8, 0.0, 0.3)
    torch.testing.assert_close(write_sums(keys @ keys.mT, values, 0.8, 0.3) @ keys, wanted)
    torch.testing.assert_close(write_classes(keys, support.class_sums(keys), 0.8, 0.3)[0], wanted)


@pytest.mark.parametrize("shots", [1, 4])
def test_the_memory_is_the_joint_memory_plus_the_prototype_memory(shots):
    features = torch.randn(3 * shots, 19, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(3).repeat_interleave(shots)
    both, joint, prototypes = (
        NAMHead(**options).write(features, labels).memory
        for options in ({"prototype_weight": 2.0}, {"prototype_weight": 0.0}, {"prototype_weight": 2.0, "p_write": 0.0})
    )
    torch.testing.assert_close(both, joint + prototypes)
    means = unit(features).unflatten(0, (3, shots)).mean(dim=1)
    lengths = means.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(prototypes, 2.0 * means / lengths * lengths ** -NAMHead().norm_exponent)

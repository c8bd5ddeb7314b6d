"""Score normalisation in a NAM head: features normalised by base classes, and cohort scores subtracted on both sides."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewshot_nam.heads import BaseStatistics, NAMHead
from fewshot_nam.heads.score_norm import COHORT_SIZE
from fewshot_nam.memory import unit, write_block

D = 9


def rows(count, seed):
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known(prototypes):
    return BaseStatistics.from_prototypes(prototypes)


def power(x):
    return x.sign() * x.abs().sqrt()


def normalised(x, base):
    return unit(power(x) - power(base).mean(0))


def cohort_score(x, base):
    cosines = normalised(x, base) @ normalised(base, base).T
    return cosines.sort(descending=True).values[..., :COHORT_SIZE].mean(-1)


@pytest.mark.parametrize("classes", [3, COHORT_SIZE, 23])
def test_scores_are_the_joint_read_and_the_normalised_cosine_less_cohort_scores(classes):
    base, support, query = rows(classes, 1), rows(6, 2), rows(4, 3)
    labels = ["a", "a", "b", "b", "c", "c"]
    settings = {"prototype_weight": 1.7, "ridge": 0.3, "cohort_weight": 0.6, "norm_exponent": 0.0}
    head = NAMHead(base=known(base), **settings, log_partition_penalty=0.0)
    head.write(support, labels)
    values = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0)
    memory = write_block(torch.zeros(3, D, dtype=torch.float64), unit(support), values, ridge=0.3)
    prototypes = unit(normalised(support, base).view(3, 2, D).mean(1))
    similarity = prototypes @ normalised(base, base).T
    of_keys = similarity.sort(descending=True).values[:, :COHORT_SIZE].mean(-1)
    cosines = normalised(query, base) @ prototypes.T
    expected = unit(query) @ memory.T + 1.7 * (cosines - 0.6 * of_keys - 0.6 * cohort_score(query, base).unsqueeze(-1))
    torch.testing.assert_close(head(query), expected)


def test_without_the_prototype_memory_base_classes_take_no_part_in_ranks():
    base, support, query = rows(8, 1), rows(3, 2), rows(5, 3)
    bare = NAMHead(prototype_weight=0).write(support, list("abc"))(query)
    torch.testing.assert_close(
        NAMHead(prototype_weight=0, log_partition_penalty=0.4, base=known(base)).write(support, list("abc"))(query),
        bare,
    )


def test_a_query_near_a_base_class_scores_lower():
    base, support = rows(30, 1), rows(3, 2)
    head = NAMHead(base=known(base)).write(support, list("abc"))
    without = NAMHead(base=known(base), cohort_weight=0.0).write(support, list("abc"))
    near = base[4] + 0.05 * rows(1, 5)[0]
    drop = without(near).max() - head(near).max()
    usual = (without(support) - head(support)).max(-1).values.mean()
    assert drop > usual


def test_base_classes_are_in_the_state(tmp_path):
    support, query = rows(3, 2), rows(5, 3)
    head = NAMHead(base=known(rows(12, 1))).write(support, list("abc"))
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    for other in (
        NAMHead(base=known(rows(4, 8))),
        NAMHead(base=known(rows(12, 8))),
    ):
        other.load_state_dict(load_file(tmp_path / "head.safetensors"))
        torch.testing.assert_close(other(query), head(query))


def test_forgetting_and_late_classes_are_exact_with_base_classes():
    support, query, base = rows(6, 2), rows(5, 3), rows(12, 1)
    head = NAMHead(base=known(base)).write(support, list("aabbcc")).forget("b").write(support[:1] + 0.1, "d")
    fresh = NAMHead(base=known(base)).write(support[[0, 1, 4, 5]], list("aacc")).write(support[:1] + 0.1, "d")
    torch.testing.assert_close(head(query), fresh(query))


def test_a_negative_cohort_weight_is_refused():
    with pytest.raises(ValueError, match="cohort_weight must be at least 0, got -1"):
        NAMHead(cohort_weight=-1)


def test_features_of_another_width_than_base_classes_are_refused():
    head = NAMHead(base=known(rows(4, 1)))
    with pytest.raises(ValueError, match="width"):
        head.write(torch.ones(2, D + 1), ["a", "b"])
    with pytest.raises(ValueError, match="width"):
        head.score_episodes(torch.ones(1, 2, 1, D + 1), torch.ones(1, 3, D + 1))

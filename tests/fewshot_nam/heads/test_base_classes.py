"""What a NAM head makes of a background of other classes: settled features, and familiarity taken off both sides."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewshot_nam.heads import BaseStatistics, NAMHead
from fewshot_nam.heads.base_classes import NEAREST
from fewshot_nam.memory import unit, write_block

D = 9


def rows(count, seed):
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known(prototypes):
    return BaseStatistics.from_prototypes(prototypes)


def root(x):
    return x.sign() * x.abs().sqrt()


def settled(x, background):
    return unit(root(x) - root(background).mean(0))


def familiarity(x, background):
    cosines = settled(x, background) @ settled(background, background).T
    return cosines.sort(descending=True).values[..., :NEAREST].mean(-1)


@pytest.mark.parametrize("classes", [3, NEAREST, 23])
def test_scores_are_the_block_read_and_the_settled_cosine_less_what_is_familiar(classes):
    background, support, query = rows(classes, 1), rows(6, 2), rows(4, 3)
    labels = ["a", "a", "b", "b", "c", "c"]
    head = NAMHead(base=known(background), plain=1.7, ridge=0.3, familiar=0.6, level=0.0, compete=0.0)
    head.write(support, labels)
    values = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0)
    memory = write_block(torch.zeros(3, D, dtype=torch.float64), unit(support), values, ridge=0.3)
    prototypes = unit(settled(support, background).view(3, 2, D).mean(1))
    nearness = prototypes @ settled(background, background).T
    of_keys = nearness.sort(descending=True).values[:, :NEAREST].mean(-1)
    cosines = settled(query, background) @ prototypes.T
    expected = unit(query) @ memory.T + 1.7 * (
        cosines - 0.6 * of_keys - 0.6 * familiarity(query, background).unsqueeze(-1)
    )
    torch.testing.assert_close(head(query), expected)


def test_without_familiarity_or_plain_memory_the_background_takes_no_part_in_ranks():
    background, support, query = rows(8, 1), rows(3, 2), rows(5, 3)
    bare = NAMHead(plain=0).write(support, list("abc"))(query)
    torch.testing.assert_close(
        NAMHead(plain=0, compete=0.4, base=known(background)).write(support, list("abc"))(query),
        bare,
    )


def test_a_query_near_a_background_class_is_accepted_less():
    background, support = rows(30, 1), rows(3, 2)
    head = NAMHead(base=known(background)).write(support, list("abc"))
    indifferent = NAMHead(base=known(background), familiar=0.0).write(support, list("abc"))
    stranger = background[4] + 0.05 * rows(1, 5)[0]
    drop = indifferent(stranger).max() - head(stranger).max()
    usual = (indifferent(support) - head(support)).max(-1).values.mean()
    assert drop > usual


def test_the_background_is_in_the_state(tmp_path):
    support, query = rows(3, 2), rows(5, 3)
    head = NAMHead(base=known(rows(12, 1))).write(support, list("abc"))
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    for other in (
        NAMHead(base=known(rows(4, 8))),
        NAMHead(base=known(rows(12, 8))),
    ):
        other.load_state_dict(load_file(tmp_path / "head.safetensors"))
        torch.testing.assert_close(other(query), head(query))


def test_forgetting_and_late_classes_are_exact_over_a_background():
    support, query, background = rows(6, 2), rows(5, 3), rows(12, 1)
    head = NAMHead(base=known(background)).write(support, list("aabbcc")).forget("b").write(support[:1] + 0.1, "d")
    fresh = NAMHead(base=known(background)).write(support[[0, 1, 4, 5]], list("aacc")).write(support[:1] + 0.1, "d")
    torch.testing.assert_close(head(query), fresh(query))


def test_a_negative_familiarity_is_refused():
    with pytest.raises(ValueError, match="familiar must be at least 0, got -1"):
        NAMHead(familiar=-1)


def test_a_background_of_another_width_is_refused():
    head = NAMHead(base=known(rows(4, 1)))
    with pytest.raises(ValueError, match="width"):
        head.write(torch.ones(2, D + 1), ["a", "b"])
    with pytest.raises(ValueError, match="width"):
        head.score_episodes(torch.ones(1, 2, 1, D + 1), torch.ones(1, 3, D + 1))

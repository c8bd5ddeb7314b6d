"""The benchmark of heads times nothing where scores of episodes at once are not those of one head for each."""

import pytest

from fewshot_nam.heads import CosineHead


def test_scores_that_differ_are_not_timed(benchmark_script, monkeypatch):
    heads, right = benchmark_script("heads"), CosineHead.forward
    heads.check_scores("cosine", 16)
    monkeypatch.setattr(CosineHead, "forward", lambda head, x: right(head, x) + 0.01 * (len(x) > 1))
    with pytest.raises(SystemExit, match="not the same work: scores of cosine"):
        heads.check_scores("cosine", 16)

"""The benchmark of growth fits slopes, draws its figure, and times nothing where scores depend on the size of a batch."""

import pytest

from fewshot_nam.heads import CosineHead


@pytest.fixture
def growth(benchmark_script):
    return benchmark_script("growth")


def test_slopes_are_those_of_powers(growth):
    sizes = [1, 2, 4, 8, 16]
    assert growth.slope(sizes, [0.1 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert growth.slope(sizes, [9.0, 9.0, 4.0, 8.0, 16.0]) == pytest.approx(1.0)  # the upper half alone
    assert growth.slope([2, 4], [1.0, 4.0]) == pytest.approx(2.0)


def test_the_figure_of_growth_is_drawn(growth, tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {"job": job, "head": "nam", "variable": "ways", "slope": 1.0, "sizes": [1, 2], "ms": [1.0, 2.0]}
        for job in ("evaluate", "write", "score")
    ]
    growth.draw(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_scores_that_differ_are_not_timed(growth, monkeypatch):
    right = CosineHead.forward
    growth.check_numbers()
    monkeypatch.setattr(CosineHead, "forward", lambda head, x: right(head, x) + 0.01 * (len(x) > 1))
    with pytest.raises(SystemExit, match="not the same work: scores of cosine"):
        growth.check_numbers()

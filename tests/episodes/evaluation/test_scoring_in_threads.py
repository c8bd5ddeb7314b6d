"""Work in several threads: in order, no further ahead than needed, errors where they belong, torch's threads as before."""

import threading
import time

import pytest
import torch

from episodes.evaluation.scoring import in_order


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order(threads):
    def slow_at_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert list(in_order(slow_at_first, range(40), threads)) == [item * item for item in range(40)]
    assert list(in_order(slow_at_first, [], threads)) == []


def test_threads_work_at_the_same_time():
    both = threading.Barrier(2, timeout=20)
    assert sorted(in_order(lambda _: both.wait(), range(4), 2)) == [0, 0, 1, 1]


def test_few_items_are_taken_before_they_are_needed():
    taken: list[int] = []
    results = in_order(lambda item: item, (taken.append(i) or i for i in range(1000)), 3)
    assert [next(results) for _ in range(5)] == list(range(5))
    assert len(taken) <= 5 + 3
    results.close()


def test_torch_has_one_thread_meanwhile_and_as_many_as_before_afterwards():
    torch.set_num_threads(2)
    assert set(in_order(lambda _: torch.get_num_threads(), range(6), 3)) == {1}
    assert torch.get_num_threads() == 2

    def fail(item: int) -> int:
        if item == 3:
            raise ValueError(f"no {item}")
        return item

    found: list[int] = []
    with pytest.raises(ValueError, match="no 3"):
        found.extend(in_order(fail, range(100), 2))
    assert found == [0, 1, 2]
    assert torch.get_num_threads() == 2

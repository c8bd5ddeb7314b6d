"""Work in several threads: in order, no further ahead than needed, errors where they belong, torch's threads as before."""

import threading
import time

import pytest
import torch
import tqdm

from episodes.evaluation.evaluation import evaluate
from episodes.evaluation.scoring import in_order
from episodes.features.bank import FeatureBank


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def listed(work, items, threads):
    with in_order(work, items, threads) as results:
        return list(results)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order(threads):
    def slow_at_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert listed(slow_at_first, range(40), threads) == [item * item for item in range(40)]
    assert listed(slow_at_first, [], threads) == []


def test_threads_work_at_the_same_time():
    both = threading.Barrier(2, timeout=20)
    assert sorted(listed(lambda _: both.wait(), range(4), 2)) == [0, 0, 1, 1]


def test_few_items_are_taken_before_they_are_needed():
    taken: list[int] = []
    with in_order(lambda item: item, (taken.append(i) or i for i in range(1000)), 3) as results:
        assert [next(results) for _ in range(5)] == list(range(5))
    assert len(taken) <= 5 + 3


def test_torch_has_one_thread_meanwhile_and_as_many_as_before_afterwards():
    torch.set_num_threads(2)
    assert set(listed(lambda _: torch.get_num_threads(), range(6), 3)) == {1}
    assert torch.get_num_threads() == 2

    def fail(item: int) -> int:
        if item == 3:
            raise ValueError(f"no {item}")
        return item

    found: list[int] = []
    with pytest.raises(ValueError, match="no 3"), in_order(fail, range(100), 2) as results:
        found.extend(results)
    assert found == [0, 1, 2]
    assert torch.get_num_threads() == 2


def test_an_error_of_the_callback_ends_threads_and_bar_also_while_its_traceback_is_kept(monkeypatch):
    closed: list[bool] = []

    class Bar(tqdm.tqdm):
        def close(self):
            closed.append(True)
            super().close()

    def fail(*_):
        raise RuntimeError("of the callback")

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    torch.set_num_threads(2)
    bank = FeatureBank(torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 6)
    with pytest.raises(RuntimeError, match="of the callback") as caught:
        evaluate(
            bank,
            heads=["cosine"],
            ways=2,
            open_ways=2,
            shots=1,
            queries=2,
            episodes=40,
            batch_size=1,
            callback=fail,
            progress=True,
        )
    assert caught.traceback  # kept, with the frames of everything that was under way
    assert torch.get_num_threads() == 2
    assert closed
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("episodes")]

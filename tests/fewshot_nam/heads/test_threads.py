"""Heads that several threads use at once: every answer is that of one state, and no change is lost."""

import copy
import pickle
import sys
import threading

import pytest
import torch
from torch import Tensor

from fewshot_nam.heads import BaseStatistics, Head, create

pytestmark = pytest.mark.filterwarnings("ignore:.*score like classes learned after calibrate:UserWarning")
HEADS = ["nam", "nam with base classes", "nam-sequential", "cosine", "protonet", "nearest", "mahalanobis"]
D = 11


def features(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, D, generator=torch.Generator().manual_seed(seed)) + 0.1


def make(name: str) -> Head:
    base = BaseStatistics.from_prototypes(features(98, 12)) if "with base" in name else None
    return create(name.split()[0], base=base)


@pytest.fixture
def _switches_often():
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


def together(*works) -> None:
    """Run functions at once, each in a thread; raise what one of them raised."""
    errors: list[BaseException] = []

    def run(work) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.usefixtures("_switches_often")
@pytest.mark.parametrize("name", HEADS)
def test_an_answer_beside_a_writer_is_that_of_one_state(name):
    lessons = {"a": features(1, 2), "b": features(2, 2), "c": features(3, 2)}
    query, unknowns = features(4, 20), features(5, 40)

    def taught(*classes: str) -> Head:
        head = make(name)
        for label in classes:
            head.write(lessons[label], label)
        return head

    # All states that the writer below goes through, and their answers.
    states = [taught("a"), taught("a", "b"), taught("a", "b", "c"), taught("a", "c")]
    allowed = {}
    for state in states:
        state.calibrate(unknowns, target_fpr=0.2)
        allowed[len(state.classes), tuple(state.classes)] = (state(query), state.predict(query, unknown="?"))
    scores_allowed = {tuple(scores.shape): [] for scores, _ in allowed.values()}
    for scores, _ in allowed.values():
        scores_allowed[tuple(scores.shape)].append(scores)
    answers_allowed = [answers for _, answers in allowed.values()]

    head, done = taught("a"), threading.Event()
    head.calibrate(unknowns, target_fpr=0.2)

    def write() -> None:
        try:
            for _ in range(60):
                head.write(lessons["b"], "b").write(lessons["c"], "c").forget("b").forget("c")
        finally:
            done.set()

    def read() -> None:
        while not done.is_set():
            scores = head(query)
            assert any(torch.allclose(scores, one, atol=1e-5) for one in scores_allowed[tuple(scores.shape)])
            assert head.predict(query, unknown="?") in answers_allowed
            assert head.classes[0] == "a"

    together(write, read, read, read)
    assert torch.equal(head(query), states[0](query))


@pytest.mark.usefixtures("_switches_often")
def test_many_writers_lose_nothing():
    head, writers, each = make("nearest"), 8, 12

    def write(writer: int) -> None:
        for i in range(each):
            head.write(features(100 * writer + i, 2), f"{writer}/{i}")
            if i % 3 == 2:
                head.forget(f"{writer}/{i - 1}")

    together(*[lambda w=w: write(w) for w in range(writers)])
    kept = {f"{writer}/{i}" for writer in range(writers) for i in range(each) if i % 3 != 1}
    assert set(head.classes) == kept
    assert len(head.support) == len(head.targets) == 2 * len(kept)
    for writer in range(writers):
        assert head.predict(features(100 * writer, 2)[0]) == f"{writer}/0"


class LockThenWrite:
    """A lock after whose outermost release, once, a writer comes first."""

    def __init__(self, head: Head, write) -> None:
        self.lock, self.depth, self.write = head._lock, 0, write

    def __enter__(self) -> None:
        self.lock.acquire()
        self.depth += 1

    def __exit__(self, *_error) -> None:
        self.depth -= 1
        self.lock.release()
        if not self.depth and self.write is not None:
            write, self.write = self.write, None
            write()


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda head: pickle.loads(pickle.dumps(head))}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("name", ["nam", "nam with base classes", "nam without shots", "nam-recursive", "cosine"])
def test_a_copy_beside_a_writer_is_of_one_state(name, copied):
    query = features(4, 20)
    head = create("nam", keep_shots=False) if name == "nam without shots" else make(name)
    head.write(features(1, 3), list("abc"))
    expected = head(query)
    head._lock = LockThenWrite(head, lambda: head.forget(list("abc")).write(features(2, 2), list("de")))
    other = copied(head)
    assert (head._lock.write, head.classes[-2:]) == (None, list("de")), "the writer came in between"
    assert other.classes[-3:] == list("abc")
    assert torch.equal(other(query), expected)
    scores = head(query)
    other.write(features(3), "f")
    assert torch.equal(head(query), scores)
    copy.deepcopy(other).load_state_dict(other.state_dict())  # checks that its parts belong together


@pytest.mark.usefixtures("_switches_often")
@pytest.mark.parametrize("name", ["nam", "nam-recursive"])
def test_a_state_that_is_saved_beside_a_writer_loads(name):
    head, done = make(name).write(features(1, 2), "aa"), threading.Event()

    def write() -> None:
        try:
            for i in range(150):
                head.write(features(i, 3), f"new {i}").forget(f"new {i}")
        finally:
            done.set()

    def save() -> None:
        while not done.is_set():
            for one in (head.state_dict(), copy.deepcopy(head).state_dict(), head.snapshot().state_dict()):
                make(name).load_state_dict(one)  # checks that its parts belong together

    together(write, save, save)


def test_a_snapshot_shares_what_is_known_of_base_classes_and_keeps_it():
    """Each step of undo held it anew: all that a hundred steps of a small memory took."""
    head = make("nam with base classes").write(features(1, 3), list("abc"))
    served, scores = head.snapshot(), head(features(2, 5))
    assert served.stored_base.prototypes.data_ptr() == head.stored_base.prototypes.data_ptr()
    other = create("nam", base=BaseStatistics.from_prototypes(features(97, 12)))
    head.load_state_dict(other.write(features(7, 3), list("abc")).state_dict())
    assert torch.equal(served(features(2, 5)), scores)


@pytest.mark.parametrize("name", [*HEADS, "ridge", "logistic"])
def test_a_snapshot_answers_as_the_head_did_and_never_changes(name):
    head, query = make(name).write(features(1, 6), list("aabbcc")), features(2, 5)
    head.calibrate(features(3, 40), target_fpr=0.1)
    scores, answers, served = head(query), head.predict(query, unknown="?"), head.snapshot()
    assert served.support.data_ptr() == head.support.data_ptr(), "features are shared"
    head.write(features(4, 3), list("def")).forget("a").threshold = 0.0
    head.to(torch.float64)
    assert torch.equal(served(query), scores)
    assert served.predict(query, unknown="?") == answers
    assert served.classes == ["a", "b", "c"]
    for change in (
        lambda: served.write(features(5), "x"),
        lambda: served.write_base(features(5, 1), ["x"]),
        lambda: served.forget("a"),
        lambda: served.calibrate(features(6, 40), target_fpr=0.1),
        lambda: setattr(served, "threshold", 1.0),
        lambda: served.load_state_dict(head.state_dict()),
    ):
        with pytest.raises(ValueError, match="a snapshot cannot change"):
            change()
    assert torch.equal(served(query), scores)


def test_a_state_loaded_into_a_head_leaves_its_snapshot():
    head, other, query = make("protonet").write(features(1, 3), list("abc")), make("protonet"), features(2, 5)
    served, scores = head.snapshot(), head(query)
    other.write(features(7, 3), list("abc"))
    head.load_state_dict(other.state_dict())
    assert torch.equal(served(query), scores)
    assert torch.equal(head(query), other(query))


def test_a_state_loaded_into_a_copy_changes_no_tensor_of_the_head():
    head = make("nam with base classes").write(features(1, 3), list("abc"))
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    other = create("nam", base=BaseStatistics.from_prototypes(features(97, 12))).write(features(7, 3), list("abc"))
    copied = copy.copy(head)
    copied.load_state_dict(other.state_dict())
    assert torch.equal(copied(features(2, 5)), other(features(2, 5)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_have_a_lock_of_their_own(copied):
    head = make("nam").write(features(1, 3), list("abc"))
    other = copied(head)
    assert torch.equal(other(features(2, 4)), head(features(2, 4)))
    other.write(features(3), "d")
    assert (other.classes, head.classes) == (list("abcd"), list("abc"))


def test_moving_a_head_to_where_it_is_keeps_what_was_derived():
    head = make("nam").write(features(1, 3), list("abc"))
    head(features(2, 4))
    derived = head._derived
    assert head.to("cpu")._derived is derived
    assert head.to(torch.float64)._derived is None
    assert head(features(2, 4).double()).dtype == torch.float64

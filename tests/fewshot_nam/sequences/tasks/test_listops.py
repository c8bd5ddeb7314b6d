"""ListOps against the value of its nested lists, read by a parser of its own."""

import statistics

import pytest
import torch

from fewshot_nam.sequences import tasks


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def value(words):
    """Return the value of nested lists, from the innermost outwards, by a stack."""
    stack = []
    for word in words:
        if word != "]":
            stack.append(word if word.startswith("[") else int(word))
            continue
        numbers = []
        while not isinstance(stack[-1], str):
            numbers.append(stack.pop())
        operate = {"[MIN": min, "[MAX": max, "[MED": lambda x: int(statistics.median(x)), "[SM": lambda x: sum(x) % 10}
        stack.append(operate[stack.pop()](numbers))
    (found,) = stack
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[SM 9 8 [MED 1 2 5 6 ] ]", 0),
        ("[MED 3 1 2 ]", 2),
        ("[MIN [SM 5 5 ] 4 ]", 0),
    ],
)
def test_the_value_of_examples_by_hand(text, expected):
    assert value(text.split()) == expected


def read(task, batch):
    for inputs, targets, mask in zip(*batch, strict=True):
        words = [task.vocabulary[token] for token in inputs if token != task.pad]
        assert words[-1] == "?"
        assert mask.nonzero().tolist() == [[len(words) - 1]]
        yield words[:-1], task.vocabulary[targets[mask]]


def test_listops_gives_the_value():
    task = tasks.create("listops", train=(4, 60))
    operators, answers = set(), set()
    for words, answer in read(task, task.sample(300, seeded())):
        assert 4 <= len(words) <= 60
        assert str(value(words)) == answer
        operators |= {word for word in words if word.startswith("[")}
        answers.add(answer)
    assert operators == {"[MIN", "[MAX", "[MED", "[SM"}
    assert answers == set("0123456789")


def depth_and_arguments(words):
    """Return how deep the tree is, and the numbers of arguments of its operators."""
    depth, counts, found = 1, [0], []
    for word in words:
        if word == "]":
            found.append(counts.pop())
        else:
            counts[-1] += 1
            depth = max(depth, len(counts))
            if word.startswith("["):
                counts.append(0)
    return depth, found


def test_listops_has_the_published_lengths_depths_and_arguments():
    task = tasks.create("listops")
    assert task.splits["train"] == ((500, 2000), 96_000)
    depths, counts = set(), []
    for words, answer in read(task, task.sample(30, seeded())):
        assert 500 <= len(words) <= 2000
        assert str(value(words)) == answer
        depth, arguments = depth_and_arguments(words)
        depths.add(depth)
        counts += arguments
    assert max(depths) == 10
    assert set(counts) == set(range(2, 11))


def test_a_digit_is_three_times_as_frequent_as_an_operator_below_the_root():
    task = tasks.create("listops", train=(4, 90), max_arguments=2, max_depth=4)  # no tree is refused for its length
    inner = {"operator": 0, "digit": 0}
    for words, _ in read(task, task.sample(2000, seeded())):
        for word in words[1:3]:
            inner["operator" if word.startswith("[") else "digit"] += word != "]"
            if word.startswith("["):
                break
    share = inner["operator"] / sum(inner.values())
    count = sum(inner.values())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / count) ** 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tasks.create("listops", train=(3, 9)), "lengths from 4"),
        (lambda: tasks.create("listops", max_depth=1), "depth and arguments of at least 2"),
        (lambda: tasks.create("listops").sample(1, seeded(), 1000), "must span a tenth"),
        (lambda: tasks.create("listops").sample(1, seeded(), (1, 3)), "shortest sequence has 4"),
        (lambda: tasks.create("listops").split("ood_easy", 251), "are asked for"),
    ],
)
def test_listops_refuses_what_no_tree_has(call, message):
    with pytest.raises(ValueError, match=message):
        call()

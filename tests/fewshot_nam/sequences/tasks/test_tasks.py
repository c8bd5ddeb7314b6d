"""Every sequence task: against examples written by hand, against plain re-computation, and what holds for all of them."""

import functools
import itertools
import os
from pathlib import Path

import pytest
import torch

from fewshot_nam.sequences import tasks
from fewshot_nam.sequences.tasks.task import Batch

DATA = Path(os.environ.get("FEWSHOT_DATA", ""))
ELSEWHERE = {"lra_text", "lra_image", "imdb_bytes"}  # tested on small folders, in files of their own
NAMES = sorted(set(tasks.available()) - ELSEWHERE)
FROM_FILES = {"scan", "babi"}
WITHOUT_FILES = [name for name in NAMES if name not in FROM_FILES]
OPTIONS = {"listops": {"train": (10, 40)}}  # trees are drawn until one fits: few have hundreds of nodes
WITHOUT_LONGER = ["nth_farthest"]  # a label is an answer: there are as many as vectors in training


@functools.cache  # some are read from files
def create(name):
    if name in FROM_FILES and not (os.environ.get("FEWSHOT_DATA") and (DATA / name).is_dir()):
        pytest.skip(f"FEWSHOT_DATA names no directory with {name}")
    return tasks.create(name, **OPTIONS.get(name, {}))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def words(task, tokens):
    return [task.vocabulary[token] for token in tokens.tolist()]


def read(task, batch):
    """Return what is given and what is asked of every sequence, as lists of words."""
    for inputs, targets, mask in zip(*batch, strict=True):
        given = [word for word, asked in zip(words(task, inputs), mask, strict=True) if not asked and word != "pad"]
        yield given, words(task, targets[mask])


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_has_the_stated_shapes_types_and_tokens(name):
    task = create(name)
    batch = task.sample(7, seeded())
    shape = batch.mask.shape
    assert shape[0] == 7
    assert batch.targets.dtype == torch.long
    assert batch.mask.dtype == torch.bool
    assert batch.targets.shape == (shape if task.target_size is None else (*shape, task.target_size))
    tokens = [batch.targets]
    if task.input_size is None:
        assert batch.inputs.shape == shape
        assert batch.inputs.dtype == torch.long
        tokens.append(batch.inputs)
    else:
        assert batch.inputs.shape == (*shape, task.input_size)
        assert batch.inputs.dtype == torch.float32
        assert batch.inputs.isfinite().all()
    for part in tokens:
        assert part.min() >= 0
        assert part.max() < len(task.vocabulary)
    assert len(set(task.vocabulary)) == len(task.vocabulary)
    assert task.vocabulary[task.pad] == "pad"
    assert batch.mask.any(dim=1).all()
    assert not (batch.targets[batch.mask] == task.pad).any()


@pytest.mark.parametrize("name", NAMES)
def test_a_copier_is_never_right(name):
    task = create(name)
    for split in [split for split in task.splits if split != "train"]:
        batch = task.split(split, 64)
        if task.input_size is None:
            found = tasks.accuracy(batch.inputs, batch)
            assert found.exact == found.row == found.token == 0
        else:  # a row that asks shows nothing to copy
            asked = batch.inputs[batch.mask]
            assert (asked[:, -2] == 1).all()
            assert (asked[:, :-2] == 0).all()
            assert (asked[:, -1] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_batches_and_another_gives_others(name):
    task, other = create(name), create(name)
    first, second = (t.stream(9, seed=5) for t in (task, other))
    for a, b in itertools.islice(zip(first, second, strict=True), 2):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(
        a.inputs.shape == b.inputs.shape and torch.equal(a.inputs, b.inputs)
        for a, b in itertools.islice(zip(task.stream(9, seed=5), task.stream(9, seed=6), strict=True), 3)
    )


@pytest.mark.parametrize("name", NAMES)
def test_sets_out_of_distribution_share_no_sequence_with_training_lengths_or_each_other(name):
    task = create(name)
    seen = {}
    for split in [split for split in task.splits if split != "train"]:
        batch = task.split(split)
        if task.input_size is None:
            rows = {tuple(token for token in row if token != task.pad) for row in batch.inputs.tolist()}
        else:
            rows = {row[row[:, -1] == 0].numpy().tobytes() for row in batch.inputs}
        for earlier, others in seen.items():
            assert not rows & others, f"{split} and {earlier} share sequences"
        seen[split] = rows


@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_tests_are_longer_than_training(name):
    task = create(name)
    bounds = {
        split: (lengths, lengths) if isinstance(lengths, int) else lengths
        for split, (lengths, _) in task.splits.items()
    }
    assert bounds["train"][1] >= bounds["id"][1]
    if name in WITHOUT_LONGER:
        assert set(bounds) == {"train", "id"}
        return
    assert bounds["train"][1] < bounds["ood_easy"][0] <= bounds["ood_easy"][1] < bounds["ood_hard"][0]


@pytest.mark.parametrize("name", NAMES)
def test_a_split_is_fixed_and_its_parts_are_its_beginning(name):
    task = create(name)
    split = next(split for split in task.splits if split != "train")
    whole, again, part = task.split(split), create(name).split(split), task.split(split, 10)
    for a, b, c in zip(whole, again, part, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[:10], c)


@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_bad_requests_are_refused_by_name(name):
    task = create(name)
    with pytest.raises(ValueError, match=f"{name}: batch_size must be at least 1, got 0"):
        task.sample(0, seeded())
    with pytest.raises(ValueError, match="lengths must be one of at least 1"):
        task.sample(2, seeded(), lengths=(5, 3))
    with pytest.raises(ValueError, match="no test set 'train'"):
        task.split("train")
    with pytest.raises(ValueError, match="are asked for"):
        task.split("id", 10**9)


def test_unknown_names_and_options_are_refused_with_a_hint():
    with pytest.raises(ValueError, match="did you mean 'reverse'"):
        tasks.create("revers")
    with pytest.raises(ValueError, match="no preset 'huge'"):
        tasks.create("reduce", preset="huge")
    with pytest.raises(ValueError, match="cannot take these options"):
        tasks.create("parity", colour="red")


def test_lengths_are_drawn_from_the_whole_range():
    task = tasks.create("reverse")
    asked = task.sample(400, seeded(), lengths=(2, 5)).mask.sum(dim=1)
    assert sorted(set(asked.tolist())) == [2, 3, 4, 5]
    counts = torch.bincount(asked)[2:]
    assert counts.min() > 60  # 100 each, in the mean; five standard deviations are 43


# Each family against plain re-computation of what is asked.


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_reverse_and_copy(length):
    for name, step in (("reverse", -1), ("copy", 1)):
        task = tasks.create(name)
        for given, answer in read(task, task.sample(20, seeded(), length)):
            assert given[0] == given[-2] == "|"
            assert given[-1] == "."
            digits = given[1:-2]
            assert len(digits) == length
            assert answer == digits[::step]


@pytest.mark.parametrize("length", [1, 3, 16, 30])
@pytest.mark.parametrize(
    ("name", "following"), [("fibonacci", lambda a, b: a + b), ("arithmetic_sequence", lambda a, b: 2 * b - a)]
)
def test_the_next_number(name, following, length):
    task, first_lengths = tasks.create(name), set()
    for given, answer in read(task, task.sample(200, seeded(), length)):
        first, second = (part.split() for part in " ".join(given[1:-2]).split("|"))
        assert len(second) == length
        assert 1 <= len(first) <= length
        first_lengths.add(len(first))
        assert all(number[-1] != "0" for number in (first, second, answer))
        a, b, total = (int("".join(reversed(number))) for number in (first, second, answer))
        assert following(a, b) == total
        assert a <= b or name == "fibonacci"
    assert len(first_lengths) == length


@pytest.mark.parametrize("length", [1, 5, 16])
def test_reduce_leaves_out_zeros(length):
    task = tasks.create("reduce")
    zeros = 0
    for given, answer in read(task, task.sample(200, seeded(), length)):
        digits = given[:-1]
        kept = [digit for digit in digits if digit != "0"]
        zeros += digits.count("0")
        assert answer == kept + ["_"] * (length - len(kept))
    assert abs(zeros / (200 * length) - 0.5) < 5 * 0.5 / (200 * length) ** 0.5


@pytest.mark.parametrize("length", [9, 10, 31])
def test_dyck_closes_what_is_open(length):
    pairs = dict(zip("[({<", "])}>", strict=True))
    task = tasks.create("dyck")
    for given, answer in read(task, task.sample(50, seeded(), length)):
        assert len(given) == length + 1
        stack = []
        for bracket in given[:-1]:
            if bracket in pairs:
                stack.append(bracket)
            else:
                assert pairs[stack.pop()] == bracket
        assert 2 <= len(stack) <= 8
        assert answer == [pairs[bracket] for bracket in reversed(stack)]


def test_dyck_refuses_what_no_string_has():
    with pytest.raises(ValueError, match="no string of length 3 has 4 to 6 brackets open"):
        tasks.create("dyck", depths=(4, 6)).sample(1, seeded(), 3)
    with pytest.raises(ValueError, match="depths must be"):
        tasks.create("dyck", depths=(0, 2))


def chomsky_answer(name, given):
    text = "".join(given)
    match name:
        case "parity":
            return ["b" if text.count("b") % 2 else "a"]
        case "even_pairs":
            changes = sum(a != b for a, b in itertools.pairwise(text))
            return ["b" if changes % 2 else "a"]
        case "cycle_navigation":
            return [str(sum({"stay": 0, "forward": 1, "back": -1}[step] for step in given) % 5)]
        case "modular_arithmetic":
            return [str(eval(text) % 5)]
        case "reverse_string":
            return given[::-1]
        case "duplicate_string":
            return given + given
        case "odds_first":
            return given[::2] + given[1::2]
        case "missing_duplicate":
            place, half = given.index("#"), len(given) // 2
            answer = given[(place + half) % len(given)]
            whole = [*given[:place], answer, *given[place + 1 :]]
            assert whole[:half] == whole[half:]
            return [answer]
        case "stack_manipulation":
            stack = []
            for action in given:
                if action == "pop":
                    stack = stack[:-1]
                else:
                    stack.append(action[-1])
            return stack[::-1] + ["."] * (len(given) + 1 - len(stack))
        case "binary_addition":
            first, second = text.split("+")
            total = f"{int(first[::-1], 2) + int(second[::-1], 2):b}"[::-1]
            return [*total, *"." * (len(given) - len(total))]
        case "bucket_sort":
            return sorted(given)


@pytest.mark.parametrize("length", [3, 8, 41])
@pytest.mark.parametrize(
    "name",
    [
        "parity",
        "even_pairs",
        "cycle_navigation",
        "modular_arithmetic",
        "reverse_string",
        "duplicate_string",
        "odds_first",
        "missing_duplicate",
        "stack_manipulation",
        "binary_addition",
        "bucket_sort",
    ],
)
def test_chomsky_tasks(name, length):
    task = tasks.create(name)
    seen = set()
    for given, answer in read(task, task.sample(60, seeded(), length)):
        assert len(given) == length - (name == "modular_arithmetic" and length % 2 == 0) - (
            name == "missing_duplicate" and length % 2
        )
        assert answer == chomsky_answer(name, given)
        seen.add(tuple(answer))
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("name", "given", "answer"),
    [
        ("modular_arithmetic", "3*0*3+4", "4"),
        ("modular_arithmetic", "1-4*2", "3"),
        ("even_pairs", "aabba", "a"),
        ("odds_first", "abbab", "abbba"),
        ("binary_addition", "11+1", "001"),
    ],
)
def test_the_re_computation_agrees_with_examples_by_hand(name, given, answer):
    found = "".join(chomsky_answer(name, list(given))).rstrip(".")
    assert found == answer


@pytest.mark.parametrize("name", ["marked_copy", "marked_reversal"])
@pytest.mark.parametrize("length", [1, 2, 9, 40])
def test_recognition(name, length):
    task = tasks.create(name)
    count = 400
    yes = 0
    for given, answer in read(task, task.sample(count, seeded(), length)):
        first, mark, second = "".join(given).partition("#")
        expected = bool(mark) and second == (first if name == "marked_copy" else first[::-1])
        assert answer == ["yes" if expected else "no"]
        yes += expected
    # Half are in the language, and of the others few by chance: many of the shortest strings.
    assert yes / count > 0.5 - 5 * 0.5 / count**0.5
    if length > 2:
        assert yes / count < 0.5 + 5 * 0.5 / count**0.5


@pytest.mark.parametrize("pairs", [1, 4, 16])
def test_mqar_asks_for_values_shown_before(pairs):
    task = tasks.create("mqar", pairs=pairs, vocabulary_size=64)
    length = 80
    for inputs, targets, mask in zip(*task.sample(30, seeded(), length), strict=True):
        tokens = words(task, inputs)
        shown = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
        assert len(shown) == len(set(shown.values())) == pairs
        assert all(key.startswith("key") and value.startswith("value") for key, value in shown.items())
        asked = mask.nonzero().squeeze(1).tolist()
        assert sorted(tokens[place] for place in asked) == sorted(shown)
        assert min(asked) >= 2 * pairs
        assert [words(task, targets)[place] for place in asked] == [shown[tokens[place]] for place in asked]


def test_mqar_has_as_many_pairs_as_the_length_allows_and_only_even_lengths():
    task = tasks.create("mqar", vocabulary_size=64)
    for length, even, pairs in ((16, 16, 2), (41, 40, 5)):
        inputs, _, mask = task.sample(3, seeded(), length)
        assert inputs.shape == (3, even)
        assert (mask.sum(dim=1) == pairs).all()


def test_mqar_asks_most_keys_soon_and_fills_with_blanks_where_told():
    task = tasks.create("mqar", pairs=2, vocabulary_size=64, fill="blank")
    batch = task.sample(500, seeded(), 128)
    places = batch.mask.nonzero()[:, 1]
    assert (
        places.double().median() < 4 + (128 - 4) / 4
    )  # a power law; uniform distances would have half of them beyond 66
    assert ((batch.inputs == task.pad).sum(dim=1) == 128 - 6).all()


@pytest.mark.parametrize(
    ("options", "length", "message"),
    [
        ({"pairs": 8}, 31, "length of at least 32, got 30"),
        ({"pairs": 40, "vocabulary_size": 64}, 160, "the vocabulary has 32"),
    ],
)
def test_mqar_refuses_what_does_not_fit(options, length, message):
    with pytest.raises(ValueError, match=message):
        tasks.create("mqar", **options).sample(1, seeded(), length)


@pytest.mark.parametrize(("name", "order"), [("s5", 120), ("a5", 60)])
def test_word_problems_multiply_permutations(name, order):
    task = tasks.create(name)
    assert len(task.vocabulary) == 2 * order + 1
    for inputs, targets, mask in zip(*task.sample(10, seeded(), 20), strict=True):
        assert mask.all()
        product = list(range(5))
        for element, found in zip(words(task, inputs), words(task, targets), strict=True):
            product = [int(element[i]) for i in product]
            assert found == "=" + "".join(map(str, product))
            if name == "a5":
                assert sum(a > b for a, b in itertools.combinations(product, 2)) % 2 == 0


def test_scan_is_the_official_length_split():
    task = create("scan")
    assert (task.splits["train"].size, task.splits["ood_hard"].size) == (16990, 3920)
    assert task.splits["train"].lengths == (1, 22)
    assert task.splits["ood_hard"].lengths == (24, 48)
    given, answer = next(read(task, task.split("ood_hard", 1)))
    assert answer[-1] == "."
    assert len(answer) >= 25
    batch = task.sample(50, seeded(), (1, 3))
    for given, answer in read(task, batch):
        command = " ".join(given).split(" |")[0]
        assert 1 <= len(answer) - 1 <= 3
        if command == "walk twice":
            assert answer == ["I_WALK", "I_WALK", "."]
    blanks = (batch.inputs == task.vocabulary.index("?")).sum(dim=1)
    assert (blanks == 49).all()


def test_scan_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no length_split/tasks_train_length\.txt"):
        tasks.create("scan", data_dir=tmp_path)
    monkeypatch.delenv("FEWSHOT_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="data_dir="):
        tasks.create("scan")


@pytest.mark.parametrize("line", ["fly OUT: I_JUMP", "IN: jump OUT: I_FLY", "IN: jump", ""])
def test_a_line_that_is_no_command_of_scan_is_named(tmp_path, line):
    """ "not enough values to unpack" named neither file nor line."""
    place = tmp_path / "scan" / "length_split"
    place.mkdir(parents=True)
    (place / "tasks_train_length.txt").write_text(f"IN: jump OUT: I_JUMP\n{line}\nIN: walk OUT: I_WALK\n")
    with pytest.raises(ValueError, match=r"tasks_train_length\.txt line 2: no command of SCAN with its actions"):
        tasks.create("scan", data_dir=tmp_path)


def test_accuracy_counts_only_what_is_asked_and_rows_count_all():
    targets = torch.tensor([[1, 2, 3], [4, 5, 6]])
    batch = Batch(targets, targets, torch.tensor([[False, True, True], [False, True, False]]))
    found = tasks.accuracy(torch.tensor([[9, 2, 3], [4, 5, 6]]), batch)
    assert found == (1.0, 0.5, 1.0)
    with pytest.raises(ValueError, match="shape"):
        tasks.accuracy(torch.zeros(2, 4, dtype=torch.long), batch)
    with pytest.raises(ValueError, match="asks for no token"):
        tasks.accuracy(targets, batch._replace(mask=torch.zeros_like(batch.mask)))

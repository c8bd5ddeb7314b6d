"""The hierarchical memory against explicit contraction, and the theorems at every order, in float64."""

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewshot_nam.memory.primitives import read, unit, write, write_sequence
from fewshot_nam.memory.tensor import TensorMemory, tensor_read, tensor_write, tensor_write_sequence

EXACT = {"rtol": 1e-10, "atol": 1e-10}
SIZES = (5, 3, 7, 2)  # of the keys of levels 1 to 4: no two alike
WIDTH = 11  # of a value
LEVELS = "abcd"
seeds = st.integers(0, 2**31)
orders = st.integers(1, 4)
batches = st.sampled_from([(), (13,), (2, 3), (0,)])
gates = st.floats(0, 1)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unit_keys(seed: int, *batch: int, order: int) -> list[Tensor]:
    return [unit(normal(seed + i, *batch, SIZES[i])) for i in range(order)]


def a_memory(seed: int, *batch: int, order: int) -> Tensor:
    return normal(seed, *batch, WIDTH, *SIZES[:order])


def explicit_read(memory: Tensor, keys: list[Tensor], order: int) -> Tensor:
    """Return the contraction of a memory with keys, spelt out."""
    all_levels, given_levels = LEVELS[:order], LEVELS[: len(keys)]
    inputs = ",".join([f"...v{all_levels}", *(f"...{level}" for level in given_levels)])
    return torch.einsum(f"{inputs}->...v{all_levels[len(keys) :]}", memory, *keys)


def explicit_product(keys: list[Tensor], branch: Tensor, order: int) -> Tensor:
    """Return the tensor product of keys and what is under them, spelt out."""
    all_levels, given_levels = LEVELS[:order], LEVELS[: len(keys)]
    inputs = ",".join([*(f"...{level}" for level in given_levels), f"...v{all_levels[len(keys) :]}"])
    return torch.einsum(f"{inputs}->...v{all_levels}", *keys, branch)


def explicit_write(memory: Tensor, keys: list[Tensor], branch: Tensor, p_write, p_erase, order: int) -> Tensor:
    erased = explicit_product(keys, explicit_read(memory, keys, order), order)
    return memory + p_write * explicit_product(keys, branch, order) - p_erase * erased


@st.composite
def splits(draw) -> tuple[int, int]:
    """Draw an order and how many keys of it are given."""
    order = draw(orders)
    return order, draw(st.integers(1, order))


@given(seeds, batches, splits(), gates)
def test_a_read_is_the_explicit_contraction(seed, batch, split, p_read):
    order, given_keys = split
    memory = a_memory(seed, *batch, order=order)
    keys = [normal(seed + i, *batch, SIZES[i]) for i in range(given_keys)]
    expected = p_read * explicit_read(memory, keys, order)
    torch.testing.assert_close(tensor_read(memory, keys, p_read, order=order), expected, **EXACT)


@given(seeds, batches, splits(), gates, gates)
def test_a_write_is_the_printed_equation(seed, batch, split, p_write, p_erase):
    order, given_keys = split
    memory, branch = a_memory(seed, *batch, order=order), normal(seed + 9, *batch, WIDTH, *SIZES[given_keys:order])
    keys = [normal(seed + i, *batch, SIZES[i]) for i in range(given_keys)]  # of any length: the equation holds for all
    before = memory.clone()
    expected = explicit_write(memory, keys, branch, p_write, p_erase, order)
    torch.testing.assert_close(
        tensor_write(memory, keys, branch, p_write, p_erase, order=order), expected, rtol=1e-10, atol=1e-9
    )
    assert torch.equal(memory, before)


@given(seeds, batches, splits())
def test_theorem_1_unit_keys_read_back_a_value_or_a_branch_from_any_memory(seed, batch, split):
    order, given_keys = split
    memory, branch = a_memory(seed, *batch, order=order), normal(seed + 9, *batch, WIDTH, *SIZES[given_keys:order])
    keys = unit_keys(seed, *batch, order=given_keys)
    after = tensor_write(memory, keys, branch, order=order)
    torch.testing.assert_close(tensor_read(after, keys, order=order), branch, **EXACT)


@given(seeds, orders, gates)
def test_theorem_2_orthonormal_keys_on_every_level_hold_as_many_values_as_their_sizes_multiply_to(seed, order, p_write):
    bases = [torch.linalg.qr(normal(seed + i, size, size)).Q for i, size in enumerate(SIZES[:order])]
    places = torch.cartesian_prod(*(torch.arange(size) for size in SIZES[:order])).reshape(-1, order)
    keys = [basis[places[:, level]] for level, basis in enumerate(bases)]
    values = normal(seed + 9, len(places), WIDTH)
    memory = TensorMemory(WIDTH, SIZES[:order], dtype=torch.float64)
    memory.write_sequence(keys, values, p_write, p_erase=0.0)
    torch.testing.assert_close(memory.read(*keys), p_write * values, **EXACT)


@given(seeds, batches, splits(), st.data())
def test_a_write_spares_all_that_is_orthogonal_on_one_level(seed, batch, split, data):
    order, given_keys = split
    level = data.draw(st.integers(0, given_keys - 1))
    memory, branch = a_memory(seed, *batch, order=order), normal(seed + 9, *batch, WIDTH, *SIZES[given_keys:order])
    keys, queries = unit_keys(seed, *batch, order=given_keys), unit_keys(seed + 50, *batch, order=given_keys)
    apart = queries[level] - (queries[level] * keys[level]).sum(-1, keepdim=True) * keys[level]
    queries[level] = apart
    after = tensor_write(memory, keys, branch, 0.7, 0.4, order=order)
    torch.testing.assert_close(
        tensor_read(after, queries, order=order), tensor_read(memory, queries, order=order), **EXACT
    )


@given(seeds, batches, orders, st.data())
def test_a_nested_read_is_the_full_read_however_it_is_split(seed, batch, order, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, order - 1)))) if order > 1 else []
    memory = TensorMemory.from_tensor(a_memory(seed, *batch, order=order), order)
    keys = unit_keys(seed, *batch, order=order)
    found = memory
    for start, end in zip([0, *cuts], [*cuts, order], strict=True):
        found = found.read(*keys[start:end])
    assert not isinstance(found, TensorMemory)
    torch.testing.assert_close(found, explicit_read(memory.memory, keys, order), **EXACT)


@given(seeds, batches, gates, gates, gates)
def test_order_1_is_the_memory_of_the_primitives_to_the_bit(seed, batch, p_read, p_write, p_erase):
    memory, (key,), value = (
        a_memory(seed, *batch, order=1),
        unit_keys(seed, *batch, order=1),
        normal(seed, *batch, WIDTH),
    )
    after = tensor_write(memory, (key,), value, p_write, p_erase)
    assert torch.equal(after, write(memory, key, value, p_write, p_erase))
    assert torch.equal(tensor_read(after, (key,), p_read), read(after, key, p_read))
    keys, values = normal(seed, *batch, 4, SIZES[0]), normal(seed + 1, *batch, 4, WIDTH)
    assert torch.equal(tensor_write_sequence(memory, (keys,), values), write_sequence(memory, keys, values))


@given(seeds, batches, splits(), st.integers(0, 6), st.sampled_from([0.0, 0.6, 1.0]), st.booleans())
def test_a_sequence_of_writes_is_the_loop(seed, batch, split, count, p_erase, as_tensors):
    order, given_keys = split
    memory = a_memory(seed, *batch, order=order)
    keys = [normal(seed + i, *batch, count, SIZES[i]) for i in range(given_keys)]
    keys = [unit(torch.cat([key, key[..., :1, :]], dim=-2)) for key in keys]  # the first keys once more at the end
    values = normal(seed + 9, *batch, keys[0].shape[-2], WIDTH, *SIZES[given_keys:order])
    p_write = torch.sigmoid(normal(seed + 10, *batch, keys[0].shape[-2]))
    p_erases = torch.full_like(p_write, p_erase) * p_write
    expected = memory
    for t in range(keys[0].shape[-2]):
        gate = p_erases[..., t] if as_tensors else p_erase
        now = [key[..., t, :] for key in keys]
        expected = tensor_write(expected, now, values.select(len(batch), t), p_write[..., t], gate, order=order)
    together = tensor_write_sequence(memory, keys, values, p_write, p_erases if as_tensors else p_erase, order=order)
    torch.testing.assert_close(together, expected, **EXACT)


@given(seeds, st.permutations(range(5)))
def test_a_sum_without_erase_has_no_order(seed, order_of_writing):
    memory, values = a_memory(seed, order=2), normal(seed + 9, 5, WIDTH)
    keys = [normal(seed + i, 5, SIZES[i]) for i in range(2)]
    shuffled = [key[order_of_writing] for key in keys]
    torch.testing.assert_close(
        tensor_write_sequence(memory, shuffled, values[order_of_writing], p_erase=0.0),
        memory + torch.einsum("ta,tb,tv->vab", *keys, values),
        **EXACT,
    )


@given(seeds, batches)
def test_gates_may_differ_within_a_batch(seed, batch):
    memory, keys, value = (
        a_memory(seed, *batch, order=2),
        unit_keys(seed, *batch, order=1),
        normal(seed, *batch, WIDTH, SIZES[1]),
    )
    p_read, p_write, p_erase = (torch.sigmoid(normal(seed + i, *batch)) for i in range(3))
    after = tensor_write(memory, keys, value, p_write, p_erase, order=2)
    found = tensor_read(after, keys, p_read, order=2)
    for at in (
        [tuple(i) for i in torch.cartesian_prod(*(torch.arange(n) for n in batch)).reshape(-1, len(batch))]
        if batch
        else [()]
    ):
        own = [key[at] for key in keys]
        alone = explicit_write(memory[at], own, value[at], p_write[at].item(), p_erase[at].item(), 2)
        torch.testing.assert_close(after[at], alone, **EXACT)
        torch.testing.assert_close(found[at], p_read[at] * explicit_read(alone, own, 2), **EXACT)


def test_erasing_a_prefix_removes_the_branch_and_nothing_else():
    sentences, words = torch.linalg.qr(normal(0, 5, 5)).Q, torch.linalg.qr(normal(1, 3, 3)).Q
    values = normal(2, 5, 3, WIDTH)
    memory = TensorMemory(WIDTH, (5, 3), dtype=torch.float64)
    for s in range(5):
        memory.write_sequence((sentences[s].expand(3, 5), words), values[s])
    memory.erase(sentences[2])
    expected = values.clone()
    expected[2] = 0
    torch.testing.assert_close(memory.read(sentences.unsqueeze(1), words), expected, **EXACT)
    memory.erase(sentences[4], words[1])
    expected[4, 1] = 0
    torch.testing.assert_close(memory.read(sentences.unsqueeze(1), words), expected, **EXACT)
    memory.erase(sentences[0], p_erase=0.25)
    torch.testing.assert_close(memory.read(sentences[0], words[1]), 0.75 * values[0, 1], **EXACT)
    assert not memory.reset().memory.any()


def test_a_memory_of_words_is_written_under_a_sentence_and_comes_out_again():
    words_of_it = TensorMemory(WIDTH, (3, 7), dtype=torch.float64)
    inner = [unit(normal(i, SIZES[i])) for i in (1, 2)]
    words_of_it.write(inner, normal(3, WIDTH))
    document = TensorMemory.from_tensor(normal(4, WIDTH, 5, 3, 7), order=3)
    sentence = unit(normal(5, 5))
    document.write((sentence,), words_of_it)
    branch = document.read(sentence)
    assert isinstance(branch, TensorMemory)
    assert (branch.value_size, branch.key_sizes, branch.batch_shape) == (WIDTH, (3, 7), ())
    torch.testing.assert_close(branch.memory, words_of_it.memory, **EXACT)
    torch.testing.assert_close(document.read(sentence, *inner), normal(3, WIDTH), **EXACT)


def test_a_module_writes_what_the_functions_write():
    held, value, values = a_memory(0, order=2), normal(1, WIDTH), normal(2, 4, WIDTH)
    keys, many = unit_keys(3, order=2), unit_keys(4, 4, order=2)
    memory = TensorMemory.from_tensor(held, 2).write(keys, value, 0.7, 0.2).write_sequence(many, values, 0.6, 0.3)
    expected = tensor_write_sequence(tensor_write(held, keys, value, 0.7, 0.2), many, values, 0.6, 0.3)
    torch.testing.assert_close(memory.memory, expected, **EXACT)
    torch.testing.assert_close(memory(*keys, p_read=0.5), 0.5 * explicit_read(expected, keys, 2), **EXACT)


def test_queries_of_two_levels_read_every_pair_of_them():
    memory, sentences, words = a_memory(0, order=2), normal(1, 13, 5), normal(2, 4, 3)
    found = tensor_read(memory, (sentences.unsqueeze(1), words))
    torch.testing.assert_close(found, torch.einsum("vab,sa,wb->swv", memory, sentences, words), **EXACT)


@pytest.mark.parametrize(("order", "given_keys"), [(1, 1), (2, 1), (3, 2), (3, 3)])
def test_gradients_are_right(order, given_keys):
    sizes = (2, 3, 2)[:order]
    memory, value = normal(0, 2, *sizes), normal(1, 2, *sizes[given_keys:])
    keys = [normal(2 + i, size) for i, size in enumerate(sizes[:given_keys])]
    p_read, p_write, p_erase = (torch.tensor(p, dtype=torch.float64) for p in (0.3, 0.6, 0.8))

    def both(memory, value, p_read, p_write, p_erase, *keys):
        return tensor_read(tensor_write(memory, keys, value, p_write, p_erase, order=order), keys, p_read, order=order)

    arguments = [a.requires_grad_() for a in (memory, value, p_read, p_write, p_erase, *keys)]
    assert torch.autograd.gradcheck(both, arguments)
    assert torch.autograd.gradgradcheck(both, arguments)


@pytest.mark.parametrize("p_erase", [0.0, 0.7])
def test_a_sequence_has_right_gradients(p_erase):
    memory, first, second, values = normal(0, 2, 3, 2), normal(1, 4, 3), normal(2, 4, 2), normal(3, 4, 2)

    def written(memory, first, second, values):
        return tensor_write_sequence(memory, (first, second), values, 0.9, p_erase)

    assert torch.autograd.gradcheck(written, [a.requires_grad_() for a in (memory, first, second, values)])


def test_gradients_reach_back_through_the_module_until_it_is_detached():
    key, value = unit(normal(0, 5)).requires_grad_(), normal(1, WIDTH).requires_grad_()
    memory = TensorMemory(WIDTH, (5,), dtype=torch.float64).write((key,), value)
    memory.read(key).sum().backward()
    torch.testing.assert_close(value.grad, torch.ones(WIDTH, dtype=torch.float64), **EXACT)
    assert not memory.detach().read(key.detach()).requires_grad


def test_a_copy_holds_the_numbers_without_the_history():
    key, value = unit(normal(0, 5)), normal(1, WIDTH).requires_grad_()
    network = torch.nn.ModuleList([TensorMemory(WIDTH, (5,), dtype=torch.float64).write((key,), value)])
    file = io.BytesIO()
    torch.save(network[0], file)
    file.seek(0)
    copies = [copy.deepcopy(network)[0], copy.copy(network[0]), torch.load(file, weights_only=False)]
    for each in copies:
        torch.testing.assert_close(each.read(key), value.detach(), **EXACT)
        assert not each.memory.requires_grad
        each.reset()
    assert torch.equal(network[0].read(key).detach(), copy.deepcopy(network)[0].read(key))
    network[0].read(key).sum().backward()
    torch.testing.assert_close(value.grad, torch.ones(WIDTH, dtype=torch.float64), **EXACT)


def test_the_meta_device_gives_shapes():
    memory = TensorMemory(WIDTH, SIZES[:2], device="meta")
    keys, value = [torch.ones(3, size, device="meta") for size in SIZES[:2]], torch.ones(3, WIDTH, device="meta")
    memory.write_sequence(keys, value).write([key[0] for key in keys], value[0]).erase(keys[0][0])
    assert memory.read(*keys).shape == (3, WIDTH)


def test_vmap_over_memories_keys_and_values_is_the_batch():
    memory, value = a_memory(0, 13, order=3), normal(1, 13, WIDTH)
    keys = unit_keys(2, 13, order=3)

    def both(memory, value, *keys):
        after = tensor_write(memory, keys, value, 0.8, 0.3)
        return after, tensor_read(after, keys[:2], order=3)

    mapped, expected = torch.func.vmap(both)(memory, value, *keys), both(memory, value, *keys)
    torch.testing.assert_close(mapped, expected, **EXACT)
    many, values = [normal(5, 13, 4, 5), normal(6, 13, 4, 3)], normal(7, 13, 4, WIDTH)
    torch.testing.assert_close(
        torch.func.vmap(lambda m, a, b, v: tensor_write_sequence(m, (a, b), v))(memory[..., 0], *many, values),
        tensor_write_sequence(memory[..., 0], many, values),
        **EXACT,
    )


def test_state_dict_brings_the_memory_back_and_leaves_the_source_alone():
    held = a_memory(0, 2, order=2)
    memory, fresh = TensorMemory.from_tensor(held, 2), TensorMemory(WIDTH, SIZES[:2], (2,), dtype=torch.float64)
    fresh.load_state_dict(memory.state_dict())
    assert torch.equal(fresh.memory, held)
    memory.load_state_dict({"memory": torch.zeros_like(held)})
    assert torch.equal(held, a_memory(0, 2, order=2))
    with pytest.raises(RuntimeError, match="size mismatch"):
        TensorMemory(WIDTH, SIZES[:2]).load_state_dict(fresh.state_dict())


def test_repr_says_the_sizes():
    assert repr(TensorMemory(11, [5, 3], [2])) == "TensorMemory(value_size=11, key_sizes=(5, 3), batch_shape=(2,))"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_keys_and_values_are_raised_to_the_memory(dtype):
    keys, value = [k.to(dtype) for k in unit_keys(0, order=2)], normal(9, WIDTH).to(dtype)
    memory = TensorMemory(WIDTH, SIZES[:2], dtype=torch.float64).write(keys, value, value[0].sigmoid())
    expected = explicit_product([k.double() for k in keys], value.double(), 2) * value[0].sigmoid().double()
    torch.testing.assert_close(memory.memory, expected, **EXACT)
    low = tensor_write_sequence(torch.zeros(WIDTH, 5, 3, dtype=dtype), [k[None] for k in keys], value[None])
    assert low.dtype == dtype


def test_autocast_changes_no_number():
    keys, value, memory = (
        [k.float() for k in unit_keys(0, order=2)],
        normal(9, WIDTH).float(),
        a_memory(1, order=2).float(),
    )
    after = tensor_write_sequence(tensor_write(memory, keys, value), [k[None] for k in keys], value[None], 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = tensor_write_sequence(tensor_write(memory, keys, value), [k[None] for k in keys], value[None], 0.5)
        found = tensor_read(again, keys)
    assert torch.equal(again, after)
    assert torch.equal(found, tensor_read(after, keys))


class Document(torch.nn.Module):
    """Write, erase and read within one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = TensorMemory(WIDTH, SIZES[:2], dtype=torch.float64)

    def forward(self, sentence: Tensor, word: Tensor, value: Tensor) -> Tensor:
        held = tensor_write(self.memory.memory, (sentence, word), value, 0.5)
        many = [sentence.expand(3, -1), word.expand(3, -1)]
        held = tensor_write_sequence(held, many, value.expand(3, -1), 0.3, 0.2)
        return tensor_read(held, (sentence,), order=2) + self.memory(sentence)


def test_export_and_compile_take_the_whole_graph():
    arguments = (*unit_keys(0, order=2), normal(9, WIDTH))
    document = Document()
    document.memory.memory = a_memory(1, order=2)
    expected = document(*arguments)
    exported = torch.export.export(document, arguments).module()
    torch.testing.assert_close(exported(*arguments), expected, **EXACT)
    compiled = torch.compile(document, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), expected, **EXACT)


def test_a_module_that_writes_compiles_and_remembers():
    def step(memory: TensorMemory, sentence: Tensor, word: Tensor, value: Tensor) -> Tensor:
        return memory.write((sentence, word), value).erase(sentence, p_erase=0.5)(sentence, word)

    arguments = (*unit_keys(0, order=2), normal(9, WIDTH))
    plain, compiled = (TensorMemory.from_tensor(a_memory(1, order=2), 2) for _ in range(2))
    run = torch.compile(step, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(run(compiled, *arguments), step(plain, *arguments), **EXACT)
    torch.testing.assert_close(compiled.memory, plain.memory, **EXACT)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.read(), ValueError, "tensor_read: needs 1 to 2 keys in a memory of order 2, got 0"),
        (lambda m: m.read(*[torch.ones(5)] * 3), ValueError, "needs 1 to 2 keys in a memory of order 2, got 3"),
        (lambda m: m.read(torch.ones(3)), ValueError, r"key 1 must have shape \(..., 5\) in this memory, got \(3,\)"),
        (lambda m: m.read(torch.ones(5), torch.ones(5)), ValueError, r"key 2 must have shape \(..., 3\)"),
        (lambda m: m.read([1.0] * 5), TypeError, "key 1 must be a floating tensor, got list"),
        (lambda m: m.read(torch.ones(5).long()), TypeError, "key 1 must be a floating tensor, got torch.int64"),
        (lambda m: m.read(torch.ones(5).double()), TypeError, "make the memory torch.float64"),
        (lambda m: m.read(torch.ones(5, device="meta")), ValueError, "all must be on one device"),
        (lambda m: m.read(torch.ones(2, 5), torch.ones(3, 3)), ValueError, "batch dimensions must broadcast"),
        (lambda m: m.write(torch.ones(5), torch.ones(11)), TypeError, r"keys must be a tuple.*: \(key,\) for one"),
        (lambda m: m.write((torch.ones(5),), torch.ones(11)), ValueError, r"value must have shape \(..., 11, 3\)"),
        (
            lambda m: m.write((torch.ones(2, 5), torch.ones(3)), torch.ones(11)),
            ValueError,
            r"write: keys.* batch dimensions \(2,\), the memory has \(\).*write_sequence",
        ),
        (lambda m: m.write((torch.ones(5),), torch.ones(11, 3), torch.tensor(1)), TypeError, "p_write must be"),
        (lambda m: m.erase(torch.ones(2, 5)), ValueError, r"erase: .* batch dimensions \(2,\)"),
        (
            lambda m: m.write_sequence((torch.ones(2, 5), torch.ones(4, 3)), torch.ones(2, 11)),
            ValueError,
            r"key 2 must have shape \(..., 2, 3\) in this memory, got \(4, 3\)",
        ),
        (
            lambda m: m.write_sequence((torch.ones(2, 5), torch.ones(2, 3)), torch.ones(4, 11)),
            ValueError,
            r"values must have shape \(..., 2, 11\) in this memory, got \(4, 11\)",
        ),
        (
            lambda m: m.write_sequence((torch.ones(5), torch.ones(3)), torch.ones(11)),
            ValueError,
            r"key 1 must have shape \(..., t, 5\)",
        ),
        (
            lambda m: tensor_read(m.memory, (torch.ones(5),), order=3),
            ValueError,
            r"order 3 has dimensions \(..., D_v, D_1, ..., D_3\), got \(11, 5, 3\)",
        ),
        (lambda m: tensor_read(None, (torch.ones(5),)), TypeError, "memory must be a floating tensor, got NoneType"),
        (lambda m: TensorMemory.from_tensor(m.memory, 3), ValueError, "order of 1 to 2, got 3"),
        (lambda m: TensorMemory.from_tensor("m", 3), TypeError, "got str"),
        (lambda m: TensorMemory(11, 3), TypeError, r"key_sizes must be a tuple of sizes, got int: \(size,\) for one"),
        (lambda m: TensorMemory(11, (3,), 2), TypeError, "batch_shape must be a tuple of sizes, got int"),
        (lambda m: m.write((torch.ones(5),), torch.ones(11, 3), "a"), TypeError, "p_write must be a number.*got str"),
        (lambda m: m.erase(torch.ones(5), p_erase=None), TypeError, "p_erase must be a number.*got NoneType"),
        (lambda m: m.read(torch.ones(5), p_read=[1.0]), TypeError, "p_read must be a number.*got list"),
        (lambda m: TensorMemory(11, ()), ValueError, "one or more key_sizes"),
        (lambda m: TensorMemory(11, (5, 0)), ValueError, r"of at least 1.* got .*\(5, 0\)"),
        (lambda m: TensorMemory(11, (5,), (-1,)), ValueError, r"batch_shape=\(-1,\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_said(call, error, message):
    memory = TensorMemory(11, (5, 3))
    with pytest.raises(error, match=message):
        call(memory)
    assert memory.memory.shape == (11, 5, 3)

"""Features that an index picks: compiled and torch's products, and scores without gathering equal scores of the features."""

from pathlib import Path

import pytest
import torch

from fewshot_nam.heads import CosineHead, NAMHead, available, create
from fewshot_nam.heads import gather_free_scoring as picked
from fewshot_nam.heads.gather_free_scoring import Picker, familiarities_of, read_picked, reads_rows
from fewshot_nam.heads.power_norm import signed_root
from fewshot_nam.memory.native import native_build as compiled

SOURCE = Path(picked.__file__).with_suffix(".cpp")
READERS = {"nam", "nam-sequential", "nam-parallel", "cosine", "cosine-centred", "cosine-msp", "protonet"}
ROOTED = {"cosine-root", "cosine-root-centred"}
E, WAYS, QUERIES = 7, 3, 11

needs_compiler = pytest.mark.skipif(compiled.library(SOURCE) is None, reason="no C++ compiler here")


@pytest.fixture(params=["compiled", "torch"])
def form(request, monkeypatch):
    """Both forms in turn, the first only where it can be built."""
    if request.param == "torch":
        monkeypatch.setattr(picked, "library", lambda source: None)
    elif compiled.library(SOURCE) is None:
        pytest.skip("no C++ compiler here")
    return request.param


def rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.1


def picks(seed: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def episodes(shots: int, width: int = 37) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a bank, and an index of support and queries in which no picture is twice in an episode."""
    order = torch.stack([torch.randperm(90, generator=torch.Generator().manual_seed(seed)) for seed in range(E)])
    support = order[:, : WAYS * shots].reshape(E, WAYS, shots)
    return rows(0, 90, width), support, order[:, -QUERIES:]


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [1, 7, 16, 33, 640])
def test_products_are_those_of_the_features(form, width, dtype, centred):
    bank, mean = rows(0, 50, width).to(dtype), rows(1, width) if centred else None
    picker = Picker(bank)
    exact = bank.double() - (0 if mean is None else mean.double())
    for n, queries, columns in ((1, 1, 1), (5, 11, 5), (6, 4, 17), (13, 3, 3)):
        support, query = picks(2, 50, E, n), picks(3, 50, E, queries)
        weights = rows(4, E, columns, n)
        gram = exact[support] @ exact[support].mT
        found = picker.gram(support, mean)
        torch.testing.assert_close(found.double(), gram, rtol=2e-6, atol=2e-6 * width)
        products, lengths = picker.products(support, weights, query, mean)
        wanted = exact[query] @ (weights.double() @ exact[support]).mT
        torch.testing.assert_close(products.double(), wanted, rtol=2e-6, atol=2e-6 * width * n)
        torch.testing.assert_close(lengths.double(), exact[query].norm(dim=-1), rtol=2e-6, atol=2e-6)


def test_runs_of_a_block_are_multiplied_with_one_another_alone(form):
    picker, index = Picker(rows(0, 50, 19)), picks(1, 50, E, 9)
    run = torch.arange(9) // 3
    wanted = picker.gram(index) * (run == run[:, None])
    torch.testing.assert_close(picker.gram(index, block=3), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_roots_are_taken_as_features_are_read(form, dtype):
    """Features of either sign, zeros, and some so near zero that their root is a line."""
    sizes = torch.tensor([0.0, 1e-30, 1e-9, 1e-8, 1e-3, 1.0, 50.0])
    bank = (sizes[picks(0, 7, 50, 37)] * (rows(1, 50, 37) - 0.6)).to(dtype)
    mean, support, query, weights = rows(2, 37) - 0.6, picks(3, 50, E, 5), picks(4, 50, E, 11), rows(5, E, 4, 5)
    exact, roots = signed_root(bank.double()) - mean.double(), Picker(bank).roots
    torch.testing.assert_close(
        roots.gram(support, mean).double(), exact[support] @ exact[support].mT, rtol=1e-5, atol=1e-4
    )
    products, lengths = roots.products(support, weights, query, mean)
    torch.testing.assert_close(
        products.double(), exact[query] @ (weights.double() @ exact[support]).mT, rtol=1e-5, atol=1e-3
    )
    torch.testing.assert_close(lengths.double(), exact[query].norm(dim=-1), rtol=1e-5, atol=1e-5)


def test_features_that_are_part_of_wider_rows_are_read_where_they_lie(form):
    wide, index = rows(0, 50, 40), picks(1, 50, E, 5)
    part = wide[10:, 3:22]
    assert torch.equal(Picker(part).gram(index % 40), Picker(part.contiguous()).gram(index % 40))


@needs_compiler
def test_an_episode_does_not_depend_on_those_beside_it():
    bank, support, query = episodes(2)
    weights = rows(4, E, 5, 2 * WAYS)
    support = support.flatten(1)
    together, _ = Picker(bank).products(support, weights, query)
    alone, _ = Picker(bank).products(support[3:4], weights[3:4], query[3:4])
    assert torch.equal(together[3], alone[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shots", [1, 3])
def test_scores_without_gathering_equal_scores_of_the_features(form, shots, dtype):
    bank, support, query = episodes(shots)
    bank = bank.to(dtype)
    background, mean = rows(5, 12, bank.shape[1]), bank.float().mean(dim=0)
    heads = {name: create(name, mean, None if name.startswith("nam") else background) for name in available()}
    heads["another mean"] = CosineHead(mean=rows(6, bank.shape[1]))
    heads["over a background"] = NAMHead(background=background)
    heads["nothing familiar"] = NAMHead("sequential", plain=1.0, familiar=0.0, background=background)
    familiarities = {name: familiarities_of(head, bank) for name, head in heads.items()}
    known = {name: values for name, values in familiarities.items() if values is not None}
    assert set(known) == {"over a background", "nothing familiar"}
    found = read_picked(heads, Picker(bank), support, query, known)
    assert set(found) == READERS | ROOTED | {"another mean", *known}
    for name, scores in found.items():
        wanted = heads[name].score_episodes(*(bank[index].to(scores.dtype) for index in (support, query)))
        torch.testing.assert_close(scores, wanted, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_heads_that_look_at_features_are_left_to_them():
    class Louder(CosineHead):
        def _score(self, learned, query):
            return 2 * super()._score(learned, query)

    class Own(NAMHead):
        def _learn(self, support):
            return super()._learn(support)

    class Renamed(NAMHead):
        """Nothing of how it scores is changed."""

    assert reads_rows(Renamed())

    class Upside(CosineHead):
        def score_episodes(self, *args, **options):
            return -super().score_episodes(*args, **options)

    patched = CosineHead()
    patched.score_episodes = lambda *args, **options: None
    over = NAMHead(background=rows(0, 12, 37))
    over._score = lambda learned, query: query
    assert familiarities_of(over, rows(0, 90, 37)) is None
    assert not reads_rows(Upside())
    assert not reads_rows(patched)
    assert reads_rows(CosineHead(root=True))
    for head in (Louder(), Own(), NAMHead(background=rows(0, 12, 37)), create("ridge")):
        assert not reads_rows(head)


def test_a_head_over_a_background_that_somebody_changed_is_left_to_features(monkeypatch):
    bank, support, query = episodes(1)

    class Own(NAMHead):
        def _levelled(self, means):
            return 2 * super()._levelled(means)

    for head in (
        Own(background=rows(0, 12, 37)),
        NAMHead(plain=0.0, background=rows(0, 12, 37)),
        NAMHead(),
        CosineHead(),
    ):
        assert familiarities_of(head, bank) is None
    head = NAMHead(background=rows(0, 12, 37))
    assert read_picked({"nam": head}, Picker(bank), support, query) == {}
    assert familiarities_of(head, bank).shape == (90,)
    monkeypatch.setattr(picked, "_MOST_FAMILIAR", 89)
    assert familiarities_of(head, bank) is None


def test_support_that_is_linearly_dependent_is_left_to_the_features(form):
    bank, support, query = episodes(3)
    heads, picker = {"cosine": CosineHead(), "nam": NAMHead()}, Picker(bank)
    assert set(read_picked(heads, picker, support, query)) == set(heads)
    copies = bank.clone()
    copies[support[4, 1, 2]] = copies[support[4, 1, 0]]
    assert read_picked(heads, Picker(copies), support, query) == {}
    over = {"nam": NAMHead(background=rows(5, 12, bank.shape[1]))}
    known = {"nam": familiarities_of(over["nam"], bank)}
    assert set(read_picked(over, picker, support, query, known)) == {"nam"}
    assert read_picked(over, Picker(copies), support, query, known) == {}
    assert read_picked(heads, Picker(bank[:, :8]), support, query) == {}, "9 features of width 8"
    near, far = (torch.tensor([[[1.0, 1 - gap], [1 - gap, 1.0]]]) for gap in (5e-7, 1e-3))
    assert picked._coordinates(far) is not None
    assert picked._coordinates(near) is None, "a factor of rounding errors is no factor"

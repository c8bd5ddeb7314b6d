"""Gather-free scoring: compiled products are those of the features, scores those of ``score_episodes``, and heads opt in."""

import pytest
import torch

from fewshot_nam.heads import BaseStatistics, CosineHead, Head, NAMHead, ProtoNetHead, available, create
from fewshot_nam.heads.gather_free_scoring import GatherFreeScoring, IndexedFeatures, embedded_banks, score_gathered
from fewshot_nam.heads.nam import head as nam
from fewshot_nam.heads.power_norm import Transform

E, WAYS, QUERIES = 7, 3, 11

needs_compiler = pytest.mark.skipif(not IndexedFeatures(torch.ones(2, 2)).compiled, reason="no C++ compiler here")


def features(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.1


def picks(seed: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def episodes(shots: int, width: int = 37) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features of a bank, and an index of support and queries in which no image is twice in an episode."""
    order = torch.stack([torch.randperm(90, generator=torch.Generator().manual_seed(seed)) for seed in range(E)])
    support = order[:, : WAYS * shots].reshape(E, WAYS, shots)
    return features(0, 90, width), support, order[:, -QUERIES:]


def every_head(bank: torch.Tensor) -> dict[str, Head]:
    """Return all heads, with base classes and without."""
    base = BaseStatistics.from_prototypes(features(5, 12, bank.shape[1]))
    heads = {name: create(name, None if name.startswith("nam") else base) for name in available()}
    heads["another mean"] = CosineHead(base=BaseStatistics.from_mean(features(6, bank.shape[1])))
    images = features(7, 60, bank.shape[1])
    heads["nam over base classes"] = NAMHead(base=base)
    heads["nam over base images"] = NAMHead(base=BaseStatistics.from_features(images, torch.arange(60) % 12))
    return heads


@needs_compiler
@pytest.mark.parametrize("power", [False, True], ids=["features", "roots"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [1, 7, 16, 33, 640])
def test_products_are_those_of_the_features(width, dtype, centred, power):
    """Of features of either sign, zeros, and some so near zero that their root is a line."""
    sizes = torch.tensor([0.0, 1e-30, 1e-9, 1e-8, 1e-3, 1.0, 5.0])
    bank = (sizes[picks(0, 7, 50, width)] * (features(1, 50, width) - 0.6)).to(dtype)
    transform = Transform(power, features(1, width) if centred else None)
    exact = transform(bank.double())
    for queries, classes in ((1, 1), (2, 5), (11, 5), (4, 17), (3, 3)):
        query, weights = picks(3, 50, E, queries), features(4, E, classes, width) - 0.5
        products, lengths = IndexedFeatures(bank).products(weights, transform, query)
        wanted = exact[query] @ weights.double().mT
        torch.testing.assert_close(products.double(), wanted, rtol=1e-5, atol=4e-6 * width)
        torch.testing.assert_close(lengths.squeeze(-1).double(), exact[query].norm(dim=-1), rtol=1e-5, atol=1e-6)


@needs_compiler
def test_features_that_are_part_of_wider_rows_are_read_in_place():
    wide, query = features(0, 50, 40), picks(1, 40, E, 5)
    part, weights = wide[10:, 3:22], features(2, E, 4, 19)
    found, wanted = (IndexedFeatures(bank).products(weights, Transform(), query) for bank in (part, part.contiguous()))
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


@needs_compiler
def test_an_episode_does_not_depend_on_those_beside_it():
    bank, _, query = episodes(2)
    weights = features(4, E, 5, bank.shape[1])
    together, _ = IndexedFeatures(bank).products(weights, Transform(), query)
    alone, _ = IndexedFeatures(bank).products(weights[3:4], Transform(), query[3:4])
    assert torch.equal(together[3], alone[0])


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shots", [1, 3, 20], ids="{}_shots".format)
def test_scores_are_those_of_the_features(shots, dtype):
    bank, support, query = episodes(shots)
    heads = every_head(bank := bank.to(dtype))
    scoring = GatherFreeScoring(IndexedFeatures(bank), heads)
    assert set(scoring.heads) == {name for name, head in heads.items() if head.gather_free}
    assert {"nam", "nam over base classes", "cosine", "cosine-root-centred", "protonet"} <= set(scoring.heads)
    found = scoring.score(support, query)
    assert set(found) == set(scoring.heads)
    for name, scores in found.items():
        wanted = heads[name].score_episodes(bank[support].float(), bank[query].float())
        torch.testing.assert_close(scores, wanted, rtol=1e-5, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


@needs_compiler
def test_support_that_is_linearly_dependent_is_no_exception():
    bank, support, query = episodes(3, width=8)
    bank[support[4, 1, 2]] = bank[support[4, 1, 0]]
    for name, scores in (
        GatherFreeScoring(IndexedFeatures(bank), heads := every_head(bank)).score(support, query).items()
    ):
        torch.testing.assert_close(scores, heads[name].score_episodes(bank[support], bank[query]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_gathered_scores_are_those_of_the_features(dtype, monkeypatch):
    monkeypatch.setattr(
        "fewshot_nam.heads.gather_free_scoring._CHUNK_BYTES", 3 * 20 * 37 * 4
    )  # a few episodes at a time
    bank, support, query = episodes(2)
    heads = every_head(bank := bank.to(dtype))
    wide = torch.promote_types(dtype, torch.float32)
    found = score_gathered(heads, IndexedFeatures(bank), support, query)
    others, prototypes = (features(8, 30, 37).to(dtype), features(9, 4, 37))
    more, some = picks(7, 30, E, 5), {"cosine": heads["cosine"]}
    beside = score_gathered(
        some, IndexedFeatures(bank), support, query, (IndexedFeatures(others), more), {"cosine": prototypes}
    )
    for name, scores in found.items():
        wanted = heads[name].score_episodes(bank[support].to(wide), bank[query].to(wide))
        torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    queries = torch.cat([bank[query], others[more]], dim=1).to(wide)
    wanted = heads["cosine"].score_episodes(bank[support].to(wide), queries, prototypes)
    torch.testing.assert_close(beside["cosine"], wanted, rtol=1e-4, atol=1e-5)


def test_classes_opt_in_themselves():
    class Louder(CosineHead):
        def _score(self, learned, query):
            return 2 * super()._score(learned, query)

    class Upside(NAMHead):
        def score_episodes(self, *args, **options):
            return -super().score_episodes(*args, **options)

    class Plain(ProtoNetHead):
        """Nothing is changed, and nothing is declared."""

    class Again(ProtoNetHead, gather_free=True):
        """Nothing is changed, and it is declared."""

    bank, support, query = episodes(1)
    heads = {"a": Louder(), "b": Upside(), "c": Plain(), "d": create("ridge"), "e": Again()}
    scoring = GatherFreeScoring(IndexedFeatures(bank), heads)
    assert set(scoring.heads) == ({"e"} if IndexedFeatures(bank).compiled else set())
    assert [head.gather_free for head in heads.values()] == [False, False, False, False, True]
    assert not Head.gather_free
    left = GatherFreeScoring(IndexedFeatures(bank), {"a": heads["a"]})
    assert left.score(support, query) == {}


@needs_compiler
def test_one_episode_of_many_classes_is_scored(monkeypatch):
    """A head of many classes keeps what further classes are added to; an episode that was alone in its chunk came to that too."""
    monkeypatch.setattr(nam, "_MANY", 5)
    bank, support, query = episodes(2)
    base = BaseStatistics.from_features(features(7, 60, 37), torch.arange(60) % 12)
    for head in (NAMHead(), NAMHead(base=base)):
        found = GatherFreeScoring(IndexedFeatures(bank), {"nam": head}).score(support[:1], query[:1])["nam"]
        wanted = head.score_episodes(bank[support[:2]], bank[query[:2]])[:1]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)


@needs_compiler
def test_a_head_that_embeds_beforehand_is_left_out_where_that_does_not_repay():
    bank = IndexedFeatures(features(0, 90, 37))
    heads = {"over": NAMHead(base=BaseStatistics.from_prototypes(features(5, 12, 37))), "bare": NAMHead()}
    assert set(GatherFreeScoring(bank, heads).heads) == {"over", "bare"}
    assert set(GatherFreeScoring(bank, heads, queries=90).heads) == {"over", "bare"}
    assert set(GatherFreeScoring(bank, heads, queries=89).heads) == {"bare"}


@pytest.mark.parametrize("queries", [None, 89])
def test_a_bank_is_embedded_once_where_that_repays(queries, monkeypatch):
    bank, support, query = episodes(2)
    head, calls = NAMHead(base=BaseStatistics.from_prototypes(features(5, 12, 37))), []
    embed = NAMHead._embed
    monkeypatch.setattr(NAMHead, "_embed", lambda self, x: calls.append(x.numel() // 37) or embed(self, x))
    banks = embedded_banks(IndexedFeatures(bank), {"nam": head}, queries)
    assert sum(calls) == (90 if queries is None else 0)
    calls.clear()
    own = {name: (each, None) for name, each in banks.items()}
    found = score_gathered({"nam": head}, IndexedFeatures(bank), support, query, embedded=own)["nam"]
    assert bool(calls) == (queries is not None)
    torch.testing.assert_close(found, head.score_episodes(bank[support], bank[query]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reason", ["switch", "dtype", "strides"])
def test_features_that_cannot_be_read_in_place_are_gathered(reason, monkeypatch):
    bank = features(0, 90, 37)
    if reason == "switch":
        monkeypatch.setenv("FEWSHOT_NAM_COMPILE", "0")
    bank = bank.double() if reason == "dtype" else bank.mT.contiguous().mT if reason == "strides" else bank
    assert not IndexedFeatures(bank).compiled
    assert GatherFreeScoring(IndexedFeatures(bank), {"cosine": CosineHead()}).heads == {}

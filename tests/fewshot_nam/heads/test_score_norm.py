"""Score normalisation without a memory: cosine-snorm and lda-snorm against their formulas, and plda-snorm against plda."""

import dataclasses
import json
import math

import pytest
import torch
from torch import Tensor

from fewshot_nam.heads import BaseStatistics, NAMHead, PLDAHead, PLDASNormHead, ScoreNormHead, ScoreNormSettings, create
from fewshot_nam.heads.power_norm import power_normalise
from fewshot_nam.memory import unit

D = 9


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BASE = BaseStatistics.from_features(
    rows(60, 1) + rows(12, 9).repeat_interleave(5, 0), torch.arange(12).repeat_interleave(5)
)


def soft(cosines: Tensor, temperature: float) -> Tensor:
    return temperature * ((cosines / temperature).exp().mean(-1)).log()


def test_cosine_snorm_is_its_formula():
    head, support, query = create("cosine-snorm", BASE), rows(3, 2), rows(4, 3)
    s = head.settings
    roots = power_normalise(BASE.power_means.double())
    place = lambda x: unit(power_normalise(x) - s.centre_share * roots.mean(0))  # noqa: E731
    cohort, keys, queries = place(BASE.power_means.double()), place(support), place(query)
    likeness = head._space(query).likeness
    wanted = (
        queries @ keys.T - likeness - s.query_cohort_weight * soft(queries @ cohort.T, s.cohort_temperature)[:, None]
    )
    wanted = wanted - s.class_cohort_weight * soft(keys @ cohort.T, s.cohort_temperature)
    wanted = wanted - s.log_partition_penalty * s.temperature * torch.logsumexp(
        wanted / s.temperature, -1, keepdim=True
    )
    torch.testing.assert_close(head.write(support, list("abc"))(query), wanted)


def test_lda_snorm_is_the_same_in_the_whitened_space():
    plain = create("lda-snorm", BASE)
    assert plain.settings == ScoreNormSettings()
    unwhitened = ScoreNormHead(BASE, settings=dataclasses.replace(plain.settings, identity_share=1.0))
    support, query = rows(3, 2), rows(4, 3)
    assert not torch.allclose(plain.write(support, list("abc"))(query), unwhitened.write(support, list("abc"))(query))


def test_a_query_near_a_base_class_scores_lower():
    support, near = rows(3, 2), BASE.power_means[4].double()
    with_cohort, without = (
        ScoreNormHead(BASE, settings={"query_cohort_weight": weight, "log_partition_penalty": 0.0})
        for weight in (0.6, 0.0)
    )
    drops = [
        float((without.write(support, list("abc"))(x) - with_cohort.write(support, list("abc"))(x)).max())
        for x in (near, support[0])
    ]
    assert drops[0] > drops[1]


def test_plda_snorm_subtracts_what_plda_gives_to_the_nearest_base_classes():
    support, query, shots = rows(6, 2), rows(4, 3), 2
    settings = {"within": 0.7, "shrinkage": 0.2}
    plda = PLDAHead(BASE, **settings)
    snorm = PLDASNormHead(
        BASE, **settings, cohort_size=3, query_cohort_weight=0.4, class_cohort_weight=0.3, log_partition_penalty=0.0
    )
    labels = ["a", "a", "b", "b", "c", "c"]
    found, ratios = snorm.write(support, labels)(query), plda.write(support, labels)(query)
    # The cohort: base classes with as many shots as the classes, all of them at the mean.
    as_classes = PLDAHead(BASE, **settings)
    coordinates = as_classes._coordinates(BASE.power_means)
    cohort = as_classes.model.ratios(coordinates.unsqueeze(0).double(), torch.full((12,), shots))
    nearest = lambda x: as_classes._evaluated(cohort, x).topk(3, -1).values.mean(-1)  # noqa: E731
    of_query = nearest(as_classes._coordinates(query).unsqueeze(0))[0]
    of_class = nearest(as_classes._coordinates(support).view(3, 2, D).mean(1).unsqueeze(0))[0]
    torch.testing.assert_close(found, ratios - 0.4 * of_query[:, None] - 0.3 * of_class, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cohort_size": 0}, "cohort_size must be at least 1, got 0"),
        ({"query_cohort_weight": -0.1}, "query_cohort_weight must be at least 0"),
        ({"class_cohort_weight": math.inf}, "class_cohort_weight must be at least 0"),
        ({"log_partition_penalty": 1.1}, "log_partition_penalty must be from 0 to 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"within": 0.0}, "within must be above 0"),
    ],
)
def test_settings_of_plda_snorm_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PLDASNormHead(BASE, **settings)


@pytest.mark.parametrize(
    ("kind", "changed"),
    [(ScoreNormHead, {"query_cohort_weight": 0.1}), (NAMHead, {"ridge": 2.0, "temperature": 0.1})],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_state_holds_the_constants_that_its_answers_follow_from(kind, changed):
    saved, query = kind(BASE, settings=changed).write(rows(6, 2), list("aabbcc")), rows(4, 3)
    head = kind(BASE)
    head.load_state_dict(saved.state_dict())
    assert head.settings == saved.settings
    assert torch.equal(head(query), saved(query))

    state = {**saved.state_dict(), "_extra_state": super(ScoreNormHead, saved).get_extra_state()}  # an earlier file
    head = kind(BASE, settings=changed)
    head.load_state_dict(state)
    assert head.settings == saved.settings


@pytest.mark.parametrize("wrong", [{"ridge": -1}, {"unheard_of": 1.0}, [1], "x", {"temperature": None}], ids=str)
def test_a_state_with_other_constants_is_damaged(wrong):
    head = NAMHead(BASE).write(rows(6, 2), list("aabbcc"))
    state, query = head.state_dict(), rows(4, 3)
    before, learned = head(query), json.loads(bytes(state["_extra_state"].tolist()))
    state["_extra_state"] = torch.tensor(list(json.dumps({**learned, "settings": wrong}).encode()), dtype=torch.uint8)
    with pytest.raises(ValueError, match="damaged"):
        head.load_state_dict(state)
    assert torch.equal(head(query), before)

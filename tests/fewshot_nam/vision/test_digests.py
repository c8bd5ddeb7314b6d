"""Digests change with every value, dtype and shape, and with nothing else."""

import pytest
import torch

from fewshot_nam.vision.digests import features_digest, tensors_digest, text_digest, weights_digest


def test_weights_digest_depends_on_every_weight_and_not_on_what_is_learned(attached, painted):
    nam = attached(in_place=True)
    before = weights_digest(nam.backbone)
    nam.learn(painted(0), "a")
    assert weights_digest(nam.backbone) == before
    nam.backbone.network.model.norm.num_batches_tracked += 1
    assert weights_digest(nam.backbone) == before
    nam.backbone.network.model.norm.running_mean[3] += 1e-6
    assert weights_digest(nam.backbone) != before


@pytest.mark.parametrize("other", [torch.ones(4), torch.ones(2, 2).double(), torch.tensor([[1.0, 1.0], [1.0, 2.0]])])
def test_tensors_digest_depends_on_shape_dtype_and_values(other):
    assert tensors_digest([torch.ones(2, 2)]) == tensors_digest([torch.ones(2, 2)])
    assert tensors_digest([other]) != tensors_digest([torch.ones(2, 2)])


def test_features_digest_depends_on_name_options_keys_and_values():
    state = {"a": torch.ones(2), "b": torch.zeros(2)}
    same = features_digest("net", {"pad": "same"}, dict(reversed(state.items())))
    assert features_digest("net", {"pad": "same"}, state) == same
    others = [
        ("nets", {"pad": "same"}, state),
        ("net", {}, state),
        ("net", {"pad": "same"}, {"a": state["b"], "b": state["a"]}),
    ]
    assert len({same, *(features_digest(*other) for other in others)}) == 4


def test_text_digest_is_sha256():
    assert text_digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

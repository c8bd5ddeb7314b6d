"""The benchmark of extraction times nothing where extraction does not give the features of the forward pass."""

import pytest


def test_features_that_differ_are_not_timed(benchmark_script, tmp_path):
    script = benchmark_script("extraction")
    problem = script.SHORT[0]
    backbone = script.backbones.create("conv4", pretrained=False)
    dataset = script.made(problem.source, 4, tmp_path)
    batches = [script.ImageBatches(dataset, backbone.transform, 4, False)[0].images]
    assert "gives the bits of the forward pass" in script.check_features(backbone, dataset, batches, 4)
    with pytest.raises(SystemExit, match="not the same work: features of 'extract'"):
        script.check_features(backbone, dataset, [batches[0] * 1.001], 4)

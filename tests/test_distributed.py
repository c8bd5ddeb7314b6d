"""Two processes of torchrun extract the bits of one, and pretrain to its weights up to the order of sums.

Run by torchrun, this file is what the processes do; run by pytest, it starts them, does the same alone, and compares.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from backbones.conv4 import Conv4
from backbones.pretraining.distributed import SharedBatchNorm2d
from backbones.pretraining.omniglot_augment import InkExamples, InkRecipe
from backbones.pretraining.training import Pretraining, train
from episodes.data.image_dataset import ArrayImages
from episodes.features.bank import FeatureBank
from episodes.features.extraction import extract
from fewshot_nam.distributed import joined
from fewshot_nam.io.image_io import UnreadableImage

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"even": (20, 5), "ragged": (23, 5), "fewer batches than processes": (4, 5), "one each": (3, 1)}
RECIPE = InkRecipe(epochs=2, batch_size=15, learning_rate=1e-3, seed=3)  # shares of 8 and 7


class Small(nn.Module):
    """A backbone that can be interrupted."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.name, self.transform_id, self.weights_hash, self.feature_dim = "small", "t1", "w1", 5
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5))
        self.batches, self.fail_at = [], fail_at

    def transform(self, image):
        return torch.from_numpy(np.array(image, dtype=np.float32))[None] / 255

    def forward(self, images):
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append(len(images))
        return self.layers(images)


class Holed(ArrayImages):
    """Images of which some cannot be read."""

    def image(self, index):
        if index in (2, 6, 7, 8, 9, 10):  # 5 to 9 are a batch
            raise UnreadableImage(f"image {index}")
        return super().image(index)


def images(n, kind=ArrayImages):
    pixels = np.random.default_rng(n).integers(0, 256, (n, 8, 8), dtype=np.uint8)
    return kind("noise", pixels, np.arange(n) % 3, ["a", "b", "c"])


def extractions(out):
    """Return banks by name; what is in ``out`` from before is gone on with."""
    banks, passed = {}, {}
    for name, (n, size) in SETTINGS.items():
        banks[name] = extract(Small(), images(n), batch_size=size, cache_dir=None)
    banks["workers"] = extract(Small(), images(23), batch_size=5, workers=1, cache_dir=None)
    for name in ("cached", "cached again"):
        backbone = Small()
        banks[name] = extract(backbone, images(21), batch_size=4, cache_dir=out / "cache")
        passed[name] = backbone.batches
    backbone = Small()
    banks["resumed"] = extract(backbone, images(23), batch_size=5, cache_dir=out / "cache")
    passed["resumed"] = backbone.batches
    holed = images(24, Holed)
    for name in ("holed", "holed again"):
        banks[name] = extract(Small(), holed, batch_size=5, skip_unreadable=True, cache_dir=out / "cache")
    return banks, passed


def pretraining(out):
    """Return the weights after two epochs, and what every step of them had for a loss; the second epoch is resumed."""
    ink = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (24, 56, 56), dtype=np.uint8))
    losses = []
    for seed in (0, 1):
        # Another start in the second process, which is to take the first one's.
        torch.manual_seed(seed + 10 * int(os.environ.get("RANK", 0)))
        run = Pretraining(Conv4(8), InkExamples(ink, torch.arange(24) % 3, RECIPE), RECIPE, out / "checkpoint.pt")
        losses.append(run.run_epoch(on_step=lambda loss: losses.append({"step": loss})))
    train(run, lambda: "never", check_every=1)  # nothing is left to do
    state = {**run.model.state_dict(), "classifier": run.classifier.weight.detach()}
    return {name: tensor.contiguous() for name, tensor in state.items()}, losses


def work(out):
    """Do all of it in this process, and leave what came of it in files."""
    rank = os.environ.get("RANK", "alone")
    banks, passed = extractions(out)
    for name, bank in banks.items():
        bank.save(out / f"{name}-{rank}.safetensors")
    weights, losses = pretraining(out)
    save_file(weights, out / f"weights-{rank}.safetensors")
    (out / f"saw-{rank}.json").write_text(json.dumps([passed, losses, [bank.skipped for bank in banks.values()]]))


def own_threads():
    """Return the names of this process's threads, or none where the system does not list them."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def prepared(out):
    """Leave the first batches of an interrupted extraction in ``out``."""
    with pytest.raises(KeyboardInterrupt):
        extract(Small(fail_at=2), images(23), batch_size=5, cache_dir=out / "cache")
    return out


def without_rounding():
    """Return autocast that leaves float32 alone: bfloat16 would turn the order of sums into differences of a percent."""
    real = torch.autocast
    return lambda device, dtype=None, enabled=False: real(device, torch.bfloat16, enabled=False)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return the directories in which one process, and two, left what they found."""
    alone, both = (prepared(tmp_path_factory.mktemp(name)) for name in ("alone", "both"))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        __file__,
        str(both),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", without_rounding())
        with pytest.warns(UserWarning, match="left out 6 unreadable"):
            work(alone)
    return alone, both


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_extract_the_bits_of_one_and_both_have_them(found, rank):
    alone, both = found
    names = [path.name.removesuffix("-alone.safetensors") for path in alone.glob("*-alone.safetensors")]
    assert len(names) == len(SETTINGS) + 7
    for name in sorted(set(names) - {"weights"}):
        one, two = (
            FeatureBank.load(path)
            for path in (alone / f"{name}-alone.safetensors", both / f"{name}-{rank}.safetensors")
        )
        assert torch.equal(one.features, two.features), name
        assert torch.equal(one.labels, two.labels), name
        assert (one.classes, one.provenance) == (two.classes, two.provenance), name


def test_every_batch_goes_through_one_process_and_nothing_is_done_again(found):
    _, both = found
    first, second = (json.loads((both / f"saw-{rank}.json").read_text())[0] for rank in (0, 1))
    assert (first["cached"], second["cached"]) == ([4, 4, 4], [4, 4, 1])
    assert (first["cached again"], second["cached again"]) == ([], [])
    assert (first["resumed"], second["resumed"]) == ([5, 3], [5])  # two of five batches were there


@pytest.mark.parametrize("rank", [0, 1])
def test_the_group_has_ended_before_the_process_does(found, rank):
    """Threads of a group that something keeps would meet the end of the interpreter, and abort it now and then."""
    threads = json.loads((found[1] / f"threads-{rank}.json").read_text())
    assert not [name for name in threads if "gloo" in name]


def test_two_processes_pretrain_to_the_weights_of_one(found):
    alone, both = found
    one = load_file(alone / "weights-alone.safetensors")
    first, second = (load_file(both / f"weights-{rank}.safetensors") for rank in (0, 1))
    torch.manual_seed(0)
    start = Conv4(8).state_dict()
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(
            first[name], value, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
        if name in start and value.dtype.is_floating_point:
            assert (value - start[name]).abs().max() > 2e-3, f"{name} has not been trained"
    (_, of_one, _), (_, of_both, _) = (
        json.loads(path.read_text()) for path in (alone / "saw-alone.json", both / "saw-1.json")
    )
    assert len(of_one) == 2 * (1 + 4 * 24 // 15)
    for ours, theirs in zip(of_one, of_both, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_normalising_alone_is_torchs_own(monkeypatch):
    monkeypatch.setattr("backbones.pretraining.distributed.dist.all_reduce", lambda tensor: None)
    torch.manual_seed(0)
    own, torchs = SharedBatchNorm2d(3), nn.BatchNorm2d(3)
    with torch.no_grad():
        for norm in (own, torchs):
            norm.weight.copy_(torch.tensor([1.0, 2.0, -0.5]))
            norm.bias.copy_(torch.tensor([0.0, 1.0, 3.0]))
    inputs = [(torch.randn(5, 3, 4, 7) * 3 + 100).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    weight = torch.randn(5, 3, 4, 7)
    for norm, x in zip((own, torchs), inputs, strict=True):
        (norm(x) * weight).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own.weight.grad, torchs.weight.grad, rtol=1e-4, atol=1e-4)
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value)
    torch.testing.assert_close(own.eval()(inputs[0]), torchs.eval()(inputs[0]))
    assert own.train()(inputs[0].bfloat16()).dtype == torch.bfloat16


def test_without_torchrun_nothing_is_joined():
    with joined("cuda") as process:
        assert process == 0
        assert not torch.distributed.is_initialized()


if __name__ == "__main__":
    torch.autocast = without_rounding()
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    with joined():
        work(out)
    (out / f"threads-{os.environ['RANK']}.json").write_text(json.dumps(own_threads()))

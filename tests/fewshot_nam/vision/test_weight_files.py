import pickle

import pytest
import torch
from safetensors.torch import save_file

from backbones.conv4 import Conv4
from fewshot_nam.vision.weight_files import fit_weights, read_weights


@pytest.fixture
def state():
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def _same(read, state):
    return list(read) == list(state) and all(torch.equal(read[key], state[key]) for key in state)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_reading_gives_what_was_saved(tmp_path, state, suffix):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    assert _same(dict(sorted(read_weights(path).items())), dict(sorted(state.items())))


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_reading_opens_a_checkpoint(tmp_path, state, wrapper):
    torch.save({"epoch": 3, wrapper: state, "optimizer": {"lr": 0.1}}, tmp_path / "run.pth")
    assert _same(read_weights(tmp_path / "run.pth"), state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_reading_takes_off_a_common_prefix(tmp_path, state, prefix):
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "run.pth")
    assert _same(read_weights(tmp_path / "run.pth"), state)


def test_reading_keeps_a_prefix_that_is_not_common(tmp_path, state):
    state["module.b"] = torch.ones(1)
    torch.save(state, tmp_path / "run.pth")
    assert _same(read_weights(tmp_path / "run.pth"), state)


def test_reading_keeps_a_model_that_is_named_like_a_wrapper(tmp_path):
    state = {"model": torch.ones(2)}
    torch.save(state, tmp_path / "run.pth")
    assert _same(read_weights(tmp_path / "run.pth"), state)


def _refuses(path, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reading_refuses_what_is_not_there(tmp_path):
    _refuses(tmp_path / "none.pth", "there is no such file")
    _refuses(tmp_path, "is a folder")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_reading_refuses_a_damaged_file(tmp_path, state, suffix):
    path = tmp_path / f"weights{suffix}"
    path.touch()
    _refuses(path, "it is empty")
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    whole = path.read_bytes()
    for length in (1, 7, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        _refuses(path, "cut short")
    path.write_text("<html>not found</html>")
    _refuses(path, "cut short")


class _Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle ran code')",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_reading_runs_no_code(tmp_path, state, save):
    save({**state, "trap": _Trap()}, tmp_path / "run.pth")
    _refuses(tmp_path / "run.pth", "more than tensors, which is not unpickled")


def test_reading_refuses_a_whole_model(tmp_path):
    torch.save(Conv4(), tmp_path / "run.pth")
    _refuses(tmp_path / "run.pth", "save the model's state_dict as .safetensors")


@pytest.mark.parametrize("held", [[1, 2], {}, torch.ones(2)])
def test_reading_refuses_what_is_no_state_dict(tmp_path, held):
    torch.save(held, tmp_path / "run.pth")
    _refuses(tmp_path / "run.pth", "expected a state dict")


def test_reading_refuses_entries_that_are_no_tensors(tmp_path, state):
    torch.save({**state, "epoch": 3}, tmp_path / "run.pth")
    _refuses(tmp_path / "run.pth", "expected a tensor under 'epoch', found int")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_reading_refuses_weights_that_are_not_finite(tmp_path, state, bad):
    state["a.bias"][1] = bad
    save_file(state, tmp_path / "run.safetensors")
    _refuses(tmp_path / "run.safetensors", "a.bias holds NaN or infinite values")


def test_fitting_loads_every_weight(tmp_path, conv4_state):
    network = Conv4()
    fit_weights(network, {**conv4_state, "fc.weight": torch.ones(7, 64)}, tmp_path, "conv4", removed={"fc.weight"})
    assert _same(network.state_dict(), conv4_state)


def test_fitting_forgives_a_missing_batch_counter(tmp_path, conv4_state):
    network = Conv4()
    fit_weights(network, {k: v for k, v in conv4_state.items() if "num_batches" not in k}, tmp_path, "conv4")
    assert torch.equal(network.blocks[3][1].running_var, conv4_state["blocks.3.1.running_var"])


def test_fitting_says_what_does_not_fit(tmp_path, conv4_state):
    state = dict(conv4_state)
    for block in range(4):
        state[f"block.{block}.weight"] = state.pop(f"blocks.{block}.0.weight")
    state["blocks.0.1.bias"] = torch.ones(32)
    with pytest.raises(ValueError, match="does not fit conv4") as caught:
        fit_weights(Conv4(), state, tmp_path / "run.pth", "conv4")
    message = str(caught.value)
    assert f"weights file {tmp_path / 'run.pth'} does not fit conv4: of 24 keys" in message
    assert "4 missing (blocks.0.0.weight, blocks.1.0.weight, blocks.2.0.weight, ...)" in message
    assert "4 unexpected (block.0.weight, block.1.weight, block.2.weight, ...)" in message
    assert "1 of another shape (blocks.0.1.bias: (32,), not (64,))" in message
    assert "\n" not in message

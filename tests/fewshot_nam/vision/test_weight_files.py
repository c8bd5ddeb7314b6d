import pickle
import zipfile

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
def test_reading_refuses_a_name_that_is_not_utf_8(tmp_path, state, suffix):
    (save_file if suffix == ".safetensors" else torch.save)(state, tmp_path / "plain")
    try:
        path = (tmp_path / "plain").rename(tmp_path / f"caf\udce9{suffix}")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with pytest.raises(ValueError, match=r"caf\\udce9.*: a name that is not UTF-8.*: rename it"):
        read_weights(path)


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


def test_reading_refuses_a_dict_that_holds_itself(tmp_path, state):
    own = dict(state)
    own["model"] = {"state_dict": own}
    torch.save(own, tmp_path / "run.pth")
    _refuses(tmp_path / "run.pth", "a dict holds itself")


def test_reading_refuses_a_tensor_of_more_elements_than_the_file_holds(tmp_path, state):
    for old in (False, True):  # the format of torch before 1.6
        torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "run.pth", _use_new_zipfile_serialization=not old)
        _refuses(tmp_path / "run.pth", "a has 1,000,000,000,000 elements, and the file holds fewer")


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_reading_refuses_tensors_without_plain_values(tmp_path, state, kind):
    tensor = torch.eye(3).to_sparse() if kind == "sparse" else torch.ones(3, device="meta")
    torch.save({**state, "b": tensor}, tmp_path / "run.pth")
    _refuses(tmp_path / "run.pth", "b is sparse, quantised or without values")


def test_reading_refuses_compressed_records(tmp_path, state):
    torch.save({**state, "b": torch.zeros(100_000)}, tmp_path / "run.pth")
    with zipfile.ZipFile(tmp_path / "run.pth") as plain, zipfile.ZipFile(tmp_path / "small.pth", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    _refuses(tmp_path / "small.pth", "its records are compressed")


def test_reading_refuses_records_that_claim_one_place_many_times(tmp_path):
    torch.save({str(i): torch.arange(1000.0) + i for i in range(20)}, tmp_path / "run.pth")
    content = (tmp_path / "run.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "run.pth") as plain:
        start, records = plain.start_dir, [one for one in plain.infolist() if "/data/" in one.filename]
    # Behind the records of all tensors but one, each entry of the directory points to that one.
    head, directory = content[: max(one.header_offset for one in records[:2]) + 4200], bytearray(content[start:])
    shortened = len(content[:start]) - len(head)
    where = -1
    while (where := directory.find(b"PK\x01\x02", where + 1)) >= 0:
        offset = int.from_bytes(directory[where + 42 : where + 46], "little")
        offset = offset if offset < len(head) else records[0].header_offset
        directory[where + 42 : where + 46] = offset.to_bytes(4, "little")
    end = directory.rfind(b"PK\x05\x06")
    directory[end + 16 : end + 20] = (start - shortened).to_bytes(4, "little")
    (tmp_path / "forged.pth").write_bytes(head + directory[: directory.find(b"PK\x06\x06")] + directory[end:])
    _refuses(tmp_path / "forged.pth", "claim more bytes than the file has")


def test_reading_refuses_more_views_of_one_tensor_than_could_be_read_in_time(tmp_path):
    whole = torch.zeros(100_000)
    torch.save({str(i): whole[i:] for i in range(12)}, tmp_path / "run.pth")  # layers that share their weights
    assert len(read_weights(tmp_path / "run.pth")) == 12
    torch.save({str(i): whole[i:] for i in range(200)}, tmp_path / "run.pth")
    _refuses(tmp_path / "run.pth", "claim more bytes than the file has")


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

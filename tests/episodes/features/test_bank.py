"""FeatureBank: how items are indexed by class, what is refused, and files that come back whole or not at all."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from episodes.features import bank as bank_module
from episodes.features.bank import FeatureBank
from fewshot_nam.heads import BaseStatistics


def random_features(n, width=5, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_order_lists_the_items_of_each_class_ascending(labels):
    bank = FeatureBank(random_features(len(labels)), labels, classes=[f"c{i}" for i in range(7)])
    for c in range(7):
        start, count = int(bank.starts[c]), int(bank.counts[c])
        assert bank.order[start : start + count].tolist() == [i for i, label in enumerate(labels) if label == c]


@pytest.mark.parametrize(
    "labels",
    [[7, 3, 7, 5], np.array([7, 3, 7, 5], dtype=np.uint8), torch.tensor([7, 3, 7, 5])],
    ids=["list", "array", "tensor"],
)
def test_int_labels_become_positions_in_sorted_classes(labels):
    bank = FeatureBank(random_features(4), labels)
    assert bank.classes == [3, 5, 7]
    assert all(type(name) is int for name in bank.classes)
    assert bank.labels.tolist() == [2, 0, 2, 1]
    assert bank.labels.dtype == torch.long
    assert bank.counts.tolist() == [1, 1, 2]


@pytest.mark.parametrize("labels", [["dog", "cat", "dog"], np.array(["dog", "cat", "dog"])], ids=["list", "array"])
def test_string_labels_become_positions_in_sorted_or_given_classes(labels):
    assert FeatureBank(random_features(3), labels).classes == ["cat", "dog"]
    given_order = FeatureBank(random_features(3), labels, classes=["fox", "dog", "cat"])
    assert given_order.labels.tolist() == [1, 2, 1]
    assert given_order.counts.tolist() == [0, 2, 1]


def test_bank_describes_itself():
    bank = FeatureBank(random_features(6).half(), [0, 1] * 3)
    assert (len(bank), bank.feature_dim, bank.num_classes) == (6, 5, 2)
    assert repr(bank) == "FeatureBank(6 items, 2 classes, 5 features, float16)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_features_are_kept_without_a_copy(dtype):
    features = random_features(4).to(dtype)
    bank = FeatureBank(features, [0, 0, 1, 1])
    assert bank.features.data_ptr() == features.data_ptr()
    assert bank.features.dtype == dtype


def test_features_of_a_read_only_array_are_kept_without_a_copy_or_a_warning():
    array = random_features(4).numpy()
    array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FeatureBank(array, [0, 0, 1, 1]).features.data_ptr() == array.ctypes.data


@pytest.mark.parametrize("array", [np.eye(3)[::-1], np.eye(3).astype(">f4")], ids=["reversed", "big-endian"])
def test_features_of_odd_arrays_keep_their_values(array):
    assert torch.equal(
        FeatureBank(array, [0, 1, 2]).features, torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    )


# --- means and selections


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_means_are_those_of_a_plain_loop_whatever_the_chunk(dtype, monkeypatch):
    features = random_features(23, width=7).to(dtype)
    labels = [(i * 5) % 3 for i in range(23)]
    monkeypatch.setattr(bank_module, "_CHUNK_ELEMENTS", 4 * 7)
    bank = FeatureBank(features, labels)
    plain = torch.stack([features[[i for i in range(23) if labels[i] == c]].double().mean(0) for c in range(3)])
    assert torch.equal(bank.class_means(), plain.float())
    assert bank.class_means().shape == (3, 7)
    assert torch.allclose(bank.mean(), features.double().mean(0).float())
    assert bank.mean().dtype == bank.class_means().dtype == torch.float32


def test_base_statistics_are_those_of_the_features_in_the_order_of_the_classes():
    features, labels = random_features(12).abs(), list("cabcbacabbca")
    bank = FeatureBank(features, labels, classes=["b", "c", "a"])
    found, direct = bank.base_statistics(), BaseStatistics.from_features(features, labels)
    order = [1, 2, 0]  # from_features has the classes sorted
    assert torch.equal(found.prototypes, direct.prototypes[order])
    assert torch.equal(found.power_means, direct.power_means[order])
    assert torch.equal(found.counts, direct.counts[order])
    assert torch.allclose(found.mean, direct.mean)
    assert torch.equal(found.mean, bank.mean()), "the mean over images, not over classes"


def test_the_former_word_for_power_means_warns():
    bank = FeatureBank(random_features(4).abs(), list("abab"))
    with pytest.warns(DeprecationWarning, match="class_means: root= is deprecated .* use power_norm="):
        assert torch.equal(bank.class_means(root=True), bank.class_means(power_norm=True))


def test_class_means_refuse_a_class_without_items():
    with pytest.raises(ValueError, match="class 'fox' has no items"):
        FeatureBank(random_features(2), ["cat", "dog"], classes=["cat", "fox", "dog"]).class_means()


@pytest.mark.parametrize("wanted", [["d", "b"], [3, 1], ["d", 1]], ids=["names", "positions", "both"])
def test_select_classes_renumbers_in_the_order_given_and_keeps_the_order_of_items(wanted):
    labels = list("abdcbdda")
    bank = FeatureBank(random_features(8), labels, provenance={"backbone": "x"})
    part = bank.select_classes(wanted)
    assert part.classes == ["d", "b"]
    assert part.labels.tolist() == [1, 0, 1, 0, 0]
    assert torch.equal(part.features, bank.features[[1, 2, 4, 5, 6]])
    assert part.provenance == {"backbone": "x"}


def test_select_classes_takes_ints_as_names_where_names_are_ints():
    bank = FeatureBank(random_features(3), [10, 1, 0])
    assert torch.equal(bank.select_classes([10]).features, bank.features[:1])


def test_select_classes_of_neighbouring_items_copies_nothing():
    bank = FeatureBank(random_features(6), list("aabbcc"))
    assert bank.select_classes(["c", "b"]).features.data_ptr() == bank.features[2:].data_ptr()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["horze"], "no class 'horze' among its 3; did you mean 'horse'"),
        ([3], r"class number 3 is outside 0\.\.2"),
        ([-1], r"class number -1 is outside 0\.\.2"),
        (["cow", 0], "class 'cow' is given twice"),
        ([], "no classes are given"),
        ("cow", r"expected a list of classes, got the string 'cow'"),
        (["ewe"], "none of these classes has items: ewe"),
    ],
    ids=["unknown", "beyond", "negative", "twice", "none", "string", "empty"],
)
def test_select_classes_refuses(wanted, message):
    bank = FeatureBank(random_features(3), ["cow", "horse", "cow"], classes=["cow", "horse", "ewe"])
    with pytest.raises(ValueError, match=message):
        bank.select_classes(wanted)


def test_fingerprint_follows_labels_and_classes_and_not_features():
    bank = FeatureBank(random_features(4), list("abab"))
    assert bank.fingerprint == FeatureBank(random_features(4, width=9, seed=1).half(), list("abab")).fingerprint
    assert bank.fingerprint != FeatureBank(random_features(4), list("abba")).fingerprint
    assert bank.fingerprint != FeatureBank(random_features(4), list("acac")).fingerprint
    assert (
        FeatureBank(random_features(4), [0, 1, 0, 1]).fingerprint
        != FeatureBank(random_features(4), list("0101")).fingerprint
    )


# --- what is refused


@pytest.mark.parametrize("row", [0, 3, 10])
@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (float("nan"), "holds NaN"),
        (float("inf"), "infinity"),
        (-float("inf"), "infinity"),
        (0.0, "all zeros"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bad_rows_are_named_with_their_class(row, value, fault, dtype, monkeypatch):
    monkeypatch.setattr(
        bank_module, "_CHUNK_ELEMENTS", 4 * 5
    )  # chunks of 4 rows: the row counts from the start of the bank
    features = random_features(11).to(dtype)
    features[row, slice(None) if value == 0 else 2] = value
    labels = [f"class{i % 3}" for i in range(11)]
    with pytest.raises(ValueError, match=rf"features row {row} \(class 'class{row % 3}'\) .*{fault}"):
        FeatureBank(features, labels)
    assert len(FeatureBank(features, labels, check=False)) == 11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_whose_squares_overflow_are_refused(dtype):
    features = random_features(4).to(dtype)
    with pytest.raises(ValueError, match=r"features row 2 \(class 'b'\) is too large to be multiplied"):
        FeatureBank(features * torch.tensor([1.0, 1.0, -1e19, 1.0]).to(dtype)[:, None], ["a", "a", "b", "b"])
    assert len(FeatureBank(features.double() * 1e19, ["a", "a", "b", "b"])) == 4


def test_rows_with_some_zeros_are_fine():
    assert len(FeatureBank(torch.eye(4) * -1, [0, 1, 2, 3])) == 4


@pytest.mark.parametrize(
    ("features", "labels", "classes", "message"),
    [
        (torch.ones(3), [0, 1, 2], None, r"must be \(items, width\) with at least one of each, got \(3,\)"),
        (torch.ones(0, 4), [], None, r"got \(0, 4\)"),
        (torch.ones(2, 0), [0, 1], None, r"got \(2, 0\)"),
        (torch.ones(2, 3).long(), [0, 1], None, r"must be floating point, got torch.int64; convert"),
        (np.ones((2, 3), dtype=np.uint8), [0, 1], None, r"must be floating point, got uint8; convert"),
        ([[1.0]], [0], None, "must be a tensor or an array, got list"),
        (torch.ones(3, 2), [0, 1], None, "equal lengths, got 3 and 2"),
        (torch.ones(2, 2), [0, 2], ["a", "b"], r"label 2 of row 1 is outside 0\.\.1"),
        (torch.ones(2, 2), [-1, 0], ["a", "b"], r"label -1 of row 0 is outside 0\.\.1"),
        (
            torch.ones(2, 2),
            ["cat", "dig"],
            ["cat", "dog"],
            "label 'dig' of row 1 is none of the 2 classes; did you mean 'dog'",
        ),
        (torch.ones(2, 2), [0, 1], ["a", "b", "a"], "class 'a' is listed twice"),
        (torch.ones(2, 2), [0, 1], ["a", 1], "all strings or all ints, got int 1"),
        (torch.ones(2, 2), [0, 1], [], "list of classes is empty"),
        (torch.ones(2, 2), [0, "a"], None, "all ints or all strings, got a mixture"),
        (torch.ones(2, 2), [0.0, 1.0], None, r"must be \(items,\) ints or strings, got \(2,\) of float64"),
        (torch.ones(2, 2), [[0, 1]], None, r"must be \(items,\) ints or strings, got \(1, 2\)"),
        (torch.ones(2, 2), [True, False], None, "ints or strings, got .* of bool"),
    ],
)
def test_bad_banks_are_refused_in_one_line(features, labels, classes, message):
    with pytest.raises(ValueError, match=message) as caught:
        FeatureBank(features, labels, classes)
    assert "\n" not in str(caught.value)


# --- files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [["b", "é", "a"], [5, 7, 9]], ids=["strings", "ints"])
def test_saved_bank_comes_back_the_same(tmp_path, dtype, classes):
    provenance = {"backbone": "x", "skipped": json.dumps(["a.png"])}
    bank = FeatureBank(random_features(6).to(dtype), [0, 1, 0, 1, 0, 0], classes, provenance=provenance)
    bank.save(tmp_path / "bank.safetensors")
    back = FeatureBank.load(tmp_path / "bank.safetensors")
    assert torch.equal(back.features, bank.features)
    assert back.features.dtype == dtype
    assert torch.equal(back.labels, bank.labels)
    assert back.classes == classes
    assert back.provenance == provenance
    assert back.skipped == ["a.png"]
    assert back.fingerprint == bank.fingerprint
    assert os.listdir(tmp_path) == ["bank.safetensors"]


def test_saving_a_bank_over_the_file_it_is_mapped_from_is_safe(tmp_path):
    path = tmp_path / "bank"
    FeatureBank(random_features(6), [0, 1, 0, 1, 0, 0], ["a", "b"]).save(path)
    bank = FeatureBank.load(path)
    bank.select_classes(["b"]).save(path)
    assert torch.equal(bank.features, random_features(6))
    assert torch.equal(FeatureBank.load(path).features, random_features(6)[[1, 3]])


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "bank"
    FeatureBank(random_features(2), [0, 1]).save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        FeatureBank(random_features(3), [0, 1, 2]).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["bank"]


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path):
    FeatureBank(random_features(2), [0, 1]).save(tmp_path / "bank")
    (tmp_path / "plain").touch()
    assert (tmp_path / "bank").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="counts private memory by /proc")
def test_loading_maps_the_file_and_copies_nothing(tmp_path):
    megabytes = 32
    FeatureBank(torch.ones(megabytes * 256, 1024), [0] * (megabytes * 256), ["a"]).save(tmp_path / "bank")
    # A fresh process, because memory that this one has freed could be used again without being counted.
    script = """
import sys
from episodes.features import bank
from episodes.features.bank import FeatureBank
bank._CHUNK_ELEMENTS = 1 << 18
def private():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) // 1024
FeatureBank.load(sys.argv[2])  # loads what is imported on first use
before = private()
bank = FeatureBank.load(sys.argv[1])
assert bank.mean().sum() == 1024
print(private() - before)
"""
    FeatureBank(random_features(2), [0, 1]).save(tmp_path / "small")
    command = [sys.executable, "-c", script, str(tmp_path / "bank"), str(tmp_path / "small")]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.dirname(bank_module.__file__)))}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) < megabytes // 2  # checked and averaged by chunks of 1 MiB; a copy would be 32 MiB


def test_npz_is_read_with_and_without_classes(tmp_path):
    features = random_features(3).numpy()
    np.savez(tmp_path / "a.npz", features=features, labels=np.array(["x", "y", "x"]))
    np.savez_compressed(tmp_path / "b", features=features, labels=[0, 1, 0], classes=["y", "x"])
    assert FeatureBank.load(tmp_path / "a.npz").classes == ["x", "y"]
    bank = FeatureBank.load(tmp_path / "b.npz")
    assert bank.classes == ["y", "x"]
    assert np.array_equal(bank.features.numpy(), features)


def test_an_npz_that_unpacks_to_far_more_than_its_size_is_refused_before(tmp_path, monkeypatch):
    """4 MB unpacked to 4.7 GB before the shapes were compared."""
    given = {
        "zeros": {"features": np.zeros((70_000, 64), np.float32), "labels": np.arange(70_000) % 2},
        "too few labels": {"features": np.random.default_rng(0).random((9, 5)), "labels": np.zeros(3, int)},
        "one axis": {"features": np.ones(6), "labels": np.zeros(6, int)},
        "too many classes": {
            "features": np.ones((3, 2)),
            "labels": np.zeros(3, int),
            "classes": np.random.default_rng(0).integers(0, 9, 70_000).astype(str),
        },
    }
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *_: pytest.fail("unpacked"))
    for arrays in given.values():
        np.savez_compressed(tmp_path / "bank.npz", **arrays)
        with pytest.raises(ValueError, match=r"bank\.npz: not a whole feature bank"):
            FeatureBank.load(tmp_path / "bank.npz")


def test_a_packed_npz_of_a_rectified_network_is_read(tmp_path):
    features = np.random.default_rng(0).standard_normal((40_000, 32)).astype(np.float32).clip(2.5)
    np.savez_compressed(tmp_path / "bank.npz", features=features, labels=np.arange(40_000) % 7)
    assert torch.equal(FeatureBank.load(tmp_path / "bank.npz").features, torch.from_numpy(features))


def test_npz_is_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "unpickled"),))

    np.savez(tmp_path / "a.npz", features=np.ones((1, 2)), labels=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match=r"a\.npz: not a whole feature bank .*allow_pickle"):
        FeatureBank.load(tmp_path / "a.npz")
    assert not (tmp_path / "unpickled").exists()


def foreign_file(path, kind):
    FeatureBank(random_features(50), [0, 1] * 25).save(path)
    whole = path.read_bytes()
    if kind == "cut in the features":
        path.write_bytes(whole[:-100])
    elif kind == "cut in the header":
        path.write_bytes(whole[:20])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("a, b, c\n" * 100)
    elif kind == "other safetensors":
        save_file({"weight": torch.ones(2)}, path)
    elif kind == "metadata of another shape":
        save_file({"features": torch.ones(2, 2)}, path, metadata={"fewshot_bank": "[1]"})
    elif kind == "no provenance":
        content = json.dumps({"format": 1, "classes": [0]})
        save_file({"features": torch.ones(2, 2), "labels": torch.zeros(2)}, path, metadata={"fewshot_bank": content})
    elif kind == "no labels":
        content = json.dumps({"format": 1, "classes": [0], "provenance": {}})
        save_file({"features": torch.ones(2, 2)}, path, metadata={"fewshot_bank": content})
    elif kind == "npz without labels":
        with open(path, "wb") as file:
            np.savez(file, features=np.ones((2, 2)))
    elif kind == "npz cut":
        with open(path, "wb") as file:
            np.savez(file, features=np.ones((200, 2)), labels=np.zeros(200, dtype=int))
        path.write_bytes(path.read_bytes()[:-500])


KINDS = ["cut in the features", "cut in the header", "empty", "text", "other safetensors"]
KINDS += ["metadata of another shape", "no provenance", "no labels", "npz without labels", "npz cut"]


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_and_cut_files_are_named_with_what_was_expected(tmp_path, kind):
    path = tmp_path / "odd.bin"
    foreign_file(path, kind)
    with pytest.raises(
        ValueError, match=r"odd\.bin: not a whole feature bank \(.+\); expected a file of FeatureBank\.save"
    ) as caught:
        FeatureBank.load(path)
    assert "\n" not in str(caught.value)


def test_the_reason_of_a_damaged_file_is_short_whatever_its_reader_says(tmp_path, monkeypatch):
    """The fuzzer found an archive whose reader repeats 2,000 bytes of the file."""

    def read(*_, **__):
        raise ValueError("bytes " * 1000)

    monkeypatch.setattr(np, "load", read)
    path = tmp_path / "bank.npz"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="not a whole feature bank") as error:
        FeatureBank.load(path)
    assert len(str(error.value)) < 1000


def test_a_missing_file_and_a_later_format_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        FeatureBank.load(tmp_path / "nowhere")
    content = json.dumps({"format": 2, "classes": [0], "provenance": {}})
    save_file(
        {"features": torch.ones(1, 2), "labels": torch.zeros(1).long()},
        tmp_path / "b",
        metadata={"fewshot_bank": content},
    )
    with pytest.raises(ValueError, match=r"b: bank format 2, and this version reads up to 1"):
        FeatureBank.load(tmp_path / "b")


def test_bad_features_in_a_file_are_named_with_the_file(tmp_path):
    FeatureBank(torch.tensor([[1.0], [float("nan")]]), ["a", "b"], check=False).save(tmp_path / "bank")
    with pytest.raises(ValueError, match=r"bank: FeatureBank: features row 1 \(class 'b'\) holds NaN"):
        FeatureBank.load(tmp_path / "bank")
    assert len(FeatureBank.load(tmp_path / "bank", check=False)) == 2


def test_class_means_of_roots_are_power_means():
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(3).repeat(4)
    bank = FeatureBank(features, labels)
    for number, row in enumerate(bank.class_means(power_norm=True)):
        roots = features[labels == number].sign() * features[labels == number].abs().sqrt()
        torch.testing.assert_close(row.sign() * row.abs().sqrt(), roots.mean(0))
    assert not torch.allclose(bank.class_means(power_norm=True), bank.class_means())


@pytest.mark.parametrize(
    "described",
    [
        {"format": "1", "classes": ["a"], "provenance": {}},
        {"format": 1, "classes": {"a": 1}, "provenance": {}},
        {"format": 1, "classes": ["a"], "provenance": True},
        {"format": 1, "classes": ["a"], "provenance": {"skipped": 3}},
        *(
            {"format": 1, "classes": ["a"], "provenance": {"skipped": skipped}}
            for skipped in ("{", "{}", "[1]", "[" * 100_000)
        ),
        *({"format": number, "classes": ["a"], "provenance": {}} for number in (True, -1, 0)),
        *(
            {"format": 1, "classes": ["a", name], "provenance": {}}
            for name in ("", "\ud800", "\x1b[2J", "\n", "\x7f", "\x9b")
        ),
        {"format": 1, "classes": [str(number) for number in range(70_000)], "provenance": {}},
        ["format"],
    ],
    ids=lambda described: ascii(described)[:60],
)
def test_a_forged_description_is_refused(tmp_path, described):
    save_file(
        {"features": torch.ones(2, 3), "labels": torch.zeros(2, dtype=torch.long)},
        tmp_path / "bank",
        {"fewshot_bank": json.dumps(described)},
    )
    with pytest.raises(ValueError, match=r"bank: not a whole feature bank \("):
        FeatureBank.load(tmp_path / "bank")


def test_a_name_that_could_not_be_loaded_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"the class name 'a.x1b' is empty, or has control characters"):
        FeatureBank(torch.ones(2, 3), [0, 0], ["a\x1b"]).save(tmp_path / "bank")
    assert not list(tmp_path.iterdir())


def test_labels_that_are_no_whole_numbers_are_refused():
    for dtype in (torch.float8_e4m3fn, torch.float32):
        with pytest.raises(ValueError, match="labels must be"):
            FeatureBank(torch.ones(2, 3), torch.zeros(2).to(dtype), ["a"])

"""Prepared downloads go with their session and are bounded, apart from uploads."""

import gc

import pytest

from fewshot_nam.service.downloads import Downloads
from fewshot_nam.service.uploads import UploadLimit


class Session:
    """What downloads go with."""


@pytest.fixture
def prepare(tmp_path):
    downloads = Downloads(tmp_path, most=1000)

    def write(session, size, address, name="memory.safetensors"):
        path = downloads.place_of(session) / name
        path.write_bytes(b"x" * size)
        downloads.keep(path, address)
        return path

    return write


def test_a_directory_goes_with_its_session(prepare):
    first, second = Session(), Session()
    path, other = prepare(first, 10, ""), prepare(second, 10, "")
    assert path.parent != other.parent
    assert prepare(first, 20, "", "memory.onnx").parent == path.parent
    del first
    gc.collect()
    assert not path.parent.exists()
    assert other.exists()


def test_an_address_has_half_of_the_room_and_its_oldest_go(prepare):
    """They counted as uploads of nobody: one client that prepared many kept all others from uploading anything."""
    sessions = [Session() for _ in range(9)]
    other = prepare(sessions[8], 400, "192.0.2.9")
    mine = [prepare(session, 200, "192.0.2.1") for session in sessions[:4]]
    assert [path.exists() for path in mine] == [False, False, True, True]
    assert other.exists()
    assert prepare(sessions[2], 210, "192.0.2.1") == mine[2]  # again: no further file, and now the newest
    assert [path.exists() for path in mine] == [False, False, True, True]
    prepare(sessions[4], 200, "192.0.2.1")
    assert [path.exists() for path in mine] == [False, False, True, False]
    huge = prepare(sessions[5], 5000, "192.0.2.1")  # the last one stays, whatever its size
    assert huge.exists()
    assert not mine[2].exists()


def test_all_together_are_bounded_and_what_is_gone_counts_no_more(prepare):
    sessions = [Session() for _ in range(9)]
    first, second, third = (prepare(sessions[i], 300, f"192.0.2.{i}") for i in range(3))
    second.unlink()
    fourth = prepare(sessions[3], 300, "192.0.2.3")
    assert first.exists()
    prepare(sessions[4], 300, "127.0.0.1")
    assert [path.exists() for path in (first, third, fourth)] == [False, True, True]


def test_downloads_are_no_uploads(prepare, tmp_path):
    limit = UploadLimit(None, tmp_path, most=10)
    session = Session()
    assert prepare(session, 900, "").exists()
    assert limit._taken() == 0
    assert prepare(session, 900, "").exists()  # nor taken for what was broken off

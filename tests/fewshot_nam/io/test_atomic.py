"""A file is written whole or not at all."""

import os
import subprocess
import sys

import pytest

from fewshot_nam.io.atomic import machine_number, remove_abandoned, replacing


def test_replacing_puts_the_new_file_in_place_in_one_step(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replacing_leaves_the_old_file_after_an_error(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_gives_the_rights_that_a_new_file_has(tmp_path):
    mask = os.umask(0o027)
    try:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.chmod(0o600)
    finally:
        os.umask(mask)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_replacing_in_a_directory_that_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), replacing(tmp_path / "nowhere" / "a.txt"):
        pass


def test_replacing_refuses_what_is_no_regular_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="no regular file"), replacing(pipe):
        pytest.fail("nothing is to be written")
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_replacing_follows_a_link(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with replacing(tmp_path / "link") as unfinished:
        unfinished.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_what_killed_saves_left_is_removed_by_the_next(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    here, gone = machine_number(), int(ended.stdout)
    others = [
        f".a.txt.{here}-{os.getppid()}-00000000.tmp",  # being written by a process that runs
        f".a.txt.ffffffff-{gone}-00000000.tmp",  # of another machine, just now
        f".b.txt.{here}-{gone}-00000000.tmp",  # of another file
        ".a.txt.tmp",
    ]
    old = tmp_path / f".a.txt.fffffffe-{gone}-00000000.tmp"
    for name in [*others, f".a.txt.{here}-{gone}-00000000.tmp", old.name]:
        (tmp_path / name).touch()
    os.utime(old, (0, 0))
    for number in (gone, os.getpid()):  # the last: by a process that had our number before
        left = tmp_path / f".a.txt.{here}-{number}-00000001.tmp"
        left.mkdir()
        (left / "unfinished.tmp").touch()
        (left / ".tmpAbCdEf").touch()
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "a.txt"])


def test_two_saves_of_one_file_at_once_leave_each_other_alone(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            second.write_text("second")
        remove_abandoned(path)
        assert path.read_text() == "second"
        assert first.exists()
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_place_of_what_was_left_is_removed_and_not_followed(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept").touch()
    link = tmp_path / f".a.txt.{machine_number()}-{int(ended.stdout)}-00000000.tmp"
    link.symlink_to(tmp_path / "other")
    remove_abandoned(tmp_path / "a.txt")
    assert not link.is_symlink()
    assert (tmp_path / "other" / "kept").exists()

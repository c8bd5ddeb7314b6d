"""A file is written whole or not at all."""

import os
import subprocess
import sys
import time

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


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_that_is_replaced_keeps_who_may_read_it(tmp_path, mode):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(mode)
    (tmp_path / "link").symlink_to(path)
    for name in ("a.txt", "link"):
        with replacing(tmp_path / name) as temporary:
            temporary.write_text(name)
            temporary.chmod(0o644)
        assert path.stat().st_mode & 0o777 == mode
        assert path.read_text() == name


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files to others")
def test_a_file_that_root_replaces_stays_its_owners(tmp_path):
    """A server that ran as a user without rights could not read its memory any more."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    os.chown(path, 12345, 54321)
    with replacing(path) as temporary:
        temporary.write_text("new")
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (12345, 54321, 0o640)


def test_a_group_that_cannot_be_kept_gets_no_rights(tmp_path, monkeypatch):
    """The first group of who saved could read a memory that another group shares."""

    def refuse(*_):
        raise PermissionError

    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o664)
    monkeypatch.setattr(os, "chown", refuse)
    monkeypatch.setattr("fewshot_nam.io.atomic._is_ours", lambda *_: False)
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.stat().st_mode & 0o777 == 0o604


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    resource = pytest.importorskip("resource")
    path, limits = tmp_path / "a.bin", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("old")

    def write(name):
        with replacing(tmp_path / name) as temporary:
            temporary.write_bytes(bytes(100_000))

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write("a.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


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


def test_replacing_refuses_a_link_that_leads_to_itself(tmp_path):
    (tmp_path / "loop").symlink_to("other")
    (tmp_path / "other").symlink_to("loop")
    with pytest.raises(OSError, match="loop is a link that leads to itself"), replacing(tmp_path / "loop"):
        pytest.fail("nothing is to be written")
    assert (tmp_path / "loop").is_symlink()
    assert (tmp_path / "other").is_symlink()


def test_replacing_names_a_pipe_by_the_name_that_was_given():
    ended, pipe = os.pipe()
    name = f"/dev/fd/{pipe}"
    if not os.path.exists(name):
        pytest.skip("this system has no such names")
    try:
        with pytest.raises(OSError, match=f"^{name} is no regular file"), replacing(name):
            pytest.fail("nothing is to be written")
    finally:
        os.close(ended)
        os.close(pipe)


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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks of directories")
def test_what_another_container_writes_stays_and_what_it_left_goes(tmp_path):
    """Of two with one host name and the same process numbers, the second removed what the first was writing."""
    import fcntl

    places = [tmp_path / f".a.txt.{machine}-{os.getpid()}-00000000.tmp" for machine in (machine_number(), "ffffffff")]
    opened = []
    for place in places:
        place.mkdir()
        os.utime(place, (time.time() - 90,) * 2)
        opened.append(os.open(place, os.O_RDONLY))
        fcntl.flock(opened[-1], fcntl.LOCK_EX)
    remove_abandoned(tmp_path / "a.txt")
    assert all(place.exists() for place in places)
    for one in opened:  # as when they are killed
        os.close(one)
    os.utime(places[1])
    remove_abandoned(tmp_path / "a.txt")  # of another host name, and just now: its locks may be seen there alone
    assert [place.exists() for place in places] == [False, True]
    os.utime(places[1], (time.time() - 90,) * 2)
    remove_abandoned(tmp_path / "a.txt")
    assert not places[1].exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks of directories")
def test_who_writes_holds_a_lock(tmp_path):
    import fcntl

    with replacing(tmp_path / "a.txt") as temporary:
        opened = os.open(temporary.parent, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(opened)
        temporary.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_link_in_place_of_what_was_left_is_removed_and_not_followed(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept").touch()
    link = tmp_path / f".a.txt.{machine_number()}-{int(ended.stdout)}-00000000.tmp"
    link.symlink_to(tmp_path / "other")
    remove_abandoned(tmp_path / "a.txt")
    assert not link.is_symlink()
    assert (tmp_path / "other" / "kept").exists()

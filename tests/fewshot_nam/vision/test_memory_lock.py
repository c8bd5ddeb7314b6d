"""The lock of a memory's file, which users of one group share."""

import os
import stat

import pytest

from fewshot_nam.vision import memory_lock
from fewshot_nam.vision.memory_lock import exclusive

pytestmark = pytest.mark.skipif(os.name != "posix", reason="filelock has its own file on Windows")


def test_the_lock_of_another_user_is_waited_for_and_outlives_nobody(tmp_path, monkeypatch):
    """It was opened for writing: another user was refused at once, and for good where its holder had been killed."""
    memory = tmp_path / "m.safetensors"
    before = os.umask(0o077)
    try:
        with exclusive(memory):
            (lock,) = tmp_path.iterdir()
            assert stat.S_IMODE(lock.stat().st_mode) == 0o644  # readable for all
            with pytest.raises(OSError, match="locked for 0"), exclusive(memory, seconds=0.2):
                pass
    finally:
        os.umask(before)
    assert not lock.exists()
    lock.touch()  # of a process that was killed
    opened, real = [], os.open
    kinds = os.O_RDWR | os.O_WRONLY | os.O_CREAT
    others = [True]

    def as_another_user(path, how, *more):
        opened.append(how & kinds)
        if others[0] and how & kinds:
            raise PermissionError
        return real(path, how, *more)

    monkeypatch.setattr(memory_lock.os, "open", as_another_user)
    with exclusive(memory):
        assert opened == [os.O_RDWR, 0]
    assert not lock.exists()
    # One's own is opened for writing: NFS locks nothing else.
    others[0] = False
    opened.clear()
    with exclusive(memory):
        assert opened == [os.O_RDWR, os.O_RDWR | os.O_CREAT]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes among files")
def test_a_pipe_in_the_place_of_the_lock_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".m.safetensors.lock")
    with pytest.raises(OSError, match="is no regular file: remove it"), exclusive(tmp_path / "m.safetensors"):
        pass

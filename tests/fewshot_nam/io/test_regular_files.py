"""Only regular files are opened, and without waiting for anything."""

import os

import pytest

from fewshot_nam.io.regular_files import file_version, open_regular


def test_a_file_and_a_link_to_it_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_pipes_devices_and_directories_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(OSError, match="is no regular file"):
            open_regular(path)


def test_a_file_that_is_replaced_is_another_version_however_alike_it_looks(tmp_path):
    file, new, link = tmp_path / "file", tmp_path / "new", tmp_path / "link"
    for one in (file, new):
        one.write_bytes(b"content")
        os.utime(one, ns=(0, 0))
    link.symlink_to("file")
    before = file_version(file)
    with open_regular(file) as opened:  # while it is open, its number is not given to another
        assert file_version(link) == file_version(opened.fileno()) == before
        new.replace(file)
        assert file_version(link) == file_version(file) != before
        assert file_version(opened.fileno())[:2] == before[:2]
    changed = file_version(file)
    file.write_bytes(b"changed")
    assert file_version(file) != changed


def test_what_is_missing_has_no_version(tmp_path):
    with pytest.raises(FileNotFoundError):
        file_version(tmp_path / "nothing")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_regular(tmp_path / "nothing")


@pytest.mark.skipif(
    not hasattr(os, "set_blocking") or os.name == "nt", reason="this system has no pipes that do not wait"
)
@pytest.mark.parametrize("read", [lambda file: file.read(), lambda file: file.read(8)], ids=["all", "some"])
def test_a_file_without_content_yet_is_refused(read):
    # Such is /proc/kmsg for the administrator: it looks regular, and a read that may not wait finds nothing.
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open_regular(__file__) as file:
        os.dup2(reader, file.fileno())
        with pytest.raises(OSError, match="has no content yet"):
            read(file)
    os.close(reader)
    os.close(writer)

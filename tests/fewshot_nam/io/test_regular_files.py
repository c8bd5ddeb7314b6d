"""Only regular files are opened, and without waiting for anything."""

import os

import pytest

from fewshot_nam.io.regular_files import open_regular


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

"""A JSON file is a mapping, or one line names it."""

import pytest

from fewshot_nam.io.json_files import read_mapping


def test_a_mapping_is_returned(tmp_path):
    (tmp_path / "a.json").write_text('{"é": [1, null]}', encoding="utf-8")
    assert read_mapping(tmp_path / "a.json", "holds no results") == {"é": [1, None]}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_mapping_is_one_line_that_names_the_file(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json holds no results: [^\n]+$"):
        read_mapping(path, "holds no results")


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_mapping(tmp_path / "a.json", "holds no results")

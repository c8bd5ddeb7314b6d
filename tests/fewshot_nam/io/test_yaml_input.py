"""YAML that a user wrote: what is read, and what is refused before it can cost memory or time."""

import time

import pytest

from fewshot_nam.io.yaml_input import MAX_BYTES, MAX_DEPTH, load_yaml, read_yaml, shown

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)
)


def test_yaml_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("ways: 3\nheads: [nam, cosine]\n", encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == {"ways": 3, "heads": ["nam", "cosine"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 2: aliases"),
        ("[" * 100_000, f"nested more than {MAX_DEPTH} deep"),
        ("a: " + "{b: " * 5000, f"nested more than {MAX_DEPTH} deep"),
        ("a: [1", "is not YAML at line 1"),
        ("a: \x01", "is not YAML"),
        ("? !!python/object:os.system {}\n: 1", "is not YAML"),
    ],
    ids=["aliases", "lists", "mappings", "open bracket", "control character", "python object"],
)
def test_what_could_cost_more_than_its_size_is_refused_at_once_and_in_one_line(text, message):
    began = time.process_time()
    with pytest.raises(ValueError, match=message) as raised:
        load_yaml(text, "run.yaml")
    assert time.process_time() - began < 5
    assert str(raised.value).startswith("run.yaml")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


def test_files_that_are_too_large_or_no_text_are_refused(tmp_path):
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match="is larger than 16 MiB"):
        read_yaml(tmp_path / "large.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\xfe\xfa")
    with pytest.raises(UnicodeDecodeError):
        read_yaml(tmp_path / "latin.yaml")


def test_what_messages_show_of_a_value_is_bounded():
    nested = "deep"
    for _ in range(50):
        nested = [nested] * 10
    for value in (nested, "x" * 10**6, list(range(10**5)), {"a\nb": 1}):
        assert len(shown(value)) <= 80
        assert "\n" not in shown(value)

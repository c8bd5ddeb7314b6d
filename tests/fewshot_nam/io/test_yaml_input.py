"""YAML that a user wrote: what is read, and what is refused before it can cost memory or time."""

import time

import pytest
import yaml

from fewshot_nam.io.yaml_input import MAX_BYTES, MAX_DEPTH, MAX_VALUES, load_yaml, read_yaml, safe_loader, shown

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)
)


@pytest.fixture(params=["C parser", "Python parser"], autouse=True)
def parser(request, monkeypatch):
    """Both parsers that PyYAML may have."""
    if request.param == "Python parser":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML was built without its C parser")
    safe_loader.cache_clear()
    yield request.param
    safe_loader.cache_clear()


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
        ("a: \udc80", "is not YAML: bad characters"),
        ("a: !<x" + "%0Ay" * 5000 + "> 1", "is not YAML at line 1: could not determine a constructor"),
        ("a: !!int 1:1", "is not YAML at line 1: a number in base 60"),
        ("a: !!int 1" + ":1" * 30_000, "is not YAML at line 1: a number in base 60"),
        ("a: !!float 1" + ":1" * 300 + ":1.5", "is not YAML at line 1: a number in base 60"),
        ("a: 010", "is not YAML at line 1: a number that begins with 0, which YAML reads in base 8: leave the 0 out"),
        ("a: -0_7", "is not YAML at line 1: a number that begins with 0"),
        ("a: " + "1" * 100_000, "is not YAML at line 1: a number in base 60 or of very many digits"),
        ("{" + ", ".join(f"{i * (2**61 - 1)}: " for i in range(2_000)), "is not YAML"),
        ("<<: {a: 1}", "is not YAML at line 1: merge keys"),
        ("%TAG !a! x\n" * 101 + "--- 1", "has more than 100 lines that begin with %"),
        ("a: !!bool x", "is not YAML: a value that does not fit its type"),
        ("a: !!timestamp x", "is not YAML: a value that does not fit its type"),
        ("a: 2001-99-99", "is not YAML: a value that does not fit its type"),
        ("a: !!int ''", "is not YAML"),
    ],
    ids=lambda value: value[:20] if "is not" not in value else "",
)
def test_what_could_cost_more_than_its_size_is_refused_at_once_and_in_one_line(text, message):
    began = time.process_time()
    with pytest.raises(ValueError, match=message) as raised:
        load_yaml(text, "run.yaml")
    assert time.process_time() - began < 5
    assert str(raised.value).startswith("run.yaml")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


def test_numbers_in_base_60_are_text():
    """They are read in quadratic time, and what does not fit a float raises OverflowError."""
    for text in ("12:30", "1" + ":1" * 30_000, "-1:30.5", "1" + ":1" * 300 + ":1.5"):
        assert load_yaml(f"a: {text}", "run.yaml") == {"a": text}


def test_other_values_are_read_as_pyyaml_reads_them():
    text = "[1, -2, +3, 0, 0o7, 0x1f, 0b11, 1_000, 1.5, -.5, 1., 1e3, 1.5e+3, .inf, -.Inf, yes, no, ~, 2001-01-01, x y, '1:2']"
    assert load_yaml(text, "run.yaml") == yaml.load(text, Loader=yaml.SafeLoader)
    assert load_yaml("[!!float 1, !!int 7, !!str 5, !!set {a}, =]", "run.yaml") == [1.0, 7, "5", {"a"}, "="]
    assert load_yaml(f"[{2**64 - 1}, {1 - 2**64}]", "run.yaml") == [2**64 - 1, 1 - 2**64]


def test_integers_of_equal_hashes_are_refused():
    """A dictionary of n of them takes n^2 comparisons; with 64 bits there are 16 of each hash."""
    with pytest.raises(
        ValueError,
        match=r"run\.yaml is not YAML at line 2: an integer of more than 64 bits: for text write it in quotes",
    ):
        load_yaml(f"a: 1\nb: {2**61 - 1 << 5}", "run.yaml")


def test_tens_of_thousands_of_names_are_read_and_more_values_than_the_limit_are_not_built(monkeypatch, parser):
    names = [f"class {i}" for i in range(50_000 if parser == "C parser" else 5_000)]
    assert load_yaml("base:\n" + "".join(f"- {name}\n" for name in names), "run.yaml") == {"base": names}
    monkeypatch.setattr("fewshot_nam.io.yaml_input.MAX_VALUES", 1000)
    assert len(load_yaml("[" + "a," * 990 + "]", "run.yaml")) == 990
    built = []
    monkeypatch.setattr("yaml.load", lambda *args, **options: built.append(args))
    read = []
    parse = yaml.parse
    monkeypatch.setattr(
        "yaml.parse", lambda *args, **options: (read.append(event) or event for event in parse(*args, **options))
    )
    with pytest.raises(
        ValueError, match=r"run\.yaml line 1: more than 1,000 values, too many for options or lists of classes"
    ):
        load_yaml("[" + "a," * 10_000 + "]", "run.yaml")
    assert (built, len(read)) == ([], 1002)
    assert MAX_VALUES == 250_000


def test_files_that_are_too_large_or_no_text_are_refused(tmp_path):
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match="is larger than 4 MiB"):
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

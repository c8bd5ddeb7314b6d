"""The builder: built on first use or never, complete or not at all, loaded only from where no other user may write."""

import logging
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fewshot_nam.memory.native import native_build
from fewshot_nam.memory.native.native_build import library

ADD = 'extern "C" int add(int a, int b) { return a + b; }\n'
SEVEN = 'extern "C" int seven() { return 7; }\n'
COUNTING_COMPILER = """#!/bin/sh
echo built >> "{log}"
exec {compiler} "$@"
"""


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "sums.cpp"
    path.write_text(ADD, encoding="utf-8")
    return path


@pytest.fixture
def unbuilt(monkeypatch, tmp_path, caplog):
    """Return the empty directory of libraries, of a process that has built nothing."""
    monkeypatch.setattr(native_build, "_libraries", {})
    monkeypatch.setattr(native_build, "_reported", set())
    monkeypatch.setenv("FEWSHOT_NAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FEWSHOT_NAM_COMPILE", raising=False)
    caplog.set_level(logging.WARNING, logger=native_build.__name__)
    return tmp_path / "cache/compiled"


@pytest.fixture
def builds(unbuilt, monkeypatch, tmp_path):
    """Return a function that says how many times the compiler ran; skip where there is none."""
    monkeypatch.setenv("CXX", os.environ.get("CXX", ""))
    try:
        command = native_build._compiler()
    except RuntimeError as error:
        pytest.skip(str(error))
    log, script = tmp_path / "log", tmp_path / "compiler"
    script.write_text(COUNTING_COMPILER.format(log=log, compiler=" ".join(command)), encoding="utf-8")
    script.chmod(0o700)
    monkeypatch.setenv("CXX", str(script))
    return lambda: len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0


def forget(monkeypatch) -> None:
    """Be a new process."""
    monkeypatch.setattr(native_build, "_libraries", {})


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("switch", [None, "", "1"])
def test_a_library_is_built_on_first_use_and_only_once(source, unbuilt, builds, monkeypatch, switch):
    if switch is not None:
        monkeypatch.setenv("FEWSHOT_NAM_COMPILE", switch)
    assert library(source).add(2, 3) == 5
    assert library(source) is library(source)
    forget(monkeypatch)
    monkeypatch.setattr(native_build, "_compiler", lambda: pytest.fail("built again"))
    assert library(source).add(4, 5) == 9
    assert builds() == 1
    assert len(list(unbuilt.iterdir())) == 1


def test_the_switch_at_0_builds_nothing_and_uses_nothing_that_was_built(source, unbuilt, builds, monkeypatch, caplog):
    monkeypatch.setenv("FEWSHOT_NAM_COMPILE", "0")
    assert library(source) is None
    assert not unbuilt.exists()
    monkeypatch.delenv("FEWSHOT_NAM_COMPILE")
    assert library(source) is not None
    monkeypatch.setenv("FEWSHOT_NAM_COMPILE", "0")
    assert library(source) is None
    assert builds() == 1
    assert not caplog.records


@pytest.mark.usefixtures("unbuilt")
def test_any_other_switch_is_an_error(source, monkeypatch):
    monkeypatch.setenv("FEWSHOT_NAM_COMPILE", "yes")
    with pytest.raises(ValueError, match=r"FEWSHOT_NAM_COMPILE must be 0 .* or 1 .*, got 'yes'"):
        library(source)


@pytest.mark.usefixtures("builds")
def test_several_sources_make_one_library_and_changes_make_another(source, unbuilt, tmp_path, monkeypatch):
    other = tmp_path / "more.cpp"
    other.write_text(SEVEN, encoding="utf-8")
    both = library(source, other)
    assert (both.add(1, 1), both.seven()) == (2, 7)
    for change in ("source", "header", "flags", "processor", "compiler"):
        before = set(unbuilt.iterdir())
        forget(monkeypatch)
        if change == "source":
            source.write_text(ADD.replace("a + b", "a + b + 1"), encoding="utf-8")
        if change == "header":
            (tmp_path / "sums.h").write_text("// new\n", encoding="utf-8")
        if change == "processor":
            monkeypatch.setattr(native_build, "_instructions", lambda: "flags: none")
        if change == "compiler":
            monkeypatch.setenv("CXX", shlex.join([*native_build._compiler(), "-DANOTHER"]))
        flags = ("-DNEW",) if change in ("flags", "processor", "compiler") else ()
        assert library(source, other, flags=flags).add(1, 1) == 3
        assert len(set(unbuilt.iterdir()) - before) == 1, change


@pytest.mark.parametrize("damage", ["truncated", "emptied", "changed"])
def test_a_damaged_library_is_never_loaded_and_is_built_again(source, unbuilt, builds, monkeypatch, damage):
    # In a process of its own: loading a truncated library kills it.
    assert library(source) is not None
    (path,) = unbuilt.iterdir()
    contents = path.read_bytes()
    damaged = {
        "truncated": contents[: len(contents) // 3],
        "emptied": b"",
        "changed": contents[:200] + bytes([contents[200] ^ 1]) + contents[201:],
    }[damage]
    path.unlink()  # a new file: this process has the old one mapped
    path.write_bytes(damaged)
    path.chmod(0o700)
    code = "import pathlib, runpy, sys; library = runpy.run_path(sys.argv[1])['library']; "
    code += "print(library(pathlib.Path(sys.argv[2])).add(2, 3))"
    command = [sys.executable, "-c", code, native_build.__file__, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "5"), done.stderr
    assert builds() == 2
    assert path.read_bytes() == contents


def test_processes_and_threads_that_build_at_once_all_get_the_library(source, unbuilt, builds):
    code = "import pathlib, runpy, sys; library = runpy.run_path(sys.argv[1])['library']; "
    code += "print(library(pathlib.Path(sys.argv[2])).add(2, 3))"
    command = [sys.executable, "-c", code, native_build.__file__, str(source)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = []
    threads = [threading.Thread(target=lambda: found.append(library(source))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.communicate(timeout=120)[0].strip() for process in running] == ["5", "5"]
    assert len(set(map(id, found))) == 1
    assert found[0].add(1, 1) == 2
    assert builds() <= 3, "threads of one process build once"
    assert len(list(unbuilt.iterdir())) == 1, "one library, and no temporary file"


def test_the_directory_and_the_library_are_private(source, unbuilt, builds):
    before = os.umask(0)
    try:
        assert library(source) is not None
    finally:
        os.umask(before)
    (path,) = unbuilt.iterdir()
    assert [place.stat().st_mode & 0o777 for place in (unbuilt, path)] == [0o700, 0o700]
    assert builds() == 1


@pytest.mark.usefixtures("builds")
@pytest.mark.parametrize("variable", ["FEWSHOT_NAM_CACHE", "TORCH_EXTENSIONS_DIR"])
@pytest.mark.parametrize("case", ["directory", "file", "parent", "link"])
def test_where_others_may_write_nothing_is_loaded_and_the_log_says_why(
    source, unbuilt, monkeypatch, tmp_path, caplog, variable, case
):
    monkeypatch.delenv("FEWSHOT_NAM_CACHE")
    monkeypatch.setenv(variable, str(tmp_path / "shared"))
    shared = tmp_path / "shared/compiled"
    if case == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        shared.parent.mkdir()
        shared.symlink_to(tmp_path / "elsewhere")
    else:
        assert library(source) is not None
        (path,) = shared.iterdir()
        changed = {"directory": shared, "file": path, "parent": shared.parent}[case]
        changed.chmod(0o777)
    forget(monkeypatch)
    assert library(source) is None
    (warning,) = warnings(caplog)
    named = path.name if case == "file" else str(tmp_path / "shared")
    assert warning.startswith("no compiled code, torch and NumPy are used instead, which is slower: ")
    assert named in warning
    assert "FEWSHOT_NAM_CACHE to a directory of your own" in warning
    assert not unbuilt.exists()


@pytest.mark.usefixtures("builds")
def test_a_library_of_another_owner_is_refused(source, monkeypatch, caplog):
    assert library(source) is not None
    forget(monkeypatch)
    monkeypatch.setattr(native_build.os, "geteuid", lambda: 4242)
    assert library(source) is None
    (warning,) = warnings(caplog)
    assert "not to you (user 4242)" in warning


@pytest.mark.usefixtures("builds")
def test_a_shared_directory_with_a_sticky_bit_is_as_safe_as_tmp(source, unbuilt, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o1777)
    assert library(source) is not None
    assert len(list(unbuilt.iterdir())) == 1


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("false", "failed: exit status 1"),
        ("no-such-compiler", "no C++ compiler 'no-such-compiler'"),
        ("", "no C++ compiler (c++, g++ or clang++)"),
        ('c++ "', "CXX='c++ \"' is no command: No closing quotation"),
    ],
)
def test_a_build_that_fails_is_one_warning(source, unbuilt, monkeypatch, caplog, compiler, reason):
    monkeypatch.setenv("CXX", compiler)
    if not compiler:
        monkeypatch.setattr(native_build.shutil, "which", lambda name: None)
    assert library(source) is None
    assert library(source) is None
    (warning,) = warnings(caplog)
    assert reason in warning
    assert list(unbuilt.iterdir()) == []


@pytest.mark.usefixtures("builds")
def test_after_a_failure_only_a_retry_builds(source, monkeypatch):
    works = os.environ["CXX"]
    monkeypatch.setenv("CXX", "false")
    assert library(source) is None
    monkeypatch.setenv("CXX", works)
    assert library(source) is None
    assert library(source, retry=True).add(2, 3) == 5
    assert library(source).add(2, 3) == 5


def test_a_directory_that_cannot_be_written_is_one_warning(source, unbuilt, builds, caplog):
    unbuilt.parent.parent.joinpath("cache").write_text("", encoding="utf-8")
    assert library(source) is None
    assert len(warnings(caplog)) == 1
    assert builds() == 0


@pytest.mark.usefixtures("unbuilt")
def test_missing_sources_are_one_warning(tmp_path, caplog):
    assert library(tmp_path / "gone.cpp") is None
    (warning,) = warnings(caplog)
    assert "gone.cpp" in warning


def test_libraries_are_kept_where_the_environment_says(monkeypatch, tmp_path):
    for name in ("FEWSHOT_NAM_CACHE", "TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name, below in (
        ("FEWSHOT_NAM_CACHE", "compiled"),
        ("TORCH_EXTENSIONS_DIR", "compiled"),
        ("XDG_CACHE_HOME", "fewshot-nam/compiled"),
        ("HOME", ".cache/fewshot-nam/compiled"),
    ):
        assert native_build._directory() == tmp_path / name / below
        monkeypatch.delenv(name)

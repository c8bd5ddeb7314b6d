"""The entry of the benchmarks runs their scripts, keeps their figures, and fails where one of them does."""

import sys

import pytest


def test_every_part_has_its_script(benchmark_script):
    run = benchmark_script("run")
    assert [name for name, each in run.PARTS.items() if not (run.HERE / each.script).is_file()] == []


def test_the_entry_keeps_figures_and_fails_where_a_part_does(benchmark_script, tmp_path, monkeypatch, capfd):
    run = benchmark_script("run")
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("import sys; print('a table'); '--json' in sys.argv and open(sys.argv[-1], 'w').write('{}')")
    bad.write_text("raise SystemExit('not the same work')")
    parts = {
        "good": run.Part("good.py"),
        "bad": run.Part("bad.py"),
        "none": run.Part("x.py", "", "no_such_lib", "benchmark"),
    }
    monkeypatch.setattr(run, "PARTS", parts)
    monkeypatch.setattr(run, "HERE", tmp_path)
    out = tmp_path / "kept" / "here"
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(out)])
    assert run.main() == 1
    said = capfd.readouterr()
    assert "-- good: done" in said.out
    assert "-- bad: failed" in said.out
    assert 'none: skipped, it needs no_such_lib: pip install ".[benchmark]"' in said.out
    assert "not the same work" in said.err
    assert said.err.endswith("failed: bad\n")
    assert sorted(path.name for path in out.iterdir()) == ["good.json", "good.md"]
    assert "\na table\n" in (out / "good.md").read_text()
    monkeypatch.setattr(sys, "argv", ["run.py", "good", "--short", "--out", str(tmp_path / "nothing")])
    assert run.main() == 0
    assert not (tmp_path / "nothing").exists()
    monkeypatch.setattr(sys, "argv", ["run.py", "speed"])
    with pytest.raises(SystemExit):
        run.main()
    assert "no part 'speed': there are good, bad, none" in capfd.readouterr().err

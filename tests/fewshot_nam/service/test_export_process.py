"""An export in a process of its own: what is wrong there is the error that it would have been here."""

import os
import select
import subprocess
import sys

import pytest

from fewshot_nam.service import export_process
from fewshot_nam.service.export_process import export_memory


def test_what_is_wrong_in_the_process_is_raised_here(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        export_memory(tmp_path / "none.safetensors", None, tmp_path / "out.onnx")
    (tmp_path / "no.safetensors").write_bytes(b"no memory")
    with pytest.raises(ValueError, match="no file of a NAM model"):
        export_memory(tmp_path / "no.safetensors", "random", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("said", [b"", b"no JSON\n"])
def test_a_process_that_is_ended_is_said(monkeypatch, tmp_path, said):
    monkeypatch.setattr(
        export_process.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -9, stdout=said)
    )
    with pytest.raises(ValueError, match="too little memory"):
        export_memory(tmp_path / "a.safetensors", None, tmp_path / "out.onnx")


def test_a_process_that_does_not_end_is_ended(monkeypatch, tmp_path):
    def run(*_, **given):
        raise subprocess.TimeoutExpired("python", given["timeout"])

    monkeypatch.setattr(export_process.subprocess, "run", run)
    with pytest.raises(ValueError, match="30 minutes"):
        export_memory(tmp_path / "a.safetensors", None, tmp_path / "out.onnx")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_an_export_ends_with_the_page_that_asked_for_it(tmp_path):
    """A page that was killed left a process that worked on, for a file that went to no one."""
    os.mkfifo(tmp_path / "alive")
    # In the place of the library: it says that the export runs, and goes on for a minute.
    (tmp_path / "torch.py").write_text(
        f"import time; alive = open({str(tmp_path / 'alive')!r}, 'w'); alive.write('exports'); alive.flush(); time.sleep(60)"
    )
    asks = f"import sys; from fewshot_nam.service.export_process import export_memory; sys.path.insert(0, {str(tmp_path)!r}); "
    page = subprocess.Popen([sys.executable, "-c", asks + "export_memory('a.safetensors', None, 'out.onnx')"])
    alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert select.select([alive], [], [], 60)[0]
        assert os.read(alive, 100) == b"exports"
        page.kill()
        page.wait()
        assert select.select([alive], [], [], 30)[0], "the export works on"
        assert os.read(alive, 100) == b""
    finally:
        page.kill()
        page.wait()
        os.close(alive)

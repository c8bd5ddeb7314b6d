"""``predict --server``: batches that a server takes, servers that are busy or of another kind, and files that are none."""

import contextlib
import io
import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fewshot_nam.cli import server_predictions
from fewshot_nam.cli.main import main

ONE = {"label": "mug", "best": "mug", "score": 0.5, "accepted": None}


@contextlib.contextmanager
def server(answer, threshold=None):
    """Serve ``answer(contents)``, which returns a status and what is sent as JSON; give the URL and the contents of requests."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.say(200, {"classes": [], "threshold": threshold})

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            contents = re.findall(rb"octet-stream\r\n\r\n(.*?)\r\n--", body, re.DOTALL)
            seen.append(contents)
            self.say(*answer(contents))

        def say(self, status, found):
            content = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.daemon_threads = True
        threading.Thread(target=served.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{served.server_port}", seen
        finally:
            served.shutdown()


def answers(contents):
    """Answer each image with its content as its class."""
    return 200, {"predictions": [{**ONE, "best": one[:20].decode()} for one in contents], "threshold": None}


@pytest.fixture
def images(tmp_path):
    """Return ten files, whose contents say their order."""
    paths = [tmp_path / f"{i}.png" for i in range(10)]
    for i, path in enumerate(paths):
        path.write_bytes(b"image %d" % i)
    return [str(path) for path in paths]


def labels(out):
    return [line.split("\t")[1] for line in out.splitlines()]


def test_images_are_sent_in_batches_of_bytes_and_of_a_number(images, monkeypatch, capsys):
    monkeypatch.setattr(server_predictions, "_BATCH_BYTES", 8 * 3)
    with server(answers) as (url, seen):
        assert main(["predict", *images, "--server", url]) == 0
        assert [len(contents) for contents in seen] == [3, 3, 3, 1]
        monkeypatch.setattr(server_predictions, "_BATCH_BYTES", 1)  # each file is larger
        monkeypatch.setattr(server_predictions, "_BATCH", 4)
        assert main(["predict", *images[:2], "--server", url]) == 0
        monkeypatch.setattr(server_predictions, "_BATCH_BYTES", 1000)
        assert main(["predict", *images, "--server", url]) == 0
    assert [len(contents) for contents in seen[4:]] == [1, 1, 4, 4, 2]
    assert labels(capsys.readouterr().out)[-10:] == [f"image {i}" for i in range(10)]


def test_without_a_threshold_no_image_is_taken_for_known(images, monkeypatch, capsys):
    """In a stream ``--unknown`` was ignored, where the server had no threshold, or lost it."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{images[0]}\n"))
    with server(answers) as (url, seen):
        assert main(["predict", "-", "--unknown", "--server", url]) == 2
        assert "has no threshold to refuse below: calibrate it first" in capsys.readouterr().err
        assert seen == []
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{images[0]}\n"))

    def lost(contents):
        return 200, {"predictions": [{**ONE, "best": "a", "accepted": None} for _ in contents], "threshold": None}

    with server(lost, threshold=0.5) as (url, _):
        assert main(["predict", "-", "--unknown", "--server", url]) == 0
        assert "\t\thttp://127.0.0.1" in capsys.readouterr().out
        assert main(["predict", *images, "--unknown", "--server", url]) == 2
        assert "has no threshold to refuse below" in capsys.readouterr().err


@pytest.mark.parametrize("status", [400, 413])
def test_a_batch_that_is_too_large_is_asked_for_in_halves(images, capsys, status):
    """An ordinary folder of photos was refused whole, since the batches knew nothing of the server's limits."""

    def at_most_three(contents):
        return answers(contents) if len(contents) <= 3 else (status, {"error": "too many"})

    with server(at_most_three) as (url, seen):
        assert main(["predict", *images, "--server", url]) == 0
    assert labels(capsys.readouterr().out) == [f"image {i}" for i in range(10)]
    assert [len(contents) for contents in seen] == [10, 5, 2, 3, 5, 2, 3]


@pytest.mark.parametrize("status", [413, 422])
def test_an_image_that_is_refused_alone_is_named_or_left_out(images, capsys, status):
    def not_four(contents):
        if b"image 4" in contents:
            return status, {"error": f"images[{contents.index(b'image 4')}]: too large"}
        return answers(contents)

    with server(not_four) as (url, seen):
        assert main(["predict", *images, "--server", url]) == 2
        assert f"{images[4]}: too large" in capsys.readouterr().err
        seen.clear()
        assert main(["predict", *images, "--server", url, "--skip-unreadable"]) == 0
    assert len(seen) <= 9
    out, err = capsys.readouterr()
    assert labels(out) == [f"image {i}" for i in range(10) if i != 4]
    assert err.count(".png") == 1
    assert images[4] in err


def test_a_busy_server_is_asked_again_and_no_image_is_called_unreadable(images, monkeypatch, capsys):
    """Good images were left out as unreadable, one after the other, while others kept the server busy."""
    slept, busy = [], [503, 503]
    monkeypatch.setattr(server_predictions.time, "sleep", slept.append)

    def at_first_busy(contents):
        return (busy.pop(), {"error": "too many wait"}) if busy else answers(contents)

    with server(at_first_busy) as (url, _):
        assert main(["predict", *images, "--server", url, "--skip-unreadable"]) == 0
        out, err = capsys.readouterr()
        assert len(out.splitlines()) == 10
        assert "left out" not in err
        assert slept == [1, 1]
        monkeypatch.setattr(server_predictions, "_BUSY_SECONDS", 0)
        busy[:] = [503]
        assert main(["predict", *images, "--server", url, "--skip-unreadable"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "too many wait" in err
    assert "cannot be read" not in err


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_an_error_that_is_no_images_ends_the_run(images, monkeypatch, capsys, status):
    with server(lambda contents: (status, {"error": "nothing was learned yet"})) as (url, _):
        assert main(["predict", *images, "--server", url, "--skip-unreadable"]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert "nothing was learned yet" in err
        assert "cannot be read" not in err
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{images[0]}\n"))
        assert main(["predict", "-", "--server", url]) == 2
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "found",
    [
        {},
        [],
        {"predictions": []},
        {"predictions": [ONE] * 2},
        {"predictions": None},
        {"predictions": [{}]},
        {"predictions": ["mug"]},
        {"predictions": [{**ONE, "score": "0.5"}]},
        pytest.param({"predictions": [{**ONE, "score": 10**400}]}, id="a large score"),
        {"predictions": [{**ONE, "best": {"a": 1}}]},
        {"predictions": [{**ONE, "best": True}]},
        {"predictions": [{**ONE, "score": True}]},
        {"predictions": [{**ONE, "accepted": "no"}]},
        pytest.param(b"[" * 200_000, id="deep"),
        pytest.param(b'{"predictions":' + b"9" * 5000 + b"}", id="a long number"),
        b"<html>",
    ],
)
def test_a_server_of_another_kind_is_an_error_of_one_line(images, capsys, found):
    with server(lambda contents: (200, found)) as (url, _):
        assert main(["predict", images[0], "--server", url]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err == f"error: {url}: answers 200, but not as a fewshot-nam serve does\n"


@pytest.mark.parametrize("threshold", ["high", {}, True, float("nan"), 10**400])
def test_a_threshold_that_is_no_number_is_an_error_of_one_line(images, capsys, threshold):

    def said(contents):
        status, found = answers(contents)
        return status, {**found, "threshold": threshold}

    with server(said, threshold) as (url, _):
        for options in ([], ["--unknown"]):
            assert main(["predict", images[0], "--server", url, *options]) == 2
            out, err = capsys.readouterr()
            assert not out
            assert err == f"error: {url}: does not say its threshold as a fewshot-nam serve does\n"


@pytest.mark.parametrize("changes", [False, True])
def test_the_threshold_is_the_one_that_the_answers_were_made_with(images, tmp_path, monkeypatch, capsys, changes):
    """It was asked for at the end: a third of the answers contradicted it where a rate had been set meanwhile."""
    monkeypatch.setattr(server_predictions, "_BATCH", 1)
    asked = iter([0.1, 0.2 if changes else 0.1])

    def said(contents):
        return 200, {"predictions": [{**ONE, "best": "a", "accepted": True}], "threshold": next(asked)}

    with server(said, threshold=0.9) as (url, _):
        assert main(["predict", *images[:2], "--server", url, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["threshold"] == (0.2 if changes else 0.1)
    assert [one.get("threshold") for one in found["predictions"]] == ([0.1, 0.2] if changes else [None, None])
    assert ("the threshold was changed meanwhile" in err) == changes


@pytest.mark.parametrize("found", [{"error": "x" * 1_000_000}, {"error": {"a": "x" * 5000}}, {"error": "a\n\x1b[31mb"}])
def test_errors_of_a_server_are_short_and_of_one_line(images, capsys, found):
    with server(lambda contents: (422, found)) as (url, _):
        assert main(["predict", images[0], "--server", url]) == 2
    err = capsys.readouterr().err
    assert len(err) < 700
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_a_directory_or_a_pipe_in_a_stream_is_answered_with_what_is_wrong(images, tmp_path, monkeypatch, capsys):
    """A directory ended the stream, and a pipe was waited for without end."""
    os.mkfifo(tmp_path / "pipe.png")
    lines = [f"{tmp_path}\n", f"{tmp_path / 'pipe.png'}\n", "/none.png\n", "a\0b.png\n", f"{images[3]}\n"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(lines)))
    with server(answers) as (url, seen):
        assert main(["predict", "-", "--server", url]) == 0
        assert seen == [[b"image 3"]]
        out = capsys.readouterr().out.splitlines()
        assert [line.split("\t")[1] for line in out] == ["", "", "", "", "image 3"]
        assert "no regular file" in out[0]
        assert "no regular file" in out[1]
        assert main(["predict", images[0], str(tmp_path / "pipe.png"), images[1], "--server", url]) == 2
        assert (
            main(["predict", images[0], str(tmp_path / "pipe.png"), images[1], "--server", url, "--skip-unreadable"])
            == 0
        )
    assert labels(capsys.readouterr().out) == ["image 0", "image 1"]


def test_a_file_that_no_server_takes_is_not_read(images, tmp_path, monkeypatch, capsys):
    """A file of 100 GB without content ended the stream, with no answer to the images beside it."""
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(100 * 2**30)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{images[0]}\n{large}\n{images[1]}\n"))
    with server(answers) as (url, _):
        assert main(["predict", "-", "--server", url]) == 0
        out = capsys.readouterr().out.splitlines()
        assert [line.split("\t")[1] for line in out] == ["image 0", "", "image 1"]
        assert "107,374,182,400 bytes are too many for an image to send" in out[1]
        assert main(["predict", images[0], str(large), images[1], "--server", url, "--skip-unreadable"]) == 0
    assert labels(capsys.readouterr().out) == ["image 0", "image 1"]

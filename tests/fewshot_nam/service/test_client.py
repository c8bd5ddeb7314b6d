"""The client of a server: connections that the server has closed, and answers that are none."""

import json
import socket
import threading
from contextlib import contextmanager

import pytest

from fewshot_nam.service.client import Client


@contextmanager
def server(*connections):
    """Serve one connection after another; each is a list of answers, and is closed after the last one."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run():
            for answers in connections:
                opened, _ = listening.accept()
                with opened, opened.makefile("rb") as lines:
                    for answer in answers:
                        seen.append(request(lines))
                        if answer is not None:
                            opened.sendall(answer)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", seen
        thread.join(30)
        assert not thread.is_alive()


def request(lines):
    first, length = lines.readline().decode(), 0
    while (line := lines.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    lines.read(length)
    return first.split()[1] if first else ""


def answer(content, status=200):
    body = json.dumps(content).encode()
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


def test_a_connection_that_the_server_has_closed_since_is_opened_again():
    """A server closes connections that were idle for some seconds: a change must then not fail, nor be made twice."""
    with server([answer({"classes": []})], [answer({"forgotten": ["a"]})]) as (url, seen):
        client = Client(url, "token")
        client.classes()
        thread = threading.Event()
        thread.wait(0.2)  # the server closes it in the meantime
        assert client.forget(["a"]) == {"forgotten": ["a"]}
        client.close()
    assert seen == ["/classes", "/forget"]


def test_a_question_is_asked_again_where_the_server_hangs_up_and_a_change_is_not():
    with server([None], [answer({"classes": [1]})]) as (url, seen):
        client = Client(url)
        assert client.classes() == {"classes": [1]}
        client.close()
    assert seen == ["/classes", "/classes"]
    with server([None]) as (url, seen):
        client = Client(url, "token")
        with pytest.raises(OSError, match="no answer from a fewshot-nam serve"):
            client.forget(["a"])
    assert seen == ["/forget"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnone", "not as a fewshot-nam serve does"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "not as a fewshot-nam serve does"),
        (answer({"error": "no image"}, 422), "no image"),
    ],
)
def test_answers_that_are_none_are_errors_of_one_line(given, words):
    with server([given]) as (url, _):
        client = Client(url)
        with pytest.raises(ValueError, match=words):
            client.classes()
        client.close()


@pytest.mark.parametrize("url", ["http://a b", "ftp://a", "http://", "http://a:70000", "127.0.0.1:8000"])
def test_what_is_no_address_is_said_in_one_line(url):
    with pytest.raises(ValueError, match="is no address of a server"):
        Client(url)

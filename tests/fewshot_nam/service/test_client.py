"""The client of a server: connections that the server has closed, and answers that are none."""

import contextlib
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from fewshot_nam.service.client import Client, ServerRefusal


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


def test_threads_that_share_a_client_get_answers_of_their_own():
    """One got the answer to another's image, without a word."""
    count, wrong = 60, []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def echo():
            while True:
                try:
                    opened, _ = listening.accept()
                except OSError:  # closed
                    return
                with opened, opened.makefile("rb") as lines:
                    while path := request(lines):
                        time.sleep(0.001)
                        opened.sendall(answer({"classes": path}))

        threading.Thread(target=echo, daemon=True).start()
        client = Client(f"http://127.0.0.1:{listening.getsockname()[1]}")

        def ask(number):
            for i in range(count):
                path = f"/{number}-{i}"
                try:
                    if client._send("GET", path, {}, None) == {"classes": path}:
                        continue
                except (OSError, ValueError):  # of a connection in two hands
                    pass
                wrong.append(path)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        client.close()
    assert not wrong


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


def test_an_answer_that_comes_while_images_are_still_sent_is_read():
    """A server that refuses a large request hangs up before it has read it all: "Connection reset by peer" said nothing of why."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run():
            for _ in range(2):
                opened, _ = listening.accept()
                with opened:
                    opened.recv(100)
                    opened.sendall(answer({"error": "too large"}, 413))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        client = Client(f"http://127.0.0.1:{listening.getsockname()[1]}", "token")
        for ask in (lambda: client.predict([bytes(30_000_000)]), lambda: client.learn([bytes(30_000_000)], "a")):
            with pytest.raises(ServerRefusal, match="too large") as refused:
                ask()
            assert refused.value.status == 413
        client.close()
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\n\r\n", b" "),  # until it hangs up
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_a_server_that_drips_is_not_waited_for_without_end(first, again, monkeypatch):
    """Each read had a minute, and the answer any number of reads."""
    monkeypatch.setattr("fewshot_nam.service.client._SECONDS_OF_AN_ANSWER", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run():
            opened, _ = listening.accept()
            with opened, contextlib.suppress(OSError):
                opened.recv(1000)
                opened.sendall(first)
                while True:
                    opened.sendall(again)
                    time.sleep(0.01)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        asking = Client(f"http://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(
            OSError, match=r"no answer from a fewshot-nam serve \(it has not ended within 0\.3 seconds: give fewer"
        ):
            asking.classes()
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("status", [301, 308])
def test_a_change_that_is_sent_elsewhere_was_not_made(status):
    """A gateway answered with a redirect and JSON, and the change passed for one that was made."""
    with server([answer({"message": "moved"}, status)]) as (url, _):
        client = Client(url, "token")
        with pytest.raises(ServerRefusal, match=f"answers {status}, but not as"):
            client.forget(["a"])
        client.close()


def test_an_answer_may_take_longer_than_a_connection(monkeypatch):
    """A large network on a CPU works for minutes on 32 images, and after one of silence the client gave all of them up."""
    monkeypatch.setattr("fewshot_nam.service.client._SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run():
            opened, _ = listening.accept()
            with opened, opened.makefile("rb") as lines:
                for pause in (0.6, 0.0):
                    request(lines)
                    time.sleep(pause)
                    opened.sendall(answer({"classes": []}))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        client = Client(f"http://127.0.0.1:{listening.getsockname()[1]}")
        assert client.classes() == client.classes() == {"classes": []}
        client.close()
        thread.join(30)


def test_a_server_that_is_not_there_is_said_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(OSError, match="no answer from a fewshot-nam serve"):
        Client(f"http://127.0.0.1:{port}").classes()


@pytest.mark.parametrize(("value", "seconds"), [("7", 7), ("soon", None), ("-1", None), ("9" * 20, None), ("", None)])
def test_a_refusal_says_its_status_and_when_to_try_again(value, seconds):
    given = answer({"error": "busy"}, 503).replace(b"Content-Type", b"Retry-After: %b\r\nContent-Type" % value.encode())
    with server([given]) as (url, _):
        client = Client(url)
        with pytest.raises(ServerRefusal, match="busy") as refused:
            client.classes()
        assert (refused.value.status, refused.value.retry_after) == (503, seconds)
        client.close()


def test_an_answer_that_is_cut_short_or_without_end_is_none(monkeypatch):
    monkeypatch.setattr("fewshot_nam.service.client._MOST_BYTES", 100)
    whole = answer({"classes": ["a" * 200], "threshold": None})
    for given in (whole, answer({"classes": ["a"], "threshold": None})[:-5]):
        with server([given]) as (url, _):
            client = Client(url)
            with pytest.raises(OSError, match="cut short, or larger than 100 bytes"):
                client.classes()


@pytest.mark.parametrize(
    "url",
    [
        "http://a b",
        "ftp://a",
        "http://",
        "http://a:70000",
        "127.0.0.1:8000",
        "http://a/\u00fc",
        "http://a..b",
        f"http://{'a' * 300}",
    ],
)
def test_what_is_no_address_is_said_in_one_line(url):
    with pytest.raises(ValueError, match="is no address of a server"):
        Client(url)


def test_a_token_that_no_request_could_carry_is_refused():
    for token in ("\u20ac", "a\r\nX: y"):
        with pytest.raises(ValueError, match="printable ASCII letters alone"):
            Client("http://127.0.0.1:1", token)

"""The server over HTTP: every route, its limits, the token, the description, the command, and kills in the middle of a save."""

import asyncio
import contextlib
import http.client
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot_nam.cli.main import main
from fewshot_nam.service.client import Client
from fewshot_nam.service.hosts import known_hosts
from fewshot_nam.service.serving import Limits, MemoryService, Metrics
from fewshot_nam.vision.memory_files import new_model, open_model
from fewshot_nam.vision.saving import save_head

pytest.importorskip("fastapi")
testclient = pytest.importorskip("fastapi.testclient")
uvicorn = pytest.importorskip("uvicorn")

from starlette.requests import Request  # noqa: E402 (it comes with FastAPI)

from fewshot_nam.service.http_server import Guard, Impatient, build  # noqa: E402 (it needs FastAPI)

HEADERS = {"Authorization": "Bearer secret"}


@contextlib.contextmanager
def serving(app):
    """Serve an application on a free port of this machine; give its address."""
    served = uvicorn.Server(uvicorn.Config(app, port=0, http=Impatient, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=served.run, daemon=True)
    thread.start()
    while not served.started:
        time.sleep(0.01)
    try:
        yield served.servers[0].sockets[0].getsockname()
    finally:
        served.should_exit = True
        thread.join(30)


def received(connection, pause=0.0):
    """Return how many bytes come before the connection is closed."""
    connection.settimeout(30)
    count = 0
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 20):
            count += len(part)
            time.sleep(pause)
    return count


@pytest.fixture
def memory(digits, tmp_path):
    path = tmp_path / "memory.safetensors"
    model, notes = new_model("conv4", path)
    for label in range(2):
        model.learn(digits[label][:3], f"digit {label}")
    save_head(path, model.head, model.backbone, notes)
    return path


@pytest.fixture
def server(memory):
    limits = Limits(images=4, body_bytes=20_000)
    with testclient.TestClient(build(MemoryService(memory, limits=limits), "secret")) as client:
        yield client


def form(files):
    return [("images", (file.name, file.read_bytes())) for file in files]


def test_predict_takes_one_image_as_the_body_or_several_as_a_form(server, digit_files):
    one = server.post("/predict", content=digit_files[0][20].read_bytes(), headers={"content-type": "image/png"})
    assert one.status_code == 200
    several = server.post("/predict?top=1", files=form([digit_files[0][20], digit_files[1][20]])).json()
    assert [found["label"] for found in several["predictions"]] == ["digit 0", "digit 1"]
    assert [len(found["ranking"]) for found in several["predictions"]] == [1, 1]
    assert one.json()["predictions"][0]["score"] == pytest.approx(several["predictions"][0]["score"], abs=1e-5)


def test_learn_calibrate_and_forget_need_the_token(server, memory, digit_files):
    image = digit_files[5][0].read_bytes()
    for path, body in (("/learn?label=x", {"content": image}), ("/calibrate", {"content": image})):
        assert server.post(path, **body).status_code == 401
        assert server.post(path, **body, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert server.post("/forget", json={"labels": ["digit 0"]}).status_code == 401
    before = memory.read_bytes()
    told = server.post("/learn?label=five", files=form(digit_files[5][:3]), headers=HEADERS)
    assert told.json() == {"label": "five", "learned": 3, "repeated": 0, "classes": 3, "writes": 1}
    assert memory.read_bytes() != before
    told = server.post("/calibrate?target=0.25", files=form(digit_files[7][:4]), headers=HEADERS).json()
    assert told["bound"] <= 0.25
    told = server.post("/forget", json={"labels": ["five"]}, headers=HEADERS).json()
    assert told["forgotten"] == ["five"]
    assert server.get("/classes").json()["classes"] == [{"label": f"digit {i}", "images": 3} for i in range(2)]
    assert server.get("/health").json() == {"status": "ok", "classes": 2, "writes": 3, "changes": True}


@pytest.mark.parametrize("path", ["/forget", "/learn", "/calibrate"])
@pytest.mark.parametrize(("token", "status"), [("secret", 401), (None, 403)])
def test_without_the_token_the_body_of_a_change_is_not_read(memory, path, token, status):
    """62 MB of JSON from anyone were parsed before the token was looked at: a minute without an answer to others."""
    answered = []

    async def unread():
        raise AssertionError("the body was read")

    async def send(message):
        answered.append(message.get("status"))

    async def ask():
        headers = [(b"content-type", b"application/json"), (b"host", b"localhost"), (b"content-length", b"60000000")]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"label=x", "headers": headers}
        await build(MemoryService(memory), token)(scope, unread, send)

    asyncio.run(ask())
    assert answered[0] == status


def test_names_to_forget_are_bounded(server, memory):
    before = memory.read_bytes()
    answer = server.post("/forget", content=b" " * 2_000_001, headers=HEADERS)
    assert answer.status_code == 413
    assert len(answer.text) < 300
    assert memory.read_bytes() == before
    body = server.get("/openapi.json").json()["paths"]["/forget"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"]["required"] == ["labels"]


def test_without_a_token_nothing_can_be_changed(memory, digit_files):
    for token in (None, ""):
        with testclient.TestClient(build(MemoryService(memory), token)) as client:
            for headers in ({}, HEADERS, {"Authorization": "Bearer "}):
                answer = client.post("/forget", json={"labels": ["digit 0"]}, headers=headers)
                assert answer.status_code == 403
            assert client.get("/health").json()["changes"] is False


def test_what_is_wrong_is_said_in_one_line_with_its_status(server, digit_files):
    wrong = [
        (server.post("/predict"), 400, "no images"),
        (server.post("/predict", content=b"no image"), 422, "images[0]: not an image"),
        (server.post("/predict", files=form(digit_files[0][:5])), 400, "form cannot be read"),
        (server.post("/predict", content=b"x" * 20_001), 413, "larger than 20,000 bytes"),
        (server.post("/predict", content=iter([b"x" * 15_000] * 3)), 413, "larger than 20,000 bytes"),
        (server.post("/predict", content=b"x", headers={"content-type": "multipart/form-data"}), 400, "form cannot"),
        (server.post("/learn?label=%20", files=form(digit_files[0][:1]), headers=HEADERS), 400, "no name"),
        (server.post("/forget", json={"labels": ["none"]}, headers=HEADERS), 400, "never written"),
        (server.post("/calibrate", files=form(digit_files[7][:1]), headers=HEADERS), 400, "19 samples"),
        (server.get("/none"), 404, "Not Found"),
        (server.get("/predict"), 405, "Not Allowed"),
    ]
    for answer, status, words in wrong:
        assert answer.status_code == status, answer.text
        assert words in answer.json()["error"]
        assert "\n" not in answer.json()["error"]
        assert "Traceback" not in answer.text
    assert server.post("/forget", json={"labels": []}, headers=HEADERS).status_code == 422
    assert server.post("/predict", content=digit_files[0][0].read_bytes()).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/predict?top=-5", b"", "top is how many of the best scores come back, from 1 to 100, got -5"),
        ("/predict?top=101", b"", "from 1 to 100, got 101"),
        ("/predict?top=many", b"", "top: Input should be a valid integer"),
        ("/learn", b"", "label: Field required"),
        ("/calibrate?target=few", b"", "target: Input should be a valid number"),
        ("/forget", b"{", "JSON"),
        ("/forget", b'{"labels": "digit 0"}', "labels: Input should be a valid array"),
        ("/forget", b'{"labels": [' + b"[" * 15_000, "error"),
        ("/forget", b'{"labels": [NaN, {}]}', "labels.0"),
        ("/forget", b'{"labels": ["\\ud800"]}', "error"),
        ("/learn?label=a%00b", b"", "cannot be shown"),
        ("/learn?label=%E2%80%AEgnp", b"", "cannot be shown"),  # written from right to left
        ("/learn?label=" + "x" * 3000, b"", "100 characters"),
        ("/calibrate?target=nan", None, "target"),
        ("/calibrate?target=-1", None, "target"),
        ("/calibrate?target=0.5&confidence=nan", None, "confidence"),
    ],
)
def test_what_is_malformed_is_said_in_one_line(server, memory, digit_files, path, body, words):
    before = memory.read_bytes()
    content = digit_files[7][0].read_bytes() if body is None else body
    headers = HEADERS | ({"content-type": "application/json"} if path == "/forget" else {})
    answer = server.post(path, content=content, headers=headers)
    assert answer.status_code in (400, 422), answer.text
    assert words in answer.text
    assert set(answer.json()) == {"error"}
    assert "\n" not in answer.json()["error"]
    assert memory.read_bytes() == before


@pytest.mark.parametrize("query", ["label=Caf%E9", "label=a&x=%ff", "label=%ED%A0%80", "%C3=1&label=a"])
def test_a_query_that_is_not_utf_8_is_refused(server, memory, digit_files, query):
    """Caf%E9 and Caf%E8 were learned as one class, whose last letter was the sign for what cannot be read."""
    before, image = memory.read_bytes(), digit_files[5][0].read_bytes()
    for path in ("/learn", "/predict", "/calibrate"):
        answer = server.post(f"{path}?{query}", content=image, headers=HEADERS)
        assert answer.status_code == 400
        assert "UTF-8" in answer.json()["error"]
    assert server.get(f"/classes?{query}").status_code == 400
    assert memory.read_bytes() == before
    assert server.post("/learn?label=Caf%C3%A9+noir", content=image, headers=HEADERS).json()["label"] == "Café noir"


@pytest.mark.parametrize("charset", ["punycode", "PunyCode", '"punycode"', "idna", "unicode_escape"])
def test_a_form_is_not_decoded_with_any_codec(server, charset):
    """A field of 1 MB in Punycode, which takes time with the square of the length, kept everyone waiting for minutes."""
    form = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"a-" + b"9" * 200 + b"\r\n--x--\r\n"
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    answer = server.post("/predict", content=form, headers=headers)
    assert answer.status_code == 400
    assert "UTF-8" in answer.json()["error"]


def test_data_that_look_like_the_end_of_a_part_are_refused(server):
    """Python's parser goes through them byte by byte: 100 MB kept everyone waiting for five seconds."""
    head = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    for count, said in ((200, "parts"), (10, "image")):
        form = head + b"\r\n--x!" * count + b"\r\n--x--\r\n"
        answer = server.post("/predict", content=form, headers=headers)
        assert answer.status_code in (400, 422)
        assert said in answer.json()["error"]


@pytest.mark.parametrize("path", ["/predict", "/forget"])
def test_a_body_in_tiny_chunks_is_refused_and_its_connection_closed(memory, path):
    """56 MB of them, of one address, kept everyone waiting for two minutes: each byte was an event of the loop."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving(build(MemoryService(memory), "secret")) as address, socket.create_connection(address) as connection:
        connection.settimeout(30)
        found = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(head.encode() + b"1\r\na\r\n" * 10_000)
            while more := connection.recv(1000):
                found += more
        assert found.startswith(b"HTTP/1.1 400")
        assert b"512 bytes or more" in found
        asking = http.client.HTTPConnection(*address, timeout=30)
        asking.request("POST", "/predict", iter([b"a" * 1000] * 50), encode_chunked=True)
        assert b"image" in asking.getresponse().read()  # it is read, and is none
        asking.close()


def test_a_request_with_two_lengths_is_refused_and_its_connection_closed(memory):
    """Content-Length and Transfer-Encoding together: a proxy that believes the other one takes the body for a request."""
    sent = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with serving(build(MemoryService(memory))) as address, socket.create_connection(address) as connection:
        connection.settimeout(30)
        connection.sendall(sent + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        found = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1000):
                found += part
    assert found.startswith(b"HTTP/1.1 400")
    assert found.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("Bearer secret", 200),
        ("bearer secret", 200),
        ("BEARER  secret", 200),
        ("Bearer Secret", 401),
        ("Basic secret", 401),
        ("Bearersecret", 401),
        ("secret", 401),
        ("Bearer", 401),
        ("Bearer secret x", 401),
    ],
)
def test_the_name_of_the_scheme_is_of_any_case_and_the_token_of_its_own(server, given, status):
    answer = server.post("/forget", json={"labels": ["digit 0"]}, headers={"Authorization": given})
    assert answer.status_code == status


@pytest.mark.parametrize("kind", ["NaN", "infinite", "white", "black"])
def test_pixels_that_are_no_numbers_are_refused_or_answered_with_numbers(server, kind):
    value = {"NaN": np.nan, "infinite": np.inf, "white": 1.0, "black": 0.0}[kind]
    written = io.BytesIO()
    Image.fromarray(np.full((40, 40), value, np.float32)).save(written, "TIFF")
    answer = server.post("/predict", content=written.getvalue())
    assert answer.status_code in (200, 422), answer.text
    if answer.status_code == 200:
        assert abs(answer.json()["predictions"][0]["score"]) < 1e6


def test_images_that_are_too_large_together_are_413_and_one_alone_is_422(memory, digit_files):
    """A request that a client may divide has another status than one that it may not; an image has 1,600 pixels here."""
    limits = Limits(pixels=2000, request_pixels=3500)
    big = io.BytesIO()
    Image.new("RGB", (50, 50)).save(big, "PNG")
    with testclient.TestClient(build(MemoryService(memory, limits=limits))) as client:
        assert client.post("/predict", files=form(digit_files[0][:2])).status_code == 200
        answer = client.post("/predict", files=form(digit_files[0][:3]))
        assert answer.status_code == 413
        assert "4,800 pixels are too many for one request" in answer.json()["error"]
        answer = client.post("/predict", content=big.getvalue())
        assert answer.status_code == 422
        assert "images[0]" in answer.json()["error"]


def test_one_on_the_loopback_answers_to_its_names_alone(memory):
    with testclient.TestClient(build(MemoryService(memory), "secret", known_hosts("127.0.0.1"))) as client:
        assert client.get("/classes", headers={"host": "127.0.0.1:8000"}).status_code == 200
        for headers in ({"host": "evil.example"}, {"host": "127.0.0.1", "origin": "http://evil.example"}):
            answer = client.get("/classes", headers=headers)
            assert answer.status_code == 403
            assert "digit" not in answer.text


def test_a_name_of_a_proxy_is_known_with_any_port_of_its_pages(memory):
    hosts = known_hosts("127.0.0.1", ["teach.example"])
    with testclient.TestClient(build(MemoryService(memory), "secret", hosts, ["teach.example"])) as client:
        for origin, status in (("https://teach.example:8443", 200), ("http://127.0.0.1:9", 403)):
            answer = client.get("/classes", headers={"host": "127.0.0.1:8000", "origin": origin})
            assert answer.status_code == status


def test_a_file_that_is_replaced_by_none_is_the_servers_fault_and_mends_itself(server, memory, digit_files):
    kept, image = memory.read_bytes(), digit_files[0][0].read_bytes()
    for wrong in (b"no memory", kept[:500]):
        memory.write_bytes(wrong)
        answer = server.post("/predict", content=image)
        assert answer.status_code == 500
        assert "replaced" in answer.json()["error"]
    memory.unlink()
    assert server.post("/predict", content=image).status_code == 500
    os.mkfifo(memory)  # to open it would wait for a writer, and all requests with it
    for path in ("/health", "/classes"):
        answer = server.get(path)
        assert answer.status_code == 500
        assert "no regular file" in answer.json()["error"]
    memory.unlink()
    memory.write_bytes(kept)
    assert server.post("/predict", content=image).status_code == 200


def test_names_that_are_not_utf_8_leave_every_answer_readable(memory, digit_files, tmp_path):
    model, notes = open_model(memory)
    model.head._written_classes[1] = "caf\udce9"  # as files of the first releases may hold it
    odd = os.fsdecode(bytes(tmp_path) + b"/caf\xe9")
    try:
        os.mkdir(odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    path = Path(odd, "m.safetensors")
    save_head(path, model.head, model.backbone, notes)
    with testclient.TestClient(build(MemoryService(path), "secret"), raise_server_exceptions=False) as client:
        answer = client.post("/predict", content=digit_files[1][0].read_bytes())
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["label"] == r"caf\udce9"
        assert client.get("/classes").json()["classes"][1]["label"] == r"caf\udce9"
        forgotten = client.post("/forget", json={"labels": [r"caf\udce9"]}, headers=HEADERS)
        assert forgotten.status_code == 200
        path.write_bytes(b"no memory")
        answer = client.get("/classes")
        assert answer.status_code == 500
        assert r"caf\udce9" in answer.json()["error"]


def test_health_is_answered_while_as_many_requests_as_may_wait_do(memory, digit_files):
    service, go_on = MemoryService(memory, limits=Limits(waiting=60)), threading.Event()
    answer = service.predict
    service.predict = lambda *given: go_on.wait(60) and answer(*given)
    image = digit_files[0][0].read_bytes()
    with testclient.TestClient(build(service)) as client, ThreadPoolExecutor(45) as pool:
        waiting = [pool.submit(client.post, "/predict", content=image) for _ in range(45)]
        try:
            for _ in range(3):
                assert client.get("/health").json()["status"] == "ok"
                assert client.get("/classes").status_code == 200
        finally:
            go_on.set()
        assert {one.result().status_code for one in waiting} <= {200, 503}


def test_answers_do_not_wait_for_changes_that_wait_for_the_file(memory, digit_files):
    """65 changes that waited for another program kept every reader waiting too."""
    service, go_on = MemoryService(memory, limits=Limits(waiting=4)), threading.Event()
    forget = service.forget
    service.forget = lambda *given: go_on.wait(60) and forget(*given)
    image = digit_files[0][0].read_bytes()
    with testclient.TestClient(build(service, "secret")) as client, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(client.post, "/forget", json={"labels": ["no"]}, headers=HEADERS) for _ in range(8)]
        try:
            asked = ThreadPoolExecutor(1).submit(client.post, "/predict", content=image)
            assert asked.result(timeout=30).status_code == 200
        finally:
            go_on.set()
        assert {one.result().status_code for one in waiting} == {400}


async def guarded(guard, *chunks, client="192.0.2.1"):
    """Send a body in chunks, the rest of which never comes; return the status."""
    messages, sent = list(chunks), []

    async def receive():
        if messages:
            return {"type": "http.request", "body": messages.pop(0), "more_body": True}
        return await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    await guard({"type": "http", "headers": [], "client": (client, 1)}, receive, send)
    return sent[0]["status"]


async def reads_all(scope, receive, send):
    while (await receive())["more_body"]:
        pass


def test_cookies_are_not_read():
    """FastAPI reads those of every request: ten of 60 kB took 46 seconds, in which nobody was answered."""
    passed = []

    async def app(scope, receive, send):
        passed.extend(scope["headers"])

    scope = {"type": "http", "headers": [(b"cookie", b"a=b"), (b"accept", b"*/*")], "client": ("", 1)}
    asyncio.run(Guard(app, 100, Metrics())(scope, None, None))
    assert passed == [(b"accept", b"*/*")]


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(Guard, "SECONDS", 0.2)
    guard = Guard(reads_all, 100, Metrics())
    assert asyncio.run(guarded(guard, b"some")) == 408
    assert not guard._bodies


def test_large_bodies_at_once_are_bounded_together(monkeypatch):
    monkeypatch.setattr(Guard, "SECONDS", 0.5)
    guard = Guard(reads_all, 100, Metrics())

    async def many():
        clients = [f"192.0.2.{i % 4}" for i in range(12)]
        return await asyncio.gather(*(guarded(guard, b"x" * 50, b"x" * 50, client=client) for client in clients))

    found = asyncio.run(many())
    assert found.count(503) >= 2
    assert set(found) == {503, 408}
    assert not guard._bodies


def test_bodies_of_one_client_that_do_not_come_shut_out_no_other(monkeypatch):
    """Eight large ones from one address, and for two minutes no image of anyone was answered."""
    monkeypatch.setattr(Guard, "SECONDS", 0.5)
    guard = Guard(reads_all, 100, Metrics())

    async def many():
        stalled = [asyncio.create_task(guarded(guard, b"x" * 90)) for _ in range(20)]
        await asyncio.sleep(0.1)
        other = await guarded(guard, b"x" * 90, client="192.0.2.2")
        return [await one for one in stalled], other

    stalled, other = asyncio.run(many())
    assert stalled.count(503) == 16
    assert other == 408
    assert not guard._bodies


def test_a_client_that_goes_away_in_its_request_is_no_error():
    async def disconnects(scope, receive, send):
        await Request(scope, receive).body()

    async def gone():
        messages = iter(
            [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}],
        )

        async def receive():
            return next(messages)

        await guard({"type": "http", "method": "POST", "headers": []}, receive, None)

    metrics = Metrics()
    guard = Guard(disconnects, 100, metrics)
    asyncio.run(gone())
    assert metrics._requests == {("other", 499): 1}
    assert not guard._bodies


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\nX: "])
def test_a_connection_that_sends_no_whole_request_is_closed(memory, monkeypatch, sent):
    monkeypatch.setattr(Impatient, "SECONDS", 0.3)
    with (
        serving(build(MemoryService(memory))) as address,
        socket.create_connection(address) as kept,
        kept.makefile("rb") as lines,
    ):
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in lines.readline()
        with socket.create_connection(address) as slow:
            slow.settimeout(30)
            slow.sendall(sent)
            assert slow.recv(1000) == b""


def test_a_connection_that_does_not_take_its_answer_is_closed(monkeypatch):
    """Those who read nothing held their connections for good: a thousand of them, and no one else was answered."""
    monkeypatch.setattr(Impatient, "SECONDS_TO_TAKE", 0.3)
    ended = threading.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 30_000_000})
        ended.set()

    with serving(app) as address:
        with socket.create_connection(address) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert ended.wait(30)
            time.sleep(1.0)
            assert received(idle) < 30_000_000
        with socket.create_connection(address) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert received(slow, pause=0.03) > 30_000_000


def test_a_port_that_is_taken_is_an_error_of_one_line(memory, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(memory), "--port", str(taken.getsockname()[1])]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: cannot listen on 127.0.0.1")
    assert said.count("\n") == 1


@pytest.mark.parametrize("token", ["schlüssel", "a\tb", " a", "a\n"])
def test_a_token_that_no_client_could_send_is_refused_at_the_start(memory, capsys, monkeypatch, token):
    """The server started, and answered 401 to every client for good."""
    monkeypatch.setenv("FEWSHOT_NAM_TOKEN", token)
    assert main(["serve", str(memory), "--port", "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: FEWSHOT_NAM_TOKEN must be printable ASCII")
    assert said.count("\n") == 1


def test_all_of_it_is_described_and_nothing_is_fetched_for_that(server):
    described = server.get("/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/learn", "/forget", "/calibrate", "/classes", "/health", "/metrics"}
    assert "multipart/form-data" in described["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert server.get("/docs").status_code == server.get("/redoc").status_code == 404
    for path, methods in described["paths"].items():
        for what in methods.values():
            for status in ("4XX", "5XX"):
                assert "error" in what["responses"][status]["content"]["application/json"]["schema"]["properties"]
            assert ("security" in what) == (path in ("/learn", "/forget", "/calibrate"))
    assert set(described["components"]["securitySchemes"]) == {"HTTPBearer"}
    assert "detail" not in json.dumps(described)  # FastAPI's own errors, which this server does not send
    (top,) = described["paths"]["/predict"]["post"]["parameters"]
    assert (top["schema"]["minimum"], top["schema"]["maximum"]) == (1, 100)


def test_metrics_count_routes_and_answers(server, digit_files):
    server.post("/predict", files=form(digit_files[0][:3]))
    server.get("/../../etc/passwd")
    text = server.get("/metrics").text
    assert 'fewshot_nam_requests_total{route="/predict",status="200"} 1' in text
    assert 'fewshot_nam_images_total{answer="accepted"} 3' in text
    assert "passwd" not in text


class Command:
    """``fewshot-nam serve`` in a process of its own."""

    def __init__(self, memory: Path, *words: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "fewshot_nam.cli.main", "serve", str(memory), "--port", str(port), *words]
        self.process = subprocess.Popen(
            command, env={**os.environ, "FEWSHOT_NAM_TOKEN": "secret"}, stderr=subprocess.PIPE, text=True
        )
        self.client = Client(self.url, "secret")
        end = time.monotonic() + 120
        while True:
            try:
                self.client.classes()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(self.process.stderr.read()) from None
                time.sleep(0.05)

    def stop(self, how: int = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        self.process.communicate(timeout=60)
        return self.process.returncode


def test_a_server_of_all_addresses_answers_to_no_name_of_a_web_site(memory):
    """A page whose name was let point to the container read its answers through the browser of a user."""
    served = Command(memory, "--host", "0.0.0.0", "--allow-host", "shop.example")
    try:
        found = {}
        for host in ("evil.example", "shop.example", "shop.example.", "192.0.2.1", "localhost"):
            connection = http.client.HTTPConnection(served.url.partition("://")[2], timeout=30)
            connection.request("GET", "/classes", headers={"Host": f"{host}:8000"})
            found[host] = connection.getresponse().status
            connection.close()
        assert found == {"evil.example": 403, **dict.fromkeys(list(found)[1:], 200)}
    finally:
        served.stop()


def test_the_command_answers_the_shell_and_stops_in_peace(memory, digit_files, tmp_path, capsys, monkeypatch):
    served = Command(memory)
    try:
        files = [str(digit_files[0][20]), str(digit_files[1][20])]
        assert main(["predict", *files, "--server", served.url]) == 0
        by_server = capsys.readouterr().out
        assert main(["predict", *files, "--memory", str(memory), "--quiet"]) == 0
        assert by_server == capsys.readouterr().out
        assert main(["predict", *files, "--server", served.url, "--unknown"]) == 2
        assert "no threshold" in capsys.readouterr().err
        unknown = [file for label in range(4, 8) for file in digit_files[label][:10]]
        served.client.calibrate(unknown, 0.05)
        assert main(["predict", str(digit_files[4][0]), "--server", served.url, "--unknown", "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["threshold"] is not None
        assert set(answer["predictions"][0]) == {"picture", "label", "best", "score", "accepted"}
        text = tmp_path / "notes.png"
        text.write_text("no image")
        assert main(["predict", str(text), files[0], "--server", served.url]) == 2
        assert f"{text}: not an image" in capsys.readouterr().err
        assert main(["predict", str(text), files[0], "--server", served.url, "--skip-unreadable"]) == 0
        out, err = capsys.readouterr()
        assert out.count("\n") == 1
        assert "notes.png" in err
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{files[0]}\n{text}\n/none.png\n"))
        assert main(["predict", "-", "--server", served.url]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("\t")[1] for line in lines] == ["digit 0", "", ""]
        assert served.stop() in (0, -signal.SIGTERM)
    finally:
        served.process.kill()
    assert main(["predict", files[0], "--server", served.url]) == 2
    assert "no answer from a fewshot-nam serve" in capsys.readouterr().err
    assert main(["predict", files[0], "--server", "nonsense"]) == 2
    assert "no address of a server" in capsys.readouterr().err


def test_killed_in_the_middle_of_saves_nothing_acknowledged_is_lost(memory, digit_files):
    """By kill -9 at a random moment; ``scripts/benchmarks/serve_load.py`` does it many times, also with several processes."""
    chance = random.Random(0)
    known = {"digit 0", "digit 1"}
    served = Command(memory)
    killer = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            f"import os, time; time.sleep({0.3 + chance.random():.3f}); os.kill({served.process.pid}, 9)",
        ]
    )
    pending, i = "", 0
    try:
        while True:
            pending = f"class {i}"
            served.client.learn([digit_files[i % 10][5 + i // 10]], pending)
            known.add(pending)
            if i % 3 == 2:
                pending = f"class {i - 1}"
                served.client.forget([pending])
                known.remove(pending)
            i += 1
    except (OSError, ValueError):  # killed: what was pending may be in the file or not
        pass
    assert i > 0
    assert killer.wait(30) == 0
    served.process.communicate(timeout=30)
    found = {str(label) for label in open_model(memory)[0].classes}
    assert found - {pending} == known - {pending}


def test_a_worker_that_dies_while_it_starts_is_not_waited_for():
    """A server waited a minute for its answer, in which it neither ended nor replaced another."""
    from fewshot_nam.service.workers import Worker

    worker = Worker(uvicorn.Config("nowhere:at_all", workers=2), [])
    worker.start()
    os.kill(worker.pid, signal.SIGSTOP)  # before it can answer
    killer = threading.Timer(0.5, worker.process.kill)
    killer.start()
    began = time.monotonic()
    assert not worker.is_alive(timeout=60)
    assert not worker.is_alive(timeout=60)
    assert time.monotonic() - began < 20
    worker.join()


def test_a_server_of_several_processes_looks_after_its_workers(memory):
    served = Command(memory, "--workers", "2")
    first = _children(served.process.pid)
    os.kill(first[-1], signal.SIGKILL)
    end = time.monotonic() + 60
    while len(now := _children(served.process.pid)) < len(first) or first[-1] in now:
        assert time.monotonic() < end
        time.sleep(0.1)
    os.kill(max(now), signal.SIGSTOP)  # it starts, and the server waits for its first answer
    time.sleep(2)
    os.kill(max(now), signal.SIGKILL)
    time.sleep(0.2)
    served.process.terminate()
    served.process.communicate(timeout=45)


def _children(process):
    return sorted(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


@pytest.mark.parametrize("hang_up", [True, False])
def test_a_request_whose_client_hung_up_is_not_worked_on(memory, digit_files, hang_up):
    service = MemoryService(memory)
    seen, predict = [], service.predict

    def noted(images, top, is_gone):
        go_on.wait(30)
        seen.append(is_gone())
        return predict(images, top)

    service.predict, go_on = noted, threading.Event()
    image = digit_files[0][0].read_bytes()
    with serving(build(service)) as address:
        with socket.create_connection(address) as asking:
            asking.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(image) + image)
            time.sleep(0.5)
            if not hang_up:
                go_on.set()
                assert asking.recv(15) == b"HTTP/1.1 200 OK"
        time.sleep(0.5)
        go_on.set()
    assert seen == [hang_up]


def test_workers_end_with_a_server_that_is_killed(memory):
    """They went on with the port and the old token, and the server could not be started again."""
    served = Command(memory, "--workers", "2")
    served.process.kill()
    served.process.wait(30)
    port = int(served.url.rpartition(":")[2])
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))
            return
        time.sleep(0.2)
    pytest.fail("workers still listen")

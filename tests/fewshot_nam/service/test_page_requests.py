"""Requests of the page: bodies are bounded in length, parts and time, all together, and come whole to what is behind."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from fewshot_nam.service import page_requests
from fewshot_nam.service.page_requests import PageRequests

# A page without visitors.
BLOCKS = SimpleNamespace(_queue=SimpleNamespace(pending_messages_per_session={}), fns={})
JOIN = "/gradio_api/queue/join"
RESET = "/gradio_api/reset/"  # a body of any kind goes through


class Behind:
    """An application that keeps what it was sent."""

    def __init__(self):
        self.bodies = []

    async def __call__(self, scope, receive, send):
        message = await receive()
        self.bodies.append(message["body"])
        assert not message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def posted(app, chunks, path=JOIN, wait=0.0):
    sent, left = [], list(chunks)

    async def receive():
        await asyncio.sleep(wait)
        chunk = left.pop(0) if left else None
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": path, "headers": []}, receive, send)
    return sent[0]["status"] if sent else None


@pytest.fixture
def behind(monkeypatch):
    monkeypatch.setattr(page_requests, "LONGEST_BODY", 1000)
    monkeypatch.setattr(page_requests, "MOST_BODIES", 1500)
    monkeypatch.setattr(page_requests, "_MOST_PARTS", 50)
    monkeypatch.setattr(page_requests, "_SECONDS", 0.5)
    return Behind()


def test_a_body_comes_whole_to_what_is_behind(behind):
    function = SimpleNamespace(inputs=[], concurrency_id="other")
    app = PageRequests(behind, SimpleNamespace(_queue=BLOCKS._queue, fns={0: function}))
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "one", "more": 900 * "a"}).encode()
    paths = (JOIN, "/queue/join", "/gradio_api/stream/a1-_b", "/gradio_api/stream/a1-_b/close", RESET)
    for path in paths:
        assert asyncio.run(posted(app, [body[:400], b"", body[400:]], path)) == 200
    assert behind.bodies == [body] * len(paths)
    assert app._coming == 0


@pytest.mark.parametrize(
    ("chunks", "wait", "status"),
    [
        ([b"a" * 600, b"b" * 401], 0.0, 413),
        ([b"[" * 30, b"," * 21], 0.0, 413),
        ([b"{" * 51], 0.0, 413),
        ([b"no JSON"], 0.0, 400),
        ([b"a"] * 20, 0.1, 408),
    ],
)
def test_a_body_that_is_too_long_too_involved_or_too_slow_is_refused(behind, chunks, wait, status):
    app = PageRequests(behind, BLOCKS)
    assert asyncio.run(posted(app, chunks, wait=wait)) == status
    assert behind.bodies == []
    assert app._coming == 0


def test_bodies_are_bounded_together_and_a_client_that_goes_takes_no_room(behind):
    app = PageRequests(behind, BLOCKS)

    async def together():
        return await asyncio.gather(
            *(posted(app, [b'"' + b"a" * 799, b"b" * 99 + b'"'], RESET, wait=0.05) for _ in range(2))
        )

    assert sorted(asyncio.run(together())) == [200, 503]

    async def gone():
        async def receive():
            return {"type": "http.disconnect"}

        async def send(message):
            raise AssertionError("there is nobody to answer")

        await app({"type": "http", "method": "POST", "path": JOIN, "headers": []}, receive, send)

    asyncio.run(gone())
    assert app._coming == 0
    assert len(behind.bodies) == 1


@pytest.mark.parametrize("kind", [page_requests.IMAGES, page_requests.EXPORTS])
def test_a_visitor_has_few_works_at_a_time_and_few_wait_in_all(behind, kind):
    """Few requests held the page for minutes: images of 64 million pixels, given eight times, and a hundred exports."""
    part = SimpleNamespace(get_block_name=lambda: "textbox")
    work = SimpleNamespace(inputs=[part], concurrency_id=kind)
    other = SimpleNamespace(inputs=[part], concurrency_id="other")

    def event(visitor):
        return SimpleNamespace(session_hash=visitor, concurrency_id=kind)

    waiting = [event("one")]
    queue = SimpleNamespace(
        pending_messages_per_session={},
        event_queue_per_concurrency_id={kind: SimpleNamespace(queue=waiting)},
        active_jobs=[None, [event("one")], [event("two")]],
    )
    app = PageRequests(behind, SimpleNamespace(_queue=queue, fns={1: work, 2: other}))

    def status(visitor, number):
        body = json.dumps({"data": [""], "fn_index": number, "session_hash": visitor}).encode()
        return asyncio.run(posted(app, [body]))

    assert (status("one", 1), status("one", 2), status("two", 1), status("new", 1)) == (503, 200, 200, 200)
    waiting += [event(f"visitor {i}") for i in range(16)]
    assert (status("new", 1), status("new", 2)) == (503, 200)


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("textbox", ["", "a" * 10_000], [None, 5, ["a"], "a" * 10_001]),
        ("slider", [5, 0.5], [None, "5", True, [5], 10**400]),
        ("image", [None, {"path": "a"}, {"url": "data:", "path": None}], ["x", [{}], {"path": 5}, {"url": [5]}]),
        ("file", [None, [], [{"path": "a"}]], ["x", {"path": "a"}, ["a"], [None], [{"path": 5}]]),
        ("state", [None, 5], []),
    ],
)
def test_values_that_are_not_of_the_page_are_refused(monkeypatch, kind, right, wrong):
    """Each was a bare "Error", with a traceback in the log; a text could be as long as a body."""
    monkeypatch.setattr(page_requests, "_SECONDS", 20)
    part = SimpleNamespace(get_block_name=lambda: kind)
    function = SimpleNamespace(inputs=[part], concurrency_id="other")
    app = PageRequests(Behind(), SimpleNamespace(_queue=BLOCKS._queue, fns={1: function}))

    def status(data, number=1, **more):
        body = {"data": data, "fn_index": number, "session_hash": "one"} | more
        return asyncio.run(posted(app, [json.dumps(body).encode()]))

    assert [status([one]) for one in right] == [200] * len(right)
    assert [status([one]) for one in wrong] == [400] * len(wrong)
    assert [status(data) for data in ([], [right[0], right[0]], None, {})] == [400] * 4
    assert status([{"path": "\0"}]) == 400
    for event in ({"label": "a"}, 0.1, "text", None):  # a slider sends its value
        assert status([right[0]], event_data=event) == 200
    # Gradio takes "1" and 1.0 for 1: what is called so was neither checked nor counted.
    assert [status([right[0]], number) for number in ("1", 1.0, True, None, 2, -1, [1])] == [400] * 7
    assert [status([right[0]], session_hash=visitor) for visitor in (None, 5, ["one"])] == [400] * 3
    assert asyncio.run(posted(app, [b"5"])) == 400


@pytest.mark.parametrize(
    ("site", "sent"),
    [
        (None, {b"content-security-policy": b"frame-ancestors 'self'", b"x-frame-options": b"SAMEORIGIN"}),
        ("https://a.example", {b"content-security-policy": b"frame-ancestors 'self' https://a.example"}),
    ],
)
def test_no_other_site_shows_the_page_within_its_own(behind, site, sent):
    """What its user clicked on there was a click on the page."""
    app, found = PageRequests(behind, BLOCKS, framed_by=site), []

    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message):
        found.append(message)

    for method, path in (("GET", "/"), ("GET", "/monitoring"), ("POST", JOIN)):
        found.clear()
        asyncio.run(app({"type": "http", "method": method, "path": path, "headers": []}, receive, send))
        headers = dict(found[0]["headers"])
        assert {name: headers[name] for name in sent} == sent
        assert (b"x-frame-options" in headers) == (site is None)

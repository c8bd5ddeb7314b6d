"""Requests of the page: bodies are bounded in length, parts and time, all together, and come whole to what is behind."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from fewshot_nam.service import page_requests, page_values
from fewshot_nam.service.page_requests import PageRequests

# A page without visitors.


def queue_of(waiting=(), running=()):
    """A queue of Gradio's in which these events wait and run."""
    by_kind: dict = {}
    for event in waiting:
        by_kind.setdefault(event.concurrency_id, SimpleNamespace(queue=[])).queue.append(event)
    return SimpleNamespace(
        pending_messages_per_session={},
        pending_event_ids_session={},
        event_ids_to_events={},
        event_queue_per_concurrency_id=by_kind,
        active_jobs=[None, *([event] for event in running)],
    )


def event(visitor, kind, address=""):
    request = SimpleNamespace(scope={"client": (address, 0)})
    return SimpleNamespace(session_hash=visitor, concurrency_id=kind, request=request)


def page_of(fns, queue=None):
    """A page with these functions, which a button calls, and one more component, of HTML."""
    for function in fns.values():
        function.targets = getattr(function, "targets", [(0, "click")])
    blocks = {0: SimpleNamespace(get_block_name=lambda: "button"), 1: SimpleNamespace(get_block_name=lambda: "html")}
    return SimpleNamespace(_queue=queue or queue_of(), fns=fns, blocks=blocks)


BLOCKS = page_of({})
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


async def posted(app, chunks, path=JOIN, wait=0.0, address=""):
    sent, left = [], list(chunks)

    async def receive():
        await asyncio.sleep(wait)
        chunk = left.pop(0) if left else None
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "client": (address, 0)}
    await app(scope, receive, send)
    return sent[0]["status"] if sent else None


@pytest.fixture
def behind(monkeypatch):
    monkeypatch.setattr(page_requests, "LONGEST_BODY", 1000)
    monkeypatch.setattr(page_requests, "MOST_BODIES", 2000)
    monkeypatch.setattr(page_requests, "_MOST_PARTS", 50)
    monkeypatch.setattr(page_requests, "_SECONDS", 2.0)
    return Behind()


def test_a_body_comes_whole_to_what_is_behind(behind):
    function = SimpleNamespace(inputs=[], concurrency_id="other")
    app = PageRequests(behind, page_of({0: function}))
    app.blocks._queue.event_ids_to_events["a1-_b"] = SimpleNamespace(fn=function, session_hash="one")
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "one", "more": 900 * "a"}).encode()
    paths = (JOIN, "/queue/join", "/gradio_api/stream/a1-_b", "/gradio_api/stream/a1-_b/close", RESET)
    for path in paths:
        assert asyncio.run(posted(app, [body[:400], b"", body[400:]], path)) == 200
    assert behind.bodies == [body] * len(paths)
    assert not app._coming


@pytest.mark.parametrize(
    ("chunks", "wait", "status"),
    [
        ([b"a" * 600, b"b" * 401], 0.0, 413),
        ([b"[" * 30, b"," * 21], 0.0, 413),
        ([b"{" * 51], 0.0, 413),
        ([b"no JSON"], 0.0, 400),
        # Gradio answers with what it was given: these ended in a traceback of its own.
        *(
            ([body], 0.0, 400)
            for body in (b'{"a": NaN}', b"[1e999]", b"[-Infinity]", rb'{"a": "\ud800"}', b'["\xed\xa0\x80"]')
        ),
        ([b"a"] * 20, 0.2, 408),
    ],
)
def test_a_body_that_is_too_long_too_involved_or_too_slow_is_refused(behind, chunks, wait, status):
    app = PageRequests(behind, BLOCKS)
    assert asyncio.run(posted(app, chunks, wait=wait)) == status
    assert behind.bodies == []
    assert not app._coming


def test_bodies_are_bounded_together_and_a_client_that_goes_takes_no_room(behind):
    app = PageRequests(behind, BLOCKS)

    async def together(*addresses):
        chunks = [b'"' + b"a" * 799, b"b" * 99 + b'"']
        return await asyncio.gather(*(posted(app, chunks, RESET, wait=0.05, address=one) for one in addresses))

    assert sorted(asyncio.run(together("192.0.2.1", "192.0.2.2", "192.0.2.3"))) == [200, 200, 503]
    # One address kept all others from any request by bodies that it did not finish.
    assert sorted(asyncio.run(together("192.0.2.1", "192.0.2.1", "192.0.2.2"))) == [200, 200, 503]
    assert asyncio.run(together("192.0.2.1", "192.0.2.1", "192.0.2.2"))[2] == 200
    behind.bodies.clear()

    async def gone():
        async def receive():
            return {"type": "http.disconnect"}

        async def send(message):
            raise AssertionError("the client is gone, and no answer is sent")

        await app({"type": "http", "method": "POST", "path": JOIN, "headers": []}, receive, send)

    asyncio.run(gone())
    assert not app._coming
    assert behind.bodies == []


def test_images_are_taken_from_what_was_uploaded(behind, tmp_path):
    """Gradio refused other files too, with a traceback in the log for each."""
    function = SimpleNamespace(inputs=[], concurrency_id="other")
    (tmp_path / "uploads").mkdir()
    for place in ("uploads/a.png", "b.png"):
        (tmp_path / place).write_bytes(b"")
    app = PageRequests(behind, page_of({0: function}), uploads=tmp_path / "uploads")

    def status(path):
        body = {"data": [], "fn_index": 0, "session_hash": "one", "more": [{"path": path}]}
        return asyncio.run(posted(app, [json.dumps(body).encode()]))

    assert [status(one) for one in (str(tmp_path / "uploads/a.png"), "", None)] == [200, 200, 200]
    others = ("b.png", "uploads/none.png", "uploads/../b.png", "uploads", 300 * "a", "")
    assert [status(str(tmp_path / one)) for one in others] == [400] * len(others)


def test_a_long_path_is_refused_before_it_is_resolved(behind, tmp_path, monkeypatch):
    """One of 3 MB kept everyone waiting for minutes: to resolve it takes time with the square of its length."""
    app = PageRequests(behind, page_of({0: SimpleNamespace(inputs=[], concurrency_id="other")}), uploads=tmp_path)
    monkeypatch.setattr(page_requests, "LONGEST_BODY", 10**6)
    monkeypatch.setattr(page_requests, "MOST_BODIES", 10**7)
    monkeypatch.setattr(page_requests.Path, "resolve", lambda _: pytest.fail("it was resolved"))
    for path in (f"{tmp_path}/{'a' * 5000}", f"{tmp_path}{20 * '/a/..'}/a.png", 20 * "\\a"):
        body = {"data": [], "fn_index": 0, "session_hash": "one", "more": [{"path": path}]}
        assert asyncio.run(posted(app, [json.dumps(body).encode()])) == 400


def test_work_that_has_begun_is_not_cancelled(behind):
    """Gradio forgot it, while its thread went on: an address had as many works as it cancelled, and threads without end."""
    body = {"session_hash": "one", "fn_index": 0, "event_id": "a"}
    app = PageRequests(behind, page_of({0: SimpleNamespace(inputs=[], concurrency_id="other")}))
    for path in ("/cancel", "/gradio_api/cancel", "/gradio_api/cancel/"):
        assert asyncio.run(posted(app, [json.dumps(body).encode()], path)) == 404
    assert behind.bodies == []


def test_what_is_clicked_has_a_short_name(behind, monkeypatch):
    """One click on "forget" with a name of 400 kB kept everyone waiting for a minute and a half."""
    monkeypatch.setattr(page_requests, "LONGEST_BODY", 10**6)
    monkeypatch.setattr(page_requests, "MOST_BODIES", 10**7)
    monkeypatch.setattr(page_requests, "_SECONDS", 20)
    app = PageRequests(behind, page_of({0: SimpleNamespace(inputs=[], concurrency_id="other", targets=[(1, "click")])}))

    def status(event):
        body = {"data": [], "fn_index": 0, "session_hash": "one", "event_data": event}
        return asyncio.run(posted(app, [json.dumps(body).encode()]))

    assert [status(one) for one in ({"label": "mug"}, {"label": 10_000 * "a"}, "mug", None)] == [200, 400, 400, 400]


def test_a_request_has_as_many_files_as_images_may_be_given(behind, monkeypatch):
    """24,000 in one request kept everyone waiting for six seconds."""
    monkeypatch.setattr(page_requests, "MOST_IMAGES", 3)
    function = SimpleNamespace(inputs=[], concurrency_id="other")
    app = PageRequests(behind, page_of({0: function}))

    def status(count):
        body = {"data": [], "fn_index": 0, "session_hash": "one", "more": count * [{"path": "a"}]}
        return asyncio.run(posted(app, [json.dumps(body).encode()]))

    assert [status(3), status(4)] == [200, 413]


def test_answers_are_given_to_visitors_who_asked(behind):
    """Gradio began an answer to any other name, and then raised: a traceback in the log."""
    queue = queue_of()
    queue.pending_messages_per_session["one"] = None
    app = PageRequests(behind, page_of({}, queue))
    path = "/gradio_api/queue/data"
    found = [asyncio.run(got(app, path, query=query)) for query in (b"session_hash=one", b"session_hash=two", b"")]
    assert found == [200, 404, 404]
    for query in (b"session_hash=one&session_hash=", b"session_hash=two&session_hash=one"):  # Gradio takes the last
        assert asyncio.run(got(app, path, query=query)) == 404


async def got(app, path, method="GET", query=b""):
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await app({"type": "http", "method": method, "path": path, "query_string": query, "headers": []}, receive, send)
    return sent[0]["status"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [
        *(
            f"{api}/file{sign}{url}"
            for api in ("", "/gradio_api")
            for sign in "=/"
            for url in ("http://a.b/x.png", "https://a.b")
        ),
        *("/gradio_api/file= http://a.b/x", "/gradio_api/proxy=https://a.b/x"),
        *("/gradio_api/deep_link", "/gradio_api/monitoring", "/monitoring/summary", "/gradio_api/dev/reload"),
        *(
            "/gradio_api/stream/a/1/2/playlist-file",
            "/gradio_api/runs",
            "/gradio_api/openapi.json",
            "/gradio_api/call/learn/a",
        ),
        *(
            "/gradio_api/heartbeat/" + 65 * "a",
            "/gradio_api/heartbeat/a/b",
            "/static/" + 256 * "a",  # the system raises for such a name
            "/gradio_api/file=/tmp" + 20 * ("/" + 250 * "\u00e9"),
            "/another",
            "/gradio_api/custom_component/a/b/c/d",
        ),
    ],
)
def test_addresses_that_the_page_does_not_ask_for_are_not_there(behind, path, method):
    """A file that is a URL was fetched, and what any site answered was shown as a page of this one: its script was the page's."""
    app = PageRequests(behind, BLOCKS)
    assert asyncio.run(got(app, path, method)) == 404
    assert behind.bodies == []


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/config",
            "/theme.css",
            "/favicon.ico",
            "/assets/index.js",
            "/static/js/one.min.js",
            "/gradio_api/info",
        ),
        *(
            "/gradio_api/heartbeat/a1-_b",
            "/gradio_api/startup-events",
            "/gradio_api/upload_progress",
        ),
        *("/gradio_api/file=/tmp/gradio/a/mug of http: 1.png", "/gradio_api/file=C:\\gradio\\mug.png"),
    ],
)
def test_addresses_of_the_page_are_passed_on(behind, path):
    assert asyncio.run(got(PageRequests(behind, BLOCKS), path)) == 200
    assert len(behind.bodies) == 1


def test_headers_that_the_page_does_not_need_are_not_read():
    """Ten cookies of 60 kB kept everyone waiting for half a minute, and Gradio raised for odd ranges and hosts."""
    passed = []

    async def app(scope, receive, send):
        passed.extend(scope["headers"])

    wanted = [(b"range", b"bytes=0-1"), (b"accept", b"*/*"), (b"x-forwarded-host", b"a.example:80, [::1]:8")]
    given = [(b"cookie", b"a"), (b"range", b"bytes=0-1,3-4"), (b"Cookie", b"b"), *wanted]
    wanted += [
        (b"origin", b"https://a.example"),
        (b"origin", b"null"),
        (b"host", b"[::1]:7860"),
        (b"if-none-match", b"x"),
    ]
    given = [
        *given,
        *wanted[3:],
        (b"x-gradio-server", b"http://a:b:c"),
        (b"origin", b"http://["),
        (b"range", b"bytes=1-2-3"),
    ]
    given += [(b"range", b"bytes=0-" + b"9" * 5000), (b"range", b"bytes=\xb2-\xb3")]
    for wrong in (b"a:b:c", b"a:99999", b"a/b", b"", b"a, ", b"999.999.999.999", b"[::::]"):
        given.append((b"x-forwarded-host", wrong))
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": given}
    asyncio.run(PageRequests(app, BLOCKS)(scope, None, None))
    assert passed == wanted


def test_queries_of_the_page_are_for_its_script_and_no_host_is_refused(behind):
    """Gradio raised for ``?page=``, and for what names no host."""
    passed = []

    async def app(scope, receive, send):
        passed.append(scope["query_string"])
        await behind(scope, receive, send)

    assert asyncio.run(got(PageRequests(app, BLOCKS), "/", query=b"page=no&deep_link=no")) == 200
    assert passed == [b""]
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [(b"host", b"a:b:c")]}
    asyncio.run(PageRequests(app, BLOCKS)(scope, None, send))
    assert sent[0]["status"] == 400


PART = SimpleNamespace(get_block_name=lambda: "textbox")
KINDS = (page_requests.IMAGES, page_requests.ASKED, page_requests.CHANGES, page_requests.EXPORTS, page_requests.CAMERAS)


def asking(waiting=(), running=(), kinds=KINDS):
    """Return a function that asks a page for a kind of work, and returns the status."""
    fns = {i: SimpleNamespace(inputs=[PART], concurrency_id=kind) for i, kind in enumerate([*kinds, "other"])}
    app = PageRequests(Behind(), page_of(fns, queue_of(waiting, running)))

    def status(visitor, kind, address=""):
        number = next(i for i, one in fns.items() if one.concurrency_id == kind)
        body = json.dumps({"data": [""], "fn_index": number, "session_hash": visitor}).encode()
        return asyncio.run(posted(app, [body], address=address))

    return status


@pytest.mark.parametrize("kind", KINDS)
def test_a_visitor_has_few_works_at_a_time_and_few_wait_in_all(kind):
    """Few requests held the page for minutes: images of 64 million pixels, given eight times, and a hundred exports."""
    more = [event("one", kind, "a")] * (6 if kind == page_requests.CHANGES else 0)  # clicks that follow each other
    some = [event("one", kind, "a"), *more], [event("one", kind, "a"), event("two", kind, "b")]
    status = asking(*some)
    assert (status("one", kind), status("one", "other"), status("two", kind), status("new", kind)) == (
        503,
        200,
        200,
        200,
    )
    full = asking([*some[0], *(event(f"visitor{i}", kind, str(i)) for i in range(50))], some[1])
    assert (full("new", kind), full("new", "other")) == (503, 200)


@pytest.mark.parametrize(("kind", "most"), list(zip(KINDS, [8, 8, 25, 2, 25], strict=True)))
def test_an_address_has_half_of_the_work_whatever_names_its_visitors_take(kind, most):
    """Forty requests under invented names held up every other visitor's learning for a minute."""
    waiting = [event(f"visitor{i}", kind, "192.0.2.1") for i in range(most)]
    status = asking(waiting)
    assert (status("new", kind, "192.0.2.1"), status("new", kind, "192.0.2.2")) == (503, 200)
    assert status("new", "other", "192.0.2.1") == 200


def test_an_address_has_half_of_the_queue_and_of_an_ipv6_network_all_are_one():
    """140 requests filled it: every click of every visitor was refused."""
    waiting = [event(f"visitor{i}", "other", f"2001:db8::{i:x}") for i in range(100)]
    status = asking(waiting)
    assert status("new", "other", "2001:db8::ffff:1") == 503
    assert status("new", "other", "2001:db8:0:1::1") == 200
    assert asking(waiting[1:])("new", "other", "2001:db8::1") == 200


def test_an_address_has_half_of_the_connections(behind):
    """A thousand that only kept alive shut out every other visitor, for as long as they were held."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    page = PageRequests(app, BLOCKS, most_connections=2)

    async def held():
        over, found = asyncio.Event(), []

        async def receive():
            await over.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        async def asked(address):
            sent = []

            async def send(message):
                sent.append(message)

            scope = {"type": "http", "method": "GET", "path": "/heartbeat/one", "headers": [], "client": (address, 0)}
            await page(scope, receive, send)
            found.append((address, sent[0]["status"]))

        waiting = [asyncio.create_task(asked(address)) for address in ("one", "one", "one", "two")]
        await asyncio.sleep(0.05)
        assert found == [("one", 503)]
        over.set()
        await asyncio.gather(*waiting)
        assert sorted(found[1:]) == [("one", 200), ("one", 200), ("two", 200)]

    asyncio.run(held())
    assert not page._connections


def test_a_visitor_is_named_by_few_letters_and_a_name_that_is_not_used_is_forgotten(behind, monkeypatch):
    """Names of seven million letters were kept for good: a hundred requests took 1.4 GB."""
    queue = queue_of()
    queue.pending_event_ids_session["gone"] = {"event"}
    app = PageRequests(behind, page_of({0: SimpleNamespace(inputs=[], concurrency_id="")}, queue))
    app._asked["gone"] = page_requests._now() - 100, ""

    def status(name):
        return asyncio.run(posted(app, [json.dumps({"data": [], "fn_index": 0, "session_hash": name}).encode()]))

    assert [status(name) for name in ("", "a" * 65, "a b", "a/b", "\u00e9")] == [400] * 5
    assert [status(name) for name in ("a" * 64, "0a1-b_C")] == [200, 200]
    assert queue.pending_event_ids_session == {}

    async def looked(path):
        sent = []

        async def send(message):
            sent.append(message)

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        await app({"type": "http", "method": "GET", "path": path, "headers": []}, receive, send)
        return sent[0]["status"]

    paths = [f"/gradio_api/heartbeat/{name}" for name in ("a" * 65, "a%20b", "abc")]
    assert [asyncio.run(looked(path)) for path in paths] == [404, 404, 200]


def test_answers_that_one_address_leaves_there_push_out_its_own(behind, monkeypatch):
    """Nine names of one client, full of answers, took those of everyone who had asked a round trip ago."""
    queue = queue_of()
    app = PageRequests(behind, page_of({0: SimpleNamespace(inputs=[], concurrency_id="")}, queue))
    monkeypatch.setattr(page_requests, "_MOST_OF_ALL", 20)

    def status(name, address):
        body = json.dumps({"data": [], "fn_index": 0, "session_hash": name}).encode()
        found = asyncio.run(posted(app, [body], address=address))
        if found == 200:
            for _ in range(3):
                queue.pending_messages_per_session.setdefault(name, asyncio.Queue()).put_nowait("an answer")
        return found

    assert status("honest", "192.0.2.1") == 200
    for i in range(100):
        status(f"left{i % 9}", "192.0.2.2")
    waiting = queue.pending_messages_per_session
    assert waiting["honest"].qsize() == 3
    assert sum(messages.qsize() for messages in waiting.values()) <= 30
    monkeypatch.setattr(page_requests, "_MOST_ANSWERS", 2)
    order = list(app._asked)
    assert status("honest", "192.0.2.1") == 503  # it is not the last one for that
    assert list(app._asked) == order


def test_of_two_who_take_one_visitors_answers_the_second_ends_in_peace():
    """The end of the first one was 87 lines of traceback in the log, of the second."""
    queue, sent = queue_of(), []
    queue.pending_messages_per_session["one"] = asyncio.Queue()

    async def stream(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if gone:
            queue.pending_messages_per_session.clear()
        raise RuntimeError("Caught handled exception, but response already started.")

    async def send(message):
        sent.append(message)

    app = PageRequests(stream, page_of({}, queue))
    scope = {"type": "http", "method": "GET", "path": "/gradio_api/queue/data", "query_string": b"session_hash=one"}
    gone = False
    with pytest.raises(RuntimeError):  # what else goes wrong is said
        asyncio.run(app({**scope, "headers": []}, None, send))
    gone = True
    asyncio.run(app({**scope, "headers": []}, None, send))
    assert sent[-1] == {"type": "http.response.body", "body": b""}
    assert not app._collecting


def test_names_that_are_invented_end_nothing_of_others(behind, monkeypatch):
    """Gradio keeps the 2,000 names that came last: after as many requests every open camera stopped, with a traceback."""
    queue = queue_of()
    app = PageRequests(behind, page_of({0: SimpleNamespace(inputs=[], concurrency_id="")}, queue))

    def status(name):
        found = asyncio.run(posted(app, [json.dumps({"data": [], "fn_index": 0, "session_hash": name}).encode()]))
        queue.pending_messages_per_session.setdefault(name, asyncio.Queue()).put_nowait("an answer")  # as Gradio does
        return found

    monkeypatch.setattr(page_requests, "_MOST_NAMES", 20)
    assert [status(name) for name in ("camera", "collects", "gone")] == [200] * 3
    queue.event_ids_to_events["its"] = event("camera", "")
    app._collecting["collects"] += 1
    assert [status(f"invented{i}") for i in range(50)] == [200] * 50
    waiting = queue.pending_messages_per_session
    assert {"camera", "collects"} <= set(waiting) <= set(app._asked)
    assert len(waiting) <= 22
    assert "gone" not in waiting
    waiting["gone"].put_nowait("late")  # as Gradio may be about to
    assert "gone" not in waiting


# Gradio raised for each.
ODD_FILES = [
    {"path": "a", **odd}
    for odd in (
        {"size": "x"},
        {"size": 1.5},
        {"mime_type": 5},
        {"orig_name": {}},
        {"meta": 5},
        {"meta": {}},
        {"is_stream": "x"},
    )
]


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("textbox", ["", "a" * 10_000], [None, 5, ["a"], "a" * 10_001]),
        ("slider", [5, 0.5, 0.1, 50], [None, "5", True, [5], 10**400, 0, 50.1, float("nan")]),
        (
            "image",
            [None, {"path": "a"}, {"url": "data:", "path": None}],
            ["x", [{}], {}, {"path": 5}, {"url": [5]}, {"path": ""}, {"url": "nowhere"}, *ODD_FILES],
        ),
        (
            "file",
            [
                None,
                [],
                [{"path": "a", "meta": {"_type": "gradio.FileData"}}],
                [{"path": "a", "size": 5, "mime_type": None, "meta": {"_type": "gradio.FileData"}}],
            ],
            [
                "x",
                {"path": "a"},
                ["a"],
                [None],
                [{}],
                [{"path": ""}],
                [{"path": 5}],
                [{"path": "a"}],
                [{"url": "data:"}],
                *([one] for one in ODD_FILES),
            ],
        ),
        ("state", [None, 5], []),
    ],
)
def test_values_that_are_not_of_the_page_are_refused(monkeypatch, kind, right, wrong):
    """Each was a bare "Error", with a traceback in the log; a text could be as long as a body."""
    monkeypatch.setattr(page_requests, "_SECONDS", 20)
    part = SimpleNamespace(get_block_name=lambda: kind, minimum=0.1, maximum=50, label="Rate")
    hidden = SimpleNamespace(get_block_name=lambda: "textbox", visible=False)
    assert page_values.wrong_value([None], [hidden]) is None
    assert page_values.wrong_value(["a"], [hidden]) is None
    function = SimpleNamespace(inputs=[part], concurrency_id="other")
    app = PageRequests(Behind(), page_of({1: function}))

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
    # A frame of a camera comes by another way.
    app.blocks._queue.event_ids_to_events["a1"] = SimpleNamespace(fn=function, session_hash="one")

    def frame(data, path="/gradio_api/stream/a1", visitor="one", **more):
        body = {"data": data, "session_hash": visitor} | more
        return asyncio.run(posted(app, [json.dumps(body).encode()], path))

    assert [frame([one]) for one in right] == [200] * len(right)
    assert [frame([one]) for one in wrong] == [400] * len(wrong)
    assert [frame(data) for data in ([], [right[0], right[0]], None)] == [400] * 3
    assert (frame([right[0]], "/gradio_api/stream/another"), frame(None, "/gradio_api/stream/a1/close")) == (404, 200)
    # Names of megabytes were kept for good.
    assert [frame([right[0]], visitor=name) for name in ("two", None, 5, "one" + 900 * "a")] == [400] * 4
    assert [frame([right[0]], event_id=text) for text in ("a", 10_001 * "a")] == [200, 400]
    assert frame([right[0]], event_data={"value": 10_001 * "a"}) == 200  # a camera's is its image
    assert frame(10_001 * "a", "/gradio_api/stream/a1/close") == frame(10_001 * "a", RESET) == 413
    # A button within HTML says which it is.
    function.targets = [(1, "click")]
    assert [status([right[0]], event_data=event) for event in (None, 0.1, "a", {"label": "a"})] == [400] * 3 + [200]


@pytest.mark.parametrize("typed", [0, 0.05, 60, None])
def test_a_rate_that_was_typed_is_refused_with_the_rates_that_are_taken(typed):
    slider = SimpleNamespace(
        get_block_name=lambda: "slider", minimum=0.1, maximum=50, label="False-alarm rate, percent"
    )
    assert page_values.wrong_value([typed], [slider]) == "False-alarm rate, percent: give 0.1 to 50"


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

"""Names that a server answers to: of requests as browsers send them for pages of this machine and of others."""

import asyncio
import json
import socket

import pytest

from fewshot_nam.service.hosts import KnownHosts, is_loopback, known_hosts


def asked(hosts, kind="http", proxies=(), addresses=False, **headers):
    """Return the status of a request with these headers, and its error."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "headers": [(key.encode(), value.encode("latin-1")) for key, value in headers.items()]}
    asyncio.run(KnownHosts(app, hosts, proxies, addresses=addresses)(scope, None, send))
    error = json.loads(sent[1]["body"])["error"] if len(sent) > 1 else None
    return sent[0].get("status", sent[0].get("code")), error


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "LOCALHOST:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "[::1]:8000", "origin": "http://[::1]:8000"}, 200),
        ({"host": "localhost", "origin": "https://localhost"}, 200),
        ({"host": "localhost:9000", "origin": "http://localhost:9000"}, 200),  # a port that a tunnel passes on
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9"}, 403),  # a page of another program of this machine
        ({"host": "127.0.0.1:8000", "origin": "http://localhost:8000"}, 403),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({}, 200),  # HTTP/1.0; no browser leaves it out
        ({"host": "evil.example:8000"}, 403),  # a name that its owner lets point here
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "evil.example@127.0.0.1:x"}, 200),
        ({"host": "127.0.0.1@evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": ""}, 403),
        ({"host": "127.0.0.1:8000", "origin": "https://evil.example"}, 403),  # a form or a script of another page
        ({"host": "127.0.0.1:8000", "origin": "null"}, 403),  # a file, or a frame without an origin
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1.evil.example"}, 403),
    ],
)
def test_a_server_of_the_loopback_answers_to_its_own_names_and_pages_alone(headers, status):
    found, error = asked(known_hosts("127.0.0.1"), **headers)
    assert found == status
    assert (error is None) == (status == 200)
    assert error is None or "--allow-host" in error


def test_a_proxys_name_is_known_when_it_is_given():
    names = ["Teach.Example"]
    hosts = known_hosts("localhost", names)
    assert asked(hosts, proxies=names, host="teach.example", origin="https://teach.example")[0] == 200
    assert asked(hosts, proxies=names, host="127.0.0.1:8000", origin="https://teach.example:8443")[0] == 200
    assert asked(hosts, proxies=names, host="teach.example", origin="http://localhost:9")[0] == 403
    assert asked(hosts, proxies=names, host="other.example")[0] == 403
    local = known_hosts("127.0.0.1", ["localhost"])  # a proxy on another port of this machine
    assert asked(local, proxies=["localhost"], host="127.0.0.1:8000", origin="https://localhost")[0] == 200


def test_without_names_pages_of_others_are_refused_all_the_same():
    assert asked(None, host="anything:8000", origin="http://anything:8000")[0] == asked(None, host="anything")[0] == 200
    # A web site in the browser of a user who reaches the server.
    assert asked(None, host="anything:8000", origin="http://anything.else")[0] == 403
    assert asked(None, host="192.0.2.2:7860", origin="http://192.0.2.9:7860")[0] == 403


def test_away_from_the_loopback_addresses_and_the_machines_own_names_are_known():
    """A site whose name points to a server in the local network could read its answers through the browser of a user."""
    name = socket.gethostname().lower()
    hosts = known_hosts("0.0.0.0", ["teach.example"])
    for host in (
        "192.0.2.2:7860",
        "[2001:db8::1]:7860",
        "localhost",
        "127.0.0.1:8000",
        name,
        f"{name}.local",
        "teach.example",
    ):
        assert asked(hosts, addresses=True, host=host, origin=f"http://{host}")[0] == 200
    found, error = asked(hosts, addresses=True, host="evil.example:7860", origin="http://evil.example:7860")
    assert found == 403
    assert "localhost" in error
    assert "addresses: start it with --allow-host" in error
    assert asked(hosts, addresses=True, host="192.0.2.2:7860", origin="http://evil.example")[0] == 403
    assert asked(known_hosts("10.0.0.5"), host="10.0.0.5:8000")[0] == 200


def test_a_websocket_from_elsewhere_is_closed():
    hosts = known_hosts("127.0.0.1")
    assert asked(hosts, "websocket", host="127.0.0.1", origin="http://evil.example")[0] == 1008
    assert asked(hosts, "websocket", host="127.0.0.1:7860", origin="http://127.0.0.1:7860")[0] == 200


def test_addresses_of_this_machine_are_told_from_others():
    own = ["localhost", "127.0.0.1", "127.3.2.1", "::1", "[::1]"]
    assert [is_loopback(one) for one in own] == [True] * len(own)
    assert not any(map(is_loopback, ["0.0.0.0", "192.168.1.2", "example.org", "::", ""]))

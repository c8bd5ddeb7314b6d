"""Which names a server answers to, so that no web page from elsewhere reaches one on this machine through its user's browser.

Such a page can send requests to ``127.0.0.1``, or let a name of its own point there ("DNS rebinding") and then read the answers
too. Both show in what the browser sends: ``Host`` holds the name that was asked for, and ``Origin`` the page that asks. A page
is one of the server's own where both have the same name and port, since other programs of this machine have pages too.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import urlsplit

Scope: TypeAlias = "MutableMapping[str, Any]"
Receive: TypeAlias = "Callable[[], Awaitable[MutableMapping[str, Any]]]"
Send: TypeAlias = "Callable[[MutableMapping[str, Any]], Awaitable[None]]"
Application: TypeAlias = "Callable[[Scope, Receive, Send], Awaitable[None]]"


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def url(host: str, port: int) -> str:
    """Return the URL of an address.

    Example:
        >>> url("127.0.0.1", 8000), url("::1", 8000)
        ('http://127.0.0.1:8000', 'http://[::1]:8000')
    """
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def neighbourhood(address: str) -> str:
    """Return what stands for one client: an IPv4 address, or the 64 bits of an IPv6 address that a network is given.

    Example:
        >>> neighbourhood("192.0.2.7"), neighbourhood("2001:db8:0:1:2:3:4:5")
        ('192.0.2.7', '2001:db8:0:1::')
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False).network_address)
    return str(getattr(found, "ipv4_mapped", None) or found)


def client_of(scope: Scope) -> str:
    """Return where a request comes from. Of a proxy on this machine, uvicorn takes what it says."""
    return neighbourhood((scope.get("client") or ("", 0))[0])


def known_hosts(host: str, further: Iterable[str] = ()) -> frozenset[str]:
    """Return the names that a server at an address answers to.

    Args:
        host: the address it listens on. Away from the loopback, the machine is known by its own name too, and by every address.
        further: names that a proxy before it passes on, and others by which it is reached.

    Example:
        >>> sorted(known_hosts("127.0.0.1", ["teach.example"]))
        ['127.0.0.1', '::1', 'localhost', 'teach.example']
    """
    # The loopback's are no names of somebody else anywhere; the health check of a container asks for them.
    names = {"localhost", "127.0.0.1", "::1", _plain(host), *map(_plain, further)}
    if not is_loopback(host):
        name = _plain(socket.gethostname())
        names |= {name, f"{name}.local"}
    return frozenset(names)


def check_address(host: str, port: int) -> None:
    """Raise ``OSError`` where an address cannot be listened on; port 0 for any."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error


class KnownHosts:
    """Refuse requests for other names, and those that a page from elsewhere sends.

    Args:
        app: what is served.
        hosts: the names, as ``known_hosts`` gives them; ``None`` for any.
        proxies: those of them that a proxy passes on. Their pages are known with any port, which a proxy may change.
        addresses: answer to every address too: no name that somebody else owns is one.
    """

    def __init__(
        self,
        app: Application,
        hosts: frozenset[str] | None,
        proxies: Iterable[str] = (),
        *,
        addresses: bool = False,
    ) -> None:
        self.app, self.hosts, self.addresses = app, hosts, addresses
        self.proxies = frozenset(map(_plain, proxies))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        text = self._wrong(scope["headers"])
        if text is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            body = json.dumps({"error": text}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _wrong(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return what is wrong with the headers; ``None`` for nothing."""
        headers = list(headers)
        asked = [value.decode("latin-1").lower() for key, value in headers if key == b"host"]
        # "null" for a page without an address, which is then no name that is known.
        pages = [value.decode("latin-1").lower() for key, value in headers if key == b"origin"]
        for name in [*(_host(f"//{one}") for one in asked), *map(_host, pages)]:
            if self.hosts is not None and name not in self.hosts and not (self.addresses and _is_address(name)):
                shown = repr(name[:100] or "no name")
                known = [*sorted(self.hosts), *(["addresses"] if self.addresses else [])]
                return f"asked for by {shown}, and answers to {', '.join(known)}: start it with --allow-host NAME"
        for page in pages:
            if _host(page) not in self.proxies and page.partition("://")[2] not in asked:
                return (
                    f"asked for by the page {page[:100]!r}, and answers to its own pages alone: "
                    "for a proxy, start it with --allow-host NAME"
                )
        return None


def _host(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").removesuffix(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _plain(name: str) -> str:
    return name.strip().strip("[]").lower().removesuffix(".")

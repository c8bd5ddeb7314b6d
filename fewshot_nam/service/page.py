"""The teaching page: a thin skin of Gradio over ``TeachingSession``. ``fewshot-nam page`` opens it, and a Space runs this file.

Nothing is fetched from outside: fonts are those of the system, analytics are off, and the page listens on the loopback unless
another address is given. A Space sets ``SPACE_ID``: every visitor then has a memory of their own, and folders of the machine
cannot be read.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence

import gradio as gr
from starlette.middleware import Middleware

from fewshot_nam.heap import few_heaps
from fewshot_nam.service import page_html as html
from fewshot_nam.service.hosts import KnownHosts, check_address, is_loopback, known_hosts
from fewshot_nam.service.http_server import Impatient
from fewshot_nam.service.open_files import raise_open_files
from fewshot_nam.service.page_blocks import build
from fewshot_nam.service.page_requests import QUEUED, PageRequests
from fewshot_nam.service.teaching import TeachingSession
from fewshot_nam.service.uploads import LOOKED_FOR_SECONDS, UploadLimit, remove_old, temporary_directory
from fewshot_nam.service.visitors import Sessions

_LARGEST_UPLOAD = "50mb"  # a file
_SPACES = "https://huggingface.co"  # which shows a Space within its own page
_CONNECTIONS = 1000
# As many as cameras, each of which holds one, and all works at a time, so that none waits for another kind.
_THREADS = 140
_MOST_UNKNOWN = 2_500  # images of unknowns of someone from elsewhere: nearly equal ones take time with their square
_MOST_LEARNED = 10_000  # images that a memory of someone from elsewhere has, or twice as many as it had
_MOST_UNDO = 24 * 2**20  # bytes of the steps of undo of each
_MOST_PIXELS = 500_000_000  # forty photographs of a phone: of the images that someone from elsewhere gives at a time


def serve(
    session: TeachingSession,
    host: str | None = None,
    port: int | None = None,
    *,
    separate: bool = False,
    wait: bool = True,
    open_browser: bool = False,
    hosts: Sequence[str] = (),
) -> gr.Blocks:
    """Serve the page and return it; with ``wait``, when it was stopped.

    Args:
        session: what is taught.
        host: the address to listen on; ``None`` for the loopback.
        port: ``None`` for the first free one from 7860 on.
        separate: every visitor has a memory of their own, made like the session's; no folder of this machine can be read.
        wait: return only when the page is stopped.
        open_browser: open the page in a browser.
        hosts: names that a proxy before it passes on. On the loopback the page answers to the names of the loopback and to these,
            and to no page from elsewhere. With any, no folder of this machine can be read, and the memory is downloaded, not saved.

    Raises:
        OSError: the port is taken.
    """
    few_heaps()
    open_files = raise_open_files()
    connections = min(_CONNECTIONS, open_files // 2)
    host = host or "127.0.0.1"
    if ":" in host:
        raise ValueError(f"the page takes no IPv6 address, such as {host!r}: give an address of IPv4, or a name")
    check_address(host, port or 0)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Gradio summarises its last 10,000 events after every one: time and memory that nothing here looks at.
    os.environ |= {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(1 << 62)}
    os.environ["GRADIO_TEMP_DIR"] = str(uploads := temporary_directory())  # Gradio's own is one that others may read
    atexit.register(shutil.rmtree, uploads, ignore_errors=True)
    # Who asks by another name comes through a proxy, from elsewhere.
    local = is_loopback(host) and not separate and not hosts
    if not local:
        session.most_pixels, session.most_unknown = _MOST_PIXELS, _MOST_UNKNOWN
        session.most_undo = _MOST_UNDO
        session.most_learned = max(_MOST_LEARNED, 2 * sum(session.model.head.shots_per_class()))
    # Where each visitor has a memory of their own, a page from elsewhere finds nothing; and a Space's proxy changes the name.
    checks = []
    if hosts or not separate or is_loopback(host):
        known, addresses = known_hosts(host, hosts), not is_loopback(host)
        checks = [Middleware(KnownHosts, hosts=known, proxies=hosts, addresses=addresses)]
    page = build(Sessions(session, separate), local=local)
    page.queue(default_concurrency_limit=2, max_size=QUEUED)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        inbrowser=open_browser,
        max_file_size=_LARGEST_UPLOAD,
        max_threads=_THREADS,
        state_session_capacity=200,  # for whom Gradio keeps the page as they see it; nothing here looks at it
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=html.CSS,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        app_kwargs={
            "middleware": [
                *checks,
                Middleware(
                    PageRequests,
                    blocks=page,
                    framed_by=_SPACES if "SPACE_ID" in os.environ else None,
                    uploads=uploads,
                    most_connections=connections // 2,
                ),
                Middleware(UploadLimit, directory=uploads, most_open=open_files // 4),
            ]
        },
    )
    # Gradio starts its server without limits; uvicorn reads these at each connection.
    page.server.config.http_protocol_class = Impatient
    page.server.config.limit_concurrency = connections
    page.server.config.ws_protocol_class = None
    threading.Thread(target=_remove_old_files, args=(page,), name="removes old files", daemon=True).start()
    print(f"the page is at {page.local_url}" + ("" if not wait else " (Ctrl+C stops it)"), flush=True)
    if wait:
        page.server.force_exit = True  # Ctrl+C does not wait for tabs that are still open
        if threading.current_thread() is threading.main_thread():
            # As Ctrl+C, also where that is ignored because a shell started the command in the background.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            while True:  # Windows interrupts no endless wait
                time.sleep(3600)
        except KeyboardInterrupt:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # of tabs that are still open
            page.is_running, page.server.should_exit = False, True
            page.app.stop_event.set()  # ends the streams of tabs
            page.server.thread.join(timeout=2)
    return page


def _remove_old_files(page: gr.Blocks) -> None:
    """Remove files that were uploaded or made for a download an hour ago, as long as the page runs."""
    kept = set().union(*(getattr(block, "keep_in_cache", ()) for block in page.blocks.values()))
    while page.is_running:
        time.sleep(LOOKED_FOR_SECONDS)
        remove_old(page.temp_file_sets, kept)


if __name__ == "__main__":  # the app.py of a Space
    serve(
        TeachingSession.open(backbone=os.environ.get("BACKBONE")),
        os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        separate="SPACE_ID" in os.environ,
    )

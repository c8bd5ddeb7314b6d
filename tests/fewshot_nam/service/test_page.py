"""The page as programs see it that are no browser: requests from elsewhere, and for files of this machine."""

import base64
import contextlib
import http.client
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from fewshot_nam.service.teaching import TeachingSession

pytest.importorskip("gradio")

from fewshot_nam.service import given_images, http_server, page_blocks, page_events, page_requests
from fewshot_nam.service import page as page_module
from fewshot_nam.service.page import serve


@pytest.fixture(scope="module")
def served(tmp_path_factory, digits):
    """A page that is served by this process, its port, and its session, which has a file and knows one class."""
    memory = tmp_path_factory.mktemp("page") / "memory.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")
        session = TeachingSession.open(memory, backbone="conv4")
        session.learn(digits[0][:2], "zero")
        session.save()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        blocks = serve(session, port=port, wait=False, hosts=["teach.example"])
        yield blocks, port, session
        blocks.close()


@pytest.fixture
def page(served):
    return served[1:]


@pytest.fixture
def blocks(served):
    return served[0]


def asked(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def called(port, name, given, session="abc", **headers):
    """Call a function of the page as its script does; return the status and what came."""
    config = json.loads(asked(port, "GET", "/config")[1])
    number = next(one["id"] for one in config["dependencies"] if one["api_name"] == name)
    body = {"data": given, "fn_index": number, "session_hash": session, "event_data": {"label": "zero"}}
    return asked(port, "POST", "/gradio_api/queue/join", json.dumps(body), **headers)


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_a_page_from_elsewhere_cannot_change_the_memory(page, kind):
    """One whose name is let point to this machine ("DNS rebinding") is the page itself to the browser, and was answered."""
    port, session = page
    version = session.version
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": f"evil.example:{port}"}):
        status, content = called(port, "on_forget", [""], **headers, **{"Content-Type": kind})
        assert status == 403
        assert b"--allow-host" in content
    assert session.version == version
    assert session.model.classes == ["zero"]


def test_the_page_itself_is_answered_by_its_names(page):
    port, _ = page
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "teach.example"):
        assert asked(port, "GET", "/", Host=host)[0] == 200
    own = {"Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/json"}
    status, _ = called(port, "on_undo", [None, ""], "by-name", **own)
    assert status == 200
    # To its end, or the change comes in the middle of another test.
    assert b'"success":true' in asked(port, "GET", "/gradio_api/queue/data?session_hash=by-name")[1].replace(b" ", b"")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "{memory}",
        "{memory}/../memory.safetensors",
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
        "/proc/self/environ",
    ],
)
def test_files_of_this_machine_are_not_given_out(page, path):
    port, session = page
    status, content = asked(port, "GET", "/gradio_api/file=" + path.format(memory=session.path))
    assert status in (400, 403, 404)
    assert b"root:" not in content
    assert content[8:9] != b"{"


def test_a_file_of_this_machine_cannot_be_asked_about_as_if_it_were_uploaded(page, digit_files):
    port, session = page
    version = session.version
    given = {"path": str(digit_files[0][5]), "meta": {"_type": "gradio.FileData"}}
    headers = {"Content-Type": "application/json"}
    status, content = called(port, "on_learn_files", ["stolen", [given], None, "", "0"], "not-uploaded", **headers)
    assert (status, b"was not uploaded" in content) == (400, True)
    assert session.version == version


def taught(session, digits):
    """Let a session know the class zero, whatever the tests before have changed."""
    if "zero" not in session.model.classes:
        session.learn(digits[0][:2], "zero")


def answered(port, given, session, **headers):
    """Ask about an image as the page's script does; return all that comes back."""
    called(port, "on_asked", [given], session, **{"Content-Type": "application/json"}, **headers)
    return asked(port, "GET", f"/gradio_api/queue/data?session_hash={session}")[1]


def test_an_image_of_this_machine_cannot_be_asked_about(page, digits, digit_files):
    port, session = page
    taught(session, digits)
    marked = {"meta": {"_type": "gradio.FileData"}}
    secret = str(digit_files[0][5])
    # Gradio looks at the paths of what is marked alone.
    for number, given in enumerate(
        (
            {"path": secret} | marked,
            {"url": f"file://{secret}"} | marked,
            {"path": secret},
            {"path": "/etc/passwd"},
            {"path": "/not/there"},
        )
    ):
        events = answered(port, given, f"stolen-{number}")
        refused = (b'"success":false', b"therearenoanswers")  # by Gradio, or before it is asked
        assert any(one in events.replace(b" ", b"") for one in refused)
        assert b"zero" not in events
        for word in (b"passwd", b"not an image", b"No such file"):
            assert word not in events


def as_url(content):
    return {"url": "data:image/png;base64," + base64.b64encode(content).decode(), "meta": {"_type": "gradio.FileData"}}


def uploaded(port, content):
    """Upload an image; return it as it is asked about."""
    head = '--part\r\nContent-Disposition: form-data; name="files"; filename="image.png"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=part"}
    status, names = asked(port, "POST", "/gradio_api/upload", head.encode() + content + b"\r\n--part--\r\n", **kind)
    assert status == 200
    return {"path": json.loads(names)[0], "meta": {"_type": "gradio.FileData"}}


def test_images_take_turns_by_the_address_that_they_come_from(page, digits, tmp_path, monkeypatch):
    port, session = page
    taught(session, digits)
    digits[0][4].save(tmp_path / "zero.png")
    owners, turn = [], given_images.Turns.turn

    def noted(self, owner=""):
        owners.append(owner)
        return turn(self, owner)

    monkeypatch.setattr(given_images.Turns, "turn", noted)
    given = uploaded(port, (tmp_path / "zero.png").read_bytes())
    for number, said in enumerate(("192.0.2.7", "2001:db8::5", None)):  # by a proxy on this machine
        headers = {} if said is None else {"X-Forwarded-For": said}
        assert b"zero" in answered(port, given, f"from-{number}", **headers)
    assert owners == ["192.0.2.7", "2001:db8::", ""]


def test_an_image_that_is_too_large_is_refused_before_it_is_decoded(page, digits, tmp_path):
    """Gradio decoded it, and every tab held what its camera showed last: 675 MB of a file of 21 KB, for good."""
    port, session = page
    taught(session, digits)
    Image.new("1", (9000, 8000)).save(tmp_path / "large.png")
    content = (tmp_path / "large.png").read_bytes()
    assert b"9000 x 8000 pixels are too many" in answered(port, uploaded(port, content), "uploads")
    assert b"9000 x 8000 pixels are too many" in answered(port, as_url(content), "camera")


def test_what_the_camera_sends_is_read_as_it_is_and_leaves_no_file(page, digits, digit_files):
    """As a frame: Gradio opened it with any format, wrote it anew with losses, and kept all frames in files."""
    port, session = page
    taught(session, digits)
    before = sorted(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*"))
    content = digit_files[0][1].read_bytes()
    assert b"zero" in answered(port, as_url(content), "frames")
    assert page_blocks.as_given(page_blocks.ImageData(**as_url(content))) == content
    assert sorted(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*")) == before
    for wrong in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n(x) run\n", b"no image"):
        assert b"the image: not an image" in answered(port, as_url(wrong), f"wrong-{len(wrong)}")
    given = {"url": "data:image/png;base64,%%%", "meta": {"_type": "gradio.FileData"}}
    assert b'"success":false' in answered(port, given, "no-base64").replace(b" ", b"")


def test_what_was_uploaded_is_removed_and_forgotten(page, blocks, digits, digit_files, monkeypatch):
    port, session = page
    taught(session, digits)
    given = uploaded(port, digit_files[0][1].read_bytes())
    path = given["path"]
    assert b"zero" in answered(port, given, "removed")
    assert path in set().union(*blocks.temp_file_sets)
    monkeypatch.setattr("fewshot_nam.service.uploads.REMOVED_SECONDS", -1.0)
    monkeypatch.setattr(page_module, "LOOKED_FOR_SECONDS", 0.0)
    running = iter([True, False])
    monkeypatch.setattr(type(blocks), "is_running", property(lambda _: next(running)), raising=False)
    page_module._remove_old_files(blocks)
    monkeypatch.undo()
    assert not Path(path).exists()
    assert not any(blocks.temp_file_sets)
    assert any(thread.name == "removes old files" for thread in threading.enumerate())


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
def test_names_of_files_that_are_not_utf_8_leave_the_page_whole(digits, tmp_path):
    """No answer could hold them: the page drew nothing, for anybody, and what was learned from a folder was never said."""
    memory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.safetensors"))
    session = TeachingSession.open(memory, backbone="conv4")
    session.learn(digits[0][:2], "zero")
    session.save()
    folder = tmp_path / "folder" / "one"
    folder.mkdir(parents=True)
    digits[1][0].save(folder / "one.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(b"no image")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = serve(session, port=port, wait=False)
    try:
        kind = {"Content-Type": "application/json"}
        for name, given, said in (
            ("on_load", [""], b"zero"),
            ("on_save", [""], b"Saved to"),
            ("on_make", [""], b"The memory can be downloaded"),
            ("on_learn_path", [str(folder.parent), ""], b"caf"),
        ):
            called(port, name, given, f"names-{name}", **kind)
            events = asked(port, "GET", f"/gradio_api/queue/data?session_hash=names-{name}")[1]
            assert said in events
            assert b'"success":true' in events.replace(b" ", b"")
    finally:
        blocks.close()
    assert session.model.classes == ["zero", "one"]


def test_no_record_is_kept_of_what_was_asked(page, blocks, digits, digit_files):
    """Gradio keeps its last 10,000 events, and summarises all of them after every one."""
    port, session = page
    taught(session, digits)
    before = blocks._queue.events_recorded
    for i in range(3):
        answered(port, as_url(digit_files[0][1].read_bytes()), f"record-{i}")
    assert blocks._queue.events_recorded == before + 3
    assert len(blocks._queue.event_analytics) <= 1
    assert blocks._queue.cached_event_analytics_summary == {"functions": {}}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/run/on_undo"),
        ("POST", "/gradio_api/call/on_undo"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/vibe-edit/"),
        ("POST", "/login"),
        ("PUT", "/gradio_api/queue/join"),
        ("GET", "/gradio_api/proxy=http://127.0.0.1/"),
        ("GET", "/gradio_api/deep_link?session_hash=abc"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/monitoring"),
    ],
)
def test_what_the_page_itself_does_not_ask_for_is_not_there(page, method, path):
    """Among Gradio's routes are some that write files which nothing removes, and one that sends requests elsewhere."""
    files = set(Path(tempfile.gettempdir()).iterdir())
    status, content = asked(page[0], method, path, b"{}", **{"Content-Type": "application/json"})
    assert (status, content) == (404, b"the page has no such address")
    assert set(Path(tempfile.gettempdir()).iterdir()) == files


def test_nothing_is_fetched_for_a_visitor(page):
    """Gradio fetches what a path that is a URL names, however much that is."""
    port, _ = page
    for path in (
        "http://127.0.0.1:9/a.png",
        "HTTPS://example.com/a.png",
        " http://example.com",
        "file:///etc/passwd",
        "s3://a/b",
    ):
        for given in ([{"path": path, "meta": {"_type": "gradio.FileData"}}], [[{"deep": {"path": path}}]]):
            status, content = called(port, "on_asked", given, **{"Content-Type": "application/json"})
            assert (status, json.loads(content)["detail"]) == (
                400,
                "an image is uploaded, not fetched from another address",
            )
    escaped = '{"data": [{"path": "\\u0068ttp://example.com/a.png"}], "fn_index": 3, "session_hash": "x"}'
    assert asked(port, "POST", "/gradio_api/queue/join", escaped, **{"Content-Type": "application/json"})[0] == 400
    assert asked(port, "POST", "/gradio_api/queue/join", "no JSON", **{"Content-Type": "application/json"})[0] == 400


def test_answers_that_are_not_collected_are_bounded(page, blocks, monkeypatch):
    """Each was kept for good: some 100 bytes asked for 2 MB."""
    port, _ = page
    clock = [time.monotonic()]
    monkeypatch.setattr(page_requests, "_now", lambda: clock[0])
    kind = {"Content-Type": "application/json"}
    found = []
    for _ in range(60):
        found.append(called(port, "on_find", [""], "absent", **kind)[0])
        time.sleep(0.02)
    assert found[:15] == [200] * 15
    assert found[-1] == 503
    waiting = blocks._queue.pending_messages_per_session
    assert waiting["absent"].qsize() < 60
    assert called(port, "on_find", [""], "another", **kind)[0] == 200
    clock[0] += 100
    assert called(port, "on_find", [""], "third", **kind)[0] == 200
    assert waiting["absent"].empty()  # and there: without its place, Gradio's loops fail at the next answer
    assert b"process_completed" in asked(port, "GET", "/gradio_api/queue/data?session_hash=third")[1]


def test_who_collects_is_answered_however_many_answers_of_others_wait(page, blocks, monkeypatch):
    port, _ = page
    monkeypatch.setattr(page_requests, "_MOST_OF_ALL", 20)
    kind = {"Content-Type": "application/json"}
    for number in range(30):
        assert called(port, "on_find", [""], f"flood{number}", **kind)[0] == 200
        time.sleep(0.02)
    waiting = blocks._queue.pending_messages_per_session
    assert sum(messages.qsize() for name, messages in waiting.items() if name.startswith("flood")) <= 30
    assert waiting["flood0"].empty()
    assert called(port, "on_find", [""], "honest", **kind)[0] == 200
    assert b"process_completed" in asked(port, "GET", "/gradio_api/queue/data?session_hash=honest")[1]


def test_a_tab_that_changed_while_it_was_drawn_is_drawn_again(page, digits, monkeypatch):
    """It was said to show the later version, and never showed the class that another tab had taught meanwhile."""
    port, session = page
    taught(session, digits)
    drawn = session.classes

    def classes():
        found = drawn()
        monkeypatch.undo()
        session.learn(digits[7][30:31], "taught meanwhile")
        return found

    monkeypatch.setattr(session, "classes", classes)
    for name, given in (("on_find", [""]), ("on_tick", [None, "", None, ""])):
        called(port, name, given, "tab", **{"Content-Type": "application/json"})
        events = asked(port, "GET", "/gradio_api/queue/data?session_hash=tab")[1]
        assert (b"taught meanwhile" in events) == (name == "on_tick")


def test_behind_a_proxy_no_visitor_is_at_this_machine(page, digit_files):
    """With a name of a proxy, everyone who came through it could read folders and write the memory's file."""
    port, session = page  # it was started with such a name
    version, before = session.version, Path(session.path).read_bytes()
    for name, given in (
        ("on_learn_path", [str(digit_files[0][0].parent.parent), ""]),
        ("on_save", [""]),
        ("on_reload", [""]),
    ):
        called(port, name, given, name, **{"Content-Type": "application/json"})
        events = asked(port, "GET", f"/gradio_api/queue/data?session_hash={name}")[1]
        assert b"cannot be used here" in events
    assert session.version == version
    assert Path(session.path).read_bytes() == before


def test_the_progress_of_an_upload_that_is_not_known_is_its_end(page):
    """A browser wrote 404 on its console where an upload began more than three seconds after its progress was asked for."""
    port, _ = page
    status, content = asked(port, "GET", "/gradio_api/upload_progress?upload_id=late")
    assert (status, content) == (200, b'data: {"msg": "done"}\n\n')


@pytest.mark.parametrize("local", [True, False])
def test_folders_of_this_machine_are_told_to_those_who_sit_at_it(local, tmp_path):
    session = TeachingSession.open(tmp_path / "memory.safetensors", backbone="conv4")
    shown = page_events._about_file(session, local)
    assert "memory.safetensors" in shown
    assert (str(tmp_path) in shown) == local


def test_names_of_uploads_are_bounded_and_forgotten(page, monkeypatch):
    """Gradio kept every name that an upload was given, of any length, for ever: some 500 MB after half a minute."""
    from gradio.routes import file_upload_statuses as noted

    monkeypatch.setattr(page_requests, "_SECONDS_OF_PROGRESS", 0.5)
    port, _ = page
    given, form = {"Content-Type": "multipart/form-data; boundary=x"}, b"--x--\r\n"
    for name in ("a" * 65, "", "a%20b", "a&upload_id=%C3%A4"):
        assert asked(port, "POST", f"/gradio_api/upload?upload_id={name}", form, **given)[0] == 400
    assert asked(port, "POST", "/gradio_api/upload?upload_id=of-some", form, **given)[0] == 200
    assert asked(port, "GET", "/gradio_api/upload_progress?upload_id=of-some")[1] == b'data: {"msg": "done"}\n\n'
    for name in ("seen", "unseen"):
        asked(port, "POST", f"/gradio_api/upload?upload_id={name}", form, **given)
    asked(port, "GET", "/gradio_api/upload_progress?upload_id=never")
    deadline = time.monotonic() + 10
    while {"of-some", "seen", "unseen", "never"} & {*noted._statuses, *noted._signals} and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not {"of-some", "seen", "unseen", "never"} & {*noted._statuses, *noted._signals}


def test_an_upload_holds_files_alone(page):
    """Gradio keeps a field that is no file in memory, however long it is."""
    head = '--part\r\nContent-Disposition: form-data; name="{}"\r\n\r\n'
    for name in ("files", "files; filename=a.png"):
        body = head.format(name) + "x" * 100 + "\r\n--part--\r\n"
        given = {"Content-Type": "multipart/form-data; boundary=part"}
        status, content = asked(page[0], "POST", "/gradio_api/upload", body.encode(), **given)
        assert (status, content) == (400, b"an upload holds files and nothing else")


def test_nothing_that_a_visitor_does_changes_the_memory_of_others(digits, digit_files, tmp_path):
    """To forget the images of unknowns changed the memory that all visitors see at first."""
    session = TeachingSession.open(backbone="conv4")
    session.learn(digits[0][:2], "zero")
    session.add_unknown(digits[5][:30])
    session.calibrate(0.1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = serve(session, port=port, wait=False, separate=True)
    try:
        version, threshold = session.version, session.threshold
        config = json.loads(asked(port, "GET", "/config")[1])
        for number, one in enumerate(config["dependencies"]):
            assert (
                called(port, "on_tick", [None, "", "", ""], f"v{number}", **{"Content-Type": "application/json"})[0]
                == 200
            )
            asked(port, "GET", f"/gradio_api/queue/data?session_hash=v{number}")
            if one["api_name"] in (
                "on_export",
                "on_frame",
            ):  # slow: the one makes a file, the other waits for more frames
                continue
            given = [_some(config, part) for part in one["inputs"]]
            body = {"data": given, "fn_index": one["id"], "session_hash": f"v{number}", "event_data": {"label": "zero"}}
            asked(port, "POST", "/gradio_api/queue/join", json.dumps(body), **{"Content-Type": "application/json"})
            asked(port, "GET", f"/gradio_api/queue/data?session_hash=v{number}")
        assert (session.version, session.threshold, session.model.classes) == (version, threshold, ["zero"])
    finally:
        blocks.close()


def test_a_web_site_cannot_use_a_page_that_is_open_to_others(digits):
    """Gradio allows the pages of every site: one read, downloaded and erased the memory through the browser of a user."""
    session = TeachingSession.open(backbone="conv4")
    session.learn(digits[0][:2], "zero")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = serve(session, "0.0.0.0", port, wait=False, hosts=["teach.example"])  # which did not start
    try:
        for host, status in (("teach.example", 200), ("192.0.2.2", 200), ("localhost", 200), ("evil.example", 403)):
            assert asked(port, "GET", "/config", Host=f"{host}:{port}")[0] == status
    finally:
        blocks.close()
    assert session.most_unknown == 2_500
    assert session.most_learned == session.copy().most_learned == 10_000
    blocks = serve(session, "0.0.0.0", port, wait=False)
    try:
        kind = {"Content-Type": "application/json"}
        for headers in (
            {"Origin": "http://192.0.2.9:8000"},
            {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"},
        ):
            assert called(port, "on_forget", [""], **headers, **kind)[0] == 403
            for path in ("/config", "/gradio_api/queue/data?session_hash=abc"):
                assert asked(port, "GET", path, **headers)[0] == 403
        own = {"Host": f"192.0.2.2:{port}", "Origin": f"http://192.0.2.2:{port}"}
        assert called(port, "on_load", [""], **own, **kind)[0] == 200
        assert session.model.classes == ["zero"]
    finally:
        blocks.close()
    for address in ("::", "::1", "fd00::2"):
        with pytest.raises(ValueError, match="the page takes no IPv6 address"):
            serve(session, address, port)


def test_what_a_visitor_is_refused_fills_no_log(digits, capfd, monkeypatch):
    """Gradio wrote a traceback of thirty lines for each error that a visitor was shown."""

    def full(*_):
        raise ValueError("too many visitors of a test")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = serve(TeachingSession.open(backbone="conv4"), port=port, wait=False, separate=True)
    try:
        monkeypatch.setattr("fewshot_nam.service.visitors.Sessions.of", full)
        called(port, "on_undo", [None, ""], **{"Content-Type": "application/json"})
        _, events = asked(port, "GET", "/gradio_api/queue/data?session_hash=abc")
        assert b"too many visitors of a test" in events
    finally:
        blocks.close()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_what_was_prepared_while_others_taught_is_offered_as_what_it_is(page, blocks, digits, monkeypatch):
    """It was said to be there, and the button was not: where others taught all the time, no export was ever to be had."""
    port, session = page
    taught(session, digits)
    copied = session.copy_to

    def copy_to(place):
        path = copied(place)
        session.learn(digits[8][30:31], "taught meanwhile")
        return path

    monkeypatch.setattr(session, "copy_to", copy_to)
    kind = {"Content-Type": "application/json"}
    assert called(port, "on_make", [""], "prepares", **kind)[0] == 200
    answer = asked(port, "GET", "/gradio_api/queue/data?session_hash=prepares")[1].decode()
    assert '"visible":true' in answer.replace(" ", "")
    assert "Download the memory, as it was before the last change" in answer
    # Another tab makes it anew, at the same place: the button of the first one said for good that it was of before.
    monkeypatch.undo()
    assert called(port, "on_make", [""], "other", **kind)[0] == 200
    asked(port, "GET", "/gradio_api/queue/data?session_hash=other")
    assert called(port, "on_tick", [None, "", None, ""], "prepares", **kind)[0] == 200
    answer = asked(port, "GET", "/gradio_api/queue/data?session_hash=prepares")[1].decode()
    assert "Download the memory" in answer
    assert "as it was before" not in answer
    # It is removed after an hour: the button is then gone too.
    shown = re.search(r'data-shown=\\"([^"\\]+)\\"', answer)[1]
    for path in Path(blocks.GRADIO_CACHE).rglob("*.safetensors"):
        path.unlink()
    assert called(port, "on_tick", [shown, "", None, ""], "prepares", **kind)[0] == 200
    answer = asked(port, "GET", "/gradio_api/queue/data?session_hash=prepares")[1].decode()
    assert '"visible":false' in answer.replace(" ", "")
    session.forget("taught meanwhile")


def test_a_visitor_who_changed_nothing_can_download_what_is_there(digits, tmp_path):
    """The file was offered, and gone with the session that had been made for it: the download was refused (403)."""
    session = TeachingSession.open(backbone="conv4")
    session.learn(digits[0][:2], "zero")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = serve(session, port=port, wait=False, separate=True)
    try:
        files = set()
        for visitor in ("one", "two", "one"):
            called(port, "on_make", [""], visitor, **{"Content-Type": "application/json"})
            _, events = asked(port, "GET", f"/gradio_api/queue/data?session_hash={visitor}")
            offered = re.search(rb"/gradio_api/file=[^\"]+", events)[0].decode()
            status, content = asked(port, "GET", offered)
            assert status == 200
            (tmp_path / "copy.safetensors").write_bytes(content)
            assert TeachingSession.open(tmp_path / "copy.safetensors").model.classes == ["zero"]
            # Each download left a copy that nothing counted: one visitor filled the disk.
            files |= set(Path(blocks.GRADIO_CACHE).rglob("*.safetensors"))
        assert len(files) == 1
    finally:
        blocks.close()


def _some(config, number):
    """Return a value for a component of the page."""
    kind = next(one["type"] for one in config["components"] if one["id"] == number)
    return {"textbox": "zero", "slider": 20.0}.get(kind)


def test_what_a_visitor_gives_at_a_time_is_bounded_but_for_who_sits_here(page, digits):
    _, session = page  # behind a proxy
    assert session.most_pixels == session.copy().most_pixels == 500_000_000
    local = TeachingSession.open(backbone="conv4")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve(local, port=port, wait=False).close()
    assert local.most_pixels is None


def test_connections_without_a_request_are_closed_and_bounded(page, blocks, monkeypatch):
    """Some thousand that sent nothing stopped the page for as long as they were there."""
    port, _ = page
    monkeypatch.setattr(http_server.Impatient, "SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as silent:
        silent.settimeout(60)
        assert silent.recv(1) == b""
    assert blocks.server.config.limit_concurrency == 1000


@pytest.mark.parametrize("few_files", [False, True])
def test_an_address_has_half_of_the_connections_also_without_a_request(page, blocks, monkeypatch, few_files):
    """A thousand that had sent half of a head kept all others out; where few files may be open, 500 were more than all."""
    port, _ = page
    if few_files:
        monkeypatch.setattr(blocks.server.config, "limit_concurrency", 10)
    else:
        monkeypatch.setattr(http_server.Impatient, "MOST_OF_AN_ADDRESS", 5)
    with contextlib.ExitStack() as held:
        for _ in range(5):
            one = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            one.sendall(b"GET / HTTP/1.1\r\n")
        time.sleep(0.2)
        refused = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        with contextlib.suppress(ConnectionError):
            assert refused.recv(1) == b""
        other = held.enter_context(socket.socket())
        other.settimeout(60)
        other.bind(("127.0.0.2", 0))
        other.connect(("127.0.0.1", port))
        other.sendall(b"GET /config HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert other.recv(12) == b"HTTP/1.1 200"
    for _ in range(600):
        if not http_server.Impatient._connections["127.0.0.2"]:
            return
        time.sleep(0.1)
    raise AssertionError(http_server.Impatient._connections)


def test_the_page_says_that_no_other_site_may_show_it_within_its_own(page):
    port, _ = page
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert answer.getheader("content-security-policy") == "frame-ancestors 'self'"
    assert answer.getheader("x-frame-options") == "SAMEORIGIN"
    connection.close()


def test_importing_the_page_writes_no_file_beside_it():
    """Gradio writes types beside a module that has a component of its own."""
    assert not any(Path(one.__file__).with_suffix(".pyi").exists() for one in (page_module, page_blocks))


def test_what_a_tab_shows_it_says_itself(page, digits):
    """Gradio kept it of 200 visitors: from the next open tab on, each drew all anew at each tick, and nothing could be undone."""
    port, session = page
    taught(session, digits)
    kind = {"Content-Type": "application/json"}

    def asked_of(name, given, visitor):
        assert called(port, name, given, visitor, **kind)[0] == 200
        return asked(port, "GET", f"/gradio_api/queue/data?session_hash={visitor}")[1].decode()

    shown = re.search(r'data-shown=\\"([^"\\]+)\\"', asked_of("on_tick", ["", "", None, ""], "first"))[1]
    assert "nam-class" not in asked_of("on_tick", [shown, "", None, ""], "renamed")
    # A change that was asked for before the text was another drew the classes by the old one, for good.
    assert "nam-class" in asked_of("on_tick", [shown, "zero", None, ""], "renamed")
    session.learn(digits[6][30:31], "taught elsewhere")
    assert "nam-class" in asked_of("on_tick", [shown, "", None, ""], "another")
    version = session.version
    name = shown.partition(" ")[0]
    for old in ("", "5", "x", f"{'0' * 16} {version} True True", shown, f"{name} {'9' * 30} "):
        assert "nothing is undone" in asked_of("on_undo", [old, ""], "another")
    assert session.version == version
    assert "Undone: learn" in asked_of("on_undo", [f"{name} {version} True False", ""], "another")


def test_what_the_camera_showed_at_the_click_is_learned(page, digits, digit_files):
    port, session = page
    taught(session, digits)
    version = session.version
    image = as_url(digit_files[5][0].read_bytes())
    for number, (given, said) in enumerate(
        [
            (image, b"Learned disc (1 image)"),
            (None, b"the camera shows nothing: start it"),
            (as_url(b"no image"), b"no image can be used"),
            ({"path": str(digit_files[6][0])}, b"there are no answers"),  # refused before it is asked
        ]
    ):
        called(port, "on_learn_frame", ["disc", "", given], f"v{number}", **{"Content-Type": "application/json"})
        assert said in asked(port, "GET", f"/gradio_api/queue/data?session_hash=v{number}")[1]
    assert session.version == version + 1

"""The page as programs see it that are no browser: requests from elsewhere, and for files of this machine."""

import base64
import http.client
import json
import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from fewshot_nam.service.teaching import TeachingSession

pytest.importorskip("gradio")

from fewshot_nam.service import page as page_module
from fewshot_nam.service.page import Sessions, serve


@pytest.fixture(scope="module")
def page(tmp_path_factory, digits):
    """A page that is served by this process: its port, and its session, which has a file and knows one class."""
    memory = tmp_path_factory.mktemp("page") / "memory.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")
        session = TeachingSession.open(memory, backbone="conv4")
        session.learn(digits[0][:2], "zero")
        session.save()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        served = serve(session, port=port, wait=False, hosts=["teach.example"])
        yield port, session
        served.close()


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
    status, _ = called(port, "on_undo", [""], Origin=f"http://127.0.0.1:{port}", **{"Content-Type": "application/json"})
    assert status == 200


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
    called(port, "on_learn_files", ["stolen", [given], None, ""], **{"Content-Type": "application/json"})
    _, events = asked(port, "GET", "/gradio_api/queue/data?session_hash=abc")
    assert b'"success":false' in events.replace(b" ", b"")
    assert session.version == version


def taught(session, digits):
    """Let a session know the class zero, whatever the tests before have changed."""
    if "zero" not in session.model.classes:
        session.learn(digits[0][:2], "zero")


def answered(port, given, session):
    """Ask about an image as the page's script does; return all that comes back."""
    called(port, "on_asked", [given], session, **{"Content-Type": "application/json"})
    return asked(port, "GET", f"/gradio_api/queue/data?session_hash={session}")[1]


def test_an_image_of_this_machine_cannot_be_asked_about(page, digits, digit_files):
    port, session = page
    taught(session, digits)
    for number, given in enumerate(({"path": str(digit_files[0][5])}, {"url": f"file://{digit_files[0][5]}"})):
        events = answered(port, given | {"meta": {"_type": "gradio.FileData"}}, f"stolen-{number}")
        assert b"process_completed" in events
        assert b"zero" not in events


def as_url(content):
    return {"url": "data:image/png;base64," + base64.b64encode(content).decode(), "meta": {"_type": "gradio.FileData"}}


def test_an_image_that_is_too_large_is_refused_before_it_is_decoded(page, digits, tmp_path):
    """Gradio decoded it, and every tab held what its camera showed last: 675 MB of a file of 21 KB, for good."""
    port, session = page
    taught(session, digits)
    Image.new("1", (9000, 8000)).save(tmp_path / "large.png")
    content = (tmp_path / "large.png").read_bytes()
    head = '--part\r\nContent-Disposition: form-data; name="files"; filename="large.png"\r\n\r\n'
    body = head.encode() + content + b"\r\n--part--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=part"}
    status, names = asked(port, "POST", "/gradio_api/upload", body, **kind)
    assert status == 200
    uploaded = {"path": json.loads(names)[0], "meta": {"_type": "gradio.FileData"}}
    assert b"9000 x 8000 pixels are too many" in answered(port, uploaded, "uploads")
    assert b"9000 x 8000 pixels are too many" in answered(port, as_url(content), "camera")


def test_what_the_camera_sends_is_read_as_it_is_and_leaves_no_file(page, digits, digit_files):
    """As a frame: Gradio opened it with any format, wrote it anew with losses, and kept all frames in files."""
    port, session = page
    taught(session, digits)
    before = sorted(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*"))
    content = digit_files[0][1].read_bytes()
    assert b"zero" in answered(port, as_url(content), "frames")
    assert page_module.as_given(page_module.ImageData(**as_url(content))) == content
    assert sorted(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*")) == before
    for wrong in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n(x) run\n", b"no image"):
        assert b"the image: not an image" in answered(port, as_url(wrong), f"wrong-{len(wrong)}")
    given = {"url": "data:image/png;base64,%%%", "meta": {"_type": "gradio.FileData"}}
    assert b'"success":false' in answered(port, given, "no-base64").replace(b" ", b"")


def test_a_visitor_does_not_lose_a_memory_to_those_who_only_look(digits, monkeypatch):
    monkeypatch.setattr(page_module, "_VISITORS", 3)
    clock = [0.0]
    monkeypatch.setattr(page_module.time, "monotonic", lambda: clock[0])
    sessions = Sessions(TeachingSession.open(backbone="conv4"), separate=True)
    sessions.of("honest").learn(digits[0][:1], "zero")
    for i in range(10):
        assert sessions.of(f"looks {i}", "show") is sessions.of(f"asks {i}", "ask") is sessions.first
    for name in ("second", "third"):
        sessions.of(name).learn(digits[1][:1], "one")
    with pytest.raises(ValueError, match="3 visitors teach at the moment"):
        sessions.of("fourth")
    clock[0] = 2000.0
    sessions.of("honest", "ask")
    clock[0] = 4000.0  # the second and the third were not used for more than an hour, but for a tab that is open
    assert sessions.of("second", "show").model.classes == ["one"]
    assert sessions.of("fourth").model.classes == []
    assert sessions.of("second", "ask") is sessions.first
    assert sessions.of("honest").model.classes == ["zero"]
    assert sessions.of("third").model.classes == ["one"]


def test_importing_the_page_writes_no_file_beside_it():
    """Gradio writes types beside a module that has a component of its own."""
    assert not Path(page_module.__file__).with_suffix(".pyi").exists()

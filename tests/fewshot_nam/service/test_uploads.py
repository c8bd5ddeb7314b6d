"""Uploads are bounded together, those that were broken off are removed, and so are directories of processes that were killed."""

import asyncio
import errno
import itertools
import os
import subprocess
import sys
import threading
import time

import pytest
from gradio.route_utils import GradioMultiPartParser
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from fewshot_nam.service import uploads
from fewshot_nam.service.uploads import UploadLimit, temporary_directory


@pytest.fixture
def client(tmp_path, monkeypatch):
    async def kept(request):
        (tmp_path / "done").mkdir(exist_ok=True)
        (tmp_path / "done" / f"{len(list((tmp_path / 'done').iterdir()))}").write_bytes(await request.body())
        return PlainTextResponse("kept")

    routes = [Route("/gradio_api/upload", kept, methods=["POST"]), Route("/other", kept, methods=["POST"])]
    monkeypatch.setattr(uploads, "_BLOCK", 1)  # byte
    limit = Middleware(UploadLimit, directory=tmp_path, most=1000)
    return TestClient(Starlette(routes=routes, middleware=[limit]), client=("127.0.0.1", 50000))


def test_uploads_are_bounded_together(client, tmp_path):
    assert client.post("/gradio_api/upload", content=b"x" * 600).text == "kept"
    refused = client.post("/gradio_api/upload", content=b"x" * 401)
    assert refused.status_code == 507
    assert "no room for 401 more bytes: uploads may take 1,000 together" in refused.text
    assert client.post("/gradio_api/upload", content=b"x" * 399).text == "kept"
    assert client.post("/other", content=b"x" * 5000).text == "kept"


@pytest.mark.parametrize("length", [b"many", b"-5", "\u0665".encode(), b"9" * 30])
def test_an_upload_says_how_long_it_is(client, length):
    assert client.post("/gradio_api/upload", content=iter([b"x" * 10])).status_code == 411
    assert client.post("/gradio_api/upload", headers={"Content-Length": length}).status_code == 411


def test_what_only_says_that_it_will_come_takes_no_room_and_ends(tmp_path, monkeypatch):
    """One connection that said 4 GB and sent nothing kept all others out, for as long as it stayed."""
    monkeypatch.setattr(uploads, "_COMING_SECONDS", 0.5)
    said = []

    async def behind(scope, receive, send):
        body = b""
        try:
            while (message := await receive()).get("more_body"):
                body += message["body"]
            said.append(len(body + message["body"]))
        except MultiPartException as error:
            said.append(error.message)

    limit = UploadLimit(behind, tmp_path, most=1000)

    async def upload(length, *chunks):
        left = [*chunks]

        async def receive():
            await asyncio.sleep(0.02 if left else 60)
            return {
                "type": "http.request",
                "body": left.pop(0),
                "more_body": bool(left) or length > sum(map(len, chunks)),
            }

        async def send(message):
            said.append(message.get("status"))

        headers = [(b"content-length", str(length).encode())]
        await limit({"type": "http", "method": "POST", "path": "/upload", "headers": headers}, receive, send)

    async def together():
        waiting = asyncio.create_task(upload(990, b"x" * 10))
        await asyncio.sleep(0.1)
        await upload(900, b"x" * 900)
        await waiting

    asyncio.run(together())
    assert said == [900, "nothing came for 0.5 seconds"]
    said.clear()

    async def at_once():
        await limit._count()  # what lies there, which is nothing
        await asyncio.gather(upload(700, b"x" * 350, b"x" * 350), upload(700, b"x" * 350, b"x" * 350))

    asyncio.run(at_once())
    assert len(said) == 2
    assert any("no room" in str(one) for one in said)
    assert limit._coming == 0


FORM = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n\r\n'


def upload(limit, said, address, *chunks, wait=0.0):
    """Return the upload of chunks, each after a wait; the last waits for ever."""
    left = [*chunks]

    async def receive():
        await asyncio.sleep(wait if left else 60)
        return {"type": "http.request", "body": left.pop(0), "more_body": True}

    async def send(message):
        said.append(message)

    headers = [(b"content-length", b"9999"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/upload", "headers": headers, "client": (address, 1)}
    return limit(scope, receive, send)


async def reads_all(scope, receive, send):
    """Read a request until an error, which is sent."""
    try:
        while True:
            await receive()
    except MultiPartException as error:
        await send(error.message)


def test_files_of_uploads_that_are_open_are_bounded(tmp_path):
    """A thousand small files of uploads that went on took all that the page may open: nobody reached it any more."""
    limit, said = UploadLimit(reads_all, tmp_path, most_open=8), []

    async def together():
        first = asyncio.create_task(upload(limit, said, "192.0.2.1", FORM * 3, FORM))
        await asyncio.sleep(0.1)
        assert limit._open.total() == 4
        await asyncio.wait_for(upload(limit, said, "192.0.2.1", FORM), 5)  # an address has half of them
        assert said == ["too many files at one time: give 4 at most, or later"]
        others = [asyncio.create_task(upload(limit, said, a, FORM * 2)) for a in ("192.0.2.2", "192.0.2.3")]
        await asyncio.sleep(0.1)
        assert (limit._open.total(), len(said)) == (8, 1)
        await asyncio.wait_for(upload(limit, said, "127.0.0.1", FORM), 5)  # all of them
        assert len(said) == 2
        for task in (first, *others):
            task.cancel()
        await asyncio.gather(first, *others, return_exceptions=True)
        assert not limit._open
        again = asyncio.create_task(upload(limit, said, "127.0.0.1", FORM * 8))
        await asyncio.sleep(0.1)
        assert (limit._open.total(), len(said)) == (8, 2)
        again.cancel()

    asyncio.run(together())


@pytest.mark.parametrize("name", ["Content-Type", "content-length"])
def test_an_upload_has_one_type_and_one_length(tmp_path, name):
    """Gradio read the first of two types, and the bound on open files the last: it counted nothing."""
    headers = [(b"content-length", b"9"), (b"content-type", b"multipart/form-data; boundary=x"), (name.encode(), b"9")]
    answers = []

    async def send(message):
        answers.append(message)

    async def behind(scope, receive, send):
        pytest.fail("it was passed on")

    scope = {"type": "http", "method": "POST", "path": "/upload", "headers": headers, "client": ("192.0.2.1", 1)}
    asyncio.run(UploadLimit(behind, tmp_path)(scope, None, send))
    assert answers[0]["status"] == 400


def test_an_upload_names_its_files_in_utf_8(client):
    """Gradio decodes names with the codec that the client names: Punycode takes time with the square of the length."""
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n\r\n--x--\r\n'
    for charset, status in (("punycode", 400), ("unicode_escape", 400), ("UTF-8", 200)):
        headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
        assert client.post("/gradio_api/upload", content=form, headers=headers).status_code == status
    headers = {"content-type": f"multipart/form-data; boundary={'x' * 257}"}  # for which the parser raises
    assert client.post("/gradio_api/upload", content=form, headers=headers).status_code == 400


@pytest.mark.parametrize(("length", "status"), [(255, 200), (256, 400)])
def test_names_of_files_are_as_long_as_a_disk_takes_them(tmp_path, length, status):
    """Gradio shortens them letter by letter: 1,000 of 4,000 letters took three seconds, in which nobody was answered."""

    async def kept(request):
        await request.body()
        return PlainTextResponse("kept")

    routes = [Route("/gradio_api/upload", kept, methods=["POST"])]
    client = TestClient(Starlette(routes=routes, middleware=[Middleware(UploadLimit, directory=tmp_path)]))
    head = f'Content-Disposition: form-data; name="files"; filename="{"a" * length}"'
    form = f"--x\r\n{head}\r\n\r\n\r\n--x--\r\n".encode()
    headers = {"content-type": "multipart/form-data; boundary=x"}
    try:
        found = client.post("/gradio_api/upload", content=form, headers=headers).status_code
    except MultiPartException:  # Starlette or Gradio answer 400
        found = 400
    assert found == status


def test_data_that_look_like_the_end_of_a_part_are_refused(client, monkeypatch):
    monkeypatch.setattr(uploads, "_MOST_PARTS", 5)
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    form = head + b"\r\n--x!" * 4 + b"\r\n--x--\r\n"
    assert client.post("/gradio_api/upload", content=form, headers=headers).status_code == 200
    with pytest.raises(MultiPartException, match="up to 5 parts"):  # of which Gradio makes 400
        client.post("/gradio_api/upload", content=form.replace(b"!", b"!" + b"\r\n--x!"), headers=headers)


def test_an_upload_that_only_drips_ends(tmp_path, monkeypatch):
    """Of a form of many files, which were all open to its end, a byte every 20 seconds came, for hours."""
    monkeypatch.setattr(uploads, "_COMING_SECONDS", 0.5)
    monkeypatch.setattr(uploads, "_SLOWEST", 1000)
    limit, said = UploadLimit(reads_all, tmp_path), []

    async def together():
        dripping = upload(limit, said, "192.0.2.1", FORM * 5, *[b"y"] * 1000, wait=0.2)
        steady = asyncio.create_task(upload(limit, said, "192.0.2.2", *[FORM * 5] * 1000, wait=0.2))
        await asyncio.wait_for(dripping, 10)
        assert said == ["an upload comes with at least 1,000 bytes a second"]
        await asyncio.sleep(0.5)
        assert not steady.done()
        steady.cancel()

    asyncio.run(together())


def test_what_was_broken_off_is_removed_by_a_later_upload(client, tmp_path):
    for name, age in (("old", 4000), ("new", 3), ("coming", -3)):
        (tmp_path / name).write_bytes(b"x" * 500)
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert client.post("/gradio_api/upload", content=b"x" * 400).text == "kept"
    assert [(tmp_path / name).exists() for name in ("old", "new", "coming")] == [False, False, True]


def test_what_is_broken_off_is_removed_at_once(tmp_path):
    """It stayed as long as another upload went on, which took a byte now and then; and the log got 84 lines each time."""
    messages = [{"type": "http.request", "body": FORM * 3, "more_body": True}, {"type": "http.disconnect"}]
    left, said = [], []

    async def receive():
        return messages.pop(0)

    async def send(message):
        said.append(message)

    async def behind(scope, receive, send):
        async def stream():
            while True:
                yield (await receive())["body"]

        headers = Headers(raw=scope["headers"])
        with pytest.raises(MultiPartException, match="the client broke the upload off"):
            await GradioMultiPartParser(headers, stream(), upload_dir=tmp_path, max_file_size=10**6).parse()
        left.append(len(list(tmp_path.iterdir())))

    limit = UploadLimit(behind, tmp_path)
    limit._running[object()] = time.time() - 60
    headers = [(b"content-length", b"9999"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/upload", "headers": headers, "client": ("192.0.2.1", 1)}
    asyncio.run(limit(scope, receive, send))
    assert left == [0]


def test_what_was_broken_off_is_removed_without_a_later_upload(tmp_path, monkeypatch):
    """It stayed for ever where nobody uploaded anything more, and a disk that it had filled stayed full."""
    monkeypatch.setattr(uploads, "_SWEPT_SECONDS", 0.2)
    monkeypatch.setattr(uploads, "_CLOCK_SECONDS", 0.0)

    async def behind(scope, receive, send):
        (tmp_path / "part").write_bytes(b"x" * 100)
        raise OSError(errno.ENOSPC, "No space left on device")

    limit, said = UploadLimit(behind, tmp_path), []

    async def together():
        for _ in range(2):
            await upload(limit, said, "192.0.2.1")
            assert said.pop(0)["status"] == 507
            said.clear()
            assert (tmp_path / "part").exists()
            await asyncio.sleep(0.6)
            assert not list(tmp_path.iterdir())
        assert limit._sweep.done()

    asyncio.run(together())


def test_what_is_being_read_is_not_taken_for_broken_off(tmp_path, monkeypatch):
    """The first of many files of an upload may be whole long before the last one."""
    monkeypatch.setattr(uploads, "_CLOCK_SECONDS", 0.0)

    async def behind(scope, receive, send):
        await asyncio.sleep(0.02)  # the clock of files is a coarse one
        (tmp_path / scope["name"]).write_bytes(b"x")
        await asyncio.sleep(scope["seconds"])
        assert (tmp_path / scope["name"]).exists()

    limit = UploadLimit(behind, tmp_path, most=10**6)

    async def upload(name, seconds):
        limit._next_count = 0.0
        headers = [(b"content-length", b"1")]
        given = {
            "type": "http",
            "method": "POST",
            "path": "/upload",
            "headers": headers,
            "name": name,
            "seconds": seconds,
        }
        await limit(given, None, None)

    async def together():
        long = asyncio.create_task(upload("long", 0.5))
        for i in range(4):
            await asyncio.sleep(0.05)
            await upload(f"short-{i}", 0.01)
        await long
        await asyncio.sleep(0.05)
        await upload("last", 0.0)

    asyncio.run(together())
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_what_is_broken_off_beside_an_upload_that_drips_counts(tmp_path):
    """As its files could be those of the other, they were neither counted nor removed, and filled the disk."""
    limit = UploadLimit(None, tmp_path, most=100_000)
    limit._running[object()] = time.time() - 60
    (tmp_path / "drips").write_bytes(b"x" * 5_000)
    limit._coming = 3 * 4096
    assert limit._taken() == 0
    for i in range(5):
        (tmp_path / f"broken-{i}").write_bytes(b"x" * 8_000)
    assert limit._taken() == 5 * 3 * 4096
    limit._running.clear()
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 5,) * 2)
    assert limit._taken() == 0
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_and_what_came_is_removed(tmp_path, monkeypatch):
    """It was a traceback, and the part that had come filled the disk for an hour."""
    monkeypatch.setattr(uploads, "_CLOCK_SECONDS", -0.001)

    async def kept(request):
        content = await request.body()
        if len(content) > 100:
            (tmp_path / "part").write_bytes(b"x" * 100)
            raise OSError(errno.ENOSPC, "No space left on device")
        if content == b"other":
            raise OSError(errno.EIO, "Input/output error")
        return PlainTextResponse("kept")

    limit = Middleware(UploadLimit, directory=tmp_path)
    routes = [Route("/gradio_api/upload", kept, methods=["POST"])]
    client = TestClient(Starlette(routes=routes, middleware=[limit]), client=("127.0.0.1", 50000))
    refused = client.post("/gradio_api/upload", content=b"x" * 200)
    assert (refused.status_code, refused.text) == (
        507,
        "no room: the disk of temporary files is full, or a file may not be so large",
    )
    time.sleep(0.05)
    assert client.post("/gradio_api/upload", content=b"x" * 50).text == "kept"
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="Input/output error"):
        client.post("/gradio_api/upload", content=b"other")


def test_the_directory_of_a_process_that_was_killed_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = (
        "import os, signal; from fewshot_nam.service.uploads import temporary_directory; "
        "print(temporary_directory(), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", made], env=environment, capture_output=True, text=True, check=False)
    left = killed.stdout.strip()
    assert os.path.isdir(left)
    own = temporary_directory()
    assert not os.path.exists(left)
    assert temporary_directory() != own
    assert own.is_dir()
    assert own.stat().st_mode & 0o777 == 0o700


def test_small_files_count_with_what_they_take_on_the_disk(tmp_path):
    """Six thousand files of five bytes took 53 MB, and counted as 30 kB."""
    for i in range(10):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}" / "file").write_bytes(b"12345")
    assert UploadLimit(None, tmp_path)._taken() == 10 * 8192


def test_files_count_with_what_they_take_while_they_come(tmp_path):
    seen = []

    async def behind(scope, receive, send):
        while (await receive()).get("more_body"):
            seen.append(limit._coming)

    limit = UploadLimit(behind, tmp_path, most=100_000)
    part = b'--part\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx\r\n'
    left = [part * 5, part * 5, part * 5, b"--part--\r\n"]
    length = sum(map(len, left))

    async def receive():
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    headers = [(b"content-length", str(length).encode()), (b"content-type", b"multipart/form-data; boundary=part")]
    scope = {"type": "http", "method": "POST", "path": "/upload", "headers": headers}
    with pytest.raises(MultiPartException, match="there is no room for more"):
        asyncio.run(limit(scope, receive, None))
    assert seen == [5 * (len(part) + 8192), 10 * (len(part) + 8192)]
    assert limit._coming == 0


def test_an_address_has_half_of_the_room_for_an_hour(tmp_path, monkeypatch):
    """One filled it in half a minute, and for an hour no other upload was taken."""
    clock, said = [0.0], []
    monkeypatch.setattr(uploads.time, "monotonic", lambda: clock[0])

    async def behind(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        said.append(200)

    limit = UploadLimit(behind, tmp_path, most=1000)

    def upload(size, address):
        async def receive():
            return {"type": "http.request", "body": b"x" * size, "more_body": False}

        async def send(message):
            if "status" in message:
                said.append(message["status"])

        headers = [(b"content-length", str(size).encode())]
        scope = {"type": "http", "method": "POST", "path": "/upload", "headers": headers, "client": (address, 0)}
        asyncio.run(limit(scope, receive, send))
        return said.pop()

    assert [upload(300, "192.0.2.1"), upload(300, "192.0.2.1"), upload(200, "192.0.2.1")] == [200, 507, 200]
    assert [upload(500, "192.0.2.2"), upload(900, "127.0.0.1")] == [200, 200]
    clock[0] = 5000.0
    assert upload(500, "192.0.2.1") == 200
    assert set(limit._given) == {"192.0.2.1"}


def test_uploads_of_one_address_that_come_at_a_time_have_half_of_the_room(tmp_path):
    """Each was counted when it had ended, so that three at a time took all of it."""
    said = []

    async def behind(scope, receive, send):
        try:
            while (await receive()).get("more_body"):
                pass
        except MultiPartException as error:
            said.append(error.message)
        else:
            said.append(200)

    limit = UploadLimit(behind, tmp_path, most=1000)

    async def upload(address):
        left = [b"x" * 200, b"x" * 200]

        async def receive():
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": left.pop(), "more_body": bool(left)}

        headers = [(b"content-length", b"400")]
        scope = {"type": "http", "method": "POST", "path": "/upload", "headers": headers, "client": (address, 0)}
        await limit(scope, receive, None)

    async def together():
        await asyncio.gather(*(upload("192.0.2.1") for _ in range(2)))

    asyncio.run(together())
    assert len(said) == 2
    assert any("no room" in str(one) for one in said)
    asyncio.run(upload("192.0.2.2"))
    assert said[2] == 200


def test_old_files_are_removed_while_others_come(tmp_path, monkeypatch):
    """Gradio's own task ended for good when a file came while it looked, so that no upload was removed any more."""

    def uploaded(number):
        place = tmp_path / f"{number:064x}"
        place.mkdir()
        (place / "image.png").write_bytes(b"x")
        return str(place / "image.png")

    old, shown, gone = uploaded(0), uploaded(1), uploaded(2)
    downloads = tmp_path / "downloads"  # which further files are written to
    downloads.mkdir()
    (downloads / "memory.safetensors").write_bytes(b"x")
    first, second = (
        {old, shown, gone},
        {old, gone, str(tmp_path / "never"), "no\0path", str(downloads / "memory.safetensors")},
    )
    os.unlink(gone)
    uploads.remove_old([first, second], {shown})
    assert first == {old, shown}  # too new
    assert "no\0path" not in second
    monkeypatch.setattr(uploads, "REMOVED_SECONDS", -1.0)
    uploads.remove_old([first, second], {shown})
    assert (first, second) == ({shown}, set())
    assert [place.name for place in tmp_path.iterdir() if any(place.iterdir())] == [f"{1:064x}"]
    assert not (tmp_path / f"{0:064x}").exists()
    assert downloads.is_dir()

    paths, ended = {str(tmp_path / f"none-{i}") for i in range(2000)}, threading.Event()

    def add():
        for i in itertools.count():
            paths.add(f"/nowhere/{i % 5000}")
            if ended.is_set():
                break

    adding = threading.Thread(target=add)
    adding.start()
    try:
        for _ in range(20):
            uploads.remove_old([paths], set())
    finally:
        ended.set()
        adding.join()


def test_what_lies_there_is_not_counted_anew_for_each_upload(tmp_path, monkeypatch):
    """After an hour of a camera each upload looked at thousands of files, and took as long as all before it."""
    counts = []

    def slow(limit):
        counts.append(1)
        time.sleep(0.05)
        return taken(limit)

    taken = UploadLimit._taken
    monkeypatch.setattr(UploadLimit, "_taken", slow)
    monkeypatch.setattr(uploads, "_BLOCK", 1)

    async def behind(scope, receive, send):
        body = (await receive())["body"]
        number = len(list(tmp_path.iterdir()))
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "image").write_bytes(body)

    said = []
    limit = UploadLimit(behind, tmp_path, most=1000)

    async def upload(length):
        async def receive():
            return {"type": "http.request", "body": b"x" * length, "more_body": False}

        async def send(message):
            said.append(message.get("status"))

        headers = [(b"content-length", str(length).encode())]
        await limit({"type": "http", "method": "POST", "path": "/upload", "headers": headers}, receive, send)

    async def all_of_them():
        for _ in range(100):
            await upload(10)
        await upload(1)
        assert said[0] == 507  # what came since it was counted is known
        for found in list(tmp_path.iterdir())[:50]:
            (found / "image").unlink()
        limit._next_count = 0.0
        del said[:]
        await upload(400)
        assert not said

    asyncio.run(all_of_them())
    assert len(counts) < 10

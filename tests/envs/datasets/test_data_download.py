import http.server
import os
import resource
import threading

import numpy as np
import pytest

from envs.core import UsageError
from envs.datasets.download import default_cache, fetch
from envs.datasets.files import sha256_of

BODY = np.random.default_rng(0).bytes(300_000)
NAME = "set.hdf5"


class Server(http.server.ThreadingHTTPServer):
    """Serves `body` under any name; the fields below make it misbehave."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag, self.ranges, self.status = BODY, '"one"', True, 200
        self.cut: list[int] = []  # how many bytes to send before breaking off, for the next answers
        self.seen: list[str | None] = []  # the Range header of each request
        self.url = f"http://127.0.0.1:{self.server_address[1]}/{NAME}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.seen.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start and self.headers.get("If-Range") != server.etag:
            start = 0
        if start >= len(server.body):
            self.send_error(416)
            return
        part = server.body[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: server.cut.pop(0)] if server.cut else part)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def names(folder):
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.endswith(".lock"))


def test_download_is_kept_and_recorded(server, tmp_path, capsys):
    path = fetch(NAME, [server.url], tmp_path / "new")
    assert path.read_bytes() == BODY
    assert names(path.parent) == [NAME, f"{NAME}.sha256"]
    assert (tmp_path / "new" / f"{NAME}.sha256").read_text() == f"{sha256_of(path)}  {NAME}\n"
    assert capsys.readouterr().err.splitlines() == [f"fetching {server.url} to {path.parent}"]
    assert fetch(NAME, [server.url], tmp_path / "new") == path
    assert server.seen == [None]  # the second time nothing was asked for


def test_cache_folder_from_the_environment(server, monkeypatch, tmp_path):
    assert fetch(NAME, [server.url]) == tmp_path / "cache" / NAME
    monkeypatch.delenv("ADAPTAX_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "adaptax" / "datasets"


def test_cut_connections_are_resumed(server, tmp_path):
    server.cut = [100_000, 50_000]
    assert fetch(NAME, [server.url], tmp_path).read_bytes() == BODY
    assert server.seen == [None, "bytes=100000-", "bytes=150000-"]


def leave_part(server, folder, size=120_000):
    """A download that stopped after `size` bytes, because nothing more came."""
    server.cut = [size, 0 if server.etag else size]
    with pytest.raises(UsageError, match=f"connection broke after {size} of 300000 bytes"):
        fetch(NAME, [server.url], folder)
    assert names(folder) == [f"{NAME}.part", f"{NAME}.part.json"]
    server.cut, server.seen = [], []


def test_next_call_goes_on_where_the_last_one_stopped(server, tmp_path):
    leave_part(server, tmp_path)
    assert fetch(NAME, [server.url], tmp_path).read_bytes() == BODY
    assert server.seen == ["bytes=120000-"]
    assert names(tmp_path) == [NAME, f"{NAME}.sha256"]


def test_server_without_ranges_starts_again(server, tmp_path):
    leave_part(server, tmp_path)
    server.ranges = False
    assert fetch(NAME, [server.url], tmp_path).read_bytes() == BODY


def test_changed_content_is_not_joined(server, tmp_path):
    leave_part(server, tmp_path)
    server.body, server.etag = BODY[::-1], '"two"'
    assert fetch(NAME, [server.url], tmp_path).read_bytes() == BODY[::-1]


def test_part_longer_than_the_file_starts_again(server, tmp_path):
    leave_part(server, tmp_path)
    server.body = BODY[:1000]
    assert fetch(NAME, [server.url], tmp_path).read_bytes() == BODY[:1000]
    assert server.seen == ["bytes=120000-", None]


def test_nothing_is_resumed_without_a_validator(server, tmp_path):
    server.etag = None
    leave_part(server, tmp_path)
    assert fetch(NAME, [server.url], tmp_path).read_bytes() == BODY
    assert server.seen == [None]


def test_whole_part_needs_no_request(server, tmp_path):
    leave_part(server, tmp_path)
    (tmp_path / f"{NAME}.part").write_bytes(BODY)  # stopped between the last byte and the renaming
    assert fetch(NAME, [server.url], tmp_path).read_bytes() == BODY
    assert server.seen == []


def test_dead_and_lacking_mirrors_are_passed_over(server, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPTAX_MIRRORS", "http://127.0.0.1:9/a/, gopher://nowhere")
    assert fetch(NAME, [server.url], tmp_path).read_bytes() == BODY
    server.status = 404
    with pytest.raises(UsageError) as caught:
        fetch("other.hdf5", [server.url], tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    for part in (
        "other.hdf5",
        "http://127.0.0.1:9/a/other.hdf5",
        "HTTP 404",
        "data.path=FILE",
        "ADAPTAX_MIRRORS",
    ):
        assert part in text
    monkeypatch.delenv("ADAPTAX_MIRRORS")
    with pytest.raises(UsageError, match="no public address of it is known"):
        fetch("third.hdf5", [], tmp_path)


def test_configured_mirrors_come_first(server, tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / NAME).write_bytes(b"near")
    monkeypatch.setenv("ADAPTAX_MIRRORS", f"file://{tmp_path}/shared")
    assert fetch(NAME, [server.url], tmp_path / "cache").read_bytes() == b"near"
    assert server.seen == []


def test_wrong_checksum_of_a_download(server, tmp_path):
    found = sha256_of(fetch(NAME, [server.url], tmp_path / "right"))
    with pytest.raises(UsageError, match=f"{NAME} .*sha256 is {found}, expected {'0' * 64}.*data.path=FILE"):
        fetch(NAME, [server.url], tmp_path / "wrong", sha256="0" * 64)
    assert names(tmp_path / "wrong") == []


def test_a_good_mirror_after_a_bad_one(server, tmp_path):
    right = sha256_of(fetch(NAME, [server.url], tmp_path / "right"))
    with Server() as bad:
        bad.body = b"<html>log in first</html>"
        thread = threading.Thread(target=bad.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        path = fetch(NAME, [bad.url, server.url], tmp_path / "cache", sha256=right)
        bad.shutdown()
        thread.join()
    assert path.read_bytes() == BODY


def test_cached_file_that_changed_is_put_aside(server, tmp_path):
    path = fetch(NAME, [server.url], tmp_path)
    good = sha256_of(path)
    path.write_bytes(BODY[:-1] + b"x")
    with pytest.raises(UsageError, match=f"expected {good}; it is now {NAME}.damaged; run again"):
        fetch(NAME, [server.url], tmp_path)
    assert names(tmp_path) == [f"{NAME}.damaged"]
    assert fetch(NAME, [server.url], tmp_path).read_bytes() == BODY


def test_file_put_into_the_cache_by_hand_is_recorded(tmp_path):
    (tmp_path / NAME).write_bytes(b"by hand")
    assert fetch(NAME, [], tmp_path).read_bytes() == b"by hand"
    assert (tmp_path / f"{NAME}.sha256").read_text().startswith(sha256_of(tmp_path / NAME))


def test_full_disk_keeps_what_arrived(server, tmp_path):
    """A limit on the size of files stands for the full disk."""
    server.body = np.random.default_rng(1).bytes(5 << 20)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, limits[1]))
    try:
        with pytest.raises(UsageError, match=r"set\.hdf5\.part: cannot be written .*ADAPTAX_DATA=FOLDER"):
            fetch(NAME, [server.url], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    arrived = (tmp_path / f"{NAME}.part").stat().st_size
    assert arrived == 3 << 20
    assert fetch(NAME, [server.url], tmp_path).read_bytes() == server.body
    assert server.seen[-1] == f"bytes={arrived}-"


def test_cache_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cache cannot be written.*ADAPTAX_DATA=FOLDER"):
        fetch(NAME, [server.url], tmp_path / "file" / "cache")


def test_parallel_jobs_download_once(server, tmp_path):
    jobs = [threading.Thread(target=fetch, args=(NAME, [server.url], tmp_path)) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert server.seen == [None]
    assert os.listdir(tmp_path).count(NAME) == 1

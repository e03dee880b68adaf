"""Transfers: a file is whole or not there, whatever the server does, over http and S3 alike."""

import email.utils
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.request
from email.message import Message
from pathlib import Path

import pytest
from object_server import ObjectServer, s3_environment

from crawl2clip.errors import ConfigError, DataError
from data_pipeline import source_s3, transfer
from data_pipeline.source_http import _Redirects, _retry_after
from data_pipeline.transfer import Broken, Patience, Refused, Tries, fetch, is_page

ROOT = Path(__file__).resolve().parents[2]
WHOLE = os.urandom(300_000)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves /bucket/f, 300,000 bytes, over http and S3."""
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "f").write_bytes(WHOLE)
    with ObjectServer(tmp_path) as running:
        s3_environment(monkeypatch, running, tmp_path)
        yield running


@pytest.fixture
def waits(monkeypatch):
    """The seconds that this thread asked to sleep, none of which it sleeps. Other threads sleep as ever."""
    asked, ours, sleep = [], threading.get_ident(), time.sleep
    monkeypatch.setattr(
        time, "sleep", lambda s: asked.append(s) if threading.get_ident() == ours else sleep(s)
    )
    return asked


def get(url, tmp_path, **changes):
    patience = {"retries": 2, "backoff_s": 0.0, "timeout_s": 5.0, "deadline_s": 30.0}
    fetch(url, tmp_path / "got", Patience(**patience | changes))
    return (tmp_path / "got").read_bytes()


def test_a_transfer_that_breaks_goes_on_where_it_stopped(server, tmp_path):
    server.script = {"/f": ["cut", "cut"]}
    assert get(f"{server.url}/bucket/f", tmp_path) == WHOLE
    assert server.ranges["/bucket/f"] == [None, "bytes=150000-", "bytes=225000-"]
    assert server.served == len(WHOLE)


@pytest.mark.parametrize(
    ("script", "asked"),
    [
        (["cut", "no_ranges"], [None, "bytes=150000-"]),
        (["cut", "wrong_range"], [None, "bytes=150000-", None]),
        (["cut", "416"], [None, "bytes=150000-", None]),
        (["cut", "412"], [None, "bytes=150000-", None]),
        (["wrong_length"], [None, "bytes=300000-", None]),  # which is past the end, so 416
        (["cut", "503"], [None, "bytes=150000-", "bytes=150000-"]),
        (["page"], [None, None]),
        (["bare_page"], [None, None]),
        (["204"], [None, None]),
        (["chunked"], [None]),
        (["cut", "page"], [None, "bytes=150000-", None]),
    ],
)
def test_what_servers_do(server, tmp_path, script, asked):
    server.script = {"/f": script}
    assert get(f"{server.url}/bucket/f", tmp_path) == WHOLE
    assert server.ranges["/bucket/f"] == asked


@pytest.mark.parametrize("again", ["", "no_if_range"])
def test_a_file_that_changes_between_tries_is_had_as_it_is_now(server, tmp_path, again):
    """Also where the server sends a part of the new file, as those do that ignore If-Range."""
    server.script = {"/f": ["cut", again]}
    server.changing = {"/f": b"more"}
    server.changes_left = 1
    got = get(f"{server.url}/bucket/f", tmp_path)
    assert got == WHOLE + b"more"
    assert server.ranges["/bucket/f"] == [None, "bytes=150000-"] + ([None] if again else [])


def test_without_a_name_for_the_content_it_starts_again(server, tmp_path):
    server.script = {"/f": ["cut"]}
    server.headers = {"ETag": 'W/"weak"', "Last-Modified": ""}
    assert get(f"{server.url}/bucket/f", tmp_path) == WHOLE
    assert server.ranges["/bucket/f"] == [None, None]


def test_progress_costs_no_retry(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_PROGRESS_BYTES", 10_000)
    server.script = {"/f": ["cut"] * 4}
    assert get(f"{server.url}/bucket/f", tmp_path, retries=1) == WHOLE
    server.script = {"/f": ["cut"] * 9}  # the last tries bring less than 10,000 bytes
    with pytest.raises(
        DataError, match=r"cannot be had after 2 tries: the transfer ended after \d+ of 300000"
    ):
        get(f"{server.url}/bucket/f", tmp_path, retries=1)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("wrong_length", r"after 3 tries: the transfer ended after 300000 of 300010 bytes"),
        (
            "500",
            r"after 3 tries: the server answered 500 Internal Server Error; run the command again to go on",
        ),
        ("page", r"after 3 tries: the server sent a web page in place of the file"),
        ("bare_page", r"after 3 tries: the server sent a web page in place of the file"),
        ("403", r"cannot be had: the server answered 403 Forbidden; check source\.base_url"),
        ("no_length", r"cannot be had: the server does not say how long it is, so a cut"),
    ],
)
def test_what_is_not_had_is_named(server, tmp_path, kind, message):
    server.trouble = {"/f": (kind, 99)}
    if kind == "wrong_length":
        server.headers = {"ETag": "", "Last-Modified": ""}
    with pytest.raises(DataError, match=rf"{server.url}/bucket/f cannot be had.*") as raised:
        get(f"{server.url}/bucket/f", tmp_path)
    assert raised.match(message)
    assert server.requests["/bucket/f"] == (1 if kind in ("403", "no_length") else 3)


def test_addresses_that_lead_nowhere(server, tmp_path):
    with pytest.raises(
        DataError, match=r"/bucket/none cannot be had: the server answered 404 Not Found; check"
    ):
        get(f"{server.url}/bucket/none", tmp_path)
    assert server.requests["/bucket/none"] == 1
    with pytest.raises(DataError, match=r"127\.0\.0\.1:1/x cannot be had after 2 tries: .*refused"):
        get("http://127.0.0.1:1/x", tmp_path, retries=1)
    with pytest.raises(DataError, match=r"cannot be had: .*control characters"):
        get(f"{server.url}/a b", tmp_path)


def test_a_silent_server_is_given_up_after_the_timeout(server, tmp_path):
    server.script = {"/f": ["slow"]}
    assert get(f"{server.url}/bucket/f", tmp_path, timeout_s=0.3) == WHOLE
    assert server.requests["/bucket/f"] == 2
    server.script = {"/f": ["slow"] * 9}
    with pytest.raises(DataError, match=r"after 2 tries: .*timed out"):
        get(f"{server.url}/bucket/f", tmp_path, timeout_s=0.3, retries=1)


def test_a_dripping_server_is_given_up_at_the_deadline(server, tmp_path):
    """It is never silent for long, so only the deadline ends it."""
    server.trouble = {"/f": ("drip", 99)}
    with pytest.raises(
        DataError,
        match=r"cannot be had within source\.deadline_s=0\.5: \d of 300000 bytes have come; raise it, or run",
    ):
        get(f"{server.url}/bucket/f", tmp_path, deadline_s=0.5)
    assert server.requests["/bucket/f"] == 1


def test_retry_after_is_obeyed(server, tmp_path, waits):
    server.headers = {"Retry-After": "7"}
    server.script = {"/f": ["429", "busy"]}
    assert get(f"{server.url}/bucket/f", tmp_path) == WHOLE
    assert waits == [7.0, 7.0]
    server.script = {"/f": ["429"]}
    with pytest.raises(
        DataError,
        match=r"within source\.deadline_s=5: the server answered 429 .* and asks to wait 7 s; raise",
    ):
        get(f"{server.url}/bucket/f", tmp_path, deadline_s=5.0)


def test_both_forms_of_retry_after():
    def asked(value):
        headers = Message()
        headers["Retry-After"] = value
        return _retry_after(headers)

    assert asked("120") == 120
    soon = asked(email.utils.formatdate(time.time() + 100, usegmt=True))
    assert soon is not None
    assert 90 < soon <= 100
    assert asked("Mon, 01 Jan 2001 00:00:00 GMT") == 0
    assert [asked(value) for value in ("", "soon", "-5", "1.5", "9" * 5 + "x")] == [None] * 5
    assert _retry_after(Message()) is None


def test_waits_double_up_to_a_minute_and_are_spread(waits):
    tries = Tries("http://h/f", Patience(9, 2.0, 5.0, 1e6))
    for _ in range(9):
        tries.failed(Broken("busy"))
    for wait, full in zip(waits, [2, 4, 8, 16, 32, 60, 60, 60, 60], strict=True):
        assert full / 2 <= wait <= full
    with pytest.raises(DataError, match="http://h/f cannot be had after 10 tries: busy"):
        tries.failed(Broken("busy"))


def test_redirects_are_followed_with_the_range(server, tmp_path):
    server.headers = {"Location": "/bucket/f"}
    (tmp_path / "bucket" / "old").touch()
    for status in ("301", "302", "303", "307", "308"):
        server.script = {"/old": [status, status], "/f": ["cut"]}
        assert get(f"{server.url}/bucket/old", tmp_path) == WHOLE
        assert server.ranges["/bucket/f"][-2:] == [None, "bytes=150000-"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "file:///etc/passwd",
            "cannot be had: the server answered 302 .*'file:///etc/passwd' is not allowed",
        ),
        (
            "ftp://127.0.0.1/f",
            "cannot be had: the server sends on to ftp://127.0.0.1/f, and only https:// and",
        ),
        ("/bucket/old", "cannot be had: the server answered 302 .*redirect"),
    ],
)
def test_redirects_that_are_not_followed(server, tmp_path, target, message):
    (tmp_path / "bucket" / "old").touch()
    server.headers = {"Location": target}
    server.trouble = {"/old": ("302", 99)}
    with pytest.raises(DataError, match=message):
        get(f"{server.url}/bucket/old", tmp_path)
    assert server.requests["/bucket/old"] < 9


def test_a_redirect_never_leaves_https():
    request = urllib.request.Request("https://h/f")
    with pytest.raises(Refused, match="sends on to http://h/g, and only https:// may follow"):
        _Redirects().redirect_request(request, None, 302, "Found", {}, "http://h/g")
    followed = _Redirects().redirect_request(request, None, 302, "Found", {}, "https://other/g")
    assert followed is not None
    assert followed.full_url == "https://other/g"


@pytest.mark.parametrize(
    ("first", "page"),
    [
        (b"<!DOCTYPE html>", True),
        (b"\n <HTML lang=en>", True),
        (b"<?xml version='1.0'?><Error>", True),
        (b"<Error><Code>SlowDown", True),
        (b"\x1f\x8b\x08", False),
        (b"WARC/1.0", False),
        (b'{"url": "<html>"}', False),
        (b"", False),
    ],
)
def test_pages_are_known_by_their_first_bytes(first, page):
    assert is_page(first) is page


def test_a_full_disk_is_no_fault_of_the_server(server):
    """/dev/full takes no byte; trying again would not help."""
    with pytest.raises(OSError, match="No space left"):
        fetch(f"{server.url}/bucket/f", Path("/dev/full"), Patience(5, 0.0, 5.0, 30.0))
    assert server.requests["/bucket/f"] == 1


def test_memory_does_not_grow_with_the_file(server, tmp_path):
    with open(tmp_path / "bucket" / "large", "wb") as file:
        file.truncate(200_000_000)
    program = (
        "import sys\nfrom pathlib import Path\nfrom data_pipeline.transfer import Patience, fetch\n"
        "from process_memory import peak_bytes\n"
        "for name in ('f', 'large'):\n"
        "    fetch(f'{sys.argv[1]}/bucket/{name}', Path(sys.argv[2]), Patience(0, 0.0, 20.0, 60.0))\n"
        "    print(peak_bytes())\n"
    )
    command = [sys.executable, "-c", program, server.url, str(tmp_path / "got")]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    assert large - small < 20_000_000


# S3: real s3fs


def s3_or_skip():
    pytest.importorskip("s3fs", reason="pip install 's3fs' to read s3:// files")


def test_an_object_is_read_in_ranges_and_resumed(server, tmp_path, monkeypatch):
    s3_or_skip()
    monkeypatch.setattr(source_s3, "_RANGE_BYTES", 100_000)
    server.script = {"/f": ["", "busy", "", "cut"]}
    assert get("s3://bucket/f", tmp_path) == WHOLE
    assert server.ranges["/bucket/f"] == [
        "bytes=0-99999", "bytes=100000-199999", "bytes=100000-199999", "bytes=200000-299999", "bytes=200000-299999",
    ]  # fmt: skip


def test_an_object_that_changes_is_begun_with_again(server, tmp_path, monkeypatch):
    s3_or_skip()
    monkeypatch.setattr(source_s3, "_RANGE_BYTES", 200_000)
    server.changing, server.changes_left = {"/f": b"more"}, 1
    assert get("s3://bucket/f", tmp_path) == WHOLE + b"more"


def test_objects_that_are_not_had(server, tmp_path, monkeypatch):
    s3_or_skip()
    with pytest.raises(
        DataError, match=r"s3://bucket/none cannot be had: there is no such object; check source\."
    ):
        get("s3://bucket/none", tmp_path)
    (tmp_path / "bucket" / "folder").mkdir()
    (tmp_path / "bucket" / "folder" / "g").touch()
    with pytest.raises(DataError, match=r"s3://bucket/folder cannot be had: "):
        get("s3://bucket/folder", tmp_path)
    server.trouble = {"/f": ("403", 99)}
    with pytest.raises(DataError, match=r"cannot be had: .*give credentials .*FSSPEC_S3_ANON=true"):
        get("s3://bucket/f", tmp_path)
    server.trouble = {"/f": ("busy", 99)}
    with pytest.raises(DataError, match=r"s3://bucket/f cannot be had after 3 tries: "):
        get("s3://bucket/f", tmp_path)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"cannot be had: .*credentials.*; give credentials"):
        get("s3://bucket/f", tmp_path)


def test_a_silent_object_store_is_given_up(server, tmp_path):
    s3_or_skip()
    server.trouble = {"/f": ("slow", 99)}
    with pytest.raises(DataError, match=r"s3://bucket/f cannot be had after 2 tries: .*[Tt]ime"):
        get("s3://bucket/f", tmp_path, timeout_s=0.3, retries=1)


def test_without_s3fs_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(source_s3, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"s3://b/f needs the package s3fs; pip install 'crawl2clip\[remote\]'"
    ):
        source_s3.require_s3("s3://b/f")


def test_every_retry_is_logged(server, tmp_path, caplog):
    server.script = {"/f": ["busy"]}
    with caplog.at_level(logging.WARNING):
        get(f"{server.url}/bucket/f", tmp_path)
    assert "/bucket/f: the server answered 503 Service Unavailable; trying again in 0.0 s" in caplog.text

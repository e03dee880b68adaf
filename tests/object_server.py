"""A folder as a web server and as an object store, on loopback, with every kind of trouble.

The S3 side answers the requests that s3fs makes (HEAD, ranged GET, PUT at once and in parts, DELETE, list, 404),
without signatures being checked.
"""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from crawl2clip import storage


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection as its server says."""

    owner: "ObjectServer"
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        if "list-type" in self.path:
            return self._list()
        self._answer(body=True)

    def do_PUT(self) -> None:
        path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
        data = self._body()
        self.owner.arriving(path)
        if "uploadId" in query:
            self.owner.parts[query["uploadId"][0]][int(query["partNumber"][0])] = data
            return self._send(200, b"", {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})
        if self.owner.refused_puts.get(path.rpartition("/")[2], 0):
            self.owner.refused_puts[path.rpartition("/")[2]] -= 1
            return self._send(403, b"", {})
        source = unquote(self.headers.get("x-amz-copy-source", ""))
        if source:
            data = (self.owner.folder / source.lstrip("/")).read_bytes()
        tag = self._store(path, data)
        form = "http://s3.amazonaws.com/doc/2006-03-01/"
        answer = f'<CopyObjectResult xmlns="{form}"><ETag>{tag}</ETag></CopyObjectResult>' if source else ""
        self._send(200, answer.encode(), {"ETag": tag})

    def do_POST(self) -> None:
        """An object in several parts: begun, and put together."""
        path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query, True)
        self._body()
        form = "http://s3.amazonaws.com/doc/2006-03-01/"
        if "uploads" in query:
            upload = f"upload-{len(self.owner.parts)}"
            self.owner.parts[upload] = {}
            answer = f'<InitiateMultipartUploadResult xmlns="{form}"><UploadId>{upload}</UploadId>'
            return self._send(200, f"{answer}</InitiateMultipartUploadResult>".encode(), {})
        parts = self.owner.parts.pop(query["uploadId"][0])
        tag = self._store(path, b"".join(parts[number] for number in sorted(parts)))
        answer = f'<CompleteMultipartUploadResult xmlns="{form}"><ETag>{tag}</ETag>'
        self._send(200, f"{answer}</CompleteMultipartUploadResult>".encode(), {})

    def _store(self, path: str, data: bytes) -> str:
        file = self.owner.folder / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        self.owner.puts.append(path)
        whole = file.with_name(f".{file.name}.{threading.get_ident()}")
        whole.write_bytes(data)
        whole.replace(file)  # an object appears whole
        return f'"{hashlib.md5(data).hexdigest()}"'

    def do_DELETE(self) -> None:
        self.owner.removed.append(unquote(urlsplit(self.path).path))
        (self.owner.folder / unquote(urlsplit(self.path).path).lstrip("/")).unlink(missing_ok=True)
        self._send(204, b"", {})

    def _body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return data
        whole = b""
        while data:
            head, _, data = data.partition(b"\r\n")
            size = int(head.partition(b";")[0] or b"0", 16)
            if not size:
                return whole
            whole, data = whole + data[:size], data[size + 2 :]
        return whole

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        file = self.owner.folder / path.lstrip("/")
        if body:
            self.owner.requests[path] += 1
            self.owner.ranges.setdefault(path, []).append(self.headers.get("Range"))
        if not file.is_file():
            return self._send(404, b"", {})
        kind, times = next((t for end, t in self.owner.trouble.items() if path.endswith(end)), ("", 0))
        kind = kind if self.owner.requests[path] <= times else ""
        script = next((s for end, s in self.owner.script.items() if path.endswith(end)), [])
        kind = (script.pop(0) if script else kind) if body else ""
        if kind == "busy" or kind.isdigit():
            return self._send(503 if kind == "busy" else int(kind), b"", self.owner.headers)
        if kind.endswith("page"):
            form = {"Content-Type": "text/html" if kind == "page" else "application/octet-stream"}
            return self._send(200, b"<!DOCTYPE html><p>Sorry", form | self.owner.headers)
        if kind == "slow":
            time.sleep(3)
        self._send_file(file, body, kind)
        more = next((more for end, more in self.owner.changing.items() if path.endswith(end)), b"")
        if body and more and self.owner.changes_left:
            self.owner.changes_left -= 1
            file.write_bytes(file.read_bytes() + more)

    def _send_file(self, file: Path, body: bool, kind: str) -> None:
        data = file.read_bytes()
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        headers = {
            "ETag": tag,
            "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT",
            "Accept-Ranges": "bytes",
        }
        asked, size = self.headers.get("Range"), len(data)
        same = self.headers.get("If-Range", tag) == tag or kind == "no_if_range"
        status = 200
        if asked and same and kind != "no_ranges":
            first, last = asked.removeprefix("bytes=").split("-")
            if int(first) >= size:
                return self._send(416, b"", {"Content-Range": f"bytes */{size}"})
            data = data[int(first) : int(last) + 1 if last else None]
            shift = 1 if kind == "wrong_range" else 0
            end = int(first) + len(data) - 1
            headers["Content-Range"] = f"bytes {int(first) + shift}-{end}/{size}"
            status = 206
        self._send(status, data, headers | self.owner.headers, body, kind)

    def _list(self) -> None:
        bucket = unquote(urlsplit(self.path).path).strip("/")
        query = parse_qs(urlsplit(self.path).query)
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        names = sorted(
            str(p.relative_to(self.owner.folder / bucket))
            for p in (self.owner.folder / bucket).rglob("*")
            if p.is_file() and p.name[0] != "."
        )
        names = [name for name in names if name.startswith(prefix)]
        folders: set[str] = set()
        if delimiter:
            folders = {
                prefix + rest.partition(delimiter)[0] + delimiter
                for rest in (name.removeprefix(prefix) for name in names)
                if delimiter in rest
            }
            names = [name for name in names if delimiter not in name.removeprefix(prefix)]
        items = "".join(
            f"<Contents><Key>{name}</Key><Size>{(self.owner.folder / bucket / name).stat().st_size}</Size>"
            f"<LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>{self._tag(bucket, name)}</ETag></Contents>"
            for name in names
        )
        items += "".join(
            f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in sorted(folders)
        )
        form = "http://s3.amazonaws.com/doc/2006-03-01/"
        xml = f'<ListBucketResult xmlns="{form}"><IsTruncated>false</IsTruncated>{items}</ListBucketResult>'
        self._send(200, xml.encode(), {"Content-Type": "application/xml"})

    def _tag(self, bucket: str, name: str) -> str:
        return hashlib.md5((self.owner.folder / bucket / name).read_bytes()).hexdigest()

    def _send(self, status, data, headers, body=True, kind="") -> None:
        self.send_response(status)
        length = {"Content-Length": str(len(data) + 10 * (kind == "wrong_length"))}
        if kind in ("no_length", "chunked"):
            length = {"Transfer-Encoding": "chunked"} if kind == "chunked" else {}
        for name, value in {**headers, **length}.items():
            self.send_header(name, value)
        self.end_headers()
        if kind in ("cut", "no_length", "wrong_length"):
            self.close_connection = True
        if kind == "chunked":
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
        if kind == "cut":
            data = data[: len(data) // 2]
        if not body:
            return
        self.owner.served += len(data)
        try:
            for piece in [data] if kind != "drip" else [data[i : i + 1] for i in range(len(data))]:
                self.wfile.write(piece)
                time.sleep(0.1 if kind == "drip" else 0)
        except OSError:
            pass  # the client gave up waiting

    def log_message(self, format: str, *args: object) -> None:
        pass


class ObjectServer:
    """Serves a folder with ranges.

    Attributes:
        requests: how often each path was asked for a body.
        ranges: what was asked for of each path, in order: the Range header, or None.
        served: bytes of bodies.
        trouble: path ending -> what goes wrong at its first so many requests: ("busy", 2). The kinds: busy (503), 429
            and other statuses, slow (3 s of silence), cut (half of what was asked for), drip (a byte each tenth of a
            second), no_ranges, wrong_range, no_if_range (ranges of whatever there is now), page (HTML with status
            200), bare_page (the same, called a binary file), no_length, wrong_length (ten bytes too many), chunked.
        script: path ending -> kinds for its next requests, one each, "" for none; goes before `trouble`.
        headers: more headers of every answer, and of error answers too.
        changing: path ending -> bytes added to the file after a request for its body.
        changes_left: how often that is done.
        puts: the paths of the objects that were put or copied, in order.
        removed: the paths of the objects that were asked to be removed, in order.
        refused_puts: name of an object -> how many times putting it is refused.
        arriving: called with the path of an object whose bytes have come, before it is there.
        parts: of objects that are put in several parts and not yet whole, by upload.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: Counter[str] = Counter()
        self.ranges: dict[str, list[str | None]] = {}
        self.served = 0
        self.trouble: dict[str, tuple[str, int]] = {}
        self.script: dict[str, list[str]] = {}
        self.headers: dict[str, str] = {}
        self.changing: dict[str, bytes] = {}
        self.changes_left = 0
        self.puts: list[str] = []
        self.removed: list[str] = []
        self.refused_puts: dict[str, int] = {}
        self.arriving: Callable[[str], None] = lambda _: None
        self.parts: dict[str, dict[int, bytes]] = {}
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "ObjectServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def s3_environment(monkeypatch, server: ObjectServer, folder: Path) -> None:
    """Points s3fs at the server, for this test and the processes it starts."""
    for name, value in s3_variables(server, folder).items():
        monkeypatch.setenv(name, value)


@contextmanager
def worked_on_store(folder: Path, monkeypatch) -> Iterator[ObjectServer]:
    """An empty s3://bucket that this process and those it starts work on, with a scratch folder of its own."""
    monkeypatch.setenv(storage.SCRATCH_VARIABLE, str(folder / "scratch"))
    (folder / "store" / "bucket").mkdir(parents=True)
    with ObjectServer(folder / "store") as running:
        s3_environment(monkeypatch, running, folder)
        storage._system.cache_clear()  # it has the address of an earlier test's server
        yield running
    storage._system.cache_clear()


def s3_variables(server: ObjectServer, folder: Path) -> dict[str, str]:
    """The environment in which s3fs asks the server."""
    return {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "no_proxy": "127.0.0.1",
        "AWS_ENDPOINT_URL": server.url,
    }

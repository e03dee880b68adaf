"""A stand-in for the Hugging Face hub on this machine: data sets from folders, in the hub's own protocol.

It answers what huggingface_hub asks for a data set: its description at a revision, its tree, and its files; tars
as Git LFS objects, so with their SHA-256 and through a redirect to another address.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server holds, and what it was asked for."""

    datasets: dict[str, Path]  # owner/name -> folder
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    damage: dict[str, bytes] = field(default_factory=dict)  # path in a data set -> what is sent in its place
    endpoint: str = ""

    def downloads(self) -> list[str]:
        """The tars whose bytes were asked for, as "<split>/<file>"."""
        return sorted("/".join(path.split("/")[-2:]) for path in self.asked if path.startswith("GET /cdn/"))


@contextmanager
def hub_server(datasets: dict[str, Path]) -> Iterator[Hub]:
    hub = Hub(datasets)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(head=True)

        def do_GET(self) -> None:
            self._answer(head=False)

        def _answer(self, *, head: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            status, headers, body = _respond(hub, path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if not head:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


Answer = tuple[int, dict[str, str], bytes]


def _respond(hub: Hub, path: str) -> Answer:
    kind, *rest = path.strip("/").split("/")
    if kind == "cdn":
        name = "/".join(rest[2:])
        data = hub.damage.get(name, (hub.datasets["/".join(rest[:2])] / name).read_bytes())
        return 200, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}, data
    if kind == "api":
        rest = rest[1:]
    repo, rest = "/".join(rest[:2]), rest[2:]
    if repo not in hub.datasets:
        return 401, {"X-Error-Code": "RepoNotFound"}, b'{"error":"Repository not found"}'
    if repo in hub.gated:
        return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b"{}"
    if rest and rest[0] in ("revision", "resolve", "tree") and rest[1] not in ("main", COMMIT):
        return 404, {"X-Error-Code": "RevisionNotFound"}, b'{"error":"Invalid rev id"}'
    if kind == "api":
        found = _tree(hub, repo) if rest[:1] == ["tree"] else _description(hub, repo)
        return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
    return _file(hub, repo, "/".join(rest[2:]))


def _files(hub: Hub, repo: str) -> dict[str, bytes]:
    root = hub.datasets[repo]
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _description(hub: Hub, repo: str) -> dict[str, object]:
    siblings = []
    for name, data in _files(hub, repo).items():
        entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": _blob(data)}
        if name.endswith(".tar"):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        siblings.append(entry)
    return {"id": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}


def _tree(hub: Hub, repo: str) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for name, data in _files(hub, repo).items():
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": _blob(data)}
        if name.endswith(".tar"):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        entries.append(entry)
    return entries


def _file(hub: Hub, repo: str, name: str) -> Answer:
    path = hub.datasets[repo] / name
    if not path.is_file():
        return 404, {"X-Error-Code": "EntryNotFound"}, b"Entry not found"
    data = path.read_bytes()
    if name.endswith(".tar"):
        linked = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        # To another host, as the hub does: the client reads the headers here and fetches the bytes there.
        elsewhere = hub.endpoint.replace("127.0.0.1", "localhost")
        return 302, {"Location": f"{elsewhere}/cdn/{repo}/{name}", "X-Repo-Commit": COMMIT, **linked}, b""
    return 200, {"ETag": f'"{_blob(data)}"', "X-Repo-Commit": COMMIT}, hub.damage.get(name, data)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

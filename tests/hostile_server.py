"""A small web server on loopback that misbehaves on purpose, in its own thread.

`with HostileServer() as server`; paths choose the misbehaviour (see `_HANDLERS` and `_SIMPLE`), `files` adds
other answers. Raw sockets, because no HTTP library lets one break HTTP in these ways. `no_dns` keeps look-ups of
host names on this machine too.
"""

import asyncio
import gzip
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from sample_images import SVG, animated_gif, image_file, png_bomb

Write = Callable[[bytes], Awaitable[None]]

GOOD_JPEG = image_file(96, 64)
REASONS = {200: "OK", 301: "Moved", 302: "Found", 404: "Not Found", 410: "Gone", 429: "Too Many", 503: "Busy"}


def response(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """A well-formed HTTP/1.1 answer."""
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@contextmanager
def no_dns() -> Iterator[None]:
    """In this process no host name but localhost is known, and the machine's resolver is not asked."""
    ask = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if host in ("localhost", "127.0.0.1"):
            return ask(host, *arguments, **options)
        raise socket.gaierror(socket.EAI_NONAME, f"{host} is not known")

    with patch.object(socket, "getaddrinfo", getaddrinfo):
        yield


class HostileServer:
    """The server.

    Attributes:
        requests: how often each path was asked for.
        headers: the head of every request, in order.
        connections: how many were made.
        max_simultaneous: most requests being answered at once so far.
        robots: (status, body) of /robots.txt, or None to stall there.
        files: path -> whole answer, before any misbehaviour is looked up.
        release: /held answers once this is set.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.headers: list[str] = []
        self.robots: tuple[int, bytes] | None = (200, b"User-agent: *\nDisallow: /private/\n")
        self.files: dict[str, bytes] = {}
        self.release = threading.Event()
        self.max_simultaneous = 0
        self.connections = 0
        self._simultaneous = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._ready = threading.Event()
        self.port = 0

    def __enter__(self) -> "HostileServer":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connection, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                path = head.split(" ", 2)[1]
                self.requests[path] += 1
                self.headers.append(head)
                self._simultaneous += 1
                self.max_simultaneous = max(self.max_simultaneous, self._simultaneous)
                try:
                    if not await self._answer(path, write):
                        return
                finally:
                    self._simultaneous -= 1
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # the client has gone, or the server stops
        finally:
            writer.close()

    async def _answer(self, path: str, write: Write) -> bool:
        """Answers one request; whether the connection stays open."""
        if path in self.files:
            await write(self.files[path])
            return True
        if path == "/robots.txt":
            if self.robots is None:
                await asyncio.sleep(60)
            else:
                await write(response(*self.robots))
            return True
        name = path.split("?")[0].removeprefix("/").split("/")[0]
        if name in _SIMPLE:
            await write(_SIMPLE[name])
            return True
        if name in _HANDLERS:
            await _HANDLERS[name](self, path, write)
            return False
        await write(response(404, b"nothing here"))
        return True


async def _stall(server: HostileServer, path: str, write: Write) -> None:
    await asyncio.sleep(60)


async def _stall_in_body(server: HostileServer, path: str, write: Write) -> None:
    await write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + GOOD_JPEG[:100])
    await asyncio.sleep(60)


async def _drip_body(server: HostileServer, path: str, write: Write) -> None:
    await write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
    while True:
        await write(b"\xff")
        await asyncio.sleep(0.05)


async def _drip_header(server: HostileServer, path: str, write: Write) -> None:
    await write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        await write(b"a")
        await asyncio.sleep(0.05)


async def _endless_body(server: HostileServer, path: str, write: Write) -> None:
    await write(b"HTTP/1.1 200 OK\r\n\r\n\xff\xd8\xff")
    while True:
        await write(b"x" * 65536)


async def _endless_headers(server: HostileServer, path: str, write: Write) -> None:
    await write(b"HTTP/1.1 200 OK\r\n")
    while True:
        await write(b"X-More: yes\r\n" * 1000)


async def _broken_chunking(server: HostileServer, path: str, write: Write) -> None:
    await write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nthis is no length\r\n")


async def _cut_off(server: HostileServer, path: str, write: Write) -> None:
    await write(response(200, GOOD_JPEG)[:-200])


async def _hang_up(server: HostileServer, path: str, write: Write) -> None:
    return None


async def _not_http(server: HostileServer, path: str, write: Write) -> None:
    await write(b"SSH-2.0-OpenSSH_9.2\r\n")


async def _busy_once(server: HostileServer, path: str, write: Write) -> None:
    first = server.requests[path] == 1
    await write(response(429, b"", {"Retry-After": "0"}) if first else response(200, GOOD_JPEG))


async def _broken_once(server: HostileServer, path: str, write: Write) -> None:
    await write(response(503) if server.requests[path] == 1 else response(200, GOOD_JPEG))


async def _broken_for_a_while(server: HostileServer, path: str, write: Write) -> None:
    """/broken_for_a_while/3 is an image from the fourth request on."""
    bad = server.requests[path] <= int(path.rsplit("/", 1)[1])
    await write(response(503) if bad else response(200, GOOD_JPEG))


async def _trickle(server: HostileServer, path: str, write: Write) -> None:
    """An image of 200 kB at 2 kB a second: never silent, and too slow."""
    await write(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n")
    while True:
        await write(bytes(200))
        await asyncio.sleep(0.1)


async def _hops(server: HostileServer, path: str, write: Write) -> None:
    """/hops/3 leads to a good image after 3 redirects, by relative addresses."""
    left = int(path.rsplit("/", 1)[1])
    await write(response(302, b"", {"Location": str(left - 1)}) if left else response(200, GOOD_JPEG))


async def _slow_but_fine(server: HostileServer, path: str, write: Write) -> None:
    await asyncio.sleep(0.1)
    await write(response(200, GOOD_JPEG))


async def _held(server: HostileServer, path: str, write: Write) -> None:
    while not server.release.is_set():
        await asyncio.sleep(0.01)
    await write(response(200, GOOD_JPEG))


_HANDLERS = {
    "held": _held,
    "stall": _stall,
    "stall_in_body": _stall_in_body,
    "drip_body": _drip_body,
    "drip_header": _drip_header,
    "endless_body": _endless_body,
    "endless_headers": _endless_headers,
    "broken_chunking": _broken_chunking,
    "cut_off": _cut_off,
    "hang_up": _hang_up,
    "not_http": _not_http,
    "busy_once": _busy_once,
    "broken_once": _broken_once,
    "broken_for_a_while": _broken_for_a_while,
    "trickle": _trickle,
    "hops": _hops,
    "slow": _slow_but_fine,
}
_SIMPLE = {
    "good": response(200, GOOD_JPEG, {"Content-Type": "image/jpeg"}),
    "wrong_type": response(200, GOOD_JPEG, {"Content-Type": "text/html"}),
    "private": response(200, GOOD_JPEG),
    "loop": response(301, b"", {"Location": "/loop"}),
    "to_metadata": response(302, b"", {"Location": "http://169.254.169.254/latest/meta-data/"}),
    "to_mapped_metadata": response(302, b"", {"Location": "http://[::ffff:169.254.169.254]/latest/"}),
    "to_file": response(302, b"", {"Location": "file:///etc/passwd"}),
    "redirect_to_nothing": response(302, b""),
    "gone": response(410, b"gone"),
    "error": response(500, b"oops"),
    "busy_for_an_hour": response(429, b"", {"Retry-After": "3600"}),
    "declared_too_large": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
    "gzip_bomb": response(200, gzip.compress(bytes(30_000_000)), {"Content-Encoding": "gzip"}),
    "gzipped": response(200, gzip.compress(GOOD_JPEG), {"Content-Encoding": "gzip"}),
    "gzip_cut_off": response(200, gzip.compress(GOOD_JPEG)[:-20], {"Content-Encoding": "gzip"}),
    "brotli": response(200, GOOD_JPEG, {"Content-Encoding": "br"}),
    "empty": response(200),
    "noai": response(200, GOOD_JPEG, {"X-Robots-Tag": "noai"}),
    "noai_and_away": response(302, b"", {"Location": "/good", "X-Robots-Tag": "noai"}),
    "noindex_for_us": response(200, GOOD_JPEG, {"X-Robots-Tag": "crawl2clip: noindex, nofollow"}),
    "noai_for_others": response(200, GOOD_JPEG, {"X-Robots-Tag": "otherbot: noai, noindex"}),
    "reserved": response(200, GOOD_JPEG, {"tdm-reservation": "1"}),
    "no_training": response(200, GOOD_JPEG, {"Content-Usage": "train-ai=n"}),
    "expired": response(200, GOOD_JPEG, {"X-Robots-Tag": "unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT"}),
    "huge_png": response(200, png_bomb(30_000, 30_000)),
    "truncated_jpeg": response(200, GOOD_JPEG[:-300]),
    "tiny_gif": response(200, image_file(1, 1, "GIF")),
    "animation": response(200, animated_gif(10_000)),
    "svg": response(200, SVG, {"Content-Type": "image/png"}),
    "html": response(200, b"<!DOCTYPE html><html><body>not found, but 200</body></html>"),
    "polyglot": response(200, GOOD_JPEG + b"PK\x03\x04<script>alert(1)</script>"),
}

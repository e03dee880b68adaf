"""The web of benchmarks/download.py: several hosts on loopback addresses, over HTTP and HTTPS, in a process of its own.

    python download_server.py FOLDER NUM_HOSTS

FOLDER holds the images of download_images.py; a certificate authority is made there (`authority.pem`). Prints the
ports as JSON, then serves until its standard input ends. Paths: /small/N.jpg, /large/N.jpg, and the faults: /missing,
/busy/N (429 with Retry-After the first time), /cut, /stall, /drip (a byte a second), /drip_header, /endless.
Written on bare asyncio protocols so that it takes as little as possible of the cores it shares with what is measured.
"""

import asyncio
import itertools
import json
import socket
import ssl
import subprocess
import sys
from pathlib import Path

ADDRESSES = [f"127.0.0.{number}" for number in range(1, 33)]
_ROBOTS = b"User-agent: *\nAllow: /\n"


def main(folder: Path, num_hosts: int) -> None:
    """Serves until standard input ends."""
    Server(folder, ADDRESSES[:num_hosts]).serve()


class Server:
    """All hosts."""

    def __init__(self, folder: Path, addresses: list[str]) -> None:
        self.addresses = addresses
        self.folder = folder
        self.images = {
            kind: [_answer(path.read_bytes()) for path in sorted(folder.glob(f"{kind}-*.jpg"))]
            for kind in ("small", "large")
        }
        self.seen: set[bytes] = set()

    def serve(self) -> None:
        """Listens, says where, and answers."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*make_certificate(self.folder, self.addresses))
        ports: dict[str, dict[str, int]] = {"http": {}, "https": {}}
        for scheme, address in itertools.product(ports, self.addresses):
            tls = context if scheme == "https" else None
            server = await loop.create_server(lambda: _Connection(self), address, 0, ssl=tls, backlog=512)
            ports[scheme][address] = server.sockets[0].getsockname()[1]
        dead = socket.socket()  # bound, not listening: connections are refused
        dead.bind(("127.0.0.1", 0))
        print(json.dumps(ports | {"dead": dead.getsockname()[1]}), flush=True)
        await loop.run_in_executor(None, sys.stdin.read)
        dead.close()


class _Connection(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self.server = server
        self.buffer = b""
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head, self.buffer = self.buffer[:end], self.buffer[end + 4 :]
            self.answer(head.split(b" ", 2)[1])

    def answer(self, path: bytes) -> None:
        kind, _, rest = path[1:].partition(b"/")
        images = self.server.images.get(kind.decode("ascii", "replace"))
        if images:
            self.transport.write(images[int(rest.split(b".")[0]) % len(images)])
        elif kind == b"robots.txt":
            self.transport.write(_answer(_ROBOTS, "text/plain"))
        elif kind == b"busy":
            first = path not in self.server.seen
            self.server.seen.add(path)
            again = b"HTTP/1.1 429 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
            self.transport.write(again if first else self.server.images["small"][0])
        elif kind == b"cut":
            self.transport.write(self.server.images["small"][0][:20_000])
            self.transport.close()
        elif kind in _SLOW:
            self.task = asyncio.ensure_future(_SLOW[kind](self))
        else:
            self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


async def _stall(connection: _Connection) -> None:
    return None  # the connection stays open and says nothing


async def _drip(connection: _Connection) -> None:
    connection.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 80000\r\n\r\n")
    while connection.open:
        connection.transport.write(b"\xff")
        await asyncio.sleep(1)


async def _drip_header(connection: _Connection) -> None:
    connection.transport.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while connection.open:
        connection.transport.write(b"a")
        await asyncio.sleep(1)


async def _endless(connection: _Connection) -> None:
    connection.transport.write(b"HTTP/1.1 200 OK\r\n\r\n\xff\xd8\xff")
    while connection.open:
        connection.transport.write(bytes(1 << 18))
        await connection.writable.wait()
        await asyncio.sleep(0)


_SLOW = {b"stall": _stall, b"drip": _drip, b"drip_header": _drip_header, b"endless": _endless}


def _answer(body: bytes, kind: str = "image/jpeg") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def make_certificate(folder: Path, addresses: list[str]) -> tuple[Path, Path]:
    """A certificate for the addresses and its key, signed by `folder/authority.pem`; made once, by openssl."""
    key, certificate, authority = folder / "key.pem", folder / "server.pem", folder / "authority.pem"
    if certificate.exists():
        return certificate, key
    names = ",".join(f"IP:{address}" for address in addresses)
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    authority_key, request, extensions = (folder / name for name in ("ca.key", "server.csr", "names.txt"))
    extensions.write_text(f"subjectAltName={names}\n")
    issue = ["req", "-x509", *curve, "-days", "30", "-subj", "/CN=benchmark authority"]
    issue += ["-keyout", authority_key, "-out", authority, "-addext", "keyUsage=critical,keyCertSign"]
    ask = ["req", *curve, "-subj", "/CN=benchmark", "-keyout", key, "-out", request]
    sign = ["x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key, "-days", "30"]
    sign += ["-extfile", extensions, "-CAcreateserial", "-out", certificate]
    for words in (issue, ask, sign):
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
    return certificate, key


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

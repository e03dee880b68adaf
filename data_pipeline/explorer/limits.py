"""What one client may ask of the server: body size, rate, and how many requests run at a time; and who it may be.

Plain ASGI around the application, so that a request is refused before any of it is read or parsed. It also answers
to the server's own names only: a page elsewhere that makes its name point here (DNS rebinding) is turned away. Every
answer forbids the browser to load anything from another host.
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from data_pipeline.explorer.config import LimitsConfig

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

UPLOADS = "/api/embeddings/image"
_CLIENTS = 10_000  # addresses whose rate is remembered
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)


class Refused(Exception):
    """A request that is answered at once with a status and a reason."""

    def __init__(self, status: int, reason: str, retry_after_s: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after_s = status, reason, retry_after_s


class Gate:
    """The application behind its limits."""

    def __init__(self, application: Application, config: LimitsConfig, host_names: Sequence[str]) -> None:
        """Puts the limits around an application.

        Args:
            application: what is protected.
            config: the limits.
            host_names: by which a request may call the server, lower case, without ports.
        """
        self._application, self._config = application, config
        self._host_names = frozenset(host_names)
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> tokens, when
        self._running = asyncio.Semaphore(config.running)
        self._waiting = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        try:
            self._check_host(scope)
            self._check_rate((scope.get("client") or ("unknown",))[0])
            body = await self._read(scope, receive)
        except Refused as refused:
            await _answer(send_with_headers, refused)
            return
        if self._running.locked() and self._waiting >= self._config.waiting:
            reason = f"{self._config.waiting} requests are waiting already; try again"
            await _answer(send_with_headers, Refused(503, reason, 1))
            return
        self._waiting += 1
        try:
            await self._running.acquire()
        finally:
            self._waiting -= 1
        try:
            await self._application(scope, _replay(body, receive), send_with_headers)
        finally:
            self._running.release()

    def _check_host(self, scope: Message) -> None:
        headers = dict(scope["headers"])
        asked = headers.get(b"host", b"").decode("latin-1").lower()
        name = (
            asked.rpartition("]")[0].removeprefix("[") if asked.startswith("[") else asked.partition(":")[0]
        )
        if name not in self._host_names:
            raise Refused(
                421,
                f"this server is not called {name[:100]!r}; it answers to {', '.join(sorted(self._host_names))}: add a "
                "name to host_names",
            )
        # A page of another site may send a plain form here, though it cannot read the answer.
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and origin.partition("://")[2] != asked:
            raise Refused(403, "requests from pages of other sites are refused; open the explorer's own page")

    def _check_rate(self, client: str) -> None:
        now, rate, burst = time.monotonic(), self._config.requests_per_s, float(self._config.burst)
        tokens, then = self._tokens.pop(client, (burst, now))
        tokens = min(burst, tokens + (now - then) * rate)
        self._tokens[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._tokens) > _CLIENTS:
            self._tokens.popitem(last=False)
        if tokens < 1:
            wait = max(1, round((1 - tokens) / rate))
            raise Refused(429, f"more than {rate:g} requests a second from one address; wait {wait} s", wait)

    async def _read(self, scope: Message, receive: Receive) -> bytes:
        """The body, as far as it may go."""
        is_upload = scope["path"] == UPLOADS
        most = self._config.upload_bytes if is_upload else self._config.request_bytes
        reason = f"the body has more than {most:,} bytes; send less"
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > most:
            raise Refused(413, reason)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the request was cut off")
            body += message.get("body", b"")
            if len(body) > most:
                raise Refused(413, reason)
            if not message.get("more_body", False):
                return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the application the body that has been read, then what else comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _answer(send: Send, refused: Refused) -> None:
    body = json.dumps({"error": refused.reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.retry_after_s is not None:
        headers.append((b"retry-after", str(refused.retry_after_s).encode()))
    headers.append((b"connection", b"close"))  # the rest of a body is not read
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""Files on web servers, from any offset, so that a transfer can be resumed.

A part is asked for with `If-Range`, so a file that has changed comes whole; and since there are servers that
ignore one header or the other, the answer is checked again: status, `Content-Range`, `ETag`, `Last-Modified`.
"""

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any

from data_pipeline.transfer import Broken, Opened, Refused

_USER_AGENT = "crawl2clip"
_BLOCK_BYTES = 1 << 20
_PASSING = (408, 425, 429)  # and 5xx
_CHANGED = (412, 416)  # what we have is no beginning of what is there now
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows up to five, never from https to http and never to another scheme."""

    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The request that follows a redirect.

        Raises:
            Refused: it leads to another scheme.
        """
        allowed = ("https://",) if req.type == "https" else ("https://", "http://")
        if not newurl.lower().startswith(allowed):
            raise Refused(f"the server sends on to {newurl}, and only {' and '.join(allowed)} may follow")
        # Python 3.10 does not know 308, which for a GET is 307.
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)

    def http_error_308(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """As the other redirects."""
        return self.http_error_302(req, fp, code, msg, headers)


@contextmanager
def open_http(url: str, offset: int, version: str | None, timeout_s: float) -> Iterator[Opened]:
    """Opens an address from an offset: see `transfer.Opener`."""
    headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"}
    if offset and version is not None:
        headers |= {"Range": f"bytes={offset}-", "If-Range": version}
    else:
        offset = 0
    try:
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.build_opener(_Redirects).open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        raise _refusal(error) from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
        raise _no_answer(error) from error
    with response:
        yield _opened(response, offset, version)


def _opened(response: http.client.HTTPResponse, offset: int, version: str | None) -> Opened:
    if response.status == 206 and offset:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if found is None or int(found[1]) != offset or _version(response.headers) != version:
            raise Broken("the server sent another part, or a part of another file", restart=True)
        return Opened(offset, int(found[2]), version, _blocks(response))
    if response.status != 200:
        raise Broken(f"the server answered {response.status} {response.reason}")
    if response.headers.get_content_type() == "text/html":
        raise Broken("the server sent a web page in place of the file", restart=True)
    declared = response.headers.get("Content-Length", "")
    if not declared.isdigit() and "chunked" not in response.headers.get("Transfer-Encoding", "").lower():
        raise Refused("the server does not say how long it is, so a cut could not be told from its end")
    size = int(declared) if declared.isdigit() else None
    return Opened(0, size, _version(response.headers), _blocks(response))


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            # Not `read`, which waits for a whole block: a server that sends a byte now and then would never
            # let the deadline be looked at.
            block = response.read1(_BLOCK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _no_answer(error) from error
        if not block:
            return
        yield block


def _version(headers: Message) -> str | None:
    """The strong entity tag, or else the time of the last change; weak tags do not promise equal bytes."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified") or None


def _refusal(error: urllib.error.HTTPError) -> Exception:
    problem = f"the server answered {error.code} {error.reason}"
    if error.code in _PASSING or error.code >= 500:
        return Broken(problem, wait_s=_retry_after(error.headers))
    if error.code in _CHANGED:
        return Broken(problem, restart=True)
    return Refused(problem)


def _no_answer(error: Exception) -> Exception:
    reason = getattr(error, "reason", error)
    problem = (
        f"{type(reason).__name__}: {reason}".rstrip(": ") if isinstance(reason, Exception) else str(reason)
    )
    final = isinstance(reason, (ValueError, http.client.InvalidURL))  # no certificate, or no address at all
    return Refused(problem) if final else Broken(problem)


def _retry_after(headers: Message) -> float | None:
    """Seconds that an answer asks to wait, of either form of the header; None without one that can be read."""
    value = (headers.get("Retry-After") or "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None

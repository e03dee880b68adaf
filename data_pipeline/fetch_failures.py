"""How a request can fail: one exception that carries a status of the closed list, and who gets which status.

The texts are ours and hold no port, address of the client or time, so that the same fault gives the same
bytes in the output.
"""

import socket

from crawl2clip.download_status import DownloadStatus
from data_pipeline.addresses import AddressRefused


class FetchFailed(Exception):
    """Ends one try of a URL.

    Attributes:
        status: what the row gets.
        error: one line of detail.
        http_status: of the response it rests on; None when there was none.
        retryable: whether the same request may well succeed a little later.
    """

    def __init__(
        self, status: DownloadStatus, error: str, *, http_status: int | None = None, retryable: bool = False
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.http_status = http_status
        self.retryable = retryable


def classify_lookup(error: OSError) -> FetchFailed:
    """The failure that an error of looking up a host, or of the guard, stands for."""
    if isinstance(error, AddressRefused):
        return FetchFailed(DownloadStatus.address_refused, str(error))
    temporary = error.errno == socket.EAI_AGAIN
    return FetchFailed(DownloadStatus.dns_error, "the host name cannot be resolved", retryable=temporary)

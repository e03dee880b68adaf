"""The process that decodes: takes files from a socket, gives back stored images, and may die of either.

Decoders are large C libraries that read what strangers wrote. One that crashes, runs wild or fills memory ends
this process and nothing else; `decoders.py` starts another. The system limits its memory, the download worker
its time.

The surprising part: the answer's description is JSON and not a pickle. A decoder that a file has taken over must
not be able to make the worker run anything.
"""

import json
import os
import pickle
import resource
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from crawl2clip.download_status import DownloadStatus
from data_pipeline.processed import Processed

if TYPE_CHECKING:
    from data_pipeline.image_config import ImageConfig

FRAME = struct.Struct(">II")
"""Before each message: bytes of its JSON, bytes of the file that follows."""

MAX_DESCRIPTION = 100_000  # bytes of JSON
_OPENCV_NO_MEMORY = -4  # cv::Error::StsNoMem
_NAMES = [field.name for field in fields(Processed) if field.name not in ("data", "status")]

_KINDS = {name: int if name.endswith(("width", "height")) else str for name in (*_NAMES, "status")}


def describe(processed: Processed) -> bytes:
    """A result as JSON, without its data."""
    described = {name: getattr(processed, name) for name in _NAMES}
    return json.dumps(described | {"status": processed.status.value}).encode()


def undescribe(description: bytes, data: bytes) -> Processed:
    """The inverse of `describe`, checked, since the other side may be hostile.

    Raises:
        ValueError: it is not a description.
    """
    found = json.loads(description)
    if not isinstance(found, dict) or found.keys() != _KINDS.keys():
        raise ValueError("not the description of a result")
    for name, value in found.items():
        if value is not None and type(value) is not _KINDS[name]:
            raise ValueError(f"{name} is a {type(value).__name__}")
    status = DownloadStatus(found.pop("status"))
    if status == DownloadStatus.success and found["extension"] not in ("jpg", "png", "webp"):
        raise ValueError(f"an extension {found['extension']!r}")
    return Processed(status, data=data or None, **found)


def main(descriptor: int) -> None:
    """Answers until the socket closes.

    Args:
        descriptor: of the socket. First comes a pickle of (ImageConfig, min_bytes, bytes of memory), from the worker.
    """
    connection = socket.socket(fileno=descriptor)
    description, _ = _receive(connection)
    config, min_bytes, memory_bytes = pickle.loads(description)
    import cv2

    from data_pipeline.images import process_image

    cv2.setNumThreads(1)
    _limit_memory(memory_bytes)
    connection.sendall(FRAME.pack(0, 0))  # ready
    try:
        while True:
            description, body = _receive(connection)
            boxes = json.loads(description) if description else ()
            processed = _process(body, config, min_bytes, boxes, process_image)
            answer, data = describe(processed), processed.data or b""
            connection.sendall(b"".join((FRAME.pack(len(answer), len(data)), answer, data)))
    except (EOFError, ConnectionError):
        os._exit(0)  # the worker has gone


def _process(
    body: bytes, config: "ImageConfig", min_bytes: int, boxes: Sequence[Sequence[float]], process_image
) -> Processed:
    import cv2

    try:
        return process_image(body, config, min_bytes=min_bytes, blurred=boxes)
    except (MemoryError, cv2.error) as error:
        # OpenCV's own error says it when there is no memory for the pixels. Any other error is a fault of the code: it
        # ends this process with its traceback, and the file is given up by the worker.
        if isinstance(error, cv2.error) and error.code != _OPENCV_NO_MEMORY:
            raise
        import hashlib

        md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
        sha256 = hashlib.sha256(body).hexdigest()
        return Processed(DownloadStatus.decoder_failed, md5, sha256, error="not enough memory")


def _limit_memory(memory_bytes: int) -> None:
    """What the decoders may take on top of what this process has now."""
    if sys.platform != "linux":
        return
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + memory_bytes, now + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _receive(connection: socket.socket) -> tuple[bytes, bytes]:
    num_described, num_body = FRAME.unpack(_exactly(connection, FRAME.size))
    return _exactly(connection, num_described), _exactly(connection, num_body)


def _exactly(connection: socket.socket, number: int) -> bytes:
    if number == 0:
        return b""
    buffer = bytearray(number)
    view, position = memoryview(buffer), 0
    while position < number:
        received = connection.recv_into(view[position:])
        if received == 0:
            raise EOFError
        position += received
    view.release()
    return bytes(buffer)

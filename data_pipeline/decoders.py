"""The decoding processes of one download worker: fed over sockets, watched, and replaced when they die.

A file that takes a decoder down with it is tried once more in a fresh one, since it may have been the system
that ended it for want of memory; one that does it twice, or takes too long, gets `decoder_failed`. Files that only
waited behind it lose nothing.

What may surprise: a decoder has up to two files at a time, the second being sent while the first is worked on, and
answers in order, so the first is always the one to blame.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from crawl2clip.download_status import DownloadStatus
from data_pipeline.decode_process import FRAME, MAX_DESCRIPTION, undescribe
from data_pipeline.image_config import ImageConfig
from data_pipeline.processed import Processed

logger = logging.getLogger(__name__)

_AHEAD = 2  # files that a decoder has at a time
_MAX_STARTS_IN_A_ROW = 5  # decoders that die before they are ready; then something is wrong with the machine
# glibc gives the pixels of every image back to the system and asks for them anew, page by page: a tenth of the time of
# a decoder. So it keeps up to 64 MB.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
_START = "import sys; from data_pipeline.decode_process import main; main(int(sys.argv[1]))"


@dataclass(eq=False)
class _Job:
    body: bytes
    blurred: Sequence[Sequence[float]]
    future: "asyncio.Future[Processed]"
    deaths: int = 0


@dataclass(frozen=True, kw_only=True)
class DecoderLimits:
    """What one file may cost.

    Attributes:
        memory_bytes: above what the libraries take themselves.
        seconds: from the moment a decoder has it to itself.
    """

    memory_bytes: int
    seconds: float


class Decoders:
    """Decodes files elsewhere. Belongs to one event loop.

    Args:
        number: of processes.
        images: what is accepted and stored.
        min_bytes: smaller files are not.
        limits: of one file.
    """

    def __init__(self, number: int, images: ImageConfig, min_bytes: int, limits: DecoderLimits) -> None:
        self.limits = limits
        self.greeting = pickle.dumps((images, min_bytes, limits.memory_bytes))
        self.waiting: deque[_Job] = deque()
        self.closed = False
        self.starts_in_a_row = 0
        self.failure: RuntimeError | None = None
        self._decoders = [_Decoder(self) for _ in range(number)]

    async def wait_until_ready(self) -> None:
        """Returns when a decoder can take a file.

        Raises:
            RuntimeError: decoders cannot be started on this machine.
        """
        while self.failure is None and not any(decoder.ready for decoder in self._decoders):
            for decoder in self._decoders:
                if decoder.connecting.done():
                    decoder.connecting.result()  # a fault of the event loop's, which would go unnoticed
            await asyncio.sleep(0.01)
        if self.failure is not None:
            raise self.failure

    async def process(self, body: bytes, blurred: Sequence[Sequence[float]] = ()) -> Processed:
        """What comes of a file; its original bytes are hashed, whatever it is.

        Args:
            body: the file.
            blurred: boxes as `face_blur` takes them.

        Raises:
            RuntimeError: decoders cannot be started on this machine.
        """
        if self.failure is not None:
            raise self.failure
        job = _Job(body, blurred, asyncio.get_running_loop().create_future())
        self.waiting.append(job)
        self.hand_out()
        return await job.future

    def hand_out(self) -> None:
        """Gives waiting files to decoders that have room."""
        for room in range(1, _AHEAD + 1):  # the idle ones first
            for decoder in self._decoders:
                while self.waiting and decoder.ready and len(decoder.jobs) < room:
                    decoder.take(self.waiting.popleft())

    def replace(self, decoder: "_Decoder") -> None:
        """A decoder has ended: another takes its place."""
        if self.closed:
            return
        self.starts_in_a_row = 0 if decoder.ready else self.starts_in_a_row + 1
        if self.starts_in_a_row >= _MAX_STARTS_IN_A_ROW:
            self.failure = RuntimeError(
                f"{self.starts_in_a_row} decoding processes in a row ended before they were ready; look above for "
                "their output. Too little memory is a common cause: set executor.num_workers lower"
            )
            for job in self.waiting:
                job.future.set_exception(self.failure)
            self.waiting.clear()
            return
        self._decoders[self._decoders.index(decoder)] = _Decoder(self)

    def close(self) -> None:
        """Ends the processes."""
        self.closed = True
        for decoder in self._decoders:
            decoder.end()


class _Decoder(asyncio.Protocol):
    """One process and its socket."""

    def __init__(self, owner: Decoders) -> None:
        self.owner = owner
        self.loop = asyncio.get_event_loop()
        self.ready = False
        self.jobs: deque[_Job] = deque()
        self.transport: asyncio.Transport | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.buffer = bytearray()
        self.too_slow = False
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        environment = (
            os.environ
            | {
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "OMP_NUM_THREADS": "1",
            }
            | _KEEP_MEMORY
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        ours.setblocking(False)
        self.connecting = self.loop.create_task(self.loop.create_unix_connection(lambda: self, sock=ours))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process is there: tells it its limits."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        self.transport.write(FRAME.pack(len(self.owner.greeting), 0) + self.owner.greeting)

    def take(self, job: _Job) -> None:
        """Sends it a file."""
        assert self.transport is not None
        description = json.dumps(job.blurred).encode() if job.blurred else b""
        self.jobs.append(job)
        self.transport.write(FRAME.pack(len(description), len(job.body)) + description)
        self.transport.write(job.body)
        if len(self.jobs) == 1:
            self._start_clock()

    def _start_clock(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = (
            self.loop.call_later(self.owner.limits.seconds, self._time_is_over) if self.jobs else None
        )

    def _time_is_over(self) -> None:
        self.too_slow = True
        self.end()

    def data_received(self, data: bytes) -> None:
        """Gives each whole answer to the job that waits for it; a process whose answer makes no sense is ended."""
        self.buffer += data
        while len(self.buffer) >= FRAME.size:
            num_described, num_data = FRAME.unpack_from(self.buffer)
            if num_described > MAX_DESCRIPTION:
                return self.end()
            middle = FRAME.size + num_described
            if len(self.buffer) < middle + num_data:
                return None
            described, stored = (
                bytes(self.buffer[FRAME.size : middle]),
                bytes(self.buffer[middle : middle + num_data]),
            )
            del self.buffer[: middle + num_data]
            if not self.ready:
                self.ready, self.owner.starts_in_a_row = True, 0
            else:
                try:
                    processed = undescribe(described, stored)
                except ValueError:
                    return self.end()
                job = self.jobs.popleft()
                if not job.future.done():
                    job.future.set_result(processed)
                self._start_clock()
            self.owner.hand_out()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has ended: the file it was at is to blame, the others go to another process."""
        if self.timer is not None:
            self.timer.cancel()
        if self.owner.closed:
            return
        self.process.kill()
        code = self.process.wait()
        if self.jobs:
            self._blame(self.jobs.popleft(), code)
        self.owner.waiting.extendleft(reversed(self.jobs))
        self.jobs.clear()
        self.owner.replace(self)

    def _blame(self, job: _Job, code: int) -> None:
        job.deaths += 1
        if not self.too_slow and job.deaths < 2:
            self.owner.waiting.appendleft(job)
            return
        if self.too_slow:
            reason = f"decoding took more than {self.owner.limits.seconds:g} s"
        else:
            reason = (
                f"the decoder ended ({signal.Signals(-code).name if code < 0 else f'exit status {code}'})"
            )
        logger.info("a file of %d bytes was given up: %s", len(job.body), reason)
        if not job.future.done():
            job.future.set_result(
                Processed(
                    DownloadStatus.decoder_failed,
                    hashlib.md5(job.body, usedforsecurity=False).hexdigest(),
                    hashlib.sha256(job.body).hexdigest(),
                    error=reason,
                )
            )

    def end(self) -> None:
        """Ends the process; `connection_lost` then says what follows."""
        self.process.kill()
        if self.transport is not None:
            self.transport.abort()
        if self.owner.closed:
            self.process.wait()

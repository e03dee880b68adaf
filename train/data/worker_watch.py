"""What each loader worker is doing, seen from the trainer: dead and stalled workers are named with shard and key.

Workers write the number of the sample they read into a few bytes that they share with the process that forked
them. While the trainer waits for a batch it looks there: a worker that is gone, or has stood at one sample for too
long, ends the run with a message, where torch's loader would wait for ever or raise from the middle of a step.
"""

import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from crawl2clip.errors import DataError

_PID, _NUMBER, _COUNT = range(3)  # columns of the board
_IDLE = -1  # in place of a sample number
LONGEST_POLL_S = 1.0  # between two looks for dead and stalled workers


@dataclass(frozen=True)
class WorkerState:
    """One row of the board."""

    worker: int
    pid: int
    number: int | None  # of the sample being read; None between batches
    count: int  # samples begun so far


class WorkerWatch:
    """The board: int64 [workers, 3] in memory that forked processes share."""

    def __init__(self, num_workers: int) -> None:
        rows = max(1, num_workers)  # without workers the trainer itself reads, and has the one row
        self._board = np.frombuffer(mmap.mmap(-1, rows * 3 * 8), dtype=np.int64).reshape(rows, 3)
        self._board[:, _NUMBER] = _IDLE
        self._row = self._board[0]

    def be_worker(self, worker: int) -> None:
        """Makes this process the one that writes row `worker`."""
        self._row = self._board[worker]
        self._row[_PID] = os.getpid()

    def reading(self, number: int) -> None:
        """Notes that this process begins sample `number`."""
        self._row[_NUMBER] = number
        self._row[_COUNT] += 1

    def idle(self) -> None:
        """Notes that this process has read its batch."""
        self._row[_NUMBER] = _IDLE

    def states(self) -> list[WorkerState]:
        """Every row as it is now."""
        return [
            WorkerState(worker, int(pid), None if number == _IDLE else int(number), int(count))
            for worker, (pid, number, count) in enumerate(self._board.copy())
        ]


class _Stalls:
    """For how long each worker has stood still, by the trainer's clock while it waits."""

    def __init__(self, watch: WorkerWatch, timeout_s: float) -> None:
        self._watch, self._timeout_s = watch, timeout_s
        self._since: dict[int, tuple[WorkerState, float]] = {}

    def begin(self) -> None:
        """The trainer begins to wait for a batch."""
        self._since = {}

    def stalled(self) -> list[WorkerState]:
        """Workers at one sample for too long; all of them when nothing at all moved for that long."""
        now = time.monotonic()
        for state in self._watch.states():
            if state.worker not in self._since or self._since[state.worker][0] != state:
                self._since[state.worker] = (state, now)
        still = [state for state, since in self._since.values() if now - since >= self._timeout_s]
        reading = [state for state in still if state.number is not None]
        return reading or (still if len(still) == len(self._since) else [])


def watched(
    batches: Iterator[Any],
    watch: WorkerWatch,
    timeout_s: float,
    describe: Callable[[WorkerState], str],
    rank: int,
) -> Iterator[Any]:
    """The items of torch's loader, with an error in place of an endless wait.

    Args:
        batches: the loader's iterator; its own time-out is the interval between two looks.
        watch: the board its workers write.
        timeout_s: a worker that stands at one sample for longer is stalled.
        describe: a worker and what it reads, in words.
        rank: named in the message.

    Raises:
        DataError: a worker died or is stalled.
    """
    _leave_dead_workers_to_us()
    stalls = _Stalls(watch, timeout_s)
    while True:
        stalls.begin()
        item = _next(batches, stalls, watch, timeout_s, describe, rank)
        if item is _END:
            return
        yield item


_END = object()
_DEATH_S = (
    5.0  # a process whose connection broke is told to be dead within milliseconds; this is for a busy machine
)


def _next(
    batches: Iterator[Any],
    stalls: _Stalls,
    watch: WorkerWatch,
    timeout_s: float,
    describe: Callable[[WorkerState], str],
    rank: int,
) -> Any:
    while True:
        try:
            return next(batches, _END)
        except (RuntimeError, OSError, EOFError) as error:
            # A worker killed while it hands over a batch breaks that connection before it is known to be dead.
            broken = not isinstance(error, RuntimeError)
            dead = _dead_workers(batches, watch, wait_s=_DEATH_S if broken else 0)
            if dead:
                fates = "; ".join(f"{describe(state)}, {fate}" for state, fate in dead)
                raise DataError(
                    f"rank {rank}: {fates}. Killed by signal 9 means most often that memory ran out: lower "
                    "data.num_workers, data.prefetch_batches or data.max_image_pixels. The same command goes on from "
                    "the last checkpoint"
                ) from error
            if broken or "timed out" not in str(error):  # torch has one kind of error for both
                raise
        stalled = stalls.stalled()
        if stalled:
            for state in stalled:
                _kill(state)  # it ignores softer signals, and would keep this process from ending
            where = "; ".join(map(describe, stalled))
            raise DataError(
                f"rank {rank}: no progress for {timeout_s:g} s (data.stall_timeout_s): {where}. See to the disk, "
                "network or file named, or raise the limit if it is only slow. The same command goes on from the "
                "last checkpoint"
            )


def _dead_workers(
    batches: Iterator[Any], watch: WorkerWatch, *, wait_s: float = 0
) -> list[tuple[WorkerState, str]]:
    # torch keeps its processes to itself; a version that hides them leaves us with its own message.
    workers = getattr(batches, "_workers", [])
    if wait_s and workers:
        ending = wait([worker.sentinel for worker in workers], timeout=wait_s)
        for worker in workers:
            if worker.sentinel in ending:  # its files are closed; its exit status comes a little later
                worker.join(wait_s)
    return [
        (
            state,
            f"killed by signal {-worker.exitcode}"
            if worker.exitcode < 0
            else f"exit status {worker.exitcode}",
        )
        for state, worker in zip(watch.states(), workers, strict=False)
        if worker.exitcode
    ]


def _kill(state: WorkerState) -> None:
    if state.pid:
        try:
            os.kill(state.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _leave_dead_workers_to_us() -> None:
    """Takes back torch's SIGCHLD handler, which raises from whatever the trainer happens to be doing."""
    if threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", None) == "torch.utils.data._utils.signal_handling":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

"""Runs shards in long-lived worker processes on this machine.

Each worker is a spawned process that sets the stage up once and then makes shard after shard. The parent
watches every worker's sentinel: a worker that dies, by a crash or `kill -9`, costs the try of its one
shard and is replaced. Only the parent moves finished shards into place, so when the parent is killed no
worker publishes anything after it; workers notice and end.

`multiprocessing.Pool` waits for ever when a worker is killed, and `ProcessPoolExecutor` fails every
waiting shard; hence neither is used.
"""

import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path
from typing import Any

from crawl2clip.errors import Crawl2ClipError, DataError
from crawl2clip.logs import setup_logging
from data_pipeline.executors.waiting import Waiting
from data_pipeline.stage import Outcome, Shard, Shards, Stage, make_shard, publish_shard, temporary_folder

logger = logging.getLogger(__name__)

_MAX_SETUP_DEATHS = 3  # workers in a row that die before they are ready; then the stage is given up
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS", "ARROW_NUM_THREADS")


@dataclass
class _Task:
    shard: Shard
    temporary: Path
    tries: int = 0


@dataclass
class _Worker:
    slot: int
    process: BaseProcess
    connection: Connection
    ready: bool = False
    task: _Task | None = None
    deadline: float = float("inf")  # time.monotonic() at which the current try is given up
    lost: bool = False  # its end of the pipe is closed: it has died, or is about to


class LocalExecutor:
    """Runs shards in worker processes of this machine.

    Args:
        num_workers: worker processes; None is one for each core this process may use.
        retries: further tries of a shard that failed.
        shard_timeout_s: seconds one try may take; then its worker is killed and the try has failed.
    """

    def __init__(self, *, num_workers: int | None, retries: int, shard_timeout_s: float) -> None:
        self.num_workers = num_workers or available_cores()
        self.retries = retries
        self.shard_timeout_s = shard_timeout_s

    def run(self, stage: Stage, shards: Shards) -> Iterator[Outcome]:
        """Yields one outcome a shard, as they end.

        Raises:
            DataError: `stage.setup` failed, or its workers die before they are ready.
        """
        num_workers = min(self.num_workers, len(shards), stage.max_workers or len(shards))
        waiting = Waiting(_Task(shard, temporary_folder(stage, shard)) for shard in shards)
        crew = _Crew(stage, num_workers)
        num_left = len(shards)
        try:
            while num_left:
                crew.give_work(waiting, self.shard_timeout_s)
                for task, error in crew.collect(self.shard_timeout_s):
                    if error is not None and task.tries <= self.retries:
                        logger.info(
                            "%s: shard %s will be tried again: %s", stage.name, task.shard.name, error
                        )
                        waiting.put_back(task)
                        continue
                    num_left -= 1
                    yield Outcome(task.shard, error)
        finally:
            crew.stop()


class _Crew:
    """The workers of one stage."""

    def __init__(self, stage: Stage, num_workers: int) -> None:
        self.stage = stage
        self.pickled_stage = pickle.dumps(stage)
        self.threads = max(1, available_cores() // num_workers)
        self.setup_deaths = 0
        self.workers = [self._start(slot) for slot in range(num_workers)]

    def _start(self, slot: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_worker_main,
            args=(theirs, self.pickled_stage, slot, self.threads),
            name=f"{self.stage.name}-{slot}",
        )
        process.start()
        theirs.close()
        return _Worker(slot, process, ours)

    def give_work(self, waiting: Waiting[_Task], timeout_s: float) -> None:
        """Sends a waiting shard to every idle worker."""
        for worker in self.workers:
            if worker.ready and worker.task is None:
                task = waiting.take()
                if task is None:
                    return
                task.tries += 1
                worker.task, worker.deadline = task, time.monotonic() + timeout_s
                try:
                    worker.connection.send((task.shard, task.temporary))
                except OSError:
                    pass  # it has just died; `collect` sees its sentinel

    def collect(self, timeout_s: float) -> list[tuple[_Task, str | None]]:
        """Waits until something happens; returns the tries that ended, each with its error or None."""
        handles: dict[Any, _Worker] = {worker.process.sentinel: worker for worker in self.workers}
        handles |= {worker.connection: worker for worker in self.workers}
        pause = min(worker.deadline for worker in self.workers) - time.monotonic()
        fired = wait(list(handles), timeout=None if pause == float("inf") else max(pause, 0))
        ended: list[tuple[_Task, str | None]] = []
        for worker in {id(handles[handle]): handles[handle] for handle in fired}.values():
            ended += self._hear(worker)
        for worker in list(self.workers):
            if time.monotonic() >= worker.deadline:
                ended += self._replace(worker, f"no end after {timeout_s:g} s (executor.shard_timeout_s)")
            elif worker.lost or not (worker.process.is_alive() or _has_message(worker.connection)):
                ended += self._replace(
                    worker, f"its worker process died ({_exit_name(worker.process.exitcode)})"
                )
        return ended

    def _hear(self, worker: _Worker) -> list[tuple[_Task, str | None]]:
        if not _has_message(worker.connection):
            return []
        try:
            word, value = worker.connection.recv()
        except (EOFError, OSError):
            worker.lost = True
            worker.process.join(timeout=5)  # for its exit status
            return []
        if word == "setup failed":
            raise DataError(f"stage {self.stage.name!r} cannot start its workers: {value}")
        if word == "ready":
            worker.ready, self.setup_deaths = True, 0
            return []
        task = worker.task
        assert task is not None
        worker.task, worker.deadline = None, float("inf")
        if value is None:
            publish_shard(self.stage, task.shard, task.temporary)
        else:
            shutil.rmtree(task.temporary, ignore_errors=True)
        return [(task, value)]

    def _replace(self, worker: _Worker, error: str) -> list[tuple[_Task, str | None]]:
        _kill(worker)
        if not worker.ready:
            self.setup_deaths += 1
            if self.setup_deaths >= _MAX_SETUP_DEATHS:
                raise DataError(
                    f"stage {self.stage.name!r} cannot start its workers: {self.setup_deaths} in a row ended before "
                    f"they were ready ({error}). Look above for their output; too little memory is a common cause: "
                    "set executor.num_workers lower."
                )
        self.workers[self.workers.index(worker)] = self._start(worker.slot)
        if worker.task is None:
            return []
        shutil.rmtree(worker.task.temporary, ignore_errors=True)
        return [(worker.task, error)]

    def stop(self) -> None:
        """Kills all workers."""
        for worker in self.workers:
            _kill(worker)


def _has_message(connection: Connection) -> bool:
    try:
        return connection.poll()
    except OSError:
        return False


def _kill(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.connection.close()


def _exit_name(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit status {code}"


def available_cores() -> int:
    """Cores this process may use, which on a shared machine are fewer than it has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# In the worker process


def _worker_main(connection: Connection, pickled_stage: bytes, slot: int, threads: int) -> None:
    """Sets the stage up, then makes the shards it is sent until the parent goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["CRAWL2CLIP_WORKER_SLOT"] = str(slot)
    for name in _THREAD_SETTINGS:  # before the libraries that read them are imported
        os.environ.setdefault(name, str(threads))
    setup_logging()
    try:
        stage: Stage = pickle.loads(pickled_stage)
        context = stage.setup()
    except Exception as error:
        connection.send(("setup failed", describe_error(error)))
        return
    connection.send(("ready", None))
    while True:
        try:
            shard, temporary = connection.recv()
        except EOFError:
            return
        connection.send(("ended", _try_shard(stage, context, shard, temporary)))


def _try_shard(stage: Stage, context: Any, shard: Shard, temporary: Path) -> str | None:
    try:
        make_shard(stage, context, shard, temporary)
    except Exception as error:  # whatever is wrong with one shard must not end the others
        return describe_error(error)
    return None


def describe_error(error: Exception) -> str:
    """One line for an error that a user can mend; the place in the code as well for any other."""
    if isinstance(error, Crawl2ClipError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

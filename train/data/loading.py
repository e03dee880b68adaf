"""Worker processes of the loader: started, fed, watched; what they read comes back in order."""

import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from crawl2clip.errors import DataError
from train.data.worker_watch import LONGEST_POLL_S, WorkerState, WorkerWatch, watched


@dataclass(frozen=True)
class LoaderSettings:
    """How many processes read, how far ahead, and when one is given up."""

    num_workers: int  # 0 reads in the calling process
    prefetch_batches: int  # items each worker prepares ahead
    stall_timeout_s: float  # a worker that stands at one sample for longer ends the run
    pin_memory: bool = False


@dataclass(frozen=True)
class _Failure:
    """A DataError on its way out of a worker; torch's loader would bury its message in a traceback."""

    message: str


class _Items(Dataset):
    def __init__(self, read: Callable[[int], Any]) -> None:
        self._read = read

    def __getitem__(self, index: int) -> Any:
        try:
            return self._read(index)
        except DataError as error:
            return _Failure(str(error))


def load(
    read: Callable[[int], Any],
    count: int,
    settings: LoaderSettings,
    watch: WorkerWatch,
    describe: Callable[[WorkerState], str],
    rank: int,
) -> Generator[Any, None, None]:
    """`read(0)` to `read(count - 1)` in order, read by worker processes.

    Args:
        read: gives an item; runs in a worker.
        watch: the board on which the workers note what they read, made for at least as many.
        describe: a worker and what it reads, in words.
        rank: named in messages.

    Close it (`contextlib.closing`) when it is left before its end: only then do its workers end.

    Raises:
        DataError: what `read` raised, or a worker died or stalled.
    """
    num_workers = min(settings.num_workers, count)
    loader = DataLoader(
        _Items(read),
        batch_size=None,  # an item is a whole batch
        sampler=range(count),
        num_workers=num_workers,
        prefetch_factor=settings.prefetch_batches if num_workers else None,
        collate_fn=_as_is,
        pin_memory=settings.pin_memory,
        worker_init_fn=partial(_be_worker, watch),
        # A worker shares the table, the tokenizer and the board with its parent, and starts at once.
        multiprocessing_context="fork" if num_workers else None,
        # Without one of its own the loader draws from the global generator, and a resumed run would differ.
        generator=torch.Generator().manual_seed(0),
        timeout=min(LONGEST_POLL_S, settings.stall_timeout_s / 2) if num_workers else 0,
    )
    iterator = iter(loader)
    items = watched(iterator, watch, settings.stall_timeout_s, describe, rank) if num_workers else iterator
    ended = False
    try:
        for item in items:
            if isinstance(item, _Failure):
                raise DataError(item.message)
            yield item
        ended = True
    finally:
        if not ended:
            _kill_workers(iterator)


def _kill_workers(iterator: Any) -> None:
    """Ends workers that are in the middle of something; they write nothing that a kill could leave half done.

    Python ends the children of an ending process by SIGTERM, which they ignore, and waits for them without limit.
    """
    for worker in getattr(iterator, "_workers", []):  # none without processes
        worker.kill()


def _as_is(item: Any) -> Any:
    return item


def _be_worker(watch: WorkerWatch, worker: int) -> None:
    # A signal to the process group means: the trainer saves and stops. It still needs its workers for that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    watch.be_worker(worker)

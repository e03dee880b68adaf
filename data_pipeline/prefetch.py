"""Runs an iterator ahead in a thread, so that what it makes is ready when it is asked for."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL_S = 0.1  # how soon the thread notices that nobody will ask again


class Prefetched(Generic[T]):
    """An iterator over `source`, whose next values are made in a thread; an error of its is raised here.

    Args:
        source: iterated in the thread only.
        depth: values that may wait to be asked for.

    Attributes:
        waited_s: time that the caller has spent waiting for a value.
    """

    def __init__(self, source: Iterable[T], depth: int) -> None:
        self.waited_s = 0.0
        self._queue: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(source,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        try:
            while True:
                started = time.perf_counter()
                word, value = self._queue.get()
                self.waited_s += time.perf_counter() - started
                if word == "value":
                    yield value  # pyright: ignore[reportReturnType] # of this word it is a T
                elif isinstance(value, BaseException):
                    raise value
                else:
                    return
        finally:
            self.close()

    def close(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join()

    def _work(self, source: Iterable[T]) -> None:
        try:
            for value in source:
                if not self._put(("value", value)):
                    return
            self._put(("end", None))
        except BaseException as error:  # whatever it is, it is the caller's
            self._put(("error", error))

    def _put(self, item: tuple[str, T | BaseException | None]) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

"""Shards that wait for a worker: those of the list that come next, and after them those that are to be tried again."""

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

_MOST_AGAIN = (
    1000  # that wait for another try; with more, these come before new ones, so that few are in memory
)


class Waiting(Generic[T]):
    """What is to be done, each with what its executor keeps of it.

    Args:
        new: all of it, in order; made as it is taken.
    """

    def __init__(self, new: Iterable[T]) -> None:
        self._new = iter(new)
        self._again: deque[T] = deque()

    def take(self) -> T | None:
        """The next; None when nothing waits."""
        if len(self._again) < _MOST_AGAIN:
            for task in self._new:
                return task
        return self._again.popleft() if self._again else None

    def put_back(self, task: T) -> None:
        """For another try, later."""
        self._again.append(task)

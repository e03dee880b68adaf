"""Files that a process holds open for a while: a bounded number of them, whatever the size of the data set.

A data set has more shards than a process may have files open (`ulimit -n`), or memory maps (`vm.max_map_count`).
"""

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from crawl2clip.errors import DataError

T = TypeVar("T")

_MAX_OPEN = 64  # of one kind; a shuffle within windows seldom needs more at a time

_OWN_FAULTS = (
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ESTALE,  # it was replaced, and a file server forgot what we have open
    errno.EINVAL,  # an index that came with the shard has places that no file has
)


class OpenFile:
    """A file to be read at any place, closed when nobody holds it any more: a reader never loses it to another."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self._descriptor = path, -1
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer where the file ends."""
        return os.pread(self._descriptor, size, offset)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._descriptor).st_size

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class Recent(Generic[T]):
    """What was opened last, by number of its shard; what was not asked for longest makes place for a new one.

    Several threads may ask: each step is one that Python does not interrupt, and a lock could be copied by a fork
    while it is held.
    """

    def __init__(self, open_one: Callable[[int], T]) -> None:
        self._open_one = open_one
        self._held: OrderedDict[int, T] = OrderedDict()

    def __call__(self, shard: int) -> T:
        found = self._held.pop(shard, None)
        if found is None:
            if len(self._held) >= _MAX_OPEN:
                self._held.popitem(last=False)
            found = self._open_one(shard)
        self._held[shard] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": OrderedDict()}  # descriptors mean nothing in another process


def is_own_fault(error: OSError) -> bool:
    """Whether a file itself is at fault: it is not there, or not ours to read. Else the machine is."""
    return isinstance(error, (FileNotFoundError, PermissionError)) or error.errno in _OWN_FAULTS


def machine_fault(path: object, error: OSError) -> DataError:
    """The error to raise where a file cannot be read for a reason that is not its own."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return DataError(
            f"{path} cannot be opened: {error}; a process may have {limit} files open here (ulimit -n), and one that"
            f" reads shards takes up to {2 * _MAX_OPEN} beside what torch needs; raise it: ulimit -n {2 * limit}"
        )
    return DataError(
        f"{path} cannot be read: {error}; the shard is not at fault: see to this machine and the disk, then start the"
        " run again"
    )

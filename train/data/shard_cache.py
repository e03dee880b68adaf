"""Remote shards kept on this machine's disk: fetched whole, once, for all its processes.

A shard is fetched in ranges, several at a time, so a connection that is cut costs one range. One process fetches,
the others wait for it; the longest unused shards go first when the folder is full. A shard on its way has all its
bytes taken from the disk, and from `cache_gb`, before the first comes. Indexes are kept here too.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from crawl2clip.errors import DataError
from crawl2clip.files import TEMPORARY_MARK, atomic_path
from train.data.open_files import OpenFile
from train.data.remote import GoneError, RemoteShards

_RANGE_BYTES = 16 << 20
_WAIT_S = 0.1  # between two looks for room that other processes are about to leave


class ShardCache:
    """The folder `data.remote.cache_folder`.

    Attributes:
        remote: what it is filled from.
    """

    def __init__(self, remote: RemoteShards) -> None:
        self.remote = remote
        self._folder = Path(remote.config.cache_folder).expanduser()

    def place(self, url: str, suffix: str) -> Path:
        """Where something about an object is kept, there or not."""
        with self._told():
            self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / (hashlib.sha256(url.encode()).hexdigest()[:32] + suffix)

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """As `atomic_path`, for a file of the folder; what the disk refuses is a DataError."""
        with self._told(), atomic_path(path) as temporary:
            yield temporary

    def fetch(self, url: str) -> Path:
        """A local copy of a shard, fetched when there is none.

        Raises:
            GoneError: the shard cannot be read.
            DataError: every attempt failed, the shard is larger than the cache, or the disk does not take it.
        """
        copy = self.place(url, ".tar")
        with self._told():
            if not _touched(copy):
                with _locked(self.place(url, ".lock")):
                    if not _touched(copy):
                        size = self.remote.size(url)
                        with atomic_path(copy) as temporary:
                            self._reserve(temporary, size, url)
                            self._download(url, size, temporary)
        return copy

    def open(self, url: str) -> OpenFile:
        """A local copy of a shard, open. Raises as `fetch`."""
        while True:
            try:
                return OpenFile(self.fetch(url))
            except FileNotFoundError:  # another process made room in between; what is open stays readable
                continue

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tells of what the disk refuses: it is no fault of a sample's."""
        try:
            yield
        except GoneError:
            raise
        except OSError as error:
            raise DataError(self._refusal(error)) from error

    def _refusal(self, error: OSError) -> str:
        there = next(path for path in (self._folder, *self._folder.absolute().parents) if path.exists())
        config = self.remote.config
        return (
            f"data.remote.cache_folder={config.cache_folder} cannot be written: {error}. Its disk has"
            f" {shutil.disk_usage(there).free / 1e9:.2f} GB free, and data.remote.cache_gb={config.cache_gb} may be"
            " kept there beside the indexes; make room, lower cache_gb, or name a folder on another disk"
        )

    def _download(self, url: str, size: int, path: Path) -> None:
        def part(offset: int) -> None:
            data = self.remote.read(url, offset, min(_RANGE_BYTES, size - offset))
            with open(path, "r+b") as file:
                file.seek(offset)
                file.write(data)

        # A pool of its own: a fetch may itself run on a thread of the shared one, which must not wait for itself.
        with ThreadPoolExecutor(self.remote.config.connections) as threads:
            list(threads.map(part, range(0, size, _RANGE_BYTES)))

    def _reserve(self, path: Path, size: int, url: str) -> None:
        """Makes a file of `size` bytes as soon as the limit has room for it, dropping copies as it must."""
        limit = self.remote.config.cache_gb * 1e9
        if size > limit:
            raise DataError(
                f"{url} is {size / 1e9:.2f} GB, data.remote.cache_gb={self.remote.config.cache_gb} holds less; raise it"
            )
        while True:
            with _locked(self._folder / "room.lock"):
                if self._has_room(size, limit):
                    with open(path, "wb") as file:
                        if size:  # a full disk is told here, before bytes come
                            os.posix_fallocate(file.fileno(), 0, size)
                    return
            # Others are fetching as much as the limit holds. They do not wait for room, so they come to an end.
            time.sleep(_WAIT_S)

    def _has_room(self, size: int, limit: float) -> bool:
        """Whether the limit has room, after the copies that were not used for longest have gone."""
        for left in self._folder.glob(f"*.tar{TEMPORARY_MARK}*"):
            if not _is_locked(left.with_name(left.name.partition(".")[0] + ".lock")):
                left.unlink(missing_ok=True)  # whoever fetched it was killed
        # In this order, one that arrives meanwhile counts twice for a moment, and never not at all.
        under_way = sum(status.st_size for _, status in self._files(f"*.tar{TEMPORARY_MARK}*"))
        held = sorted((status.st_mtime, status.st_size, path) for path, status in self._files("*.tar"))
        total = under_way + sum(taken for _, taken, _ in held)
        for _, taken, path in held:
            if total + size <= limit or under_way + size > limit:
                break
            path.unlink(missing_ok=True)  # who has it open keeps reading
            total -= taken
        return total + size <= limit

    def _files(self, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._folder.glob(pattern):
            try:
                yield path, path.stat()
            except FileNotFoundError:  # it came to its end, or a process that failed took it away
                continue


def _touched(path: Path) -> bool:
    """Whether a file is there; marks it as just used."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes of this machine; a process that dies lets go."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_locked(path: Path) -> bool:
    """Whether a process of this machine, this one too, has `path` locked now."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False

"""The bytes of samples: one read a sample, from local shards, cached copies of remote ones, or by range requests."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any

from crawl2clip.errors import DataError
from train.data.decode import BadSample
from train.data.index_file import Span
from train.data.open_files import OpenFile, Recent, is_own_fault, machine_fault
from train.data.remote import GoneError, is_remote
from train.data.shard_cache import ShardCache

logger = logging.getLogger(__name__)

_LARGEST_GAP = 256 << 10  # bytes between a sample's members that are read rather than jumped over


class ShardFiles:
    """Opens shards in the process that uses it.

    Args:
        shards: paths and URLs.
        cache: of remote shards; None where there are none.
        whole: fetch remote shards whole, which pays when samples are drawn shard by shard; otherwise each sample is a
            range request, several at the same time.
    """

    def __init__(self, shards: list[str], cache: ShardCache | None, *, whole: bool) -> None:
        self._shards, self._cache = shards, cache
        self._fetches_whole = whole and any(map(is_remote, shards))
        self._reads_ranges = not whole and any(map(is_remote, shards))
        self._files = Recent(self._open)
        self._wanted: SimpleQueue[str] | None = None
        self._asked: set[int] = set()

    def members(self, shard: int, spans: Mapping[str, Span]) -> dict[str, bytes]:
        """The members of one sample, by name.

        Raises:
            BadSample: unreadable: the shard is gone, or not what it was.
            DataError: a remote shard cannot be reached or kept, or this machine's files cannot be read.
        """
        first = min(offset for offset, _ in spans.values())
        end = max(offset + size for offset, size in spans.values())
        if end - first > sum(size for _, size in spans.values()) + _LARGEST_GAP:
            return {name: self._read(shard, *span) for name, span in spans.items()}
        data = self._read(shard, first, end - first)
        return {name: data[offset - first : offset - first + size] for name, (offset, size) in spans.items()}

    def ahead(
        self, samples: Sequence[tuple[int, Mapping[str, Span]]]
    ) -> Iterator[Callable[[], dict[str, bytes]]]:
        """What `members` gives for each sample, in order, each when it is called; range requests run ahead."""
        if self._cache is None or not self._reads_ranges:
            for shard, spans in samples:
                yield lambda shard=shard, spans=spans: self.members(shard, spans)
            return
        # Four requests for each connection: enough to keep all busy, and a bound on memory.
        threads, reach = self._cache.remote.threads(), 4 * self._cache.remote.config.connections
        running: deque[Future[dict[str, bytes]]] = deque()
        waiting = iter(samples)
        for _ in samples:
            while len(running) < reach and (sample := next(waiting, None)) is not None:
                running.append(threads.submit(self.members, *sample))
            yield running.popleft().result

    def fetch_soon(self, shards: Sequence[int]) -> None:
        """Has remote shards fetched in the background, by whichever process comes first."""
        if self._cache is None or not self._fetches_whole:
            return
        if self._wanted is None:
            self._wanted = SimpleQueue()
            # A daemon, not a pool: a worker that is told to end must not first fetch all that was asked for.
            Thread(target=_fetch_wanted, args=(self._cache, self._wanted), daemon=True).start()
        for shard in shards:
            if shard not in self._asked and is_remote(self._shards[shard]):
                self._wanted.put(self._shards[shard])
        self._asked = set(shards)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        name = self._shards[shard]
        try:
            if self._cache is not None and self._reads_ranges and is_remote(name):
                return self._cache.remote.read(name, int(offset), int(size))
            data = self._files(shard).read(int(offset), int(size))
        except OSError as error:
            if not (isinstance(error, GoneError) or is_own_fault(error)):
                raise machine_fault(name, error) from error
            raise BadSample("unreadable", str(error)) from error
        if len(data) != size:
            raise BadSample(
                "unreadable", f"{len(data)} of {size} bytes are there; the shard changed under the run"
            )
        return data

    def _open(self, shard: int) -> OpenFile:
        name = self._shards[shard]
        if self._cache is not None and is_remote(name):
            return self._cache.open(name)
        return OpenFile(name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_wanted": None}  # its thread means nothing in another process


def _fetch_wanted(cache: ShardCache, wanted: SimpleQueue[str]) -> None:
    while True:
        url = wanted.get()
        try:
            cache.fetch(url)
        except (OSError, DataError) as error:  # whoever needs the shard meets the same, and reports it
            logger.debug("%s was not fetched ahead: %s", url, error)

"""Finding the rows that a blocklist names, by uid, by URL and by host.

URLs and hosts are hashed here, in Python, about a microsecond each, and only when a list has such entries.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data_pipeline.blocklist import host_of, sha256_of_text
from data_pipeline.deduplicate_keys import find


class Blocked(NamedTuple):
    """Sorted key lists, [2, N] uint64 each, mapped from disk."""

    uid: np.ndarray
    url: np.ndarray
    domain: np.ndarray

    def kind_of_each(self, uid_keys: np.ndarray, urls: pa.ChunkedArray) -> np.ndarray:
        """Why each row is blocked: [N] int8, an index into `BlockKind`, or -1; the first kind that applies.

        Args:
            uid_keys: [N, 2] uint64.
            urls: N addresses.
        """
        kinds = np.full(len(uid_keys), -1, np.int8)
        if self.domain.shape[1]:
            kinds[self._domains_blocked(urls)] = 2
        if self.url.shape[1]:
            done = 0
            for chunk in _chunks(urls):
                keys = _digests(chunk)
                kinds[done : done + len(chunk)][find(self.url, keys[:, 0], keys[:, 1]) >= 0] = 1
                done += len(chunk)
        if self.uid.shape[1]:
            order = np.argsort(uid_keys[:, 0])  # sorted keys are found several times as fast
            hits = find(self.uid, uid_keys[order, 0], uid_keys[order, 1]) >= 0
            kinds[order[hits]] = 0
        return kinds

    def _domains_blocked(self, urls: pa.ChunkedArray) -> np.ndarray:
        """[N] bool: whether the host, or one that it is part of, is blocked."""
        known: dict[str, bool] = {}
        blocked = []
        for chunk in _chunks(urls):
            hosts = [host_of(url) for url in chunk]
            new = list(set(hosts) - known.keys())
            names = [parents for host in new for parents in _with_parents(host)]
            keys = _digests(names)
            hits = iter((find(self.domain, keys[:, 0], keys[:, 1]) >= 0).tolist())
            for host in new:
                known[host] = sum(next(hits) for _ in _with_parents(host)) > 0
            blocked += [known[host] for host in hosts]
        return np.array(blocked, bool)


def _with_parents(host: str) -> list[str]:
    """a.b.org, b.org and org for a.b.org; an address in numbers has no parents."""
    if host[:1] == "[" or host.replace(".", "").isdigit():
        return [host]
    parts = host.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _chunks(column: pa.ChunkedArray) -> Iterator[list[str]]:
    for start in range(0, len(column), 100_000):
        yield column.slice(start, 100_000).to_pylist()


def _digests(texts: Iterable[str]) -> np.ndarray:
    packed = b"".join([sha256_of_text(text)[:16] for text in texts])
    return np.frombuffer(packed, ">u8").reshape(-1, 2).astype(np.uint64)

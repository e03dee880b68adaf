"""Finding the rows that a blocklist names, by uid, by URL and host, and by the hashes of the image.

URLs and hosts are hashed here, in Python, about a microsecond each, and only when a list has such entries.
"""

import binascii
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from data_pipeline.blocklist import OF_CONTENT, BlockKind, host_of, sha256_of_text
from data_pipeline.blocklist_files import read_blocklist
from data_pipeline.deduplicate_keys import KeyListWriter, find, keys_of_hex, open_keys
from data_pipeline.taggers.hamming import HammingIndex

_EMPTY = np.empty((2, 0), np.uint64)


class Blocked(NamedTuple):
    """Sorted key lists, [2, N] uint64 each, mapped from disk."""

    uid: np.ndarray = _EMPTY
    url: np.ndarray = _EMPTY
    domain: np.ndarray = _EMPTY
    md5: np.ndarray = _EMPTY
    sha256: np.ndarray = _EMPTY
    phash: np.ndarray = _EMPTY  # the hash is the high half

    @property
    def columns(self) -> list[str]:
        """The columns of the download table, besides uid, that have to be looked at."""
        of_content = [kind.value for kind in OF_CONTENT if getattr(self, kind.value).shape[1]]
        return [*(["url"] if self.url.shape[1] or self.domain.shape[1] else []), *of_content]

    def near(self, distance: int) -> HammingIndex:
        """The listed perceptual hashes, to be asked for those that differ in at most `distance` bits."""
        return HammingIndex(np.array(self.phash[0]), distance)

    def kinds(self, frame: pl.DataFrame, near: HammingIndex) -> np.ndarray:
        """Why each row is blocked: [N] int8, an index into `BlockKind`, or -1; the first kind that applies.

        Args:
            frame: uid and `columns`; hashes of the image may be null.
            near: `self.near(...)`, made once.
        """
        urls = pa.chunked_array([frame["url"].to_arrow()]) if "url" in frame.columns else None
        uid_keys = keys_of_hex("".join(frame["uid"].to_list()).encode())
        found = self.kind_of_each(uid_keys, pa.chunked_array([], pa.string()) if urls is None else urls)
        for number, kind in reversed(list(enumerate(BlockKind))):
            if kind not in OF_CONTENT or not getattr(self, kind.value).shape[1]:
                continue
            rows = np.flatnonzero((found < 0) | (found > number))
            present = frame[kind.value].gather(rows).is_not_null().to_numpy()
            rows = rows[present]
            hashes = "".join(frame[kind.value].gather(rows).to_list()).encode()
            if kind == BlockKind.phash:
                words = np.frombuffer(binascii.unhexlify(hashes), ">u8").astype(np.uint64)
                hits = near.first_within(words) >= 0
            else:
                keys = keys_of_hex(hashes)[:: 2 if kind == BlockKind.sha256 else 1]
                hits = find(getattr(self, kind.value), keys[:, 0], keys[:, 1]) >= 0
            found[rows[hits]] = number
        return found

    def kind_of_each(self, uid_keys: np.ndarray, urls: pa.ChunkedArray) -> np.ndarray:
        """Why each row is blocked: [N] int8, an index into `BlockKind`, or -1; the first kind that applies.

        Args:
            uid_keys: [N, 2] uint64.
            urls: N addresses; may be empty when no list has urls or domains.
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


def sort_blocklists(paths: Sequence[str | Path], folder: Path) -> Blocked:
    """The entries of all lists, sorted by kind in files in `folder`, which must last as long as the result.

    Raises:
        DataError: a list is damaged or has an entry that is not one.
    """
    writers = {kind: KeyListWriter(folder / f"{kind.value}.npy") for kind in BlockKind}
    for path in paths:
        for kind, keys in read_blocklist(str(path)):
            writers[kind].add(keys)
    for writer in writers.values():
        writer.close()
    return Blocked(*(open_keys(folder / f"{kind.value}.npy") for kind in BlockKind))

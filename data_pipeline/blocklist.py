"""Lists of what must not be in a data set, as hashes: pairs by uid, images by url, sites by domain.

    python -m data_pipeline.blocklist --output blocked.parquet --urls urls.txt --domains domains.txt --uids uids.txt

makes such a list from plain ones; `deduplicate.blocklist=[blocked.parquet]` applies it. Only hashes are stored, so a
list can be handed on without spreading what it blocks, and no message of this module repeats an entry.

An entry is a kind and a hash in hex. The first 128 bits of a SHA-256 are compared, so an accidental hit among a billion
rows and a billion entries has a chance of 3e-21.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crawl2clip.errors import ConfigError, Crawl2ClipError, DataError
from crawl2clip.files import atomic_path
from crawl2clip.schema import UID_DTYPE
from data_pipeline.deduplicate_keys import find, keys_of_hex
from data_pipeline.urls import page_base

BLOCKLIST_SCHEMA = pa.schema([pa.field("kind", pa.string()), pa.field("hash", pa.string())])
"""A blocklist as parquet."""

_BATCH = 500_000  # entries in memory at once


class BlockKind(str, Enum):
    """What an entry blocks, and what its hash is."""

    uid = "uid"  # one (url, text) pair: the 32 hex digits of crawl2clip.schema.uid_of
    url = "url"  # one image address: SHA-256 of the URL in the standard's spelling, without a fragment
    domain = "domain"  # a host and all below it: SHA-256 of its name, lower case, ASCII (xn-- for others), no port


HASH_DIGITS = {BlockKind.uid: 32, BlockKind.url: 64, BlockKind.domain: 64}
FORMS = (".parquet", ".txt", ".npy")


# What is hashed


def hash_of(kind: BlockKind, value: str) -> str:
    """The hash of a plain entry, in hex.

    Raises:
        ValueError: the value is not of the kind; the message does not repeat it.
    """
    value = value.strip()
    if kind == BlockKind.uid:
        if not _is_hash(kind, value):
            raise ValueError("not a uid: 32 hex digits")
        return value.lower()
    if kind == BlockKind.url:
        base = page_base(value, None)
        if base is None:
            raise ValueError("not an http(s) URL")
        return _sha256(base.href.partition("#")[0]).hexdigest()
    name = value.lower().removeprefix("*.").strip(".")
    base = page_base(f"http://{name}/", None) if name and not set(name) & set("/:@?# ") else None
    if base is None:
        raise ValueError("not a domain: give a name such as example.org, without a scheme or a path")
    return _sha256(host_of(base.href)).hexdigest()


def host_of(url: str) -> str:
    """The host of a URL in the standard's spelling, without a port and a final dot."""
    host = url.split("/", 3)[2].rpartition("@")[2]
    return (host if host.endswith("]") else host.partition(":")[0] if host[:1] != "[" else host.rpartition(":")[0]).rstrip(".")


def _sha256(text: str) -> "hashlib._Hash":
    return hashlib.sha256(text.encode("utf-8", "replace"))


def _is_hash(kind: BlockKind, text: str) -> bool:
    return len(text) == HASH_DIGITS[kind] and set(text) <= set("0123456789abcdefABCDEF")


# Reading


def check_blocklists(paths: Sequence[str]) -> None:
    """Looks whether the files are there and have a known form; entries are read when the list is applied.

    Raises:
        ConfigError: a file is missing, is given twice, or is of another form.
    """
    for path in paths:
        asked = f"deduplicate.blocklist names {path}"
        if list(paths).count(path) > 1:
            raise ConfigError(f"{asked} {list(paths).count(path)} times; name it once")
        if not os.path.isfile(path):
            raise ConfigError(f"{asked}, which is not a file; check the path")
        if Path(path).suffix not in FORMS:
            raise ConfigError(f"{asked}; a blocklist ends in {', '.join(FORMS)}. {_HOW_TO_MAKE}")
        try:
            next(read_blocklist(path), None)
        except DataError as error:
            raise ConfigError(f"{asked}, which cannot be used: {error}") from error


_HOW_TO_MAKE = "Make one from plain lists with: python -m data_pipeline.blocklist --help"


def read_blocklist(path: str) -> Iterator[tuple[BlockKind, np.ndarray]]:
    """The entries of a blocklist as keys, [N, 2] uint64, some at a time.

    A `.parquet` file has the text columns `kind` and `hash`; a `.txt` file has a line `kind:hash` for each entry,
    empty lines and those that start with # aside; a `.npy` file is a list of uids as DataComp keeps them.

    Raises:
        DataError: the file is damaged or has an entry that is not one; says where, and does not repeat the entry.
    """
    suffix = Path(path).suffix
    try:
        if suffix == ".npy":
            yield from _read_npy(path)
            return
        start = 0
        for kinds, hashes, places in _read_parquet(path) if suffix == ".parquet" else _read_text(path):
            yield from _keys_by_kind(path, kinds, hashes, places, "line" if suffix == ".txt" else "row")
            start += len(kinds)
    except (OSError, pa.ArrowException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as a blocklist ({reason}). {_HOW_TO_MAKE}") from error


def _read_npy(path: str) -> Iterator[tuple[BlockKind, np.ndarray]]:
    uids = np.load(path, mmap_mode="r")
    if uids.dtype != UID_DTYPE or uids.ndim != 1:
        raise DataError(
            f"{path} holds {uids.ndim}-dimensional {uids.dtype}, not uids; a .npy blocklist is a DataComp subset, "
            f"one-dimensional {UID_DTYPE}. {_HOW_TO_MAKE}"
        )
    for start in range(0, len(uids), _BATCH):
        part = uids[start : start + _BATCH]
        yield BlockKind.uid, np.stack([part["f0"], part["f1"]], axis=1)


_Entries = tuple[list[str | None], list[str | None], Sequence[int]]


def _read_parquet(path: str) -> Iterator[_Entries]:
    with pq.ParquetFile(path) as file:
        found = file.schema_arrow
        for name in BLOCKLIST_SCHEMA.names:
            if name not in found.names or not _is_text(found.field(name).type):
                raise DataError(
                    f"{path} has no text column {name!r} (it has {', '.join(found.names[:10])}); a blocklist has "
                    f"the text columns kind and hash. {_HOW_TO_MAKE}"
                )
        done = 0
        for batch in file.iter_batches(batch_size=_BATCH, columns=BLOCKLIST_SCHEMA.names):
            kinds, hashes = (batch.column(name).to_pylist() for name in BLOCKLIST_SCHEMA.names)
            yield kinds, hashes, range(done + 1, done + len(kinds) + 1)
            done += len(kinds)


def _is_text(type_: pa.DataType) -> bool:
    type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def _read_text(path: str) -> Iterator[_Entries]:
    with open(path, encoding="utf-8") as file:
        done = 0
        while lines := file.readlines(_BATCH * 70):
            kinds: list[str | None] = []
            hashes: list[str | None] = []
            places: list[int] = []
            for number, line in enumerate(lines, done + 1):
                line = line.strip()
                if line and line[0] != "#":
                    kind, _, digits = line.partition(":")
                    kinds.append(kind)
                    hashes.append(digits)
                    places.append(number)
            done += len(lines)
            yield kinds, hashes, places


def _keys_by_kind(
    path: str, kinds: list[str | None], hashes: list[str | None], places: Sequence[int], unit: str
) -> Iterator[tuple[BlockKind, np.ndarray]]:
    known = {kind.value: HASH_DIGITS[kind] for kind in BlockKind}
    digits: dict[str, list[str]] = {name: [] for name in known}
    for kind, text, place in zip(kinds, hashes, places, strict=True):
        if kind not in known or text is None or len(text) != known[kind]:
            raise _bad_entry(path, unit, place)
        digits[kind].append(text[:32])
        # The rest of a SHA-256 is not compared, but a list with something else in it is not one.
        if len(text) == 64 and not text.isalnum():
            raise _bad_entry(path, unit, place)
    for name, texts in digits.items():
        try:
            if texts:
                yield BlockKind(name), keys_of_hex("".join(texts).encode("ascii"))
        except ValueError as error:  # not hex digits: now find which
            bad = next(
                place
                for kind, text, place in zip(kinds, hashes, places, strict=True)
                if kind == name and not _is_hash(BlockKind(name), text or "")
            )
            raise _bad_entry(path, unit, bad) from error


def _bad_entry(path: str, unit: str, place: int) -> DataError:
    return DataError(
        f"{path}, {unit} {place}, is not an entry of a blocklist: a kind ({', '.join(BlockKind.__members__)}) and its "
        f"hash in hex, 32 digits for a uid and 64 for the others. {_HOW_TO_MAKE}"
    )


# Applying


class Blocked(NamedTuple):
    """Sorted key lists, [2, N] uint64 each, mapped from disk."""

    uid: np.ndarray
    url: np.ndarray
    domain: np.ndarray

    def kind_of_each(self, uid_keys: np.ndarray, urls: "pa.ChunkedArray") -> np.ndarray:
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
                kinds[done : done + len(chunk)][find(*self.url, keys[:, 0], keys[:, 1]) >= 0] = 1
                done += len(chunk)
        if self.uid.shape[1]:
            order = np.argsort(uid_keys[:, 0])  # sorted keys are found several times as fast
            hits = find(*self.uid, uid_keys[order, 0], uid_keys[order, 1]) >= 0
            kinds[order[hits]] = 0
        return kinds

    def _domains_blocked(self, urls: "pa.ChunkedArray") -> np.ndarray:
        """[N] bool: whether the host, or one that it is part of, is blocked."""
        known: dict[str, bool] = {}
        blocked = []
        for chunk in _chunks(urls):
            hosts = [host_of(url) for url in chunk]
            new = list(set(hosts) - known.keys())
            names = [parents for host in new for parents in _with_parents(host)]
            keys = _digests(names)
            hits = iter((find(*self.domain, keys[:, 0], keys[:, 1]) >= 0).tolist())
            for host in new:
                known[host] = any([next(hits) for _ in _with_parents(host)])
            blocked += [known[host] for host in hosts]
        return np.array(blocked, bool)


def _with_parents(host: str) -> list[str]:
    """a.b.org, b.org and org for a.b.org; an address in numbers has no parents."""
    if host[:1] == "[" or host.replace(".", "").isdigit():
        return [host]
    parts = host.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _chunks(column: "pa.ChunkedArray") -> Iterator[list[str]]:
    for start in range(0, len(column), 100_000):
        yield column.slice(start, 100_000).to_pylist()


def _digests(texts: Iterable[str]) -> np.ndarray:
    packed = b"".join([_sha256(text).digest()[:16] for text in texts])
    return np.frombuffer(packed, ">u8").reshape(-1, 2).astype(np.uint64)


# The command


def write_blocklist(output: Path | str, lists: dict[BlockKind, str]) -> dict[BlockKind, int]:
    """Makes a parquet blocklist from plain lists, one entry a line; entries of each kind written.

    Args:
        output: the file to write, ending in .parquet.
        lists: kind -> text file. Empty lines and those that start with # are passed over.

    Raises:
        ConfigError: the output has another ending.
        DataError: a file is missing or holds a line that is not an entry; names the line and does not repeat it.
    """
    if Path(output).suffix != ".parquet":
        raise ConfigError(f"--output is {output}; give a name that ends in .parquet")
    counts = dict.fromkeys(lists, 0)
    with atomic_path(output) as temporary, pq.ParquetWriter(temporary, BLOCKLIST_SCHEMA, compression="zstd") as writer:
        for kind, path in lists.items():
            for hashes in _hashed_lines(kind, path):
                columns = [pa.array([kind.value] * len(hashes)), pa.array(hashes, pa.string())]
                writer.write_table(pa.table(columns, schema=BLOCKLIST_SCHEMA))
                counts[kind] += len(hashes)
    return counts


def _hashed_lines(kind: BlockKind, path: str) -> Iterator[list[str]]:
    hashes: list[str] = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip() or line.startswith("#"):
                    continue
                try:
                    hashes.append(hash_of(kind, line))
                except ValueError as error:
                    raise DataError(f"{path}, line {number}, is {error}; correct or remove it") from None
                if len(hashes) == _BATCH:
                    yield hashes
                    hashes = []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a text of one {kind.value} a line ({error})") from error
    yield hashes


def main(words: Sequence[str]) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.blocklist",
        description="Makes a blocklist for deduplicate.blocklist from plain lists of one entry a line. "
        "Only hashes are written.",
    )
    parser.add_argument("--output", required=True, metavar="FILE.parquet", help="the blocklist to write")
    parser.add_argument("--urls", metavar="FILE", help="image addresses, http or https")
    parser.add_argument("--domains", metavar="FILE", help="sites; example.org blocks www.example.org too")
    parser.add_argument("--uids", metavar="FILE", help="uids of (url, text) pairs, 32 hex digits each")
    asked = parser.parse_args(words)
    lists = {BlockKind.uid: asked.uids, BlockKind.url: asked.urls, BlockKind.domain: asked.domains}
    given = {kind: path for kind, path in lists.items() if path is not None}
    if not given:
        parser.error("give at least one of --urls, --domains and --uids")
    try:
        counts = write_blocklist(asked.output, given)
    except Crawl2ClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{asked.output}: " + ", ".join(f"{count:,} {kind.value} hashes" for kind, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

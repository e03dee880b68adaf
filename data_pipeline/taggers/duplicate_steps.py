"""Steps of the duplicates tagger for equal bytes and near hashes; `taggers/duplicates.py` tells how they go together.

A uid is held as two uint64 halves, `high` and `low`, whose order is that of the hex digits. Every reducer writes a
lookup file: sorted keys [2, M] and the uid [2, M] that each key's rows are duplicates of.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_pipeline.completion import finished_rows
from data_pipeline.deduplicate_keys import find, hex_of_keys, keys_of_hex, open_keys
from data_pipeline.stage import Counts, Shard, Stage, finished_shards, stream_finished
from data_pipeline.subset import uid_halves
from data_pipeline.tables import read_table
from data_pipeline.taggers.hamming import masks_for, smallest_neighbours
from data_pipeline.taggers.ranged_files import read_part, write_parts

_SPREAD = np.uint64(
    0x9E3779B97F4A7C15
)  # an odd number: multiplying by it loses nothing and mixes the high bits


def num_rows(folder: Path) -> int:
    """Rows in all finished shards of a stage."""
    return sum(count for _, count in finished_rows(folder))


def groups_of(rows: Iterable[tuple[str, int]], at_once: int) -> Iterator[list[str]]:
    """Shards in groups of about so many rows, in order."""
    group: list[str] = []
    space = at_once
    for name, count in rows:
        if group and count > space:
            yield group
            group, space = [], at_once
        group.append(name)
        space -= count
    if group:
        yield group


def num_ranges(rows: int, at_once: int) -> int:
    """Parts of the key space, each with about `at_once` of the rows."""
    return max(1, -(-rows // at_once))


def part_of(keys: np.ndarray, parts: int) -> np.ndarray:
    """int64 [N]: which of `parts` equal parts of all keys a uint64 key is in, after they are mixed."""
    return ((keys * _SPREAD >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32)).astype(np.int64)


def write_lookup(stem: Path, keys: np.ndarray, uids: np.ndarray) -> None:
    """Writes sorted keys and the uid of each, both uint64 [2, M]."""
    np.save(f"{stem}.keys.npy", keys)
    np.save(f"{stem}.uids.npy", uids)


def look_up(folder: Path, wanted: np.ndarray) -> np.ndarray:
    """uint64 [2, N]: the least uid that a stage's lookup files have for each of N keys [2, N]; all ones for none."""
    best = np.full((2, wanted.shape[1]), np.uint64(2**64 - 1))
    for name in finished_shards(folder):
        places = find(open_keys(folder / f"{name}.keys.npy"), wanted[0], wanted[1])
        rows = np.flatnonzero(places >= 0)
        uids = open_keys(folder / f"{name}.uids.npy")[:, places[rows]]
        smaller = (uids[0] < best[0, rows]) | ((uids[0] == best[0, rows]) & (uids[1] < best[1, rows]))
        best[:, rows[smaller]] = uids[:, smaller]
    return best


def read_hashes(path: str) -> dict[str, np.ndarray]:
    """uid, first half of the sha256, and perceptual hash of a raw shard's stored pairs; `has_*` where there is one."""
    frame = read_table(path, ["uid", "sha256", "phash"], stored_only=True)
    halves = uid_halves(frame["uid"])
    exact, near = frame["sha256"].str.head(32), frame["phash"]
    has_exact = exact.str.contains(r"^[0-9a-f]{32}$").fill_null(False)
    has_near = near.str.contains(r"^[0-9a-f]{16}$").fill_null(False)
    keys = np.zeros((len(frame), 2), np.uint64)
    keys[has_exact.to_numpy()] = keys_of_hex("".join(exact.filter(has_exact)).encode())
    hashes = near.set(~has_near, "0" * 16).str.to_integer(base=16, dtype=pl.UInt64).to_numpy()
    return {
        "high": halves[:, 0].copy(), "low": halves[:, 1].copy(),
        "key_high": keys[:, 0].copy(), "key_low": keys[:, 1].copy(), "hash": hashes,
        "has_exact": has_exact.to_numpy(), "has_near": has_near.to_numpy(),
    }  # fmt: skip


def first_of_each_key(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the least (high, low) of each key, in the order of the keys, and the rows of each key.

    Args:
        columns: low, high, then the key's columns, the most significant last, as numpy.lexsort has them.
    """
    order = np.lexsort(columns)
    new = np.zeros(len(order), bool)
    new[:1] = True
    for key in columns[2:]:
        new[1:] |= key[order][1:] != key[order][:-1]
    starts = np.flatnonzero(new)
    return order[starts], np.diff(np.r_[starts, len(order)])


@dataclass
class HashRuns(Stage):
    """Puts the hashes of some raw shards at a time into parts, by key."""

    name: str
    folder: Path
    settings: dict[str, Any]
    raw: Path  # the download stage's folder

    def shards(self) -> Iterator[Shard]:
        """Groups of raw shards."""
        groups = groups_of(finished_rows(self.raw), self.settings["rows_per_range"])
        for number, names in enumerate(groups):
            yield Shard(f"{number:05d}", tuple(str(self.raw / f"{name}.parquet") for name in names))

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Writes `NAME.exact.arrow` and `NAME.near.arrow`."""
        parts = num_ranges(num_rows(self.raw), self.settings["rows_per_range"])
        tables = [read_hashes(path) for path in shard.inputs]
        whole = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
        exact, near = whole["has_exact"], whole["has_near"]
        columns = {name: whole[name][exact] for name in ("high", "low", "key_high", "key_low")}
        write_parts(
            temporary / f"{shard.name}.exact.arrow", columns, part_of(columns["key_high"], parts), parts
        )
        columns = {name: whole[name][near] for name in ("high", "low", "hash")}
        write_parts(temporary / f"{shard.name}.near.arrow", columns, part_of(columns["hash"], parts), parts)
        counts = Counts(rows_in=len(exact), rows_out=len(exact))
        for name, has in (("no_sha256", exact), ("no_phash", near)):
            if not has.all():
                counts.extra[f"duplicates_{name}"] = int((~has).sum())
        return counts


@dataclass
class RunReducer(Stage):
    """What the reducers of the hash runs share: a shard for each part, made from all runs."""

    name: str
    folder: Path
    settings: dict[str, Any]
    raw: Path
    runs: Path
    kind = "exact"  # of the runs' files

    def parts(self) -> int:
        """How many parts the runs have."""
        return num_ranges(num_rows(self.raw), self.settings["rows_per_range"])

    def shards(self) -> Iterator[Shard]:
        """One for each part."""
        inputs = tuple(str(self.runs / f"{name}.{self.kind}.arrow") for name in stream_finished(self.runs))
        for number in range(self.parts()):
            yield Shard(f"{number:05d}", inputs)


@dataclass
class ExactReducer(RunReducer):
    """Finds the least uid of each sha256 that several pairs have."""

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Writes a lookup file, by the first 128 bits of the sha256."""
        rows = read_part(shard.inputs, int(shard.name), self.parts())
        firsts, sizes = first_of_each_key(rows["low"], rows["high"], rows["key_low"], rows["key_high"])
        firsts = firsts[sizes > 1]
        keys = np.stack([rows["key_high"][firsts], rows["key_low"][firsts]])
        write_lookup(temporary / shard.name, keys, np.stack([rows["high"][firsts], rows["low"][firsts]]))
        return Counts(rows_in=len(rows["high"]), rows_out=len(rows["high"]))


@dataclass
class HashReducer(RunReducer):
    """Finds the least uid of each perceptual hash, and puts the distinct hashes into parts for each choice of bands."""

    kind = "near"

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Writes a lookup file of the hashes that several pairs have, and `NAME.bandsCCC.arrow` for each choice."""
        parts = self.parts()
        rows = read_part(shard.inputs, int(shard.name), parts)
        firsts, sizes = first_of_each_key(rows["low"], rows["high"], rows["hash"])
        hashes, high, low = (rows[name][firsts] for name in ("hash", "high", "low"))
        several = sizes > 1
        keys = np.stack([hashes[several], np.zeros(several.sum(), np.uint64)])
        write_lookup(temporary / shard.name, keys, np.stack([high[several], low[several]]))
        masks = masks_for(self.settings["hamming_radius"], num_rows(self.raw))
        columns = {"hash": hashes, "high": high, "low": low}
        for choice, mask in enumerate(masks):
            part = part_of(hashes & np.uint64(mask), parts)
            write_parts(temporary / f"{shard.name}.bands{choice:03d}.arrow", columns, part, parts)
        counts = Counts(rows_in=len(rows["high"]), rows_out=len(rows["high"]))
        counts.extra["distinct_phashes"] = len(hashes)
        return counts


@dataclass
class BandReducer(Stage):
    """Compares the hashes that agree in a choice of bands."""

    name: str
    folder: Path
    settings: dict[str, Any]
    raw: Path
    hashes: Path  # where HashReducer wrote

    def shards(self) -> Iterator[Shard]:
        """One for each choice of bands and part: `CCCPPPPP`."""
        masks, parts = self._size()
        names = finished_shards(self.hashes)
        for choice in range(len(masks)):
            inputs = tuple(str(self.hashes / f"{name}.bands{choice:03d}.arrow") for name in names)
            for part in range(parts):
                yield Shard(f"{choice:03d}{part:05d}", inputs)

    def _size(self) -> tuple[list[int], int]:
        rows = num_rows(self.raw)
        masks = masks_for(self.settings["hamming_radius"], rows)
        return masks, num_ranges(rows, self.settings["rows_per_range"])

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Writes a lookup file: hash -> the least uid of a hash near to it, where that is less than its own."""
        masks, parts = self._size()
        choice, part = int(shard.name[:3]), int(shard.name[3:])
        rows = read_part(shard.inputs, part, parts)
        order = np.lexsort((rows["low"], rows["high"]))
        hashes, high, low = (rows[name][order] for name in ("hash", "high", "low"))
        found = smallest_neighbours(
            hashes, hashes & np.uint64(masks[choice]), self.settings["hamming_radius"]
        )
        changed = np.flatnonzero(found != np.arange(len(found)))
        changed = changed[np.argsort(hashes[changed], kind="stable")]
        keys = np.stack([hashes[changed], np.zeros(len(changed), np.uint64)])
        write_lookup(temporary / shard.name, keys, np.stack([high[found[changed]], low[found[changed]]]))
        return Counts(rows_in=len(hashes), rows_out=len(hashes))


@dataclass
class DuplicatesStage(Stage):
    """Makes the tags of each raw shard from the lookup files."""

    name: str
    folder: Path
    settings: dict[str, Any]
    raw: Path
    exact: Path
    near: tuple[Path, ...]  # the hashes' and the bands' lookup files
    semantic: Path | None
    columns: dict[str, Any]

    def shards(self) -> Iterator[Shard]:
        """One for each complete raw shard; the manifests stand for all files of their folders."""
        folders = [self.exact, *self.near, *([self.semantic] if self.semantic is not None else [])]
        manifests = tuple(str(folder / "manifest.json") for folder in folders)
        for name in stream_finished(self.raw):
            yield Shard(name, (str(self.raw / f"{name}.parquet"), *manifests))

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Tags one raw shard."""
        rows = read_hashes(shard.inputs[0])
        uids = np.stack([rows["high"], rows["low"]])
        hashes = np.stack([rows["hash"], np.zeros_like(rows["hash"])])
        near = np.stack([look_up(folder, hashes) for folder in self.near])
        least = np.where(_less(near[0], near[1]), near[0], near[1])
        found = {
            "exact": _others(
                look_up(self.exact, np.stack([rows["key_high"], rows["key_low"]])), uids, rows["has_exact"]
            ),
            "perceptual": _others(least, uids, rows["has_near"]),
            "semantic": np.full(uids.shape[1], None, object)
            if self.semantic is None
            else _others(look_up(self.semantic, uids), uids, np.ones(uids.shape[1], bool)),
        }
        table = pl.DataFrame(
            {
                "uid": hex_of_keys(*uids).to_pylist(),
                **{f"{kind}_duplicate_of": values.tolist() for kind, values in found.items()},
            },
            schema={"uid": pl.String, **self.columns},
        )
        table.write_parquet(temporary / f"{shard.name}.parquet")
        counts = Counts(rows_in=len(table), rows_out=len(table))
        for kind in found:
            if number := table[f"{kind}_duplicate_of"].drop_nulls().len():
                counts.extra[f"{kind}_duplicates"] = number
        return counts


def _less(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[N] bool of two [2, N] arrays of uids."""
    return (first[0] < second[0]) | ((first[0] == second[0]) & (first[1] < second[1]))


def _others(found: np.ndarray, own: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[N] object: the uid found as hex where it is less than the row's own, and the row has a key; else None."""
    rows = np.flatnonzero(_less(found, own) & known)
    result = np.full(own.shape[1], None, object)
    if len(rows):
        result[rows] = hex_of_keys(found[0, rows], found[1, rows]).to_pylist()
    return result

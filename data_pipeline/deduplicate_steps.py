"""The steps of the deduplicate stage: each is independent shards of bounded size. `data_pipeline.deduplicate` tells how
they go together.
"""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crawl2clip.errors import DataError
from data_pipeline.blocked import Blocked
from data_pipeline.blocklist import OF_CONTENT, BlockKind
from data_pipeline.blocklist_files import read_blocklist
from data_pipeline.completion import finished_rows
from data_pipeline.deduplicate_keys import DeduplicateBy, KeyListWriter, find, open_keys, range_of
from data_pipeline.deduplicate_rows import (
    column_keys,
    file_keys,
    joined,
    read_candidates,
    read_range,
    with_keys,
    write_run,
    write_shards,
)
from data_pipeline.deduplicate_winner import first_of_each
from data_pipeline.stage import Counts, Shard, Stage, finished_shards, read_stats, stream_finished

logger = logging.getLogger(__name__)

_MAX_PIECES = 1_000  # download shards of one range: three digits of their names
_KEYS_PER_RUN = 4  # earlier keys sorted at once, in rows_per_run: a key takes much less memory than a row
_BLOCKLIST = "blocklist"  # the one shard of its step
_KNOWN_KINDS = tuple(kind for kind in BlockKind if kind not in OF_CONTENT)  # before anything is downloaded


class DropReason(str, Enum):
    """Why a candidate is not in the output."""

    duplicate = "duplicate"  # another row has its pair, or its url
    in_earlier_crawl = (
        "in_earlier_crawl"  # the output of an earlier run has it; counted once, its duplicates apart
    )
    blocked_uid = "blocked_uid"
    blocked_url = "blocked_url"
    blocked_domain = "blocked_domain"


@dataclass
class BlocklistStage(Stage):
    """Sorts the hashes of all blocklists, by kind."""

    name: str
    folder: Path
    settings: dict[str, Any]
    paths: tuple[str, ...]

    def shards(self) -> list[Shard]:
        """One, of all files."""
        return [Shard(_BLOCKLIST, self.paths)]

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Writes a key file for each kind."""
        counts = Counts()
        writers = {kind: KeyListWriter(temporary / f"{shard.name}.{kind.value}.npy") for kind in _KNOWN_KINDS}
        for path in shard.inputs:
            for kind, keys in read_blocklist(path):
                if kind in writers:
                    writers[kind].add(keys)
                else:
                    counts.extra[f"{kind.value}_hashes_left_for_select"] += len(keys)
        for kind, writer in writers.items():
            counts.extra[f"{kind.value}_hashes"] = writer.close()
        left = sum(number for name, number in counts.extra.items() if name.endswith("_left_for_select"))
        if left:
            logger.warning(
                "deduplicate.blocklist has %d hashes of images, which nobody has seen yet; give the list as "
                "select.blocklist too",
                left,
            )
        return counts


class _RunContext(NamedTuple):
    num_ranges: int
    blocked: Blocked | None


@dataclass
class RunsStage(Stage):
    """Deduplicates some candidates at a time, and puts them in the order of their keys."""

    name: str
    folder: Path
    settings: dict[str, Any]
    candidates: Path  # the extract stage's folder
    blocklist: Path | None = None  # where BlocklistStage wrote

    def shards(self) -> Iterator[Shard]:
        """Groups of candidate files with about `rows_per_run` rows, in the files' order, and parts of larger files."""
        at_once = self.settings["rows_per_run"]
        for index, (part, files) in enumerate(_groups(self.candidates, at_once)):
            yield Shard(f"{index:05d}{part}", tuple(files))

    def setup(self) -> _RunContext:
        """How many ranges there will be, and what is blocked."""
        blocked = None
        if self.blocklist is not None:
            paths = [self.blocklist / f"{_BLOCKLIST}.{kind.value}.npy" for kind in _KNOWN_KINDS]
            blocked = Blocked(*map(open_keys, paths))
        return _RunContext(_num_ranges(self.candidates, self.settings), blocked)

    def run(self, context: _RunContext, shard: Shard, temporary: Path) -> Counts:
        """Makes one run."""
        by = DeduplicateBy(self.settings["by"])
        part = slice(*map(int, shard.name.split("-")[1:])) if "-" in shard.name else slice(None)
        counts, tables = Counts(), []
        for path in shard.inputs:
            table = read_candidates(path, part)
            counts.rows_in += table.num_rows
            keys = column_keys(table, by, path)
            if context.blocked is not None:
                uid_keys = keys if by == DeduplicateBy.pair else column_keys(table, DeduplicateBy.pair, path)
                kinds = context.blocked.kind_of_each(uid_keys, table.column("url"))
                for index, kind in enumerate(_KNOWN_KINDS):
                    _drop(counts, DropReason[f"blocked_{kind.value}"], int((kinds == index).sum()))
                table, keys = table.filter(kinds < 0), keys[kinds < 0]
            tables.append(with_keys(table, keys, by))
        whole = joined(tables)
        rows = _without_duplicates(whole, counts)
        write_run(whole, rows, temporary / f"{shard.name}.arrow", context.num_ranges)
        counts.rows_out = len(rows)
        return counts


@dataclass
class EarlierStage(Stage):
    """Sorts the keys of earlier runs' output."""

    name: str
    folder: Path
    settings: dict[str, Any]
    earlier: tuple[Path, ...]  # the deduplicate folders of earlier runs

    def shards(self) -> Iterator[Shard]:
        """Groups of their download shards, in order."""
        for index, group in groupby(self._numbered(), key=lambda entry: entry[0]):
            yield Shard(f"{index:05d}", tuple(path for _, path in group))

    def _numbered(self) -> Iterator[tuple[int, str]]:
        at_once, rows_before = self.settings["rows_per_run"] * _KEYS_PER_RUN, 0
        for folder in self.earlier:
            for name, rows in finished_rows(folder):
                yield rows_before // at_once, str(folder / f"{name}.parquet")
                rows_before += rows

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Writes a key file."""
        by = DeduplicateBy(self.settings["by"])
        writer = KeyListWriter(temporary / f"{shard.name}.npy")
        for path in shard.inputs:
            writer.add(file_keys(path, by))
        return Counts(extra=Counter(earlier_keys=writer.close()))


@dataclass
class RangesStage(Stage):
    """Deduplicates one part of the key space at a time, over all runs, against all earlier keys."""

    shares_inputs = True  # every range reads a piece of every run

    name: str
    folder: Path
    settings: dict[str, Any]
    candidates: Path  # the extract stage's folder, which says how many ranges there are
    runs: Path  # where RunsStage wrote
    earlier: Path | None = None  # where EarlierStage wrote

    def shards(self) -> Iterator[Shard]:
        """Equal parts of the key space, each made from all runs and all earlier keys."""
        inputs = [str(self.runs / f"{name}.arrow") for name in finished_shards(self.runs)]
        num_ranges = _num_ranges(self.candidates, self.settings) if inputs else 0
        if self.earlier is not None:
            inputs += [str(self.earlier / f"{name}.npy") for name in finished_shards(self.earlier)]
        of_each = tuple(inputs)
        for index in range(num_ranges):
            yield Shard(f"{index:05d}-{num_ranges:05d}", of_each)

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Makes the download shards of one range: `NAME.PPP.parquet`, piece P."""
        index, num_ranges = map(int, shard.name.split("-"))
        table = read_range([path for path in shard.inputs if path.endswith(".arrow")], index, num_ranges)
        counts = Counts(rows_in=table.num_rows)
        rows = _without_duplicates(table, counts)
        high, low = _keys(table)
        new = np.ones(len(rows), bool)
        kept = np.stack([high[rows], low[rows]])
        for path in shard.inputs:
            if path.endswith(".npy"):
                keys = open_keys(path)
                earlier = keys[:, range_of(keys[0], index, num_ranges)]
                places = find(kept, earlier[0], earlier[1])
                new[places[places >= 0]] = False
        rows = rows[new]
        _drop(counts, DropReason.in_earlier_crawl, int((~new).sum()))
        counts.rows_out = len(rows)
        num_pieces = -(-len(rows) // self.settings["rows_per_shard"])
        if num_pieces > _MAX_PIECES:
            raise DataError(
                f"range {shard.name} has {len(rows)} candidates, more than {_MAX_PIECES} download shards of "
                f"{self.settings['rows_per_shard']} hold; set deduplicate.rows_per_shard higher"
            )
        paths = [temporary / _piece_name(shard.name, piece) for piece in range(num_pieces)]
        write_shards(table, rows, paths, DeduplicateBy(self.settings["by"]))
        counts.extra["download_shards"] = num_pieces
        return counts


@dataclass
class ShardsStage(Stage):
    """Names the download shards: `NNNNNPPP.parquet`, range N, piece P, rows in the order of their keys."""

    name: str
    folder: Path
    settings: dict[str, Any]
    ranges: Path  # where RangesStage wrote

    def shards(self) -> Iterator[Shard]:
        """The download shards of all ranges."""
        for name in stream_finished(self.ranges):
            for piece in range(read_stats(self.ranges, name)["counts"]["extra"]["download_shards"]):
                yield Shard(f"{name[:5]}{piece:03d}", (str(self.ranges / _piece_name(name, piece)),))

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Gives one download shard its name; where the file system has no hard links, by a copy."""
        (source,), target = shard.inputs, temporary / f"{shard.name}.parquet"
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
        rows = pq.read_metadata(target).num_rows
        return Counts(rows, rows)


def _groups(candidates: Path, at_once: int) -> Iterator[tuple[str, list[str]]]:
    """(part of a file that is too large, files) of each run."""
    group: list[str] = []
    space = at_once
    for name, rows in finished_rows(candidates):
        path = str(candidates / f"{name}.parquet")
        if group and rows > space:
            yield "", group
            group, space = [], at_once
        if rows > at_once:
            for start in range(0, rows, at_once):
                yield f"-{start}-{min(start + at_once, rows)}", [path]
        elif rows:
            group.append(path)
            space -= rows
    if group:
        yield "", group


def _num_ranges(candidates: Path, settings: dict[str, Any]) -> int:
    """How many parts the key space is split into: each has about as many of the candidates as a run."""
    rows_per_range = min(settings["rows_per_run"], settings["rows_per_shard"] * _MAX_PIECES // 2)
    return min(max(1, -(-sum(rows for _, rows in finished_rows(candidates)) // rows_per_range)), 99_999)


def _keys(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Both halves of the keys of a table of runs."""
    return table.column("high").to_numpy(), table.column("low").to_numpy()


def _without_duplicates(table: pa.Table, counts: Counts) -> np.ndarray:
    """Indices of the rows that stay, one for each key, in the order of the keys; the others are counted."""
    rows = first_of_each(table, *_keys(table))
    _drop(counts, DropReason.duplicate, table.num_rows - len(rows))
    return rows


def _piece_name(range_name: str, piece: int) -> str:
    return f"{range_name}.{piece:03d}.parquet"


def _drop(counts: Counts, reason: DropReason, rows: int) -> None:
    if rows:
        counts.dropped[reason.value] += rows

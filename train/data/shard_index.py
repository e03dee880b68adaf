"""Where every sample of a data set lies: one table over the indexes of its shards.

Training draws samples by number, in any order. The table holds counts for each shard, 88 bytes, and finds from them
the shard and the row; the row is read from the shard's index (see `index_file`), of which a few are open at a time.
So 230,000 shards of 10,000 samples need neither 230,000 open files nor memory for their rows.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from crawl2clip.distributed import World
from crawl2clip.errors import DataError
from crawl2clip.logs import progress
from crawl2clip.shards import ShardFault
from train.data.index_file import (
    IMAGE_EXTENSIONS,
    SUMMARY,
    IndexRows,
    SampleRow,
    kinds_with,
    open_index,
    place_of,
    reopen_rows,
    usable_kinds,
)
from train.data.open_files import Recent, machine_fault
from train.data.remote import list_all_shards
from train.data.shard_cache import ShardCache

logger = logging.getLogger(__name__)


@dataclass
class SampleTable:
    """All usable samples of a data set, numbered 0 to `len(table) - 1` in shard order."""

    shards: list[str]
    summaries: np.ndarray  # index_file.SUMMARY, [shards]
    caption_members: tuple[str, ...]  # of "txt" and "json": a sample needs one of these
    faults: list[ShardFault] = field(default_factory=list)
    unkept: dict[int, bytes] = field(default_factory=dict)  # shard -> its index, where no disk has it
    cache: ShardCache | None = None

    def __post_init__(self) -> None:
        self._kinds = usable_kinds(self.caption_members)
        self._ends = np.cumsum(self.shard_sizes)
        self._opened = Recent(self._open)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, number: int) -> tuple[int, SampleRow]:
        """Shard number and index row of a sample.

        Raises:
            DataError: the index of the shard cannot be read any more.
        """
        shard = int(self._ends.searchsorted(number, side="right"))
        place = number - self._start(shard)
        rows, usable = self._opened(shard)
        return shard, rows.row(place if usable is None else int(usable[place]))

    def shards_of(self, numbers: np.ndarray) -> list[int]:
        """The shards in which samples lie, each once, ascending."""
        return np.unique(np.searchsorted(self._ends, numbers, side="right")).tolist()

    @property
    def counts(self) -> np.ndarray:
        """Samples of each kind in each shard, usable or not, int64 [shards, NUM_KINDS]."""
        return self.summaries["counts"]

    @property
    def shard_sizes(self) -> np.ndarray:
        """Usable samples of each shard, int64 [shards]."""
        return self.counts[:, self._kinds].sum(axis=1)

    @property
    def num_unreadable_shards(self) -> int:
        """Shards that gave no sample, usable or not, because they could not be read."""
        return int((self.counts.sum(axis=1) == 0).sum())

    @property
    def unusable(self) -> Counter[str]:
        """Reason -> samples or shards left out, without zeros."""
        samples, with_image = self.counts.sum(axis=0), kinds_with("image")
        reasons = Counter(fault.reason for fault in self.faults)
        reasons["missing_image"] += int(samples[~with_image].sum())
        reasons["missing_caption"] += int(samples[with_image & ~self._kinds].sum())
        return +reasons

    def rows_of(self, shard: int) -> IndexRows:
        """The index rows of a shard, by its number. Raises as `locate`."""
        if shard in self.unkept:
            return IndexRows(self.unkept[shard], self.summaries[shard])
        return reopen_rows(self.shards[shard], self.cache, self.summaries[shard])

    def _open(self, shard: int) -> tuple[IndexRows, np.ndarray | None]:
        """The rows of a shard, and the numbers of the usable ones; None where all are."""
        rows, size = self.rows_of(shard), self._size(shard)
        if size == len(rows):
            return rows, None
        usable = rows.of_kinds(self._kinds)
        if len(usable) != size:
            raise DataError(f"the index of {self.shards[shard]} does not agree with itself; delete it")
        return rows, usable

    def _size(self, shard: int) -> int:
        return int(self._ends[shard]) - self._start(shard)

    def _start(self, shard: int) -> int:
        return int(self._ends[shard - 1]) if shard else 0


def build_table(
    spec: str,
    caption_members: tuple[str, ...],
    max_bad_fraction: float,
    world: World,
    cache: ShardCache | None = None,
) -> SampleTable:
    """The table of the shards that `spec` names; each rank reads its share of the headers.

    Args:
        spec: a folder, a tar file, a brace pattern, a glob, a URL, or several joined by "::" (see `list_all_shards`).
        caption_members: "txt", "json" or both; a sample needs one of them beside an image.
        max_bad_fraction: the largest fraction of samples, and of shards, that may be unusable.
        cache: of remote shards; None where there are none.

    Raises:
        DataError: no shard, no usable sample, or more unusable ones than allowed; every rank raises alike.
    """
    shards = list_all_shards(spec, cache.remote if cache else None)
    table = _gathered(shards, caption_members, world, cache)
    _see_to_indexes(table, world)
    _report(table, world)
    _check(table, spec, max_bad_fraction)
    return table


def join_tables(tables: Sequence[SampleTable]) -> SampleTable:
    """One table of several, samples numbered one table after the other."""
    if len(tables) == 1:
        return tables[0]
    starts = np.cumsum([0, *(len(table.shards) for table in tables[:-1])]).tolist()
    return SampleTable(
        [shard for table in tables for shard in table.shards],
        np.concatenate([table.summaries for table in tables]),
        tables[0].caption_members,
        [fault for table in tables for fault in table.faults],
        {at + n: held for at, table in zip(starts, tables, strict=True) for n, held in table.unkept.items()},
        tables[0].cache,
    )


def _gathered(
    shards: list[str], caption_members: tuple[str, ...], world: World, cache: ShardCache | None
) -> SampleTable:
    """The table; each rank opens the indexes of its share, and the others learn of them what the table holds."""
    summaries = np.zeros(len(shards), SUMMARY)
    faults: dict[int, list[ShardFault]] = {}
    unkept: dict[int, bytes] = {}
    own = range(world.rank, len(shards), world.world_size)
    failure: str | None = None
    try:
        for number in progress(own, desc="reading shard headers", unit="shard", disable=not world.is_main):
            index = open_index(shards[number], cache)
            summaries[number], faults[number] = index.summary, index.faults
            if isinstance(index.content, bytes) and len(index.rows):
                unkept[number] = index.content
    except DataError as error:
        failure = str(error)
    share = (summaries[own], {n: found for n, found in faults.items() if found}, unkept, failure)
    shares = world.all_gather_object(share)
    _raise_first([its_failure for *_, its_failure in shares])
    for rank, (its_summaries, its_faults, its_unkept, _) in enumerate(shares):
        summaries[rank :: world.world_size] = its_summaries
        faults |= its_faults
        unkept |= its_unkept
    in_order = [fault for number in sorted(faults) for fault in faults[number]]
    return SampleTable(shards, summaries, caption_members, in_order, unkept, cache)


def _see_to_indexes(table: SampleTable, world: World) -> None:
    """Has the indexes that other machines made on this one too, where they do not share a disk.

    One rank a machine looks, by listing folders: asking for each file would be slow on a file server.
    """
    failure: str | None = None
    if world.local_rank == 0 and world.world_size > 1:
        try:
            for number in _lacking(table):
                table.rows_of(number)
        except DataError as error:
            failure = str(error)
    _raise_first(world.all_gather_object(failure))


def _lacking(table: SampleTable) -> list[int]:
    """Shards with samples whose index is not on this machine."""
    places = [Path(place_of(shard, table.cache)) for shard in table.shards]
    there: dict[Path, set[str]] = {}
    for folder in {place.parent for place in places}:
        try:
            there[folder] = set(os.listdir(folder))
        except OSError as error:
            raise machine_fault(folder, error) from error
    wanted = set(np.flatnonzero(table.counts.any(axis=1)).tolist()) - table.unkept.keys()
    return [number for number in sorted(wanted) if places[number].name not in there[places[number].parent]]


def _raise_first(failures: Sequence[str | None]) -> None:
    """Raises on every rank, or the others would wait for the one that stopped."""
    for message in failures:
        if message:
            raise DataError(message)


def _report(table: SampleTable, world: World) -> None:
    if not world.is_main:
        return
    for fault in table.faults:
        logger.warning(
            "shard %s, sample %s: %s (%s)", fault.shard, fault.key or "-", fault.reason, fault.detail
        )
    if table.unusable:
        logger.warning("left out before training: %s; %d samples are usable", _listed(table), len(table))
    if table.unkept:
        logger.warning(
            "the indexes of %d shards cannot be kept beside them, and take %.1f MB of memory on each rank; a start"
            " that may write there, once, ends that",
            len(table.unkept),
            sum(map(len, table.unkept.values())) / 1e6,
        )


def _listed(table: SampleTable) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(table.unusable.items())) or "none"


def _check(table: SampleTable, spec: str, max_bad_fraction: float) -> None:
    listed = _listed(table)
    if len(table) == 0:
        raise DataError(
            f"data.shards={spec} has {len(table.shards)} shards and no usable sample (faults: {listed}); a sample is "
            f"an image ({', '.join(IMAGE_EXTENSIONS)}) and a .{' or .'.join(table.caption_members)} under one key"
        )
    unreadable = table.num_unreadable_shards
    if unreadable > max_bad_fraction * len(table.shards):
        raise DataError(
            f"{unreadable} of {len(table.shards)} shards of data.shards={spec} cannot be read (faults: {listed}), more "
            f"than data.max_bad_fraction={max_bad_fraction}; write them again, leave them out, or raise the limit"
        )
    total = int(table.counts.sum())
    if total - len(table) > max_bad_fraction * total:
        raise DataError(
            f"{total - len(table)} of {total} samples of data.shards={spec} are unusable ({listed}), more than "
            f"data.max_bad_fraction={max_bad_fraction}; repair the shards, or raise the limit"
        )

"""How often a sample comes: weights and repeated uids as copies of samples in the training shards.

A weight of 2 makes two copies, 0.5 keeps half of such samples, 1.3 makes one copy and of three in ten a second one.
Which ones is decided by a hash of uid and seed, so it is the same in every run. A uid that comes several times in the
list of uids, as DataComp's weighted subsets have them, counts that often.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from crawl2clip import storage
from crawl2clip.errors import DataError
from data_pipeline.stage import Counts, Shard, Stage
from data_pipeline.subset import chances, count_in_subset, open_uids, split_mix, uid_halves

WEIGHTS_NAME = "weights"
WEIGHT_DTYPE = np.dtype([("f0", "u8"), ("f1", "u8"), ("weight", "f8")])
MAX_WEIGHT = 1000.0
_ROWS_A_BATCH = 1_000_000


@dataclass(frozen=True)
class Copies:
    """What says how many copies there are of each sample."""

    uids: np.ndarray  # the list of uids, sorted; may have repeats
    weights: np.ndarray | None  # WEIGHT_DTYPE, sorted, each uid once; a uid that is not there has weight 1
    seed: int

    def of(self, halves: np.ndarray) -> np.ndarray:
        """[N] int64: the copies of each of [N, 2] uids; 0 for one that is not wanted."""
        wanted = count_in_subset(halves, self.uids).astype(np.float64)
        if self.weights is not None and len(self.weights):
            first = count_in_subset(halves, self.weights, only_smaller=True)
            near = np.minimum(first, len(self.weights) - 1)
            found = self.weights[near]
            listed = (found["f0"] == halves[:, 0]) & (found["f1"] == halves[:, 1])
            wanted *= np.where(listed, found["weight"], 1.0)
        whole = np.floor(wanted)
        return (whole + (chances(halves, self.seed, "copies") < wanted - whole)).astype(np.int64)


def open_copies(uids: Path, weights: Path | None, seed: int) -> Copies:
    """The list of uids and the weights, both mapped from disk."""
    if weights is not None:
        storage.fetch(weights)
    return Copies(
        open_uids(uids, repeats=True), None if weights is None else np.load(weights, mmap_mode="r"), seed
    )


def copy_keys(keys: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Where each copy comes in the global order: copy 0 at its sample's own key, the others anywhere.

    Args:
        keys: [N] uint64, of the samples.
        copies: [N], the number of each copy, from 0.
    """
    copies = copies.astype(np.uint64)
    return np.where(copies == 0, keys, split_mix(keys ^ split_mix(copies)))


def numbered(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, number of the copy) of every copy of every row."""
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)


@dataclass
class WeightsStage(Stage):
    """Sorts the weights by uid, so that they are looked up where they lie on disk."""

    name: str
    folder: Path
    settings: dict[str, Any]
    source: str
    max_workers: int | None = 1

    def shards(self) -> list[Shard]:
        """One."""
        return [Shard(WEIGHTS_NAME, (self.source,))]

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Writes the sorted weights.

        Raises:
            DataError: a row is not a uid with a weight, or a uid comes twice.
        """
        parts = []
        with pq.ParquetFile(self.source) as file:
            for batch in file.iter_batches(_ROWS_A_BATCH, columns=["uid", "weight"]):
                frame = pl.DataFrame(pl.from_arrow(batch))
                weights = frame["weight"].cast(pl.Float64).to_numpy()
                bad = ~((weights >= 0) & (weights <= MAX_WEIGHT))  # NaN and null too
                if bad.any():
                    raise DataError(
                        f"{self.source}: the weight of {frame['uid'][int(np.flatnonzero(bad)[0])]} is "
                        f"{weights[bad][0]}; give 0 to {MAX_WEIGHT:g}"
                    )
                part = np.empty(len(frame), WEIGHT_DTYPE)
                halves = uid_halves(frame["uid"])
                part["f0"], part["f1"], part["weight"] = halves[:, 0], halves[:, 1], weights
                parts.append(part)
        table = np.concatenate([np.empty(0, WEIGHT_DTYPE), *parts])
        table = table[np.lexsort((table["f1"], table["f0"]))]
        same = (table["f0"][1:] == table["f0"][:-1]) & (table["f1"][1:] == table["f1"][:-1])
        if same.any():
            row = table[int(np.flatnonzero(same)[0])]
            raise DataError(
                f"{self.source} has the uid {int(row['f0']):016x}{int(row['f1']):016x} twice; give each uid one weight"
            )
        np.save(temporary / f"{shard.name}.npy", table)
        return Counts(rows_in=len(table), rows_out=len(table))

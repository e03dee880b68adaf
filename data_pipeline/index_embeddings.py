"""The embeddings that the tag stage wrote, read by uid: mapped from disk, never loaded whole.

A shard's embeddings lie beside its table of uids, in the same order; this file is the only place that relies on that,
and it checks that both have the same number of rows. Everything else asks for the uid's embedding.
"""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import numpy as np
import polars as pl

from crawl2clip.errors import DataError
from data_pipeline.tables import read_table

MODALITIES = ("image", "text")
"""What is embedded: the image, and, where the clip tagger wrote it, the caption."""

_OPEN_FILES = 1024  # mapped shards at a time; each costs a file descriptor


def embeddings_path(folder: Path, shard: str, modality: str) -> Path:
    """Where the clip tagger writes a shard's embeddings of the first model."""
    return folder / (f"{shard}.npy" if modality == "image" else f"{shard}.text.npy")


def map_embeddings(path: Path) -> np.ndarray:
    """[rows, D] float16, mapped from disk.

    Raises:
        DataError: the file is missing, cut off, or something else.
    """
    try:
        values = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as embeddings ({str(error).splitlines()[0]}); delete the stats.json beside it and "
            "run stage=tag again"
        ) from error
    if values.ndim != 2 or values.dtype != np.float16 or values.shape[1] == 0:
        raise DataError(
            f"{path} holds {values.ndim}-dimensional {values.dtype}, not float16 [rows, D]; delete the stats.json "
            "beside it and run stage=tag again"
        )
    return values


def read_shard(folder: Path, shard: str, modality: str) -> tuple[pl.Series, np.ndarray]:
    """The uids of a shard, and their embeddings [rows, D] float16, row for row; a row of NaN has no embedding.

    Raises:
        DataError: a file is damaged, or they do not have the same number of rows.
    """
    uids = read_table(folder / f"{shard}.parquet", ["uid"])["uid"]
    path = embeddings_path(folder, shard, modality)
    values = map_embeddings(path)
    if len(values) != len(uids):
        raise DataError(
            f"{path} has {len(values)} embeddings for the {len(uids)} uids of {shard}.parquet beside it; delete "
            f"{shard}.stats.json there and run stage=tag again"
        )
    return uids, values


def usable(values: np.ndarray) -> np.ndarray:
    """[rows] bool: which embeddings are there: finite, and not all zero."""
    norms = np.einsum("nd,nd->n", values, values, dtype=np.float32)
    return np.isfinite(norms) & (norms > 0)


def unit(values: np.ndarray) -> np.ndarray:
    """Float32 rows of length one; float16 rounding is taken out."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)


class EmbeddingFiles:
    """Reads single embeddings out of many shards; thread-safe."""

    def __init__(self, folder: Path, modality: str) -> None:
        self._folder, self._modality = folder, modality
        self._open: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def read(self, shards: list[str], rows: np.ndarray) -> np.ndarray:
        """Unit embeddings [N, D] float32.

        Args:
            shards: N names of shards.
            rows: [N], the row of each in its shard's file.
        """
        names = np.array(shards)
        found: np.ndarray | None = None
        for name, places in _groups(names):
            values = unit(self._map(name)[rows[places]])
            if found is None:
                found = np.empty((len(names), values.shape[1]), np.float32)
            found[places] = values
        assert found is not None, "no rows were asked for"
        return found

    def _map(self, shard: str) -> np.ndarray:
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
            values = map_embeddings(embeddings_path(self._folder, shard, self._modality))
            self._open[shard] = values
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
            return values


def _groups(names: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(name, the places that have it), each name once."""
    order = np.argsort(names, kind="stable")
    starts = np.flatnonzero(np.r_[True, names[order][1:] != names[order][:-1]])
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        yield str(names[order[start]]), order[start:end]

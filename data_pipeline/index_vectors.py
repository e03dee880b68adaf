"""The embeddings of a part of the index, in the order of its inverted lists: what a query's candidates are ranked by.

A query's candidates are in a few lists, and so they are close together here: some runs of each part's file. In the tag
stage's files, which have the order of the shards, they are in nearly every shard, and to open a thousand of those and
touch a page of each for a row of a kilobyte took most of a query's time (benchmarks/reports, the explorer).

`NAME.<modality>.vectors.npy` holds them as the tagger wrote them, float16 [V, D], those that are there;
`NAME.<modality>.places.npy` says where each row of the part is among them, uint32 [rows]. They are written together
with the part's rows and never changed, so a row's embedding is its own, whatever has become of the shard since.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crawl2clip.errors import DataError
from data_pipeline.index_embeddings import unit
from data_pipeline.index_faiss import load_faiss

_NONE = np.iinfo(np.uint32).max  # the place of a row without an embedding


class PartVectors:
    """A part's embeddings of one modality, mapped; thread-safe.

    Args:
        folder: of the parts.
        name: of the part.
        modality: image or text.
        rows: how many rows the part has.

    Raises:
        DataError: a file is missing or damaged, or is another part's.
    """

    def __init__(self, folder: Path, name: str, modality: str, rows: int) -> None:
        stem = folder / f"{name}.{modality}"
        self._vectors, self._places = _map(Path(f"{stem}.vectors.npy")), _map(Path(f"{stem}.places.npy"))
        kinds = (self._vectors.dtype, self._vectors.ndim), (self._places.dtype, self._places.shape)
        if kinds != ((np.float16, 2), (np.uint32, (rows,))):
            raise DataError(
                f"{stem}.vectors.npy is {self._vectors.dtype} {list(self._vectors.shape)} and {stem}.places.npy "
                f"{self._places.dtype} {list(self._places.shape)}, not the embeddings of {rows} rows; delete the "
                "folder index/ and run stage=index again"
            )

    def __len__(self) -> int:
        return len(self._vectors)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Unit embeddings [N, D] float32 of some rows of the part; NaN where there is none."""
        places = self._places[rows]
        order = np.argsort(places)
        order = order[: np.searchsorted(places, len(self), sorter=order)]
        taken = np.full((len(rows), self._vectors.shape[1]), np.nan, np.float32)
        # Every place is there by now; to look again would cost as much as the rows themselves.
        taken[order] = unit(self._vectors.take(places[order], axis=0, mode="clip"))
        return taken

    def block(self, start: int, stop: int) -> np.ndarray:
        """Unit embeddings [stop - start, D] float32, in the file's order."""
        return unit(self._vectors[start:stop])

    def rows(self) -> np.ndarray:
        """[V] int64: the row of each embedding, in the file's order."""
        there = np.flatnonzero(self._places != _NONE)
        found = np.empty(len(self), np.int64)
        found[self._places[there]] = there
        return found


def write_vectors(
    stem: Path, order: np.ndarray, rows: int, dim: int, pieces: Iterable[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Writes `<stem>.vectors.npy` and `<stem>.places.npy`.

    Args:
        stem: folder, name and modality of the part.
        order: [V], the rows that have an embedding, as the index has them.
        rows: how many the part has.
        dim: D.
        pieces: rows [N] and their embeddings [N, D] float16, some at a time; each row of `order` once.
    """
    places = np.full(rows, _NONE, np.uint32)
    places[order] = np.arange(len(order), dtype=np.uint32)
    vectors = np.lib.format.open_memmap(f"{stem}.vectors.npy", "w+", np.dtype(np.float16), (len(order), dim))
    for some, values in pieces:
        vectors[places[some]] = values
    vectors.flush()
    np.save(f"{stem}.places.npy", places)


def listed_rows(index: Any) -> np.ndarray:
    """The row numbers of an index's vectors, int64, list by list; of an exact index as they were added."""
    faiss = load_faiss()
    if not hasattr(index, "invlists"):
        return faiss.vector_to_array(index.id_map)
    lists = index.invlists
    sizes = [(number, lists.list_size(number)) for number in range(index.nlist)]
    found = [faiss.rev_swig_ptr(lists.get_ids(number), size).copy() for number, size in sizes if size]
    return np.concatenate([np.empty(0, np.int64), *found])


def _map(path: Path) -> np.ndarray:
    """An array, mapped without keeping a file descriptor, as numpy's mappings do: there may be thousands of parts."""
    try:
        with pa.memory_map(str(path)) as file:
            np.lib.format.read_magic(file)
            shape, _, kind = np.lib.format.read_array_header_1_0(file)
            return np.frombuffer(file.read_buffer(), kind, int(np.prod(shape))).reshape(shape)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); delete the folder index/ and run stage=index again"
        ) from error

"""Single embeddings out of what the tag stage wrote, read by uid: mapped from disk, never loaded whole.

A row of the index says where its embedding lies, and the uid that lies there is compared each time: after a takedown
has rewritten a shard, a pair has no embedding rather than another pair's. Captions may have been read by several text
towers that match the same images; the first that has an embedding counts.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from crawl2clip.errors import DataError
from data_pipeline.embeddings import image_name, read_embeddings, text_name, uids_name

MODALITIES = ("image", "text")
"""What is embedded: the image, and the caption."""

_OPEN_SHARDS = 512  # mapped at a time; each costs two or three file descriptors


@dataclass(frozen=True)
class EmbeddingSource:
    """The embeddings of one modality: which of the files in the clip tagger's folder."""

    clip: Path
    modality: str
    names: tuple[str, ...]  # of the image tower, or of the models whose text towers read the captions

    def paths(self, shard: str) -> list[Path]:
        """A shard's files, the first choice first."""
        name = image_name if self.modality == "image" else text_name
        return [self.clip / name(shard, each) for each in self.names]

    def exists(self, shard: str) -> bool:
        """Whether the tagger wrote them."""
        return all(path.exists() for path in self.paths(shard))

    def read_shard(self, shard: str) -> tuple[list[str], np.ndarray]:
        """A shard's uids, and their embeddings [rows, D] float16; a row of NaN has none.

        Raises:
            DataError: a file is missing or damaged, or they do not fit together.
        """
        opened = [read_embeddings(self.clip / uids_name(shard), path) for path in self.paths(shard)]
        uids, values = opened[0]
        if values.dtype != np.float16:
            raise DataError(
                f"{self.paths(shard)[0]} holds {values.dtype}, not float16 embeddings; delete {shard}.stats.json "
                "beside it and run stage=tag again"
            )
        for _, more in opened[1:]:
            values = _filled(np.asarray(values), more)
        return uids, values


def _filled(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The rows of `values`, those that are NaN from `others`."""
    lacking = ~np.isfinite(values[:, 0])
    values = values.copy()
    values[lacking] = others[lacking]
    return values


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

    def __init__(self, source: EmbeddingSource) -> None:
        self._source = source
        self._open: OrderedDict[str, tuple[np.ndarray, list[np.ndarray]]] = OrderedDict()
        self._lock = Lock()

    def read(
        self, shards: Sequence[str], which: np.ndarray, rows: np.ndarray, uid_highs: np.ndarray, dim: int
    ) -> np.ndarray:
        """Unit embeddings [N, D] float32; NaN where there is none, or another pair's.

        Args:
            shards: names of shards.
            which: [N], the place of each embedding's shard among them.
            rows: [N], the row of each in its shard's files.
            uid_highs: [N] uint64, the high half of each uid.
            dim: D.
        """
        found = np.full((len(rows), dim), np.nan, np.float32)
        for number, name in enumerate(shards):
            uids, files = self._map(name)
            places = np.flatnonzero(which == number)
            wanted = rows[places]
            there = wanted < len(uids)
            there[there] = uids["f0"][wanted[there]] == uid_highs[places][there]
            places, wanted = places[there], wanted[there]
            values = files[0][wanted]
            for more in files[1:]:
                values = _filled(values, more[wanted])
            found[places] = unit(values)
        return found

    def _map(self, shard: str) -> tuple[np.ndarray, list[np.ndarray]]:
        """A shard's uids and files of embeddings, mapped."""
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        paths = [self._source.clip / uids_name(shard), *self._source.paths(shard)]
        try:
            # Plain arrays over the mapping: numpy's memmap class costs more than reading some rows.
            uids, *files = (np.asarray(np.load(path, mmap_mode="r")) for path in paths)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"the embeddings of shard {shard} in {self._source.clip} cannot be read "
                f"({str(error).splitlines()[0]}); put them back, or run stage=tag and stage=index again"
            ) from error
        with self._lock:
            self._open[shard] = uids, files
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return uids, files

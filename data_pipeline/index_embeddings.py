"""The embeddings that the tag stage wrote, a shard at a time, for the index.

Captions may have been read by several text towers that match the same images; the first that has an embedding counts.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crawl2clip.errors import DataError
from data_pipeline.embeddings import image_name, read_embeddings, text_name, uids_name

MODALITIES = ("image", "text")
"""What is embedded: the image, and the caption."""


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
    """[..., D] float32, a copy, of length one; float16 rounding is taken out."""
    made = np.array(values, np.float32, order="C")
    made /= np.maximum(np.sqrt(np.einsum("...d,...d->...", made, made)), 1e-12)[..., None]
    return made

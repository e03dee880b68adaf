"""The embeddings that the clip tagger writes beside its table, and how other taggers find them.

For raw shard NAME, in `tags/clip/`: `NAME.uids.npy` (DataComp's pairs of unsigned 64-bit numbers, one for each stored
pair, not sorted), `NAME.image.<tower>.npy` and `NAME.text.<model>.npy` (float16 [rows, D], L2-normalised; a row of NaN
where there is none). Row i of them is the pair of row i of the uids: the files of one shard are written together, and
nothing else may be joined with them by position. Models that share an image tower share its file, which has the name of
the first of them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from crawl2clip.errors import DataError
from crawl2clip.schema import UID_DTYPE
from data_pipeline.clip_models import ClipModelConfig, embed_dim_of, tower_names
from data_pipeline.deduplicate_keys import hex_of_keys
from data_pipeline.stage import Shard, stream_finished
from data_pipeline.subset import uid_halves


def uids_name(shard: str) -> str:
    """File of the uids."""
    return f"{shard}.uids.npy"


def image_name(shard: str, tower: str) -> str:
    """File of an image tower's embeddings."""
    return f"{shard}.image.{tower}.npy"


def text_name(shard: str, model: str) -> str:
    """File of a model's text embeddings."""
    return f"{shard}.text.{model}.npy"


def write_uids(path: Path, uids: Sequence[str]) -> None:
    """Writes the uids of a shard's embeddings, in their order."""
    import polars as pl

    halves = np.ascontiguousarray(uid_halves(pl.Series(list(uids), dtype=pl.String)))
    np.save(path, halves.reshape(-1, 2).view(UID_DTYPE).reshape(-1))


class ImageEmbeddings:
    """The image embeddings of one model, shard by shard.

    Args:
        clip: the clip tagger's folder.
        models: all models of that tagger, image towers filled in.
        model: the name of one; None for the first.

    Attributes:
        model: its name.
        tower: the name of its image tower, which is in the files' names.
        width: of its embeddings.
    """

    def __init__(self, clip: Path, models: Sequence[ClipModelConfig], model: str | None) -> None:
        self.clip = clip
        self.model = model or models[0].name
        self.tower = tower_names(models)[self.model]
        self.width = embed_dim_of(next(entry for entry in models if entry.name == self.model))

    def files(self, shard: str) -> tuple[str, str]:
        """A shard's uids and embeddings."""
        return str(self.clip / uids_name(shard)), str(self.clip / image_name(shard, self.tower))

    def shards(self) -> Iterator[Shard]:
        """One for each complete shard of the clip tagger: the uids and the embeddings."""
        for name in stream_finished(self.clip):
            yield Shard(name, self.files(name))


def read_embeddings(uids: str | Path, embeddings: str | Path) -> tuple[list[str], np.ndarray]:
    """A shard's uids as hex, and its embeddings, float16 [rows, D], mapped from disk.

    Raises:
        DataError: a file is missing, damaged, or they have different numbers of rows.
    """
    names, values = read_uids(uids), _load(embeddings)
    if values.ndim != 2 or len(names) != len(values):
        raise DataError(
            f"{uids} has {len(names)} uids and {embeddings} is {values.dtype} {list(values.shape)}, not the embeddings "
            "of one shard; delete the stats.json beside them and run stage=tag again"
        )
    return names, values


def read_uids(path: str | Path) -> list[str]:
    """A shard's uids as hex, in the order of its embeddings.

    Raises:
        DataError: the file is missing or damaged.
    """
    halves = _load(path)
    if halves.dtype != UID_DTYPE or halves.ndim != 1:
        raise DataError(
            f"{path} holds {halves.dtype} {list(halves.shape)}, not uids; delete the stats.json beside it and run "
            "stage=tag again"
        )
    # Copies: the file's pairs are packed, and the halves are wanted apart.
    return hex_of_keys(halves["f0"].copy(), halves["f1"].copy()).to_pylist()


def _load(path: str | Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); delete the stats.json beside it and run stage=tag again, in an "
            "output_dir whose clip tags were made by this version"
        ) from error

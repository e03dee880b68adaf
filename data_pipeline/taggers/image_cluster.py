"""The image_cluster tagger: the nearest of given centroids, as DataComp's image-based filter asks.

Nearest is the largest inner product with the centroid as it is, not normalised, as in DataComp's code. Its centroids
(100,000, of k-means over ViT-L-14 embeddings) and ImageNet's embeddings are published with CommonPool; the files are
named by the user.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import sha256_of
from data_pipeline.embeddings import ImageEmbeddings, read_embeddings
from data_pipeline.stage import Counts, Shard, Stage
from data_pipeline.taggers.heads import check_clip_model
from data_pipeline.worker_device import device_of_worker, max_model_workers

if TYPE_CHECKING:
    import torch

    from data_pipeline.config import PipelineConfig
    from data_pipeline.tag import TagConfig

_ROWS = 1024  # images compared with all centroids at a time: 400 MB for 100,000

IMAGE_CLUSTER_COLUMNS: dict[str, Any] = {
    "image_cluster": pl.Int32,  # number of the centroid with the largest inner product
    "imagenet_cluster": pl.Boolean,  # an ImageNet training image falls into it too
    "image_cluster_error": pl.String,  # one of heads.HEAD_ERRORS; else null
}
"""The columns that the tagger adds, with their Polars types."""


@dataclass(kw_only=True, slots=True)
class ImageClusterConfig:
    """The centroids and ImageNet."""

    clip_model: str | None = (
        None  # name in tagger.models whose image embeddings are compared; null: the first
    )
    centroids: str | None = None  # .npy, float [K, D]; DataComp's are 100,000 of ViT-L/14
    imagenet: str | None = (
        None  # .npy: embeddings float [N, D] of ImageNet's training images, or cluster ids int [M]
    )


class Clusters(NamedTuple):
    """What a worker holds.

    Attributes:
        centroids: float32 [K, D], on the device.
        of_imagenet: [K] bool: an ImageNet training image falls into it.
    """

    centroids: "torch.Tensor"
    of_imagenet: np.ndarray


@dataclass
class ImageClusterStage(Stage):
    """Finds the nearest centroid of each image of raw shards."""

    name: str
    folder: Path
    settings: dict[str, Any]
    source: ImageEmbeddings
    centroids: str
    imagenet: str
    device: str
    max_workers: int | None = None

    def shards(self) -> Iterator[Shard]:
        """One for each shard of the clip tagger."""
        return self.source.shards()

    def setup(self) -> Clusters:
        """Loads the centroids, and finds those of ImageNet."""
        import torch

        device = device_of_worker(self.device)
        centroids = torch.from_numpy(np.array(_array(self.centroids), np.float32)).to(device)
        found = _array(self.imagenet)
        ids = nearest(found, centroids) if found.ndim == 2 else found
        of_imagenet = np.zeros(len(centroids), bool)
        of_imagenet[ids[ids >= 0]] = True
        return Clusters(centroids, of_imagenet)

    def run(self, context: Clusters, shard: Shard, temporary: Path) -> Counts:
        """Tags one raw shard."""
        uids, embeddings = read_embeddings(*shard.inputs)
        ids = nearest(embeddings, context.centroids)
        absent = pl.Series(ids < 0)
        table = pl.DataFrame({"uid": pl.Series(uids, dtype=pl.String)}).with_columns(
            image_cluster=pl.Series(ids.astype(np.int32)).set(absent, None),
            imagenet_cluster=pl.Series(context.of_imagenet[np.maximum(ids, 0)]).set(absent, None),
            image_cluster_error=pl.Series(
                ["no_embedding" if without else None for without in absent], dtype=pl.String
            ),
        )
        table.write_parquet(temporary / f"{shard.name}.parquet")
        counts = Counts(rows_in=len(uids), rows_out=len(uids))
        if absent.any():
            counts.extra["image_cluster_no_embedding"] = int(absent.sum())
        return counts


def nearest(embeddings: np.ndarray, centroids: "torch.Tensor") -> np.ndarray:
    """int64 [N]: the centroid of float [K, D] with the largest inner product; -1 where an embedding is not finite."""
    import torch

    found = np.full(len(embeddings), -1, np.int64)
    for start in range(0, len(embeddings), _ROWS):
        part = np.asarray(embeddings[start : start + _ROWS], np.float32)
        finite = np.isfinite(part).all(axis=1)
        with torch.inference_mode():
            similarity = torch.from_numpy(part[finite]).to(centroids.device) @ centroids.T
            found[start : start + _ROWS][finite] = similarity.argmax(dim=1).cpu().numpy()
    return found


def _array(path: str) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a numpy array ({error}); give a .npy file") from error


def check_image_cluster(config: "TagConfig") -> None:
    """Checks that files are named, and the clip tagger comes before.

    Raises:
        ConfigError: not so.
    """
    asked = config.image_cluster
    if asked.centroids is None or asked.imagenet is None:
        raise ConfigError(
            "the image_cluster tagger needs tagger.image_cluster.centroids (.npy, float [K, D]) and "
            "tagger.image_cluster.imagenet (.npy, embeddings [N, D] or cluster ids [M]); DataComp's come with its pool"
        )
    check_clip_model(config, "image_cluster", asked.clip_model, "tagger.image_cluster.clip_model names it.")


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """The stage.

    Raises:
        DataError: a file is not what it should be.
    """
    asked, output = config.tagger, Path(config.output_dir)
    centroids, imagenet = str(asked.image_cluster.centroids), str(asked.image_cluster.imagenet)
    source = ImageEmbeddings(
        output / "tags" / "clip", asked.resolved_models(), asked.image_cluster.clip_model
    )
    found, target = _array(centroids), _array(imagenet)
    if found.ndim != 2 or found.shape[1] != source.width or found.dtype.kind != "f":
        raise DataError(
            f"tagger.image_cluster.centroids={centroids} is {found.dtype} {list(found.shape)}, and the embeddings of "
            f"clip model {source.model!r} have {source.width} numbers; give float [K, {source.width}]"
        )
    embeds = target.ndim == 2 and target.dtype.kind == "f" and target.shape[1] == source.width
    numbers = target.ndim == 1 and target.dtype.kind in "iu"
    if not embeds and not (numbers and (len(target) == 0 or 0 <= target.min() <= target.max() < len(found))):
        raise DataError(
            f"tagger.image_cluster.imagenet={imagenet} is {target.dtype} {list(target.shape)}; give embeddings, float "
            f"[N, {source.width}], or cluster numbers, int [M], 0 to {len(found) - 1}"
        )
    stage = ImageClusterStage(
        name="tag/image_cluster",
        folder=output / "tags" / "image_cluster",
        settings={
            "centroids": sha256_of(centroids),
            "imagenet": sha256_of(imagenet),
            "embeddings": source.tower,
        },
        source=source,
        centroids=centroids,
        imagenet=imagenet,
        device=asked.device,
        max_workers=max_model_workers(asked.device),
    )
    return [stage]

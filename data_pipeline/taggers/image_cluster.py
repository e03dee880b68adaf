"""The image_cluster tagger: the nearest of given centroids, as DataComp's image-based filter asks."""

from dataclasses import dataclass
from typing import Any

import polars as pl

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

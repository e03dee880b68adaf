"""The steps of the duplicates tagger for images whose embeddings are close, after SemDeDup (Abbas et al. 2023, arXiv
2303.09540): k-means, then cosines within each cluster only.

What may surprise: two close images on either side of a border between clusters do not meet; that is the price of not
comparing all with all (benchmarks/reports has the recall on a set with known duplicates).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from crawl2clip.errors import ConfigError
from data_pipeline.completion import finished_rows
from data_pipeline.embeddings import ImageEmbeddings, read_embeddings
from data_pipeline.stage import Counts, Shard, Stage, stream_finished
from data_pipeline.taggers.duplicate_steps import groups_of, num_ranges, num_rows, write_lookup
from data_pipeline.taggers.image_cluster import nearest
from data_pipeline.taggers.ranged_files import read_part, write_parts

_PER_CLUSTER = 64  # embeddings a cluster that k-means is trained on
_MAX_CLUSTERS = 65_536  # with 64 embeddings each of 768 numbers: 13 GB
_ITERATIONS = 10
_CLUSTERS = "centroids"  # the one shard of its step
_BLOCK = 1024  # images of a cluster compared with all before them at a time


def require_faiss() -> None:
    """Checks that faiss is installed.

    Raises:
        ConfigError: it is not.
    """
    import importlib.util

    if importlib.util.find_spec("faiss") is None:
        raise ConfigError(
            "semantic duplicates need the package faiss-cpu, which is not installed; pip install -e '.[semantic]', or "
            "set tagger.duplicates.clip_model=null"
        )


@dataclass
class CentroidsStage(Stage):
    """Trains k-means on some of the embeddings."""

    name: str
    folder: Path
    settings: dict[str, Any]
    source: ImageEmbeddings
    max_workers: int | None = 1

    def shards(self) -> list[Shard]:
        """One, from all embeddings."""
        return [Shard(_CLUSTERS, tuple(path for shard in self.source.shards() for path in shard.inputs))]

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Writes the centroids, float32 [K, D], L2-normalised."""
        total = num_rows(self.source.clip)
        wanted = min(num_ranges(total, self.settings["rows_per_cluster"]), _MAX_CLUSTERS)
        fraction = min(1.0, wanted * _PER_CLUSTER / max(total, 1))
        rng = np.random.default_rng(0)
        parts = []
        for name in stream_finished(self.source.clip):
            _, embeddings = read_embeddings(*self.source.files(name))
            chosen = np.flatnonzero(rng.random(len(embeddings)) < fraction)
            part = np.asarray(embeddings[chosen], np.float32)
            parts.append(part[np.isfinite(part).all(axis=1)])
        sample = np.concatenate(parts)
        np.save(temporary / f"{shard.name}.npy", _kmeans(sample, min(wanted, max(len(sample), 1))))
        return Counts(rows_in=total, rows_out=total)


def _kmeans(sample: np.ndarray, clusters: int) -> np.ndarray:
    if clusters <= 1:
        return np.zeros((1, sample.shape[1]), np.float32)
    import faiss

    kmeans = faiss.Kmeans(
        sample.shape[1], clusters, niter=_ITERATIONS, spherical=True, seed=1, min_points_per_centroid=1,
        max_points_per_centroid=max(_PER_CLUSTER * 2, 1),
    )  # fmt: skip
    kmeans.train(sample)
    assert kmeans.centroids is not None
    return kmeans.centroids


@dataclass
class AssignStage(Stage):
    """Puts the embeddings of some shards at a time into parts, by cluster."""

    name: str
    folder: Path
    settings: dict[str, Any]
    source: ImageEmbeddings
    centroids: Path

    def shards(self) -> Iterator[Shard]:
        """Groups of the clip tagger's shards."""
        groups = groups_of(finished_rows(self.source.clip), self.settings["rows_per_range"])
        for number, names in enumerate(groups):
            embedded = (path for name in names for path in self.source.files(name))
            yield Shard(f"{number:05d}", (str(self.centroids / f"{_CLUSTERS}.npy"), *embedded))

    def setup(self) -> Any:
        """The centroids."""
        import torch

        return torch.from_numpy(np.load(self.centroids / f"{_CLUSTERS}.npy"))

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Writes `NAME.clusters.arrow`."""
        import polars as pl

        from data_pipeline.subset import uid_halves

        parts = num_ranges(num_rows(self.source.clip), self.settings["rows_per_range"])
        columns: dict[str, list[np.ndarray]] = {"high": [], "low": [], "cluster": [], "embedding": []}
        total = 0
        for uids_path, path in zip(shard.inputs[1::2], shard.inputs[2::2], strict=True):
            uids, embeddings = read_embeddings(uids_path, path)
            cluster = nearest(embeddings, context)
            there = cluster >= 0
            halves = uid_halves(pl.Series(uids, dtype=pl.String))[there]
            values = (halves[:, 0].copy(), halves[:, 1].copy(), cluster[there], np.asarray(embeddings[there]))
            for name, value in zip(columns, values, strict=True):
                columns[name].append(value)
            total += len(uids)
        whole = {name: np.concatenate(values) for name, values in columns.items()}
        write_parts(temporary / f"{shard.name}.clusters.arrow", whole, whole["cluster"] % parts, parts)
        counts = Counts(rows_in=total, rows_out=total)
        if absent := total - len(whole["high"]):
            counts.extra["semantic_no_embedding"] = absent
        return counts


@dataclass
class ClusterReducer(Stage):
    """Compares the images of each cluster."""

    name: str
    folder: Path
    settings: dict[str, Any]
    source: ImageEmbeddings
    assigned: Path  # where AssignStage wrote

    def shards(self) -> Iterator[Shard]:
        """One for each part."""
        inputs = tuple(
            str(self.assigned / f"{name}.clusters.arrow") for name in stream_finished(self.assigned)
        )
        for number in range(self._parts()):
            yield Shard(f"{number:05d}", inputs)

    def _parts(self) -> int:
        return num_ranges(num_rows(self.source.clip), self.settings["rows_per_range"])

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Writes a lookup file: uid -> the least uid of its cluster that is close and less than its own."""
        rows = read_part(shard.inputs, int(shard.name), self._parts())
        order = np.lexsort((rows["low"], rows["high"], rows["cluster"]))
        clusters = rows["cluster"][order]
        ends = [0, *(np.flatnonzero(clusters[1:] != clusters[:-1]) + 1), len(order)]
        found = np.arange(len(order))
        for start, end in pairwise(ends):
            members = rows["embedding"][order[start:end]].astype(np.float32)
            members /= np.maximum(np.linalg.norm(members, axis=1, keepdims=True), 1e-12)
            found[start:end] = start + first_close(members, self.settings["min_cosine"])
        changed = np.flatnonzero(found != np.arange(len(found)))
        high, low = rows["high"][order], rows["low"][order]
        changed = changed[np.lexsort((low[changed], high[changed]))]
        keys, uids = (np.stack([high[places], low[places]]) for places in (changed, found[changed]))
        write_lookup(temporary / shard.name, keys, uids)
        return Counts(rows_in=len(order), rows_out=len(order))


def first_close(features: np.ndarray, min_cosine: float) -> np.ndarray:
    """int64 [N]: for each row of float32 [N, D], L2-normalised, the first row that is close to it, or its own."""
    found = np.arange(len(features))
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK]
        close = block @ features[: start + len(block)].T >= min_cosine
        # A row is close to itself whatever rounding says.
        close[np.arange(len(block)), start + np.arange(len(block))] = True
        found[start : start + _BLOCK] = close.argmax(axis=1)
    return found

"""Image features of a split, each image encoded once and shared out over the ranks.

The unit of sharing is a batch of consecutive samples, cut the same way for any number of ranks: rank r
takes batches r, r + N, r + 2N ... So no sample is padded or seen twice, every forward pass has the same
content whoever runs it, and the gathered features are the same bits for one rank or many (given the same
number of threads).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crawl2clip.distributed import World
from crawl2clip.encoder import Encoder
from crawl2clip.errors import DataError
from crawl2clip.logs import progress
from evaluate.batches import batches_of
from evaluate.cache import FeatureCache
from evaluate.data.samples import ImageFault, Split
from evaluate.data.subset_split import SubsetSplit
from evaluate.encoded import (
    Encoded,
    Facts,
    chosen,
    facts_of,
    from_arrays,
    gathered,
    known_facts,
    to_arrays,
)
from evaluate.feature_keys import image_key
from evaluate.ranks import all_attempt, main_decides, on_main

_BOUNDARY_BYTES = 64


@dataclass(frozen=True)
class ImageFeatures:
    """A split, encoded; only images that could be decoded, in the order of the split."""

    features: torch.Tensor  # [N, D] float32 on the CPU, L2-normalised
    labels: torch.Tensor | None  # [N] int64; None where the samples have no class index
    captions: list[list[str]] | None  # of each image; None where the samples have none
    faults: list[ImageFault]  # images that could not be decoded
    penultimate: torch.Tensor | None = (
        None  # [N, W] float32, before the projection, not normalised; when asked for
    )
    targets: list[list[int]] | None = None  # classes that apply to each image of a multi-label set
    keys: list[str] | None = None  # what the data set calls each sample
    metadata: dict[str, list[str]] | None = None  # field -> value of each sample, "" where it has none
    indices: torch.Tensor | None = None  # [N] int64, positions in the split


def encode_images(
    encoder: Encoder,
    split: Split,
    *,
    world: World,
    batch_size: int,
    num_workers: int,
    max_bad_images: int,
    penultimate: bool = False,
    cache: FeatureCache | None = None,
    show_progress: bool = True,
) -> ImageFeatures:
    """Features of a whole split, the same on every rank; a collective call.

    Args:
        encoder: on this rank's device.
        split: opened by every rank.
        world: the ranks that share the work.
        batch_size: images a forward pass.
        num_workers: processes that decode for this rank; 0 decodes here.
        max_bad_images: images that may fail to decode before it is an error.
        penultimate: whether the features before the projection are wanted, too.
        cache: looked into first and filled afterwards, by rank 0.
        show_progress: whether rank 0 draws a bar with the time that is left.

    Raises:
        DataError: too many bad images, or features that are not finite.
        ConfigError: features before the projection of a model that has none.
    """
    if penultimate:
        encoder.check_penultimate()
    # With a cache the images that subsets share (the languages of Babel-ImageNet) are encoded for the first of them.
    whole = split.whole if cache and isinstance(split, SubsetSplit) else split
    # What a subset leaves out may be as bad as it likes; its own images are counted below.
    allowed = max_bad_images if whole is split else whole.num_samples
    key = on_main(world, lambda: _key(encoder, whole) if cache else None)
    needs = ("penultimate",) if penultimate else ()
    stored = on_main(world, lambda: cache.load(key, needs) if cache and key else None)
    if main_decides(world, lambda: stored is not None):
        mine = from_arrays(stored, whole) if stored is not None else None
    else:
        mine = all_attempt(
            world,
            lambda: _encode_share(
                encoder, whole, world, batch_size, num_workers, allowed, penultimate, show_progress
            ),
        )
    encoded = gathered(world, mine)
    _check_usable(encoded, whole, allowed, encoder)
    if cache and key and stored is None:
        cache.save(key, to_arrays(encoded, whole), _about(encoder, whole, encoded))
    if isinstance(split, SubsetSplit) and whole is not split:
        encoded = chosen(encoded, split)
        _check_usable(encoded, split, max_bad_images, encoder)
    return _as_features(encoded, penultimate)


def _encode_share(
    encoder: Encoder,
    split: Split,
    world: World,
    batch_size: int,
    num_workers: int,
    max_bad_images: int,
    penultimate: bool,
    show_progress: bool,
) -> Encoded:
    """This rank's batches, encoded."""
    indices, facts, faults = [], [], []
    features, pooled = [np.empty((0, encoder.embed_dim), np.float32)], []
    shown = show_progress and world.is_main
    with progress(
        total=split.num_samples, desc=f"encode {split.name}", unit="image", disable=not shown
    ) as bar:
        for batch in batches_of(split, encoder.preprocess, world, batch_size, num_workers):
            faults += batch.faults
            if len(faults) > max_bad_images:
                break  # it is an error already; say so without encoding the rest
            if batch.images is not None:
                after, before = _encode_batch(encoder, batch.images, penultimate)
                features.append(after)
                pooled.append(before)
            indices += [record.index for record in batch.records]
            facts += [facts_of(record) for record in batch.records]
            done = (len(batch.records) + len(batch.faults)) * world.world_size  # the others are about as far
            bar.update(min(done, split.num_samples - bar.n))
    joined = np.concatenate(pooled) if pooled else np.empty((0, 0), np.float32)
    return Encoded(np.asarray(indices, np.int64), np.concatenate(features), joined, facts, faults)


def _encode_batch(
    encoder: Encoder, images: torch.Tensor, penultimate: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if not penultimate:
        return encoder.encode_images(images).numpy(), np.empty((len(images), 0), np.float32)
    after, before = encoder.encode_images_twice(images)
    return after.numpy(), before.numpy()


def _check_usable(encoded: Encoded, split: Split, max_bad_images: int, encoder: Encoder) -> None:
    faults = encoded.faults
    if len(faults) > max_bad_images:
        first = "; ".join(f"{fault.where}: {fault.reason}" for _, fault in faults[:3])
        raise DataError(
            f"{split.name}: at least {len(faults)} of {split.num_samples} images cannot be decoded, {max_bad_images} "
            f"are allowed ({first}). Repair the data set, or set max_bad_images to leave them out and have them counted"
        )
    if not len(encoded.indices):
        raise DataError(
            f"{split.name}: none of its {split.num_samples} images is left to score; repair the data set"
        )
    for features in (encoded.features, encoded.penultimate):
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            advice = (
                "the weights themselves are broken" if encoder.precision == "fp32" else "try precision=fp32"
            )
            raise DataError(
                f"{len(bad)} of {len(features)} image features of {split.name} are not finite (the first is row "
                f"{bad[0]}) with {encoder.name} in {encoder.precision}; no score is made of them: {advice}"
            )


def _as_features(encoded: Encoded, penultimate: bool) -> ImageFeatures:
    facts = encoded.facts
    labels = _all(facts, lambda fact: fact.label)
    fields = sorted({name for fact in facts for name in fact.metadata})
    return ImageFeatures(
        features=_on_a_boundary(encoded.features),
        labels=torch.tensor(labels, dtype=torch.int64) if labels is not None else None,
        captions=_all(facts, lambda fact: fact.captions),
        faults=[fault for _, fault in encoded.faults],
        penultimate=_on_a_boundary(encoded.penultimate) if penultimate else None,
        targets=_all(facts, lambda fact: fact.targets),
        keys=[fact.key for fact in facts],
        metadata={name: [fact.metadata.get(name, "") for fact in facts] for name in fields},
        indices=torch.from_numpy(encoded.indices),
    )


def _on_a_boundary(features: np.ndarray) -> torch.Tensor:
    """The features in memory that begins at a multiple of 64 bytes, where torch's own does; copied only if they do not.

    MKL rounds a product by where its matrices begin, so a score would depend on which piece of memory was free: a run
    that is resumed gave a calibration error that differed from an unbroken one's in the ninth digit.
    """
    tensor = torch.from_numpy(features)
    return tensor if tensor.data_ptr() % _BOUNDARY_BYTES == 0 else tensor.clone()


def _all(facts: Sequence[Facts], read: Callable[[Facts], Any]) -> list[Any] | None:
    """One entry a sample, or None when a sample has none."""
    found = [read(fact) for fact in facts]
    return found if all(entry is not None for entry in found) else None


def _key(encoder: Encoder, split: Split) -> dict[str, Any]:
    fingerprint = split.fingerprint()
    # Where a split knows what goes with each image without the cache, the same images serve every task and language.
    content: Any = getattr(split, "content_sha256", None)
    if content is None or known_facts(split) is None:
        return image_key(encoder, split.name, fingerprint)
    return image_key(encoder, split.name, content())


def _about(encoder: Encoder, split: Split, encoded: Encoded) -> dict[str, Any]:
    return {
        "model": encoder.name,
        "precision": encoder.precision,
        "weights_sha256": encoder.weights_sha256,
        "what": split.name,
        "rows": len(encoded.indices),
    }

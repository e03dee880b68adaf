"""Encode once: each image of a split and each distinct text one time, shared out over the ranks.

The unit of sharing is a batch of consecutive samples, cut the same way for any number of ranks: rank r
takes batches r, r + N, r + 2N ... So no sample is padded or seen twice, every forward pass has the same
content whoever runs it, and the gathered features are the same bits for one rank or many (given the same
number of threads). Errors are raised after the ranks have met, by all of them, so none is left waiting.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from crawl2clip.distributed import World
from crawl2clip.encoder import Encoder
from crawl2clip.errors import Crawl2ClipError, DataError
from crawl2clip.logs import progress
from evaluate.cache import FeatureCache, model_key, preprocessing_hash
from evaluate.data.samples import ImageFault, Record, Split

T = TypeVar("T")


@dataclass(frozen=True)
class ImageFeatures:
    """A split, encoded; only images that could be decoded, in the order of the split."""

    features: torch.Tensor  # [N, D] float32 on the CPU, L2-normalised
    labels: torch.Tensor | None  # [N] int64; None for retrieval
    captions: list[list[str]] | None  # of each image; None for classification
    faults: list[ImageFault]  # images that could not be decoded


@dataclass(frozen=True)
class _Encoded:
    """What a rank found in its batches, or all ranks together."""

    indices: NDArray[np.int64]
    features: NDArray[np.float32]
    labels: list[int | None]
    captions: list[list[str] | None]
    faults: list[tuple[int, ImageFault]]


def main_decides(world: World, make: Callable[[], T]) -> T:
    """What `make` returns on rank 0, on every rank; its errors, too, are raised on every rank."""
    value, caught = None, None
    if world.is_main:
        try:
            value = make()
        except Exception as error:
            caught = error
    # Any exception pickles as its text; only ours are sure to pickle as themselves.
    shared = (
        caught
        if caught is None or isinstance(caught, Crawl2ClipError)
        else RuntimeError(f"on rank 0: {caught!r}")
    )
    value, shared = world.all_gather_object((value, shared))[0]
    if shared is not None:
        raise caught or shared
    return value  # pyright: ignore[reportReturnType] # rank 0 made it


def encode_images(
    encoder: Encoder,
    split: Split,
    *,
    world: World,
    batch_size: int,
    num_workers: int,
    max_bad_images: int,
    cache: FeatureCache | None = None,
    show_progress: bool = True,
) -> ImageFeatures:
    """Features of a whole split, the same on every rank.

    Args:
        encoder: on this rank's device.
        split: opened by every rank.
        world: the ranks that share the work.
        batch_size: images a forward pass.
        num_workers: processes that decode for this rank; 0 decodes here.
        max_bad_images: images that may fail to decode before it is an error.
        cache: looked into first and filled afterwards, by rank 0.
        show_progress: whether rank 0 draws a bar.

    Raises:
        DataError: too many bad images, or features that are not finite.
    """
    key = main_decides(world, lambda: _image_key(encoder, split) if cache else None)
    stored = main_decides(world, lambda: cache.load(key) if cache and key else None)
    if stored is not None:
        encoded = _from_arrays(stored)
    else:
        mine = _encode_share(encoder, split, world, batch_size, num_workers, max_bad_images, show_progress)
        encoded = _joined(world.all_gather_object(mine))
    _check_faults(encoded.faults, split, max_bad_images)
    if not len(encoded.indices):
        raise DataError(
            f"{split.name}: none of its {split.num_samples} images is left to score; repair the data set"
        )
    if stored is None:
        _check_finite(encoded.features, f"image features of {split.name}", encoder)
        if cache and key and world.is_main:
            cache.save(key, _to_arrays(encoded))
    labels = torch.tensor(encoded.labels, dtype=torch.int64) if _all_there(encoded.labels) else None
    return ImageFeatures(
        features=torch.from_numpy(encoded.features),
        labels=labels,
        captions=[c for c in encoded.captions if c is not None] if labels is None else None,
        faults=[fault for _, fault in encoded.faults],
    )


def _all_there(labels: Sequence[int | None]) -> bool:
    return bool(labels) and None not in labels


class _Prepared(torch.utils.data.Dataset):
    """Decodes and preprocesses in a worker; a bad image travels as its fault."""

    def __init__(self, split: Split, preprocess: Any) -> None:
        self._split, self._preprocess = split, preprocess

    def __getitem__(self, index: int) -> tuple[Record, torch.Tensor | None]:
        return _prepare(self._split.record(index), self._preprocess)


def _prepare(record: Record, preprocess: Any) -> tuple[Record, torch.Tensor | None]:
    if isinstance(record.image, ImageFault):
        return record, None
    # The tensor is all that is needed from here on; the decoded picture need not cross a process border.
    empty = ImageFault("", "")
    return Record(record.index, empty, record.label, record.captions), preprocess(record.image)


def _batches(
    split: Split, preprocess: Any, world: World, batch_size: int, num_workers: int
) -> Iterator[list[tuple[Record, torch.Tensor | None]]]:
    """This rank's batches, prepared."""
    starts = range(0, split.num_samples, batch_size)[world.rank :: world.world_size]
    mine = [list(range(start, min(start + batch_size, split.num_samples))) for start in starts]
    if split.random_access:
        loader = torch.utils.data.DataLoader(
            _Prepared(split, preprocess), batch_sampler=mine, num_workers=num_workers, collate_fn=list
        )
        yield from loader
        return
    batch: list[tuple[Record, torch.Tensor | None]] = []
    for record in split.records():
        number, place = divmod(record.index, batch_size)
        if number % world.world_size == world.rank:
            batch.append(_prepare(record, preprocess))
            if place == batch_size - 1 or record.index == split.num_samples - 1:
                yield batch
                batch = []


def _encode_share(
    encoder: Encoder,
    split: Split,
    world: World,
    batch_size: int,
    num_workers: int,
    max_bad_images: int,
    show_progress: bool,
) -> _Encoded:
    indices, features, labels, captions, faults = (
        [],
        [np.empty((0, encoder.embed_dim), np.float32)],
        [],
        [],
        [],
    )
    share = -(-split.num_samples // world.world_size)
    bar = progress(
        total=share, desc=f"encode {split.name}", unit="image", disable=not (show_progress and world.is_main)
    )
    with bar:
        for batch in _batches(split, encoder.preprocess, world, batch_size, num_workers):
            good = [(record, image) for record, image in batch if image is not None]
            faults += [
                (r.index, r.image) for r, image in batch if image is None and isinstance(r.image, ImageFault)
            ]
            if len(faults) > max_bad_images:
                break  # it is an error already; say so without encoding the rest
            if good:
                features.append(encoder.encode_images(torch.stack([image for _, image in good])).numpy())
            indices += [record.index for record, _ in good]
            labels += [record.label for record, _ in good]
            captions += [record.captions for record, _ in good]
            bar.update(len(batch))
    return _Encoded(np.asarray(indices, np.int64), np.concatenate(features), labels, captions, faults)


def _joined(parts: Sequence[_Encoded]) -> _Encoded:
    """All ranks' shares in the order of the split."""
    indices = np.concatenate([part.indices for part in parts])
    order = np.argsort(indices)
    labels = [label for part in parts for label in part.labels]
    captions = [entry for part in parts for entry in part.captions]
    return _Encoded(
        indices[order],
        np.concatenate([part.features for part in parts])[order],
        [labels[i] for i in order],
        [captions[i] for i in order],
        sorted((fault for part in parts for fault in part.faults), key=lambda fault: fault[0]),
    )


def _check_faults(faults: Sequence[tuple[int, ImageFault]], split: Split, max_bad_images: int) -> None:
    if len(faults) > max_bad_images:
        first = "; ".join(f"{fault.where}: {fault.reason}" for _, fault in faults[:3])
        raise DataError(
            f"{split.name}: at least {len(faults)} of {split.num_samples} images cannot be decoded, {max_bad_images} "
            f"are allowed ({first}). Repair the data set, or set max_bad_images to leave them out and have them counted"
        )


def _check_finite(features: NDArray[np.float32], what: str, encoder: Encoder) -> None:
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        advice = "the weights themselves are broken" if encoder.precision == "fp32" else "try precision=fp32"
        raise DataError(
            f"{len(bad)} of {len(features)} {what} are not finite (the first is row {bad[0]}) with {encoder.name} in "
            f"{encoder.precision}; no score is made of them: {advice}"
        )


def _image_key(encoder: Encoder, split: Split) -> dict[str, Any]:
    return {
        **model_key(encoder),
        "preprocessing": preprocessing_hash(encoder),
        "data_name": split.name,
        "data_sha256": split.fingerprint(),
    }


def _to_arrays(encoded: _Encoded) -> dict[str, NDArray[Any]]:
    rest = {
        "labels": encoded.labels,
        "captions": encoded.captions,
        "faults": [(index, fault.where, fault.reason) for index, fault in encoded.faults],
    }
    return {"indices": encoded.indices, "features": encoded.features, "rest": np.asarray(json.dumps(rest))}


def _from_arrays(arrays: dict[str, NDArray[Any]]) -> _Encoded:
    rest = json.loads(str(arrays["rest"]))
    faults = [(index, ImageFault(where, reason)) for index, where, reason in rest["faults"]]
    return _Encoded(arrays["indices"], arrays["features"], rest["labels"], rest["captions"], faults)

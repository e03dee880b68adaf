"""A rank's batches of a split, decoded and preprocessed: in this process, or in workers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from crawl2clip.distributed import World
from evaluate.data.samples import ImageFault, Record, Split

_NO_PICTURE = ImageFault("", "")
"""Stands where the decoded picture was: the tensor is all that is needed, and a picture is slow to send."""


class Batch(NamedTuple):
    """Consecutive samples, the bad ones apart."""

    records: list[Record]  # of the images, without their pictures
    images: torch.Tensor | None  # [B, 3, H, W], one a record; None when all are bad
    faults: list[tuple[int, ImageFault]]  # position in the split and what is wrong


class _Prepared(torch.utils.data.Dataset):
    """Decodes and preprocesses in a worker; a bad image travels as its fault."""

    def __init__(self, split: Split, preprocess: Any) -> None:
        self._split, self._preprocess = split, preprocess

    def __getitem__(self, index: int) -> tuple[Record, torch.Tensor | None]:
        return _prepare(self._split.record(index), self._preprocess)


def batches_of(
    split: Split, preprocess: Any, world: World, batch_size: int, num_workers: int
) -> Iterator[Batch]:
    """This rank's batches, in order.

    Args:
        split: to read; one without random access is read whole by every rank, which prepares its own samples.
        preprocess: PIL image -> tensor [3, H, W].
        world: batch b belongs to rank b modulo the number of ranks.
        batch_size: samples a batch, before bad ones are taken out.
        num_workers: processes that decode; 0 decodes here.
    """
    if not split.random_access:
        yield from _streamed(split, preprocess, world, batch_size)
        return
    starts = range(0, split.num_samples, batch_size)[world.rank :: world.world_size]
    mine = [list(range(start, min(start + batch_size, split.num_samples))) for start in starts]
    loader: Iterable[Batch] = torch.utils.data.DataLoader(
        _Prepared(split, preprocess), batch_sampler=mine, num_workers=num_workers, collate_fn=_collated
    )
    yield from loader


def _streamed(split: Split, preprocess: Any, world: World, batch_size: int) -> Iterator[Batch]:
    batch: list[tuple[Record, torch.Tensor | None]] = []
    for record in split.records():
        number, place = divmod(record.index, batch_size)
        if number % world.world_size == world.rank:
            batch.append(_prepare(record, preprocess))
            if place == batch_size - 1 or record.index == split.num_samples - 1:
                yield _collated(batch)
                batch = []


def _prepare(record: Record, preprocess: Any) -> tuple[Record, torch.Tensor | None]:
    if isinstance(record.image, ImageFault):
        return record, None
    return replace(record, image=_NO_PICTURE), preprocess(record.image)


def _collated(samples: Sequence[tuple[Record, torch.Tensor | None]]) -> Batch:
    images = [image for _, image in samples if image is not None]
    return Batch(
        [record for record, image in samples if image is not None],
        torch.stack(images) if images else None,
        [(r.index, r.image) for r, image in samples if image is None and isinstance(r.image, ImageFault)],
    )

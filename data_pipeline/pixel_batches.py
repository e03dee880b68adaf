"""A raw shard's images as batches for models: each is read and decoded once, whatever the number of models.

Decoding and resizing run in threads (the decoders let go of the interpreter) while a model computes. What a model sees
of an image is a `View`: open_clip's own resizing and cropping up to the square of bytes; the division by 255 and the
normalisation, the same float32 operations as open_clip's, come after the batch is on the device, so that a quarter of
the bytes are moved. On CUDA, batches are pinned and copied on a stream of their own, one ahead of the computation.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from crawl2clip.errors import ConfigError
from crawl2clip.shards import OnFault, Sample, read_samples
from data_pipeline.prefetch import Prefetched
from data_pipeline.stored_images import decode_image, image_extension

if TYPE_CHECKING:
    from PIL.Image import Image

_DEPTH = 2  # batches that may wait for the model


@dataclass(frozen=True)
class View:
    """What a model sees of an image.

    Attributes:
        key: views of equal keys are the same pixels, and are made once.
        square: PIL image -> PIL image of `size` by `size`.
        size: pixels.
        mean, std: float32 [3], of pixels divided by 255.
    """

    key: Hashable
    square: "Callable[[Image], Image]"
    size: int
    mean: torch.Tensor
    std: torch.Tensor

    def normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] float32 of uint8 [B, S, S, 3], on the same device: torchvision's ToTensor and Normalize."""
        channels_first = pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)
        mean = self.mean.to(pixels.device)[:, None, None]
        return channels_first.sub_(mean).div_(self.std.to(pixels.device)[:, None, None])


def view_of(preprocess: Any, name: str) -> View:
    """The view of a torchvision pipeline that ends in ToTensor and Normalize, as open_clip's do for evaluation.

    Raises:
        ConfigError: it is another kind of pipeline.
    """
    from torchvision import transforms

    steps = list(getattr(preprocess, "transforms", ()))
    normalize = steps[-1] if steps else None
    if len(steps) < 2 or not isinstance(normalize, transforms.Normalize) or "ToTensor" not in repr(steps[-2]):
        raise ConfigError(
            f"the preprocessing of {name} is {preprocess!r}; only pipelines that end in ToTensor and Normalize can be "
            "run by the taggers"
        )
    square = transforms.Compose(steps[:-2])
    size = square(_blank()).width
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in (normalize.mean, normalize.std))
    return View(repr(square), square, size, mean, std)


def _blank() -> "Image":
    from PIL import Image

    return Image.new("RGB", (64, 48))


class PixelBatch(NamedTuple):
    """Some images of a shard.

    Attributes:
        rows: of the images that decoded, in the order of `pixels`.
        undecodable: rows of the others.
        pixels: by view key, uint8 [len(rows), S, S, 3], on the device.
    """

    rows: list[int]
    undecodable: list[int]
    pixels: dict[Hashable, torch.Tensor]


class PixelBatches:
    """The batches of a tar, made ahead of time.

    Args:
        tar: a raw shard.
        row_of: uid -> row; samples that are not in it are counted by `on_unlisted`.
        views: of the models.
        batch_size: images a batch, with those that do not decode.
        decode_margin: JPEGs are decoded at a DCT scale that leaves at least this multiple of the largest view's side;
            None decodes them in full.
        threads: that decode.
        device: of the batches.
        on_fault: told what is wrong with the tar, in the background thread.
        on_unlisted: called for each sample that no row lists.

    Attributes:
        waited_s: time that the caller has waited for batches.
    """

    def __init__(
        self, tar: str, row_of: Mapping[str, int], views: list[View], *, batch_size: int,
        decode_margin: float | None, threads: int, device: torch.device,
        on_fault: OnFault, on_unlisted: Callable[[], None],
    ) -> None:  # fmt: skip
        self._views = {view.key: view for view in views}
        self._min_side = (
            None
            if decode_margin is None
            else round(decode_margin * max((view.size for view in views), default=1))
        )
        self._batch_size, self._threads, self._device = batch_size, max(1, threads), device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        samples = self._listed(tar, row_of, on_fault, on_unlisted)
        self._source: Prefetched[tuple[PixelBatch, Any]] = Prefetched(self._staged(samples), _DEPTH)

    @property
    def waited_s(self) -> float:
        """Time that the caller has waited for batches."""
        return self._source.waited_s

    def __iter__(self) -> Iterator[PixelBatch]:
        for batch, copied in self._source:
            if copied is not None:
                stream = torch.cuda.current_stream(self._device)
                stream.wait_event(copied)
                for tensor in batch.pixels.values():
                    tensor.record_stream(stream)
            yield batch

    def close(self) -> None:
        """Ends the threads, also when batches are left."""
        self._source.close()

    # In the background thread and its pool

    def _listed(
        self, tar: str, row_of: Mapping[str, int], on_fault: OnFault, on_unlisted: Callable[[], None]
    ) -> Iterator[tuple[int, Sample]]:
        for sample in read_samples(tar, on_fault):
            row = row_of.get(sample.key)
            if row is None:
                on_unlisted()
            elif image_extension(sample.fields) is not None:
                yield row, sample

    def _staged(self, samples: Iterator[tuple[int, Sample]]) -> Iterator[tuple[PixelBatch, Any]]:
        rows: list[tuple[int, dict[Hashable, np.ndarray] | None]] = []
        for made in self._prepared(samples):
            rows.append(made)
            if len(rows) == self._batch_size:
                yield self._to_device(rows)
                rows = []
        if rows:
            yield self._to_device(rows)

    def _prepared(
        self, samples: Iterator[tuple[int, Sample]]
    ) -> Iterator[tuple[int, dict[Hashable, np.ndarray] | None]]:
        """In order; a batch's worth is being worked on at a time."""
        waiting: deque[Future[tuple[int, dict[Hashable, np.ndarray] | None]]] = deque()
        with ThreadPoolExecutor(self._threads) as pool:
            try:
                for row, sample in samples:
                    waiting.append(pool.submit(self._prepare, row, sample))
                    if len(waiting) > self._batch_size:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _prepare(self, row: int, sample: Sample) -> tuple[int, dict[Hashable, np.ndarray] | None]:
        extension = image_extension(sample.fields)
        assert extension is not None
        image = decode_image(sample.fields[extension], extension, self._min_side)
        if image is None:
            return row, None
        return row, {key: np.asarray(view.square(image)) for key, view in self._views.items()}

    def _to_device(self, made: list[tuple[int, dict[Hashable, np.ndarray] | None]]) -> tuple[PixelBatch, Any]:
        good = [(row, views) for row, views in made if views is not None]
        pixels = {
            key: torch.from_numpy(np.stack([views[key] for _, views in good])) if good else torch.empty(0)
            for key in self._views
        }
        copied = None
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                pixels = {
                    key: tensor.pin_memory().to(self._device, non_blocking=True)
                    for key, tensor in pixels.items()
                }
                copied = self._stream.record_event()
        undecodable = [row for row, views in made if views is None]
        return PixelBatch([row for row, _ in good], undecodable, pixels), copied

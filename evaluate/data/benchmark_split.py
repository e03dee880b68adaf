"""Splits built by CLIP_benchmark: torchvision's, VTAB's, multilingual captions and others on a local root folder."""

import functools
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from crawl2clip.errors import DataError
from crawl2clip.files import sha256_of
from evaluate.data.benchmark_builder import build_benchmark
from evaluate.data.manifest import DATASET_MANIFEST, check_content, check_samples, has_entry
from evaluate.data.package_prompts import BABEL
from evaluate.data.samples import ImageFault, Record
from evaluate.results import hash_of

MULTI_LABEL = "voc2007_multilabel"

UNDECODABLE = (
    OSError, SyntaxError, EOFError, ValueError, struct.error, zlib.error, Image.DecompressionBombError
)  # fmt: skip
"""What Pillow raises for bytes that it cannot, or will not, decode."""


class BenchmarkSplit:
    """One split of a data set that `clip_benchmark.datasets.builder.build_dataset` knows."""

    num_targets: int | None = None  # classes of a multi-label set

    def __init__(self, builder: str, root: Path, split: str, *, download: bool, language: str = "en") -> None:
        """Builds the data set without a transform.

        Args:
            builder: CLIP_benchmark's name, for example "cifar10" or "vtab/dtd".
            root: its local folder.
            split: as CLIP_benchmark names it.
            download: whether the builder may fetch what is missing.
            language: of captions.

        Raises:
            DataError: the files are not there and may not be fetched, or the builder could not read them.
        """
        self.name = f"{builder}/{split}"
        self._builder, self._root, self._language = builder, root, language
        if not root.exists() and not download:
            raise DataError(
                f"data set {builder!r} is not at {root}; put it there (in CLIP_benchmark's webdataset layout or as its "
                "builder expects it), set data_root or the data set's path, or allow downloads with download=true"
            )
        self._dataset = build_benchmark(builder, root, split, download=download, language=language)
        self.class_names: list[str] | None = _texts(getattr(self._dataset, "classes", None))
        # Every built set has templates there, ImageNet's where it has none of its own; Babel-ImageNet's are its own.
        own = getattr(self._dataset, "templates", None) if builder == BABEL else None
        self.templates: list[str] | None = _texts(own)
        self.random_access = not isinstance(self._dataset, torch.utils.data.IterableDataset)
        self.num_samples = len(self._dataset)
        if builder == MULTI_LABEL:
            self.num_targets = len(self.class_names or ())
        self.folder = root / split
        self._fingerprint: str | None = None
        check_samples(self.folder, self.num_samples)

    @property
    def files(self) -> dict[str, int]:
        """Nothing: which of the root's files are this split's is the builder's business."""
        return {}

    @property
    def labels(self) -> None:
        """Not known before the samples are read: each builder keeps them in its own way, if it does."""

    def record(self, index: int) -> Record:
        """The sample at a position."""
        try:
            image, target = self._dataset[index]
        except (FileNotFoundError, PermissionError):
            raise
        except UNDECODABLE as error:
            return self._fault(index, error)
        return self._record(index, image, target)

    def _fault(self, index: int, error: BaseException) -> Record:
        fault = ImageFault(f"{self.name}, index {index}", f"{type(error).__name__}: {error}")
        return Record(index, fault, None, None, key=self._key(index))

    def records(self) -> Iterator[Record]:
        """All samples in order.

        Raises:
            DataError: the source gave more or fewer samples than it announced.
        """
        if self.random_access:
            yield from map(self.record, range(self.num_samples))
            return
        count = 0
        for count, (image, target) in enumerate(self._dataset, 1):
            yield self._record(count - 1, image, target)
        if count != self.num_samples:
            raise DataError(
                f"{self.name} gave {count} samples, it announced {self.num_samples}; fetch it again"
            )

    def _record(self, index: int, image: Any, target: Any) -> Record:
        try:
            image = image.convert("RGB")  # where the builder only opened the file, it is read here
        except UNDECODABLE as error:
            return self._fault(index, error)
        key = self._key(index)
        if isinstance(target, (list, tuple)) and all(isinstance(entry, str) for entry in target):
            return Record(index, image, None, list(target), key=key)
        try:
            if self.num_targets is not None:
                return Record(index, image, None, None, key=key, targets=_applying(target, self.num_targets))
            label: Any = target
            return Record(index, image, int(label), None, key=key)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"{self.name}, index {index}: the target {target!r} is neither a class index nor a list of captions "
                "nor a 0 or 1 for each class; this data set's task is not evaluated here"
            ) from error

    def _key(self, index: int) -> str:
        """The image's path below the root, where the data set lists paths (torchvision's ImageFolder)."""
        listed = getattr(self._dataset, "samples", None)
        if isinstance(listed, list) and index < len(listed):
            path = Path(listed[index][0])
            return (path.relative_to(self._root) if path.is_relative_to(self._root) else path).as_posix()
        return str(index)

    def fingerprint(self) -> str:
        """SHA-256 over builder, split, language, number of samples and every file below the root."""
        if self._fingerprint is None:
            content = self.content_sha256()
            if has_entry(self.folder):
                check_content(self.folder, content)
            self._fingerprint = hash_of([self.name, self._language, self.num_samples, content])
        return self._fingerprint

    def content_sha256(self) -> str:
        """SHA-256 over the names and contents of all files below the root; reads all of them the first time."""
        found = sorted(
            path for path in self._root.rglob("*") if path.is_file() and path.name != DATASET_MANIFEST
        )
        states = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in found)
        return _content_of(self._root, states)


@functools.lru_cache(maxsize=8)
def _content_of(root: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    """Remembered, since the splits of a data set share one root; forgotten when a size or time changes."""
    return hash_of([(path.relative_to(root).as_posix(), sha256_of(path)) for path, _, _ in files])


def _texts(value: Any) -> list[str] | None:
    return [str(entry) for entry in value] if value else None


def _applying(target: Any, num_classes: int) -> list[int]:
    values = [float(entry) for entry in target]
    if len(values) != num_classes or not set(values) <= {0.0, 1.0}:
        raise ValueError(f"not a 0 or 1 for each of {num_classes} classes")
    return [index for index, entry in enumerate(values) if entry]

"""Splits kept as webdataset tars, in the layout that CLIP_benchmark publishes (`tar_folder` has the folder's side).

Headers are read once and samples are then read by position, so any rank can read any share of a split. A
sample is an image (webp, png, jpg, jpeg) and a .cls (class index), a .txt (captions, one a line) or a .npy (a
0 or 1 for each class); DataComp's WILDS and fairness sets keep group codes in a .npy beside the .cls.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from crawl2clip.errors import DataError
from crawl2clip.files import sha256_of
from crawl2clip.shards import SampleIndex, index_shard, raise_fault
from evaluate.data.arrays import read_codes, read_targets
from evaluate.data.manifest import check_content, check_files, check_samples
from evaluate.data.samples import Record, decode_image, unique_keys
from evaluate.data.tar_folder import shards_of
from evaluate.results import hash_of

IMAGE_FIELDS = ("webp", "png", "jpg", "jpeg")


@dataclass(frozen=True)
class _Entry:
    shard: int
    offset: int  # of the image's bytes
    size: int


class TarSplit:
    """One split of such a folder; labels or captions are read when it is opened, images when asked for."""

    random_access = True

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        with_labels: bool,
        with_captions: bool,
        with_targets: bool = False,
        metadata_columns: Sequence[str] | None = None,
        language: str = "en",
    ) -> None:
        """Indexes every shard.

        Args:
            folder: the data set's folder.
            split: sub-folder name.
            with_labels: every sample must have a .cls.
            with_captions: every sample must have a .txt with at least one caption.
            with_targets: every sample must have a .npy with a 0 or 1 for each class.
            metadata_columns: what the numbers of a .npy beside the .cls stand for; metadata may also come as a .json
                object. None reads no metadata.
            language: of the captions; other than "en" they are in .<language>.txt.

        Raises:
            DataError: a shard is missing, cut off or not counted, or a sample lacks a field.
        """
        self.name = f"{folder.name}/{split}"
        self.folder = folder / split
        self.class_names = self.templates = None  # they are files of the data set, not of a split
        self._shards, self._manifest = shards_of(folder / split)
        check_files(self.folder, self.files)
        self._columns = None if metadata_columns is None else list(metadata_columns)
        self._captions_in = "txt" if language == "en" else f"{language.lower()}.txt"
        self._entries: list[_Entry] = []
        self.keys: list[str] = []
        self.labels: list[int] | None = [] if with_labels else None
        self.captions: list[list[str]] | None = [] if with_captions else None
        self.targets: list[list[int]] | None = [] if with_targets else None
        self.num_targets: int | None = None  # classes of a multi-label set
        self.metadata: list[dict[str, str]] = []  # of each sample; empty where none was asked for
        self._content: str | None = None
        self._descriptors: dict[int, int] = {}
        for number, path in enumerate(self._shards):
            self._index(number, path)
        self.keys = unique_keys(self.keys, [self._shards[entry.shard].stem for entry in self._entries])
        self.num_samples = len(self._entries)
        check_samples(self.folder, self.num_samples)

    def _index(self, number: int, path: Path) -> None:
        before = len(self._entries)
        with path.open("rb") as file:
            for sample in index_shard(path, raise_fault):
                where = f"shard {path}, sample {sample.key}"
                offset, size = _image_of(sample, where)
                self._entries.append(_Entry(number, offset, size))
                self.keys.append(sample.key)
                self._read_fields(file, sample, where)
        found = len(self._entries) - before
        expected = self._manifest[number].samples if self._manifest else found
        if found != expected:
            raise DataError(
                f"shard {path} holds {found} samples, its manifest says {expected}; fetch the shard again"
            )

    def _read_fields(self, file: BinaryIO, sample: SampleIndex, where: str) -> None:
        if self.labels is not None:
            self.labels.append(_label(_field(file, sample, "cls", "class index", where), where))
        if self.captions is not None:
            self.captions.append(
                _captions(
                    _field(file, sample, self._captions_in, "captions", where), self._captions_in, where
                )
            )
        if self.targets is not None:
            targets, count = read_targets(_field(file, sample, "npy", "classes", where), where)
            if self.num_targets not in (None, count):
                raise DataError(
                    f"{where}: .npy has {count} classes, the samples before it {self.num_targets}; write the "
                    "shards again"
                )
            self.num_targets = count
            self.targets.append(targets)
        if self._columns is not None:
            self.metadata.append(self._metadata_of(file, sample, where))

    def _metadata_of(self, file: BinaryIO, sample: SampleIndex, where: str) -> dict[str, str]:
        found: dict[str, str] = {}
        if "json" in sample.fields:
            found = _object(_field(file, sample, "json", "metadata", where), where)
        if self._columns:
            found |= read_codes(_field(file, sample, "npy", "group codes", where), self._columns, where)
        return found

    def record(self, index: int) -> Record:
        """The sample at a position, its image decoded to RGB."""
        entry = self._entries[index]
        # pread has no file position, so workers forked from this process can share the descriptor.
        data = os.pread(self._descriptor(entry.shard), entry.size, entry.offset)
        where = f"shard {self._shards[entry.shard]}, sample {self.keys[index]}"
        return Record(
            index,
            decode_image(data, where),
            self.labels[index] if self.labels is not None else None,
            self.captions[index] if self.captions is not None else None,
            key=self.keys[index],
            targets=self.targets[index] if self.targets is not None else None,
            metadata=self.metadata[index] if self.metadata else {},
        )

    def records(self) -> Iterator[Record]:
        """All samples in order."""
        for index in range(self.num_samples):
            yield self.record(index)

    @property
    def files(self) -> dict[str, int]:
        """Each shard's size in bytes."""
        return {path.name: path.stat().st_size for path in self._shards}

    def content_sha256(self) -> str:
        """SHA-256 over the shards' names and contents; reads all of them the first time.

        Raises:
            DataError: a shard is not the one its manifest describes.
        """
        if self._content is None:
            parts = []
            for number, path in enumerate(self._shards):
                found = sha256_of(path)
                if self._manifest and self._manifest[number].sha256 != found:
                    raise DataError(
                        f"shard {path} has SHA-256 {found[:16]}..., its manifest says "
                        f"{self._manifest[number].sha256[:16]}...; it was changed or damaged: fetch the shard again"
                    )
                parts.append((path.name, found))
            self._content = hash_of(parts)
        return self._content

    def fingerprint(self) -> str:
        """Over the content, and over what is read of it: that is cached beside the features.

        Raises:
            DataError: the content is not what a manifest says.
        """
        check_content(self.folder, self.content_sha256())
        read = [
            self.labels is not None,
            self.targets is not None,
            self.captions is not None and self._captions_in,
        ]
        return hash_of([self.content_sha256(), read, self._columns])

    def _descriptor(self, shard: int) -> int:
        if shard not in self._descriptors:
            self._descriptors[shard] = os.open(self._shards[shard], os.O_RDONLY)
        return self._descriptors[shard]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_descriptors": {}}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_descriptors", {}).values():
            os.close(descriptor)


def _image_of(sample: SampleIndex, where: str) -> tuple[int, int]:
    found = [name for name in IMAGE_FIELDS if name in sample.fields]
    if len(found) != 1:
        has = ", ".join(sample.fields) or "nothing"
        raise DataError(
            f"{where}: {len(found)} images (it has {has}); one of {', '.join(IMAGE_FIELDS)} is expected"
        )
    return sample.fields[found[0]]


def _field(file: BinaryIO, sample: SampleIndex, name: str, what: str, where: str) -> bytes:
    if name not in sample.fields:
        has = ", ".join(sample.fields)
        raise DataError(
            f"{where}: no .{name} with its {what} (it has {has}); check that the task fits the data set"
        )
    offset, size = sample.fields[name]
    file.seek(offset)
    return file.read(size)


def _label(data: bytes, where: str) -> int:
    try:
        return int(data.decode("ascii"))
    except ValueError as error:
        raise DataError(f"{where}: .cls holds {data[:40]!r}; it must hold a class index, 0-based") from error


def _captions(data: bytes, name: str, where: str) -> list[str]:
    try:
        lines = [line.strip() for line in data.decode("utf-8").split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: .{name} is not UTF-8 ({error}); save it as UTF-8") from error
    captions = [line for line in lines if line]
    if not captions:
        raise DataError(f"{where}: .{name} holds no caption; give at least one line")
    return captions


def _object(data: bytes, where: str) -> dict[str, str]:
    try:
        value = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise DataError(f"{where}: .json is not JSON in UTF-8 ({error}); write the shard again") from error
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: .json holds {str(value)[:40]!r}; an object of group name -> value is expected"
        )
    return {str(name): str(entry) for name, entry in value.items() if isinstance(entry, (str, int, float))}

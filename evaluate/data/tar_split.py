"""Splits kept as webdataset tars, in the layout that CLIP_benchmark publishes.

    <folder>/<split>/0.tar 1.tar ...   each sample an image (webp, png, jpg, jpeg) and a .cls or a .txt
    <folder>/<split>/nshards.txt       how many tars there are; or our own manifest.json
    <folder>/dataset_type.txt          "retrieval" for captions (one a line), else classification

Headers are read once and samples are then read by position, so any rank can read any share of a split. The
count of shards is required: a folder that lost a tar looks complete otherwise and scores wrong in silence.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crawl2clip.errors import DataError
from crawl2clip.files import sha256_of
from crawl2clip.shards import MANIFEST_NAME, SampleIndex, ShardEntry, index_shard, raise_fault, read_manifest
from evaluate.data.samples import Record, decode_image

IMAGE_FIELDS = ("webp", "png", "jpg", "jpeg")
COUNT_FILE = "nshards.txt"
TYPE_FILE = "dataset_type.txt"


@dataclass(frozen=True)
class _Entry:
    shard: int
    key: str
    offset: int  # of the image's bytes
    size: int


class TarSplit:
    """One split of such a folder; labels or captions are read when it is opened, images when asked for."""

    random_access = True

    def __init__(self, folder: Path, split: str, *, with_labels: bool, with_captions: bool) -> None:
        """Indexes every shard.

        Args:
            folder: the data set's folder.
            split: sub-folder name.
            with_labels: every sample must have a .cls.
            with_captions: every sample must have a .txt with at least one caption.

        Raises:
            DataError: a shard is missing, cut off or not counted, or a sample lacks a field.
        """
        self.name = f"{folder.name}/{split}"
        self._shards, self._manifest = _shards_of(folder / split)
        self._entries: list[_Entry] = []
        self.labels: list[int] | None = [] if with_labels else None
        self.captions: list[list[str]] | None = [] if with_captions else None
        self._fingerprint: str | None = None
        self._descriptors: dict[int, int] = {}
        for number, path in enumerate(self._shards):
            self._index(number, path)
        self.num_samples = len(self._entries)

    def _index(self, number: int, path: Path) -> None:
        before = len(self._entries)
        with path.open("rb") as file:
            for sample in index_shard(path, raise_fault):
                where = f"shard {path}, sample {sample.key}"
                offset, size = _image_of(sample, where)
                self._entries.append(_Entry(number, sample.key, offset, size))
                if self.labels is not None:
                    self.labels.append(_label(_field(file, sample, "cls", where), where))
                if self.captions is not None:
                    self.captions.append(_captions(_field(file, sample, "txt", where), where))
        found = len(self._entries) - before
        expected = self._manifest[number].samples if self._manifest else found
        if found != expected:
            raise DataError(
                f"shard {path} holds {found} samples, its manifest says {expected}; fetch the shard again"
            )

    def record(self, index: int) -> Record:
        """The sample at a position, its image decoded to RGB."""
        entry = self._entries[index]
        # pread has no file position, so workers forked from this process can share the descriptor.
        data = os.pread(self._descriptor(entry.shard), entry.size, entry.offset)
        where = f"shard {self._shards[entry.shard]}, sample {entry.key}"
        return Record(
            index,
            decode_image(data, where),
            self.labels[index] if self.labels is not None else None,
            self.captions[index] if self.captions is not None else None,
        )

    def records(self) -> Iterator[Record]:
        """All samples in order."""
        for index in range(self.num_samples):
            yield self.record(index)

    def fingerprint(self) -> str:
        """SHA-256 over the shards' names and contents.

        Raises:
            DataError: a shard is not the one its manifest describes.
        """
        if self._fingerprint is None:
            parts = []
            for number, path in enumerate(self._shards):
                found = sha256_of(path)
                if self._manifest and self._manifest[number].sha256 != found:
                    raise DataError(
                        f"shard {path} has SHA-256 {found[:16]}..., its manifest says "
                        f"{self._manifest[number].sha256[:16]}...; it was changed or damaged: fetch the shard again"
                    )
                parts.append((path.name, found))
            self._fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return self._fingerprint

    def _descriptor(self, shard: int) -> int:
        if shard not in self._descriptors:
            self._descriptors[shard] = os.open(self._shards[shard], os.O_RDONLY)
        return self._descriptors[shard]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_descriptors": {}}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_descriptors", {}).values():
            os.close(descriptor)


def is_tar_folder(folder: Path, split: str) -> bool:
    """Whether a folder has this split in the layout read here."""
    return any((folder / split / name).is_file() for name in (COUNT_FILE, MANIFEST_NAME))


def dataset_type(folder: Path) -> str:
    """What dataset_type.txt says, "classification" without one.

    Raises:
        DataError: another type than classification and retrieval.
    """
    path = folder / TYPE_FILE
    found = path.read_text(encoding="utf-8").strip().lower() if path.is_file() else "classification"
    if found not in ("classification", "retrieval"):
        raise DataError(f"{path} says {found!r}; the types evaluated here are classification and retrieval")
    return found


def _shards_of(folder: Path) -> tuple[list[Path], list[ShardEntry]]:
    """The shard files in order, and their manifest entries where there is a manifest."""
    if (folder / MANIFEST_NAME).is_file():
        entries = read_manifest(folder)
        paths = [folder / entry.name for entry in entries]
        source = MANIFEST_NAME
    elif (folder / COUNT_FILE).is_file():
        entries = []
        paths = [folder / f"{number}.tar" for number in range(_shard_count(folder / COUNT_FILE))]
        source = COUNT_FILE
    else:
        raise DataError(
            f"{folder} has neither {COUNT_FILE} nor {MANIFEST_NAME}, so a missing shard could not be noticed; write "
            f"the number of tars into {folder / COUNT_FILE} (tars are 0.tar, 1.tar, ...)"
        )
    found = sorted(path.name for path in folder.glob("*.tar"))
    missing = [path.name for path in paths if not path.is_file()]
    extra = sorted(set(found) - {path.name for path in paths})
    if missing or extra or not paths:
        what = (
            f"missing: {', '.join(missing[:5])}"
            if missing
            else f"not counted: {', '.join(extra[:5]) or 'none'}"
        )
        raise DataError(
            f"{folder / source} says {len(paths)} shards, {len(found)} found ({what}); fetch the data set again, or "
            f"correct {source} if it is wrong"
        )
    return paths, entries


def _shard_count(path: Path) -> int:
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if not text.isdigit():
        raise DataError(f"{path} says {text[:40]!r}; it must hold the number of tars and nothing else")
    return int(text)


def _image_of(sample: SampleIndex, where: str) -> tuple[int, int]:
    found = [name for name in IMAGE_FIELDS if name in sample.fields]
    if len(found) != 1:
        has = ", ".join(sample.fields) or "nothing"
        raise DataError(
            f"{where}: {len(found)} images (it has {has}); one of {', '.join(IMAGE_FIELDS)} is expected"
        )
    return sample.fields[found[0]]


def _field(file, sample: SampleIndex, name: str, where: str) -> bytes:
    if name not in sample.fields:
        has = ", ".join(sample.fields)
        what = "class index" if name == "cls" else "captions"
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


def _captions(data: bytes, where: str) -> list[str]:
    try:
        lines = [line.strip() for line in data.decode("utf-8").split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: .txt is not UTF-8 ({error}); save it as UTF-8") from error
    captions = [line for line in lines if line]
    if not captions:
        raise DataError(f"{where}: .txt holds no caption; give at least one line")
    return captions

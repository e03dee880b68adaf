"""WebDataset shards: tar files of samples, read without trusting them and written byte for byte the same.

A sample is the run of tar members that share a key (the file name up to its first dot); the rest of the
name is the field. Readers never extract a path to disk. Every fault costs what it touches, and is given to
the caller's `on_fault`: it may count it, log it, or raise it. The surprising part is how quiet Python's
tarfile is about a file that was cut off between two members; the end-of-archive block is checked here.
"""

import glob
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

import braceexpand

from crawl2clip.errors import DataError
from crawl2clip.files import read_json, write_json
from crawl2clip.tar_headers import after, plain_members

MANIFEST_NAME = "manifest.json"
FAULT_REASONS = (
    "missing",
    "not_a_tar",
    "truncated",
    "duplicate_key",
    "duplicate_field",
    "not_a_file",
    "no_samples",
)


@dataclass(frozen=True)
class Sample:
    """One sample of a shard."""

    key: str
    fields: dict[str, bytes]  # by extension without the first dot, lower case: "jpg", "txt", "json"
    shard: str


@dataclass(frozen=True)
class SampleIndex:
    """Where a sample's fields lie in its shard, for readers that seek."""

    key: str
    fields: dict[str, tuple[int, int]] = field(
        default_factory=dict
    )  # extension -> (byte offset, size in bytes)


@dataclass(frozen=True)
class ShardFault:
    """Something wrong with a shard or one of its samples."""

    shard: str
    key: str | None  # None when the fault is the shard's
    reason: str  # one of FAULT_REASONS
    detail: str


OnFault = Callable[[ShardFault], None]


def raise_fault(fault: ShardFault) -> NoReturn:
    """The strict policy: any fault stops the reader.

    Raises:
        DataError: always, naming shard, key and reason.
    """
    sample = f", sample {fault.key}" if fault.key else ""
    raise DataError(
        f"shard {fault.shard}{sample}: {fault.reason} ({fault.detail}); write it again or leave it out"
    )


def index_shard(path: str | Path, on_fault: OnFault) -> Iterator[SampleIndex]:
    """Where each sample's fields lie, in file order, read from the headers alone.

    A member whose data goes past the end of the file ends the shard with a `truncated` fault; what stood
    before it is kept. A key that comes back after another key, and a field that comes twice, are faults and
    the later ones are left out.
    """
    name = str(path)
    seen: set[str] = set()
    current: SampleIndex | None = None
    for key, extension, offset, size in _members(name, on_fault):
        if current is not None and current.key == key:
            if extension in current.fields:
                on_fault(ShardFault(name, key, "duplicate_field", f"{extension} comes twice"))
            else:
                current.fields[extension] = (offset, size)
            continue
        if current is not None:
            yield current
            current = None
        if key in seen:
            on_fault(ShardFault(name, key, "duplicate_key", f"{extension} of a sample that ended before"))
            continue
        seen.add(key)
        current = SampleIndex(key, {extension: (offset, size)})
    if current is not None:
        yield current
    if not seen:
        on_fault(ShardFault(name, None, "no_samples", "the archive holds no file"))


def read_samples(path: str | Path, on_fault: OnFault) -> Iterator[Sample]:
    """The samples of a shard in file order, one in memory at a time. Faults as in `index_shard`."""
    index = index_shard(path, on_fault)
    first = next(index, None)
    if first is None:
        return
    with open(path, "rb") as file:
        for sample in _chain(first, index):
            fields = {}
            for extension, (offset, size) in sample.fields.items():
                file.seek(offset)
                fields[extension] = file.read(size)
            yield Sample(sample.key, fields, str(path))


def _chain(first: SampleIndex, rest: Iterator[SampleIndex]) -> Iterator[SampleIndex]:
    yield first
    yield from rest


def _members(name: str, on_fault: OnFault) -> Iterator[tuple[str, str, int, int]]:
    """(key, extension, offset, size) of every plain file in a tar, whole ones only."""
    try:
        file = open(name, "rb")  # noqa: SIM115 - closed below; what is raised there has another meaning
    except FileNotFoundError:
        on_fault(ShardFault(name, None, "missing", "no such file"))
        return
    except (PermissionError, IsADirectoryError) as error:  # another OSError is the machine's fault
        on_fault(ShardFault(name, None, "not_a_tar", str(error)))
        return
    with file:
        file_size = os.fstat(file.fileno()).st_size
        for member, offset, size in _file_members(name, file, on_fault):
            if offset + size > file_size:
                on_fault(ShardFault(name, member, "truncated", f"the file ends inside {member}"))
                return
            yield *split_name(member), offset, size


def _file_members(name: str, file: BinaryIO, on_fault: OnFault) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every plain file in a tar."""
    end = 0
    for member, offset, size in plain_members(file.fileno()):
        yield member, offset, size
        end = after(offset, size)
    if end > os.fstat(file.fileno()).st_size:
        on_fault(ShardFault(name, None, "truncated", "unexpected end of data"))
        return
    file.seek(end)
    reason = "truncated" if end else "not_a_tar"
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            reason = "truncated"
            for member in archive:
                if member.isfile():
                    yield member.name, member.offset_data, member.size
                elif not member.isdir():
                    on_fault(ShardFault(name, member.name, "not_a_file", "links and devices are not read"))
                archive.members = []  # type: ignore[assignment] # tarfile keeps every header otherwise
            end = archive.offset
    except tarfile.TarError as error:
        on_fault(ShardFault(name, None, reason, str(error)))
        return
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != b"\0" * tarfile.BLOCKSIZE:
        on_fault(ShardFault(name, None, "truncated", f"no end-of-archive block at byte {end}"))


def split_name(member: str) -> tuple[str, str]:
    """WebDataset's key and extension of a member: "a/b.c.jpg" is ("a/b", "c.jpg"); the extension is lower case."""
    folder, slash, base = member.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


class ShardWriter:
    """Writes one tar whose bytes depend on its samples alone (fixed times, owners and modes).

    Plain tarfile, in the form webdataset's TarWriter gives: importing webdataset would bring torch into every
    worker of the pipeline, two seconds and 600 MB.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed in close()
        self._bytes = 0
        self.samples = 0

    def write(self, key: str, fields: dict[str, bytes]) -> None:
        """Adds a sample; its fields are stored in alphabetical order of their extension."""
        for extension in sorted(fields):
            data = fields[extension]
            padding = bytes(-len(data) % tarfile.BLOCKSIZE)
            self._bytes += self._file.write(
                b"".join((_header(f"{key}.{extension}", len(data)), data, padding))
            )
        self.samples += 1

    def close(self) -> None:
        """Ends the archive, as tarfile does: two blocks of zeros, and more up to a whole record."""
        if self._file.closed:
            return
        end = self._bytes + 2 * tarfile.BLOCKSIZE
        self._file.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
        self._file.close()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _header(name: str, size: int) -> bytes:
    """The header block that tarfile would write, in a tenth of its time for the names that shards have."""
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > 100 or size > 0o77777777777:
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = size, 0o444, 0
        return member.tobuf(tarfile.USTAR_FORMAT)
    sized = b"%011o" % size
    checksum = _PLAIN_CHECKSUM + sum(encoded) + sum(sized)
    return b"".join(
        (encoded.ljust(100, b"\0"), _BEFORE_SIZE, sized, _BEFORE_CHECKSUM, b"%06o\0 " % checksum, _REST)
    )


def _template() -> bytes:
    member = tarfile.TarInfo("")
    member.mode, member.mtime = 0o444, 0
    return member.tobuf(tarfile.USTAR_FORMAT)


# The parts of a USTAR header (POSIX 1003.1) that are the same for all members: mode, owner, group; time; type and the
# rest. The checksum is taken with spaces in its own place.
_TEMPLATE = _template()
_BEFORE_SIZE, _BEFORE_CHECKSUM, _REST = _TEMPLATE[100:124], _TEMPLATE[135:148], _TEMPLATE[156:]
_PLAIN_CHECKSUM = sum(_BEFORE_SIZE) + sum(_BEFORE_CHECKSUM) + 8 * ord(" ") + sum(_REST)


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the manifest lists it."""

    name: str  # file name in the manifest's folder
    samples: int
    bytes: int
    sha256: str


def write_manifest(folder: str | Path, entries: list[ShardEntry], provenance: dict[str, Any]) -> None:
    """Writes `<folder>/manifest.json`; a folder with one is a finished data set."""
    value = {
        "shards": [asdict(entry) for entry in entries],
        "samples": sum(entry.samples for entry in entries),
        "provenance": provenance,
    }
    write_json(Path(folder) / MANIFEST_NAME, value)


def read_manifest(folder: str | Path) -> list[ShardEntry]:
    """The shards that a folder's manifest lists.

    Raises:
        DataError: the manifest is missing, torn, or not a manifest of training shards.
    """
    path = Path(folder) / MANIFEST_NAME
    value = read_json(path)
    try:
        return [ShardEntry(**entry) for entry in value["shards"]]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a manifest of training shards ({error}); write the shards again"
        ) from error


def list_shards(spec: str) -> list[str]:
    """The shard files that a specification names, in order.

    Args:
        spec: a folder (its manifest.json, else its *.tar), a tar file, a brace pattern
            (`a-{0000..0012}.tar`), a glob, or several of these joined by "::".

    Raises:
        DataError: a part names nothing, or a shard of the manifest or the pattern is not there.
    """
    shards: list[str] = []
    for part in spec.split("::"):
        found = _expand(part)
        if not found:
            raise DataError(
                f"no shard at {part!r}; give a folder with *.tar files, a brace pattern, or a glob"
            )
        lost = [name for name in found if not Path(name).is_file()]
        if lost:
            raise DataError(
                f"{len(lost)} of {len(found)} shards of {part!r} are missing, the first is {lost[0]}"
            )
        shards += found
    return shards


def _expand(part: str) -> list[str]:
    path = Path(part)
    if path.is_dir():
        if (path / MANIFEST_NAME).is_file():
            return [str(path / entry.name) for entry in read_manifest(path)]
        return sorted(str(file) for file in path.glob("*.tar"))
    if "{" in part:
        return list(braceexpand.braceexpand(part))
    if any(mark in part for mark in "*?["):
        return sorted(glob.glob(part))
    return [part]

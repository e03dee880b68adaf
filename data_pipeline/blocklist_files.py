"""Reading blocklists: hashes of pairs, URLs, domains and images, in the forms that `data_pipeline.blocklist` describes.

Every entry is checked, and the first bad one refuses the file: a list that is half read would let through what it was
made to keep out. Messages say where the entry stands and never what it is.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.schema import UID_DTYPE
from data_pipeline.blocklist import BLOCKLIST_SCHEMA, HASH_DIGITS, HOW_TO_MAKE, BlockKind, is_hash
from data_pipeline.deduplicate_keys import keys_of_hex

FORMS = (".parquet", ".txt", ".npy")
_BATCH = 500_000  # entries in memory at once


def check_blocklists(paths: Sequence[str], asked_by: str = "deduplicate.blocklist") -> None:
    """Looks whether the files are there and have a known form, with their first entries; the others are read, and
    a bad one stops the stage, when it sorts the list, before it reads a candidate.

    Raises:
        ConfigError: a file is missing, is given twice, or is of another form.
    """
    for path in paths:
        asked = f"{asked_by} names {path}"
        if list(paths).count(path) > 1:
            raise ConfigError(f"{asked} {list(paths).count(path)} times; name it once")
        if not os.path.isfile(path):
            raise ConfigError(f"{asked}, which is not a file; check the path")
        if Path(path).suffix not in FORMS:
            raise ConfigError(f"{asked}; a blocklist ends in {', '.join(FORMS)}. {HOW_TO_MAKE}")
        try:
            next(read_blocklist(path), None)
        except DataError as error:
            raise ConfigError(f"{asked}, which cannot be used: {error}") from error


def read_blocklist(path: str) -> Iterator[tuple[BlockKind, np.ndarray]]:
    """The entries of a blocklist as keys, [N, 2] uint64, some at a time.

    A `.parquet` file has the text columns `kind` and `hash`; a `.txt` file has a line `kind:hash` for each entry,
    empty lines and those that start with # aside; a `.npy` file is a list of uids as DataComp keeps them.

    Raises:
        DataError: the file is damaged or has an entry that is not one; says where, and does not repeat the entry.
    """
    suffix = Path(path).suffix
    try:
        if suffix == ".npy":
            yield from _read_npy(path)
            return
        for kinds, hashes, places in _read_parquet(path) if suffix == ".parquet" else _read_text(path):
            yield from _keys_by_kind(path, kinds, hashes, places, "line" if suffix == ".txt" else "row")
    except (OSError, pa.ArrowException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as a blocklist ({reason}). {HOW_TO_MAKE}") from error


def _read_npy(path: str) -> Iterator[tuple[BlockKind, np.ndarray]]:
    uids = np.load(path, mmap_mode="r")
    if uids.dtype != UID_DTYPE or uids.ndim != 1:
        raise DataError(
            f"{path} holds {uids.ndim}-dimensional {uids.dtype}, not uids; a .npy blocklist is a DataComp subset, "
            f"one-dimensional {UID_DTYPE}. {HOW_TO_MAKE}"
        )
    for start in range(0, len(uids), _BATCH):
        part = uids[start : start + _BATCH]
        yield BlockKind.uid, np.stack([part["f0"], part["f1"]], axis=1)


_Entries = tuple[list[str | None], list[str | None], Sequence[int]]


def _read_parquet(path: str) -> Iterator[_Entries]:
    with pq.ParquetFile(path) as file:
        found = file.schema_arrow
        for name in BLOCKLIST_SCHEMA.names:
            if name not in found.names or not _is_text(found.field(name).type):
                raise DataError(
                    f"{path} has no text column {name!r} (it has {', '.join(found.names[:10])}); a blocklist has "
                    f"the text columns kind and hash. {HOW_TO_MAKE}"
                )
        done = 0
        for batch in file.iter_batches(batch_size=_BATCH, columns=BLOCKLIST_SCHEMA.names):
            kinds, hashes = (batch.column(name).to_pylist() for name in BLOCKLIST_SCHEMA.names)
            yield kinds, hashes, range(done + 1, done + len(kinds) + 1)
            done += len(kinds)


def _is_text(type_: pa.DataType) -> bool:
    type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
    return str(type_) in (
        "string",
        "large_string",
        "string_view",
    )  # the last is polars', and new in pyarrow 16


def _read_text(path: str) -> Iterator[_Entries]:
    with open(path, encoding="utf-8") as file:
        done = 0
        while lines := file.readlines(_BATCH * 70):
            kinds: list[str | None] = []
            hashes: list[str | None] = []
            places: list[int] = []
            for number, line in enumerate(lines, done + 1):
                line = line.strip()
                if line and line[0] != "#":
                    kind, _, digits = line.partition(":")
                    kinds.append(kind)
                    hashes.append(digits)
                    places.append(number)
            done += len(lines)
            yield kinds, hashes, places


def _keys_by_kind(
    path: str, kinds: list[str | None], hashes: list[str | None], places: Sequence[int], unit: str
) -> list[tuple[BlockKind, np.ndarray]]:
    """All entries are looked at before the first is given out."""
    known = {kind.value: HASH_DIGITS[kind] for kind in BlockKind}
    digits: dict[str, list[str]] = {name: [] for name in known}
    for kind, text, place in zip(kinds, hashes, places, strict=True):
        if kind not in known or text is None or len(text) != known[kind]:
            raise _bad_entry(path, unit, place)
        digits[kind].append(text)
    found: list[tuple[BlockKind, np.ndarray]] = []
    for name, texts in digits.items():
        try:
            if texts:
                # Of a SHA-256 only the first 128 bits are compared; a perceptual hash is the high half of its key.
                padding = "0" * (-known[name] % 32)
                keys = keys_of_hex(padding.join([*texts, ""]).encode("ascii"))
                found.append((BlockKind(name), keys[:: max(1, known[name] // 32)]))
        except ValueError:  # not hex digits: now find which
            bad = next(
                place
                for kind, text, place in zip(kinds, hashes, places, strict=True)
                if kind == name and not is_hash(BlockKind(name), text or "")
            )
            raise _bad_entry(path, unit, bad) from None
    return found


def _bad_entry(path: str, unit: str, place: int) -> DataError:
    return DataError(
        f"{path}, {unit} {place}, is not an entry of a blocklist: a kind ({', '.join(BlockKind.__members__)}) and its "
        f"hash in hex, 32 digits for a uid and md5, 16 for phash, 64 for the others. {HOW_TO_MAKE}"
    )

"""Files of a data set without some of their rows: tables, embeddings, uid lists and tars, written anew.

Each function says how many rows it left out, and writes nothing when there are none. A file's form stays as it is:
schema, row groups, the order of the rows, and the bytes of every sample that stays.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from crawl2clip.errors import DataError
from crawl2clip.schema import UID_DTYPE, uids_to_array
from crawl2clip.shards import ShardFault, ShardWriter, index_shard, raise_fault

UID_DIGITS = 32  # a key of a training shard is the uid, and for further copies the uid and -N


def uid_of_key(key: str) -> str:
    """The uid that a sample's key stands for."""
    return key[:UID_DIGITS] if key[UID_DIGITS:].startswith("-") else key


def rewrite_tar(source: Path, target: Path, removed: set[str]) -> int:
    """Samples whose uid is in `removed` are left out.

    Raises:
        DataError: the tar is damaged where it is rewritten; nothing is dropped in silence.
    """
    samples = list(index_shard(source, _ignore_empty))
    left = sum(uid_of_key(sample.key) in removed for sample in samples)
    if not left:
        return 0
    with open(source, "rb") as file, ShardWriter(target) as writer:
        for sample in samples:
            if uid_of_key(sample.key) in removed:
                continue
            fields = {}
            for extension, (offset, size) in sample.fields.items():
                file.seek(offset)
                fields[extension] = file.read(size)
            writer.write(sample.key, fields)
    return left


def _ignore_empty(fault: ShardFault) -> None:
    if fault.reason != "no_samples":
        raise_fault(fault)


def kept_rows(table: Path, removed: set[str]) -> np.ndarray | None:
    """[rows] bool: which rows of a parquet file stay; None when it has no column uid."""
    with pq.ParquetFile(table) as file:
        if "uid" not in file.schema_arrow.names:
            return None
        return _stay(file.read(columns=["uid"]).column("uid"), removed)


def _stay(uids: pa.ChunkedArray | pa.Array, removed: set[str]) -> np.ndarray:
    column = pl.Series(pl.from_arrow(uids.cast(pa.string())))
    return ~column.is_in(pl.Series(sorted(removed), dtype=pl.String).implode()).fill_null(False).to_numpy()


def rewrite_parquet(source: Path, target: Path, stays: np.ndarray) -> int:
    """A table without the rows that do not stay, row group by row group."""
    left = int((~stays).sum())
    if not left:
        return 0
    with (
        pq.ParquetFile(source) as file,
        pq.ParquetWriter(target, file.schema_arrow, compression="zstd") as writer,
    ):
        start = 0
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            writer.write_table(table.filter(pa.array(stays[start : start + table.num_rows])))
            start += table.num_rows
    return left


def rewrite_arrow(source: Path, target: Path, removed: set[str]) -> int:
    """An Arrow file without the rows of removed uids, batch by batch."""
    with pa.memory_map(str(source)) as mapped:
        file = pa.ipc.open_file(mapped)
        if "uid" not in file.schema.names:
            return 0
        batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        kept = [batch.filter(pa.array(_stay(batch.column("uid"), removed))) for batch in batches]
        left = sum(len(batch) for batch in batches) - sum(len(batch) for batch in kept)
        if left:
            with pa.ipc.new_file(str(target), file.schema) as writer:
                for batch in kept:
                    writer.write_batch(batch)
    return left


def rewrite_npy(source: Path, target: Path, stays: np.ndarray | None, removed: set[str]) -> int:
    """A list of uids without the removed ones, or an array with a row for each of a table's.

    Args:
        source, target: the files.
        stays: which rows of the table beside it stay.
        removed: uids.

    Raises:
        DataError: it has another number of rows than the table.
    """
    values = np.load(source, mmap_mode="r")
    if values.dtype == UID_DTYPE and values.ndim == 1:
        stays = ~np.isin(np.asarray(values), uids_to_array(removed))
    elif stays is None:  # sorted keys of a step, for instance: no row of it is a sample's
        return 0
    elif len(values) != len(stays):
        raise DataError(
            f"{source} has {len(values)} rows, the table beside it {len(stays)}; a takedown cannot tell which of them "
            "are to go: remove the file, or make it again, and run the takedown again"
        )
    left = int((~stays).sum())
    if left:
        kept = np.lib.format.open_memmap(target, "w+", values.dtype, (len(values) - left, *values.shape[1:]))
        kept[:] = values[stays]
        kept.flush()
    return left


def describe_tar(path: Path, wanted: list[str]) -> pl.DataFrame:
    """uid, key and what the .json of each sample says, null where it says nothing.

    Args:
        path: a tar of training samples, ours or anyone's with url, md5, sha256 or phash in its .json.
        wanted: fields of the .json.

    A sample whose .json cannot be read has nulls: it can only be found by its uid.
    """
    import json

    rows = []
    with open(path, "rb") as file:
        for sample in index_shard(path, _ignore_empty):
            described: object = None
            if "json" in sample.fields:
                offset, size = sample.fields["json"]
                file.seek(offset)
                try:
                    described = json.loads(file.read(size))
                except (ValueError, RecursionError):
                    described = None
            found = described if isinstance(described, dict) else {}
            texts = {name: value if isinstance(value := found.get(name), str) else None for name in wanted}
            rows.append({"uid": uid_of_key(sample.key), "key": sample.key, "read": bool(found), **texts})
    kinds = {"uid": pl.String, "key": pl.String, "read": pl.Boolean, **dict.fromkeys(wanted, pl.String)}
    return pl.DataFrame(rows, schema=kinds)

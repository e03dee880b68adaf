"""The raw shard on disk: a tar with the samples and a table with a row for every URL tried.

Both are in the order of the candidates, so their bytes depend on the answers alone, not on when they came.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from crawl2clip.download_status import DownloadStatus
from crawl2clip.schema import CANDIDATE_SCHEMA, DOWNLOAD_SCHEMA
from crawl2clip.shards import ShardWriter
from data_pipeline.fetch import Fetched
from data_pipeline.processed import Processed
from data_pipeline.published import PublishedConfig, Verdict, read_listed, verdict
from data_pipeline.stage import Counts

_SAMPLE_COLUMNS = (
    *(
        "uid",
        "url",
        "text",
        "text_source",
        "page_url",
        "page_language",
        "license",
        "status",
        "http_status",
        "consent",
    ),
    *("original_width", "original_height", "width", "height", "format", "bytes", "md5", "sha256", "phash"),
)


@dataclass(frozen=True)
class StoredImage:
    """A processed download; its image file, if there is one, lies in the spool."""

    processed: Processed  # without its data
    num_bytes: int  # of the original
    offset: int
    length: int


def write_raw_shard(
    candidates: Sequence[dict[str, Any]],
    fetched: Mapping[str, Fetched[StoredImage]],
    spool: IO[bytes],
    stem: Path,
    published: PublishedConfig,
) -> Counts:
    """Writes `<stem>.tar` and `<stem>.parquet`.

    Args:
        candidates: rows of CANDIDATE_SCHEMA, uids distinct.
        fetched: what came of each of their URLs.
        spool: where the image files lie.
        stem: folder and name of the shard, without an extension.
        published: which columns of a list the images are compared with.

    Returns:
        Rows in, rows stored, and the others by status.
    """
    rows = [_row(row, fetched[row["url"]], published) for row in candidates]
    with ShardWriter(f"{stem}.tar") as tar:
        for row in rows:
            stored = fetched[row["url"]].result
            if row["status"] == DownloadStatus.success.value and stored is not None:
                spool.seek(stored.offset)
                tar.write(row["uid"], _sample(row, stored, spool.read(stored.length)))
    pq.write_table(pa.Table.from_pylist(rows, schema=DOWNLOAD_SCHEMA), f"{stem}.parquet", compression="zstd")
    return _count(rows)


def _row(
    candidate: dict[str, Any], fetched: Fetched[StoredImage], published: PublishedConfig
) -> dict[str, Any]:
    """The row of the table; an image that is not the one its list means is judged here, since captions may differ."""
    row = {name: candidate.get(name) for name in CANDIDATE_SCHEMA.names} | _outcome(fetched)
    if row["status"] != DownloadStatus.success.value or fetched.result is None:
        return row
    found = verdict(fetched.result.processed, read_listed(candidate["listed"]), published)
    row["expected"] = found and found.value
    if found == Verdict.mismatch and published.drop_mismatches:
        lost = ("width", "height")
        row |= {"status": DownloadStatus.hash_mismatch.value, "error": "not the image that the list means"}
        row |= dict.fromkeys(lost)
    return row


def _outcome(fetched: Fetched[StoredImage]) -> dict[str, Any]:
    """The download columns of a row, from status to consent."""
    columns: dict[str, Any] = {
        "status": fetched.status.value,
        "error": fetched.error,
        "http_status": fetched.http_status,
        "consent": fetched.consent,
    }
    if fetched.result is None:
        return columns
    processed = fetched.result.processed
    names = (
        "error",
        "original_width",
        "original_height",
        "width",
        "height",
        "format",
        "md5",
        "sha256",
        "phash",
    )
    columns |= {name: getattr(processed, name) for name in names}
    columns |= {"status": processed.status.value, "bytes": fetched.result.num_bytes}
    return columns


def _sample(row: dict[str, Any], stored: StoredImage, image: bytes) -> dict[str, bytes]:
    """The members of a pair in the tar, by extension."""
    described = {name: row.get(name) for name in _SAMPLE_COLUMNS}
    if row["listed"] is not None:
        described["listed"] = read_listed(row["listed"])
    if row.get("expected") is not None:
        described["expected"] = row["expected"]
    assert stored.processed.extension is not None
    return {
        stored.processed.extension: image,
        "txt": row["text"].encode("utf-8", "replace"),
        "json": json.dumps(described, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace"),
    }


def _count(rows: Sequence[dict[str, Any]]) -> Counts:
    statuses = Counter(row["status"] for row in rows)
    num_stored = statuses.pop(DownloadStatus.success.value, 0)
    codes = Counter(
        f"http_{row['http_status']}" for row in rows if row["status"] == DownloadStatus.http_error.value
    )
    return Counts(rows_in=len(rows), rows_out=num_stored, dropped=statuses, extra=codes)

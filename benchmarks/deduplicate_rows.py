"""Candidate files for benchmarks/deduplicate.py: made rows that look like a crawl's, with a known number of duplicates.

A row is a function of its pair's number, so any part can be made alone, in any process, and duplicates need no memory.
The uids are a mix of the number and not `uid_of`, which would cost more than the rest; nothing here looks into them.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from crawl2clip.files import write_json
from crawl2clip.schema import CANDIDATE_SCHEMA
from data_pipeline.deduplicate_keys import hex_of_keys

LAYOUTS = ("full", "narrow")
_BATCH = 250_000  # rows made at once
_WORDS = 20_000


def write_rows(
    folder: Path, *, rows: int, files: int, layout: str, duplicates: float = 0.3
) -> dict[str, float]:
    """Writes a finished extract stage's folder of `files` parquet files.

    Args:
        folder: where to write; kept as it is when it already holds these rows.
        rows: in all.
        files: of nearly equal size.
        layout: "full" has every column that a crawl gives; "narrow" is the row of the engine trial: uid, url, text and
            page date, about 131 bytes.
        duplicates: of the rows, those that repeat a pair of another row, seen on another page.

    Returns:
        `unique` pairs, `raw_bytes` a row.
    """
    made = folder / "made.json"
    wanted = {"rows": rows, "files": files, "layout": layout, "duplicates": duplicates}
    if made.exists() and (found := json.loads(made.read_text()))["wanted"] == wanted:
        return found["result"]
    folder.mkdir(parents=True, exist_ok=True)
    unique = rows - int(rows * duplicates)
    raw_bytes = 0
    names = [f"{index:05d}" for index in range(files)]
    for index, name in enumerate(names):
        # Every files-th row: the later copies of a pair are spread over all files.
        numbers = np.arange(index, rows, files, dtype=np.int64)
        raw_bytes += _write_file(folder / f"{name}.parquet", name, numbers, unique, layout)
        counts = {"rows_in": len(numbers), "rows_out": len(numbers), "dropped": {}, "extra": {}}
        write_json(folder / f"{name}.stats.json", {"counts": counts, "seconds": 0.0, "files": {}})
    write_json(
        folder / "manifest.json", {"settings": {}, "shards": [{"name": name, "inputs": []} for name in names]}
    )
    result = {"unique": unique, "raw_bytes": raw_bytes / rows}
    write_json(made, {"wanted": wanted, "result": result})
    return result


def _write_file(path: Path, name: str, numbers: np.ndarray, unique: int, layout: str) -> int:
    np.random.default_rng(int(name)).shuffle(numbers)
    size = 0
    with pq.ParquetWriter(path, CANDIDATE_SCHEMA, compression="zstd") as writer:
        for start in range(0, len(numbers), _BATCH):
            frame = _rows(numbers[start : start + _BATCH], unique, name, layout)
            size += sum(
                int(frame[column].str.len_bytes().sum())
                for column, kind in frame.schema.items()
                if kind == pl.String
            )
            writer.write_table(frame.to_arrow().select(CANDIDATE_SCHEMA.names).cast(CANDIDATE_SCHEMA))
    return size + (8 * len(numbers) if layout == "full" else 0)


def _rows(numbers: np.ndarray, unique: int, name: str, layout: str) -> pl.DataFrame:
    # Rows past the number of pairs repeat a pair, each another one as far as there are enough.
    pair = np.where(numbers < unique, numbers, _mix(numbers) % np.uint64(unique)).astype(np.uint64)
    high, low = _mix(pair), _mix(pair + np.uint64(1 << 40))
    page = _mix(numbers.astype(np.uint64) + np.uint64(1 << 41))
    words = pl.Series([f"{_mix(np.array([n], np.uint64))[0]:x}"[: 3 + n % 6] for n in range(_WORDS)])

    def word(values: np.ndarray, shift: int) -> pl.Series:
        return words.gather((values >> np.uint64(shift)) % np.uint64(_WORDS))

    uid = pl.Series(pl.from_arrow(hex_of_keys(high, low)))
    length = pl.Series(high % np.uint64(4))
    text = pl.DataFrame({str(n): word(low, 11 * n) for n in range(5)})
    seconds = pl.Series((page >> np.uint64(20)) % np.uint64(1_209_600)).cast(pl.Int64)
    frame = text.select(
        uid=uid,
        url=pl.format("https://www.{}.com/content/images/{}.jpg", word(high, 8), uid.str.slice(16, 12)),
        text=pl.concat_str(
            pl.col("0", "1"),
            *(pl.when(length >= n).then(pl.col(str(n + 1))) for n in range(1, 4)),
            separator=" ",
            ignore_nulls=True,
        ),
        page_date=pl.from_epoch(seconds + 1_715_990_000, time_unit="s").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    frame = frame.with_columns(width_hint=pl.lit(None, pl.Int32), height_hint=pl.lit(None, pl.Int32))
    frame = frame.with_columns(listed=pl.lit(None, pl.String))
    null = pl.lit(None, pl.String)
    if layout == "narrow":
        return frame.with_columns(
            text_source=pl.lit("alt"), page_url=null, page_language=null, license=null, crawl_file=null,
            offset=pl.lit(None, pl.Int64),
        )  # fmt: skip
    return frame.with_columns(
        text_source=pl.lit("alt"),
        page_url=pl.format("https://www.{}.com/{}/{}.html", word(page, 8), word(page, 20), word(page, 32)),
        page_language=words.gather(page % np.uint64(40)).str.slice(0, 2),
        license=pl.when(pl.Series(page % np.uint64(100)) == 0).then(
            pl.lit("https://creativecommons.org/licenses/by/4.0/")
        ),
        crawl_file=pl.lit(
            f"crawl-data/CC-MAIN-2024-22/segments/1715971057216.39/wat/CC-MAIN-{name}.warc.wat.gz"
        ),
        offset=pl.Series((page % np.uint64(1 << 30)).astype(np.int64)),
    )


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64 of each value."""
    with np.errstate(over="ignore"):
        values = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))

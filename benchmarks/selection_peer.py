"""A whole-set engine on the same tables, in a process of its own, for benchmarks/selection.py.

    python selection_peer.py duckdb|polars FOLDER RECIPE OUT THREADS MEMORY_GB

Writes the kept uids, sorted, as parquet. It gives no reason for a row that is dropped, and no funnel.
"""

import sys

BASIC = (
    "language = 'en' AND len(regexp_extract_all(text, '\\S+')) >= 3 AND length(text) >= 6 "
    "AND least(original_width, original_height) >= 200 "
    "AND greatest(original_width, original_height) / least(original_width, original_height) <= 3"
)


def duckdb_rows(folder: str, recipe: str, out: str, threads: int, memory_gb: int) -> int:
    """The kept uids by DuckDB, which spills to disk beyond its memory."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET threads = {threads}")
    connection.execute(f"SET memory_limit = '{memory_gb}GB'")
    connection.execute(f"SET temp_directory = '{out}.spill'")
    raw = f"(SELECT * FROM read_parquet('{folder}/raw/*.parquet') WHERE status = 'success')"
    if recipe == "datacomp_basic":
        tags = f"read_parquet('{folder}/tags/language/*.parquet')"
        query = f"SELECT uid FROM {raw} JOIN {tags} USING (uid) WHERE {BASIC} ORDER BY uid"
    else:
        tags = f"read_parquet('{folder}/tags/clip/*.parquet')"
        connection.execute(
            f"CREATE TEMP TABLE scored AS SELECT uid, clip_score FROM {raw} JOIN {tags} USING (uid)"
        )
        query = (
            "SELECT uid FROM (SELECT uid FROM scored ORDER BY clip_score DESC, uid "
            "LIMIT (SELECT CAST(ceil(0.3 * count(*)) AS BIGINT) FROM scored)) ORDER BY uid"
        )
    connection.execute(f"COPY ({query}) TO '{out}' (FORMAT parquet)")
    row = connection.execute(f"SELECT count(*) FROM read_parquet('{out}')").fetchone()
    return row[0] if row else 0


def polars_rows(folder: str, recipe: str, out: str) -> int:
    """The kept uids by Polars' streaming engine."""
    import polars as pl

    raw = pl.scan_parquet(f"{folder}/raw/*.parquet").filter(pl.col("status") == "success")
    if recipe == "datacomp_basic":
        tags = pl.scan_parquet(f"{folder}/tags/language/*.parquet")
        short = pl.min_horizontal("original_width", "original_height")
        long = pl.max_horizontal("original_width", "original_height")
        kept = raw.join(tags, on="uid").filter(
            pl.col("language") == "en",
            pl.col("text").str.count_matches(r"\S+") >= 3,
            pl.col("text").str.len_chars() >= 6,
            short >= 200,
            long / short <= 3,
        )
        kept = kept.select("uid").sort("uid")
    else:
        tags = pl.scan_parquet(f"{folder}/tags/clip/*.parquet")
        scored = raw.select("uid").join(tags, on="uid").collect(engine="streaming")
        number = -(-len(scored) * 3 // 10)
        kept = (
            scored.lazy()
            .sort(["clip_score", "uid"], descending=[True, False])
            .head(number)
            .select("uid")
            .sort("uid")
        )
    frame = kept.collect(engine="streaming")
    frame.write_parquet(out)
    return len(frame)


if __name__ == "__main__":
    engine, source, asked, target, number_of_threads, gigabytes = sys.argv[1:]
    if engine == "duckdb":
        print("rows", duckdb_rows(source, asked, target, int(number_of_threads), int(gigabytes)))
    else:
        print("rows", polars_rows(source, asked, target))

"""DuckDB's deduplication of candidate files, in a process of its own, for benchmarks/deduplicate.py.

    python duckdb_peer.py IN_FOLDER OUT_FOLDER SPILL_FOLDER THREADS MEMORY_GB

Any row of a uid is kept, not the earliest: to ask for that would cost DuckDB a sort.
"""

import sys

import duckdb

source, target, spill, threads, memory_gb = sys.argv[1:]
connection = duckdb.connect()
connection.execute(f"SET threads = {threads}")
connection.execute(f"SET memory_limit = '{memory_gb}GB'")
connection.execute(f"SET temp_directory = '{spill}'")
connection.execute("SET preserve_insertion_order = false")
connection.execute(
    f"COPY (SELECT DISTINCT ON (uid) * FROM read_parquet('{source}/*.parquet')) TO '{target}' "
    "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, PER_THREAD_OUTPUT true)"
)
print("rows", connection.execute(f"SELECT count(*) FROM read_parquet('{target}/*.parquet')").fetchone()[0])
print("duckdb", duckdb.__version__)

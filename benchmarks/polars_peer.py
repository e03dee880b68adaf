"""Polars' deduplication of candidate files, whole, in a process of its own, for benchmarks/deduplicate.py.

    python polars_peer.py IN_FOLDER OUT_FILE

Any row of a uid is kept. The number of threads is POLARS_MAX_THREADS; there is no limit on memory.
"""

import sys

import polars as pl

source, target = sys.argv[1:]
lazy = pl.scan_parquet(f"{source}/*.parquet").unique("uid", keep="any")
lazy.sink_parquet(target, compression="zstd", compression_level=1)
print("rows", pl.scan_parquet(target).select(pl.len()).collect().item())
print("polars", pl.__version__)

"""cc2dataset's own code on one local WAT, in its own environment; for benchmarks/extract.py.

    python cc2dataset_peer.py rows WAT TARGET     its rows, one JSON list a line; not timed
    python cc2dataset_peer.py function WAT        process_wat, every row taken
    python cc2dataset_peer.py spark WAT FOLDER    what its process_one_part does with one file, in local mode

Prints the CPU seconds as JSON. Its function needs neither Spark nor Java, though its module imports pyspark: an empty
module stands in where that is not installed. process_one_part itself puts a fixed web address before every path, so its
lines are repeated here without that.
"""

import json
import os
import resource
import sys
import types
from importlib.util import find_spec

os.environ.setdefault("LOGURU_LEVEL", "WARNING")
os.environ["PYSPARK_PYTHON"] = sys.executable

if find_spec("pyspark") is None:
    for name, names in (
        ("pyspark", ["SparkContext"]),
        ("pyspark.sql", ["SparkSession"]),
        ("pyspark.sql.functions", ["rand"]),
    ):
        sys.modules[name] = types.ModuleType(name)
        for word in names:
            setattr(sys.modules[name], word, None)

from cc2dataset import main as cc2dataset  # pyright: ignore[reportMissingImports]


def write_rows(wat: str, target: str) -> int:
    """Writes (url, alt, page address) of every row."""
    rows = 0
    with open(target, "w", encoding="utf-8") as file:
        for _, url, alt, _, page_url in cc2dataset.process_wat(wat, "image"):
            file.write(json.dumps([url, alt, page_url]) + "\n")
            rows += 1
    return rows


def run_spark(wat: str, folder: str) -> int:
    """process_one_part for one file."""
    from pyspark import SparkContext  # pyright: ignore[reportMissingImports]

    spark = cc2dataset.build_spark_session("local", 2, 4)
    rows = SparkContext.getOrCreate().parallelize([wat], 1).mapPartitions(extract_part)
    frame = rows.toDF(["uid", "url", "alt", "cc_filename", "page_url"])
    cc2dataset.deduplicate_repartition_count(frame, folder, 1, spark)
    written = spark.read.parquet(folder).count()
    process = SparkContext._gateway.proc
    spark.stop()
    SparkContext._gateway.shutdown()
    process.stdin.close()
    process.wait()  # only then does the system count its CPU time as ours
    return written


def extract_part(paths):
    """As in process_one_part."""
    yield from cc2dataset.process_wat(next(iter(paths)), "image")


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


if __name__ == "__main__":
    mode, wat, *rest = sys.argv[1:]
    started = cpu_seconds()
    if mode == "rows":
        rows = write_rows(wat, *rest)
    elif mode == "spark":
        rows = run_spark(wat, *rest)
    else:
        rows = sum(1 for _ in cc2dataset.process_wat(wat, "image"))
    print(json.dumps({"rows": rows, "cpu_s": cpu_seconds() - started}))

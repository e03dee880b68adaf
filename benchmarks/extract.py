"""Extraction of a WAT file: ours, cc2dataset's function, and decompression alone; CPU seconds on one core.

    python benchmarks/extract.py [pages=10000] [repeats=3] [peer=1] [spark=0]

The file is made by extract_crawl.py in Common Crawl's layout (10,000 pages: 75 MB gzipped) and kept in
runs/benchmarks/extract. What is measured runs in processes of its own, in turn; medians. `ours` is the whole extract
stage on one file: parse, join addresses, clean, hash, write parquet; `python` is the same without compiled code.
cc2dataset's `process_wat` neither cleans nor writes, and `pairs` is ours without writing: its rows as objects. Cleaning
and language detection are timed apart as well. spark=1 also runs cc2dataset's way through Spark, once; it needs Java,
and pyspark is a large download.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FOLDER = ROOT / "runs" / "benchmarks"

from extract_crawl import write_wat  # noqa: E402 (it lies beside this file)

from crawl2clip.errors import ConfigError  # noqa: E402
from data_pipeline import native  # noqa: E402

PEER = "cc2dataset==1.5.0"
PEER_NEEDS = ("pysimdjson", "fastwarc", "fsspec", "loguru")  # of its function; all else is for Spark and S3
TIMES_PEER, TIMES_SPARK, TIMES_FLOOR, MAX_MEMORY_MB = 2.2, 20, 2.5, 300


def main(words: list[str]) -> None:
    """Makes the files, runs each in turn, compares the rows, prints the result lines."""
    settings = {"pages": 10_000, "repeats": 3, "peer": 1, "spark": 0}
    settings |= {key: int(value) for key, value in (word.split("=") for word in words)}
    folder = FOLDER / "extract"
    wat, twice = (folder / f"{settings['pages'] * n}-pages.warc.wat.gz" for n in (1, 2))
    for n, path in enumerate((wat, twice), 1):
        write_wat(path, settings["pages"] * n)
    peer = prepare_peer(FOLDER / "cc2dataset", spark=bool(settings["spark"])) if settings["peer"] else None
    try:
        native.build()
    except ConfigError as error:
        print(f"ours is the same as python: {error}")
    size_mb = wat.stat().st_size / 1e6
    print(f"{settings['pages']} pages, {size_mb:.1f} MB gzip, {settings['repeats']} repeats")

    runs = {
        "floor": [sys.executable, script("extract_once.py"), "floor", wat],
        "ours": [sys.executable, script("extract_once.py"), "ours", wat, folder / "ours.parquet"],
        "python": [sys.executable, script("extract_once.py"), "python", wat, folder / "python.parquet"],
        "peer": [peer, script("cc2dataset_peer.py"), "function", wat],
        "pairs": [sys.executable, script("extract_once.py"), "pairs", wat],
        "cleaning": [sys.executable, script("extract_once.py"), "cleaning", wat],
        "language": [sys.executable, script("extract_once.py"), "language", wat],
        "ours_twice": [sys.executable, script("extract_once.py"), "ours", twice, folder / "ours.parquet"],
    }
    if peer is None:
        del runs["peer"]
    told: dict[str, list[dict]] = {name: [] for name in runs}
    for _ in range(settings["repeats"]):
        for name, command in runs.items():
            told[name].append(run(command))
    for name, values in told.items():
        memory = max(value["peak_mb"] for value in values)
        print(f"{name:10} {middle(values):7.2f} CPU s, at most {memory:.0f} MB, {shown(values[0])}")
    report(told)
    if peer is not None:
        compare_rows(wat, peer, folder)
    if settings["spark"]:
        assert peer is not None, "spark=1 needs peer=1"
        spark = run([peer, script("cc2dataset_peer.py"), "spark", wat, folder / "spark"])["cpu_s"]
        ours = middle(told["ours"])
        print(f"through Spark {spark:.1f} CPU s, {spark / ours:.1f} times ours")
        result("extract_spark_cpu_s", ours, peer=spark, target=spark / TIMES_SPARK)
    floor, ours = middle(told["floor"]), middle(told["ours"])
    if peer is not None:
        theirs = middle(told["peer"])
        pairs, python = middle(told["pairs"]), middle(told["python"])
        print(f"without compiled code {python:.2f} s: {theirs / python:.2f} times cc2dataset")
        result("extract_pairs_cpu_s", pairs, peer=theirs, floor=floor, target=theirs / TIMES_PEER)
        print(f"ours {ours:.2f} s: {theirs / ours:.2f} times cc2dataset, {ours / floor:.1f} times the floor")
        result("extract_cpu_s", ours, peer=theirs, floor=floor, target=theirs / TIMES_PEER)
    result("extract_floor_cpu_s", ours, floor=floor, target=TIMES_FLOOR * floor)


def report(told: dict[str, list[dict]]) -> None:
    """The result line of memory: it must not grow with the file."""
    once, twice = (max(value["peak_mb"] for value in told[name]) for name in ("ours", "ours_twice"))
    print(f"memory {once:.0f} MB, of a file twice as large {twice:.0f} MB")
    result("extract_memory", max(once, twice), floor=once, target=MAX_MEMORY_MB, unit="MB")


def compare_rows(wat: Path, peer: Path, folder: Path) -> None:
    """Prints how our rows and the peer's differ.

    Raises:
        SystemExit: a difference has no explanation.
    """
    from extract_rows import compare

    once = [sys.executable, script("extract_once.py")]
    run([*once, "python", wat, folder / "python.parquet", "1"])
    run([*once, "ours", wat, folder / "ours.parquet", "1"])
    if (folder / "python.parquet").read_bytes() != (folder / "ours.parquet").read_bytes():
        raise SystemExit("compiled code gives other rows than Python")
    run([peer, script("cc2dataset_peer.py"), "rows", wat, folder / "peer.jsonl"])
    found = compare(folder / "ours.parquet", folder / "peer.jsonl")
    print("rows: " + ", ".join(f"{count} {explanation}" for explanation, count in found.most_common()))
    if found["unexplained"] or found["only ours"]:
        raise SystemExit("rows differ for no known reason; see benchmarks/extract_rows.py")


def prepare_peer(folder: Path, *, spark: bool) -> Path:
    """The Python of the peer's virtual environment, made when it is not there."""
    python = folder / "bin" / "python"
    if not list(folder.glob("lib/*/site-packages/cc2dataset")):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", PEER], check=True)
        subprocess.run([*pip, *PEER_NEEDS], check=True)
    if spark and not list(folder.glob("lib/*/site-packages/pyspark")):
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", PEER], check=True)
    return python


def run(command: list) -> dict:
    """What a process printed last, with the peak of its resident memory.

    Raises:
        SystemExit: it failed.
    """
    words = [str(word) for word in command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL if "spark" in words else None  # Spark draws progress bars there
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=quiet, env=environment, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return json.loads(printed.splitlines()[-1]) | {"peak_mb": usage.ru_maxrss / 1024}


def script(name: str) -> Path:
    """A file beside this one."""
    return Path(__file__).with_name(name)


def middle(values: list[dict]) -> float:
    """The median CPU time."""
    return statistics.median(value["cpu_s"] for value in values)


def shown(value: dict) -> str:
    """Everything else that a run told."""
    return ", ".join(f"{key} {word}" for key, word in value.items() if key not in ("cpu_s", "peak_mb"))


def result(name: str, ours: float, *, unit: str = "s", **others: float) -> None:
    """Prints a result line."""
    print(
        f"result name={name} ours={ours:.3f} {' '.join(f'{k}={v:.3f}' for k, v in others.items())} unit={unit}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])

"""Global deduplication against DuckDB, Polars and the floor of reading and writing: CPU seconds and peak memory.

    python benchmarks/deduplicate.py [rows=20000000] [layout=full] [repeats=1] [peers=duckdb,polars] [folder=FOLDER]

The rows are made here, 30% of them repeat a pair; benchmarks/deduplicate_rows.py says how they look. All sides read
the same files and write parquet with zstd level 1. `ours` is the whole stage with two workers: rows in the order of
their uids, the earliest page's row of each pair, download shards of 10,000 rows with their checksums. The peers have
two threads, keep any row of a pair and write in any order; DuckDB has 2 GB and is installed in an environment of its
own, made when it is not there; Polars has what it takes. CPU seconds and the peak of resident memory are the kernel's,
of each side's processes: CPU of all together, memory of the largest. Sides run in turn; figures are medians.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.evaluate_runs import ROOT, Cost, run

DUCKDB = "duckdb==2.0.0"
DEFAULTS = {"rows": "20000000", "layout": "full", "repeats": "1", "peers": "duckdb,polars", "folder": "",
            "duckdb_python": ""}  # fmt: skip
DUPLICATES = 0.3
MEMORY_GB = 2
ROWS_PER_FILE = 312_500
ROWS_PER_RUN = 2_500_000


def main(words: list[str]) -> None:
    """Makes the rows, runs all sides in turn, prints the table and the result lines."""
    settings = {**DEFAULTS, **dict(word.split("=", 1) for word in words)}
    unknown = settings.keys() - DEFAULTS.keys()
    if unknown:
        raise SystemExit(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(DEFAULTS)}")
    peers = [name for name in settings["peers"].split(",") if name]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(settings["folder"] or made).resolve()
        rows = int(settings["rows"])
        unique = make_rows(folder, rows, settings["layout"])
        costs: dict[str, list[Cost]] = {}
        for _ in range(int(settings["repeats"])):
            for side in ("floor", *peers, "ours"):
                try:
                    cost, found = run_side(side, folder, unique / rows, settings["duckdb_python"])
                except SystemExit as error:  # a peer that runs out of memory, say
                    if side not in peers:
                        raise
                    print(f"{side} failed: {error}", flush=True)
                    continue
                if side != "floor" and found != unique:
                    raise SystemExit(f"{side} kept {found} rows, {unique} pairs are there")
                costs.setdefault(side, []).append(cost)
                print(
                    f"{side}: {cost.cpu_s:.1f} CPU s, {cost.wall_s:.1f} s wall, {cost.peak_memory_mb:.0f} MB",
                    flush=True,
                )
    show(rows, costs, [peer for peer in peers if peer in costs])


def make_rows(folder: Path, rows: int, layout: str) -> int:
    """Makes the candidates in another process, so that its memory is not counted; the number of pairs."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.deduplicate_rows import write_rows\n"
        f"write_rows(Path({str(folder / 'candidates')!r}), rows={rows}, files={max(2, rows // ROWS_PER_FILE)}, "
        f"layout={layout!r}, duplicates={DUPLICATES})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    result = json.loads((folder / "candidates" / "made.json").read_text())["result"]
    files = list((folder / "candidates").glob("*.parquet"))
    size = sum(path.stat().st_size for path in files)
    print(
        f"{rows} rows, {result['unique']} pairs, {result['raw_bytes']:.0f} bytes a row, {len(files)} files of "
        f"{size / 1e6:.0f} MB in all, layout {layout}", flush=True,
    )  # fmt: skip
    return result["unique"]


def run_side(side: str, folder: Path, kept_fraction: float, duckdb_python: str) -> tuple[Cost, int]:
    """Runs one side; what it cost and how many rows it kept."""
    out = folder / side
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    here = Path(__file__).parent
    candidates, threads = str(folder / "candidates"), "2"
    if side == "ours":
        os.symlink(candidates, out / "candidates")
        command = [
            sys.executable,
            str(here / "deduplicate_ours.py"),
            "ours",
            str(out),
            threads,
            str(ROWS_PER_RUN),
        ]
    elif side == "floor":
        command = [
            sys.executable,
            str(here / "deduplicate_ours.py"),
            "floor",
            candidates,
            str(out),
            str(kept_fraction),
        ]
    elif side == "duckdb":
        python = duckdb_python or str(prepare_duckdb(ROOT / "runs" / "benchmarks" / "duckdb"))
        command = [python, str(here / "duckdb_peer.py"), candidates, str(out / "rows"), str(out / "spill"), threads,
                   str(MEMORY_GB)]  # fmt: skip
    elif side == "polars":
        os.environ["POLARS_MAX_THREADS"] = threads
        command = [sys.executable, str(here / "polars_peer.py"), candidates, str(out / "rows.parquet")]
    else:
        raise SystemExit(f"unknown peer {side!r}; known: duckdb, polars")
    told = folder / f"{side}.txt"
    cost = run(command, told, threads=1, device="cpu")
    lines = [
        line for line in told.read_text().splitlines() if "%|" not in line and line.strip()
    ]  # no progress bars
    print(*(f"    {line}" for line in lines), sep="\n", flush=True)
    rows = next(int(line.split()[1]) for line in lines if line.startswith("rows "))
    shutil.rmtree(out)
    return cost, rows


def prepare_duckdb(folder: Path) -> Path:
    """The Python of DuckDB's virtual environment, made when it is not there."""
    if not list(folder.glob("lib/*/site-packages/duckdb")):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run(
            [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", DUCKDB], check=True
        )
    return folder / "bin" / "python"


def show(rows: int, costs: dict[str, list[Cost]], peers: list[str]) -> None:
    """The result lines. The target is to take less than the peer."""
    cpu = {side: statistics.median(cost.cpu_s for cost in found) for side, found in costs.items()}
    memory = {side: statistics.median(cost.peak_memory_mb for cost in found) for side, found in costs.items()}
    for side in ("ours", *peers):
        print(
            f"{side}: {cpu[side] / rows * 1e6:.2f} CPU s a million rows, {cpu[side] / cpu['floor']:.1f} times the floor"
        )
    peer = min(peers, key=cpu.__getitem__, default=None)
    named = f" peer={cpu[peer]:.1f} target={cpu[peer]:.1f}" if peer else ""
    print(f"result name=deduplicate_cpu_s ours={cpu['ours']:.1f}{named} floor={cpu['floor']:.1f} unit=s")
    lean = min(peers, key=memory.__getitem__, default=None)
    named = f" peer={memory[lean]:.0f} target={memory[lean]:.0f}" if lean else ""
    print(
        f"result name=deduplicate_memory_mb ours={memory['ours']:.0f}{named} floor={memory['floor']:.0f} unit=MB"
    )


if __name__ == "__main__":
    main(sys.argv[1:])

"""Selecting from tags against DuckDB and Polars on the whole set: CPU seconds and peak memory.

    python benchmarks/selection.py [rows=10000000] [rows_per_shard=10000] [recipes=datacomp_basic,...]
        [peers=duckdb,polars] [repeats=1] [folder=FOLDER] [duckdb_python=PYTHON]

The tagged run is made here, see benchmarks/selection_rows.py. `ours` is the stage as the pipeline runs it: tables
joined by uid shard by shard, each row with the reason it is dropped for, kept uids sorted in DataComp's form. The peers
join and sort the whole set and write the kept uids only; DuckDB has 2 GB and spills, Polars has what it takes. The
number of kept rows must be the same. Balancing (metaclip) is measured without a peer: their random draws are others.
Sides run in turn with two threads; figures are medians. (A script called select.py would hide Python's own module.)
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.deduplicate import prepare_duckdb
from benchmarks.evaluate_runs import ROOT, Cost, run

DEFAULTS = {
    "rows": "10000000", "rows_per_shard": "10000", "recipes": "datacomp_basic,datacomp_clip_l14_30,metaclip",
    "peers": "duckdb,polars", "repeats": "1", "folder": "", "duckdb_python": "",
}  # fmt: skip
WITHOUT_PEER = ("metaclip",)
MEMORY_GB = 2


def main(words: list[str]) -> None:
    """Makes the run, selects by every recipe with all sides in turn, prints the result lines."""
    settings = {**DEFAULTS, **dict(word.split("=", 1) for word in words)}
    unknown = settings.keys() - DEFAULTS.keys()
    if unknown:
        raise SystemExit(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(DEFAULTS)}")
    peers = [name for name in settings["peers"].split(",") if name]
    os.environ["POLARS_MAX_THREADS"] = "2"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(settings["folder"] or made).resolve()
        rows = int(settings["rows"])
        command = [sys.executable, str(ROOT / "benchmarks" / "selection_rows.py"), str(folder), str(rows)]
        subprocess.run([*command, settings["rows_per_shard"]], check=True)
        size = sum(path.stat().st_size for path in folder.rglob("*.parquet") if "subset" not in path.parts)
        print(
            f"{rows} rows, shards of {settings['rows_per_shard']}, {size / 1e6:.0f} MB of tables", flush=True
        )
        for recipe in settings["recipes"].split(","):
            sides = ["ours", *([] if recipe in WITHOUT_PEER else peers)]
            costs: dict[str, list[Cost]] = {side: [] for side in sides}
            for _ in range(int(settings["repeats"])):
                kept = {}
                for side in sides:
                    cost, kept[side] = run_side(side, recipe, folder, settings["duckdb_python"])
                    costs[side].append(cost)
                    print(
                        f"{recipe} {side}: {kept[side]} kept, {cost.cpu_s:.1f} CPU s, {cost.wall_s:.1f} s wall, "
                        f"{cost.peak_memory_mb:.0f} MB", flush=True,
                    )  # fmt: skip
                if len(set(kept.values())) != 1:
                    raise SystemExit(f"{recipe}: the sides kept different numbers of rows: {kept}")
            show(recipe, rows, costs)


def run_side(side: str, recipe: str, folder: Path, duckdb_python: str) -> tuple[Cost, int]:
    """Runs one side; what it cost and how many rows it kept."""
    here = Path(__file__).parent
    told = folder / f"{side}.txt"
    if side == "ours":
        command = [sys.executable, str(here / "selection_ours.py"), str(folder), recipe]
    elif side in ("duckdb", "polars"):
        python = sys.executable
        if side == "duckdb":
            python = duckdb_python or str(prepare_duckdb(ROOT / "runs" / "benchmarks" / "duckdb"))
        out = str(folder / f"{side}.parquet")
        command = [
            python,
            str(here / "selection_peer.py"),
            side,
            str(folder),
            recipe,
            out,
            "2",
            str(MEMORY_GB),
        ]
    else:
        raise SystemExit(f"unknown peer {side!r}; known: duckdb, polars")
    cost = run(command, told, threads=1, device="cpu")
    line = next(line for line in told.read_text().splitlines() if line.startswith("rows "))
    for left in (folder / f"{side}.parquet", folder / f"{side}.parquet.spill", folder / "subset"):
        shutil.rmtree(left, ignore_errors=True)
        if left.is_file():
            left.unlink()
    return cost, int(line.split()[-1])


def show(recipe: str, rows: int, costs: dict[str, list[Cost]]) -> None:
    """The result lines of one recipe. The target is to take less than the peer."""
    for measure, unit in (("cpu_s", "s"), ("wall_s", "s"), ("peak_memory_mb", "MB")):
        found = {
            side: statistics.median(getattr(cost, measure) for cost in each) for side, each in costs.items()
        }
        ours = found.pop("ours")
        best = f" peer={min(found.values()):.1f} target={min(found.values()):.1f}" if found else ""
        print(f"result name=select_{recipe}_{measure} ours={ours:.1f}{best} rows={rows} unit={unit}")


if __name__ == "__main__":
    main(sys.argv[1:])

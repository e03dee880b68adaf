"""One training run, ours or the peer's, in a process of its own, with what it cost; for benchmarks/train.py.

Speed, loss and waiting for data come from the log that each writes itself. CPU time and memory are those of the process
and its workers, read from /proc while it runs (Linux), so that start-up and the end can be left out.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 0.1  # 10 s of steady training are then measured to 1%
MEMORY_EVERY_S = 1.0  # adding up shared pages takes milliseconds

PEER_LINE = re.compile(
    r"Train Epoch: \d+ \[\s*(?P<seen>\d+)/.*?Data \(t\): (?P<data>[\d.]+) Batch \(t\): (?P<batch>[\d.]+),"
    r".*? Loss: (?P<loss>[\d.einfa+-]+) \("
)


@dataclass(frozen=True)
class Window:
    """What one line of a log says: the steps since the line before."""

    samples_seen: int
    samples_per_s: float
    loss: float
    data_wait: float  # fraction of the time, 0 to 1
    mfu: float | None  # as the run counts it itself


@dataclass(frozen=True)
class Run:
    """One run's figures; medians are over the windows after the first `skip` steps."""

    windows: list[Window]  # all of them
    samples_per_s: float
    cpu_ms_per_sample: float  # steady, all processes; nan when the run was too short to tell
    cpu_s: float  # of everything, start and end too
    peak_memory_mb: float  # resident, of all processes, shared pages counted once
    peak_gpu_gb: float
    data_wait: float
    mfu: float | None


def run_ours(words: list[str], folder: Path, *, threads: int, batch: int, skip: int) -> Run:
    """Runs `python -m train` with these overrides.

    Args:
        words: Hydra overrides.
        folder: of the run; made by it.
        threads: OMP_NUM_THREADS.
        batch: samples a step.
        skip: steps to leave out at the start.
    """
    command = [sys.executable, "-m", "train", *words, f"run_folder={folder}", "run_name=benchmark"]
    meter = _watch(
        command, _environment(threads), folder.with_suffix(".out"), lambda: our_log(folder / "metrics.jsonl")
    )
    peak_gb = 0.0
    if (records := _records(folder / "metrics.jsonl")) and "device=cuda" in words:
        peak_gb = max(record["peak_memory_gb"] for record in records)
    return _figures(our_log(folder / "metrics.jsonl"), meter, peak_gb, batch, skip)


def run_peer(
    words: list[str], folder: Path, models: Path, overlay: Path, *, threads: int, batch: int, skip: int
) -> Run:
    """Runs open_clip_train with these arguments.

    Args:
        words: arguments of open_clip_train.main.
        folder: of its logs.
        models: the folder of a model config to add.
        overlay: put first on its path: holds the older webdataset that it needs.
        threads: OMP_NUM_THREADS.
        batch: samples a step.
        skip: steps to leave out at the start.
    """
    launcher = str(Path(__file__).with_name("open_clip_peer.py"))
    command = [sys.executable, launcher, str(models), *words, "--logs", str(folder), "--name", "benchmark"]
    out, log = folder.with_suffix(".out"), folder / "benchmark" / "out.log"
    meter = _watch(command, _environment(threads, overlay), out, lambda: peer_log(log, batch))
    said = [json.loads(line) for line in out.read_text().splitlines() if line.startswith('{"peak_gpu_bytes"')]
    return _figures(peer_log(log, batch), meter, said[-1]["peak_gpu_bytes"] / 1e9, batch, skip)


def our_log(path: Path) -> list[Window]:
    """The lines of our metrics.jsonl so far."""
    return [
        Window(
            record["samples_seen"],
            record["samples_per_s"],
            record["loss"],
            record["data_wait_fraction"],
            record["mfu"],
        )
        for record in _records(path)
    ]


def peer_log(path: Path, batch: int) -> list[Window]:
    """The lines of the peer's out.log so far; its times are means since the line before, to a millisecond."""
    if not path.is_file():
        return []
    found = [match for line in path.read_text().splitlines() if (match := PEER_LINE.search(line))]
    return [
        Window(
            int(match["seen"]),
            batch / max(float(match["batch"]), 5e-4),
            float(match["loss"]),
            float(match["data"]) / max(float(match["batch"]), 5e-4),
            None,
        )
        for match in found
    ]


def _records(path: Path) -> list[dict]:
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if "loss" in record]


@dataclass
class _Meter:
    """Of a process and its workers: (samples seen, CPU seconds) as they were seen to change, and the totals."""

    marks: list[tuple[int, float]]
    cpu_s: float = 0.0
    peak_memory_mb: float = 0.0


def _environment(threads: int, overlay: Path | None = None) -> dict[str, str]:
    paths = [str(overlay)] if overlay else []
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def _watch(
    command: list[str], environment: dict[str, str], out: Path, log: Callable[[], list[Window]]
) -> _Meter:
    """Runs a command to its end, reading its costs as it goes."""
    meter, seen, memory_at = _Meter([]), 0, 0.0
    with open(out, "wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(POLL_S)
            pids = _tree(process.pid)
            cpu_s = sum(map(_cpu_seconds, pids))
            meter.cpu_s = max(meter.cpu_s, cpu_s)
            if (windows := log()) and windows[-1].samples_seen > seen:
                seen = windows[-1].samples_seen
                meter.marks.append((seen, cpu_s))
            if time.monotonic() - memory_at > MEMORY_EVERY_S:
                memory_at = time.monotonic()
                meter.peak_memory_mb = max(meter.peak_memory_mb, sum(map(_memory_mb, pids)))
    if process.returncode:
        raise SystemExit(
            f"{' '.join(command[:4])} ... ended with {process.returncode}:\n{out.read_text()[-3000:]}"
        )
    return meter


def _figures(windows: list[Window], meter: _Meter, peak_gpu_gb: float, batch: int, skip: int) -> Run:
    if not windows:
        raise SystemExit("the run wrote no line of its log")
    steady = [window for window in windows if window.samples_seen > skip * batch] or windows
    marks = [mark for mark in meter.marks if mark[0] > skip * batch]
    cpu_ms = float("nan")
    if len(marks) > 1 and marks[-1][0] > marks[0][0]:
        cpu_ms = 1e3 * (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])
    counted = [window.mfu for window in steady if window.mfu is not None]
    return Run(
        windows=windows,
        samples_per_s=statistics.median(window.samples_per_s for window in steady),
        cpu_ms_per_sample=cpu_ms,
        cpu_s=meter.cpu_s,
        peak_memory_mb=meter.peak_memory_mb,
        peak_gpu_gb=peak_gpu_gb,
        data_wait=statistics.fmean(window.data_wait for window in steady),
        mfu=statistics.median(counted) if counted else None,
    )


def _tree(pid: int) -> list[int]:
    """A process and all that came of it."""
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        for path in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                left += map(int, path.read_text().split())
            except OSError:  # it has ended
                continue
    return found


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    # utime, stime, and those of children that ended: fields 14 to 17 of proc(5), after the name in brackets.
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0

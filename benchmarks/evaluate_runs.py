"""One evaluation, ours or clip_benchmark's, in a process of its own, with its cost; for benchmarks/evaluate.py.

CPU seconds and the peak of resident memory are what the kernel counted for the process when it ended (wait4), loader
processes that it waited for included; the peak is that of the largest process. This file must not import torch: Linux
counts the memory of the parent into the peak of a child that it starts.
"""

import json
import os
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

ZERO_SHOT = ("imagenet1k", "imagenetv2", "gtsrb", "flowers", "eurosat")
TRAINED = ("gtsrb", "eurosat")  # of these, with train and val splits too
RETRIEVAL = "captions"
FEW, MANY = "few_classes", "many_classes"  # the same images; only the number of classes differs
FEW_CLASSES = 2

PEER_VERSION = "clip-benchmark==1.6.2"
PEER_NUMPY = "numpy>=2,<2.4"  # it calls float() on an array of one element, which 2.4 refuses


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    cpu_s: float
    wall_s: float
    peak_memory_mb: float


def prepare_peer(folder: Path) -> Path:
    """The Python of the peer's virtual environment, made when it is not there.

    clip_benchmark and its older numpy are installed in it; all else, torch and open_clip above all, is seen through
    from this environment, so that both sides compute with the same libraries.
    """
    python = folder / "bin" / "python"
    if not list(folder.glob("lib/*/site-packages/clip_benchmark")):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        (site,) = folder.glob("lib/*/site-packages")
        (site / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        words = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--ignore-installed",
            PEER_VERSION,
            PEER_NUMPY,
        ]
        subprocess.run([str(python), *words], check=True)
    return python


def run_ours(words: list[str], out: Path, *, threads: int, device: str) -> Cost:
    """Runs `python -m evaluate` with these overrides; its output goes to the file `out`."""
    command = [sys.executable, "-m", "evaluate", *words, f"device={device}"]
    return run(command, out, threads=threads, device=device)


def run_peer(commands: list[list[str]], python: Path, out: Path, *, threads: int, device: str) -> Cost:
    """Runs `clip_benchmark eval` with each of these lists of arguments, all in one process."""
    listed = out.with_suffix(".json")
    listed.write_text(json.dumps(commands))
    launcher = str(Path(__file__).with_name("clip_benchmark_peer.py"))
    return run([str(python), "-O", launcher, str(listed)], out, threads=threads, device=device)


def run(command: list[str], out: Path, *, threads: int, device: str) -> Cost:
    """Runs a command in the checkout to its end.

    Raises:
        SystemExit: it ended with another status than 0; with the end of what it said.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    start = time.perf_counter()
    with open(out, "wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        told = out.read_text(errors="replace")[-3000:]
        raise SystemExit(f"{' '.join(command[:4])} ... ended with {process.returncode}:\n{told}")
    # ru_maxrss is in kB on Linux.
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss / 1024)


def our_scores(output: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Metrics of each (data set, task) that our command wrote to an output folder."""
    scores = {}
    for path in sorted(output.glob("results/*/*.json")):
        result: dict[str, Any] = json.loads(path.read_text())
        metrics = {name: entry["value"] for name, entry in result["metrics"].items()}
        scores[result["dataset"], result["task"]] = metrics
    return scores


def peer_scores(folder: Path, task: str) -> dict[str, dict[str, float]]:
    """Metrics of each data set that clip_benchmark wrote for one of its tasks, as `<data set>.<task>.json`."""
    found = sorted(folder.glob(f"*.{task}.json"))
    return {
        path.name.removesuffix(f".{task}.json"): json.loads(path.read_text())["metrics"] for path in found
    }

"""Runs shards as job arrays on a Slurm cluster: a task is a node's worth of workers, and some shards one after another.

The tasks publish what they make themselves, in the stage's folder, so this process only hands out, watches and counts:
it may end at any moment, and the same command, here or elsewhere, finds the arrays that are still in the queue and
waits for them. What a task could not do, because its node was lost, its memory ran out or somebody cancelled it, is
handed out again, those shards only. sbatch and squeue are called directly: a task is told by its number what to do, so
that nothing but the shards' own files has to come back (docs/slurm.md says why this is not submitit).
"""

import hashlib
import logging
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crawl2clip import storage
from crawl2clip.cluster import explain_refusal, job_environment, load_cluster, sbatch_options
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import atomic_path, read_json, write_json
from crawl2clip.submit import CHECKOUT, partitions
from data_pipeline.completion import finished_names
from data_pipeline.stage import Outcome, Shard, Stage

logger = logging.getLogger(__name__)

ARRAYS = CHECKOUT / "runs" / "slurm" / "arrays"
"""Of stages in an object store, which has no place for logs; those of others are in the stage's folder."""
JOB_NAME = "job.json"
_ENDED = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "DEADLINE", "BOOT_FAIL",
}  # fmt: skip
_SECOND_LOOK_S = 3.0  # a task that is being requeued is, for a moment, in a state that says that it has ended
_LONGEST_PAUSE_S = 30.0
_SILENCE_S = 900.0  # how long Slurm may not answer


@dataclass
class Array:
    """A job array.

    Attributes:
        folder: `job.json`, `stage.pickle`, `task-N.pickle` (its shards), `ended-N.json` (what became of it), `N.log`.
        job: Slurm's number.
        tasks: names of the shards of each task.
        heard: tasks that have said how they ended.
    """

    folder: Path
    job: str
    tasks: list[list[str]]
    heard: set[int] = field(default_factory=set)


class SlurmExecutor:
    """Hands shards out to a cluster.

    Args:
        cluster: its file: a name in configs/cluster, or a path.
        shards_per_task: shards that one task of an array makes.
        max_parallel_tasks: tasks at once; None: as many as Slurm starts.
        retries: further tries of a shard within its task, and of a task that was lost.
        shard_timeout_s: seconds one try of a shard may take.
    """

    def __init__(
        self,
        *,
        cluster: str,
        shards_per_task: int,
        max_parallel_tasks: int | None,
        retries: int,
        shard_timeout_s: float,
    ) -> None:
        self.source = cluster
        self.cluster = load_cluster(cluster)
        self.shards_per_task = shards_per_task
        self.max_parallel_tasks = max_parallel_tasks
        self.retries = retries
        self.shard_timeout_s = shard_timeout_s

    def run(self, stage: Stage, shards: Sequence[Shard]) -> Iterator[Outcome]:
        """Yields one outcome a shard, as they end.

        Raises:
            ConfigError: Slurm refuses the job.
            DataError: the stage's workers cannot be set up, or Slurm does not answer any more.
        """
        left = {shard.name: shard for shard in shards}
        lost: dict[str, int] = {}  # shard -> tasks that were lost with it
        bad_nodes: set[str] = set()
        arrays = self._found_in_queue(stage)
        for array in arrays:
            logger.info("%s: waiting for job array %s, which is in the queue already", stage.name, array.job)
        try:
            while left:
                watched = {name for array in arrays for task in array.tasks for name in task}
                arrays += self._hand_out(
                    stage, [left[name] for name in left if name not in watched], bad_nodes
                )
                for name, error in self._watch(stage, arrays, set(left), bad_nodes):
                    yield Outcome(left.pop(name), error)
                for name, reason in self._lost(arrays, left):
                    lost[name] = lost.get(name, 0) + 1
                    if lost[name] > self.retries:
                        yield Outcome(left.pop(name), reason)
                    else:
                        logger.info("%s: shard %s will be handed out again: %s", stage.name, name, reason)
                arrays = []
        except GeneratorExit:
            for array in arrays:
                _call(["scancel", array.job])
            raise
        except KeyboardInterrupt:
            jobs = " ".join(array.job for array in arrays)
            logger.warning(
                "%s: job arrays go on: the same command waits for them, `scancel %s` ends them",
                stage.name,
                jobs,
            )
            raise

    def _found_in_queue(self, stage: Stage) -> list[Array]:
        return [array for array in read_arrays(stage.folder) if tasks_in_queue(array.job)]

    def _hand_out(self, stage: Stage, shards: list[Shard], bad_nodes: set[str]) -> list[Array]:
        size = self.shards_per_task
        tasks = [shards[start : start + size] for start in range(0, len(shards), size)]
        largest = max_array_size() if tasks else 1
        return [
            self._submit(stage, tasks[start : start + largest], bad_nodes)
            for start in range(0, len(tasks), largest)
        ]

    def _submit(self, stage: Stage, tasks: list[list[Shard]], bad_nodes: set[str]) -> Array:
        parent = arrays_folder(stage.folder)
        parent.mkdir(parents=True, exist_ok=True)
        folder = parent / str(time.time_ns())
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            (temporary / "stage.pickle").write_bytes(pickle.dumps(stage))
            for number, task in enumerate(tasks):
                (temporary / f"task-{number}.pickle").write_bytes(pickle.dumps(task))
            settings = {"retries": self.retries, "shard_timeout_s": self.shard_timeout_s}
            write_json(temporary / "settings.json", settings)
        nodes = self.cluster.gpu if stage.gpus_per_worker else self.cluster.cpu
        at_once = f"%{self.max_parallel_tasks}" if self.max_parallel_tasks else ""
        line = [
            "sbatch", "--parsable", f"--array=0-{len(tasks) - 1}{at_once}", f"--chdir={CHECKOUT}",
            f"--job-name={re.sub(r'[^A-Za-z0-9_.-]', '-', stage.name)}", f"--output={folder}/%a.log",
            *([f"--exclude={','.join(sorted(bad_nodes))}"] if bad_nodes else []),
            *sbatch_options(self.cluster, nodes),
            str(CHECKOUT / "slurm" / "array.sbatch"), str(folder),
        ]  # fmt: skip
        python = os.environ.get("CRAWL2CLIP_PYTHON", sys.executable)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))
        }
        environment |= job_environment(self.cluster, CHECKOUT, python)
        if "SLURM_CONF" in os.environ:
            environment["SLURM_CONF"] = os.environ["SLURM_CONF"]
        environment["CRAWL2CLIP_NEEDS_GPU"] = str(int(bool(stage.gpus_per_worker and nodes.gpus)))
        done = _call(line, environment)
        if done.returncode:
            raise ConfigError(explain_refusal(done.stderr, f"executor.cluster={self.source}", partitions()))
        job = done.stdout.strip().partition(";")[0]
        names = [[shard.name for shard in task] for task in tasks]
        write_json(
            folder / JOB_NAME, {"job": job, "stage": stage.name, "time": round(time.time()), "tasks": names}
        )
        logger.info(
            "%s: %d shards in %d tasks, job array %s", stage.name, sum(map(len, names)), len(names), job
        )
        return Array(folder, job, names)

    def _watch(
        self, stage: Stage, arrays: list[Array], waiting: set[str], bad_nodes: set[str]
    ) -> Iterator[tuple[str, str | None]]:
        """Yields (shard, error or None) as they end, until no array has a task in the queue."""
        started = time.monotonic()
        running = True
        while running and waiting:
            # Before the look at the files: what a task writes before it leaves the queue is then seen.
            running = _any_in_queue(arrays)
            if not running:
                time.sleep(_SECOND_LOOK_S)
                running = _any_in_queue(arrays)
            for name in sorted(waiting & finished_names(stage.folder)):
                waiting.discard(name)
                yield name, None
            for array in arrays:
                for ended in _news(array):
                    if ended.get("setup"):
                        for each in arrays:
                            _call(["scancel", each.job])
                        raise DataError(f"stage {stage.name!r} cannot start its workers: {ended['setup']}")
                    if ended.get("node_problem"):
                        bad_nodes.add(ended["node"])
                    for name, error in ended.get("failed", {}).items():
                        if name in waiting:
                            waiting.discard(name)
                            yield name, error
            if running and waiting:
                time.sleep(min(_LONGEST_PAUSE_S, 0.5 + (time.monotonic() - started) / 20))

    def _lost(self, arrays: list[Array], left: dict[str, Shard]) -> list[tuple[str, str]]:
        """Shards that no task has made or failed, each with what became of its task."""
        return [
            (name, _reason(array, number))
            for array in arrays
            for number, task in enumerate(array.tasks)
            for name in task
            if name in left
        ]


def arrays_folder(stage_folder: Path) -> Path:
    """Where the arrays of a stage are, whichever machine asks."""
    address = storage.address_of(stage_folder)
    if address is None:
        return stage_folder / ".slurm"
    return ARRAYS / f"{stage_folder.name}-{hashlib.sha256(address.encode()).hexdigest()[:16]}"


def read_arrays(stage_folder: Path) -> list[Array]:
    """The arrays that were handed out for a stage, oldest first."""
    arrays = []
    for path in sorted(arrays_folder(stage_folder).glob(f"*/{JOB_NAME}")):
        told = read_json(path)
        arrays.append(Array(path.parent, told["job"], told["tasks"]))
    return arrays


def tasks_in_queue(job: str, silence_s: float = _SILENCE_S) -> dict[str, str]:
    """task -> its state and, when it waits, why; empty when the array has ended.

    Raises:
        DataError: Slurm does not answer for `silence_s` seconds.
    """
    deadline = time.monotonic() + silence_s
    while True:
        asked = _call(["squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%K %T %r"])
        if asked.returncode == 0:
            tasks = (line.split(maxsplit=1) for line in asked.stdout.splitlines() if line.strip())
            return {number: state for number, state in tasks if state.split()[0] not in _ENDED}
        if "Invalid job id" in asked.stderr:
            return {}
        if time.monotonic() > deadline:
            raise DataError(
                f"squeue does not answer ({asked.stderr.strip()}); the arrays go on: run the same command again when "
                "Slurm is back, it waits for them"
            )
        time.sleep(5)


def _any_in_queue(arrays: list[Array]) -> bool:
    return any(tasks_in_queue(array.job) for array in arrays)


def max_array_size() -> int:
    """The most tasks that an array may have here."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _call(["scontrol", "show", "config"]).stdout)
    return int(found[1]) - 1 if found and int(found[1]) > 1 else 1000


def _news(array: Array) -> list[dict[str, Any]]:
    """What tasks said at their end since the last look."""
    news = []
    for number in range(len(array.tasks)):
        path = array.folder / f"ended-{number}.json"
        if number not in array.heard and path.exists():
            array.heard.add(number)
            news.append(read_json(path))
    return news


def _reason(array: Array, number: int) -> str:
    """Why a task did not make its shards, as far as Slurm and its log tell."""
    ended = array.folder / f"ended-{number}.json"
    if ended.exists():
        told = read_json(ended).get("node_problem")
        if told:
            return f"{read_json(ended)['node']}: {told}"
    shown = _call(["scontrol", "-o", "show", "job", f"{array.job}_{number}"]).stdout
    words = dict(re.findall(r"(\S+?)=(\S*)", shown))
    state = (
        words.get("JobState")
        or _call(["sacct", "-n", "-X", "-j", f"{array.job}_{number}", "-o", "state"]).stdout
    )
    log = array.folder / f"{number}.log"
    if not str(state).strip() and not log.exists():
        return f"task {array.job}_{number} left the queue before it started: somebody cancelled it"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no log")
    code = f", exit {words['ExitCode']}" if "ExitCode" in words else ""
    return f"task {array.job}_{number} ended ({str(state).strip() or 'unknown to Slurm'}{code}); {log}: {last[:200]}"


def _call(line: list[str], environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError as error:
        if line[0] == "sacct":
            return subprocess.CompletedProcess(line, 1, "", "")
        raise ConfigError(
            f"executor=slurm needs {line[0]}, which is not found; run on a login node of the cluster, or load its "
            "slurm module; executor=local runs on this machine"
        ) from error
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(line, 1, "", "no answer within 120 s")

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
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import StringIO
from itertools import chain, islice
from pathlib import Path
from typing import Any

from crawl2clip import storage
from crawl2clip.cluster import explain_refusal, job_environment, load_cluster, sbatch_options
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import atomic_path, read_json, write_json
from crawl2clip.submit import CHECKOUT, partitions
from data_pipeline.completion import finished_names
from data_pipeline.executors.shards_left import ShardsLeft
from data_pipeline.name_set import NameSet
from data_pipeline.stage import Outcome, Shard, Shards, Stage

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
        num_tasks: from 0 on.
        heard: of each task, whether it has said how it ended.
    """

    folder: Path
    job: str
    num_tasks: int
    heard: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.heard = bytearray(self.num_tasks)

    def shards(self, number: int) -> list[Shard]:
        """Those of a task."""
        return pickle.loads((self.folder / f"task-{number}.pickle").read_bytes())


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

    def run(self, stage: Stage, shards: Shards) -> Iterator[Outcome]:
        """Yields one outcome a shard, as they end.

        Raises:
            ConfigError: Slurm refuses the job.
            DataError: the stage's workers cannot be set up, or Slurm does not answer any more.
        """
        left = ShardsLeft(shards)
        bad_nodes: set[str] = set()
        arrays = self._found_in_queue(stage)
        for array in arrays:
            logger.info("%s: waiting for job array %s, which is in the queue already", stage.name, array.job)
        try:
            while left:
                watched = NameSet(shard.name for _, shards in _tasks(arrays) for shard in shards)
                waiting = (shard for _, shard in left if shard.name not in watched)
                arrays += self._hand_out(stage, waiting, bad_nodes)
                yield from self._watch(stage, arrays, left, bad_nodes)
                lost = self._lost(arrays, left)
                for place, shard in left if lost else ():
                    if shard.name not in lost:
                        continue
                    if left.lose(place) > self.retries:
                        left.end(place)
                        yield Outcome(shard, lost[shard.name])
                    else:
                        logger.info(
                            "%s: shard %s will be handed out again: %s",
                            stage.name,
                            shard.name,
                            lost[shard.name],
                        )
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

    def _hand_out(self, stage: Stage, shards: Iterator[Shard], bad_nodes: set[str]) -> list[Array]:
        tasks = iter(lambda: list(islice(shards, self.shards_per_task)), [])
        return [
            self._submit(stage, chain([first], islice(tasks, max_array_size() - 1)), bad_nodes)
            for first in tasks
        ]

    def _submit(self, stage: Stage, tasks: Iterable[list[Shard]], bad_nodes: set[str]) -> Array:
        parent = arrays_folder(stage.folder)
        parent.mkdir(parents=True, exist_ok=True)
        folder = parent / str(time.time_ns())
        num_tasks = num_shards = 0
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            (temporary / "stage.pickle").write_bytes(pickle.dumps(stage))
            for task in tasks:
                (temporary / f"task-{num_tasks}.pickle").write_bytes(pickle.dumps(task))
                num_tasks, num_shards = num_tasks + 1, num_shards + len(task)
            settings = {"retries": self.retries, "shard_timeout_s": self.shard_timeout_s}
            write_json(temporary / "settings.json", settings)
        nodes = self.cluster.gpu if stage.gpus_per_worker else self.cluster.cpu
        at_once = f"%{self.max_parallel_tasks}" if self.max_parallel_tasks else ""
        line = [
            "sbatch", "--parsable", f"--array=0-{num_tasks - 1}{at_once}", f"--chdir={CHECKOUT}",
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
        write_json(folder / JOB_NAME, {"job": job, "stage": stage.name, "time": round(time.time())})
        logger.info("%s: %d shards in %d tasks, job array %s", stage.name, num_shards, num_tasks, job)
        return Array(folder, job, num_tasks)

    def _watch(
        self, stage: Stage, arrays: list[Array], left: ShardsLeft, bad_nodes: set[str]
    ) -> Iterator[Outcome]:
        """Yields outcomes as shards end, until no array has a task in the queue."""
        started = time.monotonic()
        running, num_finished = True, -1
        while running and left:
            # Before the look at the files: what a task writes before it leaves the queue is then seen.
            running = _any_in_queue(arrays)
            if not running:
                time.sleep(_SECOND_LOOK_S)
                running = _any_in_queue(arrays)
            failed: dict[str, str] = {}
            for array in arrays:
                for ended in _news(array):
                    if ended.get("setup"):
                        for each in arrays:
                            _call(["scancel", each.job])
                        raise DataError(f"stage {stage.name!r} cannot start its workers: {ended['setup']}")
                    if ended.get("node_problem"):
                        bad_nodes.add(ended["node"])
                    failed |= ended.get("failed", {})
            finished = finished_names(stage.folder)
            for place, shard in left if failed or len(finished) != num_finished else ():
                if shard.name in finished or shard.name in failed:
                    left.end(place)
                    yield Outcome(shard, None if shard.name in finished else failed[shard.name])
            num_finished = len(finished)
            if running and left:
                time.sleep(min(_LONGEST_PAUSE_S, 0.5 + (time.monotonic() - started) / 20))

    def _lost(self, arrays: list[Array], left: ShardsLeft) -> dict[str, str]:
        """Shards that no task has made or failed, each with what became of its task."""
        lost: dict[str, str] = {}
        names = NameSet(shard.name for _, shard in left) if left else NameSet()
        for (array, number), shards in _tasks(arrays) if left else ():
            of_task = [shard.name for shard in shards if shard.name in names]
            if of_task:
                lost |= dict.fromkeys(of_task, _reason(array, number))
        return lost


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
        num_tasks = sum(name.startswith("task-") for name in storage.names_in(path.parent, ".pickle"))
        arrays.append(Array(path.parent, told["job"], num_tasks))
    return arrays


def _tasks(arrays: list[Array]) -> Iterator[tuple[tuple[Array, int], list[Shard]]]:
    """(array, number) and shards of every task."""
    for array in arrays:
        for number in range(array.num_tasks):
            yield (array, number), array.shards(number)


def tasks_in_queue(job: str, silence_s: float = _SILENCE_S) -> Counter[str]:
    """State, with the reason of tasks that wait -> tasks; empty when the array has ended.

    Raises:
        DataError: Slurm does not answer for `silence_s` seconds.
    """
    deadline = time.monotonic() + silence_s
    while True:
        asked = _call(["squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%K %T %r"])
        if asked.returncode == 0:
            states = (line.split(maxsplit=1)[1] for line in StringIO(asked.stdout) if line.strip())
            return Counter(state.strip() for state in states if state.split()[0] not in _ENDED)
        if "Invalid job id" in asked.stderr:
            return Counter()
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
    for number in range(array.num_tasks):
        path = array.folder / f"ended-{number}.json"
        if not array.heard[number] and path.exists():
            array.heard[number] = True
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

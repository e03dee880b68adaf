"""Runs shards on Ray, here or on a cluster: tasks for stages on cores, an actor a GPU for those with a model.

Either way the process that made a shard publishes it, and a stage is set up once a process: by an actor when it
starts, by a task when its process has not done this stage before. Shards are sent as there is room, not all at once,
so a hundred thousand of them cost the cluster no more than a few. Retries are counted here and not by Ray, so that a
bad shard, a killed worker and a shard over its time are told apart, as the local executor does.
"""

import logging
import os
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from crawl2clip import storage
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.submit import CHECKOUT
from data_pipeline.completion import is_finished, make_shard, publish_shard, temporary_folder
from data_pipeline.executors.local import describe_error
from data_pipeline.executors.waiting import Waiting
from data_pipeline.stage import Outcome, Shard, Shards, Stage

logger = logging.getLogger(__name__)

_FORWARDED = ("AWS_", "FSSPEC_", "HF_", "CRAWL2CLIP_", "OMP_NUM_THREADS", "no_proxy")
"""Settings of this process that workers on other machines need too."""
_MAX_ACTOR_DEATHS = 3  # actors in a row that die before they are ready; then the stage is given up


@dataclass
class _Task:
    shard: Shard
    tries: int = 0
    started: float = 0.0  # time.monotonic()


class RayExecutor:
    """Runs shards on a Ray cluster.

    Args:
        address: of the cluster: auto, or HOST:PORT; None starts Ray on this machine and ends it afterwards.
        num_workers: shards at once; None is a core, or a GPU, each.
        retries: further tries of a shard that failed.
        shard_timeout_s: seconds one try may take; then it is cancelled and has failed.
    """

    def __init__(
        self, *, address: str | None, num_workers: int | None, retries: int, shard_timeout_s: float
    ) -> None:
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise ConfigError("executor=ray needs the package ray; pip install 'crawl2clip[ray]'") from error
        self.address = address
        self.num_workers = num_workers
        self.retries = retries
        self.shard_timeout_s = shard_timeout_s

    def run(self, stage: Stage, shards: Shards) -> Iterator[Outcome]:
        """Yields one outcome a shard, as they end.

        Raises:
            DataError: `stage.setup` failed, or its workers die before they are ready.
            ConfigError: the cluster cannot be joined, or has no GPU that a stage needs.
        """
        import ray

        ours = not ray.is_initialized()
        if ours:
            self._join()
        try:
            crew = (
                _Actors(stage, self._places("GPU"))
                if stage.gpus_per_worker
                else _Tasks(stage, self._places("CPU"))
            )
            waiting = Waiting(_Task(shard) for shard in shards)
            try:
                yield from self._work(stage, crew, waiting)
            finally:
                crew.stop()
        finally:
            if ours:
                ray.shutdown()

    def _join(self) -> None:
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        paths = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
        forwarded = {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)}
        try:
            ray.init(
                address=self.address or "local",
                runtime_env={"env_vars": {**forwarded, "PYTHONPATH": paths}},
                **({} if self.address else {"include_dashboard": False, "num_cpus": self.num_workers}),
                log_to_driver=True,
                logging_level=logging.WARNING,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"executor.ray_address={self.address} cannot be joined ({str(error).splitlines()[0]}); start a cluster "
                "with `ray start --head` or slurm/ray.sbatch, or leave ray_address out to start one here"
            ) from error

    def _places(self, kind: str) -> int:
        """How many shards are made at once."""
        import ray

        there = int(ray.cluster_resources().get(kind, 0))
        if there == 0:
            raise ConfigError(
                f"the stage needs a {kind} a worker and the Ray cluster has none; start Ray on nodes with {kind}s, or "
                "set tagger.device=cpu"
            )
        return min(there, self.num_workers or there)

    def _work(self, stage: Stage, crew: "_Tasks | _Actors", waiting: Waiting[_Task]) -> Iterator[Outcome]:
        import ray
        from ray.exceptions import RayError, TaskCancelledError, WorkerCrashedError

        at_work: dict[Any, _Task] = {}
        limit = f"no end after {self.shard_timeout_s:g} s (executor.shard_timeout_s)"
        while True:
            while crew.has_room(len(at_work)) and (task := waiting.take()) is not None:
                task.tries, task.started = task.tries + 1, time.monotonic()
                at_work[crew.start(task.shard)] = task
            if not at_work:
                return
            done, _ = ray.wait(list(at_work), timeout=1.0)
            late = [
                ref
                for ref, task in at_work.items()
                if ref not in done and time.monotonic() - task.started > self.shard_timeout_s
            ]
            for ref in [*done, *late]:
                task = at_work.pop(ref)
                error: str | None = None
                if ref in late:
                    error = limit
                    crew.give_up(ref)
                else:
                    try:
                        answer = ray.get(ref)
                        if answer and answer[0] == "setup":
                            raise DataError(f"stage {stage.name!r} cannot start its workers: {answer[1]}")
                        error = answer[1] if answer else None
                    except WorkerCrashedError:
                        error = "its worker process died"
                    except (TaskCancelledError, RayError) as failure:
                        error = f"its worker was lost ({type(failure).__name__})"
                    crew.ended(ref, error)
                if error is not None and is_finished(stage.folder, task.shard.name):
                    error = None  # it died after the marker was in place
                if error is not None and task.tries <= self.retries:
                    logger.info("%s: shard %s will be tried again: %s", stage.name, task.shard.name, error)
                    waiting.put_back(task)
                else:
                    yield Outcome(task.shard, error)


class _Tasks:
    """A stage on cores: one Ray task a shard."""

    def __init__(self, stage: Stage, places: int) -> None:
        import ray

        self.places = min(places, stage.max_workers or places)
        self.stage = ray.put(pickle.dumps(stage))
        self.remote = ray.remote(num_cpus=1, max_retries=0)(_make_in_task)

    def has_room(self, at_work: int) -> bool:
        """Whether one more shard may start."""
        return at_work < self.places

    def start(self, shard: Shard) -> Any:
        """Starts a shard; its reference."""
        return self.remote.remote(self.stage, shard)

    def give_up(self, ref: Any) -> None:
        """Ends a shard that takes too long."""
        import ray

        ray.cancel(ref, force=True)

    def ended(self, ref: Any, error: str | None) -> None:
        """Nothing is left of a task."""

    def stop(self) -> None:
        """Nothing is held between tasks."""


class _Actors:
    """A stage on GPUs: one actor each, which loads the model once and then makes shard after shard."""

    def __init__(self, stage: Stage, places: int) -> None:
        import ray

        self.stage = ray.put(pickle.dumps(stage))
        self.num_gpus = stage.gpus_per_worker
        self.idle = [self._new(slot) for slot in range(min(places, stage.max_workers or places))]
        self.busy: dict[Any, Any] = {}
        self.deaths = 0

    def _new(self, slot: int) -> Any:
        import ray

        return ray.remote(num_gpus=self.num_gpus, num_cpus=1, max_restarts=0)(_Worker).remote(self.stage)

    def has_room(self, at_work: int) -> bool:
        """Whether an actor is idle."""
        return bool(self.idle)

    def start(self, shard: Shard) -> Any:
        """Gives a shard to an idle actor; its reference."""
        actor = self.idle.pop()
        ref = actor.make.remote(shard)
        self.busy[ref] = actor
        return ref

    def give_up(self, ref: Any) -> None:
        """Kills the actor of a shard that takes too long, and starts another."""
        import ray

        ray.kill(self.busy.pop(ref))
        self.idle.append(self._new(0))

    def ended(self, ref: Any, error: str | None) -> None:
        """Makes the actor idle again, or replaces one that died.

        Raises:
            DataError: they die one after the other.
        """
        actor = self.busy.pop(ref)
        lost = error is not None and error.startswith("its worker")
        self.deaths = self.deaths + 1 if lost else 0
        if self.deaths >= _MAX_ACTOR_DEATHS * (len(self.busy) + len(self.idle) + 1):
            raise DataError(f"the workers of the stage die one after the other ({error}); look at Ray's logs")
        self.idle.append(self._new(0) if lost else actor)

    def stop(self) -> None:
        """Kills all actors."""
        import ray

        for actor in [*self.idle, *self.busy.values()]:
            ray.kill(actor)


# In Ray's worker processes


class _Worker:
    """The actor."""

    def __init__(self, pickled_stage: bytes) -> None:
        self.pickled_stage = pickled_stage

    def make(self, shard: Shard) -> tuple[str, str] | None:
        """Makes and publishes a shard; returns nothing, or what failed: the setup or the shard, and why."""
        return _make(self.pickled_stage, shard)


def _make_in_task(pickled_stage: bytes, shard: Shard) -> tuple[str, str] | None:
    return _make(pickled_stage, shard)


_READY: dict[bytes, tuple[Stage, Any]] = {}  # the one stage that this process is set up for
_LOCK = threading.Lock()


def _make(pickled_stage: bytes, shard: Shard) -> tuple[str, str] | None:
    with _LOCK:
        if pickled_stage not in _READY:
            _READY.clear()
            os.environ.setdefault("CRAWL2CLIP_WORKER_SLOT", "0")  # Ray shows each actor its own GPU only
            try:
                stage: Stage = pickle.loads(pickled_stage)
                _READY[pickled_stage] = stage, stage.setup()
            except Exception as error:
                return "setup", describe_error(error)
    stage, context = _READY[pickled_stage]
    if storage.address_of(stage.folder):
        stage.folder.mkdir(parents=True, exist_ok=True)
    temporary = temporary_folder(stage, shard)
    try:
        make_shard(stage, context, shard, temporary)
        publish_shard(stage, shard, temporary)
    except Exception as error:  # whatever is wrong with one shard must not end the others
        return "shard", describe_error(error)
    return None

"""Where a stage's shards run. One small file for each kind, chosen by name."""

from collections.abc import Callable
from dataclasses import dataclass

from crawl2clip.errors import ConfigError, unknown_name
from crawl2clip.missing import MISSING
from data_pipeline.executors.local import LocalExecutor
from data_pipeline.stage import Executor


@dataclass(kw_only=True, slots=True)
class ExecutorConfig:
    """How shards are run."""

    kind: str = MISSING  # a name in EXECUTORS
    num_workers: int | None = MISSING  # worker processes; null is one for each core of this process
    retries: int = MISSING  # more tries for a shard that failed, 0 or more
    shard_timeout_s: float = MISSING  # seconds one try of a shard may take, above 0
    max_failed_fraction: float = MISSING  # 0 to 1; a stage with more failed shards ends the run
    cluster: str | None = None  # slurm: the cluster's file, a name in configs/cluster or a path
    shards_per_task: int = 1  # slurm: shards that a task of a job array makes, 1 or more
    max_parallel_tasks: int | None = None  # slurm: tasks at once, 1 or more; null is as many as Slurm starts
    ray_address: str | None = None  # ray: a cluster to join, auto or HOST:PORT; null starts one here

    def __post_init__(self) -> None:
        if isinstance(self.num_workers, int) and self.num_workers < 1:
            raise ConfigError(f"executor.num_workers is {self.num_workers}; give 1 or more, or null")
        if isinstance(self.retries, int) and self.retries < 0:
            raise ConfigError(f"executor.retries is {self.retries}; give 0 or more")
        if isinstance(self.shard_timeout_s, float) and self.shard_timeout_s <= 0:
            raise ConfigError(f"executor.shard_timeout_s is {self.shard_timeout_s}; give seconds above 0")
        for name in ("shards_per_task", "max_parallel_tasks"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"executor.{name} is {value}; give 1 or more")
        if isinstance(self.max_failed_fraction, float) and not 0 <= self.max_failed_fraction <= 1:
            raise ConfigError(f"executor.max_failed_fraction is {self.max_failed_fraction}; give 0 to 1")


def _local(config: ExecutorConfig) -> Executor:
    return LocalExecutor(
        num_workers=config.num_workers, retries=config.retries, shard_timeout_s=config.shard_timeout_s
    )


def _slurm(config: ExecutorConfig) -> Executor:
    from data_pipeline.executors.slurm import SlurmExecutor

    if config.cluster is None:
        raise ConfigError(
            "executor=slurm needs executor.cluster; give a name in configs/cluster, or the path of a YAML file"
        )
    return SlurmExecutor(
        cluster=config.cluster,
        shards_per_task=config.shards_per_task,
        max_parallel_tasks=config.max_parallel_tasks,
        retries=config.retries,
        shard_timeout_s=config.shard_timeout_s,
    )


def _ray(config: ExecutorConfig) -> Executor:
    from data_pipeline.executors.ray import RayExecutor

    return RayExecutor(
        address=config.ray_address,
        num_workers=config.num_workers,
        retries=config.retries,
        shard_timeout_s=config.shard_timeout_s,
    )


EXECUTORS: dict[str, Callable[[ExecutorConfig], Executor]] = {"local": _local, "slurm": _slurm, "ray": _ray}


def make_executor(config: ExecutorConfig) -> Executor:
    """The executor that the config names.

    Raises:
        ConfigError: no such kind, or it cannot run here.
    """
    if config.kind not in EXECUTORS:
        raise ConfigError(unknown_name("executor.kind", config.kind, EXECUTORS))
    return EXECUTORS[config.kind](config)


def executor_of_command(workers: int) -> Executor:
    """The executor of a command without a config, such as takedown: processes of this machine.

    Raises:
        ConfigError: no workers.
    """
    if workers < 1:
        raise ConfigError(f"--workers is {workers}; give 1 or more processes")
    return LocalExecutor(num_workers=workers, retries=1, shard_timeout_s=36_000)

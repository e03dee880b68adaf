"""What a cluster is called and what its nodes have, from one small file: `configs/cluster/NAME.yaml`.

Account, partition, time, GPUs, container and network settings are there and nowhere else: `crawl2clip.submit` and the
pipeline's Slurm executor turn the file into options of sbatch. Sizes that follow from it, such as the number of
processes a node, are read from what Slurm grants, so that nothing has to be said twice.
"""

import re
import shlex
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crawl2clip.config import CONFIG_DIR, explain
from crawl2clip.errors import ConfigError, unknown_name

CLUSTER_DIR = CONFIG_DIR / "cluster"
_TAG = "tag:yaml.org,2002:"


class ContainerKind(str, Enum):
    """How programs are put in a container."""

    none = "none"
    apptainer = "apptainer"  # `apptainer exec IMAGE` before the program
    pyxis = "pyxis"  # NVIDIA's plug-in: options of srun


@dataclass(kw_only=True, slots=True)
class NodesConfig:
    """One kind of node, as sbatch is asked for it. Null: the cluster's own default."""

    partition: str | None = MISSING
    time: str | None = MISSING  # of a job, as sbatch writes it: minutes, or [days-]hours:minutes:seconds
    gres: str | None = MISSING  # of each node, such as gpu:8 or gpu:a100:8; null for nodes without GPUs
    cpus: int = MISSING  # cores of each node that a job takes
    mem: str | None = MISSING  # of each node, such as 64G; 0 is all of it

    @property
    def gpus(self) -> int:
        """GPUs of a node that a job takes."""
        if self.gres is None:
            return 0
        last = self.gres.rpartition(":")[2]
        return int(last) if last.isdigit() else 1

    def __post_init__(self) -> None:
        if isinstance(self.cpus, int) and self.cpus < 1:
            raise ConfigError(f"cpus is {self.cpus}; give 1 or more cores of a node")
        for name in ("gres", "mem"):
            value = getattr(self, name)
            if isinstance(value, str) and value != "???" and (not value or value != value.strip()):
                raise ConfigError(f"{name} is {value!r}; give it as sbatch takes it, or null")
        if isinstance(self.gres, str) and self.gres != "???" and not self.gres.startswith("gpu"):
            raise ConfigError(f"gres is {self.gres!r}; give gpu:NUMBER or gpu:TYPE:NUMBER, or null")


@dataclass(kw_only=True, slots=True)
class ContainerConfig:
    """The container that programs run in."""

    kind: ContainerKind = ContainerKind.none
    image: str | None = None  # what apptainer or pyxis take: a .sif or .sqsh file, or docker://...
    mounts: list[str] = field(
        default_factory=list
    )  # HOST:INSIDE, or one path for both; the checkout is added

    def __post_init__(self) -> None:
        if self.kind != ContainerKind.none and not self.image:
            raise ConfigError(
                f"container.kind is {self.kind.value} and container.image is empty; give an image, or kind: none"
            )
        for word in [*self.mounts, *([] if self.image is None else [self.image])]:
            if any(character.isspace() for character in word):
                raise ConfigError(
                    f"container: {word!r} has a space, which no option of srun can carry; rename it"
                )


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """A cluster."""

    account: str | None = MISSING
    qos: str | None = None
    constraint: str | None = None
    options: list[str] = field(default_factory=list)  # more options of sbatch, such as --exclusive
    gpu: NodesConfig = field(default_factory=NodesConfig)  # for training, evaluation and GPU stages
    cpu: NodesConfig = field(default_factory=NodesConfig)  # for the other stages
    container: ContainerConfig = field(default_factory=ContainerConfig)
    environment: dict[str, str] = field(default_factory=dict)  # of every process, such as NCCL_SOCKET_IFNAME


def load_cluster(name: str) -> ClusterConfig:
    """The cluster of a file: a name in configs/cluster, or a path that ends in .yaml.

    Raises:
        ConfigError: there is no such file, or something in it is unknown, missing or of another type.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else CLUSTER_DIR / f"{name}.yaml"
    if not path.is_file():
        known = [file.stem for file in CLUSTER_DIR.glob("*.yaml")]
        do = f"Or give the path of a file of your own; {CLUSTER_DIR / 'a100.yaml'} is an example."
        raise ConfigError(unknown_name("cluster", name, known, do=do))
    try:
        merged = OmegaConf.merge(OmegaConf.structured(ClusterConfig), _read(path))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(
                f"{path} lacks {', '.join(missing)}; give each a value, or null for Slurm's default"
            )
        value = OmegaConf.to_object(merged)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML ({' '.join(str(error).split())}); correct it") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {explain(error)}") from error
    assert isinstance(value, ClusterConfig)
    return value


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its numbers to the base 60: 24:00:00 is a time and not 86,400."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (f"{_TAG}int", f"{_TAG}float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(r"[-+]?[0-9]+\Z"), list("-+0123456789"))


def _read(path: Path) -> dict[str, Any]:
    value = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path} holds {type(value).__name__}, not settings; see {CLUSTER_DIR / 'a100.yaml'}"
        )
    return value


def sbatch_options(cluster: ClusterConfig, nodes: NodesConfig) -> list[str]:
    """The options of sbatch for a job on one kind of node."""
    asked = {
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "partition": nodes.partition,
        "time": nodes.time,
        "gres": nodes.gres,
        "cpus-per-task": str(nodes.cpus),
        "mem": nodes.mem,
    }
    return [*(f"--{name}={value}" for name, value in asked.items() if value is not None), *cluster.options]


def job_environment(cluster: ClusterConfig, checkout: Path, python: str) -> dict[str, str]:
    """What a job's script is told: where the checkout and Python are, and how a program is started.

    CRAWL2CLIP_SRUN are options of srun, CRAWL2CLIP_CONTAINER is what stands before the program.
    """
    container, mounts = cluster.container, [str(checkout), *cluster.container.mounts]
    srun, before = "", ""
    if container.kind is ContainerKind.apptainer:
        binds = " ".join(f"--bind {mount}" for mount in mounts)
        before = f"apptainer exec --nv {binds} {container.image}"
    elif container.kind is ContainerKind.pyxis:
        joined = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in mounts)
        srun = (
            f"--container-image={container.image} --container-mounts={joined} --container-workdir={checkout}"
        )
    return {
        "CRAWL2CLIP_CHECKOUT": str(checkout),
        "CRAWL2CLIP_PYTHON": python,
        "CRAWL2CLIP_SRUN": srun,
        "CRAWL2CLIP_CONTAINER": before,
        **cluster.environment,
    }


def explain_refusal(said: str, source: str, partitions: list[str]) -> str:
    """One error for what sbatch said when it refused a job.

    Args:
        said: its output.
        source: the cluster file.
        partitions: the names that the cluster has.
    """
    reason = "; ".join(line.removeprefix("sbatch: error: ") for line in said.splitlines() if line.strip())
    has = f" Partitions here: {', '.join(partitions)}." if partitions else ""
    said = reason or "it said nothing"
    return f"sbatch refused the job: {said}.{has} The settings are those of {source}; correct them there"


def quoted(words: list[str]) -> str:
    """Words as a shell line that can be copied."""
    return shlex.join(words)

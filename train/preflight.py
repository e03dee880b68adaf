"""What can be known of a run before nodes are allocated: shapes, memory, batch, data and disk, as one table.

Everything here works on one CPU without a process group, whatever the run's ranks: the model has no data, and of
the shards only headers are read. A certain fault is a problem, and the run is refused; what rests on an estimate
is a warning at most.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Protocol

import torch
from omegaconf import MISSING
from torch import nn

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.shards import ShardFault, index_shard
from train.data.remote import is_remote
from train.memory_estimate import MemoryEstimate, MemoryRequest, Spread, checkpoint_bytes, estimate_memory

_TIGHT = 0.9  # of the device's memory; an estimate above this share is worth a warning
_TAR_BLOCK = 512  # bytes of a tar header
_TAR_MAGIC = slice(257, 262)  # "ustar" in it


@dataclass(kw_only=True)
class PreflightConfig:
    """The machines that `dry_run=true` imagines; null takes those that the command was started on."""

    num_nodes: int | None = MISSING  # nodes of the run to come
    gpus_per_node: int | None = MISSING  # ranks of each
    device_memory_gb: float | None = (
        MISSING  # of one of its GPUs, in 10**9 bytes; null: of the device at hand
    )

    def __post_init__(self) -> None:
        for name in ("num_nodes", "gpus_per_node", "device_memory_gb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"preflight.{name} is {value}; give a number above 0, or null")
        if (self.num_nodes is None) != (self.gpus_per_node is None):
            raise ConfigError(
                f"preflight.num_nodes is {self.num_nodes} and preflight.gpus_per_node is {self.gpus_per_node}; give "
                "both, or leave both null"
            )

    def world_size(self, here: int) -> int:
        """Ranks of the run: those imagined, else those that are here."""
        if self.num_nodes is None or self.gpus_per_node is None:
            return here
        return self.num_nodes * self.gpus_per_node


@dataclass
class Report:
    """What was found, in words.

    Attributes:
        rows: name and finding, in the order of the table.
        warnings: what may fail, by an estimate.
        problems: what will fail.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def table(self) -> str:
        """The rows as aligned lines, then warnings and problems."""
        width = max((len(name) for name, _ in self.rows), default=0)
        lines = [f"  {name:<{width}}  {text}" for name, text in self.rows]
        lines += [f"  warning: {text}" for text in self.warnings]
        lines += [f"  problem: {text}" for text in self.problems]
        return "\n".join(lines)

    def check(self) -> None:
        """Refuses the run when there is a problem.

        Raises:
            DataError: all problems in one message.
        """
        if self.problems:
            raise DataError("; ".join(self.problems))


def check_memory(
    report: Report,
    model: nn.Module,
    request: MemoryRequest,
    spread: Spread,
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    device_bytes: int | None,
) -> MemoryEstimate:
    """Adds shapes and the memory of one rank to the report, and returns the estimate.

    Args:
        report: to add to.
        model: of `train.model.meta_model.build_on_meta`, frozen where the run freezes.
        request: what a rank does in a step.
        spread: how the strategy cuts the parts.
        build_optimizer: as the run builds it.
        device_bytes: memory of one device; None where it is not known, and nothing is compared.

    Raises:
        ConfigError: the model does not run on these sizes.
    """
    estimate, forward = estimate_memory(model, request, spread, build_optimizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    shapes = ", ".join(str(list(shape)) for shape in forward.features[:2])
    report.rows.append(("model", f"{parameters / 1e6:.1f} M parameters, {trainable / 1e6:.1f} M trained"))
    report.rows.append(
        (
            "shapes",
            f"images [{request.micro_batch_size}, 3, {request.image_size}, {request.image_size}] and texts "
            f"[{request.micro_batch_size}, {request.text_tokens}] to features {shapes}",
        )
    )
    parts = [(part.name.replace("_", " "), getattr(estimate, part.name)) for part in fields(estimate)]
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts if size)
    of = f" of {device_bytes / 1e9:.1f}" if device_bytes else ""
    report.rows.append(("memory a rank", f"{estimate.total / 1e9:.2f}{of} GB, an estimate: {listed}"))
    if device_bytes and estimate.total > _TIGHT * device_bytes:
        report.warnings.append(
            f"a rank is estimated to need {estimate.total / 1e9:.1f} GB and its device has {device_bytes / 1e9:.1f} "
            "GB; give more ranks, compute.activation_checkpointing=selective or full, train.accumulation_steps=2 or "
            "more (the whole batch's loss and gradient stay exact, forward is computed twice), a sharding strategy, "
            "or, which is another training, a smaller train.global_batch_size"
        )
    return estimate


class RemoteReader(Protocol):
    """What is asked of train.data.remote.RemoteShards."""

    def read(self, url: str, offset: int, size: int) -> bytes: ...
    def size(self, url: str) -> int: ...


def check_shards(report: Report, shards: Sequence[str], remote: RemoteReader) -> None:
    """Adds what the first and the last shard's headers say; whole data sets are read at the start of the run."""
    found: list[str] = []
    for shard in dict.fromkeys([*shards[:1], *shards[-1:]]):
        try:
            found.append(_remote_shard(shard, remote) if is_remote(shard) else _local_shard(shard))
        except (OSError, DataError) as error:
            report.problems.append(
                f"shard {shard} cannot be read ({error}); check data.shards, its path and the access rights"
            )
    plural = "" if len(shards) == 1 else "s"
    report.rows.append(("data", "; ".join([f"{len(shards)} shard{plural}", *found])))
    if not shards:
        report.problems.append(
            "data.shards names no shard; give a folder with *.tar files, a pattern, or a URL"
        )


def _local_shard(shard: str) -> str:
    faults: list[ShardFault] = []
    samples = sum(1 for _ in index_shard(shard, faults.append))
    if not samples:
        reasons = ", ".join(f"{fault.reason}: {fault.detail}" for fault in faults)
        raise DataError(f"no sample in it: {reasons}")
    noted = f" and {len(faults)} faults" if faults else ""
    return f"{Path(shard).name} has {samples} samples{noted}"


def _remote_shard(shard: str, remote: RemoteReader) -> str:
    header = remote.read(shard, 0, _TAR_BLOCK)
    if header[_TAR_MAGIC] != b"ustar":
        raise DataError("it does not begin with a tar header")
    return f"{shard.rpartition('/')[2]} answers, {remote.size(shard) / 1e6:.1f} MB"


def check_disk(
    report: Report,
    folder: Path,
    model: nn.Module,
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    ema: bool,
    kept: int,
    saved_already: int = 0,
) -> None:
    """Adds the room that checkpoints need.

    Args:
        report: to add to.
        folder: the run's folder, which need not be there yet.
        model: of `train.model.meta_model.build_on_meta`.
        build_optimizer: as the run builds it.
        ema: whether a running average is saved.
        kept: checkpoints kept at a time; one more is being written beside them.
        saved_already: checkpoints of an earlier start, which have their room.
    """
    one = checkpoint_bytes(model, build_optimizer, ema=ema)
    needed = one * (kept + 1 - min(saved_already, kept))
    free = shutil.disk_usage(_existing(folder)).free
    report.rows.append(
        ("disk", f"{one / 1e9:.2f} GB a checkpoint, {kept} kept and one written; {free / 1e9:.1f} GB free")
    )
    if needed > free:
        report.problems.append(
            f"checkpoints need {needed / 1e9:.2f} GB ({one / 1e9:.2f} GB each, checkpoint.keep_last={kept} and one "
            f"being written) and {folder} has {free / 1e9:.2f} GB free; make room, keep fewer, or give another "
            "run_folder"
        )


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def device_bytes(device: torch.device, ranks_here: int) -> int | None:
    """Memory of a rank's device: of the GPU, or this machine's shared by its ranks; None where it is not told."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // ranks_here
    except (ValueError, OSError):
        return None

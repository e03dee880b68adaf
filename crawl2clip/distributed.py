"""The process group: one `World` a process, made from torchrun's environment.

Without torchrun the world has one process and no process group exists; every method then does the
obvious thing, so callers never ask whether they run distributed.
"""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from crawl2clip.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process's place among all of them."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes and talks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order; for small Python objects."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over ranks, a new tensor of the same shape; no gradient."""
        total = tensor.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total


def single_process(device: torch.device | str = "cpu") -> World:
    """A world of one, for library use and tests."""
    return World(rank=0, world_size=1, local_rank=0, device=torch.device(device))


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise ConfigError(f"environment variable {name} is {text!r}; torchrun sets it to a number from 0 on")
    return int(text)


@contextmanager
def distributed(timeout_s: float = 600.0, device: str = "auto") -> Iterator[World]:
    """Joins the process group that torchrun describes and leaves it at the end.

    Args:
        timeout_s: how long a collective may wait for a rank before it raises.
        device: "auto" takes CUDA where there is one; "cpu" and "cuda" insist. nccl serves CUDA, gloo the CPU.

    Raises:
        ConfigError: CUDA was asked for and is not there, or torchrun's variables are not numbers.
    """
    rank, world_size = _from_environment("RANK", 0), _from_environment("WORLD_SIZE", 1)
    local_rank = _from_environment("LOCAL_RANK", 0)
    found = pick_device(device, local_rank)
    if found.type == "cuda":
        torch.cuda.set_device(found)
    # torchrun with one process still gets a group, so that wrapped models run the same code everywhere.
    joins = "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ
    if joins:
        dist.init_process_group(
            "nccl" if found.type == "cuda" else "gloo",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout_s),
            # Without it, a barrier guesses the GPU from the rank.
            device_id=found if found.type == "cuda" else None,
        )
    try:
        yield World(rank=rank, world_size=world_size, local_rank=local_rank, device=found)
    finally:
        if joins:
            dist.destroy_process_group()


def pick_device(device: str, local_rank: int = 0) -> torch.device:
    """The device that "auto", "cpu" or "cuda" stands for on this rank.

    Raises:
        ConfigError: another word, or CUDA where torch sees too few devices.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {device!r} is not known; give auto, cpu or cuda")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {local_rank} wants CUDA device {local_rank}, torch sees {torch.cuda.device_count()}; "
            "start fewer processes a node (torchrun --nproc_per_node), or use device=cpu"
        )
    return torch.device("cuda", local_rank)

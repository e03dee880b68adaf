"""Programs that the watchdog's tests run on gloo ranks, each a process of its own.

They need nothing of the trainer's loop, so they are not among train_ranks.py's.
"""

import datetime
import logging
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from crawl2clip.distributed import World
from train.monitoring.watchdog import Phase, Watchdog, WatchdogConfig


class _Kept(logging.Handler):
    """The messages of one process."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def wait_for_a_late_rank(world: World, folder: str) -> dict[str, Any]:
    """Rank 1 sleeps in data; what the other's watchdog said, and the error its collective ended with."""
    kept = _Kept()
    logging.getLogger("train.monitoring.watchdog").addHandler(kept)
    group = _group_with_timeout(3.0)
    config = WatchdogConfig(comm_timeout_s=3.0, report_after_s=0.8, heartbeat_s=0.1)
    error = ""
    with Watchdog(config, Path(folder), world.rank, world.world_size) as watchdog:
        watchdog.sample = lambda: ("7.tar", "0042")
        watchdog.enter(Phase.data, 5)
        if world.rank == 1:
            time.sleep(5.0)
        else:
            watchdog.enter(Phase.backward, 5)
            try:
                dist.all_reduce(torch.ones(1), group=group)
            except RuntimeError as caught:
                error = str(caught)
    return {"messages": kept.messages, "error": error}


def _group_with_timeout(seconds: float) -> Any:
    return dist.new_group(timeout=datetime.timedelta(seconds=seconds))

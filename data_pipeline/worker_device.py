"""The device of a worker of the taggers: worker slots take the GPUs in turn, one worker a GPU."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def device_of_worker(device: str) -> "torch.device":
    """The device that "auto", "cpu" or "cuda" stands for in this worker.

    Raises:
        ConfigError: another word, or CUDA where there is none.
    """
    import torch

    from crawl2clip.distributed import pick_device

    slot = int(os.environ.get("CRAWL2CLIP_WORKER_SLOT", "0"))
    num_gpus = 0 if device == "cpu" else torch.cuda.device_count()
    return pick_device(device, slot % max(num_gpus, 1))


def max_model_workers(device: str) -> int | None:
    """Workers that a stage with a model can use: one a GPU, which its threads feed; None for one a core, on CPUs."""
    if device == "cpu":
        return None
    import torch

    return torch.cuda.device_count() or None

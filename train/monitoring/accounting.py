"""What a run costs and how fast it goes: samples/s, MFU, waiting for data, memory, GPU-hours, time left.

Speed is of a window of whole steps, without the pauses in it (evaluation, checkpoints). A step's numbers are read
when the next one is under way, so it is the moment of its own end that counts, not that of the reading.
GPU-hours count everything, pauses and start-up too, and go on over restarts.
Every number is made from a clock that the caller may give, so that all of it can be worked out by hand.
"""

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from train.monitoring.device_idle import DeviceIdle

PROCESS_BEGAN = time.perf_counter()
"""When the trainer was imported: shards are looked for and ranks meet only after it, and that costs GPU-hours too."""

T = TypeVar("T")


class Accounting:
    """The costs of one run on one rank's clock.

    Args:
        world_size: processes, one for each GPU.
        peak_flops: FLOP/s that one device could do in the run's precision, dense; None where unknown: no MFU.
        gpu_hours: spent before this process started, see `gpu_hours_spent`.
        idle: tells what waiting for data cost the device; by default all of it.
        began: when this process did, on the clock; by default now.
        clock: seconds that only ever grow.
    """

    def __init__(
        self,
        *,
        world_size: int,
        peak_flops: float | None,
        gpu_hours: float = 0.0,
        idle: DeviceIdle | None = None,
        began: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._world_size, self._peak_flops, self._clock = world_size, peak_flops, clock
        self._gpu_hours_before = gpu_hours
        self._idle = idle or DeviceIdle(None)
        self._started = clock() if began is None else began
        self._first_step: float | None = None
        self._lost: Callable[[], float] = lambda: 0.0  # to the data of the step that is being handed over
        self._steps: deque[tuple[float, Callable[[], float]]] = (
            deque()
        )  # handed over, their numbers not read yet
        self._paused_s = 0.0
        self._window_start = self._window_end = clock()  # on the clock that stands still in pauses
        self._samples = self._window_samples = 0
        self._window_flops = self._window_waited_s = 0.0
        self._last: dict[str, float | None] | None = None

    def waiting_for(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with what waiting for each costs; begins a window, so nothing before it counts as a step's."""
        iterator = iter(items)
        asked = self._clock()
        if self._first_step is None:
            self._first_step = asked
        self._steps.clear()
        self._begin_window(self._running())
        while True:
            asked = self._clock()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._lost = self._idle.begins(self._clock() - asked)
            yield item

    def submitted(self) -> None:
        """To be called when a step is handed to the device; on a CPU that is when it is done."""
        self._idle.ends()
        self._steps.append((self._running(), self._lost))

    def add(self, samples: int, flops: float) -> None:
        """Counts the oldest step that was submitted and not counted yet; its numbers have arrived.

        Args:
            samples: of the global batch.
            flops: of training on one sample, `flops.PairFlops.training`; may change from step to step.
        """
        self._window_end, lost = self._steps.popleft()
        self._window_waited_s += lost()
        self._samples += samples
        self._window_samples += samples
        self._window_flops += flops * samples

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves a block out of the speed; GPU-hours go on."""
        paused = self._clock()
        try:
            yield
        finally:
            self._paused_s += self._clock() - paused

    def read(self, samples_left: int) -> dict[str, float | None]:
        """Closes the window after the last counted step and gives its numbers; again the same when there is none since.

        Args:
            samples_left: samples until the end of the run.

        Returns:
            samples_per_s over all ranks; samples_per_s_per_gpu; mfu, the fraction of the devices' FLOP/s, None where
            their peak is unknown; data_wait_fraction, 0 to 1; gpu_hours since the run's first start; hours_left at
            the pace of this process so far, evaluation and checkpoints included, None before the first sample.
        """
        if self._window_samples or self._last is None:
            elapsed = max(self._window_end - self._window_start, 1e-9)
            speed = self._window_samples / elapsed
            self._last = {
                "samples_per_s": round(speed, 2),
                "samples_per_s_per_gpu": round(speed / self._world_size, 2),
                "mfu": self._mfu(elapsed),
                "data_wait_fraction": round(min(self._window_waited_s / elapsed, 1.0), 4),
            }
            self._begin_window(self._window_end)
        return {
            **self._last,
            "gpu_hours": round(self.gpu_hours(), 4),
            "hours_left": self._hours_left(samples_left),
        }

    def _running(self) -> float:
        return self._clock() - self._paused_s

    def _begin_window(self, at: float) -> None:
        self._window_start = self._window_end = at
        self._window_samples = 0
        self._window_flops = self._window_waited_s = 0.0

    def gpu_hours(self) -> float:
        """GPU-hours of the run so far: of the processes before this one, and wall time times ranks since."""
        return self._gpu_hours_before + (self._clock() - self._started) * self._world_size / 3600

    def _mfu(self, elapsed: float) -> float | None:
        if self._peak_flops is None:
            return None
        return round(self._window_flops / (elapsed * self._world_size * self._peak_flops), 4)

    def _hours_left(self, samples_left: int) -> float | None:
        if self._first_step is None or not self._samples:
            return None
        return round((self._clock() - self._first_step) / self._samples * samples_left / 3600, 3)


def gpu_hours_spent(checkpoint: Mapping[str, Any] | None, records: Iterable[Mapping[str, Any]]) -> float:
    """GPU-hours that earlier processes of a run spent, work lost since the last checkpoint included.

    Args:
        checkpoint: `gpu_hours` as the checkpoint has them, None where there is none.
        records: of metrics.jsonl as the last process left it, before the lines after the checkpoint are cut.
    """
    logged = (record.get("gpu_hours") or 0.0 for record in records)
    return max([checkpoint["gpu_hours"] if checkpoint else 0.0, *logged])


def peak_memory_gb(device: torch.device, *, reset: bool = False) -> float:
    """The most memory this rank has held, in 1e9 bytes: of tensors on the GPU, or of the process on the CPU.

    Args:
        device: of the run.
        reset: start counting anew; a process on the CPU cannot.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return round(peak / 1e9, 3)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)

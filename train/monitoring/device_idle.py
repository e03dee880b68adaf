"""How long a device stood idle for want of data.

The host is up to a step ahead of a GPU: while the device still computes, the host may wait for a batch and nothing
is lost. Idle is what lies between the end of a step and the begin of the next on the device itself, and no more of it
than the host waited is due to data.
"""

from collections.abc import Callable
from typing import Any

import torch


class DeviceIdle:
    """What waiting for data cost, step by step.

    Args:
        new_event: makes a timed event of the device's queue, as torch.cuda.Event; None where there is no queue and
            all waiting counts.
    """

    def __init__(self, new_event: Callable[[], Any] | None) -> None:
        self._new_event = new_event
        self._done: Any = None

    @classmethod
    def of(cls, device: torch.device) -> "DeviceIdle":
        """That of a device."""
        return cls((lambda: torch.cuda.Event(enable_timing=True)) if device.type == "cuda" else None)

    def begins(self, host_waited_s: float) -> Callable[[], float]:
        """To be called when a step's data has come and before anything of it is queued.

        Returns:
            What tells the seconds lost, when the device has begun the step.
        """
        if self._new_event is None or self._done is None:
            return lambda: host_waited_s
        done, begins = self._done, self._new_event()
        begins.record()
        return lambda: min(host_waited_s, done.elapsed_time(begins) / 1e3)

    def ends(self) -> None:
        """To be called when all of a step is queued."""
        if self._new_event is not None:
            self._done = self._new_event()
            self._done.record()

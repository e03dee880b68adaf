"""Python's garbage collector, run at the same step on every rank.

Left alone it starts on each rank at a moment of its own, and with some hundred ranks there is always one that
the others wait for (torchtitan switches it off and collects every 50 steps, which this follows).
"""

import gc
from types import TracebackType

import torch


class SteadyGarbageCollection:
    """Automatic collection off for a block; `step` collects the young objects every `every_steps` steps."""

    def __init__(self, every_steps: int = 50) -> None:
        self._every_steps = every_steps
        self._was_on = False

    def __enter__(self) -> "SteadyGarbageCollection":
        self._was_on = gc.isenabled()
        gc.disable()
        gc.collect()  # what building the run left behind, cycles that hold tensors among it
        return self

    def step(self, step: int) -> None:
        """To be called once a step with its number, on every rank."""
        if step % self._every_steps == 0:
            gc.collect(1)

    def collect(self) -> None:
        """Collects objects of any age, and gives the device memory that this frees back to whoever asks next.

        Between two models: one that has trained is old and full of reference cycles, and `step` does not reach it.
        """
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where CUDA is not in use

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._was_on:
            gc.enable()

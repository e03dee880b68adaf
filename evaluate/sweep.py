"""How far a sweep over models and data sets is, and how long the rest will take."""

import logging
import time
from collections.abc import Callable, Sequence

from evaluate.data.datasets import EvaluationDataset

logger = logging.getLogger(__name__)


class Sweep:
    """Counts images: encoding them is what takes the time."""

    def __init__(self, num_sets: int, num_images: int, clock: Callable[[], float] = time.monotonic) -> None:
        """The time starts now.

        Args:
            num_sets: data sets to score, once for each model.
            num_images: in all of them together.
            clock: seconds.
        """
        self._num_sets, self._num_images, self._clock = num_sets, num_images, clock
        self._sets, self._images, self._reused = 0, 0, 0
        self._start = self._last = clock()

    def finished(self, name: str, num_images: int, *, reused: bool = False) -> str:
        """Counts a data set as done, logs and returns how far the sweep is.

        Args:
            name: of the data set.
            num_images: of all splits that its tasks read.
            reused: whether nothing had to be done for it.
        """
        now = self._clock()
        self._sets += 1
        self._images += num_images
        self._reused += num_images if reused else 0
        message = f"{name} done ({self._sets} of {self._num_sets}) in {duration(now - self._last)}"
        left = self._num_images - self._images
        worked = self._images - self._reused
        if left > 0 and worked > 0:
            seconds = (now - self._start) / worked * left
            message += f"; {left} of {self._num_images} images left, about {duration(seconds)}"
        self._last = now
        logger.info(message)
        return message


def num_images_of(datasets: Sequence[EvaluationDataset]) -> int:
    """Images in all splits of data sets."""
    return sum(
        sum(split.num_samples for split in (d.test, d.train, d.val) if split is not None) for d in datasets
    )


def duration(seconds: float) -> str:
    """A time as people say it: "8 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

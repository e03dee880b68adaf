"""Which shards of a list have not ended yet, and how often each was lost: two bytes a shard."""

from array import array
from collections.abc import Iterator

from data_pipeline.stage import Shard, Shards

_ENDED = 0  # others are one more than the times that the shard was lost


class ShardsLeft:
    """Shards that have not ended, known by their place in the list.

    Args:
        shards: all of them, the same whenever they are gone through.
    """

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._states = array("H", [1]) * len(shards)
        self._number = len(shards)

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[tuple[int, Shard]]:
        """(place, shard) of those that have not ended; they may end meanwhile."""
        for place, shard in enumerate(self._shards):
            if self._states[place] != _ENDED:
                yield place, shard

    def end(self, place: int) -> None:
        """A shard has ended."""
        self._states[place] = _ENDED
        self._number -= 1

    def lose(self, place: int) -> int:
        """A shard was lost; returns how often it has been."""
        self._states[place] += 1
        return self._states[place] - 1

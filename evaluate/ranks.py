"""How ranks of an evaluation meet: what rank 0 decides, what all attempt, and rows gathered in bounded pieces.

Errors are raised after the ranks have met, by all of them, so that none is left waiting in a collective.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from crawl2clip.distributed import World
from crawl2clip.errors import Crawl2ClipError

T = TypeVar("T")
_PIECE_BYTES = (
    64 << 20
)  # of one rank's rows that travel at a time; nccl moves pickles through the GPU's memory


def main_decides(world: World, make: Callable[[], T]) -> T:
    """What `make` returns on rank 0, on every rank; its errors, too, are raised on every rank."""
    value, caught = None, None
    if world.is_main:
        try:
            value = make()
        except Exception as error:
            caught = error
    value, shared = world.all_gather_object((value, _shareable(caught, world)))[0]
    if shared is not None:
        raise caught or shared
    return value  # pyright: ignore[reportReturnType] # rank 0 made it


def on_main(world: World, make: Callable[[], T]) -> T | None:
    """What `make` returns on rank 0, there alone, None elsewhere; its errors are raised on every rank."""
    return all_attempt(world, lambda: make() if world.is_main else None)


def once_a_node(world: World, make: Callable[[], object]) -> None:
    """Calls `make` on one rank of each node, while the others wait; its errors are raised on every rank."""
    all_attempt(world, lambda: make() if world.local_rank == 0 else None)


def all_attempt(world: World, make: Callable[[], T]) -> T:
    """What `make` returns on this rank, or an error on every rank when it fails on any."""
    value, caught = None, None
    try:
        value = make()
    except Exception as error:
        caught = error
    for shared in world.all_gather_object(_shareable(caught, world)):
        if shared is not None:
            raise caught or shared
    return value  # pyright: ignore[reportReturnType] # no error, so it was made


def _shareable(error: Exception | None, world: World) -> Exception | None:
    # Any exception pickles as its text; only ours are sure to pickle as themselves.
    if error is None or isinstance(error, Crawl2ClipError):
        return error
    return RuntimeError(f"on rank {world.rank}: {error!r}")


def gather_rows(world: World, rows: NDArray[Any]) -> NDArray[Any]:
    """Every rank's rows, those of rank 0 first, on every rank.

    Args:
        world: the ranks.
        rows: [n, ...], any n on each rank, the rest of the shape and the dtype the same on all.
    """
    if world.world_size == 1:
        return rows
    lengths = world.all_gather_object(len(rows))
    starts = np.cumsum([0, *lengths])
    gathered = np.empty((int(starts[-1]), *rows.shape[1:]), rows.dtype)
    step = max(1, _PIECE_BYTES // max(1, rows.dtype.itemsize * int(np.prod(rows.shape[1:]))))
    for first in range(0, max(lengths), step):
        for start, piece in zip(starts, world.all_gather_object(rows[first : first + step]), strict=False):
            gathered[start + first : start + first + len(piece)] = piece
    return gathered

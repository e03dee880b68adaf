"""How ranks meet: decisions, errors, rows."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import evaluate.ranks
from crawl2clip.distributed import World, single_process
from crawl2clip.errors import DataError
from evaluate.ranks import all_attempt, gather_rows, main_decides, on_main

WORLD = single_process()


class Meeting:
    """Ranks as threads of this process; each gather waits for all of them."""

    def __init__(self, size: int) -> None:
        self.size, self.values = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=20)

    def gather(self, rank, value):
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values

    def on_all(self, program):
        def of(rank):
            world = Threaded(rank, self.size, rank, torch.device("cpu"))
            object.__setattr__(world, "meeting", self)
            try:
                return program(world)
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(of, range(self.size)))


class Threaded(World):
    def all_gather_object(self, value):
        return self.meeting.gather(self.rank, value)


def test_what_the_main_rank_decides_is_raised_as_it_is():
    assert main_decides(WORLD, lambda: 3) == 3
    with pytest.raises(DataError, match="broken"):
        main_decides(WORLD, lambda: (_ for _ in ()).throw(DataError("broken")))
    with pytest.raises(ZeroDivisionError):
        main_decides(WORLD, lambda: 1 // 0)


def test_an_error_on_any_rank_is_an_error_on_all():
    def fails(world):
        return all_attempt(world, lambda: 1 // (1 - world.rank))

    first, second, third = Meeting(3).on_all(fails)
    assert isinstance(second, ZeroDivisionError)
    assert str(first) == str(third) == "on rank 1: ZeroDivisionError('integer division or modulo by zero')"
    ours = Meeting(2).on_all(lambda world: all_attempt(world, lambda: failing(world)))
    assert [str(error) for error in ours] == ["bad shard"] * 2
    assert all(isinstance(error, DataError) for error in ours)


def failing(world):
    if world.rank:
        raise DataError("bad shard")


def test_the_main_rank_alone_makes_and_has_a_thing():
    assert Meeting(3).on_all(lambda world: on_main(world, lambda: world.rank + 7)) == [7, None, None]
    assert Meeting(2).on_all(lambda world: main_decides(world, lambda: world.rank + 7)) == [7, 7]


@pytest.mark.parametrize("piece_bytes", [1, 24, 1 << 20])
def test_rows_of_all_ranks_come_together_in_order(monkeypatch, piece_bytes):
    monkeypatch.setattr(evaluate.ranks, "_PIECE_BYTES", piece_bytes)
    lengths = (3, 0, 5)
    rows = [np.arange(n * 2, dtype=np.float32).reshape(n, 2) + 100 * rank for rank, n in enumerate(lengths)]
    for gathered in Meeting(3).on_all(lambda world: gather_rows(world, rows[world.rank])):
        assert np.array_equal(gathered, np.concatenate(rows))
        assert gathered.dtype == np.float32


def test_rows_without_width_and_one_rank():
    empty = [np.empty((n, 0), np.float32) for n in (2, 1)]
    assert Meeting(2).on_all(lambda world: gather_rows(world, empty[world.rank]).shape) == [(3, 0)] * 2
    rows = np.arange(4)
    assert gather_rows(WORLD, rows) is rows

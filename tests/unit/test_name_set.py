"""A set of names that is small, and is asked like any other."""

import tracemalloc

from data_pipeline.name_set import NameSet


def test_what_was_given_is_there_and_nothing_else():
    names = NameSet(f"{number:08d}" for number in range(0, 2000, 2))
    assert len(names) == 1000
    assert [f"{number:08d}" in names for number in range(4)] == [True, False, True, False]
    assert "a" not in names
    names.add("a")
    assert "a" in names
    assert "00000004" in names
    assert not names.has_repeats()
    names.add("00000004")
    assert names.has_repeats()
    assert len(NameSet()) == 0
    assert "a" not in NameSet()
    assert not NameSet().has_repeats()


def test_a_name_takes_eight_bytes():
    tracemalloc.start()
    names = NameSet(f"{number:08d}" for number in range(20_000))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert "00000007" in names
    assert held < 10 * 20_000

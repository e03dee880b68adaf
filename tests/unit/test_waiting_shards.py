"""What executors keep of shards that are not at work: which come next, which are tried again, which have ended."""

from data_pipeline.executors import waiting
from data_pipeline.executors.shards_left import ShardsLeft
from data_pipeline.executors.waiting import Waiting
from data_pipeline.stage import Shard


def test_new_ones_come_first_and_those_to_be_tried_again_after_them():
    tasks = Waiting("abc")
    assert tasks.take() == "a"
    tasks.put_back("a")
    assert [tasks.take() for _ in range(4)] == ["b", "c", "a", None]
    tasks.put_back("c")
    assert [tasks.take(), tasks.take()] == ["c", None]


def test_no_more_than_some_wait_to_be_tried_again(monkeypatch):
    monkeypatch.setattr(waiting, "_MOST_AGAIN", 2)
    tasks = Waiting(range(6))
    for expected in (0, 1):
        assert tasks.take() == expected
        tasks.put_back(expected)
    assert [tasks.take() for _ in range(7)] == [0, 2, 3, 4, 5, 1, None]


def test_shards_end_and_are_lost_by_their_place():
    shards = [Shard(name, ()) for name in "abcd"]
    left = ShardsLeft(shards)
    assert [left.lose(1), left.lose(1), left.lose(2)] == [1, 2, 1]
    seen = []
    for place, shard in left:  # they may end meanwhile
        seen.append(shard.name)
        if shard.name in "bc":
            left.end(place)
    assert seen == ["a", "b", "c", "d"]
    assert (len(left), [(place, shard.name) for place, shard in left]) == (2, [(0, "a"), (3, "d")])
    for place, _ in left:
        left.end(place)
    assert not left

"""Checkpoints under SIGKILL, on two ranks and on full disks: what is found afterwards is always whole."""

import random
import time

import pytest
import saving_ranks as programs

from train.checkpoints.checkpoint_folder import find_newest, list_checkpoints

NUM_KILLS = 15


def test_kills_at_random_moments_of_a_save(tmp_path):
    """A process that does nothing but save is killed 15 times: nothing that was known to be saved is ever lost."""
    moments = random.Random(0)
    known, newest, torn = 0, 0, 0
    for _ in range(NUM_KILLS):
        running = programs.Running(programs.save_for_ever, tmp_path)
        assert running.next() == newest
        for _ in range(moments.randrange(3)):
            known = max(known, running.next())
        time.sleep(moments.uniform(0, 0.08))
        running.kill()
        known = max([known, *running.rest()])  # said, and not heard yet
        torn += any(".tmp-" in path.name for path in tmp_path.iterdir())
        found = find_newest(tmp_path, repair=False)
        if found is None:
            assert known == 0
            continue
        # One more than was known: renamed, and killed before the next save could say so.
        assert known <= found.step <= known + 1
        assert programs.differences(found, found.step) == []
        assert found.progress == {"step": found.step}
        newest = found.step
    assert torn > 0, "no kill met a save; the test has shown nothing"
    assert not list(tmp_path.glob("*.broken"))
    find_newest(tmp_path, repair=True)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in list_checkpoints(tmp_path)}


def test_two_ranks_write_and_any_number_reads(tmp_path):
    ranks = programs.start_ranks(programs.save_steps, 2, tmp_path, [1, 2, 3])
    assert [rank.rest() for rank in ranks] == [[(3, [])], [(3, [])]]
    assert len(list(tmp_path.glob("step_0000003/rank-*"))) == 2
    found = find_newest(tmp_path, repair=True)
    assert found is not None
    assert (found.step, programs.differences(found, 3)) == (3, [])
    flipped = tmp_path / "step_0000003" / "rank-00001-of-00002.safetensors"
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    # Only one of three ranks hashes the damaged file, and all of them take the one before.
    ranks = programs.start_ranks(programs.load, 3, tmp_path)
    assert [rank.rest() for rank in ranks] == [[(2, [])]] * 3


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_between_the_parts_and_the_manifest(tmp_path, victim):
    ranks = programs.start_ranks(programs.die_before_the_manifest, 2, tmp_path, victim)
    said = [rank.rest() for rank in ranks]
    assert ranks[victim].process.exitcode == -9
    assert said[victim] == []
    # Rank 0 waits for a part that does not come; rank 1 has done its own and knows no more.
    assert said[1 - victim] == [victim == 1]
    ranks = programs.start_ranks(programs.load, 2, tmp_path)
    assert [rank.rest() for rank in ranks] == [[(1, [])]] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000001"]
    ranks = programs.start_ranks(programs.save_steps, 2, tmp_path, [2])
    assert [rank.rest() for rank in ranks] == [[(2, [])]] * 2


@pytest.mark.parametrize("victim", [0, 1])
def test_one_full_disk_stops_all_ranks_with_one_message(tmp_path, victim):
    ranks = programs.start_ranks(programs.fail_on_one, 2, tmp_path, victim)
    said = [rank.rest() for rank in ranks]
    assert said[0] == said[1]
    message = said[0][0]
    assert f"the checkpoint of step 2 could not be written: rank {victim}: No space left on device" in message
    assert "bytes are free there" in message
    assert "step_0000001 and those before it are untouched" in message
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000001"]

"""Two gloo processes: a rank that is late in data is named before the time-out."""

import watchdog_ranks as ranks
from gloo_ranks import on_ranks


def test_a_rank_late_in_data_is_named_before_the_time_out(tmp_path):
    waiting, late = on_ranks(ranks.wait_for_a_late_rank, 2, str(tmp_path))
    assert waiting["error"]  # the collective failed, after it was told why it would
    told = waiting["messages"][0]
    assert "no progress" in told
    behind, ahead = told.split("behind nobody")
    assert "behind (1):" in behind
    assert "rank 1 (" in behind
    assert "step 5, data for" in behind
    assert "waiting for sample 0042 of 7.tar" in behind
    assert "rank 0 (" in ahead
    assert "step 5, backward for" in ahead
    # One rank speaks for all; after rank 0 has left, rank 1 may say that it is silent.
    assert all("silent" in message for message in late["messages"])
    assert (tmp_path / "heartbeat" / "rank_00001_stacks.txt").read_text().count("wait_for_a_late_rank")

"""Publishing a shard when several workers, machines or tries are about."""

from toy_stages import ToyStage

from data_pipeline.completion import (
    TEMPORARY_FOLDER,
    finished_names,
    make_shard,
    publish_shard,
    read_failures,
    record_failure,
    remove_temporary,
    temporary_folder,
)


def made(stage, shard, monkeypatch, task):
    """A shard that is ready to be published, by a task of a job array."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
    temporary = temporary_folder(stage, shard)
    make_shard(stage, None, shard, temporary)
    return temporary


def test_of_two_workers_with_one_shard_the_first_wins_and_the_second_leaves_nothing(tmp_path, monkeypatch):
    stage = ToyStage(tmp_path / "toy", num_shards=1)
    stage.folder.mkdir()
    (shard,) = stage.shards()
    record_failure(stage.folder, shard, "of an earlier try")
    first, second = (made(stage, shard, monkeypatch, task) for task in "12")
    assert first != second
    (second / "000.txt").write_text("another answer of the same server\n")
    publish_shard(stage, shard, first)
    publish_shard(stage, shard, second)
    assert (stage.folder / "000.txt").read_text() == "contents of 000\n"
    assert len(finished_names(stage.folder)) == 1
    assert "000" in finished_names(stage.folder)
    assert not first.exists()
    assert not second.exists()
    assert read_failures(stage.folder) == {}


def test_leftovers_of_others_stay_until_nobody_is_at_work(tmp_path, monkeypatch):
    stage = ToyStage(tmp_path / "toy", num_shards=1)
    stage.folder.mkdir()
    (shard,) = stage.shards()
    first, second = (made(stage, shard, monkeypatch, task) for task in "12")
    remove_temporary(stage)  # as task 2
    assert first.exists()
    assert not second.exists()
    remove_temporary(stage, everywhere=True)
    assert not (stage.folder / TEMPORARY_FOLDER).exists()

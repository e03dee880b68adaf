"""A sweep that is killed goes on where it stopped, and ends where it would have ended."""

import logging
import signal
from pathlib import Path

import evaluate_ranks as ranks
import pytest
import torch
from evaluation_sets import ARCHITECTURE, write_classification, write_retrieval
from gloo_ranks import on_ranks

from crawl2clip.distributed import single_process
from crawl2clip.export import export_model
from crawl2clip.models import ModelConfig, build_model
from evaluate.config import SuiteConfig
from evaluate.data.datasets import DatasetConfig, Task
from evaluate.results import read_results
from evaluate.tasks.few_shot import FewShotConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    write_retrieval(root / "data" / "told", num_images=12)
    for split, seed in (("test", 0), ("train", 1)):
        write_classification(root / "data" / "things", num_classes=5, per_class=4, split=split, seed=seed)
    torch.manual_seed(0)
    config = ModelConfig(name="tiny", architecture=ARCHITECTURE)
    export_model(build_model(config), config, root / "export", provenance={})
    return root


SUITE = SuiteConfig(
    name="resumed",
    datasets={
        "told": DatasetConfig(tasks=[Task.retrieval], metric="image_retrieval_recall@5"),
        "things": DatasetConfig(tasks=[Task.zero_shot, Task.few_shot], metric="acc1"),
    },
    few_shot=FewShotConfig(shots=[1, 2], seeds=[0, 1, 2], one_shot_l2=1.0),
)


@pytest.fixture(autouse=True)
def one_thread():
    """As on the ranks: how many threads share a product decides how it is rounded."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def files(output: Path) -> dict[str, int]:
    """Every result and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in output.glob("results/*/*.json")}


def test_kill_9_loses_no_finished_result_and_changes_none(place, caplog):
    caplog.set_level(logging.INFO)
    output = place / "killed"
    arguments = SUITE, place / "data", place / "export", output
    for number, finished in ((0, []), (1, ["told.retrieval.json"])):
        assert on_ranks(ranks.killed_at_result, 1, *arguments, number) == [-signal.SIGKILL]
        before = files(output)
        assert list(before) == finished
    resumed = ranks.stored_results(single_process(), *arguments)
    assert files(output)["told.retrieval.json"] == before["told.retrieval.json"]  # not written again
    assert "retrieval of told is taken from" in caplog.text
    # Its features were there before the kill, the text features too.
    assert "features of things/test come from the cache" in caplog.text
    whole = ranks.stored_results(single_process(), *arguments[:3], place / "whole")
    assert [(r.task, r.metrics, r.identity_sha256) for r in resumed] == [
        (r.task, r.metrics, r.identity_sha256) for r in whole
    ]
    assert [r.task for r in read_results(output)] == ["few_shot", "zero_shot", "retrieval"]
    caplog.clear()
    written = files(output)
    assert ranks.stored_results(single_process(), *arguments) == resumed
    assert files(output) == written
    assert "come from the cache" not in caplog.text  # nothing was even looked up


def test_two_ranks_resume_together(place):
    output = place / "whole"
    arguments = SUITE, place / "data", place / "export", output
    ranks.stored_results(single_process(), *arguments)
    next(output.glob("results/*/things.zero_shot.json")).unlink()
    one, two = on_ranks(ranks.stored_results, 2, *arguments)
    assert one == two
    assert [r.task for r in one] == ["retrieval", "zero_shot", "few_shot"]
    assert next(output.glob("results/*/things.zero_shot.json")).is_file()

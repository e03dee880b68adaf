"""train.sbatch on two nodes: equal to one node, and to itself after requeues, signals and preemption."""

import io

import pytest
import torch
from evaluation_commands import run_suite
from evaluation_sets import ARCHITECTURE, write_classification
from gloo_ranks import free_port
from PIL import Image
from safetensors.torch import load_file

from crawl2clip.export import export_model
from crawl2clip.models import ModelConfig, build_model
from crawl2clip.shards import ShardWriter
from evaluate.results import read_results
from train.monitoring.metrics import read_metrics

MEASURED = ("step", "samples_seen", "loss", "logit_scale", "lr", "grad_norm")
STEPS = 300
ENDED = ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """40 coloured squares with captions."""
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder / "0.tar") as writer:
        for number in range(40):
            data = io.BytesIO()
            Image.new("RGB", (40, 40), (6 * number, 255 - 6 * number, number)).save(data, "PNG")
            writer.write(f"{number:04d}", {"png": data.getvalue(), "txt": f"square number {number}".encode()})
    return folder


@pytest.fixture
def runs(cluster, cluster_file, shards, tmp_path):
    return Runs(cluster, cluster_file, shards, tmp_path)


class Runs:
    """Submits runs of 300 steps and tells what they did."""

    def __init__(self, cluster, cluster_file, shards, folder):
        self.cluster, self.cluster_file, self.shards, self.folder = cluster, cluster_file, shards, folder

    def submit(self, name, nodes, *words, **environment):
        settings = [
            "device=cpu", "model=tiny", "precision=fp32", "augment=drawings", "wandb.enabled=false",
            f"run_name={name}", f"run_folder={self.folder / name}", f"data.shards={self.shards}",
            "data.decode_size=40", "data.num_workers=0", "train.global_batch_size=8", f"train.samples_seen={8 * STEPS}",
            "train.log_every_steps=1", "checkpoint.every_steps=100", "optimizer.lr=0.003", "schedule.warmup_steps=2",
            "optimizer.max_grad_norm=1.0", "checkpoint.asynchronous=false", *words,
        ]  # fmt: skip
        return self.cluster.submit(
            "train", f"cluster={self.cluster_file}", f"nodes={nodes}", *settings,
            CRAWL2CLIP_PORT=str(free_port()), **environment,
        )  # fmt: skip

    def again(self, job, starts):
        """Waits until a job is back in the queue, and lets it start at once: Slurm waits two minutes."""
        self.cluster.restart(job)
        self.cluster.wait_for(
            lambda: self.cluster.log("train", job).count("train: job ") == starts,
            f"start {starts} of {job}",
            300,
        )

    def finish(self, job):
        self.cluster.wait_for_job(job, ENDED)
        assert self.cluster.job_state(job) == "COMPLETED", self.cluster.log("train", job)

    def curve(self, name):
        records = read_metrics(self.folder / name / "metrics.jsonl")
        return [{key: record[key] for key in MEASURED} for record in records if "loss" in record]

    def weights(self, name):
        return load_file(self.folder / name / "export" / "open_clip_model.safetensors")

    def steps(self, name):
        path = self.folder / name / "metrics.jsonl"
        return path.read_text().count('"loss"') if path.exists() else 0

    def wait_for_step(self, name, step):
        self.cluster.wait_for(lambda: self.steps(name) >= step, f"step {step} of {name}", 300)


def test_two_nodes_train_as_one_and_a_run_cut_off_three_ways_as_an_unbroken_one(runs):
    alone = runs.submit("one", 1)
    runs.wait_for_step("one", 10)
    one = runs.curve("one")
    runs.cluster.ask("scancel", alone)
    job = runs.submit("two", 2)
    runs.finish(job)
    log = runs.cluster.log("train", job)
    for line in (
        "nodes n[1-2], processes a node 1",
        "preflight: n1: ok",
        "preflight: n2: ok",
        "train: complete",
    ):
        assert line in log
    two = runs.curve("two")
    assert len(two) == STEPS
    for name in (
        "loss",
        "logit_scale",
        "grad_norm",
    ):  # float32 sums in another order, see test_train_ranks.py
        first = [record[name] for record in one[:10]]
        assert [record[name] for record in two[:10]] == pytest.approx(first, rel=1e-3)

    broken = runs.submit("broken", 2)
    runs.wait_for_step("broken", 5)
    runs.cluster.ask("scontrol", "requeue", broken)  # an administrator's, or after the loss of a node
    runs.again(broken, starts=2)
    runs.wait_for_step("broken", runs.steps("broken") + 10)
    runs.cluster.ask("scancel", "--signal=USR1", "--batch", broken)  # what Slurm sends before a time limit
    runs.again(broken, starts=3)
    runs.wait_for_step("broken", runs.steps("broken") + 10)
    urgent = runs.cluster.ask(  # preemption
        "sbatch",
        "--parsable",
        "--partition=urgent",
        "-N2",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=true",
    ).strip()
    runs.cluster.wait_for_job(urgent, ENDED)
    runs.again(broken, starts=4)
    runs.finish(broken)
    assert "train: time limit near, saving" in runs.cluster.log("train", broken)
    assert runs.curve("broken") == two
    weights = runs.weights("two")
    assert all(torch.equal(value, weights[name]) for name, value in runs.weights("broken").items())


def test_two_nodes_score_as_one_process(runs, tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(name="tiny", architecture=ARCHITECTURE)
    export_model(build_model(config), config, tmp_path / "model", provenance={})
    write_classification(tmp_path / "things")
    datasets = {"things": {"tasks": ["zero_shot"], "metric": "acc1"}}
    alone = run_suite(tmp_path, datasets, f"pretrained={tmp_path / 'model'}", output="alone")
    job = runs.cluster.submit(
        "evaluate", f"cluster={runs.cluster_file}", "nodes=2", "device=cpu", f"pretrained={tmp_path / 'model'}",
        f"hydra.searchpath=[file://{tmp_path / 'configs'}]", "suite=made", f"data_root={tmp_path}", "num_workers=0",
        f"output_dir={tmp_path / 'together'}", f"cache_dir={tmp_path / 'other'}", CRAWL2CLIP_PORT=str(free_port()),
    )  # fmt: skip
    runs.cluster.wait_for_job(job, ENDED)
    log = runs.cluster.log("evaluate", job)
    assert runs.cluster.job_state(job) == "COMPLETED", log
    assert "preflight: n2: ok" in log
    together = {(result.dataset, result.task): result for result in read_results(tmp_path / "together")}
    assert {key: result.metrics for key, result in together.items()} == {
        key: result.metrics for key, result in alone.items()
    }

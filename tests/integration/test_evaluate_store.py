"""An evaluation whose weights, data and results are in an object store: as on a disk, and resumed from there.

The store is real s3fs against a stand-in on loopback, tests/object_server.py.
"""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from evaluation_sets import ARCHITECTURE, write_classification, write_retrieval
from hydra import compose, initialize_config_dir
from object_server import worked_on_store

from crawl2clip import storage
from crawl2clip.config import CONFIG_DIR, register, typed
from crawl2clip.distributed import World, single_process
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.export import export_model
from crawl2clip.models import ModelConfig, build_model
from crawl2clip.store_copies import copy_folder, copy_weights
from evaluate import subcommands
from evaluate.command import run
from evaluate.config import EvaluateConfig
from evaluate.data.datasets import DatasetConfig, Task
from evaluate.data.stored import bring_datasets
from evaluate.ranks import once_a_node
from evaluate.results import Result, read_results

pytest.importorskip("s3fs", reason="object stores need s3fs: pip install 's3fs>=2024.2'")
SUITE = {
    "name": "made",
    "datasets": {
        "things": {"tasks": ["zero_shot"], "metric": "acc1"},
        "told": {"tasks": ["retrieval"], "metric": "image_retrieval_recall@5"},
    },
}


@pytest.fixture
def server(tmp_path, monkeypatch):
    with worked_on_store(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture
def bucket(server):
    """A store with two data sets, one of them with a split that no task reads, and a model as a folder and a file."""
    bucket = server.folder / "bucket"
    for split in ("test", "train"):
        write_classification(bucket / "data" / "things", num_classes=5, per_class=4, split=split)
    write_retrieval(bucket / "data" / "told", num_images=12)
    torch.manual_seed(0)
    config = ModelConfig(name="tiny", architecture=ARCHITECTURE)
    export_model(build_model(config), config, bucket / "export", provenance={})
    return bucket


def evaluated(tmp_path, *words, suite=SUITE):
    """Runs the command's function, and gives the settings as it took them."""
    folder = tmp_path / "configs" / "suite"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "made.yaml").write_text(json.dumps(suite))
    register("evaluate_schema", EvaluateConfig)
    overrides = [
        f"hydra.searchpath=[file://{folder.parent}]", "suite=made", "cache_dir=null", "num_workers=0", "device=cpu",
        "save_predictions=true", *words,
    ]  # fmt: skip
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        composed = compose("evaluate", overrides)
    run(typed(composed, EvaluateConfig), composed)


IN_STORE = ("data_root=s3://bucket/data", "pretrained=s3://bucket/export", "output_dir=s3://bucket/scores")


def numbers(results: list[Result]):
    return [(r.dataset, r.task, r.metrics, r.weights_sha256, r.data_sha256) for r in results]


def test_a_run_in_a_store_gives_the_numbers_of_one_on_a_disk(server, bucket, tmp_path, capsys):
    evaluated(
        tmp_path, f"data_root={bucket / 'data'}", f"pretrained={bucket / 'export'}", f"output_dir={tmp_path / 'out'}"
    )  # fmt: skip
    capsys.readouterr()
    evaluated(tmp_path, *IN_STORE)
    found = read_results(bucket / "scores")
    assert numbers(found) == numbers(read_results(tmp_path / "out"))
    assert {result.pretrained for result in found} == {"s3://bucket/export"}
    assert (
        "results: s3://bucket/scores/results.md, s3://bucket/scores/results.html" in capsys.readouterr().out
    )
    names = sorted(path.name for path in (bucket / "scores").iterdir() if path.name[0] != ".")
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(list((bucket / "scores").glob("results/*/*.npz"))) == 2
    # No file of a split that nobody reads has been asked for.
    assert not [path for path in server.requests if "things/train" in path]


def test_another_machine_goes_on_with_the_results_in_the_store(server, bucket, tmp_path, caplog):
    server.refused_puts["told.retrieval.json"] = 1
    with pytest.raises(DataError, match=r"told\.retrieval\.json: the store refuses"):
        evaluated(tmp_path, *IN_STORE)
    assert [path.name for path in bucket.glob("scores/results/*/*.json")] == ["things.zero_shot.json"]
    shutil.rmtree(tmp_path / "scratch")
    server.requests.clear()
    with caplog.at_level(logging.INFO):
        evaluated(tmp_path, *IN_STORE)
    assert "zero_shot of things is taken from" in caplog.text
    assert "retrieval of told is taken from" not in caplog.text
    assert len(read_results(bucket / "scores")) == 2
    # Once more here: weights and data have not changed, and are not brought again.
    server.requests.clear()
    evaluated(tmp_path, *IN_STORE)
    assert not [path for path in server.requests if path.endswith((".tar", ".safetensors"))]


def test_two_runs_in_a_store_are_compared(server, bucket, tmp_path, capsys):
    torch.manual_seed(1)
    config = ModelConfig(name="tiny", architecture=ARCHITECTURE)
    export_model(build_model(config), config, bucket / "other", provenance={})
    evaluated(tmp_path, *IN_STORE)
    evaluated(tmp_path, *IN_STORE[:1], "pretrained=s3://bucket/other", "output_dir=s3://bucket/others")
    shutil.rmtree(tmp_path / "scratch")
    capsys.readouterr()
    assert subcommands.main(["compare", "s3://bucket/scores", "s3://bucket/others"]) == 0
    assert "things" in capsys.readouterr().out


def test_weights_are_brought_when_they_have_changed(server, bucket):
    file = bucket / "epoch.pt"
    file.write_bytes(b"first")
    path = Path(copy_weights("s3://bucket/epoch.pt"))
    copy_weights("s3://bucket/epoch.pt")
    assert (path.read_bytes(), server.requests["/bucket/epoch.pt"]) == (b"first", 1)
    file.write_bytes(b"other")
    assert Path(copy_weights("s3://bucket/epoch.pt")).read_bytes() == b"other"
    assert (Path(copy_weights("s3://bucket/export")) / "open_clip_config.json").is_file()
    assert copy_weights("openai") == "openai"
    with pytest.raises(DataError, match=r"s3://bucket/none is neither a file nor an export folder"):
        copy_weights("s3://bucket/none")


def test_pickled_code_in_the_store_is_not_run(server, bucket, tmp_path):
    (bucket / "evil.pt").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "run").encode() + b"'\ntR.")
    with pytest.raises(DataError, match="pickled code is never run"):
        evaluated(tmp_path, *IN_STORE[::2], "model=vit_b_32", "pretrained=s3://bucket/evil.pt")
    assert not (tmp_path / "run").exists()


def test_a_copy_follows_the_store(server, bucket, tmp_path):
    folder = storage.local_path("s3://bucket/data/told")
    copy_folder(folder)
    (folder / "mine.txt").write_text("not from there")
    (bucket / "data" / "told" / "dataset_type.txt").unlink()
    (bucket / "data" / "told" / "test" / "0.tar").write_bytes(b"new")
    (folder / "test" / "1.tar").unlink()
    copy_folder(folder)
    assert not (folder / "dataset_type.txt").exists()
    assert (folder / "test" / "0.tar").read_bytes() == b"new"
    assert (folder / "test" / "1.tar").is_file()
    assert (folder / "mine.txt").is_file()
    (folder.parent / ".told.versions.json").write_text("[")
    copy_folder(folder)
    copy_folder(tmp_path / "local")
    assert not (tmp_path / "local").exists()


@pytest.mark.parametrize("name", ["../outside.tar", "test//0.tar", "test/./0.tar"])
def test_a_name_that_leads_out_of_the_folder_is_refused(server, monkeypatch, tmp_path, name):
    monkeypatch.setattr(storage, "asked", lambda *_: {f"bucket/data/told/{name}": {"ETag": "x"}})
    with pytest.raises(DataError, match=r"cannot be a file of a folder here"):
        copy_folder(storage.local_path("s3://bucket/data/told"))
    assert not list(tmp_path.glob("scratch/**/*.tar"))


def test_a_data_set_with_an_address_of_its_own(server, bucket, tmp_path):
    configs = {
        "mine": DatasetConfig(
            path="s3://bucket/data/told", tasks=[Task.retrieval], metric="image_retrieval_recall@5"
        )
    }
    bring_datasets(configs, tmp_path, single_process())
    assert (storage.local_path("s3://bucket/data/told") / "test" / "1.tar").is_file()


def test_a_data_set_that_is_not_there_is_named(server, bucket, tmp_path):
    suite = {
        "name": "made",
        "datasets": {"none": {"tasks": ["retrieval"], "metric": "image_retrieval_recall@5"}},
    }
    with pytest.raises(DataError, match=r"data set 'none': no split 'test' at .*s3:/bucket/data/none"):
        evaluated(tmp_path, *IN_STORE, suite=suite)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("cache_dir=s3://bucket/cache",),
            "cache_dir is s3://bucket/cache; features are kept in a folder of this",
        ),
        (
            ("download=true",),
            "download=true with data_root=s3://bucket/data: data sets are fetched to a folder of",
        ),
    ],
)
def test_what_must_be_local_says_so(tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        evaluated(tmp_path, *IN_STORE, *words)


def test_one_rank_of_a_node_copies_and_its_error_is_everybodys():
    called = []

    class Ranks(World):
        def all_gather_object(self, value):
            return [value or DataError("gone"), None]

    with pytest.raises(DataError, match="gone"):
        once_a_node(Ranks(1, 2, 1, torch.device("cpu")), lambda: called.append(1))
    assert called == []

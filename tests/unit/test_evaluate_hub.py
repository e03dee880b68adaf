"""Fetching data sets: from a stand-in for the hub and from a plain web server, whole or not at all, and offline."""

import functools
import os
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from evaluation_sets import write_classification
from hub_server import COMMIT, hub_server

from crawl2clip.errors import ConfigError, DataError
from evaluate.data.datasets import DatasetConfig, Task, fetch_datasets, open_dataset
from evaluate.data.hub import parse_reference
from evaluate.data.manifest import DATASET_MANIFEST, read_dataset_manifest

REPO = "clip-benchmark/wds_things"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    published = write_classification(tmp_path / "published")
    (published / "README.md").write_text("licence: none\n")
    (published / "test" / "notes.exe").write_bytes(b"not of the layout")
    write_classification(published, split="train", seed=1, num_shards=1)
    with hub_server({REPO: published}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def config(**settings):
    return DatasetConfig(**{"tasks": [Task.zero_shot], "metric": "acc1", "hub": REPO, **settings})


def test_a_published_set_is_fetched_checked_and_noted_down(tmp_path, hub):
    fetch_datasets({"things": config()}, data_root=tmp_path / "data")
    folder = tmp_path / "data" / "things"
    assert sorted(path.name for path in (folder / "test").iterdir()) == ["0.tar", "1.tar", "nshards.txt"]
    assert not (folder / "train").exists()
    manifest = read_dataset_manifest(folder)
    assert manifest.source == {"hub": REPO, "revision": COMMIT}
    assert (manifest.classes, manifest.splits["test"].samples) == (6, 30)
    opened = open_dataset("things", config(), data_root=tmp_path / "data")
    assert [record.label for record in opened.test.records()] == [i % 6 for i in range(30)]
    asked = len(hub.asked)
    open_dataset("things", config(), data_root=tmp_path / "data", download=True)
    assert len(hub.asked) == asked  # whole already: the hub is not asked at all


def test_another_split_and_a_lost_tar_are_fetched_and_nothing_twice(tmp_path, hub):
    fetch_datasets({"things": config()}, data_root=tmp_path / "data")
    (tmp_path / "data" / "things" / "test" / "1.tar").unlink()
    probe = config(tasks=[Task.linear_probe])
    with pytest.raises(DataError, match=r"says 2 shards, 1 found .missing: 1.tar"):
        open_dataset("things", probe, data_root=tmp_path / "data")
    hub.asked.clear()
    opened = open_dataset("things", probe, data_root=tmp_path / "data", download=True)
    assert hub.downloads() == ["test/1.tar", "train/0.tar"]
    assert (opened.test.num_samples, opened.train.num_samples) == (30, 30)
    assert sorted(read_dataset_manifest(tmp_path / "data" / "things").splits) == ["test", "train"]


def test_a_tar_that_arrives_damaged_is_an_error(tmp_path, hub):
    tar = (hub.datasets[REPO] / "test" / "1.tar").read_bytes()
    hub.damage["test/1.tar"] = tar[:-700] + bytes(700 - 1) + b"x"
    with pytest.raises(DataError, match=r"1.tar is not what hub data set .*announces .SHA-256.*delete it"):
        fetch_datasets({"things": config()}, data_root=tmp_path / "data")
    assert not (tmp_path / "data" / "things" / DATASET_MANIFEST).exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hub": "clip-benchmark/wds_thing"}, r"clip-benchmark/wds_thing cannot be fetched.*Check the name"),
        ({"hub": f"{REPO}@v9"}, r"wds_things at revision v9 cannot be fetched"),
        ({"test_split": "val"}, r"no split 'val' in webdataset layout .*its splits: test, train"),
    ],
)
def test_what_the_hub_does_not_have_is_named(tmp_path, hub, settings, message):
    with pytest.raises(DataError, match=message):
        fetch_datasets({"things": config(**settings)}, data_root=tmp_path / "data")


def test_a_gated_set_says_that_a_token_is_needed(tmp_path, hub):
    hub.gated.add(REPO)
    with pytest.raises(DataError, match=r"cannot be fetched.*for a gated set, that HF_TOKEN is set"):
        fetch_datasets({"things": config()}, data_root=tmp_path / "data")


def test_winogrounds_files_are_asked_for_by_name(tmp_path, hub):
    hub.datasets["facebook/winoground"] = hub.datasets[REPO]
    pairs = DatasetConfig(tasks=[Task.selection], metric="group_score", builder="winoground")
    with pytest.raises(DataError, match=r"no file 'data/examples.jsonl'; it has README.md, .*by hand"):
        fetch_datasets({"winoground": pairs}, data_root=tmp_path / "data")


def test_an_offline_machine_is_told_what_to_do(tmp_path, hub, monkeypatch):
    from huggingface_hub import constants

    by_hand = rf"hf download {REPO} --repo-type dataset --local-dir .*things"
    with pytest.raises(DataError, match=rf"fetch it with download=true and HF_HUB_OFFLINE=0, or .*{by_hand}"):
        open_dataset("things", config(), data_root=tmp_path / "data")
    with pytest.raises(DataError, match=rf"'things': no split 'test' .*does not exist.*{by_hand}"):
        open_dataset("things", config(builder="cifar10"), data_root=tmp_path / "data")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=rf"cannot be fetched from http://127.0.0.1:9: Connect.*{by_hand}"):
        fetch_datasets({"things": config()}, data_root=tmp_path / "data")
    assert hub.asked == []


def test_the_environments_settings_of_the_hub_are_followed(tmp_path, hub):
    """In processes of their own, since the client reads them when it is imported."""
    code = (
        "import sys; from pathlib import Path; from evaluate.data.hub import fetch_from_hub\n"
        f"print(fetch_from_hub({REPO!r}, Path(sys.argv[1]), ['test']))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}

    def run(offline):
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "things")],
            env={**environment, "HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    refused = run("1")
    assert refused.returncode == 1
    assert (
        "HF_HUB_OFFLINE is set (the commands set it unless you do): run with HF_HUB_OFFLINE=0"
        in refused.stderr
    )
    assert hub.asked == []
    fetched = run("0")
    assert fetched.returncode == 0, fetched.stderr
    assert fetched.stdout.strip() == str({"hub": REPO, "revision": COMMIT})
    assert (tmp_path / "things" / "test" / "1.tar").read_bytes() == (
        hub.datasets[REPO] / "test" / "1.tar"
    ).read_bytes()


def test_references_to_the_hub():
    assert parse_reference("a-b/c.d_e") == ("a-b/c.d_e", None)
    assert parse_reference("a/b@v1.0") == ("a/b", "v1.0")
    assert parse_reference("https://huggingface.co/datasets/a/b/tree/main") == ("a/b", "main")
    for wrong in ("b", "a/b/c", "a/b@", "../a/b", "a/b c"):
        with pytest.raises(ConfigError, match="give owner/name, owner/name@revision or the address"):
            parse_reference(wrong)


@pytest.fixture
def web(tmp_path):
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def send_header(self, keyword, value):
        if keyword == "Content-Length" and self.path.endswith("short/test/1.tar"):
            value = str(int(value) + 512)
            self.close_connection = True
        super().send_header(keyword, value)


def test_a_web_server_in_the_layout_is_fetched(tmp_path, web):
    write_classification(tmp_path / "published")
    settings = config(hub=None, url=f"{web}/published/")
    opened = open_dataset("things", settings, data_root=tmp_path / "data", download=True)
    assert opened.test.num_samples == 30
    assert opened.prompts.class_names[1] == "thing 1"
    assert read_dataset_manifest(tmp_path / "data" / "things").source == {"url": f"{web}/published/"}


def test_a_tar_of_another_size_is_fetched_again(tmp_path, web):
    write_classification(tmp_path / "published")
    target = tmp_path / "data" / "things" / "test"
    target.mkdir(parents=True)
    (target / "0.tar").write_bytes(b"of an earlier version")
    opened = open_dataset(
        "things", config(hub=None, url=f"{web}/published"), data_root=tmp_path / "data", download=True
    )
    assert opened.test.num_samples == 30


def test_what_a_web_server_does_not_give_is_named(tmp_path, web):
    write_classification(tmp_path / "short")
    for number, (url, message) in enumerate(
        (
            (f"{web}/short", r"1.tar announced \d+ bytes and gave \d+; run again"),
            (f"{web}/nowhere", r"nowhere/test/nshards.txt cannot be fetched: HTTP Error 404"),
            ("http://127.0.0.1:9/x", r"cannot be fetched: .*check the network, or copy the data set"),
        )
    ):
        with pytest.raises(DataError, match=message):
            fetch_datasets({"things": config(hub=None, url=url)}, data_root=tmp_path / f"data{number}")
    assert sorted(file.name for file in (tmp_path / "data0" / "things" / "test").iterdir()) == [
        "0.tar",
        "nshards.txt",
    ]
    with pytest.raises(ConfigError, match="url is 'ftp://x'; give an address"):
        fetch_datasets({"things": config(hub=None, url="ftp://x")}, data_root=tmp_path / "none")
    with pytest.raises(DataError, match=r"or fetch it from http://h/x with download=true"):
        open_dataset("none", config(hub=None, url="http://h/x"), data_root=tmp_path / "data")

"""The download stage as a whole: candidates in, raw shards out, whatever the servers do to it."""

import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawl_files import compiled_library
from hostile_server import GOOD_JPEG, HostileServer, no_dns, response
from PIL import Image
from sample_images import image_file

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import write_json
from crawl2clip.schema import CANDIDATE_SCHEMA, DOWNLOAD_SCHEMA, uid_of
from crawl2clip.shards import raise_fault, read_samples
from data_pipeline import decoders as decoders_module
from data_pipeline.download import DownloadConfig, DownloadStage, interleave_by_host, make_stage
from data_pipeline.image_config import PIXEL_LIMIT, Decoding, ImageConfig, ResizeMode, StoredFormat, Upscaling
from data_pipeline.images import perceptual_hash
from data_pipeline.policy import PolicyConfig
from data_pipeline.published import PublishedConfig
from data_pipeline.stage import (
    Counts,
    Outcome,
    Shard,
    make_shard,
    publish_shard,
    read_stats,
    run_stage,
    temporary_folder,
)
from data_pipeline.update import EarlierRun

IMAGES = ImageConfig(
    resize_mode=ResizeMode.keep_ratio,
    size=32,
    only_if_bigger=True,
    upscaling=Upscaling.lanczos,
    decoding=Decoding.exact,
    format=StoredFormat.jpg,
    quality=95,
    min_size=2,
    max_aspect_ratio=None,
    max_pixels=PIXEL_LIMIT,
    max_frames=100,
)
POLICY = PolicyConfig(
    robots=True,
    opt_out_directives=["noai", "noimageai", "noindex", "noimageindex"],
    tdmrep=False,
    aipref_usages=[],
)
PUBLISHED = PublishedConfig(
    hash_column=None, phash_column=None, near_bits=8, drop_mismatches=True, boxes_column=None
)
CONFIG = DownloadConfig(
    user_agent="crawl2clip/0.1 (+https://example.org/bot)",
    concurrency=64,
    per_host_connections=64,
    per_host_requests_per_s=10_000.0,
    max_host_failures=1_000,
    nameservers=[],
    connect_timeout_s=2.0,
    first_byte_timeout_s=2.0,
    read_timeout_s=2.0,  # what a good answer has on a busy machine, and what each stalling one costs
    min_bytes_per_s=0.0,
    total_timeout_s=4.0,
    task_timeout_s=30.0,
    retries=0,
    backoff_s=0.02,
    max_retry_after_s=1.0,
    max_redirects=5,
    max_bytes=1_000_000,
    allow_loopback=True,
    policy=POLICY,
    passes=1,
    shard_deadline_s=60.0,
    decoders=2,
    decode_timeout_s=20.0,
    decode_memory_mb=1000,
    published=PUBLISHED,
    images=IMAGES,
)
STATUSES = {
    "/good": "success",
    "/wrong_type": "success",
    "/gzipped": "success",
    "/polyglot": "success",
    "/good/ü mit Leerzeichen": "success",
    "/stall": "timeout",
    "/drip_body": "timeout",
    "/endless_body": "too_large",
    "/gzip_bomb": "too_large",
    "/loop": "too_many_redirects",
    "/to_metadata": "address_refused",
    "file:///etc/passwd": "invalid_url",
    "/huge_png": "too_many_pixels",
    "/truncated_jpeg": "undecodable",
    "/tiny_gif": "too_small",
    "/animation": "too_many_frames",
    "/svg": "unsupported_type",
    "/html": "unsupported_type",
    "/missing": "http_error",
    "/gone": "http_error",
    "/broken_chunking": "connect_error",
    "/noai": "opted_out",
    "/private/x.jpg": "robots_disallowed",
    "/empty": "empty_body",
    "http://nosuch.invalid/": "dns_error",
}


def candidate(url: str, text: str) -> dict[str, object]:
    return {
        "uid": uid_of(url, text),
        "url": url,
        "text": text,
        "text_source": "alt",
        "page_url": "http://page.example/",
        "license": "https://creativecommons.org/licenses/by/4.0/",
        "offset": 7,
    }


def write_candidates(folder: Path, shards: dict[str, list[dict[str, object]]]) -> None:
    """A finished deduplicate stage's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in shards.items():
        rows = sorted(rows, key=lambda row: str(row["uid"]))
        pq.write_table(pa.Table.from_pylist(rows, schema=CANDIDATE_SCHEMA), folder / f"{name}.parquet")
        write_json(folder / f"{name}.stats.json", {"counts": Counts().to_json(), "seconds": 0.0})
    manifest = {"settings": {}, "upstream": {}, "shards": [{"name": name, "inputs": []} for name in shards]}
    write_json(folder / "manifest.json", manifest)


def stage(folder: Path, config: DownloadConfig = CONFIG, min_bytes: int = 0) -> DownloadStage:
    return DownloadStage(
        name="download",
        folder=folder / "raw",
        settings={},
        candidates=folder / "deduplicated",
        config=config,
        min_bytes=min_bytes,
    )


def download(
    folder: Path, rows: list[dict[str, object]], config: DownloadConfig = CONFIG, min_bytes: int = 0
) -> Counts:
    """Runs one shard in this process; its files are then in folder/raw."""
    write_candidates(folder / "deduplicated", {"00000000": rows})
    work = stage(folder, config, min_bytes)
    worker = work.setup()
    (folder / "raw").mkdir()
    try:
        return work.run(worker, next(iter(work.shards())), folder / "raw")
    finally:
        worker.close()


@pytest.fixture(scope="module")
def server():
    with HostileServer() as server:
        yield server


@pytest.fixture(scope="module")
def mixed(server, tmp_path_factory):
    """One shard with every kind of URL, two captions each: (folder, counts)."""
    folder = tmp_path_factory.mktemp("mixed")
    urls = {path: path if "://" in path else server.url(path) for path in STATUSES}
    rows = [candidate(url, f"{path} {number}") for path, url in urls.items() for number in (1, 2)]
    with no_dns():
        return folder / "raw", download(folder, rows)


def test_every_url_has_a_row_with_its_status(mixed):
    folder, counts = mixed
    table = pq.read_table(folder / "00000000.parquet")
    assert table.schema.equals(DOWNLOAD_SCHEMA)
    rows = table.to_pylist()
    assert [row["uid"] for row in rows] == sorted(row["uid"] for row in rows)
    for row in rows:
        assert row["status"] == STATUSES[row["text"][:-2]], row
        assert (row["error"] is None) == (row["status"] == "success")
    assert (counts.rows_in, counts.rows_out) == (2 * len(STATUSES), 10)
    assert counts.dropped["timeout"] == 4
    assert counts.rows_in == counts.rows_out + counts.dropped.total()


def test_a_url_with_several_captions_is_fetched_once(server, mixed):
    assert server.requests["/good"] == 1
    assert server.requests["/gone"] == 1
    assert server.requests["/robots.txt"] == 1
    assert mixed[1].extra["urls"] == len(STATUSES)


def test_samples_are_whole_and_in_the_order_of_the_rows(mixed):
    folder, _ = mixed
    rows = [
        row for row in pq.read_table(folder / "00000000.parquet").to_pylist() if row["status"] == "success"
    ]
    samples = list(read_samples(folder / "00000000.tar", raise_fault))
    assert [sample.key for sample in samples] == [row["uid"] for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        assert set(sample.fields) == {"jpg", "txt", "json"}
        assert sample.fields["txt"].decode() == row["text"]
        described = json.loads(sample.fields["json"])
        assert described == {name: row[name] for name in described}
        assert (row["original_width"], row["original_height"], row["width"], row["height"]) == (
            96,
            64,
            48,
            32,
        )
        assert Image.open(io.BytesIO(sample.fields["jpg"])).size == (48, 32)
        assert row["format"] == "jpeg"
        assert row["license"] == "https://creativecommons.org/licenses/by/4.0/"
        if "polyglot" not in row["url"]:
            assert row["sha256"] == hashlib.sha256(GOOD_JPEG).hexdigest()
            assert row["bytes"] == len(GOOD_JPEG)


def test_lost_rows_keep_what_is_known(mixed):
    rows = {row["text"]: row for row in pq.read_table(mixed[0] / "00000000.parquet").to_pylist()}
    huge = rows["/huge_png 1"]
    assert (huge["original_width"], huge["format"], huge["width"]) == (30_000, "png", None)
    assert len(huge["sha256"]) == 64
    assert rows["/gone 1"]["http_status"] == 410
    assert rows["/noai 2"]["consent"] == "robots.txt=allowed:rules; x-robots-tag=refused:noai"
    assert rows["/private/x.jpg 1"]["consent"] == "robots.txt=refused:rules"


def test_small_bodies_are_dropped_by_the_recipes_limit(server, tmp_path):
    rows = [candidate(server.url("/good"), "small")]
    counts = download(tmp_path, rows, min_bytes=len(GOOD_JPEG) + 1)
    assert counts.dropped == {"too_small_bytes": 1}


def test_kept_pngs_stay_as_they_came(server, tmp_path):
    body = image_file(72, 72, "PNG", mode="P")
    server.files["/emoji.png"] = response(200, body)
    config = replace(CONFIG, images=replace(IMAGES, resize_mode=ResizeMode.no, format=StoredFormat.keep))
    download(tmp_path, [candidate(server.url("/emoji.png"), "a face")], config)
    (sample,) = read_samples(tmp_path / "raw" / "00000000.tar", raise_fault)
    assert sample.fields["png"] == body


def test_the_shards_deadline_ends_what_is_late(tmp_path):
    with HostileServer() as server:
        config = replace(CONFIG, shard_deadline_s=3.0, first_byte_timeout_s=50.0, total_timeout_s=50.0)
        rows = [candidate(server.url("/stall"), "late"), candidate(server.url("/good"), "in time")]
        counts = download(tmp_path, rows, config)
        assert (counts.rows_out, counts.dropped) == (1, {"timeout": 1})
        table = pq.read_table(tmp_path / "raw" / "00000000.parquet").to_pylist()
        assert {row["error"] for row in table} == {None, "the shard's deadline passed"}


def test_a_shard_without_rows_is_a_shard(tmp_path):
    counts = download(tmp_path, [])
    assert (counts.rows_in, counts.rows_out) == (0, 0)
    assert pq.read_table(tmp_path / "raw" / "00000000.parquet").num_rows == 0
    assert (tmp_path / "raw" / "00000000.tar").exists()


@pytest.mark.parametrize("damage", [b"", b"PAR1 cut off", None])
def test_damaged_candidates_are_named(tmp_path, damage):
    write_candidates(tmp_path / "deduplicated", {"00000000": []})
    path = tmp_path / "deduplicated" / "00000000.parquet"
    path.unlink() if damage is None else path.write_bytes(damage)
    work = stage(tmp_path)
    worker = work.setup()
    with pytest.raises(DataError, match=r"00000000\.parquet cannot be read"):
        work.run(worker, Shard("00000000", (str(path),)), tmp_path)
    worker.close()


def test_the_same_answers_give_the_same_bytes_in_whatever_order_they_come(tmp_path):
    with HostileServer() as server:
        for number in range(30):
            server.files[f"/image/{number}"] = response(200, image_file(80, 60, seed=number))
        rows = [candidate(server.url(f"/image/{number}"), f"picture {number}") for number in range(30)]
        rows += [candidate(server.url("/slow"), "slow"), candidate(server.url("/gone"), "gone")]
        download(tmp_path / "a", rows)
        download(tmp_path / "b", rows, replace(CONFIG, concurrency=1, decoders=1))
        for name in ("00000000.tar", "00000000.parquet"):
            assert (tmp_path / "a/raw" / name).read_bytes() == (tmp_path / "b/raw" / name).read_bytes()


def test_a_shard_is_the_same_without_compiled_code(tmp_path, monkeypatch):
    if compiled_library() is None:
        pytest.skip("needs a C compiler: cc, gcc or clang, or CC")
    with HostileServer() as server:
        for number in range(20):
            server.files[f"/image/{number}"] = response(200, image_file(90 + number, 70, seed=number))
        rows = [candidate(server.url(f"/image/{number}"), f"picture {number}") for number in range(20)]
        download(tmp_path / "a", rows)
        without = "from data_pipeline import native; native.load = lambda: None; " + decoders_module._START
        monkeypatch.setattr(decoders_module, "_START", without)
        download(tmp_path / "b", rows)
    for name in ("00000000.tar", "00000000.parquet"):
        assert (tmp_path / "a/raw" / name).read_bytes() == (tmp_path / "b/raw" / name).read_bytes()


def test_a_second_pass_tries_what_may_pass_and_nothing_else(tmp_path):
    with HostileServer() as server:
        paths = [
            "/good",
            "/broken_for_a_while/1",
            "/broken_for_a_while/9",
            "/gone",
            "/noai",
            "/truncated_jpeg",
        ]
        rows = [candidate(server.url(path), path) for path in paths]
        counts = download(tmp_path, rows, replace(CONFIG, passes=2))
        assert counts.rows_out == 2
        assert counts.dropped == {"http_error": 2, "opted_out": 1, "undecodable": 1}
        assert (counts.extra["http_503"], counts.extra["http_410"]) == (1, 1)
        assert counts.extra["second_pass"] == 2
        asked = {path: server.requests[path] for path in paths}
        assert asked == dict.fromkeys(paths, 1) | {"/broken_for_a_while/1": 2, "/broken_for_a_while/9": 2}


def test_a_site_whose_robots_failed_is_asked_again_in_the_second_pass(tmp_path):
    with HostileServer() as server:
        server.robots = None  # stalls, and the first pass gives it up

        def recover() -> None:
            while server.requests["/robots.txt"] < 1:
                time.sleep(0.01)
            server.robots = (404, b"")

        threading.Thread(target=recover, daemon=True).start()
        rows = [candidate(server.url(f"/good/{number}"), f"{number}") for number in range(5)]
        counts = download(tmp_path, rows, replace(CONFIG, passes=2))
        assert counts.rows_out == 5
        assert server.requests["/robots.txt"] == 2


def test_decoders_that_are_killed_cost_no_image(tmp_path):
    with HostileServer() as server:
        for number in range(40):
            server.files[f"/image/{number}"] = response(200, image_file(400, 300, seed=number))
        rows = [candidate(server.url(f"/image/{number}"), f"picture {number}") for number in range(40)]
        write_candidates(tmp_path / "deduplicated", {"00000000": rows})
        work = stage(tmp_path)
        worker = work.setup()
        (tmp_path / "raw").mkdir()

        def kill() -> None:
            for _ in range(3):
                seen = server.requests.total()
                while server.requests.total() < min(seen + 8, 41):
                    time.sleep(0.001)
                for decoder in list(worker.decoders._decoders):
                    decoder.process.kill()

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        counts = work.run(worker, next(iter(work.shards())), tmp_path / "raw")
        killer.join(20)
        worker.close()
        assert counts.rows_out + counts.dropped["decoder_failed"] == 40
        assert counts.rows_out >= 37  # only a file whose decoder was killed twice is given up


def finished(folder: Path, work: DownloadStage) -> None:
    """Runs a stage as the pipeline does, without processes for shards."""
    report = run_stage(work, InThisProcess(), max_failed_fraction=0.0)
    assert report.failed == {}


def test_an_update_fetches_failures_only_and_takes_over_the_rest(tmp_path):
    with HostileServer() as server:
        paths = ["/good/1", "/good/2", "/broken_for_a_while/1", "/gone", "/tiny_gif"]
        rows = [candidate(server.url(path), path) for path in paths]
        rows.append(candidate(server.url("/good/1"), "another text for the first"))
        write_candidates(tmp_path / "a" / "deduplicated", {"00000000": rows})
        first = stage(tmp_path / "a")
        finished(tmp_path / "a", first)
        before = dict(server.requests)

        again = stage(tmp_path / "b")
        again.earlier = EarlierRun(tmp_path / "a" / "raw")
        again.earlier.check(again.settings)
        finished(tmp_path / "b", again)
        asked = {path: server.requests[path] - before[path] for path in paths}
        assert asked == {"/good/1": 0, "/good/2": 0, "/broken_for_a_while/1": 1, "/gone": 1, "/tiny_gif": 1}
        counts = read_stats(tmp_path / "b" / "raw", "00000000")["counts"]
        assert (counts["rows_in"], counts["rows_out"]) == (6, 4)
        assert counts["extra"]["taken_over"] == 2

        # The result is what one run with this luck would have made.
        server.requests["/broken_for_a_while/1"] = 5
        write_candidates(tmp_path / "c" / "deduplicated", {"00000000": rows})
        finished(tmp_path / "c", stage(tmp_path / "c"))
        for name in ("00000000.tar", "00000000.parquet"):
            assert (tmp_path / "b/raw" / name).read_bytes() == (tmp_path / "c/raw" / name).read_bytes()

        tar = tmp_path / "a" / "raw" / "00000000.tar"
        tar.write_bytes(tar.read_bytes()[:2048] + bytes(1024))
        work = stage(tmp_path / "d")
        work.earlier = EarlierRun(tmp_path / "a" / "raw")
        with pytest.raises(DataError, match=r"00000000\.tar"):
            finished(tmp_path / "d", work)


def test_an_update_of_what_cannot_be_updated_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"download.update is .*, and .*raw holds no download; give the output_dir"
    ):
        EarlierRun(tmp_path / "raw").check({})
    (tmp_path / "raw").mkdir()
    shards = [{"name": "00000000", "inputs": []}]
    manifest = {"settings": {"images": {"size": 256}}, "shards": shards}
    write_json(tmp_path / "raw" / "manifest.json", manifest)
    with pytest.raises(
        ConfigError, match="where 1 of 1 shards are not finished; finish its stage=download first"
    ):
        EarlierRun(tmp_path / "raw").check({})
    write_json(tmp_path / "raw" / "00000000.stats.json", {})
    with pytest.raises(
        ConfigError, match=r"made with images \{'size': 256\}, and this run has \{'size': 512\}"
    ):
        EarlierRun(tmp_path / "raw").check({"images": {"size": 512}})
    EarlierRun(tmp_path / "raw").check({"images": {"size": 256}})


def test_a_published_lists_hashes_and_boxes_are_used_and_its_columns_stay(server, tmp_path):
    phash = perceptual_hash(np.asarray(Image.open(io.BytesIO(GOOD_JPEG)).convert("RGB")))
    listed = {
        "exact": {"hash": hashlib.sha256(GOOD_JPEG).hexdigest(), "similarity": 0.31, "bag": [1, "ü"]},
        "exact by md5": {"hash": hashlib.md5(GOOD_JPEG).hexdigest().upper()},
        "near": {"hash": "0" * 64, "look": phash},
        "mismatch": {"hash": "0" * 64},
        "mismatch by look": {"look": f"{int(phash, 16) ^ (2**64 - 1):016x}"},
        "nothing to compare": {"hash": "soon"},
        "blurred": {"boxes": [[0.1, 0.1, 0.9, 0.9]]},
        "boxes unreadable": {"boxes": [[0.1, "x"]]},
        "boxes in text": {"boxes": "[[0.1, 0.1, 0.9, 0.9]]"},
    }
    rows = [
        candidate(server.url(f"/good/listed/{number}"), text) | {"listed": json.dumps(columns)}
        for number, (text, columns) in enumerate(listed.items())
    ]
    published = PublishedConfig(
        hash_column="hash", phash_column="look", near_bits=8, drop_mismatches=True, boxes_column="boxes"
    )
    counts = download(tmp_path, rows, replace(CONFIG, published=published))
    assert counts.dropped == {"hash_mismatch": 2, "boxes_unreadable": 1}
    table = {row["text"]: row for row in pq.read_table(tmp_path / "raw" / "00000000.parquet").to_pylist()}
    assert {text: row["expected"] for text, row in table.items()} == {
        "exact": "exact", "exact by md5": "exact", "near": "near", "mismatch": "mismatch",
        "mismatch by look": "mismatch", "nothing to compare": None, "blurred": None, "boxes unreadable": None,
        "boxes in text": None,
    }  # fmt: skip
    assert json.loads(table["exact"]["listed"]) == listed["exact"]
    assert table["mismatch"]["sha256"] == hashlib.sha256(GOOD_JPEG).hexdigest()
    samples = {
        json.loads(sample.fields["json"])["text"]: sample.fields
        for sample in read_samples(tmp_path / "raw" / "00000000.tar", raise_fault)
    }
    assert samples.keys() == listed.keys() - {"mismatch", "mismatch by look", "boxes unreadable"}
    described = json.loads(samples["exact"]["json"])
    assert (described["listed"], described["expected"]) == (listed["exact"], "exact")
    assert samples["blurred"]["jpg"] == samples["boxes in text"]["jpg"] != samples["exact"]["jpg"]
    kept = download(
        tmp_path / "kept", rows, replace(CONFIG, published=replace(published, drop_mismatches=False))
    )
    assert kept.dropped == {"boxes_unreadable": 1}


def test_hosts_are_interleaved():
    urls = ["http://a/1", "http://a/2", "http://a/3", "http://b/1", "bad url", "http://c/1", "http://b/2"]
    dealt = ["http://a/1", "http://b/1", "bad url", "http://c/1", "http://a/2", "http://b/2", "http://a/3"]
    assert interleave_by_host(urls) == dealt


def test_make_stage_reads_the_settings_and_refuses_a_deadline_past_the_executors(tmp_path):
    config = SimpleNamespace(  # the part of PipelineConfig that it reads
        output_dir=str(tmp_path),
        download=CONFIG,
        recipe=SimpleNamespace(min_bytes=5000),
        executor=SimpleNamespace(shard_timeout_s=600.0),
    )
    made = make_stage(config)
    assert (made.min_bytes, made.folder, made.candidates) == (
        5000,
        tmp_path / "raw",
        tmp_path / "deduplicated",
    )
    assert json.loads(json.dumps(made.settings)) == made.settings
    assert made.settings["images"]["resize_mode"] == "keep_ratio"
    assert made.settings["min_bytes"] == 5000
    assert "concurrency" not in made.settings  # a rerun may change its pace
    config.executor.shard_timeout_s = 60.0
    with pytest.raises(ConfigError, match=r"shard_deadline_s is 60 and executor.shard_timeout_s is 60"):
        make_stage(config)


RUN = """
import pickle, sys
from data_pipeline.executors.local import LocalExecutor
from data_pipeline.stage import run_stage
if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        stage = pickle.load(file)
    executor = LocalExecutor(num_workers=1, retries=0, shard_timeout_s=60.0)
    run_stage(stage, executor, max_failed_fraction=0.0)
"""


class InThisProcess:
    """An executor without processes."""

    def run(self, stage, shards):
        worker = stage.setup()
        for shard in shards:
            make_shard(stage, worker, shard, temporary_folder(stage, shard))
            publish_shard(stage, shard, temporary_folder(stage, shard))
            yield Outcome(shard, None)
        worker.close()


def test_a_killed_run_is_finished_by_the_next_with_the_same_bytes(tmp_path):
    """kill -9 of all processes in the middle of the second shard; the rerun makes what is missing."""
    with HostileServer() as server:
        shards = {}
        for index in range(2):
            rows = [candidate(server.url(f"/good/{index}/{number}"), f"{number}") for number in range(40)]
            shards[f"{index:08d}"] = [*rows, candidate(server.url(f"/gone/{index}"), "gone")]
        shards["00000001"].append(candidate(server.url("/held"), "keeps the shard open until the kill"))
        config = replace(CONFIG, per_host_connections=4, first_byte_timeout_s=50.0, total_timeout_s=50.0)
        write_candidates(tmp_path / "deduplicated", shards)
        work = stage(tmp_path, config)
        (tmp_path / "stage.pickle").write_bytes(pickle.dumps(work))
        (tmp_path / "run.py").write_text(RUN)
        command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "stage.pickle")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        deadline = time.monotonic() + 180
        while sum(path.startswith("/good/1/") for path in list(server.requests)) < 20:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        server.release.set()
        assert sorted(path.name for path in (tmp_path / "raw").glob("*.stats.json")) == [
            "00000000.stats.json"
        ]
        first = read_stats(tmp_path / "raw", "00000000")

        work.config = replace(
            config, per_host_connections=16, per_host_requests_per_s=10_000.0
        )  # another pace
        report = run_stage(work, InThisProcess(), max_failed_fraction=0.0)
        assert (report.done, report.skipped, report.counts.rows_in, report.counts.rows_out) == (1, 1, 83, 81)
        assert read_stats(tmp_path / "raw", "00000000") == first

        worker = work.setup()
        for shard in work.shards():
            make_shard(work, worker, shard, tmp_path / "again")
            for name in (f"{shard.name}.tar", f"{shard.name}.parquet"):
                assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "raw" / name).read_bytes()
        worker.close()

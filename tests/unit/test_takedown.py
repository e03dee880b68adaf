"""Takedowns: what a list names is gone from every file, the rest is as it was, and a kill changes nothing."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import sha256_of
from crawl2clip.schema import (
    CANDIDATE_SCHEMA,
    DOCUMENT_SCHEMA,
    DOWNLOAD_SCHEMA,
    array_to_uids,
    document_uid,
    uid_of,
    uids_to_array,
)
from crawl2clip.shards import (
    ShardEntry,
    ShardWriter,
    raise_fault,
    read_manifest,
    read_samples,
    write_manifest,
)
from data_pipeline.blocklist import BlockKind, hash_of
from data_pipeline.hidden_pairs import FILE, hide_pairs, read_hidden
from data_pipeline.stage import Outcome, make_shard, publish_shard, temporary_folder
from data_pipeline.takedown import main, make_stages, take_down


class Inline:
    """Runs shards here, one after the other; `die_at` a stage, before or after its work is done."""

    def __init__(self, die_at=None):
        self.die_at = die_at

    def run(self, stage, shards):
        context = stage.setup()
        for shard in shards:
            temporary = temporary_folder(stage, shard)
            make_shard(stage, context, shard, temporary)
            if stage.name == self.die_at:
                raise KeyboardInterrupt
            publish_shard(stage, shard, temporary)
            yield Outcome(shard, None)


def pair(number):
    url = f"http://{'bad.org' if number % 7 == 0 else 'good.org'}/{number}.png"
    text = f"caption {number}"
    image = f"image {number}".encode()
    return {
        "uid": uid_of(url, text), "url": url, "text": text, "text_source": "alt", "status": "success",
        "bytes": len(image), "md5": hashlib.md5(image).hexdigest(), "sha256": hashlib.sha256(image).hexdigest(),
        "phash": f"{number * 0x0101010101010101 % 2**64:016x}",
    }, image  # fmt: skip


PAIRS = [pair(number) for number in range(1, 41)]


def finish(folder, names, stage):
    for name in names:
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in folder.glob(f"{name}.*")
        }
        counts = {"rows_in": 1, "rows_out": 1, "dropped": {}, "extra": {}}
        stats = {"files": files, "counts": counts, "seconds": 1.0}
        (folder / f"{name}.stats.json").write_text(json.dumps(stats))
    value = {"stage": stage, "shards": [{"name": name} for name in names]}
    (folder / "manifest.json").write_text(json.dumps(value))


def make_run(root):
    """A run of two raw shards, tags with embeddings, a selection and training shards."""
    for folder in ("raw", "tags/clip", "candidates", "subset", "shards", "reshard/plan", "report"):
        (root / folder).mkdir(parents=True)
    names = ["00000000", "00000001"]
    for name, part in zip(names, (PAIRS[:20], PAIRS[20:]), strict=True):
        rows = [{**dict.fromkeys(DOWNLOAD_SCHEMA.names), **row} for row, _ in part]
        pq.write_table(
            pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA), root / f"raw/{name}.parquet", row_group_size=7
        )
        with ShardWriter(root / f"raw/{name}.tar") as writer:
            for row, image in part:
                writer.write(
                    row["uid"], {"png": image, "txt": row["text"].encode(), "json": json.dumps(row).encode()}
                )
        uids = [row["uid"] for row, _ in part]
        pl.DataFrame({"uid": uids, "clip_score": np.arange(20.0)}).write_parquet(
            root / f"tags/clip/{name}.parquet"
        )
        np.save(root / f"tags/clip/{name}.npy", np.arange(40, dtype=np.float16).reshape(20, 2))
    finish(root / "raw", names, "download")
    finish(root / "tags/clip", names, "tag/clip")
    rows = [{**dict.fromkeys(CANDIDATE_SCHEMA.names), **{k: row[k] for k in CANDIDATE_SCHEMA.names if k in row}}
            for row, _ in PAIRS]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, CANDIDATE_SCHEMA), root / "candidates/a.parquet")
    finish(root / "candidates", ["a"], "extract")
    uids = [row["uid"] for row, _ in PAIRS]
    np.save(root / "subset/subset.uids.npy", uids_to_array(uids))
    pl.DataFrame({"uid": uids, "kept": True}).write_parquet(root / "subset/subset.decisions.parquet")
    finish(root / "subset", ["subset"], "select")
    entries = []
    for number, part in enumerate((PAIRS[:13], PAIRS[13:26], PAIRS[26:])):
        path = root / f"shards/{number:08d}.tar"
        with ShardWriter(path) as writer:
            for row, image in part:
                writer.write(row["uid"], {"png": image, "txt": b"t", "json": json.dumps(row).encode()})
        entries.append(ShardEntry(path.name, len(part), path.stat().st_size, sha256_of(path)))
    write_manifest(root / "shards", entries, {"seed": 0})
    (root / "report/report.html").write_text("old pictures")
    (root / "reshard/plan/plan.parquet").write_bytes(b"offsets")


def image_of(number, text=""):
    row, _ = PAIRS[number]
    return {"url": row["url"], "text": text or None, "uid": uid_of(row["url"], text)}


def document(page, *items):
    """A page; an item is a text, or an image."""
    texts = [item if isinstance(item, str) else None for item in items]
    images = [None if isinstance(item, str) else item for item in items]
    parts = [item if isinstance(item, str) else item["uid"] for item in items]
    return {"uid": document_uid(page, parts), "page_url": page, "crawl_file": "x.warc.gz", "offset": 7,
            "texts": texts, "images": images}  # fmt: skip


def add_documents(root, *documents):
    (root / "documents").mkdir()
    table = pa.Table.from_pylist(list(documents), DOCUMENT_SCHEMA)
    pq.write_table(table, root / "documents/a.parquet", row_group_size=2)
    finish(root / "documents", ["a"], "documents")


def write_list(path, **entries):
    lines = [
        f"{kind}:{hash_of(BlockKind[kind], value)}" for kind, values in entries.items() for value in values
    ]
    path.write_text("\n".join(lines))
    return str(path)


def everything(root):
    """The uids in every file of a run, by file."""
    found = {}
    for path in sorted(root.rglob("*")):
        if any(part.startswith("takedown-") for part in path.relative_to(root).parts):
            continue
        if path.suffix == ".parquet":
            found[str(path.relative_to(root))] = pl.read_parquet(path)["uid"].to_list()
        elif path.suffix == ".tar":
            found[str(path.relative_to(root))] = [sample.key for sample in read_samples(path, raise_fault)]
        elif path.name == "subset.uids.npy":
            found[str(path.relative_to(root))] = array_to_uids(np.load(path))
    return found


def run(root, lists, *, name="one", distance=0, die_at=None):
    return take_down(make_stages(root, lists, name, distance), Inline(die_at))


@pytest.fixture
def listed(tmp_path):
    """A list of all kinds; and the uids it names."""
    rows = [row for row, _ in PAIRS]
    path = write_list(
        tmp_path / "list.txt",
        uid=[rows[1]["uid"]], url=[rows[2]["url"]], domain=["bad.org"], md5=[rows[3]["md5"]],
        sha256=[rows[4]["sha256"]], phash=[rows[30]["phash"]],
    )  # fmt: skip
    gone = {rows[n]["uid"] for n in (1, 2, 3, 4, 30)} | {
        row["uid"] for row in rows if "bad.org" in row["url"]
    }
    return path, gone


def check_mended(root, gone):
    """What is left is what was there without the rows; records and manifests are right."""
    for path, uids in everything(root).items():
        assert not gone & set(uids), path
    every = {row["uid"] for row, _ in PAIRS}
    found = everything(root)
    for group in (
        "raw/*.parquet",
        "raw/*.tar",
        "tags/clip/*.parquet",
        "candidates/*",
        "subset/*.npy",
        "shards/*.tar",
    ):
        uids = [uid for path, inside in found.items() if Path(path).match(group) for uid in inside]
        assert sorted(uids) == sorted(every - gone), group
    images = {row["uid"]: image for row, image in PAIRS}
    for path in root.glob("raw/*.tar"):
        for sample in read_samples(path, raise_fault):
            assert sample.fields["png"] == images[sample.key]
    for path in root.glob("tags/clip/*.parquet"):  # an embedding still belongs to its row
        rows = pl.read_parquet(path)["clip_score"].to_numpy()
        assert np.load(path.with_suffix(".npy"))[:, 0].tolist() == (rows * 2).tolist()
    for folder in ("raw", "tags/clip", "candidates", "subset"):
        for stats in (root / folder).glob("*.stats.json"):
            for name, file in json.loads(stats.read_text())["files"].items():
                assert file["sha256"] == sha256_of(root / folder / name)
    for entry in read_manifest(root / "shards"):
        path = root / "shards" / entry.name
        assert (entry.bytes, entry.sha256) == (path.stat().st_size, sha256_of(path))
        assert entry.samples == len(list(read_samples(path, raise_fault)))


def test_a_run_loses_what_every_kind_of_entry_names(tmp_path, listed):
    path, gone = listed
    make_run(tmp_path / "run")
    before = {file.name: file.stat().st_ino for file in (tmp_path / "run" / "shards").iterdir()}
    kinds = run(tmp_path / "run", [path])
    assert kinds == {"uid": 1, "url": 1, "domain": 5, "md5": 1, "sha256": 1, "phash": 1}
    assert len(gone) == sum(kinds.values())
    check_mended(tmp_path / "run", gone)
    folder = tmp_path / "run" / "takedown-one"
    assert array_to_uids(np.load(folder / "diff.removed.uids.npy")) == sorted(gone)
    diff = pl.read_parquet(folder / "diff.removed.parquet")
    assert diff.columns == ["uid", "key", "kind", "shard"]
    assert set(diff["uid"]) == gone
    assert not (tmp_path / "run" / "report").exists()
    assert not (tmp_path / "run" / "reshard").exists()
    assert json.loads((tmp_path / "run/shards/manifest.json").read_text())["provenance"]["takedowns"] == [
        "one"
    ]
    assert before.keys() == {file.name for file in (tmp_path / "run" / "shards").iterdir()}


def test_images_are_taken_out_of_documents_and_what_is_left_is_as_if_they_had_not_been_there(tmp_path):
    root, page = tmp_path / "run", "http://p.org/"
    make_run(root)
    paired, nameless, own = (
        image_of(3, PAIRS[3][0]["text"]),
        image_of(6),
        document(page + "own", "t", image_of(9)),
    )
    add_documents(
        root,
        document(page + "1", "one", paired, "two", image_of(9), "three"),
        document(page + "2", image_of(8), "four", nameless),
        document(page + "3", "five", paired),
        document(page + "4", "six", image_of(11)),
        own,
    )
    # One image by the hash of what was fetched under its uid, one that no pair has by its host, a document by its uid.
    path = write_list(tmp_path / "list.txt", md5=[PAIRS[3][0]["md5"]], domain=["bad.org"], uid=[own["uid"]])
    assert "bad.org" in PAIRS[6][0]["url"]
    run(root, [path])
    expected = [
        document(page + "1", "one\ntwo", image_of(9), "three"),
        document(page + "2", image_of(8), "four"),
        document(page + "4", "six", image_of(11)),
    ]
    written = pq.read_table(root / "documents/a.parquet")
    assert written.schema == DOCUMENT_SCHEMA
    assert written.to_pylist() == pa.Table.from_pylist(expected, DOCUMENT_SCHEMA).to_pylist()
    stats = json.loads((root / "documents/a.stats.json").read_text())
    assert stats["files"]["a.parquet"]["sha256"] == sha256_of(root / "documents/a.parquet")
    diff = pl.read_parquet(root / "takedown-one/diff.removed.parquet")
    assert {nameless["uid"], paired["uid"], own["uid"]} <= set(diff["uid"])
    assert run(root, [path], name="two") == {}


def test_documents_without_a_named_image_are_left_alone(tmp_path):
    root = tmp_path / "run"
    make_run(root)
    add_documents(root, document("http://p.org/", "one", image_of(8)))
    before = (root / "documents/a.parquet").stat()
    run(root, [write_list(tmp_path / "list.txt", domain=["bad.org"])])
    after = (root / "documents/a.parquet").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_pairs_that_were_never_fetched_are_found_by_address(tmp_path):
    root = tmp_path / "run"
    make_run(root)
    row = dict.fromkeys(CANDIDATE_SCHEMA.names) | {"text": "t", "text_source": "alt"}
    rows = [
        {**row, "url": url, "uid": uid_of(url, "t")} for url in ("http://bad.org/new", "http://good.org/new")
    ]
    pq.write_table(pa.Table.from_pylist(rows, CANDIDATE_SCHEMA), root / "candidates/a.parquet")
    kinds = run(root, [write_list(tmp_path / "list.txt", domain=["bad.org"], md5=[PAIRS[3][0]["md5"]])])
    assert kinds == {"domain": 6, "md5": 1}
    assert pl.read_parquet(root / "candidates/a.parquet")["url"].to_list() == ["http://good.org/new"]


def test_the_index_goes_and_an_open_explorer_hides_the_pairs(tmp_path, listed):
    path, gone = listed
    root = tmp_path / "run"
    make_run(root)
    run(root, [path])
    assert not (root / FILE).exists()  # without an index nobody shows them
    root = tmp_path / "indexed"
    make_run(root)
    (root / "index" / "parts").mkdir(parents=True)
    (root / "index" / "parts" / "a.rows.arrow").write_text("captions and addresses")
    hide_pairs(root, [PAIRS[7][0]["uid"]])
    run(root, [path])
    assert not (root / "index").exists()
    assert set(array_to_uids(read_hidden(root))) == gone | {PAIRS[7][0]["uid"]}


def test_only_affected_files_are_written(tmp_path):
    make_run(tmp_path / "run")
    path = write_list(tmp_path / "list.txt", md5=[PAIRS[0][0]["md5"]])
    files = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in (tmp_path / "run").rglob("*.*")}
    run(tmp_path / "run", [path])
    changed = {str(file.relative_to(tmp_path / "run")) for file, was in files.items()
               if file.exists() and (file.stat().st_ino, file.stat().st_mtime_ns) != was}  # fmt: skip
    assert changed == {
        "raw/00000000.tar", "raw/00000000.parquet", "raw/00000000.stats.json",
        "tags/clip/00000000.parquet", "tags/clip/00000000.npy", "tags/clip/00000000.stats.json",
        "candidates/a.parquet", "candidates/a.stats.json", "subset/subset.uids.npy", "subset/subset.decisions.parquet",
        "subset/subset.stats.json", "shards/00000000.tar", "shards/manifest.json",
    }  # fmt: skip
    summary = json.loads((tmp_path / "run/takedown-one/diff.takedown.json").read_text())
    assert {each["file"] for each in summary["files"]} == {p for p in changed if not p.endswith(".json")}
    assert all(each["sha256_before"] != each["sha256"] for each in summary["files"])


def test_the_diff_is_a_blocklist_for_holders_of_an_old_copy(tmp_path, listed):
    path, gone = listed
    make_run(tmp_path / "run")
    make_run(tmp_path / "old")
    run(tmp_path / "run", [path])
    copy = tmp_path / "old" / "shards"
    kinds = run(copy, [str(tmp_path / "run" / "takedown-one" / "diff.removed.uids.npy")])
    assert kinds == {"uid": len(gone)}
    for entry in read_manifest(copy):
        ours = tmp_path / "run" / "shards" / entry.name
        assert (entry.sha256, entry.samples) == (sha256_of(ours), len(list(read_samples(ours, raise_fault))))
        assert sha256_of(copy / entry.name) == entry.sha256


@pytest.mark.parametrize("die_at", ["takedown/find", "takedown/rewrite", "takedown/put_in_place"])
def test_a_takedown_that_is_killed_goes_on(tmp_path, listed, die_at):
    path, gone = listed
    make_run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", [path], die_at=die_at)
    run(tmp_path / "run", [path])
    check_mended(tmp_path / "run", gone)
    summary = json.loads((tmp_path / "run/takedown-one/diff.takedown.json").read_text())
    assert summary["removed"] == len(gone)
    assert all(each["sha256_before"] != each["sha256"] for each in summary["files"])
    assert run(tmp_path / "run", [path]) == summary["by_kind"]  # again: nothing more to do
    assert run(tmp_path / "run", [path], name="two") == {}  # and nothing left to find


@pytest.mark.parametrize("replaced", [0, 1, 4, 9])
def test_a_takedown_that_is_killed_between_two_files_goes_on(tmp_path, listed, monkeypatch, replaced):
    path, gone = listed
    make_run(tmp_path / "run")
    from data_pipeline import takedown_steps

    done, replace = [], takedown_steps._replace

    def dying(new, old):
        if len(done) == replaced:
            raise KeyboardInterrupt
        done.append(old)
        replace(new, old)

    with monkeypatch.context() as patch:
        patch.setattr(takedown_steps, "_replace", dying)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", [path])
    run(tmp_path / "run", [path])
    check_mended(tmp_path / "run", gone)
    summary = json.loads((tmp_path / "run/takedown-one/diff.takedown.json").read_text())
    assert all(each["sha256_before"] != each["sha256"] for each in summary["files"])


def test_a_perceptual_hash_is_found_within_the_distance(tmp_path):
    make_run(tmp_path / "run")
    near = f"{int(PAIRS[5][0]['phash'], 16) ^ 0b1011:016x}"
    path = write_list(tmp_path / "list.txt", phash=[near])
    assert run(tmp_path / "run", [path], name="near", distance=2) == {}
    assert run(tmp_path / "run", [path], name="three", distance=3)["phash"] >= 1
    assert PAIRS[5][0]["uid"] not in everything(tmp_path / "run")["raw/00000000.tar"]


def test_a_strangers_shards_are_read_as_they_are(tmp_path):
    """Keys that are numbers, hashes in capitals, metadata that is broken or hostile."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    described = [
        {"url": "HTTPS://Bad.org:443/a.jpg"}, {"url": None}, {"url": "javascript:alert(1)", "md5": "not hex"},
        {"url": "https://good.org/x", "sha256": "AB" * 32}, ["a", "list"], {"url": 7, "md5": 3},
    ]  # fmt: skip
    with ShardWriter(folder / "a.tar") as writer:
        for number, value in enumerate(described):
            writer.write(f"{number:09d}", {"jpg": b"x", "json": json.dumps(value).encode()})
        writer.write("000000006", {"jpg": b"x", "json": b"{broken"})
        writer.write("000000007", {"jpg": b"x"})
    write_manifest(folder, [ShardEntry("a.tar", 8, 1, "-")], {})
    path = write_list(tmp_path / "list.txt", domain=["bad.org"], sha256=["ab" * 32], md5=["0" * 32])
    assert run(folder, [path]) == {"domain": 1, "sha256": 1}
    left = [sample.key for sample in read_samples(folder / "a.tar", raise_fault)]
    assert left == [f"{number:09d}" for number in (1, 2, 4, 5, 6, 7)]
    assert read_manifest(folder)[0].samples == 6


def test_the_command_counts_and_never_repeats_an_entry(tmp_path, listed, capfd):
    path, gone = listed
    make_run(tmp_path / "run")
    assert main([str(tmp_path / "run"), "--blocklist", path, "--name", "2026-11", "--workers", "2"]) == 0
    told = capfd.readouterr()
    assert "taken out: " in told.out
    assert "5 by domain" in told.out
    every = told.out + told.err + "".join(
        file.read_text(errors="replace") for file in (tmp_path / "run" / "takedown-2026-11").rglob("*.json")
    )  # fmt: skip
    for row, _ in PAIRS:
        if row["uid"] in gone:
            assert not any(str(row[name]) in every for name in ("url", "text", "md5", "sha256"))
    assert "bad.org" not in every


def test_what_cannot_be_taken_down_is_said(tmp_path, listed, capsys):
    path, _ = listed
    make_run(tmp_path / "run")
    words = [str(tmp_path / "run"), "--blocklist", path, "--name", "x", "--workers", "0"]
    assert main(words) == 2
    assert "--workers is 0; give 1 or more processes" in capsys.readouterr().err
    with pytest.raises(
        DataError, match=r"is not a data set: it has neither raw/ of a run nor a manifest\.json"
    ):
        make_stages(tmp_path, [path], "x", 0)
    with pytest.raises(ConfigError, match=r"--name is '\.\./x'; give letters"):
        make_stages(tmp_path, [path], "../x", 0)
    with pytest.raises(ConfigError, match="--phash-distance is 16; give 0 to 15 bits"):
        make_stages(tmp_path, [path], "x", 16)
    (tmp_path / "bad.txt").write_text("md5:zzzz\n")
    with pytest.raises(ConfigError, match=r"--blocklist names .*line 1, is not an entry"):
        make_stages(tmp_path, [str(tmp_path / "bad.txt")], "x", 0)


def test_a_damaged_file_stops_the_takedown(tmp_path, listed):
    path, _ = listed
    make_run(tmp_path / "run")
    np.save(tmp_path / "run/tags/clip/00000000.npy", np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"has 3 rows, the table beside it 20"):
        run(tmp_path / "run", [path])
    make_run(tmp_path / "cut")
    tar = tmp_path / "cut/raw/00000000.tar"
    os.truncate(tar, 9000)
    with pytest.raises(DataError, match="truncated"):
        run(tmp_path / "cut", [path])
    make_run(tmp_path / "documents")
    add_documents(tmp_path / "documents", document("http://p.org/", "one", image_of(8)))
    os.truncate(tmp_path / "documents/documents/a.parquet", 300)
    with pytest.raises(
        DataError, match=r"documents/a\.parquet cannot be read .* a takedown needs every table"
    ):
        run(tmp_path / "documents", [path])

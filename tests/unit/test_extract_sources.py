"""Sources: which files there are, wherever they are, and every setting checked before work starts."""

import gzip
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawl_files import extract_config, html_record, image, member, wat_record, wat_value
from object_server import ObjectServer, s3_environment
from toy_stages import InlineExecutor

from crawl2clip.errors import ConfigError, DataError
from data_pipeline import source_s3
from data_pipeline.extract import make_stage
from data_pipeline.sources import (
    CrawlForm,
    SourceConfig,
    SourceKind,
    first_bytes_of,
    form_of,
    list_files,
    local_copy,
    validate_source,
)
from data_pipeline.stage import run_stage

CRAWL = "CC-MAIN-2024-33"
PATHS = [f"crawl-data/{CRAWL}/segments/{index:03d}/wat/file-{index:05d}.warc.wat.gz" for index in range(20)]
LISTING = f"crawl-data/{CRAWL}/wat.paths.gz"
WAT = member(wat_record(wat_value([image("a.jpg", "A nice picture")])))


def config(**changes):
    values = {
        "kind": SourceKind.local,
        "form": None,
        "files": [],
        "crawl": None,
        "num_files": None,
        "seed": 0,
        "base_url": "http://127.0.0.1:1",
        "url_column": None,
        "text_column": None,
        "retries": 2,
        "backoff_s": 0.0,
        "timeout_s": 5.0,
        "deadline_s": 60.0,
    }
    return SourceConfig(**values | changes)


@pytest.fixture
def bucket(tmp_path):
    """A folder with a crawl in Common Crawl's layout."""
    folder = tmp_path / "served" / "bucket"
    for path in PATHS:
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_bytes(WAT)
    (folder / LISTING).write_bytes(gzip.compress("\n".join(PATHS).encode()))
    return folder


@pytest.fixture
def server(bucket, tmp_path, monkeypatch):
    with ObjectServer(bucket.parent) as running:
        s3_environment(monkeypatch, running, tmp_path)
        yield running


def crawl(base_url, **changes):
    values = {
        "kind": SourceKind.commoncrawl,
        "crawl": CRAWL,
        "form": CrawlForm.wat,
        "base_url": str(base_url),
    }
    return config(**values | changes)


def crawl_at(place, server, bucket, **changes):
    """The crawl as a web server, an object store or a folder has it."""
    if place == "s3":
        pytest.importorskip("s3fs", reason="pip install 's3fs' to read s3:// files")
    bases = {
        "http": f"{server.url}/bucket",
        "s3": "s3://bucket",
        "folder": bucket,
        "file": f"file://{bucket}",
    }
    return crawl(bases[place], **changes)


# Files that are named


def test_local_files_by_path_pattern_and_folder(tmp_path):
    for name in ("b.warc.gz", "a.warc.gz", "a.warc.wat.gz", "sub/a.warc.gz", "sub/z.warc.zst", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    patterns = [f"{tmp_path}/a.warc.wat.gz", f"{tmp_path}/**/*.warc.gz", f"file://{tmp_path}/b.warc.gz"]
    files = list_files(config(files=patterns), tmp_path)
    assert [file.location.removeprefix(f"{tmp_path}/") for file in files] == [
        "a.warc.wat.gz", "a.warc.gz", "b.warc.gz", "sub/a.warc.gz",
    ]  # fmt: skip
    assert [file.name for file in files] == ["a_warc_wat", "a_warc", "b_warc", "a_warc-1"]
    (tmp_path / ".hidden.warc.gz").touch()
    for form, count in ((None, 5), (CrawlForm.warc, 4), (CrawlForm.wat, 1)):
        assert len(list_files(config(files=[str(tmp_path)], form=form), tmp_path)) == count


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            [],
            r"source\.files is empty; give paths, patterns, folders or addresses of files that end in \.wat\.gz",
        ),
        (["nowhere/*.warc.gz"], r"'nowhere/\*\.warc\.gz' gives no crawl file or list, no file is there"),
        (
            ["configs"],
            r"'configs' gives no .* the folder has no file that ends in \.wat\.gz, \.wat, .*\.warc\.lz4",
        ),
        (["config?"], r"'config\?' gives no .* only folders are there; name one of them alone, or add /\*"),
        (
            ["gs://b/a.warc.gz"],
            r"'gs://b/a\.warc\.gz' cannot be read; give a path, file:///path, or an address with",
        ),
        (["file://a.warc.gz"], r"'file://a\.warc\.gz' cannot be read; give a path, file:///path"),
        (
            ["https://h/*.warc.gz"],
            r"has a \*, and web servers do not list their files; give each address, or a",
        ),
        (["https://h/{1..2.warc.gz"], r"has braces that are not closed .*write a range as \{000\.\.127\}"),
    ],
)
def test_files_that_are_not_there(files, message):
    with pytest.raises(ConfigError, match=message):
        validate_source(config(files=files))


def test_addresses_are_expanded_and_kept_in_order(tmp_path):
    source = config(files=["https://h/{00..02}.warc.gz", "s3://b/x.warc.gz", "https://h/{b,a}.warc.gz"])
    validate_source(source)
    assert [file.location for file in list_files(source, tmp_path)] == [
        "https://h/00.warc.gz", "https://h/01.warc.gz", "https://h/02.warc.gz", "s3://b/x.warc.gz",
        "https://h/b.warc.gz", "https://h/a.warc.gz",
    ]  # fmt: skip


def test_folders_and_patterns_of_an_object_store(server, tmp_path):
    pytest.importorskip("s3fs", reason="pip install 's3fs' to read s3:// files")
    source = config(files=["s3://bucket/crawl-data/**/file-0000?.warc.wat.gz"])
    validate_source(source)
    assert [file.label for file in list_files(source, tmp_path)] == [
        f"s3://bucket/{path}" for path in PATHS[:10]
    ]
    source = config(files=[f"s3://bucket/crawl-data/{CRAWL}/"])
    assert [file.label for file in list_files(source, tmp_path)] == [f"s3://bucket/{path}" for path in PATHS]
    with pytest.raises(DataError, match=r"'s3://bucket/none/\*' gives no file; folders are searched for"):
        list_files(config(files=["s3://bucket/none/*"]), tmp_path)


def test_a_missing_package_is_found_before_work(monkeypatch):
    monkeypatch.setattr(source_s3, "find_spec", lambda name: None)
    for source in (config(files=["s3://b/x.warc.gz"]), crawl("s3://commoncrawl")):
        with pytest.raises(
            ConfigError, match=r"s3://.* needs the package s3fs; pip install 'crawl2clip\[remote\]'"
        ):
            validate_source(source)


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.zst"])
def test_every_compression_of_ones_own_crawl(tmp_path, name):
    """zstd as one frame a record, which is how WARC files are written with it."""
    pages = [html_record(f"<img src={number}.jpg alt='A nice picture'>") for number in range(3)]
    pack = {"arc": bytes, ".gz": member, "zst": lambda page: bytes(pa.compress(page, codec="zstd"))}[
        name[-3:]
    ]
    (tmp_path / name).write_bytes(b"".join(map(pack, pages)))
    settings = SimpleNamespace(
        output_dir=str(tmp_path / "out"), source=config(files=[str(tmp_path)], form=CrawlForm.warc),
        extract=extract_config(),
    )  # fmt: skip
    stage = make_stage(settings)  # pyright: ignore[reportArgumentType]
    counts = run_stage(stage, InlineExecutor(), max_failed_fraction=0).counts
    assert (counts.rows_out, counts.extra) == (3, {"pages": 3})


# A crawl


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crawl": None}, r"source\.crawl is not set; give the crawl's name"),
        ({"crawl": "../x"}, r"source\.crawl is '\.\./x'; give the crawl's name alone"),
        ({"form": None}, r"source\.form is null; a Common Crawl source needs wat or warc"),
        ({"files": ["a.wat"]}, r"source\.files is set, and source\.kind=commoncrawl takes its files from"),
        ({"num_files": 0}, r"source\.num_files is 0; give 1 or more"),
        ({"base_url": "ftp://h"}, r"source\.base_url: 'ftp://h' cannot be read; give a path, file:///path, or"),
        ({"base_url": "data.commoncrawl.org"}, r"'data\.commoncrawl\.org', a path of this machine, .* is no folder"),
        ({"retries": -1}, r"source\.retries is -1"),
        ({"backoff_s": -1.0}, r"source\.backoff_s is -1\.0"),
        ({"timeout_s": 0.0}, r"source\.timeout_s is 0\.0; give seconds above 0"),
        ({"deadline_s": -5.0}, r"source\.deadline_s is -5\.0; give seconds above 0"),
        ({"url_column": "link"}, r"source\.url_column, text_column and keep_columns are for lists of pairs; add"),
    ],
)  # fmt: skip
def test_crawl_settings_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        validate_source(crawl(**{"base_url": "http://127.0.0.1:1", **changes}))


# Lists of pairs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"form": CrawlForm.wat},
            r"source\.form is wat, and lists of pairs are known by their names; unset it",
        ),
        ({"files": []}, r"source\.files is empty; .* files that end in \.parquet, \.csv, .*\*\.parquet\]'"),
        (
            {"files": ["https://h/a.txt"]},
            r"form of the list 'https://h/a\.txt' cannot be told from its name; names",
        ),
        ({"files": ["https://h/{a.csv,b.txt}"]}, r"form of the list 'https://h/b\.txt' cannot be told"),
        (
            {"url_column": "link"},
            r"source\.url_column is 'link', and .*a\.csv has no such column; it has 'url', 'text'",
        ),
    ],
)
def test_settings_of_lists_are_checked(tmp_path, changes, message):
    (tmp_path / "a.csv").write_text("url,text\n")
    values = {"kind": SourceKind.metadata, "files": [f"{tmp_path}"]}
    validate_source(config(**values))
    validate_source(config(**values | {"files": ["https://h/{00..31}.snappy.parquet?x=1", "s3://b/lists/"]}))
    with pytest.raises(ConfigError, match=message):
        validate_source(config(**values | changes))


# A crawl, wherever it is


@pytest.mark.parametrize("place", ["http", "s3", "folder", "file"])
def test_a_crawls_files_are_chosen_with_the_seed(server, bucket, tmp_path, place):
    def chosen(**changes):
        source = crawl_at(place, server, bucket, **changes)
        validate_source(source)
        return [file.label for file in list_files(source, tmp_path / "cache")]

    five = chosen(num_files=5, seed=1)
    assert len(set(five)) == 5
    assert set(five) < set(PATHS)
    assert five == sorted(five)
    assert chosen(num_files=5, seed=1) == five
    assert chosen(num_files=5, seed=2) != five
    assert chosen(num_files=20) == chosen() == PATHS
    assert server.requests[f"/bucket/{LISTING}"] == (1 if place in ("http", "s3") else 0)  # the list is kept
    with pytest.raises(
        ConfigError, match=rf"source\.num_files is 21 and {CRAWL} has 20 files; give at most as many, or null"
    ):
        chosen(num_files=21)


def test_a_crawl_that_does_not_exist(server, bucket, tmp_path):
    with pytest.raises(
        DataError, match=r"CC-NONE/wat\.paths\.gz cannot be had: the server answered 404 .*check source"
    ):
        list_files(crawl(server.url, crawl="CC-NONE"), tmp_path / "cache")
    assert sum(server.requests.values()) == 1
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(
        ConfigError, match=r"/crawl-data/CC-NONE is no folder; give the folder that holds crawl-data/"
    ):
        validate_source(crawl(bucket, crawl="CC-NONE"))
    (bucket / LISTING).unlink()
    with pytest.raises(
        DataError, match=r"wat\.paths\.gz is not a gzipped list of crawl files \(.*No such file"
    ):
        list_files(crawl(bucket), tmp_path / "cache")


@pytest.mark.parametrize(
    "body",
    [
        b"moved",
        gzip.compress(b"<html> moved", mtime=0),
        gzip.compress(b"", mtime=0),
        gzip.compress(b"a\nb", mtime=0)[:-9],
        gzip.compress(b"crawl-data/../../etc/passwd", mtime=0),
        gzip.compress(b"/etc/passwd", mtime=0),
        gzip.compress(b"crawl-data/..", mtime=0),
    ],
)
@pytest.mark.parametrize("place", ["http", "folder"])
def test_a_list_that_is_none_is_refused_and_not_kept(server, bucket, tmp_path, body, place):
    (bucket / LISTING).write_bytes(body)
    with pytest.raises(DataError, match=r"is not a (gzipped )?list of crawl files"):
        list_files(crawl_at(place, server, bucket), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize("place", ["http", "s3", "folder"])
def test_a_copy_lasts_as_long_as_the_block(server, bucket, tmp_path, place):
    source = crawl_at(place, server, bucket)
    file = list_files(source, tmp_path / "cache")[0]
    (tmp_path / "scratch").mkdir()
    with local_copy(file, source, tmp_path / "scratch") as path:
        assert path.read_bytes() == WAT
        assert path.is_relative_to(bucket if place == "folder" else tmp_path / "scratch")
    assert path.exists() is (place == "folder")
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("place", ["http", "s3", "folder"])
def test_a_crawl_is_extracted_like_local_files(server, bucket, tmp_path, place):
    for path in PATHS:
        server.script[path] = ["cut", "busy", ""] if place == "http" else ["busy", ""]
    settings = SimpleNamespace(
        output_dir=str(tmp_path / "out"), source=crawl_at(place, server, bucket, num_files=3),
        extract=extract_config(),
    )  # fmt: skip
    stage = make_stage(settings)  # pyright: ignore[reportArgumentType]
    counts = run_stage(stage, InlineExecutor(), max_failed_fraction=0).counts
    assert (counts.rows_out, counts.extra) == (3, {"pages": 3})
    labels = [pq.read_table(path).column("crawl_file")[0].as_py() for path in stage.folder.glob("*.parquet")]
    assert sorted(labels) == [file.label for file in list_files(settings.source, tmp_path / "out" / "source")]


def test_a_file_that_is_not_had_fails_its_shard_alone(server, bucket, tmp_path):
    """Not an empty shard, which would look done: the next run fetches it."""
    (bucket / PATHS[0]).write_bytes(b"<html>Service unavailable</html>")
    settings = SimpleNamespace(
        output_dir=str(tmp_path / "out"), source=crawl_at("http", server, bucket), extract=extract_config()
    )
    stage = make_stage(settings)  # pyright: ignore[reportArgumentType]
    report = run_stage(stage, InlineExecutor(), max_failed_fraction=0.5)
    assert list(report.failed) == ["file-00000_warc_wat"]
    assert "the server sent a web page in place of the file" in report.failed["file-00000_warc_wat"]
    (bucket / PATHS[0]).write_bytes(WAT)
    again = run_stage(stage, InlineExecutor(), max_failed_fraction=0)
    assert (again.done, again.skipped, again.counts.rows_out) == (1, 19, 20)


# The form of a file


@pytest.mark.parametrize(
    ("name", "first_bytes", "form"),
    [
        ("x.warc.wat.gz", b"", CrawlForm.wat),
        ("x.wat", b"", CrawlForm.wat),
        ("http://h/y/X.WARC.GZ", b'{"Envelope"', CrawlForm.warc),
        ("copy", b'WARC/1.0 {"Container":{', CrawlForm.wat),
        ("copy.gz", b"WARC/1.0 HTTP/1.1 200 OK", CrawlForm.warc),
        ("copy", b"", CrawlForm.warc),
    ],
)
def test_the_form_of_a_file(name, first_bytes, form):
    assert form_of(name, first_bytes) is form


def test_first_bytes_of_whole_and_damaged_files(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(member(b"warcinfo") + WAT)
    assert form_of("x", first_bytes_of(path)) is CrawlForm.wat
    path.write_bytes(member(b"warcinfo") + b"\x1f\x8b" + b"\xff" * 50)
    assert first_bytes_of(path) == b"warcinfo"
    path.write_bytes(b"")
    assert first_bytes_of(path) == b""

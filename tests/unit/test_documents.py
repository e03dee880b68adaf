"""The documents stage: a row a page, aligned lists, every page accounted for, whatever the file is like."""

import pickle
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from crawl_files import (
    DATE,
    PAGE,
    extract,
    extract_config,
    html_record,
    image,
    member,
    record,
    wat_record,
    wat_value,
)
from toy_stages import InlineExecutor, outputs

from crawl2clip.errors import ConfigError
from crawl2clip.schema import DOCUMENT_SCHEMA, document_uid, uid_of
from data_pipeline import documents
from data_pipeline.sources import CrawlForm, SourceConfig, SourceKind
from data_pipeline.stage import TooManyFailures, run_stage

STORY = (
    "<html lang=en><head><title>Cats</title><link rel=license href=https://creativecommons.org/licenses/by/4.0/>"
    "</head><body><h1>Cats</h1><p>A cat sat.</p><img src=/a.jpg alt='A cat on a mat' width=640 height=480>"
    "<p>It slept.</p><img src='data:image/gif;base64,x'><p>It woke.</p><img src=b.jpg alt=''></body>"
)


def stage(tmp_path, files, *, form=None, kind=SourceKind.local, crawl=None, **changes):
    source = SourceConfig(
        kind=kind, form=form, files=files, crawl=crawl, num_files=None, seed=0,
        base_url="https://data.commoncrawl.org", retries=0, backoff_s=0.0,
    )  # fmt: skip
    config = SimpleNamespace(
        output_dir=str(tmp_path / "out"), source=source, extract=extract_config(**changes)
    )
    return documents.make_stage(config)  # pyright: ignore[reportArgumentType]


def run(tmp_path, *records, name="x.warc.gz", **changes):
    """(rows, counts) of a WARC file with the records given."""
    (tmp_path / name).write_bytes(b"".join(map(member, records)))
    made = stage(tmp_path, [f"{tmp_path}/{name}"], **changes)
    report = run_stage(pickle.loads(pickle.dumps(made)), InlineExecutor(), max_failed_fraction=0)
    [path] = made.folder.glob("*.parquet")
    table = pq.read_table(path)
    assert table.schema.equals(DOCUMENT_SCHEMA)
    rows = table.to_pylist()
    for row in rows:
        assert len(row["texts"]) == len(row["images"])
        pairs = zip(row["texts"], row["images"], strict=True)
        assert all((text is None) != (image is None) for text, image in pairs)
    counts = report.counts
    assert counts.rows_in == counts.rows_out + counts.dropped.total()
    assert set(counts.dropped) <= {fault.value for fault in documents.DocumentFault}
    return rows, counts


def test_a_page_becomes_one_row(tmp_path):
    [row], counts = run(tmp_path, html_record("<p>no image here"), html_record(STORY))
    text = "A cat on a mat"
    first, second = "https://example.org/a.jpg", "https://example.org/dir/b.jpg"
    assert row["texts"] == ["Cats\n\nA cat sat.", None, "It slept.\nIt woke.", None]
    assert row["images"] == [
        None,
        {"url": first, "text": text, "text_source": "alt", "uid": uid_of(first, text), "width_hint": 640,
         "height_hint": 480},
        None,
        {"url": second, "text": None, "text_source": None, "uid": uid_of(second, ""), "width_hint": None,
         "height_hint": None},
    ]  # fmt: skip
    assert row["uid"] == document_uid(
        PAGE, ["Cats\n\nA cat sat.", uid_of(first, text), "It slept.\nIt woke.", uid_of(second, "")]
    )
    assert (row["page_url"], row["page_date"], row["page_language"]) == (PAGE, DATE, "en")
    assert row["license"] == "https://creativecommons.org/licenses/by/4.0/"
    assert row["crawl_file"] == f"{tmp_path}/x.warc.gz"
    assert row["offset"] == len(member(html_record("<p>no image here")))
    assert counts.extra == {"images": 2, "images_data_url": 1}
    assert counts.dropped == {"no_image": 1}


def test_images_have_the_uids_of_the_candidates_of_the_same_page(tmp_path):
    page = (
        "<base href=/base/><p>Text and more text.</p><img src=a.jpg alt=' A  nice&nbsp;picture &amp;amp; more '>"
        "<picture><source srcset='l.webp 900w'><img src=s.jpg alt='In a picture'></picture>"
        "<img src=data:,x data-src='lazy one.jpg' title='By its title'><img src=b.jpg aria-label='By its label'>"
        f"<figure><img src=c.jpg><figcaption>By its caption</figcaption></figure><img src=d.jpg alt='{'long ' * 500}'>"
    )
    [row], _ = run(tmp_path, html_record(page))
    candidates, _ = extract(tmp_path / "x.warc.gz", tmp_path)
    texts = {candidate["uid"]: (candidate["url"], candidate["text"]) for candidate in candidates}
    found = [each for each in row["images"] if each is not None]
    assert len(found) == 6
    assert [texts[each["uid"]] for each in found] == [(each["url"], each["text"]) for each in found]
    assert [each["url"].rpartition("/")[2] for each in found] == [
        "a.jpg", "l.webp", "lazy%20one.jpg", "b.jpg", "c.jpg", "d.jpg",
    ]  # fmt: skip


def test_pages_are_dropped_for_a_reason(tmp_path):
    good = "<p>Text</p><img src=a.jpg>"
    rows, counts = run(
        tmp_path,
        html_record(good, headers=("X-Robots-Tag: noai",)),
        html_record(f"<meta name=robots content=noimageai>{good}"),
        html_record("<p>" * 60_000 + good),
        html_record("<p>Only text"),
        html_record("<p>Text</p><img src='data:,x'><img src='javascript:x'><img>"),
        html_record("<nav>Home</nav><img src=a.jpg>"),
        html_record(""),
        html_record(f"<meta name=robots content='noindex, noimageindex'>{good}"),
        html_record(f"<base href='/{'x' * 100_000}/'>{good}"),
        html_record(good, url=f"https://example.org/{'x' * 5000}"),
    )
    assert counts.dropped == {
        "page_opted_out": 2, "page_too_large": 1, "no_image": 2, "no_text": 2, "long_base": 1,
    }  # fmt: skip
    assert len(rows) == 1
    assert {name: count for name, count in counts.extra.items() if name != "images"} == {
        "images_data_url": 1, "images_unsupported_scheme": 1, "images_no_url": 1, "record_long_address": 1,
    }  # fmt: skip


def test_an_image_that_follows_itself_counts_once(tmp_path):
    html = "<p>Text</p><img data-src=a.jpg><noscript><img src=a.jpg></noscript><img src=b.jpg><img src=a.jpg>"
    [row], counts = run(tmp_path, html_record(html))
    assert [each and each["url"][-5:] for each in row["images"]] == [None, "a.jpg", "b.jpg", "a.jpg"]
    assert counts.extra["images_repeated"] == 1


def test_the_id_depends_on_address_and_content_alone(tmp_path):
    records = [
        html_record(STORY),
        html_record(STORY.replace("sat", "stood")),
        html_record(STORY, url=PAGE + "?2"),
    ]
    again = html_record("<!-- another crawl -->" + STORY).replace(DATE.encode(), b"2025-01-01T00:00:00Z")
    rows, _ = run(tmp_path, *records, again)
    first, *_, last = uids = [row["uid"] for row in rows]
    assert (len(set(uids)), first) == (3, last)
    assert all(len(uid) == 32 for uid in uids)


def test_bad_records_cost_themselves(tmp_path):
    broken = member(html_record(STORY))
    broken = broken[:200] + bytes([broken[200] ^ 0x10]) + broken[201:]
    data = [
        member(html_record(STORY)), broken, member(html_record(STORY, url="dns:example.org")),
        member(html_record(STORY, url="")), member(record("response", b"\0\1 not http")),
        member(html_record(b"\xff\xfe\xfa" * 3000)), member(html_record(b"\0" * 2_000_000)),
        member(html_record(STORY, content_type="image/png")), member(html_record(STORY)),
        member(html_record(STORY))[:-60],
    ]  # fmt: skip
    (tmp_path / "y.warc.gz").write_bytes(b"".join(data))
    made = stage(tmp_path, [f"{tmp_path}/y.warc.gz"], max_record_bytes=1_000_000)
    counts = run_stage(made, InlineExecutor(), max_failed_fraction=0).counts
    assert counts.rows_out == 2
    lost = {name: count for name, count in counts.extra.items() if not name.startswith("images")}
    assert lost == {"record_damaged": 1, "record_no_address": 2, "record_too_large": 1, "file_truncated": 1}


@pytest.mark.parametrize(
    ("content", "fault"), [(b"", "file_empty"), (b"<html>503 Slow down</html>", "file_not_warc")]
)
def test_a_bad_file_costs_itself(tmp_path, content, fault):
    (tmp_path / "bad.warc.gz").write_bytes(content)
    (tmp_path / "good.warc.gz").write_bytes(member(html_record(STORY)))
    made = stage(tmp_path, [f"{tmp_path}/*.warc.gz"])
    counts = run_stage(made, InlineExecutor(), max_failed_fraction=0).counts
    assert (counts.rows_out, counts.extra[fault]) == (1, 1)
    assert pq.read_table(made.folder / "bad_warc.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("limit", "value", "groups"), [("_ROWS_A_BATCH", 3, [3, 3, 1]), ("_CHARACTERS_A_BATCH", 60, [2, 2, 2, 1])]
)
def test_rows_are_written_in_batches(tmp_path, monkeypatch, limit, value, groups):
    monkeypatch.setattr(documents, limit, value)
    rows, _ = run(tmp_path, *(html_record(STORY, url=f"https://example.org/{number}") for number in range(7)))
    assert [row["page_url"][-1] for row in rows] == list("0123456")
    file = pq.ParquetFile(tmp_path / "out" / "documents" / "x_warc.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == groups


def test_a_shard_that_is_made_again_has_the_same_bytes(tmp_path):
    run(tmp_path, *(html_record(STORY, url=f"https://example.org/{number}") for number in range(7)))
    before = outputs(tmp_path / "out")["documents/x_warc.parquet"]
    made = stage(tmp_path, [f"{tmp_path}/x.warc.gz"])
    (made.folder / "x_warc.stats.json").unlink()
    (made.folder / "x_warc.parquet").write_bytes(before[:100])  # as a kill might leave it
    assert run_stage(made, InlineExecutor(), max_failed_fraction=0).done == 1
    assert outputs(tmp_path / "out")["documents/x_warc.parquet"] == before


def test_files_without_pages_are_refused_before_work(tmp_path):
    wat = member(wat_record(wat_value([image()])))
    (tmp_path / "a.warc.wat.gz").write_bytes(wat)
    (tmp_path / "b.warc.gz").write_bytes(member(html_record(STORY)))
    files = [f"{tmp_path}/*.gz"]
    message = r"stage=documents needs the pages themselves, and {}: metadata without their text\. Give the WARC files"
    with pytest.raises(
        ConfigError,
        match=message.format(r"1 of the 2 files of source\.files are WAT files \(.*a\.warc\.wat\.gz\)"),
    ):
        stage(tmp_path, files)
    with pytest.raises(ConfigError, match=message.format(r"source\.form is wat")):
        stage(tmp_path, files, form=CrawlForm.wat)
    with pytest.raises(ConfigError, match=message.format(r"source\.form is wat")):
        stage(tmp_path, [], kind=SourceKind.commoncrawl, form=CrawlForm.wat, crawl="CC-MAIN-2024-33")
    with pytest.raises(ConfigError, match=message.format(r"source\.kind is metadata")):
        stage(tmp_path, files, kind=SimpleNamespace(value="metadata"))  # lists of addresses and texts
    with pytest.raises(ConfigError, match="gives no crawl file"):
        stage(tmp_path, [f"{tmp_path}/nothing.warc"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "strange.name").write_bytes(wat)  # told by its content only
    with pytest.raises(TooManyFailures, match=r"strange\.name is a WAT file: metadata without their text"):
        run_stage(stage(tmp_path, [f"{tmp_path}/strange.name"]), InlineExecutor(), max_failed_fraction=0)


def test_changed_settings_are_noticed(tmp_path):
    run(tmp_path, html_record(STORY))
    with pytest.raises(ConfigError, match="setting max_text_length was 2000 and is now 6"):
        run(tmp_path, html_record(STORY), max_text_length=6)
    made = stage(tmp_path, [f"{tmp_path}/x.warc.gz"], min_text_length=50)  # of candidates only
    assert run_stage(made, InlineExecutor(), max_failed_fraction=0).skipped == 1

"""Extraction and deduplication as they run: kills, agreement of the two forms of a crawl, real files."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from crawl_files import extract, html_record, image, member, record, wat_record, wat_value
from toy_stages import outputs

from data_pipeline.stage import finished_shards
from examples.emoji.wat import derive_wat

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT.parent / "shared" / "fixtures" / "warc"

PIPELINE = """
import sys
from pathlib import Path
from types import SimpleNamespace
from crawl_files import extract_config
from toy_stages import DyingExecutor
from data_pipeline import deduplicate, extract
from data_pipeline.executors.local import LocalExecutor
from data_pipeline.sources import SourceConfig, SourceKind
from data_pipeline.stage import run_stage

if __name__ == "__main__":
    source = SourceConfig(kind=SourceKind.local, form=None, files=[sys.argv[1]], crawl=None, num_files=None, seed=0,
                          base_url="https://x.org", retries=0, backoff_s=0.0)
    sizes = deduplicate.DeduplicateConfig(rows_per_run=400, rows_per_shard=100)
    config = SimpleNamespace(output_dir=sys.argv[2], source=source, extract=extract_config(), deduplicate=sizes)
    settings = dict(num_workers=2, retries=1, shard_timeout_s=60)
    executor = DyingExecutor("extract", 3, **settings) if "die" in sys.argv else LocalExecutor(**settings)
    for stage in (extract.make_stage(config), *deduplicate.make_stages(config)):
        run_stage(stage, executor, max_failed_fraction=0)
"""


def run(crawl, output_dir, *more):
    """The program's exit status."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PIPELINE, str(crawl), str(output_dir), *more]
    return subprocess.run(
        command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, check=False
    ).returncode


def parquets(folder):
    return {name: content for name, content in outputs(folder).items() if name.endswith(".parquet")}


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """Eight WAT files of 300 pages, each page with one image of its own and one that all pages share."""
    folder = tmp_path_factory.mktemp("crawl")
    for number in range(8):
        values = [
            wat_value(
                [image(f"{number}-{page}.jpg"), image("/shared.jpg")],
                url=f"https://site{page % 9}.org/{page}",
            )
            for page in range(300)
        ]
        (folder / f"{number}.wat.gz").write_bytes(b"".join(member(wat_record(value)) for value in values))
    return folder / "*.wat.gz"


def test_kill_and_rerun_give_the_bytes_of_an_unbroken_run(crawl, tmp_path):
    """kill -9 in the middle of extraction; the next run finishes what is missing."""
    assert run(crawl, tmp_path / "unbroken") == 0
    expected = parquets(tmp_path / "unbroken")
    shards = [
        pq.read_table(tmp_path / "unbroken" / name) for name in expected if name.startswith("deduplicated/0")
    ]
    uids = [uid for table in shards for uid in table.column("uid").to_pylist()]
    assert len(uids) == len(set(uids)) == 8 * 300 + 9
    broken = tmp_path / "broken"
    assert run(crawl, broken, "die") == -signal.SIGKILL
    assert 3 <= len(finished_shards(broken / "candidates")) < 8
    assert run(crawl, broken) == 0
    assert parquets(broken) == expected
    assert not list(broken.rglob(".tmp"))


def wat_and_warc_rows(warc, tmp_path):
    wat = tmp_path / "derived.warc.wat.gz"
    derive_wat(warc, wat)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    return extract(wat, tmp_path / "a")[0], extract(warc, tmp_path / "b")[0]


def comparable(rows):
    kept = ("uid", "url", "text", "text_source", "page_url", "page_language", "license", "page_date")
    return [tuple(row[name] for name in kept) for row in rows]


@pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"{FIXTURES} is missing; put the real crawl files there to run this"
)
@pytest.mark.parametrize(
    "name", ["main-page.warc.gz", "post-blackout.warc.gz", "whirlwind.warc.gz", "IAH-urls-wget.warc.gz"]
)
def test_wat_and_warc_agree_on_real_pages(name, tmp_path):
    """What a WAT gives, its WARC gives too; the rest is what only a WARC can show: srcset and the like."""
    source = repacked(FIXTURES / name, tmp_path)
    from_wat, from_warc = map(comparable, wat_and_warc_rows(source, tmp_path))
    assert from_wat
    assert set(from_wat) <= set(from_warc)
    extra = set(from_warc) - set(from_wat)
    assert {row[2] for row in extra} <= {row[2] for row in from_wat}  # other sizes of the same images
    if name != "whirlwind.warc.gz":
        assert extra == set()


def repacked(path, tmp_path):
    """The response records of a file, one gzip member each, as in a crawl of today."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    target = tmp_path / "repacked.warc.gz"
    with open(path, "rb") as file, open(target, "wb") as output:
        for found in ArchiveIterator(file, WarcRecordType.response, parse_http=False):
            url, date = found.headers["WARC-Target-URI"].strip("<>"), found.headers["WARC-Date"]
            output.write(member(record("response", found.reader.read(), url=url, date=date)))
    return target


@pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"{FIXTURES} is missing; put the real crawl files there to run this"
)
def test_the_published_wat_beside_its_warc(tmp_path):
    """The WAT file that Common Crawl's own extractor wrote: of this page only the request's record was published."""
    from_wat, counts = extract(FIXTURES / "whirlwind.warc.wat.gz", tmp_path)
    assert (from_wat, counts.rows_in, counts.extra) == ([], 0, {})  # nothing was lost, there is nothing
    from_warc, counts = extract(FIXTURES / "whirlwind.warc.gz", tmp_path)
    assert counts.extra == {"pages": 1}
    assert {row["page_url"] for row in from_warc} == {"https://an.wikipedia.org/wiki/Escopete"}
    [small] = [row for row in from_warc if row["url"].endswith("/250px-Castilla-La_Mancha-loc.svg.png")]
    assert (small["width_hint"], small["height_hint"]) == (250, 252)


def test_wat_and_warc_agree_on_awkward_pages(tmp_path):
    pages = [
        "<html lang=de><base href='../x/'><img src='a b.jpg?x=1&amp;y=2' alt='Ein &quot;Bild&quot; &amp; mehr'>",
        '<a href="https://creativecommons.org/licenses/by/4.0/">cc</a><img src=//cdn/a.png title="only a title">',
        "<img SRC=a.jpg ALT='no quotes needed'><!-- <img src=b.jpg alt='in a comment'> -->",
        "<script>'<img src=c.jpg alt=\"in a script\">'</script><img src=d.jpg alt='caf&eacute; cr\u00e8me'>",
        "<title>The page</title><meta property=og:image content='/o.jpg'><img src=data:,x alt='an inline image'>",
        "<meta name=robots content=noai><img src=e.jpg alt='not for machines'>",
        "<img src=f.jpg aria-label='a label' title='and a title' width=30 height=20>",
        "<meta name=robots content='noindex, noimageindex'><img src=g.jpg alt='not for search engines'>",
    ]
    warc = tmp_path / "x.warc.gz"
    warc.write_bytes(
        b"".join(member(html_record(page, url=f"http://h/p/{n}")) for n, page in enumerate(pages))
    )
    from_wat, from_warc = wat_and_warc_rows(warc, tmp_path)
    assert comparable(from_wat) == comparable(from_warc)
    assert [row["text"] for row in from_wat] == [
        'Ein "Bild" & mehr', "only a title", "no quotes needed", "café crème", "The page", "and a title",
        "not for search engines",
    ]  # fmt: skip

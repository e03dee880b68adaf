"""WARC records: what is found in a page, in any encoding, and what a bad one costs."""

import gzip
import random
import zlib
from pathlib import Path

import pytest
from crawl_files import PAGE, extract, extract_config, html_record, member, record

from data_pipeline import text
from data_pipeline.extract import read_pages
from data_pipeline.html_page import read_html
from data_pipeline.page import TEXT_SOURCES
from data_pipeline.sources import CrawlForm
from data_pipeline.srcset import largest_candidate
from data_pipeline.stage import Counts
from data_pipeline.warc import decode_html

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "warc"


def run(tmp_path, *records, **changes):
    path = tmp_path / "x.warc.gz"
    path.write_bytes(b"".join(map(member, records)))
    return extract(path, tmp_path, **changes)


def links(html, wanted=TEXT_SOURCES):
    return [tuple(image)[:3] for image in read_html(html, wanted).images]


def test_a_page_gives_its_pairs_with_where_they_are_from(tmp_path):
    html = (
        '<html lang="fr"><head><base href="/img/"><title>T</title></head><body>'
        '<a rel=license href="http://www.creativecommons.org/licenses/BY/4.0/">x</a>'
        '<img src="chat.jpg" alt="Un chat &eacute;norme">'
    )
    rows, counts = run(tmp_path, html_record(html))
    assert counts.rows_out == len(rows) == 1
    row = rows[0]
    assert (row["url"], row["text"], row["text_source"]) == (
        "https://example.org/img/chat.jpg",
        "Un chat énorme",
        "alt",
    )
    assert (row["page_url"], row["page_language"]) == (PAGE, "fr")
    assert row["license"] == "https://creativecommons.org/licenses/by/4.0/"
    assert (row["crawl_file"], row["offset"], row["page_date"]) == ("x.warc.gz", 0, "2024-05-18T01:58:10Z")


def test_lazy_images_and_the_largest_of_a_srcset():
    assert links('<img src="data:image/gif;base64,x" data-src="real.jpg" alt="lazy">') == [
        ("data:image/gif;base64,x", "lazy", "alt"),
        ("real.jpg", "lazy", "alt"),
    ]
    assert links('<img src=s.jpg srcset="m.jpg 400w, l.jpg 800w" alt=x>') == [
        ("s.jpg", "x", "alt"),
        ("l.jpg", "x", "alt"),
    ]
    assert links('<img srcset="a.jpg 1x, a.jpg 2x" src=a.jpg alt=x>') == [("a.jpg", "x", "alt")]
    assert links("<img alt=x>") == [("", "x", "alt")]


def test_pictures_take_the_largest_usable_source():
    html = (
        '<picture><source type="image/avif" srcset="x.avif 4000w"><source type="image/webp" srcset="m.webp 500w, '
        'l.webp 900w"><img src="s.jpg" alt="in a picture"></picture><img src="next.jpg" alt="beside it">'
    )
    assert [url for url, _, _ in links(html)] == ["s.jpg", "l.webp", "next.jpg"]


def test_captions_of_figures_serve_images_without_text():
    html = (
        "<figure><img src=a.jpg><img src=b.jpg alt=own><figcaption>The <i>caption</i> &amp; more</figcaption></figure>"
        "<img src=c.jpg>"
    )
    assert links(html) == [
        ("a.jpg", "The  caption  & more", "figcaption"),
        ("b.jpg", "own", "alt"),
        ("c.jpg", "", "alt"),
    ]
    assert links(html, wanted=["alt"])[0] == ("a.jpg", "", "alt")
    assert links("<figure><figcaption>Before</figcaption><img src=a title=' ' alt=''></figure>") == [
        ("a", "Before", "figcaption")
    ]


def test_a_caption_is_cleaned_once_for_all_images_of_its_figure(tmp_path, monkeypatch):
    """A page of 50 MB could share out a caption of 25 MB among a million images, hours of cleaning."""
    cleaned = []
    monkeypatch.setattr(text, "_fix_text", lambda found: cleaned.append(len(found)) or found)
    text.clean_caption.cache_clear()
    caption = "\u00c3\u00a9 " * 200_000
    html = f"<figure>{'<img src=a.jpg>' * 500}<figcaption>{caption}</figcaption></figure>"
    rows, counts = run(tmp_path, html_record(html))
    assert len(rows) == counts.extra["texts_cut"] == 500
    assert cleaned == [100_000]
    assert {len(row["text"]) for row in rows} == {2000}
    text.clean_caption.cache_clear()


def test_aria_label_comes_after_what_a_wat_holds_and_before_the_caption():
    figure = "<figure><img src=a.jpg{}><figcaption>The caption</figcaption></figure>"
    for attributes, expected in (
        (" aria-label=label alt=alt title=title", ("alt", "alt")),
        (" aria-label=label alt='' title=title", ("title", "title")),
        (" aria-label=label alt=''", ("label", "aria-label")),
        (" aria-label=' '", ("The caption", "figcaption")),
    ):
        assert links(figure.format(attributes)) == [("a.jpg", *expected)]
    assert links("<img src=a.jpg aria-label=label>", wanted=["alt"]) == [("a.jpg", "", "alt")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("100", 100), (" 100px", 100), ("99.9", 99), ("0", 0), ("1e3", 1), ("007", 7), ("999999999", 999999999),
        ("100%", None), ("33.3%", None), ("", None), ("auto", None), ("-5", None), ("+5", None), ("٣", None),
        ("1000000000", None), ("1" * 100_000, None), ("1." + "5" * 100_000 + "%", None), (".5", None),
    ],
)  # fmt: skip
def test_a_size_is_a_whole_number_of_pixels_or_unknown(value, expected):
    [image] = read_html(f'<img src=a.jpg width="{value}" height=7>', TEXT_SOURCES).images
    assert (image.width_hint, image.height_hint) == (expected, 7)


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<img src=a>", {"a": (None, None)}),
        ("<img src=a data-src=b width=30 height=20>", {"a": (30, 20), "b": (30, 20)}),
        ("<img src=a width=30 height=20 srcset='b 300w, c 600w'>", {"a": (30, 20), "c": (600, 400)}),
        ("<img src=a width=30 height=20 srcset='a 600w'>", {"a": (600, 400)}),
        ("<img src=a width=30 srcset='b 600w'>", {"a": (30, None), "b": (600, None)}),
        ("<img src=a srcset='b 600w 100h'>", {"a": (None, None), "b": (600, 100)}),
        ("<img src=a width=30 height=20 srcset='b 2x'>", {"a": (30, 20), "b": (30, 20)}),
        ("<img src=a width=0 height=20 srcset='b 600w'>", {"a": (0, 20), "b": (600, None)}),
        ("<img src=a width=1 height=999999999 srcset='b 999999999w'>", {"a": (1, 999999999), "b": (999999999, None)}),
        ("<img src=a srcset='b -5w, c 1.5w, d xw'>", {"a": (None, None), "c": (None, None)}),
        (
            "<picture><source srcset='b 900w' width=3 height=1><source srcset='c 600w'>"
            "<img src=a width=3 height=2></picture>",
            {"a": (3, 2), "b": (900, 300)},
        ),
        ("<picture><source srcset='c 600w'><img src=a width=3 height=2></picture>", {"a": (3, 2), "c": (600, 400)}),
    ],
)  # fmt: skip
def test_sizes_of_an_images_addresses(html, expected):
    found = read_html(html, TEXT_SOURCES).images
    assert {image.url: (image.width_hint, image.height_hint) for image in found} == expected


def test_sizes_are_stored_with_the_candidates(tmp_path):
    html = (
        "<img src=a.jpg width=640 height=480 alt='A nice picture'><img src=b.jpg width=50% alt='Another one'>"
    )
    rows, _ = run(tmp_path, html_record(html))
    assert [(row["width_hint"], row["height_hint"]) for row in rows] == [(640, 480), (None, None)]


def test_the_shared_image_of_a_page():
    head = "<title>Page title</title><meta property=og:image content=o.jpg>"
    assert links(head) == [("o.jpg", "Page title", "og:image")]
    assert links(head + "<meta property=og:title content='OG title'>") == [("o.jpg", "OG title", "og:image")]
    assert links(head, wanted=["alt"]) == []


@pytest.mark.parametrize(
    ("html", "headers", "opted_out"),
    [
        ('<meta name="robots" content="noai, noimageai">', (), True),
        ("", ("X-Robots-Tag: noindex, noimageai",), True),
        ("", ("X-Robots-Tag: all", "x-robots-tag: noai"), True),
        ('<meta name="robots" content="noindex">', ("X-Robots-Tag: otherbot: noai",), False),
    ],
)
def test_pages_that_opt_out_are_counted_and_left(tmp_path, html, headers, opted_out):
    rows, counts = run(tmp_path, html_record(html + "<img src=a.jpg alt='A nice picture'>", headers=headers))
    assert counts.dropped == ({"page_opted_out": 1} if opted_out else {})
    assert len(rows) == (not opted_out)


@pytest.mark.parametrize(
    ("encoding", "content_type", "meta"),
    [
        ("utf-8", "text/html", ""),
        ("utf-8", "text/html; charset=UTF-8", ""),
        ("cp1252", "text/html; charset=ISO-8859-1", ""),
        ("cp1252", "text/html", ""),
        ("shift_jis", "text/html", '<meta charset="Shift_JIS">'),
        ("gb18030", "text/html", '<meta http-equiv="Content-Type" content="text/html; charset=gb2312">'),
        ("windows-1251", 'text/html; charset="windows-1251"', ""),
        ("utf-8-sig", "text/html; charset=iso-8859-1", ""),
        ("utf-16", "text/html", ""),
        ("utf-8", "text/html; charset=no-such-thing", ""),
        ("utf-8", "text/html; charset=base64", '<meta charset="utf-8">'),
        ("utf-8", "text/html", '<meta charset="utf-16">'),
    ],
)
def test_pages_are_read_in_their_encoding(encoding, content_type, meta):
    text = {"shift_jis": "猫の写真", "gb18030": "猫的照片", "windows-1251": "Кошка"}.get(
        encoding, "café “naïve”"
    )
    page = f"{meta}<img alt='{text}'>".encode(encoding)
    assert text in decode_html(page, content_type)


def test_compressed_and_chunked_bodies_are_undone(tmp_path):
    html = b"<img src=a.jpg alt='A nice picture'>"
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(html), html)
    for headers, body in (
        ((), html),
        (("Content-Encoding: gzip",), gzip.compress(html)),
        (("Content-Encoding: deflate",), zlib.compress(html)),
        (("Transfer-Encoding: chunked",), chunked),
    ):
        rows, counts = run(tmp_path, html_record(body, headers=headers))
        assert [row["text"] for row in rows] == ["A nice picture"], (headers, counts)


def test_bad_records_cost_themselves(tmp_path):
    good = html_record("<img src=a.jpg alt='A nice picture'>")
    bomb = html_record(gzip.compress(b"\0" * 5_000_000), headers=("Content-Encoding: gzip",))
    broken = html_record(gzip.compress(b"<img>" * 900)[:40] + b"xxxx", headers=("Content-Encoding: gzip",))
    no_address = html_record("<img src=a.jpg alt='A nice picture'>", url="")
    dns = html_record("<img src=a.jpg alt='A nice picture'>", url="dns:example.org")
    long_base = html_record(f"<base href='/{'x' * 900_000}/'><img src=a.jpg alt='A nice picture'>")
    no_http = record("response", b"\0\1\2 not http")
    rows, counts = run(
        tmp_path,
        good,
        bomb,
        good,
        broken,
        no_address,
        dns,
        long_base,
        no_http,
        good,
        max_record_bytes=1_000_000,
    )
    assert len(rows) == 3
    lost = {name: count for name, count in counts.extra.items() if name not in ("pages", "record_damaged")}
    assert lost == {"record_too_large": 1, "record_no_address": 2, "record_long_address": 1}


@pytest.mark.parametrize("pack", [member, bytes])
def test_half_a_page_gives_nothing(tmp_path, pack):
    """What it says of its use may stand in the other half; the cut is counted once."""
    filler = random.Random(0).randbytes(40_000).hex()
    page = f"<img src=a.jpg alt='A nice picture'><p>{filler}</p><meta name=robots content=noai>"
    data = pack(html_record("<img src=b.jpg alt='Another picture'>")) + pack(html_record(page))
    path = tmp_path / "x.warc.gz"
    path.write_bytes(data[:-10_000])
    rows, counts = extract(path, tmp_path)
    assert [row["text"] for row in rows] == ["Another picture"]
    assert counts.extra == {"pages": 1, "file_truncated": 1}


def test_what_is_no_page_is_passed_over(tmp_path):
    picture = html_record(b"\xff\xd8<img src=a.jpg alt='A nice picture'>", content_type="image/jpeg")
    request = record("request", b"GET / HTTP/1.1\r\n\r\n<img src=a.jpg alt='A nice picture'>")
    unnamed = html_record("<!doctype html><img src=a.jpg alt='A nice picture'>", content_type="")
    rows, counts = run(tmp_path, picture, request, unnamed)
    assert (len(rows), counts.extra["pages"]) == (1, 1)


@pytest.mark.parametrize(
    ("srcset", "expected"),
    [
        ("a.jpg 1x, b.jpg 2x", "b.jpg"),
        ("a.jpg 800w, b.jpg 80w", "a.jpg"),
        ("a.jpg, b.jpg 1.5x", "b.jpg"),
        ("/w_200,h_100/a.jpg 200w, /w_800,h_1/a.jpg 800w", "/w_800,h_1/a.jpg"),
        ("a.jpg,", "a.jpg"),
        (" , a.jpg 100w 50h", "a.jpg"),
        ("a.jpg 2x, b.jpg 100w", "b.jpg"),
        ("a.jpg (odd, thing) 3x, b.jpg 2x", "a.jpg"),
        ("", None),
        (" ,, ", None),
    ],
)
def test_largest_candidate(srcset, expected):
    found = largest_candidate(srcset)
    assert (found.url if found else None) == expected


@pytest.mark.parametrize(
    "srcset", ["," * 100_000, "a " * 50_000, "(" * 100_000, "a (" * 30_000, "a," * 50_000]
)
def test_hostile_srcsets_take_time_by_their_length_only(srcset):
    largest_candidate(srcset)


needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"{FIXTURES} is missing; put the real crawl files there to run this"
)


@needs_fixtures
@pytest.mark.parametrize(
    ("name", "pages", "rows_in", "rows_out"),
    [
        ("main-page.warc.gz", 1, 17, 17),
        ("post-blackout.warc.gz", 1, 6, 3),
        ("whirlwind.warc.gz", 1, 23, 13),
        ("IAH-urls-wget.warc.gz", 11, 50, 46),
        ("ia-link-extraction-test.warc", 9, 4, 4),
    ],
)
def test_real_crawl_files(tmp_path, name, pages, rows_in, rows_out):
    rows, counts = extract(FIXTURES / name, tmp_path)
    assert (counts.extra["pages"], counts.rows_in, counts.rows_out) == (pages, rows_in, rows_out)
    assert all(row["url"].startswith(("http://", "https://")) and len(row["text"]) >= 5 for row in rows)


@needs_fixtures
def test_a_real_page_in_full(tmp_path):
    rows, _ = extract(FIXTURES / "whirlwind.warc.gz", tmp_path)
    assert {(row["page_language"], row["license"], row["offset"]) for row in rows} == {
        ("an", "https://creativecommons.org/licenses/by-sa/4.0/deed.an", 1023)
    }
    assert rows[0]["text"] == "Biquipedia"
    assert rows[0]["url"].startswith(
        "https://an.wikipedia.org/static/images/mobile/copyright/wikipedia-wordmark-an"
    )


@needs_fixtures
def test_the_language_attribute_in_its_spellings():
    path = FIXTURES / "ia-html-lang-attribute.warc"
    pages = read_pages(path, CrawlForm.warc, extract_config(), Counts())
    assert [page.language for page, _ in pages] == ["en", "zh-CN", "cs-cz", "en", "es-MX"]

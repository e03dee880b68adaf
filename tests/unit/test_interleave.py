"""A page's main content: texts and images in the page's order, boilerplate gone, no page too much for it."""

import re
from pathlib import Path

import pytest
from crawl_files import extract_config
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.interleave import main_content, read_interleaved
from data_pipeline.page import TEXT_SOURCES
from data_pipeline.records import read_records
from data_pipeline.warc import HtmlRecord, read_html_record

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "warc"


def items(html):
    """The items of a page: texts, and for each image its addresses in angle brackets."""
    read = read_interleaved(html, TEXT_SOURCES)
    assert read is not None
    return [
        item if isinstance(item, str) else f"<{' '.join(link.url for link in item)}>" for item in read.items
    ]


def test_texts_and_images_come_in_order():
    html = (
        "<title>T</title><body><h1>Cats</h1><p>A cat.</p><figure><img src=a.jpg alt='A'><figcaption>On a mat"
        "</figcaption></figure><p>Before <img src=b.jpg> after.</p><img src=c.jpg><img src=d.jpg><p>The end"
    )
    assert items(html) == [
        "Cats\n\nA cat.", "<a.jpg>", "On a mat\n\nBefore", "<b.jpg>", "after.", "<c.jpg>", "<d.jpg>", "The end",
    ]  # fmt: skip


def test_boilerplate_takes_its_images_with_it():
    html = (
        "<body><header><img src=logo.png class=logo></header><nav><a href=/>Home</a><img src=menu.png></nav>"
        "<main><p>The story.</p><img src=story.jpg><div class='share-buttons'><img src=share.png></div></main>"
        "<div class=sidebar><p>Other stories<img src=other.jpg></div><p hidden>Secret<img src=secret.jpg></p>"
        "<footer><p>Imprint<img src=cc.png></footer>"
    )
    found = items(html)
    assert "The story." in found
    assert "<story.jpg>" in found
    for gone in ("logo", "menu", "Home", "Other", "other", "ecret", "Imprint", "cc.png"):
        assert not any(gone in item for item in found), gone


def test_an_image_in_a_link_is_not_taken_for_a_menu():
    cell = "<div style='float: left'><a href=/big><img src=a.jpg></a></div>"
    html = "<body>" + "<div>" * 8 + cell + "<p>A picture of a cat on a mat.</p>" + "</div>" * 8
    assert items(html) == ["<a.jpg>", "A picture of a cat on a mat."]


def test_addresses_of_an_image_stay_together():
    html = (
        "<p>Text</p><picture><source srcset='l.webp 900w'><img src=data:,x data-src=lazy.jpg alt=x></picture>"
    )
    assert items(html) == ["Text", "<data:,x lazy.jpg l.webp>"]
    html = "<p>Text</p><img data-src=a.jpg><noscript>Switch scripts on! <img src=a.jpg></noscript><p>More"
    assert items(html) == ["Text", "<a.jpg>", "<a.jpg>", "More"]


def test_captions_and_texts_are_those_of_extraction():
    html = "<p>Text</p><figure><img src=a.jpg><figcaption>The caption</figcaption></figure><img src=b.jpg title=t>"
    read = read_interleaved(html, ["alt", "figcaption"])
    assert read is not None
    links = [item[0] for item in read.items if not isinstance(item, str)]
    assert [(link.text, link.text_source) for link in links] == [("The caption", "figcaption"), ("", "alt")]


def test_texts_are_cleaned_and_keep_their_lines():
    html = "<p>One\u200b &amp;amp; two<br>three\n four</p>\n\n\n<p>f\u00fc\u202enf \ufffd</p><ol><li>six</ol>"
    assert items(html)[0] == "One & two\nthree four\n\nfünf\n\nsix"


def test_what_a_page_says_is_read_too():
    read = read_interleaved(
        "<html lang=fr><head><base href=/x/><meta name=robots content=noimageai></head>"
        "<body><p>a <a href=https://creativecommons.org/licenses/by/4.0/>b</a>",
        TEXT_SOURCES,
    )
    assert read is not None
    page = read.page
    assert (page.language, page.base_href, page.opted_out) == ("fr", "/x/", True)
    assert page.license == "https://creativecommons.org/licenses/by/4.0/"


WORD = st.text(alphabet="abcdefghij", min_size=3, max_size=9)
TEXT = st.lists(WORD, min_size=1, max_size=8).map(" ".join)
PART = st.one_of(TEXT.map(lambda text: ("text", text)), st.just(("image", "")))
WRAPS = ["<p>{}</p>", "<div>{}</div>", "<section>{}</section>", "<p>{}", "<blockquote>{}</blockquote>", "{}"]
WRAPS += [
    "<div><div>{}</div></div>",
    "<table><tr><td>{}</td></tr></table>",
    "<h2>{}</h2>",
    "<p><b><i>{}</b></i></p>",
]
WRAPS += ["<figure>{}</figure>", "<center>{}", "<ol><li>{}</ol>", "<dl><dd>{}</dl>"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(PART, st.sampled_from(WRAPS)), min_size=1, max_size=15))
def test_the_order_is_the_pages_and_the_texts_are_its_main_text(parts):
    html, expected, number = "<body>", [], 0
    for (kind, text), wrap in parts:
        if kind == "image":
            html += wrap.format(f"<img src={number}.jpg>") + " "
            expected.append(f"<{number}.jpg>")
            number += 1
        else:
            html += wrap.format(text) + " "
            expected += text.split()
    found = items(html)
    words = [word for item in found for word in ([item] if item.startswith("<") else item.split())]
    assert words == expected
    texts = " ".join(item for item in found if not item.startswith("<"))
    assert texts.split() == main_content(re.sub(r"<img[^>]*>", " ", html)).split()


@pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"{FIXTURES} is missing; put the real crawl files there to run this"
)
@pytest.mark.parametrize(("name", "images"), [("whirlwind.warc.gz", 8), ("main-page.warc.gz", 14)])
def test_a_real_page_gives_the_text_that_the_library_finds_in_it(name, images):
    """The rewriting changes nothing of what the library thinks of a page, but that its images have no alt text."""
    from fastwarc.warc import WarcRecordType

    limit = extract_config().max_record_bytes
    records = read_records(
        FIXTURES / name, WarcRecordType.response, lambda fault: None, max_bytes=limit, decode_http=True
    )
    pages = [read_html_record(record, payload) for record, payload in records]
    [page] = [page for page in pages if isinstance(page, HtmlRecord)]
    found = items(page.html)
    texts = " ".join(item for item in found if not item.startswith("<"))
    assert texts.split() == main_content(re.sub(r'\balt="[^"]*"', "", page.html)).split()
    assert sum(item.startswith("<") for item in found) == images


HOSTILE = {
    "nested": "<div>" * 40_000 + "<p>text<img src=a>",
    "nested lists": "<ul><li>" * 20_000 + "<p>text<img src=a>",
    "nested tables": "<table><tr><td>" * 15_000 + "<p>text<img src=a>",
    "nested links": "<a href=x><div>" * 15_000 + "<p>text<img src=a>",
    "crossed": "<b id=x><div>" * 15_000 + "</b>" * 15_000 + "<p>text<img src=a>",
    "crossed links": "<a id=x><div>" * 100 + "</a>" * 100_000 + "<p>text<img src=a>",
    "reopened": "<a class=x>" + "<i class=y>" * 120 + "</a><a>" * 300 + "<img>" * 300 + "<p>text",
    "deep menus": "<div>" * 120 + "<div><a>x</a></div>" * 20_000,
    "deep lists": "<ul><li>" * 60 + "<a>x</a> y" * 20_000,
    "ends beyond reach": "<p><table><tr><td>" + "<i>" * 120 + "</div>" * 190_000,
    "attributes": "<p " + " ".join(f"a{index}=1" for index in range(40_000)) + ">text<img src=a>",
    "many attributes": f"<p {'a=1 ' * 100}>" * 10_000 + "text<img src=a>",
    "classes": f"<p class='{'nav ' * 100_000}'>text<img src=a>",
    "text": "text " * 1_000_000 + "<img src=a>",
    "deep text": "<ul><li>" * 60 + "text " * 1_000_000 + "<img src=a>",
    "lines": "a<br>" * 40_000 + "<img src=a>",
    "brackets": "<" * 1_000_000,
    "references": "&#" * 500_000 + "&amp;" * 200_000,
    "forms": "<form><select><option>" * 10_000 + "text<img src=a>",
    "drawings": "<svg>" * 40_000 + "<p>text<img src=a>",
    "templates": "<template>" * 40_000 + "<p>text<img src=a>",
    "headings": "<h1>" * 30_000 + "text<img src=a>",
    "frames": "<frameset>" * 40_000 + "<frame>" * 40_000,
    "nothing": "",
    "zeros": "\0" * 1_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pages_take_time_by_their_length_only(name):
    # The library alone needs minutes for some of these; quadratic work would be noticed as a slow test.
    read = read_interleaved(HOSTILE[name], TEXT_SOURCES)
    assert read is not None
    if name in ("crossed", "crossed links", "text", "lines", "headings", "attributes", "many attributes"):
        assert "text" in str(read.items[0]) or name == "lines"


@pytest.mark.parametrize("html", ["x" * 6_000_001, "<p>" * 50_001, "</p>" * 200_001, "<img>" * 60_000])
def test_pages_larger_than_pages_are_have_no_content(html):
    assert read_interleaved(html, TEXT_SOURCES) is None

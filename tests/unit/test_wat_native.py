"""The compiled part of extraction: what it does gives what Python gives, and all else it leaves to Python."""

import io
import json

import pytest
from crawl_files import (
    compiled_library,
    extract_both_ways,
    extract_config,
    image,
    member,
    wat_record,
    wat_value,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from wat_forms import records, write

from crawl2clip.errors import ConfigError
from data_pipeline import native
from data_pipeline.candidate_columns import PairLists
from data_pipeline.extract import CandidateWriter
from data_pipeline.page import TEXT_SOURCES, PackedImages, Page
from data_pipeline.urls import page_base
from data_pipeline.wat import read_wat_page
from data_pipeline.wat_scanner import WatScanner

LIBRARY = compiled_library()
needs_library = pytest.mark.skipif(LIBRARY is None, reason="needs a C compiler: cc, gcc or clang, or CC")


def scan(payload, wanted=TEXT_SOURCES):
    """The page as compiled code reads it, its links as objects; None if it leaves the record to Python."""
    page = WatScanner(LIBRARY, frozenset(wanted)).read(payload)
    if page is not None:
        page.images = page.images.unpack()
    return page


def payload_of(links, **more):
    return json.dumps(wat_value(links, **more), ensure_ascii=False).encode()


@needs_library
@given(
    records,
    st.sampled_from(["", "", " ", "\n\t", "\r\n  "]),
    st.sampled_from(["ascii", "none", "slash", "all"]),
    st.sets(st.sampled_from(TEXT_SOURCES)).map(lambda wanted: {*wanted, "alt"}),
)
@settings(max_examples=300, deadline=None)
def test_a_record_reads_the_same_compiled_and_in_python(record, space, escape, wanted):
    payload = write(record, space, escape).encode("utf-8", "surrogatepass")
    page = scan(payload, wanted)
    if page is not None:
        assert page == read_wat_page(payload, wanted)


_USUAL = [
    image("a.jpg", "A nice picture"),
    image("/b.png", None, title="A title"),
    image("c d.jpg", " \u3000\u00a0 ", title=""),
    image("", "caf\u00e9 \U0001f600"),
    {
        "path": "A@/href",
        "url": "http://example.org/",
        "text": "t",
        "x": [{"y": [1, -2.5e3, True, None, "\\"]}],
    },
]
_METAS = [
    {"name": "HTML@/lang", "content": "de"},
    {"name": "ROBOTS", "content": "noai"},
    {"property": "og:image", "content": "/o.jpg"},
    {"name": "og:title", "content": "Shared"},
    {"http-equiv": "refresh", "content": None},
]


@needs_library
@pytest.mark.parametrize("wanted", [["alt"], ["alt", "title"], list(TEXT_SOURCES)])
def test_usual_records_are_read_by_compiled_code(wanted):
    payload = payload_of(_USUAL, metas=_METAS, head={"Base": "/b/", "Title": "T", "Link": [{"url": "a"}]})
    page = scan(payload, wanted)
    assert isinstance(page, Page)
    assert page == read_wat_page(payload, wanted)
    assert page.opted_out
    assert page.language == "de"


@needs_library
@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-1],
        lambda text: text + b"x",
        lambda text: text.replace(b'"Links"', b'"Links": [], "Links"'),
        lambda text: text.replace(b'"alt"', b'"alt": "x", "alt"', 1),
        lambda text: text.replace(b'"A nice picture"', b"7"),
        lambda text: text.replace(b"nice", b"ni\xffce"),
        lambda text: text.replace(b"nice", b"\\ud800"),
        lambda text: text.replace(b"nice", b"\\u0000"),
        lambda text: text.replace(b"nice", b"ni\nce"),
        lambda text: text.replace(b"nice", b"\\x"),
        lambda text: text.replace(b'"path"', b'"p\\u0061th"', 1),
        lambda text: text.replace(
            b"http://example.org/", b"https://www.creativecommons.org/licenses/by/4.0/"
        ),
        lambda text: text.replace(b"http://example.org/", b"\\thttp://creativecommons.org/licenses/by/4.0/"),
        lambda text: text.replace(
            b"http://example.org/", b"http:\\/\\/creativecommons.org\\/licenses/by/4.0/"
        ),
        lambda text: text.replace(b'"Content-Type"', b'"X-Robots-Tag"'),
        lambda text: text.replace(b"-2500.0", b"NaN"),
        lambda text: text.replace(b"-2500.0", b"[" * 100 + b"]" * 100),
        lambda text: text.replace(b'"HTML-Metadata"', b'"XML-Metadata"'),
        lambda text: text.replace(b"WARC-Target-URI", b"WARC-Target"),
        lambda text: text + b" " * (4 << 20),
    ],
)
def test_what_is_unusual_is_left_to_python(spoil):
    payload = payload_of(_USUAL)
    assert scan(payload) is not None
    assert spoil(payload) != payload
    assert scan(spoil(payload)) is None


_NEAR = "ab Z.,&;'\"-  \u00e9\u00c9\u00d8\u0433\u0412\u3042\u2019\u201c\u201d\u00ab\u2014\u20ac\u00a0\u200b\u0301😀"
_text = st.one_of(st.text(_NEAR, max_size=12), st.text(max_size=6)).filter(lambda text: "\0" not in text)
_PIECES = """/ // . .. /.. /. a b.jpg ? ?x=1&y #f : @ %2e %2E %20 % é ' \\ http:// https: https:// HTTP:// host.org
h.org/ 1.2.3.4 xn--a.org/ h.org:80/ a-b.c_d.de/ _ ~ - data: data:image/gif;base64,R0 mailto: | ^ [ + , ; = ! $ * ( )"""
_address = st.lists(st.sampled_from([*_PIECES.split(), " "]), max_size=6).map("".join)


@needs_library
@given(
    st.lists(st.tuples(_address, _text, st.sampled_from(TEXT_SOURCES)), max_size=6),
    st.sampled_from(["https://example.org/dir/p.html?q#f", "http://a.org", "http://h.org:8080/\u00e9/x"]),
    st.sampled_from([{}, {"min_text_length": 0}, {"max_text_length": 6}, {"max_url_length": 24}]),
)
@settings(max_examples=400, deadline=None)
def test_links_give_the_same_rows_and_reasons_compiled_and_in_python(links, page_url, changes):
    links = [(url.encode("utf-8", "ignore").decode(), text.encode("utf-8", "ignore").decode(), source)
             for url, text, source in links]  # fmt: skip
    base = page_base(page_url, None)
    packed = PackedImages(
        "".join(f"{url}\0{text}\0" for url, text, _ in links).encode(),
        bytes(TEXT_SOURCES.index(source) for *_, source in links),
        len(links),
    )
    compiled, plain = (CandidateWriter(io.BytesIO(), "x", extract_config(**changes)) for _ in range(2))
    plain._pairs = PairLists()
    compiled._add_packed(packed, base)
    plain._add_links(packed.unpack(), base)
    for name, column in plain._pairs.columns().items():
        assert compiled._pairs.columns()[name].to_pylist() == column.to_pylist(), name
    assert compiled.counts == plain.counts


@needs_library
def test_most_links_take_no_python():
    texts = [
        "A picture",
        "Bild f\u00fcr \u00c4pfel",
        "Don\u2019t",
        "Котики \u2013 \u00abмир\u00bb",
        "猫の写真です",
        "a & b",
    ]
    addresses = [
        "a.jpg",
        "/a%20b.jpg?x=1&y=2",
        "https://cdn.a-b.example/c.jpg",
        "x/y.png",
        "data:image/gif;base64,R0",
    ]
    links = [(url, text) for url in addresses for text in texts]
    writer = CandidateWriter(io.BytesIO(), "x", extract_config())
    packed = PackedImages("".join(f"{url}\0{text}\0" for url, text in links).encode(), b"", len(links))
    base = page_base("http://a.example/b/c", None)
    assert writer._pairs.extend(packed, base, lambda *link: pytest.fail(str(link))) == (0, len(texts))
    assert len(writer._pairs) == 4 * len(texts)


def test_a_file_gives_the_same_rows_and_counts_compiled_and_in_python(tmp_path):
    pages = [
        wat_value(_USUAL, metas=_METAS[:1] + _METAS[2:], url="https://example.org/a/b?c"),
        wat_value([image(f"{n}.jpg", "x" * n) for n in range(40)]),
        wat_value([image("a.jpg", "Text\0with NUL"), image("a.jpg", ["no text"]), *_USUAL]),
        wat_value(
            [image("../a.jpg", "Caf\u00c3\u00a9 mojibake"), image("javascript:1", "A script's picture")]
        ),
        b'{"Envelope": "IMG@/src',
    ]
    path = tmp_path / "x.warc.wat.gz"
    path.write_bytes(b"".join(member(wat_record(page)) for page in pages))
    rows, counts = extract_both_ways(path, tmp_path)
    assert len(rows) > 40
    assert counts.extra["record_bad_json"] == 1


@needs_library
def test_a_page_of_more_links_than_compiled_code_takes(tmp_path):
    payload = payload_of([image("a", "A text")] * 10_001)
    assert scan(payload) is None
    assert scan(payload_of([image("a", "A text")] * 10_000)) is not None


def test_a_compiler_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "false")
    with pytest.raises(ConfigError, match=r"false .* ended with 1.*set CC.*done in Python"):
        native.build(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_compiler_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs a C compiler; of cc, gcc and clang none.*or set CC"):
        native.build(tmp_path)


@needs_library
def test_a_library_of_other_sources_is_not_loaded(tmp_path, monkeypatch):
    built = native.build(tmp_path)
    assert native.build(tmp_path) == built  # as it is
    monkeypatch.setattr(native, "_FLAGS", ("-x",))
    assert native.build(tmp_path) == built
    (tmp_path / "more.c").write_text("int more;\n")
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    assert native.library_path(tmp_path) != built

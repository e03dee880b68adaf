"""WAT records: what is read, and what a bad one costs."""

import json

import pyarrow.parquet as pq
import pytest
from crawl_files import DATE, PAGE, extract, extract_both_ways, image, member, wat_record, wat_value

from data_pipeline import extract as extract_module

GOOD = wat_value([image("good.jpg", "A good picture")])


def run(tmp_path, *values, **changes):
    path = tmp_path / "x.warc.wat.gz"
    path.write_bytes(b"".join(member(wat_record(value)) for value in values))
    return extract(path, tmp_path, **changes)


def pairs(rows):
    return [(row["url"].removeprefix("https://example.org/"), row["text"]) for row in rows]


def test_a_page_gives_its_pairs_with_where_they_are_from(tmp_path):
    value = wat_value(
        [
            {"path": "A@/href", "url": "http://creativecommons.org/licenses/by-sa/4.0/", "text": "terms"},
            image("a.jpg", "  A cat &amp; a dog "),
            image("/b.png", "", title="The title instead"),
            image("c.gif", None),
            {"path": "IMG@/longdesc", "url": "long.html"},
            {"path": "IMG@/src", "url": "d.jpg"},
        ],
        metas=[{"name": "HTML@/lang", "content": "en-GB"}],
    )
    rows, counts = run(tmp_path, value)
    assert pairs(rows) == [("dir/a.jpg", "A cat & a dog"), ("b.png", "The title instead")]
    assert [row["text_source"] for row in rows] == ["alt", "title"]
    assert rows[0] == rows[0] | {
        "page_url": PAGE,
        "page_language": "en-GB",
        "license": "https://creativecommons.org/licenses/by-sa/4.0/",
        "crawl_file": "x.warc.wat.gz",
        "offset": 0,
        "page_date": DATE,
    }
    assert (counts.rows_in, counts.rows_out, counts.dropped) == (4, 2, {"no_text": 2})


def test_base_og_image_and_the_sources_that_are_wanted(tmp_path):
    metas = [
        {"property": "og:image", "content": "share.jpg"},
        {"property": "og:image", "content": "second.jpg"},
        {"property": "og:title", "content": "What is shared"},
    ]
    value = wat_value(
        [image("a.jpg", "", title="A title")], metas=metas, head={"Base": "/base/", "Title": "Page"}
    )
    rows, _ = run(tmp_path, value)
    assert pairs(rows) == [("base/a.jpg", "A title"), ("base/share.jpg", "What is shared")]
    assert rows[1]["text_source"] == "og:image"
    rows, counts = run(tmp_path, value, text_sources=["alt"])
    assert (rows, counts.rows_in, counts.dropped) == ([], 1, {"no_text": 1})


@pytest.mark.parametrize(
    ("metas", "headers", "opted_out"),
    [
        ([{"name": "ROBOTS", "content": "index, NoAI"}], {}, True),
        ([], {"x-robots-tag": "noimageai"}, True),
        ([], {"X-Robots-Tag": ["all", "noai"]}, True),
        ([], {"X-Robots-Tag": "otherbot: noai"}, False),
        ([{"name": "robots", "content": "noindex"}], {}, False),
        ([{"name": "description", "content": "noai"}], {"X-Other": "noai"}, False),
    ],
)
def test_pages_that_opt_out_are_counted_and_left(tmp_path, metas, headers, opted_out):
    rows, counts = run(tmp_path, wat_value([image()], metas=metas, headers=headers))
    assert counts.dropped == ({"page_opted_out": 1} if opted_out else {})
    assert len(rows) == (not opted_out)


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        (image("data:image/png;base64,AAAA"), "data_url"),
        (image("javascript:void(0)"), "unsupported_scheme"),
        (image("http://[bad"), "invalid_url"),
        (image("  "), "no_url"),
        (image("http://user:secret@host/a.jpg"), "url_with_credentials"),
        (image("http://host/" + "a" * 1_000_000), "url_too_long"),
        (image("data:image/png;base64," + "A" * 1_000_000), "data_url"),
        (image(alt="abcd"), "text_too_short"),
        (image(alt="\0\u202e\u200b "), "no_text"),
        (image(alt=12345), "bad_link"),
        (image(url=None), "no_url"),
        (image(url=["a.jpg"]), "bad_link"),
        (image(title={"a": 1}), "bad_link"),
    ],
)
def test_every_bad_link_costs_itself_and_has_a_reason(tmp_path, link, reason):
    rows, counts = run(tmp_path, wat_value([image("1.jpg"), link, image("2.jpg")]))
    assert [row["url"][-5:] for row in rows] == ["1.jpg", "2.jpg"]
    assert (counts.rows_in, counts.dropped) == (3, {reason: 1})


def _without(value, *path):
    value = json.loads(json.dumps(value))
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    return value


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (json.dumps(GOOD).encode()[:-30], "record_bad_json"),
        (b"[" * 1_000_000 + b"IMG@/src", "record_bad_json"),
        (b'{"x":' * 300_000 + b'"IMG@/src"' + b"}" * 300_000, "record_bad_json"),
        (b'"IMG@/src"', "record_wrong_form"),
        (b"\0\0IMG@/src\0", "record_bad_json"),
        (_without(GOOD, "Envelope", "WARC-Header-Metadata"), "record_wrong_form"),
        (_without(GOOD, "Envelope", "WARC-Header-Metadata", "WARC-Target-URI"), "record_wrong_form"),
        (b'{"Envelope": null, "x": "IMG@/src"}', "record_wrong_form"),
        (wat_value([image()], url="dns:example.org"), "record_no_address"),
        (wat_value([image()], url="not a url"), "record_no_address"),
    ],
)
def test_every_bad_record_costs_itself_and_has_a_reason(tmp_path, value, fault):
    rows, counts = run(tmp_path, GOOD, value, GOOD)
    assert len(rows) == 2
    assert {name: count for name, count in counts.extra.items() if "pages" not in name} == {fault: 1}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"].update(
            Head=None
        ),
        lambda value: value["Envelope"]["WARC-Header-Metadata"].update({"WARC-Date": 2024}),
        lambda value: value["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"].update(Headers=[1, 2]),
        lambda value: value["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"][
            "Links"
        ].insert(0, "text"),
        lambda value: value["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"][
            "Head"
        ].update(Base=5, Metas=[{"name": 5}, {"name": "x", "content": None}]),
        lambda value: value.update(Extra={"deep": [[[[1, None, 1e300]]]]}),
    ],
)
def test_wrong_types_beside_the_links_cost_nothing(tmp_path, spoil):
    value = json.loads(json.dumps(GOOD))
    spoil(value)
    rows, counts = run(tmp_path, value)
    assert pairs(rows) == [("dir/good.jpg", "A good picture")]
    assert counts.dropped == {}


def test_bytes_that_are_not_utf8_and_lone_surrogates_cost_characters_only(tmp_path):
    broken = json.dumps(wat_value([image("a.jpg", "a fine caf@ here")])).encode().replace(b"caf@", b"caf\xe9")
    surrogate = json.dumps(wat_value([image("b.jpg", "smile \ud83d now")])).encode()
    rows, counts = run(tmp_path, broken, surrogate)
    assert pairs(rows) == [("dir/a.jpg", "a fine caf here"), ("dir/b.jpg", "smile now")]
    assert counts.rows_out == 2


def test_long_texts_are_cut_and_counted(tmp_path):
    rows, counts = run(tmp_path, wat_value([image(alt="word " * 1000)]), max_text_length=22)
    assert rows[0]["text"] == "word word word word wo"
    assert counts.extra["texts_cut"] == 1


def test_records_without_images_are_not_even_decoded(tmp_path):
    _, counts = run(tmp_path, b"not json at all", wat_value([{"path": "A@/href", "url": "x"}]))
    assert counts.extra == {}


_LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    "long",
    [
        {"url": f"https://example.org/{_LONG}"},
        {"head": {"Base": f"/{_LONG}/"}},
        {"url": f"https://example.org/{_LONG}", "metas": [{"name": "robots", "content": "noai"}]},
    ],
)
def test_a_page_with_an_address_of_a_megabyte_costs_itself(tmp_path, long):
    """Its address would stand beside each of its candidates: of 3,000 links Arrow could not make a column."""
    links = [image(f"https://cdn.example/{n}.jpg") for n in range(3000)]
    path = tmp_path / "x.warc.wat.gz"
    values = GOOD, wat_value(links, **long), GOOD
    path.write_bytes(b"".join(member(wat_record(value)) for value in values))
    rows, counts = extract_both_ways(path, tmp_path)
    assert len(rows) == counts.rows_in == 2
    assert counts.extra == {"pages": 3, "record_long_address": 1}


def test_what_a_page_says_of_itself_is_of_bounded_length(tmp_path):
    terms = f"https://creativecommons.org/licenses/by/4.0/{'x' * 100_000}"
    value = wat_value(
        [{"path": "A@/href", "url": terms}, image()], metas=[{"name": "HTML@/lang", "content": _LONG}]
    )
    value["Envelope"]["WARC-Header-Metadata"]["WARC-Date"] = _LONG
    (tmp_path / "x.warc.wat.gz").write_bytes(member(wat_record(value)))
    (row,), _ = extract_both_ways(tmp_path / "x.warc.wat.gz", tmp_path)
    assert (row["license"], row["page_date"], len(row["page_language"])) == (None, None, 35)


def test_a_page_of_many_long_addresses_is_written_in_parts(tmp_path, monkeypatch):
    """A short relative address becomes as long as its page's: a record of 50 MB could become gigabytes."""
    monkeypatch.setattr(extract_module, "_LINKS_AT_ONCE", 100)
    monkeypatch.setattr(extract_module, "_BYTES_A_BATCH", 200_000)
    url = f"https://example.org/{'x' * 1900}/"
    path = tmp_path / "x.warc.wat.gz"
    path.write_bytes(
        member(wat_record(wat_value([image(f"{n}", "A text") for n in range(1000)] * 11, url=url)))
    )
    rows, counts = extract_both_ways(path, tmp_path)
    assert len(rows) == counts.rows_out == 11_000
    assert rows[1234]["url"] == f"{url}234"
    assert pq.ParquetFile(tmp_path / "candidates.parquet").num_row_groups == 55

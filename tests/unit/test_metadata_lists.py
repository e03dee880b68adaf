"""Lists of pairs: every published layout, every bad row by its reason, and the rest of the list still read."""

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawl_files import extract_config
from hypothesis import given, settings
from hypothesis import strategies as st

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.schema import CANDIDATE_SCHEMA, uid_of
from data_pipeline import metadata_text
from data_pipeline.metadata_candidates import write_list
from data_pipeline.metadata_columns import NamedColumns, columns_by_name, columns_of_rows
from data_pipeline.metadata_lines import RowFault, read_lines
from data_pipeline.metadata_lists import LIST_ENDINGS, ListForm, check_list, list_form_of
from data_pipeline.metadata_text import delimited_rows

NONE = NamedColumns(None, None)
PAIRS = [(f"https://h.org/{number}.jpg", f"a nice picture {number}") for number in range(5)]


def read(path, given=NONE, **changes):
    """(candidates, counts) of a list."""
    target = path.parent / "out.parquet"
    counts = write_list(path, path.name, "the/list", given, extract_config(**changes), target)
    table = pq.read_table(target)
    assert table.schema.equals(CANDIDATE_SCHEMA)
    assert counts.rows_in == counts.rows_out + sum(counts.dropped.values())
    assert counts.rows_out == table.num_rows
    return table.to_pylist(), counts


def pairs(rows):
    return [(row["url"], row["text"]) for row in rows]


def save(tmp_path, name, content):
    path = tmp_path / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    return path


def save_parquet(tmp_path, columns, **changes):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", **changes)
    return tmp_path / "a.parquet"


# The forms and their columns


def test_a_parquet_list_like_laions(tmp_path):
    urls, texts = zip(*PAIRS, strict=True)
    path = save_parquet(
        tmp_path,
        {
            "SAMPLE_ID": [1.0] * 5, "URL": urls, "TEXT": texts, "HEIGHT": [1] * 5, "similarity": [0.3] * 5,
            "LICENSE": ["?", "https://creativecommons.org/licenses/by/4.0/", None, "", "mine"],
        },
    )  # fmt: skip
    rows, counts = read(path)
    assert pairs(rows) == PAIRS
    assert [row["uid"] for row in rows] == [uid_of(*pair) for pair in PAIRS]
    assert [row["offset"] for row in rows] == [0, 1, 2, 3, 4]
    assert {row["crawl_file"] for row in rows} == {"the/list"}
    assert {row["text_source"] for row in rows} == {"list"}
    assert [row["license"] for row in rows] == [
        None,
        "https://creativecommons.org/licenses/by/4.0/",
        None,
        None,
        None,
    ]
    assert {row["page_url"] for row in rows} == {row["page_date"] for row in rows} == {None}
    assert (counts.dropped, counts.extra) == ({}, {})


@pytest.mark.parametrize(
    ("names", "url", "text"),
    [
        (
            ["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"],
            1,
            2,
        ),  # LAION-400M
        (["uid", "url", "text", "original_width", "clip_b32_similarity_score", "sha256"], 1, 2),  # DataComp
        (["id", "url", "text", "width", "image_phash", "aesthetic_score_laion_v2"], 1, 2),  # COYO
        (["url", "caption", "similarity", "punsafe", "pwatermark"], 0, 1),  # Re-LAION
        (["URL", "TEXT", "top_caption", "all_captions"], 0, 1),  # LAION-COCO
        (["image_url", "caption"], 0, 1),  # Conceptual Captions on the hub
        ([" Url ", "Alt_Text"], 0, 1),
    ],
)
def test_the_columns_of_published_lists(names, url, text):
    found = columns_by_name(names, NONE, "x")
    assert (found.url, found.text) == (url, text)


def test_more_columns_that_are_read(tmp_path):
    assert columns_by_name(["url", "text", "PAGE_URL", "License"], NONE, "x")[:4] == (0, 1, 2, 3)
    lines = [
        {"url": "b.jpg", "text": "a relative one", "page_url": "https://h.org/x/page"},
        {"url": "https://h.org/c.jpg", "text": "a bad page", "page_url": 7},
        {"url": "https://h.org/d.jpg", "text": "a long page", "page_url": "https://h.org/" + "x" * 5000},
    ]
    rows, _ = read(save(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines))))
    assert [(row["url"], row["page_url"]) for row in rows] == [
        ("https://h.org/x/b.jpg", "https://h.org/x/page"),
        ("https://h.org/c.jpg", None),
        ("https://h.org/d.jpg", None),
    ]


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (
            ["link", "alt"], NONE,
            r"x has no column that is known to hold the url; it has 'link', 'alt'\. Recognised, in any case, are url, "
            r"image_url, img_url; name another one as source\.url_column",
        ),
        (["url"], NONE, r"x has no column that is known to hold the text; .* as source\.text_column"),
        ([], NONE, r"known to hold the url; it has none"),
        (["url", "image_url", "text"], NONE, r"has 2 columns that may hold the url: 'url', 'image_url'; name one as"),
        (["url", "text", "text"], NamedColumns("url", "text"), r"has 2 columns that may hold the text: 'text', 'text'"),
        (["url", "text"], NamedColumns("URL", None), r"source\.url_column is 'URL', and x has no such column; it has"),
        ([f"c{n}" for n in range(50)], NONE, r"'c39', \.\.\. \(50 in all\)"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_told(names, given, message):
    with pytest.raises(DataError, match=message):
        columns_by_name(names, given, "x")


def test_columns_that_the_user_names(tmp_path):
    assert columns_by_name(["url", "image_url", "text"], NamedColumns("image_url", None), "x")[:2] == (1, 2)
    rows, _ = read(
        save(tmp_path, "a.csv", "x,picture,words\n1,https://h.org/a.jpg,some words\n"),
        NamedColumns("picture", "words"),
    )
    assert pairs(rows) == [("https://h.org/a.jpg", "some words")]


def test_lists_without_header(tmp_path):
    """Of two columns the address is the one that looks like it: CC3M has it second, CC12M first."""
    for order in (1, -1):
        content = "".join("\t".join(pair[::order]) + "\n" for pair in PAIRS)
        assert pairs(read(save(tmp_path, "a.tsv", content))[0]) == PAIRS
    three = "9\thttps://h.org/a.jpg\tsome words\n"
    rows, _ = read(save(tmp_path, "a.tsv", three), NamedColumns("1", "2"))
    assert pairs(rows) == [("https://h.org/a.jpg", "some words")]
    for named in (NONE, NamedColumns("1", None), NamedColumns("url", "text"), NamedColumns("1", "3")):
        with pytest.raises(
            DataError,
            match=r"a\.tsv has no header and 3 columns, .* give their numbers, from 0 to 2, as source\.url",
        ):
            read(save(tmp_path, "a.tsv", three), named)
    with pytest.raises(DataError, match="no header and 2 columns"):
        columns_of_rows(["https://h.org/a", "https://h.org/b"], NONE, "x")


FORMS = {
    "a.csv": "url,text\r\n" + "".join(f"{url},{text}\r\n" for url, text in PAIRS),
    "a.csv.gz": "\ufefftext,url\n" + "".join(f'"{text}",{url}\n' for url, text in PAIRS),
    "a.tsv": "TEXT\tURL\n" + "".join(f"{text}\t{url}\n" for url, text in PAIRS),
    "a.tsv.gz": "URL\tTEXT\n" + "\n".join(f"{url}\t{text}" for url, text in PAIRS),
    "a.jsonl": "".join(json.dumps({"url": url, "text": text, "x": [1]}) + "\n" for url, text in PAIRS),
    "a.ndjson.gz": "\n\n".join(json.dumps({"x": 1, "caption": text, "URL": url}) for url, text in PAIRS),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_candidates(tmp_path, name):
    rows, counts = read(save(tmp_path, name, FORMS[name]))
    assert pairs(rows) == PAIRS
    assert [row["offset"] for row in rows] == [0, 1, 2, 3, 4]
    assert (counts.dropped, counts.extra) == ({}, {})


def test_gzip_is_known_by_its_bytes_not_by_the_name(tmp_path):
    rows, _ = read(save(tmp_path, "a.csv", gzip.compress(FORMS["a.csv"].encode())))
    assert pairs(rows) == PAIRS
    (tmp_path / "b.csv.gz").write_text(FORMS["a.csv"])
    assert pairs(read(tmp_path / "b.csv.gz")[0]) == PAIRS
    content = FORMS["a.csv"].encode()
    members = gzip.compress(content[:33]) + gzip.compress(content[33:]) + b"\0" * 700
    assert pairs(read(save(tmp_path, "c.csv", members))[0]) == PAIRS


def test_the_form_is_in_the_name():
    assert list_form_of("https://h/part-0.snappy.PARQUET?download=true") is ListForm.parquet
    assert list_form_of("x.ndjson") is ListForm.jsonl
    assert ".jsonl.gz" in LIST_ENDINGS
    with pytest.raises(
        ConfigError, match=r"form of the list 'a\.txt' cannot be told .* end in \.parquet, \.csv, \.csv"
    ):
        list_form_of("a.txt")


# Bad rows


BAD_PAIRS = [
    (None, "a nice picture", "no_url"),
    ("", "a nice picture", "no_url"),
    ("https://h.org/a.jpg", None, "no_text"),
    ("https://h.org/a.jpg", "   ", "no_text"),
    ("https://h.org/a.jpg", "abc", "text_too_short"),
    ("a/b.jpg", "a nice picture", "invalid_url"),
    ("//h.org/b.jpg", "a nice picture", "invalid_url"),
    ("/b.jpg", "a nice picture", "invalid_url"),
    ("https://h h/", "a nice picture", "invalid_url"),
    ("ftp://h.org/b.jpg", "a nice picture", "unsupported_scheme"),
    ("javascript:alert()", "a nice picture", "unsupported_scheme"),
    ("data:image/png;base64,xx", "a nice picture", "data_url"),
    ("https://u:p@h.org/b.jpg", "a nice picture", "url_with_credentials"),
    ("https://h.org/" + "x" * 1_000_000, "a nice picture", "url_too_long"),
]


def test_pairs_are_judged_as_those_of_a_crawl(tmp_path):
    urls, texts, reasons = zip(*BAD_PAIRS, strict=True)
    rows, counts = read(save_parquet(tmp_path, {"url": [*urls, PAIRS[0][0]], "text": [*texts, PAIRS[0][1]]}))
    assert pairs(rows) == PAIRS[:1]
    assert rows[0]["offset"] == len(BAD_PAIRS)
    assert counts.dropped == {reason: reasons.count(reason) for reason in reasons}


def test_texts_and_addresses_are_cleaned(tmp_path):
    rows, counts = read(
        save_parquet(
            tmp_path,
            {
                "url": ["HTTPS://H.org/a b.jpg#x", "https://h.org/c.jpg"],
                "text": [" Tom &amp; Jerry\u200e\x00 \n", "x" * 3000],
            },
        )
    )
    assert pairs(rows) == [("https://h.org/a%20b.jpg", "Tom & Jerry"), ("https://h.org/c.jpg", "x" * 2000)]
    assert counts.extra == {"texts_cut": 1}


BROKEN_JSON = [
    ("{not json", "row_broken"),
    ("[1, 2]", "row_broken"),
    ('"text"', "row_broken"),
    ("[" * 100_000, "row_broken"),
    ('{"a":' + "[" * 70_000 + "]" * 70_000 + "}", "row_broken"),  # Python 3.13 follows some ten thousand
    ('{"url": "https://h.org/a.jpg", "text": "\\ud800 lone"}', "row_broken"),
    ('{"url": 7, "text": "a nice picture"}', "row_wrong_type"),
    ('{"url": "https://h.org/a.jpg", "text": ["a"]}', "row_wrong_type"),
    ('{"url": "https://h.org/a.jpg", "text": 1.5}', "row_wrong_type"),
    ('{"url": "https://h.org/a.jpg"}', "no_text"),
    ("{}", "no_text"),
    ('{"url": "https://h.org/a.jpg", "text": "' + "x" * 200_000 + '"}', "row_too_large"),
]


def test_bad_json_lines_cost_themselves(tmp_path):
    lines = [line.encode() for line, _ in BROKEN_JSON]
    lines += [b'{"url": "https://h.org/a.jpg", "text": "\xff\xfe"}', b"\x00\x00"]
    good = json.dumps({"url": PAIRS[0][0], "text": PAIRS[0][1]}).encode()
    content = b"\n".join(each for line in lines for each in (line, good))
    rows, counts = read(save(tmp_path, "a.jsonl", content), max_record_bytes=150_000)
    assert pairs(rows) == [PAIRS[0]] * len(lines)
    assert [row["offset"] for row in rows] == list(range(1, 2 * len(lines), 2))
    reasons = [reason for _, reason in BROKEN_JSON] + ["row_broken"] * 2
    assert counts.dropped == {reason: reasons.count(reason) for reason in reasons}


def test_bad_csv_rows_cost_themselves(tmp_path):
    good = ",".join(PAIRS[0])
    broken = ["one", "a,b,c", 'https://h.org/a.jpg,"open', '"a"b,c', "https://h.org/\0.jpg,a nul"]
    content = "\n".join(["url,text", *(line for each in broken for line in (each, good))]).encode()
    content += b"\n\xff\xfe,no utf\n" + good.encode()
    rows, counts = read(save(tmp_path, "a.csv", content))
    assert pairs(rows) == [PAIRS[0]] * 6
    assert counts.dropped == {"row_broken": 6}


def test_csv_rows_may_go_on_over_lines(tmp_path):
    content = (
        'url,text\nhttps://h.org/a.jpg,"two\nlines, with ""quotes"""\nhttps://h.org/b.jpg,another picture\n'
    )
    rows, _ = read(save(tmp_path, "a.csv", content))
    assert pairs(rows) == [
        ("https://h.org/a.jpg", 'two lines, with "quotes"'),
        ("https://h.org/b.jpg", "another picture"),
    ]


def test_a_row_over_lines_has_as_many_fields_as_the_others(tmp_path):
    """Two open quotes, far apart, could be taken for the ends of one field."""
    content = 'url,text\n"a,"b"\n' + ",".join(PAIRS[0]) + '\n",x,y"\n' + ",".join(PAIRS[1])
    rows, counts = read(save(tmp_path, "a.csv", content))
    assert (pairs(rows), counts.dropped) == (PAIRS[:2], {"row_broken": 2})


def test_a_quote_that_is_never_closed_costs_one_row(tmp_path, monkeypatch):
    good = "".join(f"{url},{text}\n" for url, text in PAIRS)
    bad = 'https://h.org/a.jpg,"open\n'
    for limit in (3, 100):
        monkeypatch.setattr(metadata_text, "_MOST_LINES", limit)
        rows, counts = read(save(tmp_path, "a.csv", "url,text\n" + good + bad + good + bad + good))
        assert pairs(rows) == PAIRS * 3
        assert counts.dropped == {"row_broken": 2}


def test_quotes_in_tsv_are_plain_unless_they_wrap_the_field(tmp_path):
    content = 'text\turl\n5" screen\thttps://h.org/a.jpg\n"say ""hi"" now"\thttps://h.org/b.jpg\n"a" and "b"\thttps://h.org/c.jpg'
    rows, _ = read(save(tmp_path, "a.tsv", content))
    assert [row["text"] for row in rows] == ['5" screen', 'say "hi" now', '"a" and "b"']


def test_a_line_without_end_costs_itself_and_no_memory(tmp_path):
    """50 MB of one line, from 50 kB of gzip, through blocks of 1 MB."""
    bomb = gzip.compress(b"url,text\n" + b"x" * 50_000_000 + b"\n" + ",".join(PAIRS[0]).encode())
    (tmp_path / "a.csv.gz").write_bytes(bomb)
    sizes = [
        len(line) if isinstance(line, bytes) else line
        for line in read_lines(tmp_path / "a.csv.gz", 1000, lambda fault: None)
    ]
    assert sizes == [8, RowFault.row_too_large, len(",".join(PAIRS[0]))]
    rows, counts = read(tmp_path / "a.csv.gz", max_record_bytes=1000)
    assert (pairs(rows), counts.dropped) == (PAIRS[:1], {"row_too_large": 1})


# Bad files


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.csv.gz", "a.parquet"])
@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"", "file_empty"), (b"<!DOCTYPE html><title>Sorry</title>", "file_not_list")],
)
def test_files_that_are_no_lists(tmp_path, name, content, fault):
    path = tmp_path / name
    path.write_bytes(content)
    rows, counts = read(path)
    assert (rows, counts.rows_in, counts.extra) == ([], 0, {fault: 1})
    check_list(path, name, NONE)  # a matter for the run, which counts it


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
def test_a_cut_gzip_gives_its_rows_up_to_the_cut(tmp_path, name):
    noise = random.Random(0)
    many = [(f"https://h.org/{n}.jpg", f"picture {noise.random()}") for n in range(3000)]
    if name == "a.csv.gz":
        content = "url,text\n" + "".join(f"{url},{text}\n" for url, text in many)
    else:
        content = "".join(json.dumps({"url": url, "text": text}) + "\n" for url, text in many)
    path = save(tmp_path, name, content)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    rows, counts = read(path)
    assert pairs(rows) == many[: len(rows)]
    assert 1000 < len(rows) < 2000
    assert counts.extra == {"file_truncated": 1}
    assert counts.dropped in ({"row_broken": 1}, {})
    for cut in (len(whole) - 1, len(whole) - 8, 30, 3):
        path.write_bytes(whole[:cut])
        assert read(path)[1].extra == {"file_truncated": 1}
    path.write_bytes(whole[:5000] + b"\xff\x00" * 50 + whole[5100:])
    rows, counts = read(path)
    assert counts.extra == {"file_damaged": 1}
    assert counts.rows_in < 3000
    path.write_bytes(whole + b"garbage")
    rows, counts = read(path)
    assert (pairs(rows), counts.extra) == (many, {"file_damaged": 1})


def test_a_cut_parquet_has_lost_its_footer(tmp_path):
    path = save_parquet(tmp_path, {"url": [url for url, _ in PAIRS], "text": [text for _, text in PAIRS]})
    whole = path.read_bytes()
    for content, fault in (
        (whole[: len(whole) // 2], "file_truncated"),
        (whole[:4], "file_damaged"),  # it begins and ends as one
        (whole[:40] + whole[-4:], "file_damaged"),
        (b"PK\3\4" + whole[4:60], "file_not_list"),
    ):
        path.write_bytes(content)
        rows, counts = read(path)
        assert (rows, counts.extra) == ([], {fault: 1})


def test_a_damaged_row_group_costs_its_rows(tmp_path):
    many = [(f"https://h.org/{n}.jpg", f"a nice picture {n}") for n in range(300)]
    urls, texts = zip(*many, strict=True)
    path = save_parquet(tmp_path, {"url": urls, "text": texts}, row_group_size=100, write_page_checksum=True)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    for position in range(chunk.dictionary_page_offset + 60, chunk.dictionary_page_offset + 90):
        data[position] ^= 0xFF
    path.write_bytes(data)
    rows, counts = read(path)
    assert pairs(rows) == many[:100] + many[200:]
    assert [row["offset"] for row in rows] == [*range(100), *range(200, 300)]
    assert counts.dropped == {"row_lost": 100}


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())],
)
def test_texts_of_every_parquet_type(tmp_path, kind):
    values = [text for _, text in PAIRS]
    texts = pa.array([value.encode() for value in values] if "binary" in str(kind) else values).cast(kind)
    rows, _ = read(save_parquet(tmp_path, {"url": [url for url, _ in PAIRS], "text": texts}))
    assert pairs(rows) == PAIRS


def test_texts_that_are_no_utf8_in_parquet(tmp_path):
    """Nothing checks the bytes of a string column when it is written or read."""
    raw = pa.array([b"a nice picture", b"\xff\xfe broken", None], pa.binary())
    texts = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    rows, counts = read(save_parquet(tmp_path, {"url": ["https://h.org/a.jpg"] * 3, "text": texts}))
    assert pairs(rows) == [("https://h.org/a.jpg", "a nice picture")]
    assert counts.dropped == {"row_wrong_type": 1, "no_text": 1}


def test_columns_that_hold_no_texts(tmp_path):
    path = save_parquet(tmp_path, {"url": [1, 2], "text": ["a nice picture"] * 2})
    with pytest.raises(
        DataError, match=r"a\.parquet: column 'url' holds int64, not texts; name another one as"
    ):
        read(path)
    rows, counts = read(save_parquet(tmp_path, {"url": pa.nulls(2), "text": ["a nice picture"] * 2}))
    assert (rows, counts.dropped) == ([], {"no_url": 2})


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(
        DataError, match=r"list .*none\.csv cannot be read: No such file or directory; check the path"
    ):
        read(tmp_path / "none.csv")


def test_columns_are_checked_before_work(tmp_path):
    path = save(tmp_path, "a.csv", "link,words\nhttps://h.org/a.jpg,some words\n")
    with pytest.raises(
        ConfigError, match=r"a\.csv has no column that is known to hold the url; it has 'link', 'words'"
    ):
        check_list(path, "a.csv", NONE)
    check_list(path, "a.csv", NamedColumns("link", "words"))


# Without NUL, which csv of Python 3.10 does not write.
FIELDS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)


@given(st.lists(st.lists(FIELDS, min_size=2, max_size=2), max_size=8), st.binary(max_size=60))
@settings(max_examples=80, deadline=None)
def test_well_formed_csv_is_read_as_csv_does(rows, junk):
    """What Python's csv module writes comes back, and no bytes raise."""
    import csv
    import io

    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    lines = [b"url,text", *stream.getvalue().encode().split(b"\n")]
    found = list(delimited_rows(iter(lines), ",", NONE, "x"))
    if not any("\r" in field for row in rows for field in row):
        assert [row[:2] for row in found if not isinstance(row, RowFault)] == [tuple(row) for row in rows]
    list(delimited_rows(iter([b"url,text", *junk.split(b"\n")]), ",", NONE, "x"))


# Columns that are kept


KEPT = NamedColumns(None, None, ("sha256", "face_bboxes"))


def test_columns_that_are_named_stay_with_their_pairs(tmp_path):
    boxes = [[[0.1, 0.2, 0.3, 0.4]], [], None, [[0.0, float("nan"), 1.0, 1.0]], [[0.5, 0.5, 0.6, 0.6]]]
    columns = {
        "url": [url for url, _ in PAIRS], "text": [text for _, text in PAIRS],
        "sha256": [f"{number:064x}" for number in range(5)], "face_bboxes": boxes, "width": [1] * 5,
    }  # fmt: skip
    rows, _ = read(save_parquet(tmp_path, columns), KEPT)
    assert pairs(rows) == PAIRS
    listed = [json.loads(row["listed"]) for row in rows]
    assert [row["sha256"] for row in listed] == columns["sha256"]
    assert [row["face_bboxes"] for row in listed] == [*boxes[:3], [[0.0, None, 1.0, 1.0]], boxes[4]]
    plain, _ = read(save_parquet(tmp_path, columns))
    assert [row["listed"] for row in plain] == [None] * 5

    lines = "".join(
        json.dumps({"url": url, "caption": text, "sha256": "ü" if number else None}) + "\n"
        for number, (url, text) in enumerate(PAIRS)
    )
    rows, _ = read(save(tmp_path, "a.jsonl.gz", lines), NamedColumns(None, None, ("sha256",)))
    assert [json.loads(row["listed"]) for row in rows] == [{"sha256": None}] + [{"sha256": "ü"}] * 4

    rows, _ = read(save(tmp_path, "a.tsv", "a caption\thttp://h.org/a.jpg\n"), NamedColumns("1", "0", ("0",)))
    assert [json.loads(row["listed"]) for row in rows] == [{"0": "a caption"}]


def test_columns_to_keep_that_are_not_there_are_named(tmp_path):
    with pytest.raises(
        DataError, match=r"source\.keep_columns is 'sha256', and .* has no such column; it has 'url'"
    ):
        read(save(tmp_path, "a.csv", "url,text\nhttp://h.org/a.jpg,a caption\n"), KEPT)
    with pytest.raises(
        DataError, match=r"has no header and 2 columns, and source\.keep_columns is \['7'\]; give"
    ):
        read(save(tmp_path, "a.tsv", "a caption\thttp://h.org/a.jpg\n"), NamedColumns("1", "0", ("7",)))

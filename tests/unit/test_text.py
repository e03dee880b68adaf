"""Cleaning captions: what is put right, what is kept, and that it is stable."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import text as text_module
from data_pipeline.text import clean_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", "a cat"),
        ("  a \t\n cat\u00a0 ", "a cat"),
        ("caf&eacute; &amp;amp; bar &lt;b&gt;", "café & bar <b>"),
        ("AT&T R&D", "AT&T R&D"),
        ("schÃ¶n", "schön"),
        ("naÃ¯ve cafÃ©", "naïve café"),
        ("a\x00b\x07c\x7f", "abc"),
        ("\u202eevil\u202c \u200fright\u200e", "evil right"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("\ud83d\ude00 joined, \ud800 lone", "😀 joined, lone"),
        ("👨\u200d👩\u200d👧 family", "👨\u200d👩\u200d👧 family"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("猫の写真", "猫の写真"),
        ("قطة على العشب", "قطة على العشب"),
        ("\x00\u200b \u202e", ""),
        ("", ""),
    ],
)
def test_what_cleaning_does(text, expected):
    assert clean_text(text) == expected


@given(st.text(max_size=30))
@settings(max_examples=50, deadline=None)
def test_the_result_is_storable_and_tidy(text):
    cleaned = clean_text(text)
    cleaned.encode("utf-8")
    assert cleaned == " ".join(cleaned.split())
    assert not any(ord(character) < 32 or character == "\x7f" for character in cleaned)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="&"), max_size=40))
@settings(max_examples=60, deadline=None)
def test_plain_text_changes_in_white_space_only(text):
    assert clean_text(text) == " ".join(text.split())


@pytest.mark.parametrize(
    "text", ["&" * 100_000, "&amp;" * 50_000, "é" * 100_000, " " * 300_000, "&#" * 50_000]
)
def test_long_hostile_texts(text):
    clean_text(text)


def _with_ftfy(text):
    """What `clean_text` gives when every text goes through ftfy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_SETTLED", re.compile(r"[ -~]*"))
        return clean_text(text)


_settled = st.sampled_from(
    [
        c
        for c in map(chr, range(0x20, 0xD800))
        if text_module._SETTLED.fullmatch(c) and (ord(c) < 0x700 or ord(c) % 97 == 0)
    ]
)
_near = st.one_of(
    _settled, _settled, st.characters(max_codepoint=0x17F), st.sampled_from("  \u2019\u201c\u2026\u20ac")
)
_nearer = st.one_of(_near, st.sampled_from("\u00a0\u00ad\u200b\u2122\u2014\n\u00d8&;"))


@given(st.lists(_nearer, max_size=14).map("".join), st.booleans())
@settings(max_examples=500, deadline=None)
def test_text_that_ftfy_would_leave_alone_is_known_without_it(text, capitals):
    text = text.title() if capitals else text
    assert clean_text(text) == _with_ftfy(text)


@pytest.mark.parametrize(
    "text",
    ["\u00ce\u0161", "\u00ce\u017e", "\u00d0\u0161", "\u00d0\u017e", "Ã\u00a9t\u00c3\u00a9", "a\u0301"],
)
def test_pairs_that_are_mojibake_go_to_ftfy(text):
    assert clean_text(text) == _with_ftfy(text) != text


@given(st.one_of(st.text(max_size=40), st.lists(_near, max_size=20).map("".join)))
@settings(max_examples=200, deadline=None)
def test_cleaning_again_changes_nothing(text):
    """But for entities, which may be escaped any number of times."""
    cleaned = clean_text(text)
    if "&" not in cleaned:
        assert clean_text(cleaned) == cleaned


@pytest.mark.parametrize(
    "text", ["\u00c9" * 100_000, ("\u00c9a " * 50_000) + "\u00c9\u00c9", "a\u00e9" * 100_000 + "\u2019"]
)
def test_long_texts_of_accents_take_time_by_their_length_only(text):
    assert clean_text(text)

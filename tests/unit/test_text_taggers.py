"""Text taggers: personal data with and without right check digits, unsafe words, MetaCLIP's and ImageNet's entries."""

import json
import random

import pytest
from tag_runs import config_of, tag, write_raw

from crawl2clip.errors import ConfigError, DataError
from data_pipeline.taggers.imagenet_text import ImagenetTextConfig, read_synsets
from data_pipeline.taggers.metaclip import MetaclipConfig, read_metadata, spaced
from data_pipeline.taggers.phrases import Phrases, require_ahocorasick
from data_pipeline.taggers.pii import PII_KINDS, pii_kinds
from data_pipeline.taggers.text import OUR_KEYWORDS, TextConfig, read_keywords, spaced_words

GOOD = {
    "email": ["write to jane.doe+shop@mail.example.co.uk!", "jane (at) example.org", "a@b.info"],
    "phone": [
        "+49 30 1234567",
        "call (415) 555-2671 now",
        "tel 415-555-2671",
        "1.415.555.2671",
        "+442079460958",
    ],
    "payment_card": [
        "4111 1111 1111 1111",
        "card 378282246310005.",
        "5555-5555-5555-4444",
        "6011000990139424",
    ],
    "iban": [
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432 please",
        "FR14 2004 1010 0505 0001 3M02 606",
    ],
    "ssn": ["SSN 123-45-6789"],
    "cpf": ["529.982.247-25"],
    "dni": ["DNI 12345678Z", "X1234567L"],
    "resident_id": ["11010519491231002X"],
    "aadhaar": ["2341 2341 2346"],
}
BAD = [
    "", "a red house", "user@host", "@mention of a photo", "photo 1920x1080 (2021)", "ISBN 978-3-16-148410-0",
    "4111 1111 1111 1112", "1234 5678 9012 3456", "0000 0000 0000 0000", "378282246310006",
    "DE89 3704 0044 0532 0130 01", "XX89 3704 0044 0532 0130 00", "12345678A", "X1234567M", "110105194912310021",
    "2341 2341 2347", "529.982.247-24", "111.111.111-11", "000-12-3456", "666-12-3456", "123-00-4567",
    "123-45-67890", "+1", "+99 99 99 99 99", "115-555-2671", "12-25-2020 party", "item 4155552671", "1,000,000,000,000",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in GOOD.items() for text in texts])
def test_personal_data_is_named_by_its_kind(kind, text):
    assert pii_kinds(text) == [kind]


@pytest.mark.parametrize("text", BAD)
def test_what_only_looks_like_it_is_left_alone(text):
    assert pii_kinds(text) == []


def test_every_kind_has_an_example_and_several_are_sorted():
    assert tuple(sorted(GOOD)) == PII_KINDS
    assert pii_kinds("ssn 123-45-6789 and a@b.info") == ["email", "ssn"]


def test_one_wrong_digit_is_noticed_anywhere():
    for kind, text in (("payment_card", "4111111111111111"), ("resident_id", "11010519491231002X"),
                       ("aadhaar", "2341 2341 2346"), ("cpf", "529.982.247-25")):  # fmt: skip
        for place in range(len(text)):
            if text[place].isdigit():
                other = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
                assert kind not in pii_kinds(other), other


def test_hostile_captions_take_no_time():
    for text in ("1 " * 50_000, "a." * 50_000 + "@", "+1" + "-" * 50_000, "AA00" * 20_000, "@" * 50_000):
        pii_kinds(text)  # a pattern that backtracks would not end


def test_the_text_tagger(tmp_path):
    (tmp_path / "words.txt").write_text("# ours\nVery Bad\nbad\n\nschlimm-es Wort\n", encoding="utf-8")
    texts = ("very bad, VERY   BAD!", "badly done", "Schlimm es: Wort a@b.info", "fine", "bad_bad")
    uids = write_raw(tmp_path, [None] * 5, texts=texts)
    config = config_of(taggers=["text"], text=TextConfig(unsafe_keywords=str(tmp_path / "words.txt")))
    tables, counts = tag(tmp_path, config)
    table = tables["text"]
    assert table["uid"].to_list() == uids
    assert table["unsafe_keywords"].to_list() == [4, 0, 1, 0, 2]
    assert table["pii"].to_list() == [False, False, True, False, False]
    assert table["pii_kinds"].to_list() == [[], [], ["email"], [], []]
    assert counts["extra"] == {"pii_email": 1, "unsafe_keywords": 3}


def test_our_own_list_is_clean_and_used_when_none_is_named(tmp_path):
    words = read_keywords(OUR_KEYWORDS)
    assert len(words) == len(set(words)) > 50
    write_raw(tmp_path, [None] * 2, texts=("nude portrait", "a vase"))
    assert tag(tmp_path, config_of(taggers=["text"]))[0]["text"]["unsafe_keywords"].to_list() == [1, 0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (None, "cannot be read as a list of words"),
        (b"\xff\xfe", "cannot be read as a list of words"),
        (b"# only\n\n", "has no word in it"),
        (b"good\n--\n", r"line 2 of .* is '--', without a letter or digit"),
    ],
)
def test_a_list_of_words_that_cannot_be_used(tmp_path, body, words):
    path = tmp_path / "words.txt"
    if body is not None:
        path.write_bytes(body)
    write_raw(tmp_path, [None] * 5)
    with pytest.raises(DataError, match=words):
        tag(tmp_path, config_of(taggers=["text"], text=TextConfig(unsafe_keywords=str(path))))


def test_phrases_are_whole_words_and_overlap():
    phrases = Phrases(["new york", "york city", "city", "new york city", "city"])
    assert sorted(phrases.find(spaced_words("New York, City"))) == [0, 1, 2, 3]
    assert phrases.find(spaced_words("renew york cityscape")) == []
    assert Phrases([]).find(" a ") == []


def metaclip_by_hand(text, entries):
    """Substring matching as the paper describes it."""
    return [number for number, entry in enumerate(entries) if f" {entry} " in spaced(text)]


def test_metaclip_entries_are_those_that_substring_matching_finds(tmp_path):
    rng = random.Random(0)
    words = ["cat", "dog", "new", "york", "New York", ".", "!", "the cat", "u.s.", "a"]
    entries = list(dict.fromkeys(" ".join(rng.choices(words, k=rng.randint(1, 3))) for _ in range(60)))
    (tmp_path / "metadata.json").write_text(json.dumps(entries))
    said = [*words, "cat,", "cat.", "\ttail\n", "xcat"]
    texts = tuple(f"{' '.join(rng.choices(said, k=rng.randint(0, 9)))} {number}" for number in range(40))
    write_raw(tmp_path, [None] * 40, texts=texts)
    config = config_of(
        taggers=["metaclip"], metaclip=MetaclipConfig(metadata=str(tmp_path / "metadata.json"))
    )
    tables, counts = tag(tmp_path, config)
    found = tables["metaclip"]["metaclip_entries"].to_list()
    assert found == [metaclip_by_hand(text, entries) for text in texts]
    assert counts["extra"] == {"metaclip_without_entry": sum(not each for each in found)}
    assert spaced("a,b`c\n") == " a , b ` c  "


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "holds dict, not a list"),
        ("[]", "holds list"),
        ("[1]", "not a list of texts"),
    ],
)
def test_metadata_that_are_no_list_of_texts(tmp_path, body, words):
    (tmp_path / "m.json").write_text(body)
    with pytest.raises(DataError, match=words):
        read_metadata(str(tmp_path / "m.json"))


def write_wordnet(folder):
    """A WordNet of a few words, in the format of its own files: dog and cat, to run, and red."""
    folder.mkdir()
    synsets = {
        "noun": [
            ("dog", "00000100", "05"), ("cat", "00000200", "05"),
            ("crane", "00000300", "05"), ("crane", "00000400", "06"),
        ],
        "verb": [("run", "00000100", "38")],
        "adj": [("red", "00000200", "00")],
        "adv": [],
    }  # fmt: skip
    for kind, entries in synsets.items():
        letter = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}[kind]
        data = "  1 This is WordNet 3.0 Copyright ...\n"
        for word, offset, lexname in entries:
            data = data.ljust(int(offset))
            data += f"{offset} {lexname} {letter} 01 {word} 0 000 | a gloss  \n"
        index = ""
        for word in sorted({word for word, _, _ in entries}):
            offsets = [offset for other, offset, _ in entries if other == word]
            index += f"{word} {letter} {len(offsets)} 0 {len(offsets)} 0 {' '.join(offsets)}  \n"
        (folder / f"data.{kind}").write_text(data)
        (folder / f"index.{kind}").write_text(index)
        (folder / f"{kind}.exc").write_text("")
    lexnames = "\n".join(f"{number:02d}\tx.y{number}\t1" for number in range(45))
    (folder / "lexnames").write_text(lexnames + "\n")
    (folder / "index.sense").write_text("")
    (folder / "cntlist.rev").write_text("")


def test_imagenet_classes_in_captions(tmp_path):
    pytest.importorskip("nltk", reason='pip install -e ".[wordnet]"')
    write_wordnet(tmp_path / "wordnet")
    (tmp_path / "ids.txt").write_text("n00000100\nn00000400\n\n")
    # A verb whose offset is a noun's of the list counts too, as in DataComp; the second sense of crane does not.
    texts = ("two Dogs play", "a cat", "a dog, sitting", "crane", "they run", "red", "nothing")
    uids = write_raw(tmp_path, [None] * 7, texts=texts)
    asked = ImagenetTextConfig(wordnet=str(tmp_path / "wordnet"), synsets=str(tmp_path / "ids.txt"))
    tables, counts = tag(tmp_path, config_of(taggers=["imagenet_text"], imagenet_text=asked))
    assert tables["imagenet_text"]["uid"].to_list() == uids
    matches = tables["imagenet_text"]["imagenet_text_match"].to_list()
    assert matches == [True, False, False, False, True, False, False]
    assert counts["extra"] == {"imagenet_text_match": 2}


def test_lists_of_synsets_and_wordnet_folders_that_cannot_be_used(tmp_path):
    for body, words in (("n123\n", r"line 1 of .* is 'n123', not a WordNet id"), ("\n", "has no WordNet id")):
        (tmp_path / "ids.txt").write_text(body)
        with pytest.raises(DataError, match=words):
            read_synsets(str(tmp_path / "ids.txt"))
    write_raw(tmp_path, [None] * 5)
    asked = ImagenetTextConfig(wordnet=str(tmp_path), synsets=str(tmp_path / "ids.txt"))
    with pytest.raises(
        DataError, match=r"has no index\.noun, data\.noun, lexnames; give the folder of WordNet"
    ):
        tag(tmp_path, config_of(taggers=["imagenet_text"], imagenet_text=asked))


def test_what_a_tagger_needs_is_asked_for_before_work(monkeypatch):
    for tagger, words in (
        ("metaclip", r"needs tagger\.metaclip\.metadata"),
        ("imagenet_text", r"needs tagger\.imagenet_text\.wordnet"),
    ):
        with pytest.raises(ConfigError, match=words):
            config_of(taggers=[tagger])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package pyahocorasick"):
        require_ahocorasick()

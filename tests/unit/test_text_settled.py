"""Texts that are cleaned without ftfy: a proof, over ftfy's own patterns, that it would change quotes only.

Of what ftfy does, its repair of mojibake looks at several characters at once: it begins where one regular expression
matches. Its alternatives are short sequences of sets of characters, so the characters fall into few classes that no
set tells apart, and all sequences that could match can be tried, one of each class. The rest it does character by
character.
"""

import itertools
import re
import sys
import unicodedata

import pytest
from ftfy.badness import BADNESS_RE

from data_pipeline import text as text_module
from data_pipeline.text import character_kinds

if sys.version_info >= (3, 11):
    from re import _constants as codes
    from re import _parser as parser
else:
    import sre_constants as codes
    import sre_parse as parser

_LAST = 0x20000
_KINDS = character_kinds()
_LOOSE = [chr(code) for code in text_module._LOOSE]
_ALPHABET = [chr(code) for code in range(_LAST) if _KINDS[code]]
_CATEGORIES = {codes.CATEGORY_SPACE: re.compile(r"\s"), codes.CATEGORY_WORD: re.compile(r"\w")}


def _members(items):
    """The characters of a set in a pattern, as code points."""
    found, negated = set(), False
    for kind, value in items:
        if kind is codes.NEGATE:
            negated = True
        elif kind is codes.LITERAL:
            found.add(value)
        elif kind is codes.RANGE:
            found.update(range(value[0], min(value[1] + 1, _LAST)))
        else:
            assert kind is codes.CATEGORY
            found.update(code for code in range(_LAST) if _CATEGORIES[value].match(chr(code)))
    return frozenset(set(range(_LAST)) - found if negated else found)


def _sequences(pattern):
    """Every sequence of sets that a pattern stands for."""
    found = [[]]
    for kind, value in pattern:
        if kind is codes.BRANCH:
            options = [each for branch in value[1] for each in _sequences(branch)]
        elif kind is codes.IN:
            options = [[_members(value)]]
        elif kind is codes.LITERAL:
            options = [[frozenset([value])]]
        elif kind is codes.ANY:
            options = [[frozenset(range(_LAST))]]
        elif kind is codes.MAX_REPEAT:
            least, most, inner = value
            options = [list(each) * times for each in _sequences(inner) for times in range(least, most + 1)]
        elif kind is codes.SUBPATTERN:
            options = _sequences(value[3])
        else:
            assert kind is codes.AT  # the beginning of a text: without it, it matches more
            options = [[]]
        found = [before + after for before in found for after in options]
    return found


def _is_known(text):
    """Whether a text is cleaned without ftfy."""
    return text_module._tidy(text) is not None or text_module._SETTLED.fullmatch(text) is not None


def test_no_settled_text_looks_like_mojibake_to_ftfy():
    sequences = _sequences(parser.parse(BADNESS_RE.pattern, BADNESS_RE.flags))
    sets = list({each for sequence in sequences for each in sequence})
    classes = {}
    for character in [*_ALPHABET, *_LOOSE]:
        code = ord(character)
        kind = _KINDS[code], code in text_module._LOOSE and text_module._LOOSE[code], character in " &"
        classes.setdefault((kind, tuple(code in each for each in sets)), character)
    tried = 0
    for sequence in sequences:
        choices = [[c for c in classes.values() if ord(c) in each] for each in sequence]
        for characters in itertools.product(*choices):
            tried += 1
            assert not _is_known("".join(characters)), ascii("".join(characters))
    assert len(sequences) > 30
    assert tried > 1000


def test_every_part_of_a_settled_text_is_settled():
    """Which the proof rests on: what matches is a part of the text."""
    few = "a \u00e9\u00c9\u0433\u2019\u00ab\u00a0\u200b"
    for characters in itertools.product(few, repeat=5):
        text = "".join(characters)
        if _is_known(text):
            assert _is_known(text[1:])
            assert _is_known(text[:-1])


def test_each_character_by_itself_is_kept_by_ftfy():
    fix = text_module._fixer()
    quotes = text_module._STRAIGHT_QUOTES
    for start in range(0, len(_ALPHABET), 5000):
        text = " ".join(_ALPHABET[start : start + 5000]).replace(";", "")
        assert fix(text) == text.translate(quotes)
    for character in _LOOSE:
        cleaned = " ".join(fix(f"a{character}b").translate(text_module._INVISIBLE).split())
        assert cleaned == text_module._tidy(f"a{character}b")


def test_no_two_characters_compose():
    seconds = {
        unicodedata.decomposition(chr(code)).split()[-1]
        for code in range(sys.maxunicode + 1)
        if unicodedata.decomposition(chr(code)) and "<" not in unicodedata.decomposition(chr(code))
    }
    marks = {chr(int(code, 16)) for code in seconds if len(code) <= 5}
    composing = {c for c in marks if unicodedata.combining(c) or unicodedata.category(c).startswith("M")}
    assert not composing & set(_ALPHABET)
    assert not any(unicodedata.combining(character) for character in _ALPHABET)
    assert all(unicodedata.is_normalized("NFC", character) for character in _ALPHABET)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It’s “good”", 'It\'s "good"'),
        ("„Привет“ – «мир»", '"Привет" – «мир»'),
        ("caf\u00e9\u00a0du  coin\n", "café du coin"),
        ("Ø—Ù—", None),
        ("é”a", None),
        ("В“Р", None),
        ("10 € • 5°", "10 € • 5°"),
        ("שלום 😀 γάτα", "שלום 😀 γάτα"),
    ],
)
def test_what_needs_no_ftfy(text, expected):
    assert text_module._tidy(text) == expected

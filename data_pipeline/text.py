"""Captions as people would read them: entities, mojibake, control characters and white space put right.

Both readers, WAT and WARC, clean every text here, so one page gives one caption whichever form it comes
from. The surprising part: entities are decoded until nothing changes, since texts that were escaped twice
("&amp;amp;") are common and a WARC page has already been decoded once by its HTML parser.

ftfy takes about 40 microseconds a text, more than all else that is done to a link, and leaves most texts as they are.
Texts of letters in which it never finds anything to mend are therefore not given to it.
"""

import html
import re
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache, partial

_MAX_DECODINGS = 3
_INVISIBLE = dict.fromkeys(
    [
        *(
            code
            for code in range(0xA0)
            if unicodedata.category(chr(code)) == "Cc" and chr(code) not in "\t\n\r\v\f"
        ),
        0x00AD,  # soft hyphen
        0x200B,  # zero-width space; the joiners after it stay, emoji and Persian need them
        *(0x200E, 0x200F, 0x061C),  # direction marks
        *range(0x202A, 0x202F),  # direction embeddings and overrides
        *(0x2060, 0xFEFF),  # word joiner, byte order mark
        *range(0x2066, 0x2070),  # direction isolates and deprecated format controls
        *range(0xFFF9, 0xFFFE),  # interlinear annotation, object replacement, replacement character
    ]
)


def clean_text(text: str) -> str:
    """The text without markup entities, mojibake, control characters and surplus white space.

    Text without entities, of printable ASCII and of letters and signs that are never mojibake where they stand, is
    returned as it is but for white space at its ends and curly quotes, which become straight; anything else goes
    through ftfy, as CLIP's own tokenizer will do to it.
    Joiners within emoji are kept, direction marks and other invisible characters are not. Lone surrogates
    are dropped.
    """
    text = text.strip(" ")
    if "&" in text:
        text = _decode_entities(text)
    elif "  " not in text:
        if text.isascii():
            if text.isprintable():
                return text
        elif _SETTLED.fullmatch(text) is not None:
            return _straighten_quotes(text)
    if not text.isascii():
        tidy = _tidy(text)
        if tidy is not None:
            return tidy
        text = _fix_text(text)
    return " ".join(text.translate(_INVISIBLE).split())


@lru_cache(maxsize=1)
def clean_caption(text: str) -> str:
    """`clean_text` of a figure's caption, once for all of its images: of them a page may have a million."""
    return clean_text(text)


def _decode_entities(text: str) -> str:
    for _ in range(_MAX_DECODINGS):
        decoded = html.unescape(text)
        if decoded == text:
            break
        text = decoded
    return text


def _tidy(text: str) -> str | None:
    """The text cleaned, if all that ftfy would do to it is to make quotes straight; None otherwise."""
    if ("&" in text and ";" in text) or _CAPITAL_THEN_LOOSE.search(text) is not None:
        return None  # ftfy knows a few more entities, all with a semicolon
    tidy = _SPACES.sub(" ", text.translate(_LOOSE)).strip(" ")
    return _straighten_quotes(tidy) if _SETTLED.fullmatch(tidy) is not None else None


def _straighten_quotes(text: str) -> str:
    return text.translate(_STRAIGHT_QUOTES) if _CURLY_QUOTE.search(text) is not None else text


def _fix_text(text: str) -> str:
    if _SURROGATE.search(text) is not None:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")  # pairs join, lone ones go
    return _fixer()(text)


@cache
def _fixer() -> Callable[[str], str]:
    import ftfy  # not at the top: it takes 0.1 s, and not every process cleans texts

    return partial(ftfy.fix_text, config=ftfy.TextFixerConfig(explain=False))


# What ftfy leaves alone, but for curly quotes, which it makes straight. It mends pairs of characters of which one is an
# accented letter, a sign or a punctuation mark outside ASCII (ftfy.badness), single characters (ligatures, width,
# controls), and what is not in NFC. Here are only letters that are in no such pair with one another, and no combining
# marks. Accented capitals are in such pairs unless they begin a word; \u00c2 \u00c3 \u00ce \u00d0 are even then. Common
# signs are harmless but after a capital; the others have ASCII on one side, and no accented letter on the other. A test
# proves it over all that ftfy's patterns could match.
_ASCII = " -~"
_LETTERS = (
    r"\u00df-\u00f6\u00f8-\u00ff\u0105\u0107\u0119\u011b\u011f\u0131\u0142\u0144\u0148"
    r"\u0159\u015b\u015f\u0161\u016f\u017a\u017c\u017e"
    r"\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03ce"  # Greek
)
_FAR_LETTERS = (
    r"\u0401\u0404\u0406\u0407\u0410-\u044f\u0451\u0454\u0456\u0457"  # Cyrillic
    r"\u05d0-\u05ea"  # Hebrew
    r"\u060c\u061f\u0621-\u063a\u0641-\u064a\u0660-\u0669\u067e\u0686\u06a9\u06af\u06cc\u06f0-\u06f9"  # Arabic
    r"\u3001-\u3003\u3005-\u3011\u3041-\u3096\u30a1-\u30fc\u4e00-\u9fff\uac00-\ud7a3"  # Chinese, Japanese, Korean
    r"\u200d\u2600-\u26ff\ufe0f\U0001f300-\U0001faff"  # emoji
)
_CAPITALS = (
    r"\u00c0\u00c1\u00c4-\u00cd\u00cf\u00d1-\u00d6\u00d8-\u00de"
    r"\u0106\u010c\u0130\u0141\u015a\u015e\u0160\u0179\u017b\u017d"
)
_COMMON_SIGNS = r"\u00b7\u2013\u2014\u2019\u2026"  # middle dot, dashes, apostrophe, ellipsis
_SIGNS = r"\u00a3\u00a5\u00a9\u00ab\u00ae\u00b0\u00bb\u00d7\u2018\u201a\u201c-\u201e\u2022\u20ac\u2122"
_PLAIN = _ASCII + _LETTERS + _FAR_LETTERS
_SETTLED = re.compile(
    rf"[{_PLAIN}]*(?:"
    rf"(?:(?<![^ ])[{_CAPITALS}]|(?<![{_CAPITALS}])[{_COMMON_SIGNS}]"
    rf"|(?<![^{_ASCII}])[{_SIGNS}](?![^{_ASCII}{_FAR_LETTERS}])"
    rf"|(?<![^{_ASCII}{_FAR_LETTERS}])[{_SIGNS}](?![^{_ASCII}]))"
    rf"[{_PLAIN}]*)*"
)
_CURLY_QUOTE = re.compile("[\u2018-\u201f]")
_STRAIGHT_QUOTES = {
    **dict.fromkeys(range(0x2018, 0x201C), "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
}
# White space and invisible characters that neither ftfy nor what follows it keeps; they are in none of its pairs, but
# for the two that count as common signs, which must not follow a capital.
_LOOSE: dict[int, str | None] = {
    **dict.fromkeys(map(ord, "\t\n\r\u00a0"), " "),
    **dict.fromkeys(map(ord, "\u00ad\u200b\u200e\u200f\ufeff")),
}
_CAPITAL_THEN_LOOSE = re.compile(rf"[{_CAPITALS}][\u00a0\u00ad]")
_SPACES = re.compile("  +")
_SURROGATE = re.compile("[\ud800-\udfff]")


@cache
def character_kinds() -> bytes:
    """The kinds of characters in `_SETTLED` for compiled code, a byte for each up to U+1FFFF; 0 for all others."""
    kinds = bytearray(0x20000)
    every = "".join(map(chr, range(0x20000)))
    for kind, characters in enumerate((_LETTERS, _CAPITALS, _FAR_LETTERS, _COMMON_SIGNS, _SIGNS, _ASCII), 1):
        for found in re.finditer(rf"[{characters}]", every):
            kinds[found.start()] = kind
    return bytes(kinds)

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
from functools import cache, partial

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

    Text without entities, of printable ASCII and of letters that are never mojibake, is returned as it is
    but for white space at its ends; anything else goes through ftfy, as CLIP's own tokenizer will do to it.
    Joiners within emoji are kept, direction marks and other invisible characters are not. Lone surrogates
    are dropped.
    """
    text = text.strip(" ")
    if "&" not in text and "  " not in text:
        if text.isascii():
            if text.isprintable():
                return text
        elif _SETTLED.fullmatch(text) is not None:
            return text
    return _clean_thoroughly(text)


def _clean_thoroughly(text: str) -> str:
    """What `clean_text` gives, at the cost of ftfy."""
    for _ in range(_MAX_DECODINGS):
        decoded = html.unescape(text) if "&" in text else text
        if decoded == text:
            break
        text = decoded
    if not text.isascii():
        text = _fix_text(text)
    return " ".join(text.translate(_INVISIBLE).split())


def _fix_text(text: str) -> str:
    if _SURROGATE.search(text) is not None:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")  # pairs join, lone ones go
    return _fixer()(text)


@cache
def _fixer() -> Callable[[str], str]:
    import ftfy  # not at the top: it takes 0.1 s, and not every process cleans texts

    return partial(ftfy.fix_text, config=ftfy.TextFixerConfig(explain=False))


# What ftfy leaves alone. It mends pairs of characters of which one is an accented letter, a sign or a punctuation mark
# outside ASCII (ftfy.badness), single characters (quotes, ligatures, width, controls), and what is not in NFC. Here are
# only letters that are in no such pair with one another, and no combining marks. Accented capitals are in such pairs
# unless they begin a word; \u00c2 \u00c3 \u00ce \u00d0 are even then. A test holds that both ways agree.
_LETTERS = (
    r" -~"  # printable ASCII
    r"\u00df-\u00f6\u00f8-\u00ff\u0105\u0107\u0119\u011b\u011f\u0131\u0142\u0144\u0148"
    r"\u0159\u015b\u015f\u0161\u016f\u017a\u017c\u017e"
    r"\u0401\u0404\u0406\u0407\u0410-\u044f\u0451\u0454\u0456\u0457"  # Cyrillic
    r"\u0621-\u063a\u0641-\u064a\u067e\u0686\u06a9\u06af\u06cc"  # Arabic
    r"\u3041-\u3096\u30a1-\u30fa\u30fc\u4e00-\u9fff\uac00-\ud7a3"  # kana, Chinese characters, Hangul
)
_CAPITALS = (
    r"\u00c0\u00c1\u00c4-\u00cd\u00cf\u00d1-\u00d6\u00d8-\u00de"
    r"\u0106\u010c\u0130\u0141\u015a\u015e\u0160\u0179\u017b\u017d"
)
_SETTLED = re.compile(rf"[{_LETTERS}]*(?:(?<![^ ])[{_CAPITALS}][{_LETTERS}]*)*")
_SURROGATE = re.compile("[\ud800-\udfff]")

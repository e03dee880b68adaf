"""Path patterns of robots.txt (RFC 9309, section 2.2.2), which TDMRep and AIPREF use as well.

A pattern matches the paths that begin with it; `*` stands for anything and `$` at its end for the end of the
path. Strangers write them, so they are matched by search from star to star, never by a regular expression,
which a hostile one could make run for hours.
"""

import re
from urllib.parse import quote, urlsplit

_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def path_of(url: str) -> str:
    """The path and query of a URL, in the spelling that patterns are compared in."""
    parts = urlsplit(url)
    return normal_path((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))


def normal_path(path: str) -> str:
    """Percent-encoding made uniform: what needs none has none, what is not ASCII has it, hex digits are capitals."""

    def respell(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if character in _UNRESERVED else match[0].upper()

    return _ESCAPED.sub(respell, quote(path, safe="/%?#[]@!$&'()*+,;=:~|"))


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches a path; both as `normal_path` gives them."""
    ends = pattern.endswith("$")
    first, *rest = (pattern[:-1] if ends else pattern).split("*")
    if not path.startswith(first):
        return False
    position = len(first)
    if not rest:
        return not ends or position == len(path)
    for piece in rest[:-1]:
        found = path.find(piece, position)
        if found < 0:
            return False
        position = found + len(piece)
    last = rest[-1]
    if ends:
        return len(path) - len(last) >= position and path.endswith(last)
    return path.find(last, position) >= 0

"""The tags of an HTML page, in order, in time and memory that grow with its length and nothing else.

This is the tokenizer half of HTML: comments, raw text elements, quoting, character references and repeated
attributes as in the standard, and no tree. A tree builder would be the obvious choice, and hostile pages
rule it out: the standard's tree rules are quadratic or worse in how elements nest, and the fastest builders
took 57 s for about 100 kB of crossed `<b>` and `<div>`, 170 s for one tag with 80,000 attributes, and had not
finished 200,000 nested `<div>` after two minutes (selectolax 1.0.2). Image links need none of that; WAT files
are made from a token stream too.
"""

import html
import re
from collections.abc import Container, Iterator
from html.entities import html5
from typing import NamedTuple

_TOKEN = re.compile(r"<(?:(/?)([a-zA-Z][^\s/>]*)|(!--)|[!?/])")
_ATTRIBUTE = re.compile(
    r"""[\s/]*([^\s/>][^\s/>=]*)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|(?![\s"'])([^\s>]*)))?"""
)
_OPEN_QUOTE = re.compile(r"""\s*=\s*["']""")
RAW_TEXT = ("script", "style", "title", "textarea", "iframe", "noembed", "noframes", "xmp")
"""Elements whose content is text, up to their end tag."""

_END_OF = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in RAW_TEXT}
_MARKUP = re.compile(r"<[a-zA-Z/!?][^<>]*>")
_REFERENCE = re.compile(r"&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[a-zA-Z][a-zA-Z0-9]*(?:;|(?![=a-zA-Z0-9;])))")


class Tag(NamedTuple):
    """A start or end tag.

    Attributes:
        name: in lower case.
        is_end: it is an end tag.
        attributes: by name in lower case, character references decoded; "" where there is no value. Empty
            for end tags.
        start: where it begins in the page.
        end: where what follows it begins.
    """

    name: str
    is_end: bool
    attributes: dict[str, str]
    start: int
    end: int


def read_tags(page: str, wanted: Container[str], *, others: bool = False) -> Iterator[Tag]:
    """Yields the tags with the wanted names, in the page's order.

    What looks like a tag inside a comment, a script, another raw text element, or a quoted attribute is none.

    Args:
        page: its markup.
        wanted: names in lower case.
        others: yield all other tags too, their attributes left out; and, as end tags without a name, what is
            neither a tag nor text, such as comments and the doctype, and what the page ends within, if only
            nothing. So what stands between two of them is text, or that of a script or its like.
    """
    position, find_token, find = 0, _TOKEN.search, page.find
    rest = len(page)  # where that begins which the page ends within
    while (token := find_token(page, position)) is not None:
        start = token.start()
        slash, name, comment = token.groups()
        if slash or comment or not name:
            position = find("-->", token.end() - 2) + 3 if comment else find(">", token.end()) + 1
            if position < 3:  # neither was found; "<!-->" is a comment, and an empty one
                rest = start
                break
            name = name.lower() if name else ""
            if others or name in wanted:
                yield Tag(name, True, {}, start, position)
            continue
        name = name.lower()
        if name in wanted:
            attributes, end = read_attributes(page, token.end())
        else:
            attributes, end = {}, _tag_end(page, token.end())
        if end is None:
            rest = start
            break
        if others or name in wanted:
            yield Tag(name, False, attributes, start, end)
        position = end
        if name in _END_OF:
            closing = _END_OF[name].search(page, end)
            if closing is None:
                break
            position = closing.start()
        elif name == "plaintext":
            break
    if others:
        yield Tag("", True, {}, rest, len(page))


def _tag_end(page: str, position: int) -> int | None:
    """Where a start tag's successor begins; None when the page ends within it."""
    end = page.find(">", position)
    if end < 0:
        return None
    if page.count('"', position, end) % 2 == 0 and page.count("'", position, end) % 2 == 0:
        return end + 1
    return read_attributes(page, position)[1]  # that ">" may stand in a quoted value


def read_attributes(page: str, position: int) -> tuple[dict[str, str], int | None]:
    """A start tag's attributes, the first of each name, and where the tag's successor begins.

    Args:
        page: its markup.
        position: where the tag's name ends.

    Returns:
        (attributes by name in lower case, the end; None when the page ends within the tag).
    """
    attributes: dict[str, str] = {}
    while (found := _ATTRIBUTE.match(page, position)) is not None:
        position = found.end()
        name, double, single, bare = found.groups()
        value = double if double is not None else single if single is not None else bare
        if value is None and _OPEN_QUOTE.match(page, position):
            return attributes, None  # a quote that never closes
        attributes.setdefault(name.lower(), decode_attribute(value or ""))
    end = page.find(">", position)
    return attributes, end + 1 if end >= 0 else None


def decode_attribute(value: str) -> str:
    """An attribute's value with its character references decoded.

    As in the standard, and unlike `html.unescape`, a name without a semicolon is left alone before a letter,
    a digit or "=": "?a=1&copy=2" is an address, not a copyright sign.
    """
    return _REFERENCE.sub(_decode_reference, value) if "&" in value else value


def _decode_reference(found: re.Match[str]) -> str:
    reference = found.group()
    if reference[1] == "#":
        return html.unescape(reference)
    return html5.get(reference[1:], reference)


def text_of(markup: str) -> str:
    """The text in a piece of markup, its tags replaced by spaces and its character references decoded."""
    return html.unescape(_MARKUP.sub(" ", markup))

"""A page rewritten as markup that no tree builder is slow for: well nested, not deep, few attributes.

Boilerplate removal needs a tree, and hostile pages make tree builders quadratic or worse (see `markup`): the one
in Resiliparse 2.0.1 takes 0.5 s for 5,000 nested `<div>` and had not finished 20,000 after 25 s. So the library
never sees a page as it was written, but this rewriting of its tags: every element closed where it ends, at most
128 of them inside each other and 50,000 in all, tables and controls as plain blocks, inline formatting left
out, and of the attributes only those that tell boilerplate from content.

The surprising part: images become single characters of a private plane, which travel through the library like
any other text. What it removes takes its images with it, and what it keeps has them in their places.
"""

import html
import re
from collections.abc import Iterable
from typing import NamedTuple

from data_pipeline.markup import RAW_TEXT, Tag, read_attributes

_MAX_TAGS = 200_000  # of a page; a long article has some thousands
_MAX_ELEMENTS = 50_000  # that are written, images among them: fewer than there are marks
_MAX_DEPTH = 128
_MAX_ATTRIBUTE = 500  # characters
_FIRST_MARK = 0x100000
_MARKS = re.compile("[\U00100000-\U0010fffd]")
_ATTRIBUTES = (
    "class", "id", "role", "style", "rel", "itemprop", "hidden", "aria-hidden", "aria-expanded",
    "data-ad", "data-advertisement", "data-text-ad",
)  # fmt: skip
# Attributes that need no rewriting: few, and written so that no two tokenizers could disagree on where they end.
_PLAIN_ATTRIBUTES = re.compile(
    r"""(?:\s+[a-zA-Z][a-zA-Z0-9:_-]*(?:=(?:"[^"<>]*"|'[^'<>]*'|[a-zA-Z0-9_#%.;:,-]+))?)*\s*"""
)
_OF_USE = re.compile("|".join(_ATTRIBUTES))

_TABLE = frozenset({"table", "caption", "thead", "tbody", "tfoot", "tr", "td", "th"})
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "dd", "details", "div", "dl", "dt", "figcaption", "figure"}
    | {"footer", "header", "hgroup", "li", "main", "nav", "ol", "p", "pre", "section", "summary", "ul"}
    | _HEADINGS
)
_AS_SECTION = _TABLE | {"center", "dialog", "dir", "fieldset", "form", "menu"}
# Fallbacks, controls and inert content: what people do not read as the page's text.
_HIDDEN = frozenset(
    {"audio", "button", "canvas", "datalist", "label", "math", "object", "optgroup", "option", "select"}
    | {"template", "video"}
)
_VOID = frozenset(
    {"area", "base", "basefont", "bgsound", "br", "col", "embed", "frame", "hr", "img", "input", "link"}
    | {"meta", "param", "source", "track", "wbr"}
)
_OUTER = frozenset({"html", "head", "body", "frameset"})
_SILENT = frozenset({"noscript", "svg"})  # no text in them is the page's; images in a noscript are
# End tags do not reach past these.
_BARRIERS = frozenset({"caption", "table", "td", "th", "object", "template"})

# A start tag ends what is open of the first, unless it is further out than one of the second.
_ENDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "li": (frozenset({"li"}), frozenset({"ol", "ul", "menu", "dir"}) | _BARRIERS),
    "dt": (frozenset({"dt", "dd"}), frozenset({"dl"}) | _BARRIERS),
    "dd": (frozenset({"dt", "dd"}), frozenset({"dl"}) | _BARRIERS),
    "td": (frozenset({"td", "th"}), frozenset({"table", "tr"})),
    "th": (frozenset({"td", "th"}), frozenset({"table", "tr"})),
    "tr": (frozenset({"tr"}), frozenset({"table"})),
    **dict.fromkeys(("thead", "tbody", "tfoot"), (frozenset({"thead", "tbody", "tfoot"}), frozenset({"table"}))),
    "option": (frozenset({"option"}), frozenset({"select", "datalist"})),
    "button": (frozenset({"button"}), _BARRIERS),
    **dict.fromkeys(_HEADINGS, (_HEADINGS, _BARRIERS | {"div", "section", "article"})),
}  # fmt: skip
_WRITTEN = {
    **dict.fromkeys(_VOID | _OUTER | set(RAW_TEXT) | {""}, ""),
    # Not a div: without a class, and with little but links in it, the library takes that for a menu.
    **dict.fromkeys(_AS_SECTION, "section"),
    **dict.fromkeys(_HIDDEN, "span"),
    **{name: name for name in (*_BLOCKS, "a", "time")},
}
"""Name in the page -> name that is written, "" for nothing. Others are inline, and at most a span."""

_BLOCKS_WRITTEN = _BLOCKS | {"section"}
_TABLE_BARRIERS = frozenset({"table"})
_ENDS_P: tuple[frozenset[str], frozenset[str]] = (frozenset({"p"}), frozenset())


class _Open(NamedTuple):
    """An open element: its name in the page, the tag written for it ("" for none), and that tag's name."""

    name: str
    start: str
    written: str

    def as_span(self) -> "_Open":
        """The same as a span."""
        return _Open("span", "<span" + self.start[1 + len(self.written) :], "span")


class PlainMarkup:
    """Rewrites one page, tag by tag.

    Attributes:
        too_large: it has more tags than a page for people has; what was written so far is of no use.
    """

    def __init__(self, page: str) -> None:
        """Starts with a page that has no marks in it, see `without_marks`."""
        self.too_large = False
        self._page = page
        self._position = 0  # where the last tag ended
        self._parts: list[str] = []
        self._open: list[_Open] = []
        self._num_open: dict[str, int] = {}  # of the elements in `_open`, by name
        self._too_deep: dict[str, int] = {}  # elements that are open and were not written, by name
        self._num_tags = self._num_elements = 0
        self._num_images = 0
        self._in_raw_text = False
        self._silent = ""  # the element whose text is left out

    def add(self, tag: Tag) -> None:
        """Adds the text before a start or end tag, and the tag."""
        if tag.start > self._position and not self._in_raw_text and not self._silent:
            self._parts.append(_plain_text(self._page[self._position : tag.start]))
        self._position = tag.end
        self._num_tags += 1
        if self._num_tags > _MAX_TAGS:
            self.too_large = True
        name = tag.name
        self._in_raw_text = not tag.is_end and name in RAW_TEXT
        written = _WRITTEN.get(name)
        if written == "":  # void, raw text, outermost
            if name == "img" and not tag.is_end:
                self._image(tag)
            elif name in ("br", "hr"):
                self._write(f"<{name}>")
        elif name in _SILENT:
            self._silent = "" if tag.is_end else name
        elif tag.is_end:
            if not self._silent and (self._num_open.get(name) or self._too_deep):
                if self._open[-1:] and self._open[-1].name == name and not self._too_deep:
                    self._close(len(self._open) - 1)  # nearly always
                else:
                    self._end(name)
        else:
            if written is not None and self._silent == "svg":
                self._silent = ""  # as in the standard, a block ends a drawing that nobody closed
            if not self._silent:
                self._start(tag, written)

    def _image(self, tag: Tag) -> None:
        """Writes an image's mark, outside the link that it may stand in.

        The library takes what is mostly the text of links for a menu, and a mark is no text.
        """
        mark = chr(_FIRST_MARK + self._num_images)
        self._num_images += 1
        attributes = _kept_attributes(tag.attributes)
        markup = f"<span{attributes}>{mark}</span>" if attributes else mark
        if not self._num_open.get("a"):
            self._write(markup)
            return
        link = next(index for index, element in enumerate(self._open) if element.name == "a")
        within = self._open[link:]
        self._close(link)
        self._reopen([within[0].as_span(), *within[1:]])
        self._write(markup)
        self._close(link)
        self._reopen(within)

    def finish(self) -> str:
        """The page, once all its tags have been added."""
        self._close(0)
        return f"<!doctype html><html><head></head><body>{''.join(self._parts)}</body></html>"

    def _write(self, markup: str) -> None:
        self._num_elements += 1
        if self._num_elements > _MAX_ELEMENTS:
            self.too_large = True
        self._parts.append(markup)

    def _start(self, tag: Tag, written: str | None) -> None:
        name = tag.name
        if written in _BLOCKS_WRITTEN and self._num_open.get("p"):
            self._end_open(*_ENDS_P)
        if name == "a" and self._num_open.get("a"):  # no link within a link, not even across a table's cell
            self._end_inline(next(n for n, element in enumerate(self._open) if element.name == "a"))
        elif name in _ENDS:
            for each in _ENDS[name][0]:
                if self._num_open.get(each):
                    self._end_open(*_ENDS[name])
                    break
        if len(self._open) >= _MAX_DEPTH:
            self._too_deep[name] = self._too_deep.get(name, 0) + 1
            return
        if name in _HIDDEN:
            start = "<span hidden>"
        else:
            attributes = self._attributes(tag)
            if written is None:  # formatting, and what HTML does not know
                written = "span" if attributes and _OF_USE.search(attributes) else ""
            start = f"<{written}{attributes}>" if written else ""
        self._open.append(_Open(name, start, written or ""))
        self._num_open[name] = self._num_open.get(name, 0) + 1
        if start:
            self._write(start)

    def _attributes(self, tag: Tag) -> str:
        """A start tag's attributes as they are written."""
        begin, end = tag.start + 1 + len(tag.name), tag.end - 1
        if begin == end:
            return ""
        if end - begin <= _MAX_ATTRIBUTE and (plain := _PLAIN_ATTRIBUTES.fullmatch(self._page, begin, end)):
            return plain.group()
        return _kept_attributes(tag.attributes or read_attributes(self._page, begin)[0])

    def _end_open(self, names: frozenset[str], barriers: frozenset[str]) -> None:
        for index in range(len(self._open) - 1, -1, -1):
            name = self._open[index].name
            if name in names:
                self._close(index)
                return
            if name in barriers:
                return

    def _end(self, name: str) -> None:
        if self._too_deep.get(name):
            self._too_deep[name] -= 1
            return
        barriers = _TABLE_BARRIERS if name in _TABLE else _BARRIERS
        for index in range(len(self._open) - 1, -1, -1):
            found = self._open[index].name
            if found == name:
                if (name in _WRITTEN and name != "a") or index == len(self._open) - 1:
                    self._close(index)
                else:
                    self._end_inline(index)
                return
            if found in barriers:
                return

    def _end_inline(self, index: int) -> None:
        """Ends an inline element, and opens what was open in it again, since its end tag ends nothing else."""
        within = self._open[index + 1 :]
        if not self._open[index].written:
            self._num_open[self._open[index].name] -= 1
            del self._open[index]
            return
        self._close(index)
        self._reopen(within)

    def _reopen(self, elements: Iterable[_Open]) -> None:
        for element in elements:
            self._open.append(element)
            self._num_open[element.name] = self._num_open.get(element.name, 0) + 1
            if element.start:
                self._write(element.start)

    def _close(self, index: int) -> None:
        """Ends the open elements from this one inwards."""
        while len(self._open) > index:
            element = self._open.pop()
            self._num_open[element.name] -= 1
            if element.written:
                self._parts.append(f"</{element.written}>")


def without_marks(page: str) -> str:
    """A page without the characters that stand for images."""
    return page if page.isascii() else _MARKS.sub("", page)


def _plain_text(text: str) -> str:
    """What stands between two tags, so written that there is no tag and no mark in it."""
    if "&#" in text:  # a number might be that of a mark
        text = html.escape(_MARKS.sub("", html.unescape(text)), quote=False)
    return text.replace("<", "&lt;") if "<" in text else text


def _kept_attributes(attributes: dict[str, str]) -> str:
    if not attributes:
        return ""
    return "".join(
        f' {name}="{html.escape(attributes[name][:_MAX_ATTRIBUTE])}"'
        for name in _ATTRIBUTES
        if name in attributes
    )


def split_at_images(text: str) -> list[str | int]:
    """Text as the library gives it back, cut at its images: pieces of text, and numbers of images, in order."""
    pieces: list[str | int] = []
    position = 0
    for mark in _MARKS.finditer(text):
        pieces += [text[position : mark.start()], ord(mark.group()) - _FIRST_MARK]
        position = mark.end()
    return [*pieces, text[position:]]

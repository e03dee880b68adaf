"""Which columns of a list hold the image's address and its text, by the names that published lists use.

LAION-400M and 5B: URL, TEXT. DataComp and COYO: url, text. Re-LAION: url, caption. CC3M and CC12M: two columns
without names, in either order. Where two columns could be meant, nothing is guessed: of `url` and `image_url`
one may well be the page's address.
"""

from collections.abc import Sequence
from typing import NamedTuple

from crawl2clip.errors import DataError

URL_NAMES = ("url", "image_url", "img_url")
TEXT_NAMES = ("text", "caption", "alt", "alt_text")
PAGE_NAMES = ("page_url",)
LICENSE_NAMES = ("license",)

_MOST_LISTED = 40


class NamedColumns(NamedTuple):
    """Columns that the user names: by name, or by number from 0 in a list without header; None: recognise it.

    Those in `kept` go into the candidates' column `listed`, under the names given.
    """

    url: str | None
    text: str | None
    kept: tuple[str, ...] = ()


class ListColumns(NamedTuple):
    """Positions, from 0, of the columns of a list; None where there is none."""

    url: int
    text: int
    page_url: int | None
    license: int | None
    kept: tuple[int, ...] = ()


def columns_by_name(found: Sequence[str], given: NamedColumns, origin: str) -> ListColumns:
    """The columns of a list that names them.

    Args:
        found: its columns.
        given: those that the user names.
        origin: what an error calls the list.

    Raises:
        DataError: one cannot be found, or several could be meant.
    """
    lowered = [name.strip().lower() for name in found]
    return ListColumns(
        _position(found, lowered, given.url, URL_NAMES, "url", origin),
        _position(found, lowered, given.text, TEXT_NAMES, "text", origin),
        *(
            next((index for index, name in enumerate(lowered) if name in names), None)
            for names in (PAGE_NAMES, LICENSE_NAMES)
        ),
        kept=tuple(_position(found, lowered, name, (), "keep", origin) for name in given.kept),
    )


def columns_of_rows(first_row: Sequence[str], given: NamedColumns, origin: str) -> ListColumns:
    """The columns of a list that does not name them, by its first row: the address is the one that looks like it.

    Raises:
        DataError: there are not two columns, or neither or both hold an address, and the user names none.
    """
    given_positions = [int(name) if name is not None and name.isdecimal() else None for name in given[:2]]
    kept = tuple(int(name) for name in given.kept if name.isdecimal() and int(name) < len(first_row))
    if len(kept) < len(given.kept):
        raise DataError(
            f"{origin} has no header and {len(first_row)} columns, and source.keep_columns is {list(given.kept)}; "
            f"give numbers from 0 to {len(first_row) - 1}, or leave it out"
        )
    if None not in given_positions:
        url, text = (position for position in given_positions if position is not None)
        if max(url, text) < len(first_row):
            return ListColumns(url, text, None, None, kept)
    addresses = [index for index, value in enumerate(first_row) if is_address(value)]
    if given[:2] == (None, None) and len(first_row) == 2 and len(addresses) == 1:
        return ListColumns(addresses[0], 1 - addresses[0], None, None, kept)
    raise DataError(
        f"{origin} has no header and {len(first_row)} columns, and the address and the text can be told apart only "
        f"where there are two; give their numbers, from 0 to {len(first_row) - 1}, as source.url_column and "
        "source.text_column"
    )


def is_address(value: str) -> bool:
    """Whether a field of a first row is an address, so that the row is no header."""
    return value.strip().lower().startswith(("http://", "https://"))


def _position(
    found: Sequence[str],
    lowered: Sequence[str],
    given: str | None,
    known: Sequence[str],
    what: str,
    origin: str,
) -> int:
    setting = "source.keep_columns" if what == "keep" else f"source.{what}_column"
    matches = [index for index, name in enumerate(found) if name == given]
    if given is None:
        matches = [index for index, name in enumerate(lowered) if name in known]
    if len(matches) == 1:
        return matches[0]
    listed = ", ".join(map(repr, found[:_MOST_LISTED])) or "none"
    more = f", ... ({len(found)} in all)" if len(found) > _MOST_LISTED else ""
    if matches:
        several = ", ".join(repr(found[index]) for index in matches)
        raise DataError(
            f"{origin} has {len(matches)} columns that may hold the {what}: {several}; name one as {setting}"
        )
    if given is not None:
        raise DataError(f"{setting} is {given!r}, and {origin} has no such column; it has {listed}{more}")
    raise DataError(
        f"{origin} has no column that is known to hold the {what}; it has {listed}{more}. Recognised, in any case, "
        f"are {', '.join(known)}; name another one as {setting}"
    )

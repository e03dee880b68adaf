"""`srcset`: the addresses of one image in several sizes, parsed as in the HTML standard.

The surprising part: a comma belongs to an address unless it ends it, so splitting at commas breaks the
addresses of image servers ("/w_200,h_100/a.jpg").
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_SEPARATORS = re.compile(r"[\s,]*")
_ADDRESS = re.compile(r"\S+")
_DESCRIPTORS = re.compile(r"[^,(]*(?:\([^)]*\)?[^,(]*)*")  # up to the next comma that is not in parentheses
_SIZE = re.compile(r"(\d{1,9}|\d{0,9}\.\d{1,9})([wx])")
_HEIGHT = re.compile(r"(\d{1,9})h")


class SrcsetCandidate(NamedTuple):
    """One of the addresses in a `srcset`.

    Attributes:
        rank: the larger it is, the more pixels: a width in pixels outranks a density, none means 1x.
        url: the address as it stands there.
        width: pixels, of its "w" descriptor; None without one.
        height: pixels, of its "h" descriptor; None without one.
    """

    rank: tuple[bool, float]
    url: str
    width: int | None
    height: int | None


def largest_candidate(srcset: str) -> SrcsetCandidate | None:
    """The address in a `srcset` with the most pixels, the first of equals; None when it holds none."""
    return max(
        (_described(address, descriptors.split()) for address, descriptors in _candidates(srcset)),
        key=lambda candidate: candidate.rank,
        default=None,
    )


def _described(address: str, descriptors: list[str]) -> SrcsetCandidate:
    sizes = [size.groups() for word in descriptors if (size := _SIZE.fullmatch(word))]
    rank = max(((unit == "w", float(number)) for number, unit in sizes), default=(False, 1.0))
    width = next((int(number) for number, unit in sizes if unit == "w" and number.isdecimal()), None)
    heights = (_HEIGHT.fullmatch(word) for word in descriptors)
    return SrcsetCandidate(rank, address, width, next((int(found[1]) for found in heights if found), None))


def _candidates(srcset: str) -> Iterator[tuple[str, str]]:
    """The addresses in a `srcset`, each with its descriptors, as the HTML standard parses them."""
    position = 0
    while True:
        separators = _SEPARATORS.match(srcset, position)
        address = _ADDRESS.match(srcset, separators.end() if separators else position)
        if address is None:
            return
        position = address.end()
        if address.group().endswith(","):
            yield address.group().rstrip(","), ""
        else:
            descriptors = _DESCRIPTORS.match(srcset, position)
            yield address.group(), descriptors.group() if descriptors else ""
            position = descriptors.end() if descriptors else position

"""Downloads against what a published list says of them: the same file, the same picture, or another one.

A list that has hashes lets a re-download tell an image that was replaced from one that is still there: whoever buys
an expired domain of a list can serve what they like (arXiv 2302.10149). But servers also encode images anew, so a
file that differs is not yet another picture; the perceptual hash tells these apart.

The list's columns are those that `source.keep_columns` kept, in the candidates' column `listed`.
"""

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any

from crawl2clip.missing import MISSING
from data_pipeline.face_blur import read_boxes
from data_pipeline.fetch_config import check_number
from data_pipeline.processed import Processed


class Verdict(str, Enum):
    """What a download is, against its list; the `expected` column."""

    exact = "exact"  # the very file
    near = "near"  # another file, and the same picture by the perceptual hash
    mismatch = "mismatch"  # neither


@dataclass(kw_only=True, slots=True)
class PublishedConfig:
    """Which columns of a published list mean something here; null for none."""

    hash_column: str | None = MISSING  # MD5 or SHA-256 of the original file, as hex digits
    phash_column: str | None = MISSING  # its perceptual hash, as this project writes it
    near_bits: int = MISSING  # of its 64, that may differ in the same picture; 0 to 32
    drop_mismatches: bool = MISSING  # true: status hash_mismatch, no image; false: only noted
    boxes_column: str | None = MISSING  # boxes to blur: [left, top, right, bottom] each, fractions of 0 to 1

    def __post_init__(self) -> None:
        check_number("download.published.near_bits", self.near_bits, 0, 32)


def read_listed(listed: str | None) -> dict[str, Any]:
    """The columns that were kept; none for what cannot be read."""
    if listed is None:
        return {}
    try:
        found = json.loads(listed)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def verdict(processed: Processed, listed: dict[str, Any], config: PublishedConfig) -> Verdict | None:
    """What a download is; None when its list gives nothing to compare it with."""
    expected = _hex(listed.get(config.hash_column or ""))
    if expected is not None and expected == {32: processed.md5, 64: processed.sha256}.get(len(expected)):
        return Verdict.exact
    looks = _hex(listed.get(config.phash_column or ""))
    if looks is not None and len(looks) == 16 and processed.phash is not None:
        differing = (int(looks, 16) ^ int(processed.phash, 16)).bit_count()
        return Verdict.near if differing <= config.near_bits else Verdict.mismatch
    comparable = expected is not None and len(expected) in (32, 64)
    return Verdict.mismatch if comparable else None


def boxes_of(listed: dict[str, Any], config: PublishedConfig) -> list[list[float]] | None:
    """The boxes to blur; [] for none, None when the list's cannot be read."""
    value = listed.get(config.boxes_column or "")
    if isinstance(value, str):  # from csv
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return read_boxes(value)


def _hex(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    value = value.strip().lower()
    return value if value and all(character in "0123456789abcdef" for character in value) else None

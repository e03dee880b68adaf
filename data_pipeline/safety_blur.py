"""Which pictures of a report are shown blurred, and the blurring, which cannot be undone: the page holds no more."""

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from PIL.Image import Image

SAFETY_COLUMNS = ("punsafe", "nsfw")
UNSAFE_FROM = 0.5  # of punsafe: LAION's own bound for its demo
_PIXELS_LEFT = 10  # of the longer side


def may_be_unsafe(columns: list[str]) -> pl.Expr:
    """Whether a tagger says so, or was asked and could not tell; null when no tagger was asked.

    Args:
        columns: those of SAFETY_COLUMNS that the run has.
    """
    judged = {
        "punsafe": pl.col("punsafe").fill_nan(None).fill_null(1.0) >= UNSAFE_FROM,
        "nsfw": pl.col("nsfw").fill_null("NSFW") != "UNLIKELY",
    }
    found = [judged[name] for name in columns if name in judged]
    return pl.any_horizontal(found) if found else pl.lit(None, pl.Boolean)


def blurred(image: "Image") -> "Image":
    """The picture as a few blots of colour."""
    from PIL import Image

    small = image.convert("RGB")
    size = small.size
    small.thumbnail((_PIXELS_LEFT, _PIXELS_LEFT))
    return small.resize(size, Image.Resampling.BICUBIC)

"""The server's policy on unsafe images: judged from the tags, applied to every route, changed by no request."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from data_pipeline.explorer.config import SafetyConfig, Showing
from data_pipeline.index_rows import PartRows

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
JUDGED_BY = ("punsafe", "nsfw")
"""The columns that the policy reads."""


class SafetyPolicy:
    """What is done with each image."""

    def __init__(self, config: SafetyConfig, host: str) -> None:
        self._config = config
        self.unsafe = config.unsafe
        elsewhere = Showing.show if host in _LOOPBACK else Showing.blur
        self.untagged = config.untagged if config.untagged is not None else elsewhere

    @property
    def withholds(self) -> bool:
        """Whether some rows must not be found at all."""
        return Showing.withhold in (self.unsafe, self.untagged)

    def describe(self) -> dict[str, str | float]:
        """For the page."""
        return {
            "unsafe": self.unsafe.value,
            "untagged": self.untagged.value,
            "max_punsafe": self._config.max_punsafe,
        }

    def showing(self, rows: Mapping[str, Sequence[Any]]) -> list[Showing]:
        """What is done with each row.

        Args:
            rows: has the columns of JUDGED_BY, None where there is no tag.
        """
        return [self._one(punsafe, nsfw) for punsafe, nsfw in zip(rows["punsafe"], rows["nsfw"], strict=True)]

    def _one(self, punsafe: float | None, nsfw: str | None) -> Showing:
        if punsafe is None and nsfw is None:
            return self.untagged
        is_unsafe = (
            punsafe is not None and punsafe >= self._config.max_punsafe
        ) or nsfw in self._config.nsfw_words
        return self.unsafe if is_unsafe else Showing.show

    def findable(self, part: PartRows) -> pl.Series:
        """For each row of a part, whether it may be in a result at all."""
        numbers = part.numbers
        punsafe = nsfw = pl.lit(None, pl.Boolean)
        if "punsafe" in numbers.columns:
            punsafe = pl.col("punsafe") >= self._config.max_punsafe
        if "nsfw" in numbers.columns:
            words = part.values("nsfw").to_pylist()
            nsfw = pl.col("nsfw").is_in([words.index(w) for w in self._config.nsfw_words if w in words])
        withheld = [
            kind
            for kind, showing in (("unsafe", self.unsafe), ("untagged", self.untagged))
            if showing == Showing.withhold
        ]
        rows = pl.DataFrame({"row": pl.zeros(len(part), pl.UInt8, eager=True)}).hstack(numbers)
        return rows.select(~_kind(punsafe, nsfw).is_in(withheld)).to_series()


def _kind(punsafe: pl.Expr, nsfw: pl.Expr) -> pl.Expr:
    """unsafe, untagged or safe, from two answers that are null where there is no tag."""
    return (
        pl.when(punsafe.fill_null(False) | nsfw.fill_null(False))
        .then(pl.lit("unsafe"))
        .when(punsafe.is_null() & nsfw.is_null())
        .then(pl.lit("untagged"))
        .otherwise(pl.lit("safe"))
    )

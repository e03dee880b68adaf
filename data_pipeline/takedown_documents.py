"""Interleaved documents without the images that a takedown names.

An image is taken out of the page it stands in; the page's texts stay, and those on both sides of it become one, as
the documents stage would have written the page without it. So the document's uid, which is made of its content, is
that of what is left. A document that is left without an image goes, and so does one that is named itself.
"""

from collections.abc import Set
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from crawl2clip.schema import document_uid


def is_documents(columns: list[str]) -> bool:
    """Whether a table with these columns holds documents; others hold pairs."""
    return {"texts", "images"} <= set(columns)


def images_of(documents: pl.DataFrame) -> pl.DataFrame:
    """uid and url of every image of some documents, by their column `images`."""
    return documents.select(pl.col("images").explode()).drop_nulls().unnest("images").select("uid", "url")


def rewrite_documents(source: Path, target: Path, removed: Set[str]) -> int:
    """A table of documents without some images, row group by row group; nothing is written when none is in it.

    Args:
        source, target: the files.
        removed: uids of images and of documents.

    Returns:
        How many images and documents were named.
    """
    names = pl.Series(sorted(removed), dtype=pl.String).implode()
    left, groups = 0, []
    with pq.ParquetFile(source) as file:
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            frame = pl.DataFrame(pl.from_arrow(table.select(["uid", "images"])))
            named = sum(int(uids.is_in(names).sum()) for uids in (frame["uid"], images_of(frame)["uid"]))
            if named:
                kept = [
                    document for row in table.to_pylist() if (document := _without(row, removed)) is not None
                ]
                table = pa.Table.from_pylist(kept, schema=table.schema)
                left += named
            groups.append(table)
        if left:
            with pq.ParquetWriter(target, file.schema_arrow, compression="zstd") as writer:
                for table in groups:
                    writer.write_table(table)
    return left


def _without(row: dict[str, Any], removed: Set[str]) -> dict[str, Any] | None:
    """A document without the images named; None when it is named itself, or has no image left."""
    if row["uid"] in removed:
        return None
    texts: list[str | None] = []
    images: list[dict[str, Any] | None] = []
    for text, image in zip(row["texts"], row["images"], strict=True):
        if image is not None and image["uid"] in removed:
            continue
        if text is not None and texts and texts[-1] is not None:
            texts[-1] += "\n" + text
            continue
        texts.append(text)
        images.append(image)
    if len(images) == len(row["images"]):
        return row
    if not any(images):
        return None
    parts = [image["uid"] if image else text or "" for text, image in zip(texts, images, strict=True)]
    return {**row, "uid": document_uid(row["page_url"], parts), "texts": texts, "images": images}

"""Lists of pairs to candidates: the same cleaning, the same rules for addresses and the same uid as for a crawl.

So published sets can be built again by the stages after this one. What may surprise: a pair that a list has
may not come out with the letters it has there, since its text is cleaned and its address brought into the one
spelling of the URL standard; that is what lets it meet the same pair from a crawl.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crawl2clip.schema import CANDIDATE_SCHEMA, uid_of
from data_pipeline.extract import ExtractConfig, TextFault
from data_pipeline.metadata_columns import NamedColumns
from data_pipeline.metadata_lines import ListFault, RowFault
from data_pipeline.metadata_lists import read_list
from data_pipeline.metadata_text import Row
from data_pipeline.page import creative_commons_license
from data_pipeline.stage import Counts
from data_pipeline.text import clean_text
from data_pipeline.urls import PageBase, UrlFault, join_url, page_base

TEXT_SOURCE = "list"
"""What `text_source` says of a pair from a list."""

_ROWS_A_BATCH = 50_000
_SCHEME = re.compile(r"[\x00-\x20]*[A-Za-z][A-Za-z0-9+.-]*:")
_NO_PAGE = PageBase("about:blank", "", "")  # nothing relative can be resolved against it


def write_list(
    path: Path, location: str, label: str, given: NamedColumns, config: ExtractConfig, target: Path
) -> Counts:
    """Writes the candidates of one list.

    Args:
        path: the list on this machine.
        location: where it is from.
        label: what the `crawl_file` column says.
        given: columns that the user names.
        config: which texts and addresses become candidates.
        target: the parquet file to write.

    Returns:
        A row in for every row of the list; why rows are dropped, under `RowFault`, `TextFault` and `UrlFault`;
        in `extra`, what is wrong with the list as a whole, under `ListFault`.

    Raises:
        DataError: the list cannot be opened, or its columns cannot be told.
    """
    counts = Counts()

    def lose(fault: ListFault) -> None:
        counts.extra[fault.value] += 1

    rows = read_list(path, location, given, config.max_record_bytes, lose)
    candidates = _candidates(rows, label, given.kept, config, counts)
    with pq.ParquetWriter(target, CANDIDATE_SCHEMA, compression="zstd") as writer:
        while batch := list(islice(candidates, _ROWS_A_BATCH)):
            columns = dict(zip(batch[0], zip(*(row.values() for row in batch), strict=True), strict=True))
            arrays = [
                pa.array(columns[field.name], field.type)
                if field.name in columns
                else pa.nulls(len(batch), field.type)
                for field in CANDIDATE_SCHEMA
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=CANDIDATE_SCHEMA))
            counts.rows_out += len(batch)
    return counts


def _candidates(
    rows: Iterable[Row | RowFault],
    label: str,
    kept: Sequence[str],
    config: ExtractConfig,
    counts: Counts,
) -> Iterator[dict[str, Any]]:
    """Yields the candidates among the rows, and counts what becomes of every row."""
    for number, row in enumerate(rows):
        counts.rows_in += 1
        pair = row if isinstance(row, RowFault) else _pair(row, config, counts)
        if not isinstance(pair, tuple):
            counts.dropped[pair.value] += 1
            continue
        assert not isinstance(row, RowFault)
        url, text = pair
        _, _, page_url, license, *values = row
        yield {
            "uid": uid_of(url, text),
            "url": url,
            "text": text,
            "text_source": TEXT_SOURCE,
            "page_url": _page_url(page_url, config.max_url_length),
            "license": creative_commons_license([license]) if isinstance(license, str) else None,
            "crawl_file": label,
            "offset": number,
            "listed": _as_json(dict(zip(kept, values, strict=True))) if kept else None,
        }


def _page_url(page_url: Any, max_length: int) -> str | None:
    """As it is stored; None for what is no text, or longer than any address may be."""
    return clean_text(page_url) or None if isinstance(page_url, str) and len(page_url) <= max_length else None


def _as_json(values: dict[str, Any]) -> str:
    """Values of a list as one JSON object: NaN is null, what JSON has no form for is its text."""
    try:
        return json.dumps(values, ensure_ascii=False, allow_nan=False, default=_text_of)
    except ValueError:
        return json.dumps(_without_nan(values), ensure_ascii=False, default=_text_of)


def _text_of(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pair(
    row: Row, config: ExtractConfig, counts: Counts
) -> tuple[str, str] | RowFault | TextFault | UrlFault:
    """A row's address and text as a candidate has them, or why it is none."""
    url, text, page_url = row[:3]
    if not isinstance(url, str | None) or not isinstance(text, str | None):
        return RowFault.row_wrong_type
    text = clean_text(text) if text else ""
    if len(text) < config.min_text_length or not text:
        return TextFault.text_too_short if text else TextFault.no_text
    joined = _address(url or "", page_url, config.max_url_length)
    if isinstance(joined, UrlFault):
        return joined
    if len(text) > config.max_text_length:
        text = text[: config.max_text_length].rstrip()
        counts.extra["texts_cut"] += 1
    return joined, text


def _address(url: str, page_url: Any, max_length: int) -> str | UrlFault:
    if _SCHEME.match(url) or not url.strip():
        return join_url(_NO_PAGE, url, max_length=max_length)
    base = page_base(page_url, None) if isinstance(page_url, str) else None
    return join_url(base, url, max_length=max_length) if base is not None else UrlFault.invalid_url

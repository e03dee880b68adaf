"""Our rows against cc2dataset's on the same WAT, and why they differ where they do; for benchmarks/extract.py."""

import json
from collections import Counter
from pathlib import Path

import ada_url
import pyarrow.parquet as pq

from data_pipeline.text import clean_text

_SAME = "identical"
_UNEXPLAINED = "unexplained"


def compare(ours: Path, peer: Path) -> Counter[str]:
    """Counts of rows: identical ones, and the others by what explains them.

    Args:
        ours: our candidates, alt texts of any length.
        peer: the peer's rows, one JSON list (url, alt, page address) a line.

    Returns:
        Rows by explanation; "unexplained" among them if there are any.
    """
    table = pq.read_table(ours, columns=["url", "text", "page_url"])
    left = Counter(zip(*(column.to_pylist() for column in table.columns), strict=True))
    found: Counter[str] = Counter()
    with open(peer, encoding="utf-8") as file:
        for line in file:
            url, alt, page_url = json.loads(line)
            explanation, row = _explain(url, alt, page_url, left)
            found[explanation] += 1
            if row is not None:
                left[row] -= 1
    found["only ours"] = left.total()
    return +found


def _explain(
    url: str, alt: str, page_url: str, left: Counter[tuple[str, str, str]]
) -> tuple[str, tuple[str, str, str] | None]:
    if left[url, alt, page_url] > 0:
        return _SAME, (url, alt, page_url)
    text = clean_text(alt)
    if not text:
        return "peer keeps a text of white space or invisible characters", None
    standard = ada_url.normalize_url(url).partition("#")[0]
    row = (standard, text, page_url)
    if left[row] <= 0:
        return _UNEXPLAINED, None
    if text == alt:
        return "address spelt by the URL standard, without its fragment", row
    return "text cleaned" if standard == url else "address and text", row

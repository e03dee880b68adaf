"""Takedown: pairs that must be found no more, by uid, at once and without building the index again.

They are listed in the run's folder, see `data_pipeline.hidden_pairs`. What the shards hold is not touched:
`python -m data_pipeline.takedown` takes pairs out of them.

    python -m data_pipeline.explorer.takedown data/cc10 --uid 0123...cdef --url https://host/a.jpg --domain host.org
    python -m data_pipeline.explorer.takedown data/cc10 --uids removed.npy
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from crawl2clip.errors import Crawl2ClipError, DataError
from data_pipeline.explorer.library import Library
from data_pipeline.hidden_pairs import FILE, hide_pairs, read_hidden
from data_pipeline.index_columns import BASE
from data_pipeline.subset import open_uids


class Takedown:
    """The rows of a library that have been taken down; follows the files."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._seen: tuple[tuple[int, int] | None, ...] | None = None
        self.rows = np.empty(0, np.int64)

    @property
    def version(self) -> tuple[tuple[int, int] | None, ...]:
        """Changes when a file does."""
        return tuple(_stamp(run.folder / FILE) for run in self._library.runs)

    def refresh(self) -> tuple[tuple[int, int] | None, ...]:
        """Reads the files again if one has changed; their version.

        A pair that is listed by one run is taken down in all of them.
        """
        version = self.version
        if version != self._seen:
            found = []
            for run in self._library.runs:
                uids = read_hidden(run.folder)
                for each in self._library.runs:
                    for part in each.parts:
                        for high, low in uids:
                            place = part.find(int(high), int(low))
                            if place is not None:
                                found.append(each.base + part.base + place)
            self.rows, self._seen = np.unique(np.array(found, np.int64)), version
        return version

    def holds(self, row: int) -> bool:
        """Whether a row has been taken down."""
        self.refresh()
        place = int(np.searchsorted(self.rows, row))
        return place < len(self.rows) and int(self.rows[place]) == row


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size


def uids_by_address(library: Library, urls: Sequence[str], domains: Sequence[str]) -> list[str]:
    """The uids of all pairs with one of these addresses, or from one of these hosts and the hosts below it."""
    found: list[str] = []
    wanted = [domain.lower() for domain in domains]
    for run in library.runs:
        for part in run.parts:
            frame = pl.DataFrame({"url": pl.Series(part.column("url").to_pylist(), dtype=pl.String)})
            host = BASE["domain"]
            of_domain = [(host == domain) | host.str.ends_with(f".{domain}") for domain in wanted]
            chosen = frame.select(pl.any_horizontal(pl.col("url").is_in(list(urls)), *of_domain)).to_series()
            found += part.uids(np.flatnonzero(chosen.fill_null(False).to_numpy()))
    return found


def main(words: Sequence[str]) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.explorer.takedown", description=__doc__)
    parser.add_argument("run", type=Path, help="output folder with an index")
    parser.add_argument(
        "--uid", action="append", default=[], help="32 hex digits; may be given several times"
    )
    parser.add_argument("--uids", type=Path, help="a .npy of uids, DataComp's form")
    parser.add_argument("--url", action="append", default=[], help="address of an image")
    parser.add_argument("--domain", action="append", default=[], help="host, with all hosts below it")
    asked = parser.parse_args(words)
    try:
        uids = list(asked.uid)
        if asked.uids is not None:
            uids += [f"{int(high):016x}{int(low):016x}" for high, low in open_uids(asked.uids)]
        if asked.url or asked.domain:
            uids += uids_by_address(Library([str(asked.run)]), asked.url, asked.domain)
        if not uids:
            raise DataError(
                "no pair was named, or none has such an address; give --uid, --uids, --url or --domain"
            )
        total = hide_pairs(asked.run, uids)
    except (Crawl2ClipError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(set(uids)):,} pairs named; {asked.run / FILE} lists {total:,}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

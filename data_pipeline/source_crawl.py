"""The files of a Common Crawl, wherever its layout is: on a web server, in an object store, in a folder.

Below a base address lie `crawl-data/CRAWL/wat.paths.gz` and `warc.paths.gz`, which list the crawl's files by
their paths below the same base address.
"""

import gzip
import random
import re
import zlib
from pathlib import Path

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import atomic_path
from data_pipeline.source_files import is_remote, local_path
from data_pipeline.transfer import Patience, fetch

_MAX_LISTING_BYTES = 1 << 28  # of a crawl's list of files, uncompressed; real ones have 20 MB
_CRAWL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+"  # no way out of the base address
_PATH = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")


def check_crawl(crawl: str | None, base_url: str) -> None:
    """Checks, without the network, what names a crawl.

    Raises:
        ConfigError: a setting is missing or malformed, or the base address is a folder that is not there.
    """
    if not crawl:
        raise ConfigError(
            "source.crawl is not set; give the crawl's name, for example source.crawl=CC-MAIN-2024-33"
        )
    if not _CRAWL.fullmatch(crawl):
        raise ConfigError(
            f"source.crawl is {crawl!r}; give the crawl's name alone, for example CC-MAIN-2024-33"
        )
    if base_url.startswith("s3://"):
        from data_pipeline.source_s3 import require_s3

        require_s3(base_url)
    elif not is_remote(base_url):
        folder = local_path(base_url, "source.base_url")
        if not Path(folder, "crawl-data", crawl).is_dir():
            raise ConfigError(
                f"source.base_url is {base_url!r}, a path of this machine, and {folder}/crawl-data/{crawl} is no "
                "folder; give the folder that holds crawl-data/, or an address with https://, http:// or s3://"
            )


def crawl_files(
    crawl: str,
    form: str,
    base_url: str,
    *,
    num_files: int | None,
    seed: int,
    cache: Path,
    patience: Patience,
) -> list[tuple[str, str]]:
    """A crawl's files, or some of them, drawn without replacement: (location, path within the crawl).

    Args:
        crawl: its name.
        form: wat or warc.
        base_url: what `crawl-data/` lies in.
        num_files: how many of them; None for all. They come in the crawl's order.
        seed: of the draw.
        cache: folder where a list from the network is kept, so that a rerun needs no network for it.
        patience: with the server.

    Raises:
        ConfigError: the crawl has fewer files.
        DataError: the list of files cannot be had.
    """
    base = (base_url if is_remote(base_url) else local_path(base_url, "source.base_url")).rstrip("/")
    origin = f"{base}/crawl-data/{crawl}/{form}.paths.gz"
    paths = _kept_listing(origin, cache / f"{crawl}.{form}.paths.gz", patience)
    if num_files is not None:
        if num_files > len(paths):
            raise ConfigError(
                f"source.num_files is {num_files} and {crawl} has {len(paths)} files; "
                "give at most as many, or null for all"
            )
        chosen = random.Random(seed).sample(range(len(paths)), num_files)
        paths = [paths[index] for index in sorted(chosen)]
    return [(f"{base}/{path}", path) for path in paths]


def _kept_listing(origin: str, kept: Path, patience: Patience) -> list[str]:
    if not is_remote(origin):
        return _read_listing(Path(origin), origin)
    if not kept.exists():
        with atomic_path(kept) as temporary:
            fetch(origin, temporary, patience)
            _read_listing(temporary, origin)
    return _read_listing(kept, str(kept))


def _read_listing(path: Path, origin: str) -> list[str]:
    try:
        with gzip.open(path) as file:
            content = file.read(_MAX_LISTING_BYTES + 1)
        paths = content.decode("ascii").split()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{origin} is not a gzipped list of crawl files ({error}); check source.base_url and source.crawl"
        ) from error
    if len(content) > _MAX_LISTING_BYTES or not paths or not all(map(_PATH.fullmatch, paths)):
        raise DataError(f"{origin} is not a list of crawl files; check source.base_url and source.crawl")
    return paths

"""Data sets at an http(s) address in CLIP_benchmark's webdataset layout, fetched into their folder.

A plain web server announces a size at most, so a file is compared with that; its checksum is in the manifest
that is written afterwards, and says that the copy stays as it arrived.
"""

import http.client
import logging
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import atomic_path
from evaluate.data.prompts import CLASS_NAMES_FILE, TEMPLATES_FILE
from evaluate.data.tar_folder import COUNT_FILE, TYPE_FILE, shard_count

TIMEOUT_S = 60.0  # without a byte
OPTIONAL_FILES = (TYPE_FILE, CLASS_NAMES_FILE, TEMPLATES_FILE)
logger = logging.getLogger(__name__)


def fetch_from_web(url: str, folder: Path, splits: Sequence[str]) -> dict[str, str]:
    """Downloads splits of a data set; a tar of the announced size is not fetched again.

    Args:
        url: http(s) address of the data set's folder.
        folder: where to put it.
        splits: names of the splits wanted.

    Returns:
        Where it came from: {"url": the address}.

    Raises:
        ConfigError: an address of another kind.
        DataError: a file cannot be fetched, or arrived short.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"url is {url!r}; give an address that starts with http:// or https://")
    for name in OPTIONAL_FILES:
        _fetch(f"{url.rstrip('/')}/{name}", folder / name, optional=True)
    for split in splits:
        address = f"{url.rstrip('/')}/{split}"
        _fetch(f"{address}/{COUNT_FILE}", folder / split / COUNT_FILE)
        for number in range(shard_count(folder / split / COUNT_FILE)):
            _fetch(f"{address}/{number}.tar", folder / split / f"{number}.tar")
    return {"url": url}


def _fetch(url: str, path: Path, *, optional: bool = False) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            announced = response.headers.get("Content-Length")
            size = int(announced) if announced is not None else None
            if path.suffix == ".tar" and path.is_file() and path.stat().st_size == size:
                return
            logger.info("fetching %s", url)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                shutil.copyfileobj(response, file)
                if size is not None and file.tell() != size:
                    raise DataError(f"{url} announced {size} bytes and gave {file.tell()}; run again")
    except urllib.error.HTTPError as error:
        if optional and error.code == 404:
            return
        raise DataError(f"{url} cannot be fetched: {error}; check the data set's url and splits") from error
    except DataError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DataError(
            f"{url} cannot be fetched: {error}; check the network, or copy the data set to {path.parent} by hand"
        ) from error

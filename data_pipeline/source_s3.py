"""Files in object stores that speak S3, from any offset, so that a transfer can be resumed.

s3fs does the talking; credentials, endpoint and anonymous access come from the environment as it and botocore
read it (AWS_PROFILE, AWS_ENDPOINT_URL, FSSPEC_S3_ANON=true ...). A file is read in ranges; its entity tag is
looked at before the first and after the last, so that ranges of two versions are never put together.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeVar

from crawl2clip.errors import ConfigError
from data_pipeline.transfer import Broken, Opened, Patience, Refused, Tries, cannot_be_had

_RANGE_BYTES = 8 << 20
_RANGE_TIMEOUTS = 10  # a range may take this many times what the server may be silent

T = TypeVar("T")


def require_s3(url: str) -> None:
    """Checks that s3:// addresses can be read here.

    Raises:
        ConfigError: a package is missing.
    """
    if find_spec("s3fs") is None:
        raise ConfigError(f"{url} needs the package s3fs; pip install 'crawl2clip[remote]'")


@contextmanager
def open_s3(url: str, offset: int, version: str | None, timeout_s: float) -> Iterator[Opened]:
    """Opens an address from an offset: see `transfer.Opener`."""
    system = _system(timeout_s)
    size, found = _size_and_version(system, url)
    if found is None or found != version:
        offset = 0
    yield Opened(offset, size, found, _blocks(system, url, offset, size, found, timeout_s))


def find_s3(pattern: str, patience: Patience) -> list[str]:
    """The objects that an s3:// pattern (`*`, `?`, `**`) matches, sorted.

    Raises:
        DataError: the store cannot be asked.
    """
    tries = Tries(pattern, patience)
    while True:
        try:
            found = _asked(partial(_find, pattern, tries.timeout_s()))
            return [f"s3://{name}" for name in sorted(found)]
        except Broken as broken:
            tries.failed(broken)
        except Refused as refused:
            raise cannot_be_had(pattern, refused) from refused


def _find(pattern: str, timeout_s: float) -> list[str]:
    system = _system(timeout_s)
    return system.glob(pattern) if "*" in pattern else system.find(pattern)


def _blocks(
    system: Any, url: str, offset: int, size: int, version: str | None, timeout_s: float
) -> Iterator[bytes]:
    for start in range(offset, size, _RANGE_BYTES):
        end = min(start + _RANGE_BYTES, size)
        # `timeout` is that of fsspec's bridge from threads to its event loop: it bounds a whole range.
        ask = partial(system.cat_file, url, start=start, end=end, timeout=_RANGE_TIMEOUTS * timeout_s)
        block = _asked(ask)
        if len(block) != end - start:
            raise Broken(f"{len(block)} bytes came for a range of {end - start}", restart=True)
        yield block
    if _size_and_version(system, url) != (size, version):
        raise Broken("the object changed while it was read", restart=True)


def _size_and_version(system: Any, url: str) -> tuple[int, str | None]:
    info = _asked(lambda: system.info(url, refresh=True))
    if info.get("type") == "directory" or info.get("size") is None:
        raise Refused("it is a folder")
    return int(info["size"]), info.get("ETag")


def _system(timeout_s: float) -> Any:
    """A file system of this process and for this file; tries are counted by us and by nobody else."""
    import fsspec

    settings = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": {"max_attempts": 1}}
    system = fsspec.filesystem("s3", config_kwargs=settings, skip_instance_cache=True)
    system.retries = 1
    return system


def _asked(ask: Callable[[], T]) -> T:
    """An answer; what goes wrong becomes `Broken` or `Refused`."""
    from aiohttp import ClientError as ConnectionFailed
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    try:
        return ask()
    except FileNotFoundError as error:
        raise Refused("there is no such object") from error
    except (PermissionError, NoCredentialsError, PartialCredentialsError) as error:
        raise Refused(
            f"{error}; give credentials that may read it (AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY), or FSSPEC_S3_ANON=true for a public bucket"
        ) from error
    except (OSError, BotoCoreError, ClientError, ConnectionFailed, asyncio.TimeoutError) as error:
        raise Broken(f"{type(error).__name__}: {error}".rstrip(": ")) from error

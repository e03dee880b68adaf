"""Shards in object stores and on web servers: s3:// and http(s)://, read in ranges, with retries and time-outs.

fsspec speaks the protocols; credentials, endpoints and anonymous access come from the environment as fsspec and
botocore read it (AWS_PROFILE, AWS_ENDPOINT_URL, FSSPEC_S3_ANON=true ...).

What is passing (a time-out, a cut, 429, 5xx) is tried again and then ends the run, which can go on later; what is
final (not found, forbidden, another size) is the object's fault, and the sample's.
"""

import json
import logging
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import braceexpand
from omegaconf import MISSING

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.shards import MANIFEST_NAME, list_shards

SCHEMES = ("s3", "http", "https")
_FIRST_WAIT_S = 0.5  # before the second attempt; doubled for each further one
_LONGEST_WAIT_S = 30.0

logger = logging.getLogger(__name__)
T = TypeVar("T")


class GoneError(OSError):
    """An object is not there, not ours to read, or not what it was: trying again does not help."""


@dataclass(kw_only=True)
class RemoteConfig:
    """How shards at s3:// and http(s):// are read; without effect on local ones."""

    cache_folder: str = (
        MISSING  # on a local disk: indexes, and whole shards where shuffle_window_shards is set
    )
    cache_gb: float = MISSING  # whole shards kept there or on their way, 10**9 bytes, above 0; per machine
    connections: int = MISSING  # ranges that each worker reads at the same time, from 1
    timeout_s: float = MISSING  # of one request, above 0
    attempts: int = (
        MISSING  # at one request before the run stops, from 1; waits grow from half a second to 30 s
    )

    def __post_init__(self) -> None:
        for name in ("cache_gb", "timeout_s"):
            value = getattr(self, name)
            if value != MISSING and value <= 0:
                raise ConfigError(f"data.remote.{name} is {value}; give more than 0")
        for name in ("connections", "attempts"):
            value = getattr(self, name)
            if value != MISSING and value < 1:
                raise ConfigError(f"data.remote.{name} is {value}; give 1 or more")


def is_remote(shard: str) -> bool:
    """Whether a shard is named by a URL that is read through this module."""
    return shard.partition("://")[0] in SCHEMES and "://" in shard


class RemoteShards:
    """Reads objects by URL; connections belong to the process that uses it, so it survives a fork."""

    def __init__(self, config: RemoteConfig) -> None:
        self.config = config
        self._process = 0
        self._systems: dict[str, Any] = {}
        self._threads: ThreadPoolExecutor | None = None

    def read(self, url: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`.

        Raises:
            GoneError: the object cannot be read, or has other bytes there.
            DataError: every attempt failed.
        """
        system = self._system(url)
        return self._tried(url, lambda: _exactly(system.cat_file(url, start=offset, end=offset + size), size))

    def size(self, url: str) -> int:
        """Bytes of an object. Raises as `read`."""
        system = self._system(url)

        def ask() -> int:
            found = system.info(url).get("size")
            if found is None:
                raise GoneError("the server does not say how large it is; ranges cannot be read")
            return int(found)

        return self._tried(url, ask)

    def small_file(self, url: str) -> bytes | None:
        """All of an object, None when there is none. Raises DataError as `read`."""
        system = self._system(url)
        try:
            return self._tried(url, lambda: system.cat_file(url))
        except GoneError:
            return None

    def threads(self) -> ThreadPoolExecutor:
        """This process's `connections` threads."""
        self._own_process()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.config.connections, thread_name_prefix="remote shards")
        return self._threads

    def list(self, part: str) -> list[str]:
        """The shards that a URL names: a tar, a brace pattern, a folder with manifest.json, or on s3 with *.tar.

        Raises:
            DataError: it names nothing.
        """
        if "{" in part:
            return list(braceexpand.braceexpand(part))
        pattern, folder = part, part.rstrip("/")
        if "*" not in part:
            if part.endswith(".tar"):
                return [part]
            manifest = self.small_file(f"{folder}/{MANIFEST_NAME}")
            if manifest is not None:
                return [f"{folder}/{name}" for name in _names(manifest, folder)]
            pattern = f"{folder}/*.tar"
        system = self._system(part)
        found = self._tried(part, lambda: system.glob(pattern)) if part.startswith("s3://") else []
        if not found:
            raise DataError(
                f"no shard at {part!r}; give a .tar, a brace pattern, or a folder that holds {MANIFEST_NAME}"
                " (on s3 a glob, or a folder with *.tar, does too)"
            )
        return [f"s3://{name}" for name in sorted(found)]

    def _own_process(self) -> None:
        if self._process != os.getpid():  # connections and threads of the parent mean nothing after a fork
            self._process, self._systems, self._threads = os.getpid(), {}, None

    def _system(self, url: str) -> Any:
        self._own_process()
        scheme = url.partition("://")[0]
        if scheme not in self._systems:
            self._systems[scheme] = _open_system(scheme, self.config.timeout_s)
        return self._systems[scheme]

    def _tried(self, url: str, ask: Callable[[], T]) -> T:
        wait = _FIRST_WAIT_S
        for attempt in range(1, self.config.attempts + 1):
            try:
                return ask()
            except Exception as error:  # aiohttp, botocore, fsspec and asyncio each have kinds of their own
                if _is_final(error):
                    raise GoneError(f"{url}: {type(error).__name__}: {error}") from error
                if attempt == self.config.attempts:
                    raise DataError(
                        f"{url} cannot be read: {attempt} attempts failed, the last with {type(error).__name__}: "
                        f"{error}; see to the network and the server, then start the run again, or raise "
                        "data.remote.attempts"
                    ) from error
                logger.debug("%s: attempt %d: %r", url, attempt, error)
                # Spread out, or all workers come back at the same moment.
                time.sleep(wait * random.SystemRandom().uniform(0.5, 1.0))
                wait = min(2 * wait, _LONGEST_WAIT_S)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": 0, "_systems": {}, "_threads": None}


def list_all_shards(spec: str, remote: RemoteShards | None) -> list[str]:
    """`crawl2clip.shards.list_shards` for local parts of `spec`, `RemoteShards.list` for URLs, in order.

    Raises:
        ConfigError: URLs without settings of how to read them.
        DataError: a part names nothing.
    """
    shards: list[str] = []
    for part in spec.split("::"):
        if not is_remote(part):
            shards += list_shards(part)
        elif remote is None:
            raise ConfigError(f"data.shards names {part}, and data.remote is null; give its settings")
        else:
            shards += remote.list(part)
    return shards


def _open_system(scheme: str, timeout_s: float) -> Any:
    """An fsspec file system of this process. Raises ConfigError when its package is missing."""
    import fsspec

    try:
        if scheme == "s3":
            # Retries are ours: one place that counts, waits and says what happened.
            settings = {
                "connect_timeout": timeout_s,
                "read_timeout": timeout_s,
                "retries": {"max_attempts": 1},
            }
            system = fsspec.filesystem("s3", config_kwargs=settings, skip_instance_cache=True)
            system.retries = 1
            return system
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=timeout_s)
        return fsspec.filesystem(scheme, client_kwargs={"timeout": timeout}, skip_instance_cache=True)
    except ImportError as error:
        raise ConfigError(
            f"shards at {scheme}:// need the package {error.name or 's3fs'}; pip install 'crawl2clip[remote]'"
        ) from error


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) > size:
        raise GoneError(f"{len(data)} bytes came for a range of {size}; the server does not answer ranges")
    if len(data) < size:
        raise ConnectionError(f"{len(data)} of {size} bytes came")
    return data


def _is_final(error: Exception) -> bool:
    if isinstance(error, (GoneError, FileNotFoundError, PermissionError, ConfigError)):
        return True
    status = getattr(error, "status", None)  # aiohttp's
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)


def _names(manifest: bytes, folder: str) -> list[str]:
    try:
        return [entry["name"] for entry in json.loads(manifest)["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}/{MANIFEST_NAME} is not a manifest of training shards ({error}); write the shards again"
        ) from error

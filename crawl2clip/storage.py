"""Folders in an object store, worked on as local ones.

An address `s3://bucket/run/raw/0.tar` has one local path, `<scratch>/s3:/bucket/run/raw/0.tar`, and from that path the
address can be told again. So stages know local paths only: the frame brings inputs to these paths before a shard is
made, and puts outputs at their addresses afterwards, the completion marker last. Training and evaluation do the same
with checkpoints and results. A store has no rename, and needs none: an object appears whole or not at all, and without
its marker nobody looks at it. Of a path that is not below the scratch folder, all functions here do nothing.

The scratch folder is `CRAWL2CLIP_SCRATCH`, or crawl2clip-<user> in the system's temporary folder; on a cluster it is
the same path on every node, and need not be shared. s3fs does the talking: credentials and endpoint come from the
environment as it and botocore read it (AWS_PROFILE, AWS_ENDPOINT_URL ...).
"""

import getpass
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import TEMPORARY_MARK

SCHEME = "s3://"
SCRATCH_VARIABLE = "CRAWL2CLIP_SCRATCH"
_MARK = "s3:"  # the part of a local path after which the address begins
_THREADS = 32  # small objects that are fetched at once
_ATTEMPTS = 5  # botocore's, with growing pauses

T = TypeVar("T")


def local_path(location: str | Path) -> Path:
    """Where this machine works on a location: an address's place in the scratch folder, a path as it is."""
    text = str(location)
    if not text.startswith(SCHEME):
        return Path(text)
    if not text.removeprefix(SCHEME).strip("/"):
        raise ConfigError(f"{text!r} names no bucket; give s3://bucket/folder")
    return scratch_folder() / _MARK / text.removeprefix(SCHEME).strip("/")


def address_of(path: str | Path) -> str | None:
    """The address that a local path stands for; None when it is a path like any other."""
    if f"/{_MARK}/" not in str(path):
        return None
    return SCHEME + str(path).partition(f"/{_MARK}/")[2]


def public(value: Any) -> Any:
    """A JSON value with addresses in place of the local paths they have on this machine."""
    if isinstance(value, str):
        return address_of(value) or value
    if isinstance(value, dict):
        return {
            key if address_of(key) is None else address_of(key): public(each) for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [public(each) for each in value]
    return value


def scratch_folder() -> Path:
    """Where this machine keeps what it works on for a store."""
    folder = os.environ.get(SCRATCH_VARIABLE)
    return Path(folder) if folder else Path(tempfile.gettempdir()) / f"crawl2clip-{getpass.getuser()}"


def exists(path: str | Path) -> bool:
    """Whether a file is there: on this machine, or at its address."""
    if os.path.exists(path):
        return True
    address = address_of(path)
    return address is not None and asked(address, lambda system: system.isfile(address))


def fetch(path: str | Path) -> bool:
    """Brings the object of a path to this machine, whole or not at all, unless it is here in the store's version.

    Returns:
        Whether it was brought by this call.

    Raises:
        DataError: there is no such object, or the store cannot be asked.
    """
    address = address_of(path)
    if address is None:
        return False
    version = asked(address, lambda system: _version(system.info(address, refresh=True)))
    noted = _version_note(Path(path))
    if os.path.exists(path) and noted.exists() and noted.read_text() == version:
        return False
    _get(address, Path(path))
    noted.write_text(version)
    return True


def fetch_newest(path: str | Path) -> None:
    """Brings the object of a path in its newest version; if it is not in the store, it is not here either."""
    address = address_of(path)
    if address is None:
        return
    if asked(address, lambda system: system.isfile(address)):
        _get(address, Path(path))
    else:
        Path(path).unlink(missing_ok=True)


def drop(path: str | Path) -> None:
    """Removes what `fetch` brought; the object stays."""
    Path(path).unlink(missing_ok=True)
    _version_note(Path(path)).unlink(missing_ok=True)


def fetch_all(folder: str | Path) -> None:
    """Brings all objects below a folder, in their newest versions."""
    address = address_of(folder)
    if address is not None:
        for name in asked(address, lambda system: system.find(address)):
            fetch_newest(local_path(SCHEME + name))


def publish(path: str | Path) -> None:
    """Puts a file, or all files of a folder in the order of their names, at its address.

    Raises:
        DataError: the store does not take it.
    """
    path = Path(path)
    if address_of(path) is None:
        return
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        address = address_of(file)
        assert address is not None
        if file.is_file() and TEMPORARY_MARK not in file.name:
            asked(address, lambda system, f=file, a=address: system.put_file(str(f), a))


def remove(path: str | Path) -> None:
    """Removes a file, and its object."""
    Path(path).unlink(missing_ok=True)
    address = address_of(path)
    if address is not None and exists(path):
        asked(address, lambda system: system.rm_file(address))


def names_in(folder: str | Path, suffix: str) -> Iterator[str]:
    """Names of the files in a folder that end in `suffix`, without it; none when there is no folder."""
    address = address_of(folder)
    if address is not None:
        names = (name.rpartition("/")[2] for name in _listed(address))
    else:
        names = _entries(folder)
    return (name.removesuffix(suffix) for name in names if name.endswith(suffix))


def _folders_in(folder: Path) -> list[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        return [folder / entry.name for entry in entries if entry.is_dir()]
    return []


def _entries(folder: str | Path) -> Iterator[str]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name


def folders_with(folder: str | Path, name: str, depth: int) -> list[Path]:
    """The folders below one, at most `depth` levels down, that hold a file of that name, as local paths."""
    address = address_of(folder)
    if address is None:
        level, found = [Path(folder)], []
        for _ in range(depth):
            level = [child for parent in level for child in _folders_in(parent)]
            found += [child for child in level if (child / name).exists()]
        return sorted(found)

    def inside(parent: str) -> list[str]:
        try:
            return [
                entry["name"]
                for entry in asked(parent, lambda system: system.ls(parent, detail=True, refresh=True))
                if entry["type"] == "directory"
            ]
        except DataError:
            return []

    level, all_folders = [address], []
    for _ in range(depth):
        level = [SCHEME + child for parent in level for child in inside(parent)]
        all_folders += level
    return sorted(local_path(each) for each in all_folders if exists(local_path(each) / name))


def refresh(folder: str | Path, names: Iterable[str]) -> None:
    """Makes the small files `names` of a folder here what they are in the store; removes what it does not have.

    Files that are here already are taken for equal: a marker never changes, it only goes.
    """
    address = address_of(folder)
    if address is None:
        return
    there = {name.rpartition("/")[2] for name in _listed(address)}
    wanted = set(names)
    folder = Path(folder)
    for name in wanted - there:
        (folder / name).unlink(missing_ok=True)
    missing = [name for name in sorted(wanted & there) if not (folder / name).exists()]
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(lambda name: _get(f"{address}/{name}", folder / name), missing))


def copy(source: Path, target: Path) -> None:
    """Copies an object to another address within the store.

    Raises:
        DataError: the store cannot do it.
    """
    here, there = address_of(source), address_of(target)
    assert here is not None
    assert there is not None
    asked(there, lambda system: system.copy(here, there))


@contextmanager
def reading(path: str | Path) -> Iterator[BinaryIO]:
    """A file opened to read pieces of it, from its address if it is not here; a piece is one request.

    Raises:
        DataError: the store cannot be asked. OSError: a local file cannot be opened.
    """
    address = address_of(path)
    if address is None or os.path.exists(path):
        with open(path, "rb") as file:
            yield file
    else:
        with asked(address, lambda system: system.open(address, "rb", cache_type="none")) as file:
            yield file


def _version(info: dict[str, Any]) -> str:
    return f"{info.get('ETag')} {info.get('size')} {info.get('LastModified')}"


def _version_note(path: Path) -> Path:
    return path.with_name(f".{path.name}.version")


def _get(address: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}{TEMPORARY_MARK}{uuid.uuid4().hex[:8]}")
    try:
        asked(address, lambda system: system.get_file(address, str(temporary)))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _listed(address: str) -> list[str]:
    """Addresses of the objects right below a folder; none when there are none."""
    prefix = address.rstrip("/") + "/"

    def ask(system: Any) -> list[str]:
        try:
            return [
                entry["name"]
                for entry in system.ls(prefix, detail=True, refresh=True)
                if entry["type"] == "file"
            ]
        except FileNotFoundError:
            return []

    return asked(prefix, ask)


@lru_cache(maxsize=1)
def _system(process: int) -> Any:
    """A file system of this process: its connections cannot be used after a fork."""
    try:
        import fsspec

        return fsspec.filesystem(
            "s3", use_listings_cache=False, skip_instance_cache=True,
            config_kwargs={"retries": {"max_attempts": _ATTEMPTS, "mode": "standard"}},
        )  # fmt: skip
    except ImportError as error:
        raise ConfigError(
            f"s3:// addresses need the package {error.name or 's3fs'}; pip install 'crawl2clip[remote]'"
        ) from error


def asked(address: str, ask: Callable[[Any], T]) -> T:
    """What `ask(file system)` returns, the store's errors turned into ours.

    Raises:
        DataError: nothing is at the address, the store refuses, or it cannot be reached.
        ConfigError: s3fs is missing.
    """
    system = _system(os.getpid())
    from aiohttp import ClientError as ConnectionFailed
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return ask(system)
    except FileNotFoundError as error:
        raise DataError(f"{address} is not in the store; check the address, or run what writes it") from error
    except PermissionError as error:
        raise DataError(
            f"{address}: the store refuses ({error}); give credentials that may read and write there (AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        ) from error
    except (OSError, BotoCoreError, ClientError, ConnectionFailed) as error:
        raise DataError(
            f"{address}: the store does not answer as it should ({type(error).__name__}: {error}); see to the network "
            "and AWS_ENDPOINT_URL, then run the same command again: it goes on where it stopped"
        ) from error

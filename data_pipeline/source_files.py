"""The files that a user names: paths, patterns and folders on this machine, web and S3 addresses."""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import braceexpand

from crawl2clip.errors import ConfigError, DataError
from data_pipeline.transfer import Patience

REMOTE = ("https://", "http://", "s3://")


@dataclass(frozen=True)
class CrawlFile:
    """One file of a source.

    Attributes:
        name: of the shard it becomes.
        location: local path or URL.
        label: what the `crawl_file` column says: the path as it was given, or the path within the crawl.
    """

    name: str
    location: str
    label: str


def is_remote(location: str) -> bool:
    """Whether a file is on a server: http(s):// or s3://."""
    return location.startswith(REMOTE)


def local_path(location: str, setting: str) -> str:
    """A path of this machine, also one that is given as file://.

    Raises:
        ConfigError: it has another scheme.
    """
    if location.startswith("file://"):
        rest = location.removeprefix("file://").removeprefix("localhost")
        if rest.startswith("/"):
            return unquote(rest)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", location):
        raise ConfigError(
            f"{setting}: {location!r} cannot be read; give a path, file:///path, or an address with "
            f"{', '.join(REMOTE)}"
        )
    return location


def check_patterns(patterns: Sequence[str], endings: Sequence[str]) -> None:
    """Checks, without the network, that there is something under every pattern.

    Raises:
        ConfigError: there is not, or it cannot be read from here.
    """
    if not patterns:
        raise ConfigError(
            "source.files is empty; give paths, patterns, folders or addresses of files that end in "
            f"{_listed(endings)}, for example 'source.files=[data/crawl/*{endings[0]}]'"
        )
    for pattern in patterns:
        if not is_remote(pattern):
            _local(pattern, endings)
        elif pattern.startswith("s3://"):
            from data_pipeline.source_s3 import require_s3

            require_s3(pattern)
        elif "*" in pattern:
            raise ConfigError(
                f"source.files: {pattern!r} has a *, and web servers do not list their files; "
                "give each address, or a range such as {000..127}"
            )
        if is_remote(pattern):
            expanded(pattern)


def find_files(patterns: Sequence[str], endings: Sequence[str], patience: Patience) -> list[str]:
    """The files under the patterns, each once, in the order in which they are named.

    Args:
        patterns: paths, glob patterns (`**` for any number of folders) and folders, which stand for all their
            files with one of `endings`; addresses, also with `{a,b}` and `{000..127}`, and s3:// patterns.
        endings: what files in folders end in, in any case.
        patience: with an object store that has to be asked.

    Raises:
        ConfigError: nothing is there.
        DataError: an object store cannot be asked, or has no such files.
    """
    check_patterns(patterns, endings)
    found: list[str] = []
    for pattern in patterns:
        found += _remote(pattern, endings, patience) if is_remote(pattern) else _local(pattern, endings)
    return list(dict.fromkeys(found))


def expanded(pattern: str) -> list[str]:
    """The addresses that a pattern with `{a,b}` or `{000..127}` stands for.

    Raises:
        ConfigError: a brace is not closed.
    """
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(
            f"source.files: {pattern!r} has braces that are not closed ({error}); write a range as {{000..127}}"
        ) from error


def _remote(pattern: str, endings: Sequence[str], patience: Patience) -> list[str]:
    if not pattern.startswith("s3://") or ("*" not in pattern and not pattern.endswith("/")):
        return expanded(pattern)
    from data_pipeline.source_s3 import find_s3

    found = find_s3(pattern, patience)
    if pattern.endswith("/"):
        found = [name for name in found if name.lower().endswith(tuple(endings))]
    if not found:
        raise DataError(
            f"source.files: {pattern!r} gives no file; folders are searched for files that end in {_listed(endings)}"
        )
    return found


def _local(pattern: str, endings: Sequence[str]) -> list[str]:
    path = Path(local_path(pattern, "source.files"))
    if path.is_dir():
        files = sorted(
            str(file)
            for file in path.rglob("*")
            if file.name.lower().endswith(tuple(endings)) and file.name[0] not in "._" and file.is_file()
        )
        problem = f"the folder has no file that ends in {_listed(endings)}"
    else:
        matches = [str(path)] if path.exists() else sorted(glob.glob(str(path), recursive=True))
        files = [match for match in matches if Path(match).is_file()]
        problem = (
            "only folders are there; name one of them alone, or add /*" if matches else "no file is there"
        )
    if not files:
        raise ConfigError(
            f"source.files: {pattern!r} gives no crawl file or list, {problem}. "
            f"Paths are relative to {Path.cwd()}; ** matches any number of folders."
        )
    return files


def _listed(endings: Sequence[str]) -> str:
    return ", ".join(endings)


def named(files: Sequence[tuple[str, str]]) -> list[CrawlFile]:
    """Names each file's shard after the file; where two would share a name, by their number too.

    Args:
        files: (location, label) of each.
    """
    names: dict[str, int] = {}
    crawl_files = []
    for location, label in files:
        name = re.sub(
            r"[^A-Za-z0-9_-]+", "_", re.sub(r"\.(gz|zst|lz4)\Z", "", label.rsplit("/", 1)[-1])
        ).strip("_")
        name = name[-150:] or "file"
        repeats = names[name] = names.get(name, -1) + 1
        crawl_files.append(CrawlFile(f"{name}-{repeats}" if repeats else name, location, label))
    if len({file.name for file in crawl_files}) < len(crawl_files):  # "a", "a" and "a-1"
        crawl_files = [
            CrawlFile(f"{index:06d}-{file.name}", file.location, file.label)
            for index, file in enumerate(crawl_files)
        ]
    return crawl_files

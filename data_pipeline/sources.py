"""Where the pipeline begins: crawl files, WAT and WARC, or lists of pairs that somebody has made already.

A source lists its files, each with the name of the shard it becomes; a worker then asks for one of them as a
local file. A file from the network is written to a temporary folder, whole or not at all (`transfer`), and
is deleted when it has been read.
"""

import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import MISSING

from crawl2clip.errors import ConfigError
from data_pipeline.metadata_columns import NamedColumns
from data_pipeline.metadata_lists import LIST_ENDINGS, check_list, list_form_of
from data_pipeline.source_crawl import check_crawl, crawl_files
from data_pipeline.source_files import (
    CrawlFile,
    check_patterns,
    expanded,
    find_files,
    is_remote,
    local_path,
    named,
)
from data_pipeline.transfer import Patience, fetch

__all__ = [
    "CrawlFile", "CrawlForm", "SourceConfig", "SourceKind", "first_bytes_of", "form_of", "list_files", "local_copy",
    "named_columns", "validate_source",
]  # fmt: skip

_COMPRESSIONS = (".gz", "", ".zst", ".lz4")


class SourceKind(Enum):
    """Where the pairs come from."""

    local = "local"  # crawl files of one's own: source.files
    commoncrawl = "commoncrawl"  # anything with Common Crawl's layout: source.crawl
    metadata = "metadata"  # lists of addresses and texts: source.files


class CrawlForm(Enum):
    """What a crawl file holds."""

    wat = "wat"  # metadata of pages
    warc = "warc"  # pages


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """The files to extract from."""

    kind: SourceKind = MISSING
    form: CrawlForm | None = MISSING  # null: decided for each file, by its name or else by its first records
    # local and metadata: paths, patterns, folders, and addresses with https://, http:// or s3://. WAT and WARC
    # files may be mixed, and so may parquet, csv, tsv and jsonl lists.
    files: list[str] = MISSING
    crawl: str | None = MISSING  # commoncrawl: the crawl's name, such as CC-MAIN-2024-33
    num_files: int | None = MISSING  # commoncrawl: how many of the crawl's files to take; null for all
    seed: int = MISSING  # commoncrawl: of the choice of files, made without replacement
    # commoncrawl: what crawl-data/ lies in: https://, http://, s3://bucket, or a folder of this machine
    base_url: str = MISSING
    # metadata: the columns; null: the one whose name is recognised. A number from 0 where a list has no header.
    url_column: str | None = None
    text_column: str | None = None
    keep_columns: list[str] = field(
        default_factory=list
    )  # metadata: columns that go into the candidates' `listed`
    retries: int = MISSING  # more tries of a transfer that broke, in a row without progress; 0 or more
    backoff_s: float = MISSING  # about the wait before the first retry; doubles each time, up to a minute
    timeout_s: float = MISSING  # the longest silence of a server, above 0
    deadline_s: float = MISSING  # for one file with all its retries, above 0; below executor.shard_timeout_s

    def __post_init__(self) -> None:
        if isinstance(self.num_files, int) and self.num_files < 1:
            raise ConfigError(
                f"source.num_files is {self.num_files}; give 1 or more, or null for the whole crawl"
            )
        if self.base_url != MISSING and not is_remote(self.base_url):
            local_path(self.base_url, "source.base_url")
        if isinstance(self.retries, int) and self.retries < 0:
            raise ConfigError(f"source.retries is {self.retries}; give 0 or more")
        if isinstance(self.backoff_s, float) and self.backoff_s < 0:
            raise ConfigError(f"source.backoff_s is {self.backoff_s}; give 0 seconds or more")
        for name in ("timeout_s", "deadline_s"):
            value: Any = getattr(self, name)
            if value != MISSING and not value > 0:
                raise ConfigError(f"source.{name} is {value}; give seconds above 0")


def patience_of(config: SourceConfig) -> Patience:
    """How long servers are borne with."""
    return Patience(config.retries, config.backoff_s, config.timeout_s, config.deadline_s)


def named_columns(config: SourceConfig) -> NamedColumns:
    """The columns of a list that the settings name."""
    return NamedColumns(config.url_column, config.text_column, tuple(config.keep_columns))


def validate_source(config: SourceConfig) -> None:
    """Checks, before any work and without the network, that the source names files that there are.

    Raises:
        ConfigError: it does not, or a setting would have no effect; the message says which one.
    """
    if config.kind is not SourceKind.metadata and (
        config.url_column or config.text_column or config.keep_columns
    ):
        raise ConfigError(
            "source.url_column, text_column and keep_columns are for lists of pairs; add source=metadata, or unset them"
        )
    if config.kind is SourceKind.commoncrawl:
        _validate_crawl(config)
    elif config.kind is SourceKind.local:
        check_patterns(config.files, _endings(config))
    else:
        if config.form is not None:
            raise ConfigError(
                f"source.form is {config.form.value}, and lists of pairs are known by their names; unset it"
            )
        check_patterns(config.files, _endings(config))
        _check_lists(config)


def _validate_crawl(config: SourceConfig) -> None:
    check_crawl(config.crawl, config.base_url)
    if config.form is None:
        raise ConfigError(
            "source.form is null; a Common Crawl source needs wat or warc, for example source.form=wat"
        )
    if config.files:
        raise ConfigError(
            "source.files is set, and source.kind=commoncrawl takes its files from source.crawl; unset one"
        )


def _check_lists(config: SourceConfig) -> None:
    """The names of all lists, and the columns of the first one that is on this machine."""
    local = [pattern for pattern in config.files if not is_remote(pattern)]
    files = find_files(local, LIST_ENDINGS, patience_of(config)) if local else []
    remote = [pattern for pattern in config.files if is_remote(pattern) and not pattern.endswith(("*", "/"))]
    for file in (*files, *(address for pattern in remote for address in expanded(pattern))):
        list_form_of(file)
    if files:
        check_list(Path(files[0]), files[0], named_columns(config))


def list_files(config: SourceConfig, cache: Path) -> list[CrawlFile]:
    """The files of a source, in order; the same on every call.

    Args:
        config: the source.
        cache: folder where a crawl's list of files is kept, so that a rerun needs no network for it.

    Raises:
        ConfigError: no such files.
        DataError: the crawl's list of files cannot be had.
    """
    patience = patience_of(config)
    if config.kind is SourceKind.commoncrawl:
        assert config.crawl is not None  # validate_source
        assert config.form is not None  # validate_source
        return named(
            crawl_files(
                config.crawl, config.form.value, config.base_url, num_files=config.num_files, seed=config.seed,
                cache=cache, patience=patience,
            )
        )  # fmt: skip
    return named([(file, file) for file in find_files(config.files, _endings(config), patience)])


def _endings(config: SourceConfig) -> tuple[str, ...]:
    """What files in folders end in; others can be named one by one, or by a pattern."""
    if config.kind is SourceKind.metadata:
        return LIST_ENDINGS
    forms = [config.form.value] if config.form is not None else [form.value for form in CrawlForm]
    return tuple(f".{form}{compression}" for form in forms for compression in _COMPRESSIONS)


def form_of(location: str, first_bytes: bytes) -> CrawlForm:
    """Whether a file is WAT or WARC: by its name, or else by the uncompressed bytes it begins with."""
    name = re.sub(r"\.(gz|zst|lz4)\Z", "", location.rsplit("/", 1)[-1].lower())
    if name.endswith(".wat"):
        return CrawlForm.wat
    if name.endswith(".warc"):
        return CrawlForm.warc
    return CrawlForm.wat if b'{"Container"' in first_bytes or b'"Envelope"' in first_bytes else CrawlForm.warc


def first_bytes_of(path: Path, size: int = 1 << 16) -> bytes:
    """The first bytes of a file, uncompressed where it is gzipped; what there is of them, if it is damaged."""
    with open(path, "rb") as file:
        raw = file.read(size)
    found = b""
    while raw[:2] == b"\x1f\x8b" and len(found) < size:
        member = zlib.decompressobj(31)
        try:
            found += member.decompress(raw, size)
        except zlib.error:
            break
        raw = member.unused_data
    return found or raw


@contextmanager
def local_copy(file: CrawlFile, config: SourceConfig, scratch: Path) -> Iterator[Path]:
    """The file as a local path, for the length of the block.

    Args:
        file: what to open.
        config: the source it is from.
        scratch: folder for a temporary copy of a file from the network.

    Raises:
        DataError: it cannot be had, after all retries.
    """
    if not is_remote(file.location):
        yield Path(file.location)
        return
    with TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "copy"
        fetch(file.location, path, patience_of(config))
        yield path

"""Lists of what must not be in a data set, as hashes: pairs by uid, images by url or content, sites by domain.

    python -m data_pipeline.blocklist --output blocked.parquet --urls urls.txt --domains domains.txt --md5 md5.txt

makes such a list from plain ones. `deduplicate.blocklist=[blocked.parquet]` applies it before anything is downloaded
(what is known by then: uid, url, domain), `select.blocklist` afterwards with all kinds, and
`python -m data_pipeline.takedown` to a data set that is finished. Only hashes are stored, so a list can be handed on
without spreading what it blocks, and no message of this module repeats an entry.

An entry is a kind and a hash in hex. The first 128 bits of a SHA-256 are compared, so an accidental hit among a billion
rows and a billion entries has a chance of 3e-21.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crawl2clip.errors import ConfigError, Crawl2ClipError, DataError
from crawl2clip.files import atomic_path
from data_pipeline.urls import page_base

HOW_TO_MAKE = "Make one from plain lists with: python -m data_pipeline.blocklist --help"
BLOCKLIST_SCHEMA = pa.schema([pa.field("kind", pa.string()), pa.field("hash", pa.string())])
"""A blocklist as parquet."""

_BATCH = 500_000  # entries in memory at once


class BlockKind(str, Enum):
    """What an entry blocks, and what its hash is."""

    uid = "uid"  # one (url, text) pair: the 32 hex digits of crawl2clip.schema.uid_of
    url = "url"  # one image address: SHA-256 of the URL in the standard's spelling, without a fragment
    domain = (
        "domain"  # a host and all below it: SHA-256 of its name, lower case, ASCII (xn-- for others), no port
    )
    md5 = "md5"  # the original file's bytes
    sha256 = "sha256"  # the original file's bytes
    phash = "phash"  # the original image, by how it looks: 16 hex digits of images.perceptual_hash


HASH_DIGITS = {
    BlockKind.uid: 32, BlockKind.url: 64, BlockKind.domain: 64,
    BlockKind.md5: 32, BlockKind.sha256: 64, BlockKind.phash: 16,
}  # fmt: skip
OF_CONTENT = (BlockKind.md5, BlockKind.sha256, BlockKind.phash)
"""Kinds that are known only once an image is there."""


# What is hashed


def hash_of(kind: BlockKind, value: str) -> str:
    """The hash of a plain entry, in hex.

    Raises:
        ValueError: the value is not of the kind; the message does not repeat it.
    """
    value = value.strip()
    if kind == BlockKind.uid or kind in OF_CONTENT:
        if not is_hash(kind, value):
            raise ValueError(f"not a hash of kind {kind.value}: {HASH_DIGITS[kind]} hex digits")
        return value.lower()
    if kind == BlockKind.url:
        base = page_base(value, None)
        if base is None:
            raise ValueError("not an http(s) URL")
        return sha256_of_text(base.href.partition("#")[0]).hex()
    name = value.lower().removeprefix("*.").strip(".")
    base = page_base(f"http://{name}/", None) if name and not set(name) & set("/:@?# ") else None
    if base is None:
        raise ValueError("not a domain: give a name such as example.org, without a scheme or a path")
    return sha256_of_text(host_of(base.href)).hex()


def host_of(url: str) -> str:
    """The host of a URL in the standard's spelling, without a port and a final dot."""
    host = url.split("/", 3)[2].rpartition("@")[2]
    if host[:1] == "[":  # an IPv6 address, with colons of its own
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].rstrip(".")


def sha256_of_text(text: str) -> bytes:
    """The 32 bytes that stand for a URL or a host."""
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def is_hash(kind: BlockKind, text: str) -> bool:
    """Whether the text is a hash of that kind, in hex."""
    return len(text) == HASH_DIGITS[kind] and set(text) <= set("0123456789abcdefABCDEF")


# The command


def write_blocklist(output: Path | str, lists: dict[BlockKind, str]) -> dict[BlockKind, int]:
    """Makes a parquet blocklist from plain lists, one entry a line; entries of each kind written.

    Args:
        output: the file to write, ending in .parquet.
        lists: kind -> text file. Empty lines and those that start with # are passed over.

    Raises:
        ConfigError: the output has another ending.
        DataError: a file is missing or holds a line that is not an entry; names the line and does not repeat it.
    """
    if Path(output).suffix != ".parquet":
        raise ConfigError(f"--output is {output}; give a name that ends in .parquet")
    counts = dict.fromkeys(lists, 0)
    with (
        atomic_path(output) as temporary,
        pq.ParquetWriter(temporary, BLOCKLIST_SCHEMA, compression="zstd") as writer,
    ):
        for kind, path in lists.items():
            for hashes in _hashed_lines(kind, path):
                columns = [pa.array([kind.value] * len(hashes)), pa.array(hashes, pa.string())]
                writer.write_table(pa.table(columns, schema=BLOCKLIST_SCHEMA))
                counts[kind] += len(hashes)
    return counts


def _hashed_lines(kind: BlockKind, path: str) -> Iterator[list[str]]:
    hashes: list[str] = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip() or line.startswith("#"):
                    continue
                try:
                    hashes.append(hash_of(kind, line))
                except ValueError as error:
                    raise DataError(f"{path}, line {number}, is {error}; correct or remove it") from None
                if len(hashes) == _BATCH:
                    yield hashes
                    hashes = []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a text of one {kind.value} a line ({error})") from error
    yield hashes


def main(words: Sequence[str]) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.blocklist",
        description="Makes a blocklist for deduplicate.blocklist, select.blocklist and takedown from plain lists of "
        "one entry a line. "
        "Only hashes are written.",
    )
    parser.add_argument("--output", required=True, metavar="FILE.parquet", help="the blocklist to write")
    parser.add_argument("--urls", metavar="FILE", help="image addresses, http or https")
    parser.add_argument("--domains", metavar="FILE", help="sites; example.org blocks www.example.org too")
    parser.add_argument("--uids", metavar="FILE", help="uids of (url, text) pairs, 32 hex digits each")
    parser.add_argument("--md5", metavar="FILE", help="MD5 of original image files, 32 hex digits each")
    parser.add_argument(
        "--sha256", metavar="FILE", help="SHA-256 of original image files, 64 hex digits each"
    )
    parser.add_argument("--phash", metavar="FILE", help="perceptual hashes of images, 16 hex digits each")
    asked = parser.parse_args(words)
    lists = {BlockKind.uid: asked.uids, BlockKind.url: asked.urls, BlockKind.domain: asked.domains,
             **{kind: getattr(asked, kind.value) for kind in OF_CONTENT}}  # fmt: skip
    given = {kind: path for kind, path in lists.items() if path is not None}
    if not given:
        parser.error("give at least one of --urls, --domains, --uids, --md5, --sha256 and --phash")
    try:
        counts = write_blocklist(asked.output, given)
    except Crawl2ClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{asked.output}: " + ", ".join(f"{count:,} {kind.value} hashes" for kind, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

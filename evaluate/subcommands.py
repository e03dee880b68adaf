"""`python -m evaluate cache`, `compare` and `manifest`: what needs no model."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from crawl2clip import storage
from crawl2clip.config import CONFIG_DIR
from crawl2clip.errors import ConfigError, Crawl2ClipError
from crawl2clip.store_copies import copy_folder
from evaluate.cache import CacheEntry, FeatureCache
from evaluate.data.manifest_writer import write_dataset_manifest
from evaluate.reports.compare import compare
from evaluate.reports.comparison_page import comparison_markdown, write_comparison

SUBCOMMANDS = ("cache", "compare", "manifest")
_GB = 1_000_000_000
_UNITS = {"KB": 1000, "MB": 1000**2, "GB": _GB, "TB": 1000**4}


def main(arguments: Sequence[str]) -> int:
    """Runs a subcommand and gives its exit status: 0 done, 2 for what cannot be used."""
    asked = _parser().parse_args(arguments)
    try:
        asked.run(asked)
    except Crawl2ClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluate")
    commands = parser.add_subparsers(required=True)
    cache = commands.add_parser("cache", help="what the feature cache holds, and making it smaller")
    cache.add_argument("action", choices=("list", "prune"), nargs="?", default="list")
    cache.add_argument("--folder", type=Path, help="default: cache_dir of configs/evaluate.yaml")
    cache.add_argument("--limit", help="prune: what may stay, such as 20GB or 500MB; 0 empties the cache")
    cache.set_defaults(run=_cache)
    compare = commands.add_parser("compare", help="paired tests between the results of two runs")
    compare.add_argument(
        "run_a", help="output folder of a run with save_predictions=true; s3://bucket/folder too"
    )
    compare.add_argument("run_b", help="another one")
    compare.add_argument("--output", type=Path, help="folder for comparison.md and comparison.html")
    compare.set_defaults(run=_compare)
    manifest = commands.add_parser(
        "manifest", help="note down counts and checksums of a data set, which later runs compare"
    )
    manifest.add_argument("folder", type=Path, help="the data set's folder")
    manifest.add_argument("--builder", help="CLIP_benchmark's name, for a folder that its builder reads")
    manifest.add_argument("--splits", nargs="+", default=[], help="those of the builder to note down")
    manifest.set_defaults(run=_manifest)
    return parser


def _cache(asked: argparse.Namespace) -> None:
    folder = asked.folder or Path(OmegaConf.load(CONFIG_DIR / "evaluate.yaml").cache_dir)
    if not folder.is_dir():
        raise ConfigError(
            f"there is no feature cache at {folder}; give --folder, the cache_dir of the runs that filled it"
        )
    cache = FeatureCache(folder)
    if asked.action == "list":
        print(cache_table(cache.entries(), time.time()))
        return
    if asked.limit is None:
        raise ConfigError(
            "prune needs --limit, what may stay, for example --limit 20GB; --limit 0 empties the cache"
        )
    removed = cache.prune(size_of(asked.limit))
    print(f"deleted {len(removed)} files, {_size(sum(entry.size_bytes for entry in removed))}")


def cache_table(entries: Sequence[CacheEntry], now: float) -> str:
    """One line a file, the longest unused first, and the sum.

    Args:
        entries: of the cache.
        now: seconds since the epoch.
    """
    lines = [f"{'used':>9}  {'size':>9}  {'rows':>9}  kind    model, precision, weights, what"]
    for entry in entries:
        about = entry.about
        what = (
            f"{about.get('model')} {about.get('precision')} {str(about.get('weights_sha256'))[:8]} {about.get('what')}"
            if about
            else "damaged; will be encoded again when it is needed"
        )
        days = max(0.0, now - entry.last_used) / 86_400
        rows = about.get("rows", "")
        lines.append(f"{days:7.1f} d  {_size(entry.size_bytes):>9}  {rows:>9}  {entry.kind:6}  {what}")
    lines.append(f"{len(entries)} files, {_size(sum(entry.size_bytes for entry in entries))}")
    return "\n".join(lines)


def _size(size_bytes: int) -> str:
    if size_bytes >= _GB:
        return f"{size_bytes / _GB:.2f} GB"
    return f"{size_bytes / 1_000_000:.1f} MB"


def size_of(text: str) -> int:
    """Bytes of a size such as "20GB" or "500 MB", or of a plain number.

    Raises:
        ConfigError: no size.
    """
    words = text.strip().upper()
    factor = next((factor for unit, factor in _UNITS.items() if words.endswith(unit)), 1)
    number = words[:-2] if factor > 1 else words
    try:
        size = float(number) * factor
    except ValueError:
        size = -1.0
    if not 0 <= size < float("inf"):
        raise ConfigError(f"--limit is {text!r}; give a size such as 20GB, 500MB or 0")
    return int(size)


def _compare(asked: argparse.Namespace) -> None:
    folders = [storage.local_path(run) for run in (asked.run_a, asked.run_b)]
    for folder in folders:
        copy_folder(folder)
    comparison = compare(*folders)
    print(comparison_markdown(comparison))
    if asked.output is not None:
        for path in write_comparison(comparison, asked.output):
            print(path)


def _manifest(asked: argparse.Namespace) -> None:
    if asked.builder is not None and not asked.splits:
        raise ConfigError(
            f"--builder {asked.builder} needs --splits, the builder's names of them, for example --splits train test"
        )
    print(write_dataset_manifest(asked.folder, builder=asked.builder, splits=asked.splits))

"""Taking rows out of a data set that is finished, and the list of them for those who hold a copy.

    python -m data_pipeline.takedown runs/laion --blocklist blocked.parquet --name 2026-11

The data set is a run's output_dir or a folder of training shards with their manifest.json. Rows are found by what is
stored of them (uid, url, host, md5, sha256, perceptual hash): no image is looked at or fetched again. Only the files
that hold such a row are written anew, and each takes the old one's place in one rename; checksums and manifests are
mended. What was taken out is counted by kind. In `takedown-NAME/`:

- `diff.removed.uids.npy`: the uids, as DataComp keeps them. It is a blocklist itself: whoever has an old copy gives it
  to this command, as Re-LAION-5B was made from LAION-5B.
- `diff.removed.parquet`: uid, key, kind, shard. No url, text or hash.
- `diff.takedown.json`: counts, and the checksums of every changed file before and after.

Pairs that were never fetched, and images of interleaved documents, have no hashes of content: they are found by uid,
url and host alone. A takedown that is killed goes on when it is run again. Of a run, `reshard/`, `report/` and `index/`
are removed, since they are made of what has changed; `stage=report` and `stage=index` make them anew.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from crawl2clip.errors import ConfigError, Crawl2ClipError, DataError
from crawl2clip.files import read_json, sha256_of
from crawl2clip.logs import setup_logging
from crawl2clip.shards import MANIFEST_NAME, read_manifest
from data_pipeline.blocklist_files import check_blocklists
from data_pipeline.executors import executor_of_command
from data_pipeline.stage import MANIFEST, Executor, Stage, finished_shards, run_stage
from data_pipeline.taggers.hamming import MAX_RADIUS
from data_pipeline.takedown_find import FindStage
from data_pipeline.takedown_steps import (
    PutInPlaceStage,
    RewriteStage,
    stage_folders,
    units_of_shards,
    units_of_stage,
)


def make_stages(root: Path, blocklist: Sequence[str], name: str, phash_distance: int) -> list[Stage]:
    """Find, rewrite, put in place.

    Raises:
        ConfigError: the name or a list cannot be used.
        DataError: the folder is not a data set.
    """
    if not name or not set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"):
        raise ConfigError(f"--name is {name!r}; give letters, digits, '.', '_' and '-', such as a date")
    if not 0 <= phash_distance <= MAX_RADIUS:
        raise ConfigError(f"--phash-distance is {phash_distance}; give 0 to {MAX_RADIUS} bits of 64")
    check_blocklists(list(blocklist), "--blocklist")
    raw = root / "raw"
    if (raw / MANIFEST).is_file():
        sources = [(shard, str(raw / f"{shard}.parquet")) for shard in finished_shards(raw)]
        # Pairs that were never fetched are in no raw shard, and an image of a document may be no pair at all.
        for folder in (root / "candidates", root / "documents"):
            shards = finished_shards(folder) if (folder / MANIFEST).is_file() else []
            sources += [(f"{folder.name}-{shard}", str(folder / f"{shard}.parquet")) for shard in shards]
        units = [unit for folder in stage_folders(root) for unit in units_of_stage(root, folder)]
        if (root / "shards" / MANIFEST_NAME).is_file():
            units += units_of_shards(root / "shards")
    elif (root / MANIFEST_NAME).is_file():
        entries = read_manifest(root)
        sources = [(Path(entry.name).stem, str(root / entry.name)) for entry in entries]
        units = list(units_of_shards(root))
    else:
        raise DataError(
            f"{root} is not a data set: it has neither raw/ of a run nor a {MANIFEST_NAME} of training shards; give "
            "a run's output_dir, or its folder shards"
        )
    settings = {"blocklist": [sha256_of(path) for path in blocklist], "phash_distance": phash_distance}
    folder = root / f"takedown-{name}"
    find, rewrite = folder / "find", folder / "rewrite"
    return [
        FindStage("takedown/find", find, settings, sources, tuple(blocklist), phash_distance),
        RewriteStage("takedown/rewrite", rewrite, settings, units, find),
        PutInPlaceStage("takedown/put_in_place", folder, settings, root, units, find, rewrite, name),
    ]


def take_down(stages: Sequence[Stage], executor: Executor) -> dict[str, int]:
    """Runs the steps; rows taken out by kind."""
    for stage in stages:
        run_stage(stage, executor, max_failed_fraction=0.0)
    return read_json(stages[-1].folder / "diff.takedown.json")["by_kind"]


def main(words: Sequence[str]) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.takedown",
        description="Takes the rows that blocklists name out of a data set, and writes the list of them.",
    )
    parser.add_argument("data", metavar="FOLDER", help="a run's output_dir, or a folder of training shards")
    parser.add_argument("--blocklist", action="append", required=True, metavar="FILE",
                        help="see python -m data_pipeline.blocklist --help; may be given several times")  # fmt: skip
    parser.add_argument("--name", required=True, help="of this takedown, for instance its date")
    parser.add_argument("--phash-distance", type=int, default=0, metavar="BITS",
                        help="bits in which a perceptual hash may differ from a listed one")  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, help="processes")
    asked = parser.parse_args(words)
    setup_logging()
    try:
        stages = make_stages(Path(asked.data), asked.blocklist, asked.name, asked.phash_distance)
        kinds = take_down(stages, executor_of_command(asked.workers))
    except Crawl2ClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    told = ", ".join(f"{count:,} by {kind}" for kind, count in kinds.items()) or "nothing"
    summary = read_json(stages[-1].folder / "diff.takedown.json")
    print(
        f"taken out: {told}; {len(summary['files']):,} files written anew; the list is in {stages[-1].folder}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

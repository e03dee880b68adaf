"""What an index was made of, and what has come since: so that shards are added to it without building it again.

The frame refuses a list of shards that is not the one it froze. An index may grow, so its steps look for themselves:
what they were made of must still be there and unchanged, then the list is frozen anew, longer. When a run is killed in
between, a list or a marker is missing, and the next run writes it.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crawl2clip import storage
from crawl2clip.errors import ConfigError
from data_pipeline.completion import read_settings
from data_pipeline.stage import MANIFEST, STATS_SUFFIX, Stage, is_finished

MOST_GROWTH = 4
"""An index is kept up to so many times the rows that it was trained for: its lists are then twice as long as those of a
new index of as many rows, and every query looks at twice as many vectors."""

_REBUILD = "delete the folder index/ of this run and run stage=index again, which builds it anew"


def shard_digest(folders: Sequence[Path], shard: str) -> str:
    """Of the records that some stages have of a shard, with the checksums of its files; of those that have one."""
    digest = hashlib.sha256()
    for folder in folders:
        try:
            record = (folder / (shard + STATS_SUFFIX)).read_bytes()
        except FileNotFoundError:
            record = b""
        digest.update(hashlib.sha256(record).digest())
    return digest.hexdigest()


def check_unchanged(plan: dict[str, Any], folders: Sequence[Path]) -> None:
    """Makes sure that every shard of a plan is there as it was planned, in all the folders.

    Raises:
        ConfigError: some are gone or have been made again; it names them and says what to do.
    """
    gone, changed = [], []
    for part in plan["parts"]:
        for shard, digest in zip(part["shards"], part["digests"], strict=True):
            if not all(is_finished(folder, shard) for folder in folders):
                gone.append(shard)
            elif shard_digest(folders, shard) != digest:
                changed.append(shard)
    for shards, words in ((gone, "are not there any more"), (changed, "have been made again since")):
        if shards:
            listed = ", ".join(shards[:3]) + (", ..." if len(shards) > 3 else "")
            raise ConfigError(
                f"{len(shards)} of the shards that the index was made of {words} ({listed}) in "
                f"{' or '.join(str(folder) for folder in folders)}. Shards can be added to an index, not changed in "
                f"it: put them back as they were, or {_REBUILD}"
            )


def check_growth(rows: int, planned_for: int) -> None:
    """Makes sure that an index has not grown too far.

    Raises:
        ConfigError: it has.
    """
    if rows > MOST_GROWTH * planned_for:
        raise ConfigError(
            f"the index was trained for {planned_for:,} rows and would now have {rows:,}; up to {MOST_GROWTH} times as "
            f"many can be added without training it again. It goes on serving what it has: {_REBUILD}"
        )


def has_own_settings(stage: Stage) -> bool:
    """Whether a stage's folder was made with the settings it now has, or by nobody yet; else the frame will refuse."""
    if not (stage.folder / MANIFEST).exists():
        return True
    return read_settings(stage.folder) == json.loads(json.dumps(storage.public(stage.settings)))


def forget(stage: Stage, *shards: str) -> None:
    """Lets the frame freeze the list of shards anew, and make some of them again."""
    for name in (*(shard + STATS_SUFFIX for shard in shards), MANIFEST):
        (stage.folder / name).unlink(missing_ok=True)

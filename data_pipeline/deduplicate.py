"""The deduplicate stage: one candidate for each (url, text) pair, or each url, in download shards.

No machine ever holds all candidates. Steps of independent shards, each of bounded size:

1. blocklist, if there is one: the lists' hashes are sorted;
2. runs: some candidate files at a time, or a part of a large one, lose their blocked rows, are deduplicated among
   themselves and written in the order of their keys, with one batch for each range of the key space;
3. earlier, if there are earlier crawls: the keys of their output are sorted;
4. ranges: each range is read from every run, which is quick since it lies in one batch of each, deduplicated, and
   compared with the earlier keys in the range; equal keys always meet in one range. It is written as download shards;
5. shards: these get their names in the stage's folder (a second link, not a copy).

A key is a hash, so ranges are of one size whatever the data, and the order of the rows mixes hosts, crawls and pages:
downloads meet many hosts at once and no host in a burst. What repeats without end costs nothing either: a key leaves a
run once. Blocked rows go first, so that another row of the same url can take the place of a blocked one, and the
counts do not depend on how files were grouped; nor does the output, since the winner is the least row by
`deduplicate_winner.WINNER_ORDER`, the earliest page's.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from crawl2clip.errors import ConfigError
from crawl2clip.files import sha256_of
from data_pipeline.blocklist_files import check_blocklists
from data_pipeline.deduplicate_keys import DeduplicateBy
from data_pipeline.deduplicate_steps import BlocklistStage, EarlierStage, RangesStage, RunsStage, ShardsStage
from data_pipeline.stage import MANIFEST, Stage, progress_of

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig


@dataclass(kw_only=True, slots=True)
class DeduplicateConfig:
    """What is kept once, what is left out, how much is sorted at once, and how large download shards are."""

    # Candidates in memory at once, at about 500 bytes each. There are as many runs as ranges, and each range reads a
    # piece of each run, so this grows with the square root of the crawl: 30 million for 40 billion candidates.
    rows_per_run: int = MISSING
    rows_per_shard: int = MISSING  # candidates of a download shard, at most
    by: DeduplicateBy = (
        DeduplicateBy.pair
    )  # pair: each (url, text) once; url: each address once, with one text
    # output_dir of earlier runs, all of them: what their deduplicated output has is left out
    earlier: list[str] = field(default_factory=list)
    blocklist: list[str] = field(
        default_factory=list
    )  # hash lists: see `python -m data_pipeline.blocklist --help`

    def __post_init__(self) -> None:
        for name in ("rows_per_run", "rows_per_shard"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"deduplicate.{name} is {value}; give 1 or more candidates")


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """The steps, in order.

    Raises:
        ConfigError: an earlier run cannot be used, or a blocklist.
    """
    asked, output_dir = config.deduplicate, Path(config.output_dir)
    folder, candidates = output_dir / "deduplicated", output_dir / "candidates"
    check_blocklists(asked.blocklist)
    earlier = _earlier_folders(asked.earlier, output_dir)
    settings = asdict(asked) | {
        "by": asked.by.value,
        "blocklist": [sha256_of(path) for path in asked.blocklist],
    }
    stages: list[Stage] = []
    blocklist = earlier_keys = None
    if asked.blocklist:
        blocklist = folder / "blocklist"
        stages.append(BlocklistStage("deduplicate/blocklist", blocklist, settings, tuple(asked.blocklist)))
    stages.append(RunsStage("deduplicate/runs", folder / "runs", settings, candidates, blocklist))
    if earlier:
        earlier_keys = folder / "earlier"
        stages.append(EarlierStage("deduplicate/earlier", earlier_keys, settings, earlier))
    ranges = RangesStage(
        "deduplicate/ranges", folder / "ranges", settings, candidates, folder / "runs", earlier_keys
    )
    return [*stages, ranges, ShardsStage("deduplicate/shards", folder, settings, folder / "ranges")]


def _earlier_folders(asked: list[str], output_dir: Path) -> tuple[Path, ...]:
    """The deduplicate folders of earlier runs, each complete."""
    folders = []
    for name in asked:
        folder = Path(name) / "deduplicated"
        what = f"deduplicate.earlier names {name}"
        if folder.resolve() == (output_dir / "deduplicated").resolve():
            raise ConfigError(f"{what}, which is this run's own output_dir; name the runs before it")
        if folder.resolve() in [other.resolve() for other in folders]:
            raise ConfigError(f"{what} twice; name each earlier run once")
        finished, total = progress_of(folder)
        if total == 0:
            raise ConfigError(
                f"{what}, but {folder / MANIFEST} is not there: give the output_dir of a run whose stage=deduplicate "
                "has finished"
            )
        if finished < total:
            raise ConfigError(
                f"{what}, whose stage=deduplicate has {finished} of {total} shards; finish that run first, or its "
                "missing rows would be taken for new ones"
            )
        folders.append(folder)
    return tuple(folders)

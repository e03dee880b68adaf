"""Heads on image embeddings: the taggers `aesthetic`, `unsafe` and `head`, which read what the clip tagger wrote.

A head is a small network from a CLIP image embedding to one number. Those that LAION published are in the catalogue
`tagger.heads` (configs/data_pipeline.yaml) with address and SHA-256; anyone's own goes there too. No image is read.
A pair whose embedding is missing keeps its row, with nulls and the reason in `<tagger>_error`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from omegaconf import MISSING

from crawl2clip.errors import ConfigError, unknown_name
from data_pipeline.embeddings import ImageEmbeddings, read_embeddings
from data_pipeline.stage import Counts, Shard, Stage
from data_pipeline.taggers.weights_file import WeightsFile

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig
    from data_pipeline.tag import TagConfig
    from data_pipeline.taggers.head_files import Head

HEAD_ERRORS = ("no_embedding", "not_finite")
"""Why a head's columns are null: the image has no embedding (see clip_error); the head gave no finite number."""

_ROWS = 65_536  # embeddings in float32 at a time


class HeadTagger(str, Enum):
    """Whose column a head fills."""

    aesthetic = "aesthetic"  # a rating, about 1 to 10
    unsafe = "unsafe"  # probability of unsafe content, 0 to 1
    head = "head"  # anything else


class HeadOutput(str, Enum):
    """What becomes of a head's last layer."""

    linear = "linear"  # nothing: the number itself
    sigmoid = "sigmoid"  # probability of the one output
    softmax = "softmax"  # probability of the last of several outputs


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    """One head of the catalogue."""

    tagger: HeadTagger = MISSING  # the tagger whose column it fills
    clip_model: str = MISSING  # name in tagger.models: the image embeddings that it was trained on
    weights: str = MISSING  # path or http(s) address; forms: see taggers/head_files.py
    sha256: str = MISSING  # of the file, 64 hex digits; a file with another hash is not loaded
    output: HeadOutput = MISSING


def chosen_heads(
    tagger: HeadTagger, catalogue: Mapping[str, HeadConfig], names: Sequence[str]
) -> dict[str, HeadConfig]:
    """The heads of one tagger, in the order in which they are named."""
    return {name: catalogue[name] for name in names if catalogue[name].tagger == tagger}


def check_heads(tagger: HeadTagger, config: "TagConfig") -> None:
    """Checks that a tagger which is asked for has a head, and the clip tagger before it.

    Raises:
        ConfigError: it has not, or it reads the embeddings of a model that is not there.
    """
    chosen = chosen_heads(tagger, config.heads, config.use_heads)
    if not chosen:
        known = ", ".join(name for name, head in config.heads.items() if head.tagger == tagger)
        raise ConfigError(
            f"the {tagger.value} tagger is asked for, but tagger.use_heads is {list(config.use_heads)}, with no head "
            f"of it; known ones: {known or 'none'}. Name one, or add your own to tagger.heads"
        )
    for name, head in chosen.items():
        check_clip_model(
            config, tagger.value, head.clip_model, f"The head {name!r} reads its image embeddings."
        )


def check_clip_model(config: "TagConfig", tagger: str, model: str | None, why: str) -> None:
    """Checks that a tagger comes after the clip tagger, and that the model whose embeddings it reads is one of its.

    Raises:
        ConfigError: not so.
    """
    if "clip" not in config.taggers[: config.taggers.index(tagger)]:
        raise ConfigError(
            f"the {tagger} tagger reads the embeddings of the clip tagger, which has to come before it; "
            f"tagger.taggers is {config.taggers}: give [clip, {tagger}]"
        )
    models = [entry.name for entry in config.models]
    if model is not None and model not in models:
        raise ConfigError(unknown_name("clip model", model, models, do=f"{why} Add it to tagger.models."))


def head_columns(tagger: HeadTagger, names: Sequence[str]) -> dict[str, Any]:
    """The columns of a tagger with these heads, with their Polars types.

    aesthetic: `aesthetic` is the first head's, and with several each has `aesthetic_<name>` too.
    unsafe: the same with `punsafe`. head: `head_<name>` each.
    """
    stem = {"aesthetic": "aesthetic", "unsafe": "punsafe", "head": "head"}[tagger.value]
    each = {f"{stem}_{name}": pl.Float32 for name in names}
    if tagger != HeadTagger.head:
        each = {stem: pl.Float32, **(each if len(names) > 1 else {})}
    return {**each, f"{tagger.value}_error": pl.String}


@dataclass
class HeadStage(Stage):
    """Runs one tagger's heads on the embeddings of raw shards."""

    name: str
    folder: Path
    settings: dict[str, Any]
    tagger: HeadTagger
    heads: dict[str, tuple[WeightsFile, HeadOutput, ImageEmbeddings]]
    max_workers: int | None = None

    def shards(self) -> Iterator[Shard]:
        """One for each shard of the clip tagger: the uids, and the embeddings of each head."""
        of_heads = [embeddings.shards() for _, _, embeddings in self.heads.values()]
        for same in zip(*of_heads, strict=True):
            yield Shard(same[0].name, (same[0].inputs[0], *dict.fromkeys(shard.inputs[1] for shard in same)))

    def setup(self) -> "dict[str, Head]":
        """Loads the heads, fetching those that are not here yet.

        Raises:
            DataError: the weights cannot be had.
            ConfigError: a head is of another width than its embeddings, or has several outputs and no softmax.
        """
        return {
            name: _loaded(name, file, output, embeddings)
            for name, (file, output, embeddings) in self.heads.items()
        }

    def run(self, context: "dict[str, Head]", shard: Shard, temporary: Path) -> Counts:
        """Tags one raw shard."""
        uids: list[str] = []
        scores: dict[str, np.ndarray] = {}
        absent: list[np.ndarray] = []
        for name, (_, output, source) in self.heads.items():
            uids, embeddings = read_embeddings(*source.files(shard.name))
            scores[name], without = _run_head(context[name], output, embeddings)
            absent.append(without)
        missing = np.any(absent, axis=0)
        not_finite = np.any([np.isnan(values) for values in scores.values()], axis=0)
        why = np.where(missing, "no_embedding", np.where(not_finite, "not_finite", "")).tolist()
        table = pl.DataFrame({"uid": pl.Series(uids, dtype=pl.String)}).with_columns(
            **{
                column: pl.Series(scores[name]).fill_nan(None)
                for column, name in _column_names(self.tagger, list(self.heads)).items()
            },
            **{f"{self.tagger.value}_error": pl.Series([reason or None for reason in why], dtype=pl.String)},
        )
        table.write_parquet(temporary / f"{shard.name}.parquet")
        counts = Counts(rows_in=len(uids), rows_out=len(uids))
        for reason in filter(None, why):
            counts.extra[f"{self.tagger.value}_{reason}"] += 1
        return counts


def _column_names(tagger: HeadTagger, names: list[str]) -> dict[str, str]:
    """column -> the head that fills it."""
    columns = [column for column in head_columns(tagger, names) if not column.endswith("_error")]
    first = columns[0]
    rest = columns if tagger == HeadTagger.head else columns[1:]
    found = dict(zip(rest, names, strict=True)) if rest else {}
    return found if tagger == HeadTagger.head else {first: names[0], **found}


def _loaded(name: str, file: WeightsFile, output: HeadOutput, embeddings: ImageEmbeddings) -> "Head":
    from data_pipeline.taggers.head_files import load_head

    head = load_head(file.path(), f"the head {name!r} ({file.place})")
    if head.width != embeddings.width:
        raise ConfigError(
            f"the head {name!r} takes embeddings of {head.width} numbers, and those of clip model "
            f"{embeddings.model!r} have {embeddings.width}; name the model that the head was trained on as "
            f"tagger.heads.{name}.clip_model"
        )
    if (head.outputs > 1) != (output == HeadOutput.softmax):
        raise ConfigError(
            f"the head {name!r} has {head.outputs} outputs, with tagger.heads.{name}.output={output.value}; softmax is "
            "for several, linear and sigmoid for one"
        )
    return head


def _run_head(head: "Head", output: HeadOutput, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [rows], NaN or infinite becoming NaN; and where there is no embedding."""
    import torch

    scores = np.full(len(embeddings), np.nan, np.float32)
    absent = np.zeros(len(embeddings), bool)
    for start in range(0, len(embeddings), _ROWS):
        part = np.asarray(embeddings[start : start + _ROWS], np.float32)
        finite = np.isfinite(part).all(axis=1)
        absent[start : start + _ROWS] = ~finite
        # float16 rounding takes the unit length off by about 1e-4.
        normalized = torch.nn.functional.normalize(torch.from_numpy(part[finite]), dim=-1)
        values = head(normalized)
        if output == HeadOutput.softmax:
            values = values.softmax(dim=-1)
        elif output == HeadOutput.sigmoid:
            values = values.sigmoid()
        found = scores[start : start + _ROWS]
        found[finite] = values[:, -1].numpy()
    scores[~np.isfinite(scores)] = np.nan
    return scores, absent


def make_head_stages(tagger: HeadTagger, config: "PipelineConfig") -> list[Stage]:
    """The stage of a tagger.

    Raises:
        ConfigError: a head of the wrong width, as far as its weights are here already.
        DataError: weights that are not there, or are not those that were named.
    """
    asked, output = config.tagger, Path(config.output_dir)
    models = asked.resolved_models()
    heads: dict[str, tuple[WeightsFile, HeadOutput, ImageEmbeddings]] = {}
    for name, head in chosen_heads(tagger, asked.heads, asked.use_heads).items():
        file = WeightsFile(head.weights, head.sha256, asked.weights_cache)
        file.check(f"the head {name!r}")
        embeddings = ImageEmbeddings(output / "tags" / "clip", models, head.clip_model)
        heads[name] = (file, head.output, embeddings)
        if file.is_here():
            _loaded(name, file, head.output, embeddings)
    settings = {
        "heads": {
            name: {"sha256": file.sha256, "output": how.value, "embeddings": embeddings.tower}
            for name, (file, how, embeddings) in heads.items()
        }
    }
    folder = output / "tags" / tagger.value
    return [HeadStage(f"tag/{tagger.value}", folder, settings, tagger, heads)]

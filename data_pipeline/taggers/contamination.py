"""The contamination tagger: pairs whose image is (nearly) one of an evaluation set.

First each set's images are hashed, as downloads are, and, where a clip model is named, embedded by it. Then each raw
shard is compared with all of them: perceptual hashes within a Hamming radius, exactly; cosines of embeddings, all
with all. A pair names the first set, in the order of the settings, and the image that it is near to.

Of a set that is there as WebDataset tars an image's name is its key; of a folder of images its path in the folder.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
from omegaconf import MISSING

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import read_json, write_json
from crawl2clip.shards import ShardFault, read_samples
from data_pipeline.clip_models import ClipModelConfig, check_models, weights_fingerprint
from data_pipeline.deduplicate_keys import hex_of_keys
from data_pipeline.embeddings import ImageEmbeddings, read_embeddings, read_uids
from data_pipeline.stage import Counts, Shard, Stage, finished_shards, stream_finished
from data_pipeline.stored_images import IMAGE_FORMATS, decode_image, image_extension
from data_pipeline.taggers.duplicate_steps import read_hashes
from data_pipeline.taggers.hamming import MAX_RADIUS, HammingIndex
from data_pipeline.taggers.heads import check_clip_model
from data_pipeline.worker_device import device_of_worker, max_model_workers

if TYPE_CHECKING:
    from PIL.Image import Image

    from data_pipeline.config import PipelineConfig
    from data_pipeline.tag import TagConfig

CONTAMINATION_COLUMNS: dict[str, Any] = {
    "contaminated_by": pl.String,  # "<set>:<image>"; null: none is near, as far as could be judged
    "contamination_error": pl.String,  # why it could not be judged in full: no_hash, no_embedding; else null
}
"""The columns that the tagger adds, with their Polars types."""

_BATCH = 64
_REFERENCES = 262_144  # reference embeddings that a shard is compared with at a time
_ROWS = 1024
_ABSENT = -2  # no embedding to compare


@dataclass(kw_only=True, slots=True)
class ContaminationConfig:
    """The evaluation sets, and what is near."""

    sets: dict[str, str] = field(default_factory=dict)  # name -> folder of images, or of WebDataset tars
    hamming_radius: int = MISSING  # see tagger.duplicates
    clip_model: str | None = (
        None  # name in tagger.models whose image embeddings are compared; null: hashes only
    )
    min_cosine: float = MISSING  # 0 to 1

    def __post_init__(self) -> None:
        if isinstance(self.hamming_radius, int) and not 0 <= self.hamming_radius <= MAX_RADIUS:
            raise ConfigError(
                f"tagger.contamination.hamming_radius is {self.hamming_radius}; give 0 to {MAX_RADIUS} bits of 64"
            )
        if isinstance(self.min_cosine, float) and not 0.0 < self.min_cosine <= 1.0:
            raise ConfigError(
                f"tagger.contamination.min_cosine is {self.min_cosine}; give above 0, at most 1"
            )
        for name in self.sets:
            if not name.isidentifier():
                raise ConfigError(
                    f"a set of tagger.contamination.sets is named {name!r}; give letters, digits and _, since the name "
                    "stands in the tags and in file names"
                )


def check_contamination(config: "TagConfig") -> None:
    """Checks that there are sets, and the clip tagger comes before where it is needed.

    Raises:
        ConfigError: not so.
    """
    asked = config.contamination
    if not asked.sets:
        raise ConfigError(
            "the contamination tagger is asked for, but tagger.contamination.sets is empty; give {name: folder of an "
            "evaluation set's images or tars}"
        )
    if asked.clip_model is not None:
        check_clip_model(
            config, "contamination", asked.clip_model, "tagger.contamination.clip_model names it."
        )


def set_files(place: str) -> list[Path]:
    """A set's tars, or else its images, sorted.

    Raises:
        DataError: there is neither.
    """
    folder = Path(place)
    tars = sorted(folder.rglob("*.tar"))
    endings = {f".{name}" for name in (*IMAGE_FORMATS, "jpeg")}
    found = tars or sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    if not found:
        raise DataError(
            f"the evaluation set {place!r} has no .tar, .jpg, .png or .webp file, or is not there; give the folder of "
            "a set's images or WebDataset tars"
        )
    return found


def set_images(place: str, counts: Counts) -> Iterator[tuple[str, "Image"]]:
    """(name, RGB image) of each image of a set; those that do not decode are counted."""

    def count_fault(fault: ShardFault) -> None:
        counts.extra[f"shard_{fault.reason}"] += 1

    for path in set_files(place):
        if path.suffix == ".tar":
            found = (
                (sample.key, sample.fields[extension], extension)
                for sample in read_samples(path, count_fault)
                if (extension := image_extension(sample.fields)) is not None
            )
        else:
            extension = path.suffix.lower()[1:].replace("jpeg", "jpg")
            found = iter([(str(path.relative_to(place)), path.read_bytes(), extension)])
        for name, data, extension in found:
            image = decode_image(data, extension)
            if image is None:
                counts.dropped["undecodable"] += 1
                continue
            yield name, image


@dataclass
class ReferencesStage(Stage):
    """Hashes and embeds the images of each evaluation set."""

    name: str
    folder: Path
    settings: dict[str, Any]
    sets: dict[str, str]
    model: ClipModelConfig | None  # model and pretrained filled in
    device: str
    precision: str
    max_workers: int | None = None

    def shards(self) -> list[Shard]:
        """One a set; its files are looked at when it runs."""
        return [Shard(name, (place,)) for name, place in self.sets.items()]

    def setup(self) -> Any:
        """The model's encoder, if there is one."""
        if self.model is None:
            return None
        from crawl2clip.encoder import load_encoder

        device = device_of_worker(self.device)
        return load_encoder(self.model.model, self.model.pretrained, device=device, precision=self.precision)

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Writes names (JSON), hashes (uint64 [N]) and, with a model, embeddings (float16 [N, D])."""
        from data_pipeline.images import perceptual_hash

        counts = Counts()
        names: list[str] = []
        hashes: list[int] = []
        features: list[np.ndarray] = []
        waiting: list[Any] = []
        for name, image in set_images(shard.inputs[0], counts):
            names.append(name)
            hashes.append(int(perceptual_hash(np.array(image)), 16))
            if context is not None:
                waiting.append(context.preprocess(image))
                if len(waiting) == _BATCH:
                    features.append(_embedded(context, waiting))
                    waiting = []
        if waiting:
            features.append(_embedded(context, waiting))
        if not names:
            raise DataError(f"no image of the evaluation set {shard.inputs[0]!r} decodes; give its images")
        write_json(temporary / f"{shard.name}.names.json", names)
        np.save(temporary / f"{shard.name}.hashes.npy", np.array(hashes, np.uint64))
        if context is not None:
            np.save(temporary / f"{shard.name}.embeddings.npy", np.concatenate(features))
        counts.extra["reference_images"] = len(names)
        return counts


def _embedded(encoder: Any, images: list[Any]) -> np.ndarray:
    import torch

    return encoder.encode_images(torch.stack(images)).numpy().astype(np.float16)


class References(NamedTuple):
    """All sets' images, one after the other.

    Attributes:
        names: "<set>:<image>".
        hashes: to be asked.
        embeddings: float16 [N, D], on the CPU; None without a model.
        device: where cosines are computed.
    """

    names: list[str]
    hashes: HammingIndex
    embeddings: np.ndarray | None
    device: Any


@dataclass
class ContaminationStage(Stage):
    """Compares raw shards with the evaluation sets."""

    name: str
    folder: Path
    settings: dict[str, Any]
    raw: Path  # the download stage's folder
    references: Path
    source: ImageEmbeddings | None
    device: str
    max_workers: int | None = None

    def shards(self) -> Iterator[Shard]:
        """One for each complete raw shard."""
        manifest = str(self.references / "manifest.json")
        for name in stream_finished(self.raw):
            embedded = () if self.source is None else self.source.files(name)
            yield Shard(name, (str(self.raw / f"{name}.parquet"), manifest, *embedded))

    def setup(self) -> References:
        """Loads the sets' hashes and embeddings."""
        sets = finished_shards(self.references)
        names = [
            f"{name}:{image}" for name in sets for image in read_json(self.references / f"{name}.names.json")
        ]
        hashes = np.concatenate([np.load(self.references / f"{name}.hashes.npy") for name in sets])
        embeddings = None
        if self.source is not None:
            embeddings = np.concatenate(
                [np.load(self.references / f"{name}.embeddings.npy") for name in sets]
            )
        index = HammingIndex(hashes, self.settings["hamming_radius"])
        return References(
            names, index, embeddings, device_of_worker("cpu" if embeddings is None else self.device)
        )

    def run(self, context: References, shard: Shard, temporary: Path) -> Counts:
        """Tags one raw shard."""
        rows = read_hashes(shard.inputs[0])
        uids = hex_of_keys(rows["high"], rows["low"]).to_pylist()
        none = len(context.names)
        found = np.where(rows["has_near"], context.hashes.first_within(rows["hash"]), -1)
        found = np.where(found < 0, none, found)
        why = np.full(len(uids), None, object)
        why[~rows["has_near"]] = "no_hash"
        if context.embeddings is not None:
            embedded = {uid: place for place, uid in enumerate(read_uids(shard.inputs[2]))}
            places = np.array([embedded.get(uid, -1) for uid in uids], np.int64)
            close = self._first_close(context, shard, places)
            why[close == _ABSENT] = "no_embedding"
            found = np.minimum(found, np.where(close < 0, none, close))
        names = [context.names[place] if place < none else None for place in found.tolist()]
        table = pl.DataFrame(
            {
                "uid": uids,
                "contaminated_by": names,
                "contamination_error": why.tolist(),
            },
            schema={"uid": pl.String, **CONTAMINATION_COLUMNS},
        )
        table.write_parquet(temporary / f"{shard.name}.parquet")
        counts = Counts(rows_in=len(table), rows_out=len(table))
        for name in filter(None, names):
            counts.extra[f"contaminated_by_{name.partition(':')[0]}"] += 1
        for reason in filter(None, why.tolist()):
            counts.extra[f"contamination_{reason}"] += 1
        return counts

    def _first_close(self, context: References, shard: Shard, places: np.ndarray) -> np.ndarray:
        """int64 [rows]: the first reference whose cosine is large enough; -1 for none, _ABSENT without an embedding.

        Args:
            context: the references.
            shard: with the files of its embeddings.
            places: int64 [rows], where each row's embedding is; -1 where it is not.
        """
        import torch

        assert context.embeddings is not None
        _, embeddings = read_embeddings(*shard.inputs[2:])
        features = np.full((len(places), embeddings.shape[1]), np.nan, np.float32)
        features[places >= 0] = embeddings[places[places >= 0]]
        there = np.flatnonzero(np.isfinite(features).all(axis=1))
        result = np.full(len(places), _ABSENT, np.int64)
        result[there] = -1
        for start in range(0, len(context.embeddings), _REFERENCES):
            part = torch.from_numpy(
                np.asarray(context.embeddings[start : start + _REFERENCES], np.float32)
            ).to(context.device)
            part = torch.nn.functional.normalize(part, dim=-1)
            left = there[result[there] < 0]
            for block in np.array_split(left, max(1, -(-len(left) // _ROWS))):
                rows = torch.nn.functional.normalize(
                    torch.from_numpy(features[block]).to(context.device), dim=-1
                )
                close = rows @ part.T >= self.settings["min_cosine"]
                hit = close.any(dim=1).cpu().numpy()
                result[block[hit]] = start + close.int().argmax(dim=1).cpu().numpy()[hit]
        return result


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """The steps, in order.

    Raises:
        DataError: a set has no image.
    """
    tagger, output = config.tagger, Path(config.output_dir)
    asked, folder = tagger.contamination, output / "tags" / "contamination"
    model = source = None
    if asked.clip_model is not None:
        models = tagger.resolved_models()
        check_models(models)
        source = ImageEmbeddings(output / "tags" / "clip", models, asked.clip_model)
        model = next(entry for entry in models if entry.name == asked.clip_model)
    for place in asked.sets.values():
        set_files(place)
    settings = {
        "sets": dict(asked.sets),
        "embeddings": None if source is None else source.tower,
        "weights_sha256": None if model is None else weights_fingerprint(model.pretrained),
    }
    near = settings | {"hamming_radius": asked.hamming_radius, "min_cosine": asked.min_cosine}
    workers = max_model_workers(tagger.device) if source is not None else None
    references = ReferencesStage(
        "tag/contamination/references", folder / "references", settings, dict(asked.sets), model,
        tagger.device, tagger.precision, workers,
    )  # fmt: skip
    compare = ContaminationStage(
        "tag/contamination",
        folder,
        near,
        output / "raw",
        folder / "references",
        source,
        tagger.device,
        workers,
    )
    return [references, compare]

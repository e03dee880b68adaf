"""Tagging: columns by uid, one verdict a stored pair, and settings that cannot work refused before any work."""

import io
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from crawl2clip.encoder import load_encoder
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.export import export_model
from crawl2clip.models import ModelConfig, build_model
from crawl2clip.schema import DOWNLOAD_SCHEMA, uid_of
from crawl2clip.shards import ShardWriter
from data_pipeline.clip_models import ClipModelConfig
from data_pipeline.language import LanguageDetector
from data_pipeline.stage import make_shard
from data_pipeline.tag import TagConfig, known_columns, make_stages, tag_columns

NAME = "00000000"
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
CAPTIONS = (
    "a photo of a cat",
    "ein Bild von einem Hund im Garten",
    "3.14",
    "the red house on the hill",
    "猫の写真です",
)


def export(folder, seed=0):
    torch.manual_seed(seed)
    config = ModelConfig(name="tiny", architecture=ARCHITECTURE)
    export_model(build_model(config), config, folder, provenance={})
    return str(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return export(tmp_path_factory.mktemp("weights"))


def png(seed, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(256, size=(20, 24, len(mode)), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_raw(output, images, *, statuses=None):
    """One raw shard with CAPTIONS; an image of None is left out of the tar. Returns the uids."""
    raw = output / "raw"
    raw.mkdir(parents=True)
    uids = [uid_of(f"http://a.b/{index}", text) for index, text in enumerate(CAPTIONS)]
    blank = {**dict.fromkeys(DOWNLOAD_SCHEMA.names), "url": "", "text_source": "alt"}
    statuses = statuses or ["success"] * len(uids)
    rows = [
        {**blank, "uid": u, "text": t, "status": s} for u, t, s in zip(uids, CAPTIONS, statuses, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA), raw / f"{NAME}.parquet")
    with ShardWriter(raw / f"{NAME}.tar") as writer:
        for uid, image in zip(uids, images, strict=True):
            if image is not None:
                writer.write(uid, {"png": image, "txt": b"the parquet's text counts", "json": b"{}"})
    (raw / f"{NAME}.stats.json").write_text("{}")
    (raw / "manifest.json").write_text(json.dumps({"shards": [{"name": NAME}]}))
    return uids


def config_of(weights=None, models=(), taggers=("language", "clip"), **more):
    settings = {
        "language_detector": LanguageDetector.fasttext, "min_language_probability": 0.5,
        "device": "cpu", "precision": "fp32", "image_batch_size": 2, "decode_margin": 2.0, "weights_cache": "unused",
    }  # fmt: skip
    models = [ClipModelConfig(**model) for model in models]
    return TagConfig(taggers=list(taggers), pretrained=weights, models=models, **{**settings, **more})


def tag(output, config):
    """Runs the taggers on the one shard; returns their tables and the clip stage's counts."""
    tables, counts = {}, None
    for stage in make_stages(SimpleNamespace(output_dir=str(output), tagger=config)):
        stage.folder.mkdir(parents=True, exist_ok=True)
        (shard,) = stage.shards()
        make_shard(stage, stage.setup(), shard, stage.folder / ".tmp")
        for path in (stage.folder / ".tmp").iterdir():
            path.rename(stage.folder / path.name)
        tagger = stage.folder.name
        tables[tagger] = pl.read_parquet(stage.folder / f"{NAME}.parquet")
        counts = json.loads((stage.folder / f"{NAME}.stats.json").read_text())["counts"]
        assert tables[tagger].columns == ["uid", *tag_columns(config)[tagger]]
        assert dict(tables[tagger].schema) == {"uid": pl.String, **tag_columns(config)[tagger]}
    return tables, counts


def scores_by_hand(weights, images, captions):
    encoder = load_encoder(None, weights)
    pixels = [encoder.preprocess(Image.open(io.BytesIO(image)).convert("RGB")) for image in images]
    features = encoder.encode_images(torch.stack(pixels))
    return features, (features * encoder.encode_texts(captions)).sum(dim=1)


def test_language_buckets(tmp_path):
    uids = write_raw(tmp_path, [None] * 5)
    table = tag(tmp_path, config_of(taggers=["language"]))[0]["language"]
    assert table["uid"].to_list() == uids
    assert table["language_bucket"].to_list() == ["en", "other", "unknown", "en", "other"]
    assert table["language"].to_list() == ["en", "de", None, "en", "ja"]
    assert table["language_probability"].is_between(0, 1.001).all()


def test_scores_are_the_cosine_in_float32(tmp_path, weights):
    images = [png(seed) for seed in range(5)]
    uids = write_raw(tmp_path, images)
    tables, counts = tag(tmp_path, config_of(weights, [{"name": "tiny"}], ["clip"]))
    features, expected = scores_by_hand(weights, images, CAPTIONS)
    table = tables["clip"]
    assert table["uid"].to_list() == uids
    np.testing.assert_allclose(table["clip_score"].to_numpy(), expected.numpy(), atol=1e-6)
    assert table["clip_score_tiny"].equals(table["clip_score"])
    assert table["clip_model"].unique().to_list() == ["tiny"]
    assert table["clip_error"].null_count() == 5
    embeddings = np.load(tmp_path / "tags" / "clip" / f"{NAME}.image.tiny.npy")
    assert embeddings.dtype == np.float16
    np.testing.assert_allclose(embeddings, features.numpy(), atol=1e-3)
    assert counts == {"rows_in": 5, "rows_out": 5, "dropped": {}, "extra": {}}


def test_a_pair_without_a_usable_image_keeps_its_row_and_says_why(tmp_path, weights):
    images = [png(0), b"not an image", None, png(3)[:200], png(4)]
    write_raw(tmp_path, images)
    tables, counts = tag(tmp_path, config_of(weights, [{"name": "tiny"}], ["clip"]))
    table = tables["clip"]
    assert table["clip_error"].to_list() == [None, "undecodable", "missing_image", "undecodable", None]
    assert table["clip_score"].is_null().to_list() == [False, True, True, True, False]
    embeddings = np.load(tmp_path / "tags" / "clip" / f"{NAME}.image.tiny.npy")
    assert np.isnan(embeddings).all(axis=1).tolist() == [False, True, True, True, False]
    assert counts["extra"] == {"no_score_missing_image": 1, "no_score_undecodable": 2}


def test_only_stored_pairs_are_tagged(tmp_path, weights):
    statuses = ["success", "timeout", "success", "success", "http_error"]
    uids = write_raw(tmp_path, [png(seed) for seed in range(5)], statuses=statuses)
    tables, counts = tag(tmp_path, config_of(weights, [{"name": "tiny"}]))
    for table in tables.values():
        assert table["uid"].to_list() == [uids[0], uids[2], uids[3]]
    assert counts["extra"] == {"shard_unlisted_sample": 2}


def test_a_truncated_tar_costs_what_was_cut_off(tmp_path, weights):
    write_raw(tmp_path, [png(seed) for seed in range(5)])
    tar = tmp_path / "raw" / f"{NAME}.tar"
    tar.write_bytes(tar.read_bytes()[:7000])
    tables, counts = tag(tmp_path, config_of(weights, [{"name": "tiny"}], ["clip"]))
    missing = tables["clip"]["clip_error"].to_list().count("missing_image")
    assert 0 < missing < 5
    assert counts["extra"] == {"shard_truncated": 1, "no_score_missing_image": missing}


class TextModel:
    """Has sentence-transformers' interface: a fixed direction for each text, of any dimension."""

    loaded: list[tuple[str, str]] = []
    dimensions = 16

    def __init__(self, name, device):
        if name == "not-cached":
            raise OSError("We couldn't connect to 'https://huggingface.co'\nmore")
        self.loaded.append((name, device))

    def encode(self, texts, *, convert_to_tensor, normalize_embeddings, show_progress_bar):
        assert convert_to_tensor
        assert normalize_embeddings
        features = torch.ones(len(texts), self.dimensions, dtype=torch.float64)
        return torch.nn.functional.normalize(features, dim=-1)


@pytest.fixture
def sentence_transformers(monkeypatch):
    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = TextModel
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.setattr(TextModel, "loaded", [])


ENGLISH = {"name": "english", "languages": ["en"]}
MULTILINGUAL = {"name": "mclip", "text_model": "st/multilingual", "languages": ["other", "unknown"]}


def test_each_language_is_scored_by_its_own_text_tower(tmp_path, weights, sentence_transformers, monkeypatch):
    images = [png(seed) for seed in range(5)]
    write_raw(tmp_path, images)
    stage = make_stages(
        SimpleNamespace(output_dir=str(tmp_path), tagger=config_of(weights, [ENGLISH, MULTILINGUAL]))
    )[1]
    assert len(stage.setup().image_towers) == 1  # both compare with the same image features
    TextModel.loaded.clear()
    table = tag(tmp_path, config_of(weights, [ENGLISH, MULTILINGUAL]))[0]["clip"]
    assert TextModel.loaded == [("st/multilingual", "cpu")]
    features, english = scores_by_hand(weights, images, CAPTIONS)
    other = features.sum(dim=1) / 4
    expected = [english[0], other[1], other[2], english[3], other[4]]
    np.testing.assert_allclose(
        table["clip_score"].to_numpy(), [float(value) for value in expected], atol=1e-6
    )
    assert table["clip_model"].to_list() == ["english", "mclip", "mclip", "english", "mclip"]
    assert table["clip_score_english"].is_null().to_list() == [False, True, True, False, True]
    assert table["clip_score_mclip"].is_null().to_list() == [True, False, False, True, False]


def test_a_language_that_no_model_scores_says_so(tmp_path, weights):
    write_raw(tmp_path, [png(seed) for seed in range(5)])
    table = tag(tmp_path, config_of(weights, [ENGLISH]))[0]["clip"]
    lacking = "no_model_for_language"
    assert table["clip_error"].to_list() == [None, lacking, lacking, None, lacking]


def test_several_image_towers_in_one_pass(tmp_path, weights, tmp_path_factory):
    second = export(tmp_path_factory.mktemp("second"), seed=1)
    images = [png(seed) for seed in range(5)]
    write_raw(tmp_path, images)
    models = [{"name": "first"}, {"name": "second", "pretrained": second}]
    table = tag(tmp_path, config_of(weights, models, ["clip"]))[0]["clip"]
    for name, path in (("first", weights), ("second", second)):
        features, expected = scores_by_hand(path, images, CAPTIONS)
        np.testing.assert_allclose(table[f"clip_score_{name}"].to_numpy(), expected.numpy(), atol=1e-6)
        file = f"{NAME}.image.{name}.npy"
        np.testing.assert_allclose(np.load(tmp_path / "tags" / "clip" / file), features.numpy(), atol=1e-3)
    assert table["clip_score"].equals(table["clip_score_first"])


def test_transparent_parts_are_white(tmp_path, weights):
    clear = np.random.default_rng(0).integers(256, size=(20, 24, 4), dtype=np.uint8)
    clear[..., 3] = 0
    buffer, white = io.BytesIO(), io.BytesIO()
    Image.fromarray(clear).save(buffer, "png")
    Image.new("RGB", (24, 20), "white").save(white, "png")
    write_raw(tmp_path, [buffer.getvalue(), white.getvalue(), None, None, None])
    tag(tmp_path, config_of(weights, [{"name": "tiny"}], ["clip"]))
    first, second = np.load(tmp_path / "tags" / "clip" / f"{NAME}.image.tiny.npy")[:2]
    assert (first == second).all()


def test_new_weights_at_an_old_path_are_noticed(tmp_path):
    def settings(seed):
        path = export(tmp_path / "weights", seed)
        tagger = config_of(path, [{"name": "tiny"}], ["clip"])
        return make_stages(SimpleNamespace(output_dir=str(tmp_path), tagger=tagger))[0].settings

    assert settings(0) != settings(1)


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (
            {"model": "ViT-B-32", "pretrained": "opnai"},
            ConfigError,
            r"weights for ViT-B-32 'opnai'; did you mean 'openai'",
        ),
        (
            {"model": "ViT-B-23", "pretrained": "openai"},
            ConfigError,
            r"unknown model 'ViT-B-23'; did you mean 'ViT-B-32'.*'openai' of clip model 'x' needs tagger\.model=",
        ),
        (
            {"pretrained": "openai"},
            ConfigError,
            r"no architecture is named for clip model 'x'; its tag 'openai' needs tagger\.model=",
        ),
        (
            {"pretrained": "runs/filter/export"},
            DataError,
            r"'runs/filter/export' of clip model 'x' do not exist",
        ),
        ({"pretrained": "filter.safetensors"}, DataError, r"do not exist"),
        ({}, ConfigError, r"no weights are named for clip model 'x'; give tagger\.pretrained"),
    ],
)
def test_weights_that_cannot_be_there_are_refused_before_work(tmp_path, model, kind, words):
    tagger = config_of(None, [{"name": "x", **model}], ["clip"])
    with pytest.raises(kind, match=words):
        make_stages(SimpleNamespace(output_dir=str(tmp_path), tagger=tagger))


def test_a_text_tower_without_its_package_names_the_extra(tmp_path, weights, monkeypatch):
    monkeypatch.delitem(sys.modules, "sentence_transformers", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tagger = config_of(weights, [ENGLISH, MULTILINGUAL])
    with pytest.raises(
        ConfigError, match=r"'st/multilingual' needs the package sentence-transformers.*\[multilingual\]"
    ):
        make_stages(SimpleNamespace(output_dir=str(tmp_path), tagger=tagger))


def test_a_text_tower_that_is_not_cached_says_what_to_do(tmp_path, weights, sentence_transformers):
    write_raw(tmp_path, [None] * 5)
    models = [{**ENGLISH}, {**MULTILINGUAL, "text_model": "not-cached"}]
    with pytest.raises(DataError, match=r"'not-cached' is not in the local cache.*HF_HUB_OFFLINE=0"):
        tag(tmp_path, config_of(weights, models))


def test_a_text_tower_of_another_width_is_refused(tmp_path, weights, sentence_transformers, monkeypatch):
    monkeypatch.setattr(TextModel, "dimensions", 512)
    write_raw(tmp_path, [png(seed) for seed in range(5)])
    with pytest.raises(ConfigError, match=r"'st/multilingual' gives 512 dimensions, the image tower .* 16"):
        tag(tmp_path, config_of(weights, [ENGLISH, MULTILINGUAL]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"taggers": ["langage"]},
            r"unknown tagger 'langage'; did you mean 'language'\? Known: aesthetic, clip, .*watermark, zero_shot\.",
        ),
        (
            {"taggers": ["clip", "clip"], "models": [{"name": "a"}]},
            r"names a tagger twice: clip, clip; name each once",
        ),
        ({"taggers": ["clip"]}, r"tagger\.models is empty"),
        ({"taggers": ["clip"], "models": [ENGLISH]}, r"needs the language tagger first"),
        ({"taggers": ["clip", "language"], "models": [ENGLISH]}, r"needs the language tagger first"),
        ({"models": [{"name": "a"}, {"name": "a"}]}, r"several entries of one name"),
        (
            {"weights": "x", "models": [{"name": "a", "model": "RN50"}]},
            r"every entry of tagger\.models names its own",
        ),
        ({"taggers": ["language"], "image_batch_size": 0}, r"tagger\.image_batch_size is 0"),
        ({"taggers": ["language"], "min_language_probability": 1.5}, r"min_language_probability is 1\.5"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        config_of(**settings)


def test_a_clip_model_needs_a_plain_name_and_known_languages():
    with pytest.raises(ConfigError, match="the name becomes a column"):
        ClipModelConfig(name="ViT-B/32")
    with pytest.raises(ConfigError, match="language bucket of clip model 'a' 'eng'; did you mean 'en'"):
        ClipModelConfig(name="a", languages=["eng"])


def test_known_columns_are_those_of_the_taggers_asked_for():
    assert "clip_score" not in known_columns(config_of(taggers=["language"]), pl.Schema({"url": pl.String}))
    known = known_columns(config_of("x", [{"name": "tiny"}], ["clip"]), pl.Schema({"url": pl.String}))
    assert {"url", "clip_score", "clip_score_tiny", "clip_error"} <= set(known)

"""Taggers on images and their embeddings: zero-shot, clusters, contamination, watermarks, and the batches they see."""

import hashlib
import io
import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from sample_images import image_file
from tag_runs import CAPTIONS, NAME, config_of, export, png, tag, write_raw
from torchvision import transforms

from crawl2clip.encoder import load_encoder
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.shards import ShardWriter
from data_pipeline.image_decode import decode, fast_dct_size
from data_pipeline.images import perceptual_hash
from data_pipeline.pixel_batches import PixelBatches, view_of
from data_pipeline.prefetch import Prefetched
from data_pipeline.stage import MANIFEST
from data_pipeline.tag import make_stages
from data_pipeline.taggers.contamination import ContaminationConfig
from data_pipeline.taggers.image_cluster import ImageClusterConfig
from data_pipeline.taggers.watermark import WatermarkConfig, WatermarkNet
from data_pipeline.taggers.weights_file import WeightsFile
from data_pipeline.taggers.zero_shot import PromptSetConfig, ZeroShotConfig

WIDTH = 16  # of tag_runs' tiny model
MODEL = [{"name": "tiny"}]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return export(tmp_path_factory.mktemp("weights"))


def stored(output):
    """The image embeddings that the clip tagger wrote, float32."""
    return np.load(output / "tags" / "clip" / f"{NAME}.image.tiny.npy").astype(np.float32)


def test_zero_shot_counts_the_flagged_among_the_best(tmp_path, weights):
    sets = {
        "nsfw": PromptSetConfig(
            top=2, plain=["a house", "a tree", "a cat"], flagged=["red", "blue", "green"]
        ),
        "animal": PromptSetConfig(top=1, plain=["a stone"], flagged=["a dog"]),
    }
    uids = write_raw(tmp_path, [png(seed) for seed in range(4)] + [b"broken"])
    config = config_of(weights, MODEL, ["clip", "zero_shot"], zero_shot=ZeroShotConfig(sets=sets))
    table = tag(tmp_path, config)[0]["zero_shot"]
    encoder, features = load_encoder(None, weights), stored(tmp_path)[:4]
    for name, asked in sets.items():
        prompts = encoder.encode_texts([*asked.plain, *asked.flagged]).numpy()
        best = np.argsort(-(features @ prompts.T), axis=1)[:, : asked.top]
        counts = [*(best >= len(asked.plain)).sum(axis=1).tolist(), None]
        assert table[f"zero_shot_{name}"].to_list() == counts
        if name == "nsfw":
            words = {0: "UNLIKELY", 1: "UNSURE", 2: "NSFW", None: None}
            assert table["nsfw"].to_list() == [words[count] for count in counts]
    assert table["uid"].to_list() == uids
    assert table["zero_shot_error"].to_list() == [None] * 4 + ["no_embedding"]


def test_zero_shot_settings():
    with pytest.raises(ConfigError, match="looks at the top 3 of 2 prompts"):
        PromptSetConfig(top=3, plain=["a"], flagged=["b"])
    with pytest.raises(ConfigError, match=r"tagger\.zero_shot\.sets is empty"):
        config_of("x", MODEL, ["clip", "zero_shot"])
    with pytest.raises(ConfigError, match=r"tagger\.zero_shot is named 'Not This'"):
        ZeroShotConfig(sets={"Not This": PromptSetConfig(top=1, plain=["a"])})


def test_laions_prompts_are_those_that_its_workers_compared():
    from omegaconf import OmegaConf

    from crawl2clip.config import CONFIG_DIR

    sets = OmegaConf.load(CONFIG_DIR / "zero_shot" / "laion400m.yaml")["sets"]
    sizes = {name: (entry.top, len(entry.plain), len(entry.flagged)) for name, entry in sets.items()}
    assert sizes == {"nsfw": (2, 19, 16), "underage": (2, 4, 4), "animal": (1, 21, 12)}


@pytest.mark.parametrize("by_embedding", [True, False])
def test_the_nearest_centroid_and_imagenets_clusters(tmp_path, weights, by_embedding):
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(7, WIDTH)).astype(np.float32) * rng.uniform(0.5, 2, (7, 1)).astype(
        np.float32
    )
    imagenet = rng.normal(size=(3, WIDTH)).astype(np.float16)
    of_imagenet = set((imagenet.astype(np.float32) @ centroids.T).argmax(axis=1).tolist())
    np.save(tmp_path / "centroids.npy", centroids)
    np.save(tmp_path / "imagenet.npy", imagenet if by_embedding else np.array(sorted(of_imagenet)))
    uids = write_raw(tmp_path, [png(0), None, png(2), png(3), png(4)])
    asked = ImageClusterConfig(
        centroids=str(tmp_path / "centroids.npy"), imagenet=str(tmp_path / "imagenet.npy")
    )
    config = config_of(weights, MODEL, ["clip", "image_cluster"], image_cluster=asked)
    table = tag(tmp_path, config)[0]["image_cluster"]
    there = [0, 2, 3, 4]
    nearest = (stored(tmp_path)[there] @ centroids.T).argmax(axis=1)
    assert table["uid"].to_list() == uids
    assert table["image_cluster"].drop_nulls().to_list() == nearest.tolist()
    assert table["imagenet_cluster"].drop_nulls().to_list() == [
        each in of_imagenet for each in nearest.tolist()
    ]
    assert table["image_cluster_error"].to_list() == [None, "no_embedding", None, None, None]


def test_cluster_files_that_do_not_fit(tmp_path, weights):
    write_raw(tmp_path, [png(0)] * 5)
    np.save(tmp_path / "c.npy", np.ones((4, 9), np.float32))
    np.save(tmp_path / "good.npy", np.ones((4, WIDTH), np.float32))
    np.save(tmp_path / "ids.npy", np.array([1, 4]))
    for centroids, imagenet, words in (
        ("c.npy", "ids.npy", r"is float32 \[4, 9\], and the embeddings of clip model 'tiny' have 16 numbers"),
        ("good.npy", "ids.npy", r"or cluster numbers, int \[M\], 0 to 3"),
        ("good.npy", "nowhere.npy", "cannot be read as a numpy array"),
    ):
        asked = ImageClusterConfig(centroids=str(tmp_path / centroids), imagenet=str(tmp_path / imagenet))
        config = config_of(weights, MODEL, ["clip", "image_cluster"], image_cluster=asked)
        with pytest.raises(DataError, match=words):
            tag(tmp_path, config)
    with pytest.raises(ConfigError, match=r"needs tagger\.image_cluster\.centroids"):
        config_of(weights, MODEL, ["clip", "image_cluster"])


# Contamination


def hash_of(data):
    return perceptual_hash(decode(data, "png", 10**6)[0])


def near(phash, bits):
    return f"{int(phash, 16) ^ ((1 << bits) - 1):016x}"


def test_images_of_evaluation_sets_are_found_by_hash_and_by_embedding(tmp_path, weights):
    (tmp_path / "sets" / "photos" / "a").mkdir(parents=True)
    (tmp_path / "sets" / "photos" / "a" / "one.png").write_bytes(png(0))
    (tmp_path / "sets" / "photos" / "bad.png").write_bytes(b"not an image")
    (tmp_path / "sets" / "tars").mkdir()
    with ShardWriter(tmp_path / "sets" / "tars" / "0.tar") as writer:
        writer.write("key7", {"png": png(3), "cls": b"1"})
    phashes = [near(hash_of(png(0)), 3), near(hash_of(png(0)), 4), "f" * 16, None, None]
    images = [png(5), png(6), png(7), png(3), png(8)]  # the fourth is a set's by its embedding
    uids = write_raw(tmp_path, images, phash=phashes)
    sets = {"photos": str(tmp_path / "sets" / "photos"), "tars": str(tmp_path / "sets" / "tars")}
    asked = ContaminationConfig(sets=sets, hamming_radius=3, min_cosine=0.9999, clip_model="tiny")
    config = config_of(weights, MODEL, ["clip", "contamination"], contamination=asked)
    tables, counts = tag(tmp_path, config)
    table = tables["contamination"]
    assert table["uid"].to_list() == uids
    assert table["contaminated_by"].to_list() == ["photos:a/one.png", None, None, "tars:key7", None]
    assert table["contamination_error"].to_list() == [None, None, None, "no_hash", "no_hash"]
    assert counts["extra"] == {
        "contaminated_by_photos": 1, "contaminated_by_tars": 1, "contamination_no_hash": 2,
    }  # fmt: skip
    stats = json.loads((tmp_path / "tags" / "contamination" / "references" / "photos.stats.json").read_text())
    assert stats["counts"]["dropped"] == {"undecodable": 1}


def test_contamination_by_hash_alone_needs_no_model(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x.png").write_bytes(png(1))
    write_raw(tmp_path, [None] * 5, phash=[hash_of(png(1)), None, "zz", "0" * 16, near(hash_of(png(1)), 1)])
    asked = ContaminationConfig(sets={"s": str(tmp_path / "set")}, hamming_radius=0, min_cosine=1.0)
    table = tag(tmp_path, config_of(taggers=["contamination"], contamination=asked))[0]["contamination"]
    assert table["contaminated_by"].to_list() == ["s:x.png", None, None, None, None]
    assert table["contamination_error"].to_list() == [None, "no_hash", "no_hash", None, None]


def test_evaluation_sets_that_are_not_there(tmp_path):
    write_raw(tmp_path, [None] * 5)
    asked = ContaminationConfig(sets={"s": str(tmp_path / "none")}, hamming_radius=0, min_cosine=1.0)
    with pytest.raises(DataError, match=r"the evaluation set .* has no \.tar, \.jpg"):
        tag(tmp_path, config_of(taggers=["contamination"], contamination=asked))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no image of the evaluation set .* decodes"):
        tag(tmp_path, config_of(taggers=["contamination"], contamination=asked))
    with pytest.raises(ConfigError, match=r"tagger\.contamination\.sets is empty"):
        config_of(taggers=["contamination"])


# Watermarks


@pytest.fixture(scope="module")
def watermark_weights(tmp_path_factory):
    """A file in the published form: efficientnet_b3a's state with its head, under `weights`."""
    import timm
    from torch import nn

    torch.manual_seed(0)
    network = timm.create_model("efficientnet_b3", num_classes=2)
    network.classifier = nn.Sequential(
        nn.Linear(1536, 625), nn.ReLU(), nn.Dropout(0.3), nn.Linear(625, 256), nn.ReLU(), nn.Linear(256, 2)
    )
    path = tmp_path_factory.mktemp("watermark") / "model.pt"
    torch.save({"weights": network.state_dict()}, path)
    return path, network.eval()


def watermark_config(path, **more):
    return WatermarkConfig(weights=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest(), **more)


def test_watermarks_with_the_clip_tagger_and_alone_are_the_same(tmp_path, weights, watermark_weights):
    path, network = watermark_weights
    images = [png(0), b"broken", None, png(3), None]
    tables = {}
    for name, taggers in (("with", ["clip", "watermark"]), ("alone", ["watermark"])):
        write_raw(tmp_path / name, images)
        config = config_of(weights, MODEL, taggers, watermark=watermark_config(path))
        tables[name] = tag(tmp_path / name, config)[0]["watermark"]
    assert tables["with"].equals(tables["alone"])
    table = tables["with"]
    assert table["watermark_error"].to_list() == [None, "undecodable", "missing_image", None, "missing_image"]
    # LAION's own preprocessing and output.
    preprocess = transforms.Compose([
        transforms.Resize((256, 256)), transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip
    batch = torch.stack([preprocess(Image.open(io.BytesIO(images[row]))) for row in (0, 3)])
    with torch.inference_mode():
        expected = network(batch).softmax(dim=1)[:, 0]
    np.testing.assert_allclose(table["pwatermark"].drop_nulls(), expected, atol=1e-5)
    assert (tmp_path / "with" / "tags" / "clip" / f"{NAME}.watermark.npy").is_file()


def test_a_watermark_tagger_that_comes_later_leaves_the_clip_tags_alone(tmp_path, weights, watermark_weights):
    write_raw(tmp_path, [png(seed) for seed in range(5)])
    tag(tmp_path, config_of(weights, MODEL, ["clip"]))
    before = (tmp_path / "tags" / "clip" / MANIFEST).read_bytes()
    config = config_of(
        weights, MODEL, ["clip", "watermark"], watermark=watermark_config(watermark_weights[0])
    )
    clip, watermark = make_stages(SimpleNamespace(output_dir=str(tmp_path), tagger=config))
    assert (clip.watermark, watermark.clip) == (None, None)
    assert (tmp_path / "tags" / "clip" / MANIFEST).read_bytes() == before


def test_watermark_weights_of_another_network(tmp_path):
    torch.save({"weights": {"a": torch.ones(1)}}, tmp_path / "w.pt")
    asked = watermark_config(tmp_path / "w.pt")
    with pytest.raises(DataError, match="are not those of efficientnet_b3a with its head"):
        WatermarkNet(WeightsFile(asked.weights, asked.sha256, "unused"), torch.device("cpu"), "fp32")
    write_raw(tmp_path, [None] * 5)
    with pytest.raises(ConfigError, match=r"needs tagger\.watermark\.weights and tagger\.watermark\.sha256"):
        tag(tmp_path, config_of(taggers=["watermark"]))


# The batches


def preprocess(size):
    return transforms.Compose([
        transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size),
        transforms.ToTensor(), transforms.Normalize([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
    ])  # fmt: skip


def batches_of(tmp_path, images, views, **more):
    with ShardWriter(tmp_path / "a.tar") as writer:
        for number, (extension, image) in enumerate(images):
            writer.write(f"k{number}", {extension: image})
    given = {
        "batch_size": 3, "decode_margin": None, "threads": 2, "device": torch.device("cpu"),
        "on_fault": lambda fault: None, "on_unlisted": lambda: None,
    }  # fmt: skip
    row_of = {f"k{number}": number for number in range(len(images))}
    return PixelBatches(str(tmp_path / "a.tar"), row_of, views, **{**given, **more})


def test_a_batch_is_bit_for_bit_what_torchvision_makes(tmp_path):
    files = [("jpg", image_file(90, 60, seed=seed, quality=90)) for seed in range(4)] + [("png", png(1))]
    small, large = view_of(preprocess(16), "a"), view_of(preprocess(32), "b")
    assert view_of(preprocess(16), "c").key == small.key  # made once for both
    rows = []
    for batch in batches_of(tmp_path, files, [small, large]):
        rows += batch.rows
        for view, size in ((small, 16), (large, 32)):
            made = view.normalized(batch.pixels[view.key])
            for row, image in zip(batch.rows, made, strict=True):
                assert torch.equal(
                    image, preprocess(size)(Image.open(io.BytesIO(files[row][1])).convert("RGB"))
                )
    assert rows == [0, 1, 2, 3, 4]


def test_a_large_jpeg_is_decoded_at_a_smaller_scale_and_looks_the_same(tmp_path):
    files = [("jpg", image_file(400, 300, seed=seed, quality=95)) for seed in range(2)]
    view = view_of(preprocess(32), "a")
    (whole,) = batches_of(tmp_path, files, [view])
    (scaled,) = batches_of(tmp_path, files, [view], decode_margin=2.0)
    first, second = (batch.pixels[view.key].float() for batch in (whole, scaled))
    assert not torch.equal(first, second)
    assert (first - second).abs().mean() < 1.0  # of 255
    body = files[0][1]
    assert decode(body, "jpeg", 10**6, fast_dct_size(body, 64)).pixels.shape[:2] == (75, 100)
    assert decode(body, "jpeg", 10**6, fast_dct_size(body, 80)).pixels.shape[:2] == (150, 200)
    assert decode(body, "jpeg", 10**6, fast_dct_size(body, 151)).pixels.shape[:2] == (300, 400)


def test_bad_images_are_told_and_unlisted_ones_counted(tmp_path):
    unlisted = []
    files = [("png", png(0)), ("jpg", b"broken"), ("txt", b"no image"), ("png", png(3))]
    view = view_of(preprocess(16), "a")
    batches = batches_of(tmp_path, files, [view], on_unlisted=lambda: unlisted.append(1), batch_size=2)
    found = [(batch.rows, batch.undecodable) for batch in batches]
    assert found == [([0], [1]), ([3], [])]
    assert not unlisted


def test_only_pipelines_that_end_in_normalize_are_views():
    with pytest.raises(ConfigError, match="only pipelines that end in ToTensor and Normalize"):
        view_of(transforms.Compose([transforms.ToTensor()]), "x")


def test_an_error_in_the_background_comes_out_here_and_the_thread_ends():
    def values():
        yield 1
        raise ValueError("broken")

    ahead = Prefetched(values(), 2)
    found = iter(ahead)
    assert next(found) == 1
    with pytest.raises(ValueError, match="broken"):
        next(found)
    endless = Prefetched(iter(int, 1), 2)
    assert next(iter(endless)) == 0
    endless.close()
    assert not endless._thread.is_alive()


def test_embeddings_of_texts_and_uids_lie_beside_those_of_images(tmp_path, weights):
    uids = write_raw(tmp_path, [png(seed) for seed in range(4)] + [None])
    tag(tmp_path, config_of(weights, MODEL, ["clip"]))
    folder = tmp_path / "tags" / "clip"
    from data_pipeline.embeddings import read_embeddings

    read, texts = read_embeddings(folder / f"{NAME}.uids.npy", folder / f"{NAME}.text.tiny.npy")
    assert (read, texts.dtype) == (uids, np.float16)
    np.testing.assert_allclose(texts, load_encoder(None, weights).encode_texts(CAPTIONS).numpy(), atol=1e-3)
    scores = pl.read_parquet(folder / f"{NAME}.parquet")["clip_score"].to_numpy()
    np.testing.assert_allclose((stored(tmp_path)[:4] * texts[:4]).sum(axis=1), scores[:4], atol=2e-3)
    np.save(folder / f"{NAME}.uids.npy", np.load(folder / f"{NAME}.uids.npy")[:3])
    with pytest.raises(DataError, match=r"has 3 uids and .* not the embeddings of one shard"):
        read_embeddings(folder / f"{NAME}.uids.npy", folder / f"{NAME}.text.tiny.npy")
    with pytest.raises(DataError, match="cannot be read"):
        read_embeddings(folder / "none.npy", folder / f"{NAME}.text.tiny.npy")

"""A run of real emoji, tagged by a small CLIP that has just learned them: for tests that look at what is found."""

import io
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from explorer_run import write_stats
from PIL import Image
from toy_stages import Inline

from crawl2clip.encoder import encoder_of
from crawl2clip.export import export_model
from crawl2clip.files import write_json
from crawl2clip.models import ModelConfig, build_model
from crawl2clip.schema import DOWNLOAD_SCHEMA, uid_of
from crawl2clip.shards import ShardWriter
from data_pipeline import select, tag
from data_pipeline.clip_models import ClipModelConfig
from data_pipeline.language import LanguageDetector
from data_pipeline.recipe_by_name import load_recipe
from data_pipeline.stage import run_stage
from data_pipeline.tag import TagConfig
from examples.emoji.concepts import load_concepts, on_white

HOSTILE = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
"""The caption of the last English pair, whose page has an address that runs code."""

THEMES = ("cat-face", "food-fruit", "transport-ground", "sky-weather", "music", "tool")
ARCHITECTURE = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 40, "layers": 1, "width": 96, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
STEPS = 200
LEARNING_RATE, WARMUP = 1e-3, 20


def concepts():
    """Cats, and things that look nothing like them."""
    everything = [concept for concept in load_concepts() if not concept.has_skin_tone]
    cats = [concept for concept in everything if concept.names["en"] in ("cat", "cat face", "black cat")]
    return cats + [c for theme in THEMES for c in [c for c in everything if c.theme == theme][:10]]


def is_cat(text):
    """Whether a caption, English or German, is about a cat."""
    return any(word in text.lower() for word in ("cat", "kat", "kater"))


def train(folder, steps=STEPS):
    """An export of a small CLIP that knows `concepts()` by their English and German names; some 7 CPU seconds.

    Whatever the seed: with five of them, the first six found for "cat" were cats. Without warmup and decay, at 3e-3,
    they were 4 to 6, so that another processor's rounding decided.
    """
    torch.manual_seed(0)
    config = ModelConfig(name="emoji-test", architecture=ARCHITECTURE)
    model = build_model(config)
    encoder = encoder_of(model, config)
    chosen = concepts()
    images = torch.stack([encoder.preprocess(on_white(Image.open(each.twemoji_png))) for each in chosen])
    texts = [[each.names["en"], each.names["de"], *each.names["en"].split()] for each in chosen]
    tokens = [encoder.tokenizer(each) for each in texts]
    # The table of 49,408 tokens stays as it was made: three quarters of a step's time would go into it.
    model.token_embedding.weight.requires_grad_(False)  # pyright: ignore
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=LEARNING_RATE, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP) * (1 - step / steps)
        drawn = torch.randperm(len(chosen), generator=generator).tolist()
        rows = [tokens[n][int(torch.randint(len(tokens[n]), (1,), generator=generator))] for n in drawn]
        words = torch.stack(rows)
        image_features, text_features, scale = model(images[drawn], words)[:3]
        logits = scale * image_features @ text_features.T
        # Pairs with one caption (each cat is "cat") are all right; a plain InfoNCE would push them apart.
        same = (words[:, None] == words[None]).all(dim=-1).float()
        wanted = same / same.sum(dim=1, keepdim=True)
        loss = torch.nn.functional.cross_entropy(logits, wanted) + torch.nn.functional.cross_entropy(
            logits.T, wanted
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return export_model(model.eval(), config, folder, provenance={})


def write_emoji_run(folder, weights):
    """Two raw shards, English and German, with language and clip tags and the recipe emoji's decisions."""
    for number, language in enumerate(("en", "de")):
        _write_shard(folder / "raw", f"{number:08d}", language)
    names = [{"name": f"{number:08d}"} for number in range(2)]
    write_json(folder / "raw" / "manifest.json", {"stage": "download", "shards": names})
    recipe = load_recipe("emoji")
    settings = SimpleNamespace(
        output_dir=str(folder),
        recipe=recipe,
        select=select.SelectConfig(phash_distance=0),
        tagger=TagConfig(
            taggers=["language", "clip"],
            pretrained=str(weights),
            models=[ClipModelConfig(name="filter")],
            language_detector=LanguageDetector.fasttext,
            min_language_probability=0.3,
            device="cpu",
            precision="fp32",
            image_batch_size=64,
            decode_margin=None,
        ),
    )
    for stage in (*tag.make_stages(settings), select.make_stage(settings)):
        run_stage(stage, Inline(), max_failed_fraction=0.0)


def _write_shard(folder: Path, name: str, language: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    chosen = concepts()
    rows, blank = [], dict.fromkeys(DOWNLOAD_SCHEMA.names)
    page_url = f"http://emoji.example/{language}/"
    with ShardWriter(folder / f"{name}.tar") as tar:
        for concept in chosen:
            url, text = f"http://emoji.example/{language}/{concept.code}.png", concept.names[language]
            if language == "en" and concept is chosen[-1]:
                text, page_url = HOSTILE, "javascript:document.title='owned'"
            buffer = io.BytesIO()
            on_white(Image.open(concept.twemoji_png)).save(buffer, "png")
            uid = uid_of(url, text)
            tar.write(uid, {"png": buffer.getvalue(), "txt": text.encode(), "json": b"{}"})
            rows.append(
                {
                    **blank, "uid": uid, "url": url, "text": text, "text_source": "alt", "status": "success",
                    "page_url": page_url, "page_language": language, "offset": 7,
                    "crawl_file": "emoji.warc.gz", "page_date": "2026-11-30", "format": "png",
                    "bytes": len(buffer.getvalue()),
                    "original_width": 72, "original_height": 72, "width": 72, "height": 72,
                }
            )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA), folder / f"{name}.parquet")
    write_stats(folder, name, len(rows))

"""A data set's papers: they say what the run's records say, in forms that their readers take."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
import yaml

from data_pipeline.report_data import StageRow
from data_pipeline.report_facts import Facts, Shards
from data_pipeline.report_papers import croissant, croissant_text, dataset_card, datasheet, plain
from data_pipeline.stage import Counts

HOSTILE = "evil|`<script>alert(1)</script>\n# heading\x00.example"
DOWNLOADED = StageRow(
    "download", 1, Counts(2000, 1000, Counter(opted_out=7, robots_disallowed=9, timeout=984)), 1.0, 1.0
)
FACTS = Facts(
    name="laion5b_en",
    version="2",
    source="Schuhmann et al. 2022",
    looked_at=1000,
    kept=120,
    funnel=[
        {"reason": "blocked_md5", "dropped": 3, "left": 997},
        {"reason": "low", "dropped": 877, "left": 120},
    ],
    conditions={"low": "clip_score >= 0.28"},
    stages=[
        StageRow(
            "download",
            1,
            Counts(2000, 1000, Counter(opted_out=7, robots_disallowed=9, timeout=984)),
            1.0,
            1.0,
        )
    ],
    taggers={"clip": "ViT-B-32 openai", "language": "fasttext"},
    blocklists=1,
    takedowns=["2026-11"],
    languages=[("en", 100), ("iw", 19), ("x|y", 1)],
    domains=[(HOSTILE, 3)],
    licenses=[("none found", 120)],
    num_languages=3,
    num_domains=1,
    shards=Shards(2, 120, 3_000_000, {"00000000.tar": "a" * 64, "00000001.tar": "b" * 64}),
    crawl_files=4,
    made={"time": "2026-11-30T07:00:00Z", "command": "python -m data_pipeline `x`", "commit": "abc"},
)


def test_the_datasheet_tells_the_numbers():
    text = datasheet(FACTS)
    for words in (
        "# Datasheet: laion5b_en", "120, of 1,000 that were downloaded (12.0%)",
        "2 tar files (WebDataset), 120 samples, 3.0 MB",
        "9 addresses were not fetched since robots.txt forbids it, 7 images were not stored",
        "| `en` | 100 |",
        "| low | `clip_score >= 0.28` | 877 | 120 |",
        "| blocked_md5 | `-` | 3 | 997 |", "| clip | `ViT-B-32 openai` |",
        "Blocklists applied: 1", "Takedowns so far: 2026-11", "to be filled in by its owner",
        "commit abc", "2026-11-30",
    ):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize("paper", [datasheet, dataset_card])
def test_words_from_the_web_stay_words(paper):
    text = paper(replace(FACTS, source=HOSTILE))
    assert "\x00" not in text
    assert "\n# heading" not in text
    outside_code = re.sub(r"`[^`\n]*`", "", text.partition("made by")[0])
    for word in ("evil", "script", "# heading"):
        assert word not in outside_code  # in code neither Markdown nor HTML acts on it
    assert plain("  ") == "`-`"
    assert len(plain("x" * 5000)) == 202


def test_the_card_is_a_card_of_the_hub():
    card = dataset_card(FACTS)
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["language"] == ["en", "iw"]
    assert header["size_categories"] == ["n<1K"]
    assert header["configs"][0]["data_files"][0]["path"] == "shards/*.tar"
    assert header["license"] == "other"
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="pip install huggingface_hub")
    assert huggingface_hub.DatasetCard(card).data.pretty_name == "laion5b_en"
    for kept, size in ((999, "n<1K"), (1000, "1K<n<10K"), (5_850_000_000, "1B<n<10B"), (10**13, "n>1T")):
        assert yaml.safe_load(dataset_card(replace(FACTS, kept=kept)).split("---\n")[1])[
            "size_categories"
        ] == [size]


def test_a_run_without_shards_says_so():
    bare = replace(
        FACTS, shards=None, stages=[], taggers={}, languages=[], domains=[], takedowns=[], crawl_files=None
    )
    assert "training shards have not been written yet" in datasheet(bare)
    assert "Takedowns so far: none" in datasheet(bare)
    assert "configs" not in yaml.safe_load(dataset_card(bare).split("---\n")[1])
    assert croissant(bare)["distribution"] == []


def test_the_croissant_description_is_consistent():
    """What mlcroissant's validator asks of files and fields; it is not needed to run this."""
    value = json.loads(croissant_text(FACTS))
    assert value["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert value["version"] == "2.0.0"
    assert value["datePublished"] == "2026-11-30"
    files = {entry["@id"]: entry for entry in value["distribution"]}
    objects = {name for name, entry in files.items() if entry["@type"] == "cr:FileObject"}
    assert objects == {"00000000.tar", "00000001.tar"}
    assert files["00000001.tar"]["sha256"] == "b" * 64
    fields = {field["@id"] for records in value["recordSet"] for field in records["field"]}
    for entry in files.values():
        if entry["@type"] == "cr:FileSet":
            assert {each["@id"] for each in entry["containedIn"]} == objects
    for records in value["recordSet"]:
        for field in records["field"]:
            assert field["source"]["fileSet"]["@id"] in files
            if "references" in field:
                assert field["references"]["field"]["@id"] in fields

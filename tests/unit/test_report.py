"""The report: it shows what happened, needs nothing but itself, and a caption cannot break out of it."""

import io
import json
import re
from collections import Counter
from dataclasses import asdict
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toy_stages import Inline

from crawl2clip.errors import DataError
from crawl2clip.schema import DOWNLOAD_SCHEMA, uid_of
from crawl2clip.shards import ShardWriter
from data_pipeline.funnel import funnel_row, update_funnel
from data_pipeline.recipe import RecipeConfig, RuleConfig
from data_pipeline.report import funnel_section, make_stage, pipeline_sections, rule_in_words
from data_pipeline.report_data import ASPECT_BINS, Histogram, StageRow, Tally, gather, read_stage_rows
from data_pipeline.report_page import (
    THUMBNAIL_PIXELS,
    Example,
    Section,
    bars,
    figure,
    grid,
    new_figure,
    paragraph,
    render_report,
    shown,
    table,
    tiles,
)
from data_pipeline.rules import base_schema, compile_rules
from data_pipeline.select import SelectStage, iter_decisions
from data_pipeline.stage import (
    Counts,
    StageReport,
    run_stage,
)

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</div></section><h1>mine</h1>",
    "{{ 7 * 7 }} {% raw %}",
    "<!-- <!DOCTYPE",
    "bad \x00 \x1b[31m \ud800 \u202e marks",
    "&lt;b&gt; &amp;",
)


class Seen(HTMLParser):
    """Every element with its attributes, and all text outside style."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if "style" not in self._open:
            self.texts.append(data)


def check_is_safe_and_self_contained(page):
    seen = Seen(page)
    allowed_links = [attrs.get("href", "#") for tag, attrs in seen.elements if tag == "a"]
    assert all(link.startswith("#") for link in allowed_links)
    for tag, attrs in seen.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form", "link")
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name == "src":
                assert value.startswith("data:image/jpeg;base64,")
    assert "url(http" not in page
    page.encode("utf-8")
    return seen


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_can_break_out(text):
    drawn, (axis,) = new_figure()
    axis.set_xlabel(text.replace("\x00", "").replace("\x1b", "").replace("\ud800", ""), parse_math=False)
    blocks = [
        paragraph(text.replace("\ud800", "")),
        tiles({text.replace("\ud800", ""): 1}),
        table([text.replace("\ud800", "")], [[text.replace("\ud800", "")]], caption="x"),
        bars([(text.replace("\ud800", ""), 3)]),
        figure(drawn, caption="<i>", description=text.replace("\ud800", "")),
        grid([Example(Image.new("RGB", (8, 8)), text, "<note>")]),
    ]
    page = render_report("<title>", [Section("<section>", blocks)], subtitle="<sub>")
    seen = check_is_safe_and_self_contained(page)
    assert "<title>" in "".join(seen.texts)
    assert Counter(tag for tag, _ in seen.elements)["h1"] == 1
    assert "49" not in "".join(seen.texts)


def test_a_caption_is_shown_as_it_is_and_a_long_one_is_cut():
    page = render_report(
        "t", [Section("s", [grid([Example(None, "<b>猫 & Hund</b>"), Example(None, "x" * 5000)])])]
    )
    texts = Seen(page).texts
    assert "<b>猫 & Hund</b>" in texts
    assert "x" * 299 + "…" in texts
    assert "x" * 300 not in page


def test_thumbnails_are_small_and_of_any_mode():
    for mode in ("RGB", "RGBA", "L", "P", "CMYK", "I;16"):
        page = str(grid([Example(Image.new(mode, (900, 300)), "c")]))
        data = re.search(r"base64,([^\"]+)", page)
        assert data is not None
        import base64

        assert Image.open(io.BytesIO(base64.b64decode(data.group(1)))).size == (
            THUMBNAIL_PIXELS,
            THUMBNAIL_PIXELS // 3,
        )


def test_figures_take_the_colour_of_the_page_and_are_the_same_each_time():
    def draw():
        drawn, axes = new_figure(columns=2)
        axes[0].stairs([1, 2], [0, 1, 2], fill=True)
        axes[1].set_xlabel("similarity")
        return str(figure(drawn, caption="c", description="d"))

    assert draw() == draw()
    assert "currentColor" in draw()
    assert "#010203" not in draw()
    assert "similarity</text>" in draw()  # text, not outlines


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (12345.6, "12,346"),
        (None, "–"),
        ("a", "a"),
        (True, "yes"),
        (0, "0"),
    ],
)
def test_numbers_are_readable(value, text):
    assert shown(value) == text


def test_a_histogram_counts_what_lies_outside_in_its_last_bins():
    histogram = Histogram(ASPECT_BINS)
    histogram.add(
        pl.Series([1.0, 2.0, 99.0, None, float("nan")]), pl.Series([True, False, False, True, True])
    )
    assert histogram.total == 3
    assert histogram.kept[0] == histogram.dropped[-1] == 1


def write_stage_folder(folder, stage, tables):
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        frame.write_parquet(folder / f"{name}.parquet") if isinstance(
            frame, pl.DataFrame
        ) else pq.write_table(frame, folder / f"{name}.parquet")
        counts = {"rows_in": 9, "rows_out": frame.shape[0], "dropped": {"http_error": 2}, "extra": {}}
        (folder / f"{name}.stats.json").write_text(json.dumps({"counts": counts, "seconds": 0.5}))
    names = [{"name": name} for name in tables]
    (folder / "manifest.json").write_text(json.dumps({"stage": stage, "shards": names}))


def make_run(output, captions=HOSTILE, *, with_clip=True):
    """A run of two raw shards whose captions are these, tagged and selected."""
    random = np.random.default_rng(0)
    raw, language, clip = {}, {}, {}
    (output / "raw").mkdir(parents=True)
    for number in range(2):
        name = f"{number:08d}"
        texts = [caption.replace("\ud800", "") for caption in captions]
        uids = [uid_of(f"http://a.b/{number}", text) for text in texts]
        blank = {**dict.fromkeys(DOWNLOAD_SCHEMA.names), "url": "", "text_source": "alt", "status": "success"}
        sizes = {"original_width": 640, "original_height": 320, "bytes": 9000}
        rows = [{**blank, **sizes, "uid": u, "text": t} for u, t in zip(uids, texts, strict=True)]
        raw[name] = pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA)
        buckets = [("en", "other")[index % 2] for index in range(len(uids))]
        language[name] = pl.DataFrame({"uid": uids, "language": buckets, "language_bucket": buckets})
        scores = pl.Series(random.uniform(0, 0.5, len(uids)), dtype=pl.Float32)
        clip[name] = pl.DataFrame({"uid": uids, "clip_score": scores})
        with ShardWriter(output / "raw" / f"{name}.tar") as writer:
            for index, uid in enumerate(uids):
                buffer = io.BytesIO()
                Image.new("RGB", (64, 32), (index * 20, 90, 200)).save(buffer, "png")
                image = buffer.getvalue() if index else b"broken"
                writer.write(uid, {"png": image, "txt": b"", "json": b"{}"})
    write_stage_folder(output / "raw", "download", raw)
    write_stage_folder(output / "tags" / "language", "tag/language", language)
    tags = {"language": ["language", "language_bucket"]}
    types = {"language": pl.String, "language_bucket": pl.String}
    rules = [RuleConfig(reason="other_language", keep="language_bucket = 'en' OR text_length > 25")]
    if with_clip:
        write_stage_folder(output / "tags" / "clip", "tag/clip", clip)
        tags["clip"], types["clip_score"] = ["clip_score"], pl.Float32
        rules.append(RuleConfig(reason="low", top_fraction=0.5, of="clip_score", by="language_bucket"))
    recipe = RecipeConfig(
        name="<mine>", version="1", source="A & B", min_text_length=0, min_bytes=0, rules=rules
    )
    compiled = compile_rules(recipe, pl.Schema({**base_schema(), **types}))
    stage = SelectStage(
        "select", output / "subset", {}, output / "raw", output / "tags", recipe, tags, compiled
    )
    run_stage(stage, Inline(), max_failed_fraction=0.0)


@pytest.mark.parametrize("with_clip", [True, False])
def test_the_page_of_a_run(tmp_path, with_clip):
    make_run(tmp_path, with_clip=with_clip)
    counts = Counts(18, 16, Counter(http_error=2))
    update_funnel(tmp_path, ["download"], funnel_row("download", [StageReport("download", 2, counts=counts)]))
    stage = make_stage(SimpleNamespace(output_dir=str(tmp_path)))
    run_stage(stage, Inline(), max_failed_fraction=0.0)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    seen = check_is_safe_and_self_contained(page)
    text = " ".join(seen.texts)
    for words in ("Recipe <mine>", "A & B", "download", "http_error: 2", "other_language", "Examples: kept"):
        assert words in text
    assert ("CLIP similarity" in text) == with_clip
    assert ("top 50% by clip_score in each language_bucket" in text) == with_clip
    images = [attrs for tag, attrs in seen.elements if tag == "img"]
    assert len(images) == 2 * (len(HOSTILE) - 1)  # the first image of each shard is broken
    assert len(page) < 400_000


def test_the_same_run_gives_the_same_page(tmp_path):
    make_run(tmp_path)
    pages = [render_report("t", pipeline_sections(tmp_path)) for _ in range(2)]
    assert pages[0] == pages[1]


def test_few_examples_are_the_ones_asked_for(tmp_path):
    make_run(tmp_path, [f"caption number {number}" for number in range(40)])
    sections = {section.title: section for section in pipeline_sections(tmp_path, examples_per_reason=3)}
    assert str(sections["Examples: kept"].blocks[1]).count("<figcaption") == 3


def test_a_run_without_a_selection_is_told_so(tmp_path):
    with pytest.raises(DataError, match=r"decisions\.parquet is missing; run stage=select"):
        pipeline_sections(tmp_path)


def test_the_funnel_is_that_of_the_run(tmp_path):
    assert read_stage_rows(tmp_path) == []
    assert funnel_section([]).blocks == []
    counts = Counts(18, 16, Counter(http_error=2))
    report = StageReport("download", done=2, counts=counts, seconds=3.0, worker_seconds=4.5)
    update_funnel(tmp_path, ["download"], funnel_row("download", [report]))
    rows = read_stage_rows(tmp_path)
    assert rows == [StageRow("download", 2, counts, 4.5, 3.0)]
    texts = Seen(render_report("t", [funnel_section(rows)])).texts
    assert {"18", "16", "http_error: 2", "3", "4"} <= set(texts)
    assert funnel_section([StageRow("x", 1, Counts(), 0.0, 0.0)]).blocks


def add_safety_tags(output, punsafe):
    """Tags of the unsafe tagger for every pair: uid -> punsafe, None where it could not tell."""
    for name in ("00000000", "00000001"):
        uids = pl.read_parquet(output / "raw" / f"{name}.parquet")["uid"]
        frame = pl.DataFrame(
            {"uid": uids, "punsafe": pl.Series([punsafe[uid] for uid in uids], dtype=pl.Float32)}
        )
        write_stage_folder(output / "tags" / "unsafe", "tag/unsafe", {name: frame})
    names = [{"name": "00000000"}, {"name": "00000001"}]
    (output / "tags" / "unsafe" / "manifest.json").write_text(json.dumps({"shards": names}))


def pictures(output):
    """uid -> the picture that the report holds of it."""
    gathered = gather(output, examples_per_reason=100)
    return {pair.uid: pair for pairs in gathered.examples.values() for pair in pairs}


def edges(image):
    return int(np.abs(np.diff(np.asarray(image.convert("L")).astype(int), axis=1)).max())


def test_unsafe_pictures_are_blurred_before_they_reach_the_page(tmp_path):
    make_run(tmp_path, [f"caption number {number}" for number in range(6)])
    noise = np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8) * 255
    for number in range(2):
        name = f"{number:08d}"
        uids = pl.read_parquet(tmp_path / "raw" / f"{name}.parquet")["uid"]
        with ShardWriter(tmp_path / "raw" / f"{name}.tar") as writer:
            for uid in uids:
                buffer = io.BytesIO()
                Image.fromarray(noise).save(buffer, "png")
                writer.write(uid, {"png": buffer.getvalue(), "txt": b"", "json": b"{}"})
    before = pictures(tmp_path)
    assert all(edges(pair.image) == 255 and pair.unsafe is None for pair in before.values())
    page = render_report("t", pipeline_sections(tmp_path))
    assert "No safety tagger has judged these pictures" in page
    values = dict(zip(sorted(before), [0.49, 0.5, 0.99, None, 0.0, float("nan")] * 2, strict=True))
    add_safety_tags(tmp_path, values)
    for uid, pair in pictures(tmp_path).items():
        hidden = values[uid] is None or not values[uid] < 0.5
        assert pair.unsafe is hidden
        assert pair.image.size == (64, 64)
        assert (edges(pair.image) < 90) is hidden  # black and white dots are a few grey blots
    page = render_report("t", pipeline_sections(tmp_path))
    assert "is blurred" not in page
    assert "or could not judge, are blurred here" in page
    assert page.count("blurred: may be unsafe") == 8


def test_what_a_blocklist_names_is_counted_and_not_shown(tmp_path):
    make_run(tmp_path, [f"caption number {number}" for number in range(6)])
    path = tmp_path / "subset" / "subset.decisions.parquet"
    decisions = pq.read_table(path)
    frame = pl.DataFrame(pl.from_arrow(decisions)).with_columns(
        kept=pl.lit(False), reason=pl.lit("blocked_md5"), shard=pl.col("shard").cast(pl.String)
    )
    pq.write_table(frame.to_arrow().cast(decisions.schema), path, row_group_size=6)
    recipe = tmp_path / "subset" / "subset.recipe.json"
    value = json.loads(recipe.read_text())
    value["funnel"] = [{"reason": "blocked_md5", "dropped": 12, "left": 0}]
    recipe.write_text(json.dumps(value))
    page = render_report("t", pipeline_sections(tmp_path))
    assert "blocked_md5" in page
    assert "<img" not in page
    assert "caption number" not in page


def test_decisions_come_shard_by_shard(tmp_path):
    make_run(tmp_path, [f"caption number {number}" for number in range(6)])
    found = list(iter_decisions(tmp_path))
    assert [(name, len(rows)) for name, rows in found] == [("00000000", 6), ("00000001", 6)]
    path = tmp_path / "subset" / "subset.decisions.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=3)  # a shard in two row groups
    again = list(iter_decisions(tmp_path))
    assert all(a[0] == b[0] and a[1].equals(b[1]) for a, b in zip(found, again, strict=True))


def test_a_tally_lets_rare_values_go_and_says_so(monkeypatch):
    monkeypatch.setattr("data_pipeline.report_data.MAX_VALUES", 10)
    tally = Tally()
    values = ["often.org"] * 50 + ["seldom.org"] * 5
    tally.add(pl.Series([*values, None]), pl.Series([True] * 30 + [False] * 26))
    assert tally.most_common(2) == [("often.org", 30, 20), ("seldom.org", 0, 5)]
    assert (tally.values, tally.total, tally.approximate) == (2, 55, False)
    tally.add(pl.Series([f"{n}.org" for n in range(20)]), pl.Series([True] * 20))
    assert tally.approximate
    assert tally.values == 5
    assert tally.most_common(1) == [("often.org", 30, 20)]


def test_sites_languages_and_licences_are_shown(tmp_path):
    make_run(tmp_path)
    for number in range(2):
        path = tmp_path / "raw" / f"{number:08d}.parquet"
        rows = pl.read_parquet(path).with_columns(
            url=pl.lit("https://user@Evil<b>.example:8000/a.png"),
            license=pl.lit("https://creativecommons.org/licenses/by/4.0/"),
        )
        pq.write_table(rows.to_arrow().cast(DOWNLOAD_SCHEMA), path)
    sections = {section.title: section for section in pipeline_sections(tmp_path)}
    page = render_report("t", [sections["Languages, sites, licences"]])
    texts = " ".join(check_is_safe_and_self_contained(page).texts)
    assert "evil<b>.example" in texts
    assert "https://creativecommons.org/licenses/by/4.0/" in texts
    assert "% kept)" in texts


@pytest.mark.parametrize(
    ("reason", "rule", "words"),
    [
        ("x", {"top_fraction": 0.3, "of": "clip_score", "by": None}, "top 30% by clip_score"),
        ("x", {"sample_fraction": 0.1, "seed": 3}, "a random 10%, seed 3"),
        (
            "x",
            {"balance": "e", "max_per_entry": 20_000, "seed": 0},
            "about 20,000 rows for each entry of e, seed 0",
        ),
        ("blocked_md5", None, "named by a blocklist"),
        ("missing_clip_score", None, "the rules had no value to judge by"),
    ],
)
def test_every_kind_of_rule_has_words(reason, rule, words):
    every = None if rule is None else {**asdict(RuleConfig(reason="x", **rule))}
    assert rule_in_words(reason, every) == words

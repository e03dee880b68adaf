"""Shards that are tagged after a run was indexed: added without building it again, however often that is killed."""

import hashlib
import json
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from explorer_run import build_index, settings, unit_rows, write_run
from toy_stages import Inline

from crawl2clip.errors import ConfigError
from crawl2clip.files import read_json
from data_pipeline import index
from data_pipeline.recipe import RecipeConfig, RuleConfig
from data_pipeline.rules import base_schema, compile_rules
from data_pipeline.select import DECISIONS_NAME
from data_pipeline.stage import run_stage

pytest.importorskip("faiss", reason="faiss is not installed: pip install -e '.[data,explorer]'")

from data_pipeline.explorer.library import Library
from data_pipeline.index_faiss import load_faiss
from data_pipeline.index_plan import cut_parts

STAGES = ("raw", "tags/language", "tags/clip", "tags/unsafe")
QUANTISED = {"exact_rows": 0, "rows_per_part": 100}  # 100 rows a shard: each is a part


@pytest.fixture
def made(tmp_path):
    """A run of four shards of which only two were tagged at first."""
    run = write_run(tmp_path / "run", rows=400, shards=4)
    for shard in ("00000002", "00000003"):
        hide(run.folder, shard)
    return run


def hide(folder, shard):
    """A shard that could not be made yet."""
    for stage in STAGES:
        (folder / stage / f"{shard}.stats.json").rename(folder / stage / f"{shard}.later")


def reveal(folder, shard):
    """It is made now."""
    for stage in STAGES:
        (folder / stage / f"{shard}.later").rename(folder / stage / f"{shard}.stats.json")


def files_of(folder):
    """name -> digest of each file of an index, but for what holds times, or was left by a writer that was killed."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and ".tmp-" not in path.name
        and not path.name.endswith((".stats.json", ".lock", "whole.index.json"))
    }


def answers(folder):
    """uids and cosines of the nearest to some queries, in both modalities."""
    library = Library([str(folder)])
    queries = unit_rows(np.random.default_rng(8), 20).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    found = []
    for modality in library.modalities:
        for query in queries:
            rows, scores = library.nearest(modality, query, 15, [None])
            found.append((library.take(rows, [])["uid"], scores.tolist()))
    return found


def stamps(folder):
    return {
        path.name: (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.iterdir()
        if path.is_file()
    }


@pytest.mark.parametrize("changes", [{"rows_per_part": 100}, QUANTISED])
def test_added_shards_are_found_as_after_a_rebuild_and_nothing_old_is_touched(
    made, tmp_path, monkeypatch, changes
):
    build_index(made.folder, **changes)
    parts, plan = made.folder / "index" / "parts", made.folder / "index" / "plan"
    before = {
        **stamps(parts),
        **{name: stamp for name, stamp in stamps(plan).items() if "manifest" not in name},
    }
    assert Library([str(made.folder)]).num_rows == 200
    reveal(made.folder, "00000002")
    build_index(made.folder, **changes)
    reveal(made.folder, "00000003")
    build_index(made.folder, **changes)
    after = {**stamps(parts), **stamps(plan)}
    assert {name: after[name] for name in before if name not in ("manifest.json", ".lock")} == {
        name: stamp for name, stamp in before.items() if name not in ("manifest.json", ".lock")
    }
    library = Library([str(made.folder)])
    assert library.num_rows == 400
    assert all(library.find(uid) is not None for uid in made.rows["uid"])
    assert read_json(parts / "000003.columns.json").keys() == {
        "tags/clip",
        "tags/language",
        "tags/unsafe",
        "half",
    }
    # A rebuild with what was trained the first time gives the same files.
    grown = answers(made.folder)
    trained = tmp_path / "trained"
    shutil.move(made.folder / "index", trained)
    faiss = load_faiss()
    numbers = iter(("image", "text"))
    monkeypatch.setattr(
        "data_pipeline.index_plan.train",
        lambda choice, sample: faiss.read_index(str(trained / "plan" / f"plan.{next(numbers)}.faiss")),
    )
    build_index(made.folder, **changes)
    assert answers(made.folder) == grown
    rebuilt, first = files_of(made.folder / "index"), files_of(trained)
    same = [name for name in rebuilt if name.startswith(("parts/0", "whole/whole"))]
    assert len(same) > 20
    assert {name: rebuilt[name] for name in same} == {name: first[name] for name in same}


def test_a_rerun_without_anything_new_makes_nothing(made):
    build_index(made.folder)
    reveal(made.folder, "00000002")
    build_index(made.folder)
    before = files_of(made.folder / "index")
    reports = [
        run_stage(stage, Inline(), max_failed_fraction=0.0)
        for stage in index.make_stages(settings(made.folder))
    ]
    assert [(report.done, report.skipped) for report in reports] == [(0, 2), (0, 3), (0, 1)]
    assert files_of(made.folder / "index") == before


def test_recall_is_measured_anew(made):
    build_index(made.folder, **QUANTISED)
    record = made.folder / "index" / "whole" / "whole.index.json"
    assert read_json(record)["modalities"]["image"]["vectors"] == 199
    reveal(made.folder, "00000002")
    build_index(made.folder, **QUANTISED)
    measured = read_json(record)["modalities"]["image"]
    assert measured["vectors"] == 299
    assert measured["recall_at_10"] >= 0.95
    assert [part["name"] for part in read_json(record)["parts"]] == ["000000", "000001", "000002"]


def test_what_is_there_is_searched_until_the_addition_is_whole(made):
    build_index(made.folder)
    reveal(made.folder, "00000002")
    for stage in index.make_stages(settings(made.folder))[:2]:
        run_stage(stage, Inline(), max_failed_fraction=0.0)
        library = Library([str(made.folder)])
        assert library.num_rows == 200
    build_index(made.folder)
    assert Library([str(made.folder)]).num_rows == 300


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
replace, left = os.replace, [{times}]
def counted(source, target, **more):
    if "/index/" in str(target):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
    return replace(source, target, **more)
os.replace = counted
from explorer_run import build_index
build_index({folder!r}, exact_rows=0, rows_per_part=100)
print("whole")
"""


def test_killed_at_any_file_and_run_again_it_ends_with_the_same_files(made, tmp_path):
    build_index(made.folder, **QUANTISED)
    reveal(made.folder, "00000002")
    untouched = tmp_path / "untouched"
    shutil.copytree(made.folder, untouched)
    build_index(made.folder, **QUANTISED)
    wanted, found = files_of(made.folder / "index"), answers(made.folder)
    for times in count(0, 7):  # each of them costs a process
        shutil.rmtree(made.folder)
        shutil.copytree(untouched, made.folder)
        code = KILLED.format(tests=str(Path(__file__).parents[1]), folder=str(made.folder), times=times)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if "whole" in done.stdout:
            break
        assert done.returncode == -9, done.stderr
        build_index(made.folder, **QUANTISED)
        assert files_of(made.folder / "index") == wanted
        assert answers(made.folder) == found
    assert times > 7


def test_shards_that_are_gone_or_were_made_again_are_named(made):
    build_index(made.folder)
    stats = made.folder / "tags" / "clip" / "00000001.stats.json"
    before = stats.read_text()
    stats.write_text(before.replace("1.0", "2.0"))
    reveal(made.folder, "00000002")
    with pytest.raises(
        ConfigError,
        match=r"1 of the shards .* have been made again since \(00000001\) in .*delete the folder index/",
    ):
        build_index(made.folder)
    stats.unlink()
    with pytest.raises(
        ConfigError, match=r"1 of the shards .* are not there any more \(00000001\) in .*clip"
    ):
        build_index(made.folder)
    assert Library([str(made.folder)]).num_rows == 200  # what there is goes on
    stats.write_text(before)
    build_index(made.folder)
    assert Library([str(made.folder)]).num_rows == 300


def test_parts_whose_verdicts_or_tags_have_changed_are_made_again_and_no_others(made, caplog):
    caplog.set_level("INFO")
    build_index(made.folder, rows_per_part=100)
    reveal(made.folder, "00000002")
    path = made.folder / "subset" / DECISIONS_NAME
    decisions = pl.read_parquet(path)
    changed = made.rows["uid"][7]
    decisions.with_columns(kept=pl.col("kept") | (pl.col("uid") == changed)).write_parquet(path)
    before = stamps(made.folder / "index" / "parts")
    build_index(made.folder, rows_per_part=100)
    after = stamps(made.folder / "index" / "parts")
    assert "1 parts are made again" in caplog.text
    assert after["000000.rows.arrow"] != before["000000.rows.arrow"]
    assert after["000001.rows.arrow"] == before["000001.rows.arrow"]
    library = Library([str(made.folder)])
    row = np.array([library.find(changed)])
    assert library.take(row, ["decision_half"])["decision_half"] == ["kept"]
    language = made.folder / "tags" / "language"
    pl.read_parquet(language / "00000001.parquet").with_columns(language=pl.lit("fr")).write_parquet(
        language / "00000001.parquet"
    )
    stats = language / "00000001.stats.json"
    stats.write_text(json.dumps({**json.loads(stats.read_text()), "seconds": 3.0}))
    build_index(made.folder, rows_per_part=100)
    library = Library([str(made.folder)])
    row = np.array([library.find(made.rows["uid"][150])])
    assert library.take(row, ["language"])["language"] == ["fr"]
    assert stamps(made.folder / "index" / "parts")["000000.rows.arrow"] == after["000000.rows.arrow"]


def test_a_compared_recipe_judges_again_when_there_are_more_shards_and_only_then(made):
    recipe = RecipeConfig(
        name="high", version="1", source="-", min_text_length=0, min_bytes=0,
        rules=[RuleConfig(reason="low", keep="clip_score >= 0.5")],
    )  # fmt: skip
    rules = compile_rules(recipe, pl.Schema({**base_schema(), "clip_score": pl.Float32}))
    folder = made.folder / "index" / "select" / "high"
    stage = index.Comparison(
        "index/select/high", folder, {}, made.folder / "raw", made.folder / "tags", recipe,
        {"clip": ["clip_score"]}, rules,
    )  # fmt: skip

    def judged():
        report = run_stage(stage, Inline(), max_failed_fraction=0.0)
        return report.done, pl.read_parquet(folder / DECISIONS_NAME).height

    assert judged() == (1, 200)
    assert judged() == (0, 200)
    reveal(made.folder, "00000002")
    assert judged() == (1, 300)
    assert judged() == (0, 300)


def test_an_index_that_has_grown_too_far_is_built_anew(tmp_path):
    made = write_run(tmp_path / "run", rows=500, shards=5)
    for number in range(1, 5):
        hide(made.folder, f"{number:08d}")
    build_index(made.folder)
    for number in range(1, 4):
        reveal(made.folder, f"{number:08d}")
    build_index(made.folder)  # four times as many
    reveal(made.folder, "00000004")
    with pytest.raises(
        ConfigError,
        match=r"trained for 100 rows and would now have 500; up to 4 times .* delete the folder index/",
    ):
        build_index(made.folder)
    assert Library([str(made.folder)]).num_rows == 400
    shutil.rmtree(made.folder / "index")
    build_index(made.folder)
    assert Library([str(made.folder)]).num_rows == 500


def test_it_says_when_another_kind_of_index_would_be_chosen_now(made, caplog):
    build_index(made.folder, exact_rows=250)
    assert "would be" not in caplog.text
    reveal(made.folder, "00000002")
    build_index(made.folder, exact_rows=250)
    assert "index of images is exact with 64 bytes a vector, made for 200 rows; for the 300" in caplog.text
    assert "it would be ivf_sq8 with 32" in caplog.text
    assert Library([str(made.folder)]).num_rows == 300


def test_other_settings_or_another_model_are_refused_as_ever(made):
    build_index(made.folder)
    reveal(made.folder, "00000002")
    with pytest.raises(ConfigError, match=r"setting rows_per_part was 100 and is now 50"):
        build_index(made.folder, rows_per_part=50)
    manifest = made.folder / "tags" / "clip" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("openai", "laion2b"))
    with pytest.raises(ConfigError, match=r"setting model was .*openai.* and is now .*laion2b"):
        build_index(made.folder)


def test_new_parts_come_after_those_that_are_there():
    earlier = cut_parts({"a": 60, "b": 30}, 100)
    assert [
        (part["name"], part["shards"], part["base"], part["rows"])
        for part in cut_parts({"c": 5, "d": 96}, 100, earlier)
    ] == [("000001", ["c"], 128, 5), ("000002", ["d"], 192, 96)]

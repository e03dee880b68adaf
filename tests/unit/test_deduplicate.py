"""Deduplication: every pair once, the same one whatever the grouping, in shards of even size."""

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_stages import InlineExecutor, outputs

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import write_json
from crawl2clip.schema import CANDIDATE_SCHEMA, uid_of
from data_pipeline.deduplicate import DeduplicateConfig, make_stages
from data_pipeline.stage import MANIFEST, STATS_SUFFIX, Counts, TooManyFailures, finished_shards, run_stage


def candidate(
    url, text, *, date="2024-01-01T00:00:00Z", crawl_file="a.wat", offset=0, page="http://p/", source="alt"
):
    values = (uid_of(url, text), url, text, source, page, None, None, crawl_file, offset, date, None, None)
    return dict(zip(CANDIDATE_SCHEMA.names, values, strict=True))


def write_candidates(folder, files):
    """What the extract stage leaves: files of rows with their stats and a manifest."""
    folder.mkdir(parents=True)
    for name, rows in files.items():
        pq.write_table(pa.Table.from_pylist(rows, CANDIDATE_SCHEMA), folder / f"{name}.parquet")
        counts = Counts(len(rows), len(rows)).to_json()
        write_json(folder / f"{name}{STATS_SUFFIX}", {"counts": counts, "seconds": 0.0, "files": {}})
    write_json(folder / MANIFEST, {"settings": {}, "shards": [{"name": name} for name in files]})


def deduplicate(output_dir, *, rows_per_run=1000, rows_per_shard=100, **more):
    """All steps: (rows by download shard, counts of each step)."""
    asked = DeduplicateConfig(rows_per_run=rows_per_run, rows_per_shard=rows_per_shard, **more)
    steps = make_stages(SimpleNamespace(output_dir=str(output_dir), deduplicate=asked))
    counts = [run_stage(step, InlineExecutor(), max_failed_fraction=0).counts for step in steps]
    folder = output_dir / "deduplicated"
    shards = {name: pq.read_table(folder / f"{name}.parquet") for name in finished_shards(folder)}
    return shards, counts


def many(count, *, repeated, seed=0):
    """Rows with `repeated` more copies of some of them, from other pages, shuffled."""
    numbers = random.Random(seed)
    rows = [candidate(f"http://host{index % 7}/{index}.jpg", f"picture {index}") for index in range(count)]
    for index in range(repeated):
        rows.append(rows[index % count] | {"offset": index + 1, "page_url": f"http://q/{index}"})
    numbers.shuffle(rows)
    return rows


def test_every_pair_is_kept_once_and_shards_are_even(tmp_path):
    rows = many(1000, repeated=400)
    write_candidates(tmp_path / "candidates", {"a": rows[:500], "b": rows[500:510], "c": [], "d": rows[510:]})
    shards, counts = deduplicate(tmp_path, rows_per_run=600, rows_per_shard=64)
    kept = [row for table in shards.values() for row in table.to_pylist()]
    assert Counter(row["uid"] for row in kept) == Counter({row["uid"]: 1 for row in rows})
    assert all(row["offset"] == 0 for row in kept)  # the earlier of equal pairs
    assert all(table.schema.equals(CANDIDATE_SCHEMA) and table.num_rows <= 64 for table in shards.values())
    assert all(len(name) == 8 and name.isdigit() for name in shards)
    assert counts[0].rows_in == 1400
    assert counts[2].rows_out == 1000
    assert sum(step.dropped["duplicate"] for step in counts) == 400
    uids = [row["uid"] for row in kept]
    assert uids == sorted(uids)


def test_pieces_of_a_range_differ_by_little(tmp_path):
    write_candidates(tmp_path / "candidates", {"a": many(1001, repeated=0)})
    shards, _ = deduplicate(tmp_path, rows_per_run=5000, rows_per_shard=100)
    sizes = [table.num_rows for table in shards.values()]
    assert (len(sizes), max(sizes), min(sizes)) == (11, 91, 91)
    assert list(shards) == [f"00000{piece:03d}" for piece in range(11)]


def test_hosts_are_mixed(tmp_path):
    rows = [
        candidate(f"http://host{host}/{index}", f"text {index}") for host in range(4) for index in range(200)
    ]
    write_candidates(tmp_path / "candidates", {"a": rows})
    shards, _ = deduplicate(tmp_path)
    for table in shards.values():
        hosts = Counter(url.split("/")[2] for url in table.column("url").to_pylist())
        assert len(hosts) == 4
        assert max(hosts.values()) < 0.6 * table.num_rows


def test_the_result_does_not_depend_on_how_files_are_grouped(tmp_path):
    rows = many(600, repeated=300, seed=1)
    for name, cut, rows_per_run in (("a", 200, 300), ("b", 800, 10_000), ("c", 450, 90)):
        write_candidates(tmp_path / name / "candidates", {"x": rows[:cut], "y": rows[cut:]})
        deduplicate(tmp_path / name, rows_per_run=rows_per_run, rows_per_shard=10_000)
    a, b, c = (
        [
            row
            for path in sorted((tmp_path / name / "deduplicated").glob("*.parquet"))
            for row in pq.read_table(path).to_pylist()
        ]
        for name in "abc"
    )
    assert a == b == c


def test_the_same_input_gives_the_same_bytes(tmp_path):
    rows = many(500, repeated=100)
    for name in "ab":
        write_candidates(tmp_path / name / "candidates", {"x": rows})
        deduplicate(tmp_path / name, rows_per_run=100)
    made = [outputs(tmp_path / name / "deduplicated") for name in "ab"]
    assert made[0].keys() == made[1].keys()
    for path, content in made[0].items():
        if path.endswith(".parquet"):
            assert made[1][path] == content, path


def test_the_earliest_page_wins_then_file_then_offset(tmp_path):
    url, text = "http://h/a.jpg", "a picture"
    rows = [
        candidate(url, text, date=None, crawl_file="a", offset=0),
        candidate(url, text, date="2024-03-01", crawl_file="a", offset=0),
        candidate(url, text, date="2023-03-01", crawl_file="b", offset=9),
        candidate(url, text, date="2023-03-01", crawl_file="b", offset=5),
        candidate(url, text, date="2023-03-01", crawl_file="c", offset=1),
    ]
    for number in range(4):
        random.Random(number).shuffle(rows)
        write_candidates(tmp_path / str(number) / "candidates", {"x": rows[:2], "y": rows[2:]})
        shards, _ = deduplicate(tmp_path / str(number), rows_per_run=2)
        (winner,) = next(iter(shards.values())).to_pylist()
        assert (winner["page_date"], winner["crawl_file"], winner["offset"]) == ("2023-03-01", "b", 5)


def test_equal_texts_with_other_urls_and_the_reverse_both_stay(tmp_path):
    rows = [
        candidate("http://h/a", "same text"),
        candidate("http://h/b", "same text"),
        candidate("http://h/a", "other text"),
    ]
    write_candidates(tmp_path / "candidates", {"x": rows})
    shards, _ = deduplicate(tmp_path)
    assert sum(table.num_rows for table in shards.values()) == 3


def test_no_candidates_at_all_is_an_error_that_says_so(tmp_path):
    write_candidates(tmp_path / "candidates", {"x": []})
    with pytest.raises(DataError, match=r"stage 'deduplicate/runs' has nothing to do.*dropped every row"):
        deduplicate(tmp_path)


def test_a_range_of_too_many_download_shards_names_the_setting(tmp_path):
    # All of 1001 pairs in the first of the three ranges, as no hash would have them.
    rows = [row | {"uid": f"{index:032x}"} for index, row in enumerate(many(1001, repeated=0))]
    write_candidates(tmp_path / "candidates", {"x": rows})
    with pytest.raises(
        TooManyFailures,
        match=r"range 00000-00003 has 1001 candidates, more than 1000 download shards of 1 hold; "
        r"set deduplicate\.rows_per_shard higher",
    ):
        deduplicate(tmp_path, rows_per_shard=1)


def test_settings_are_checked():
    DeduplicateConfig(rows_per_run=1, rows_per_shard=1)
    with pytest.raises(ConfigError, match=r"deduplicate\.rows_per_shard is 0; give 1 or more"):
        DeduplicateConfig(rows_per_run=1, rows_per_shard=0)


def test_a_run_has_one_batch_for_each_range(tmp_path):
    write_candidates(tmp_path / "candidates", {"x": many(9000, repeated=0)})
    deduplicate(tmp_path, rows_per_run=3000, rows_per_shard=3000)
    runs = sorted((tmp_path / "deduplicated" / "runs").glob("*.arrow"))
    assert [path.name for path in runs] == ["00000-0-3000.arrow", "00001-3000-6000.arrow", "00002-6000-9000.arrow"]
    sizes = []
    for path in runs:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            sizes.append([reader.get_batch(index).num_rows for index in range(reader.num_record_batches)])
    assert [len(each) for each in sizes] == [3, 3, 3]
    assert sum(map(sum, sizes)) == 9000

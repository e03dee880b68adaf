"""Deduplication: every pair once, the same one whatever the grouping, in shards of even size."""

import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_stages import InlineExecutor, outputs

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import write_json
from crawl2clip.schema import CANDIDATE_SCHEMA, uid_of, uids_to_array
from data_pipeline.blocklist import BlockKind, hash_of
from data_pipeline.deduplicate import DeduplicateConfig, make_stages
from data_pipeline.deduplicate_keys import DeduplicateBy
from data_pipeline.deduplicate_rows import read_candidates
from data_pipeline.deduplicate_winner import WINNER_ORDER, first_of_each
from data_pipeline.stage import (
    MANIFEST,
    STATS_SUFFIX,
    Counts,
    TooManyFailures,
    finished_shards,
    read_stats,
    run_stage,
)


def candidate(
    url, text, *, date="2024-01-01T00:00:00Z", crawl_file="a.wat", offset=0, page="http://p/", source="alt"
):
    values = (
        uid_of(url, text),
        url,
        text,
        source,
        page,
        None,
        None,
        crawl_file,
        offset,
        date,
        None,
        None,
        None,
    )
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


def test_settings_are_checked(tmp_path):
    DeduplicateConfig(rows_per_run=1, rows_per_shard=1)
    with pytest.raises(ConfigError, match=r"deduplicate\.rows_per_shard is 0; give 1 or more"):
        DeduplicateConfig(rows_per_run=1, rows_per_shard=0)
    write_candidates(tmp_path / "unfinished" / "deduplicated", {"00000000": []})
    (tmp_path / "unfinished" / "deduplicated" / f"00000000{STATS_SUFFIX}").unlink()
    write_candidates(tmp_path / "old" / "deduplicated", {"00000000": []})
    for earlier, message in (
        (
            ["nowhere"],
            r"earlier names nowhere, but nowhere/deduplicated/manifest\.json is not there: give the",
        ),
        ([str(tmp_path / "new")], r"/new, which is this run's own output_dir"),
        ([str(tmp_path / "old")] * 2, r"/old twice; name each earlier run once"),
        ([str(tmp_path / "unfinished")], r"stage=deduplicate has 0 of 1 shards; finish that run first"),
    ):
        with pytest.raises(ConfigError, match=message):
            deduplicate(tmp_path / "new", earlier=earlier)


def test_a_run_has_one_batch_for_each_range(tmp_path):
    write_candidates(tmp_path / "candidates", {"x": many(9000, repeated=0)})
    deduplicate(tmp_path, rows_per_run=3000, rows_per_shard=3000)
    runs = sorted((tmp_path / "deduplicated" / "runs").glob("*.arrow"))
    assert [path.name for path in runs] == [
        "00000-0-3000.arrow",
        "00001-3000-6000.arrow",
        "00002-6000-9000.arrow",
    ]
    sizes = []
    for path in runs:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            sizes.append([reader.get_batch(index).num_rows for index in range(reader.num_record_batches)])
    assert [len(each) for each in sizes] == [3, 3, 3]
    assert sum(map(sum, sizes)) == 9000


# Skew, bounds


def test_one_pair_repeated_without_end_leaves_each_run_once(tmp_path):
    rows = many(50, repeated=0)
    flood = [rows[0] | {"offset": index} for index in range(5000)]
    write_candidates(tmp_path / "candidates", {"a": flood[:3000], "b": flood[3000:] + rows})
    shards, counts = deduplicate(tmp_path, rows_per_run=500)
    assert sum(table.num_rows for table in shards.values()) == 50
    assert (
        counts[0].rows_out <= 50 + 11
    )  # what the ranges have to read: of the flood one row for each of 11 runs
    assert counts[0].dropped["duplicate"] + counts[1].dropped["duplicate"] == 5000


def test_one_url_with_many_texts(tmp_path):
    rows = [candidate("http://h/a.jpg", f"text {index}", offset=index) for index in range(4000)]
    random.Random(0).shuffle(rows)
    write_candidates(tmp_path / "pairs" / "candidates", {"x": rows})
    shards, _ = deduplicate(tmp_path / "pairs", rows_per_run=500)
    assert sum(table.num_rows for table in shards.values()) == 4000
    largest = max(
        read_stats(tmp_path / "pairs" / "deduplicated" / "ranges", name)["counts"]["rows_in"]
        for name in finished_shards(tmp_path / "pairs" / "deduplicated" / "ranges")
    )
    assert largest < 2 * 500  # pairs of one url are spread over all ranges
    write_candidates(tmp_path / "urls" / "candidates", {"x": rows})
    shards, counts = deduplicate(tmp_path / "urls", rows_per_run=500, by=DeduplicateBy.url)
    (table,) = shards.values()
    assert [row["text"] for row in table.to_pylist()] == ["text 0"]
    assert (counts[0].rows_out, counts[1].rows_out) == (8, 1)


def test_parts_of_a_large_file_are_read_by_row_number(tmp_path):
    rows = many(1000, repeated=0)
    write_candidates(tmp_path / "candidates", {"x": []})
    path = tmp_path / "candidates" / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows, CANDIDATE_SCHEMA), path, row_group_size=130)
    for start, stop in ((0, 1000), (0, 130), (129, 131), (260, 390), (999, 1000), (17, 940)):
        found = read_candidates(str(path), slice(start, stop)).column("uid").to_pylist()
        assert found == [row["uid"] for row in rows[start:stop]]


# The winner


@pytest.mark.parametrize("by", list(DeduplicateBy))
def test_the_winner_is_that_of_a_plain_sort(tmp_path, by):
    """Few values in every column, so that all columns decide somewhere; nulls and odd dates among them."""
    rng = random.Random(3)
    dates = [None, "2023-01-01T00:00:00Z", "2024-01-01T00:00:00Z", "2023-01-01", ""]
    rows = []
    for _ in range(3000):
        row = candidate(f"http://h/{rng.randrange(20)}", f"text {rng.randrange(3)}")
        row |= {
            "page_date": rng.choice(dates[: rng.choice([3, 5])]),
            "crawl_file": rng.choice(["b", "a", None]),
        }
        row |= {"offset": rng.choice([None, 7, 2]), "text_source": rng.choice(["alt", "title"])}
        row |= {"page_url": rng.choice(["http://p/", "http://q/", None]), "license": rng.choice([None, "cc"])}
        rows.append(row)
    others = [name for name in CANDIDATE_SCHEMA.names if name not in WINNER_ORDER]

    def order(row):
        return [(row[name] is None, row[name]) for name in (*WINNER_ORDER, *others)]

    expected = {}
    for row in sorted(rows, key=order, reverse=True):
        expected[row["uid"] if by == DeduplicateBy.pair else row["url"]] = row
    for number in range(3):
        rng.shuffle(rows)
        folder = tmp_path / f"{by.value}{number}"
        write_candidates(folder / "candidates", {"x": rows[:700], "y": rows[700:]})
        shards, _ = deduplicate(folder, rows_per_run=[800, 100_000, 90][number], by=by)
        kept = [row for table in shards.values() for row in table.to_pylist()]
        assert len(kept) == len(expected)
        assert sorted(kept, key=order) == sorted(expected.values(), key=order)


def test_two_keys_with_one_high_half_both_stay():
    high = np.array([5, 5, 5, 1, 5], np.uint64)
    low = np.array([9, 2, 9, 4, 2], np.uint64)
    table = pa.table({"page_date": pa.array(["b", "b", "a", None, None], pa.large_string())})
    assert first_of_each(table, high, low).tolist() == [3, 1, 2]


# Earlier crawls


def keys(output_dir, name):
    files = (output_dir / "deduplicated").glob("*.parquet")
    return [value for path in files for value in pq.read_table(path).column(name).to_pylist()]


@pytest.mark.parametrize("by", list(DeduplicateBy))
def test_crawls_one_after_the_other_have_the_keys_of_all_at_once(tmp_path, by):
    rows = many(900, repeated=500, seed=4)
    rows += [candidate(f"http://host0/{index}.jpg", "another text") for index in range(0, 900, 7)]
    random.Random(5).shuffle(rows)
    crawls = {"a": rows[:500], "b": rows[500:1000], "c": rows[1000:]}
    earlier: list[str] = []
    dropped = []
    for number, (name, part) in enumerate(crawls.items()):
        write_candidates(tmp_path / name / "candidates", {"x": part})
        _, counts = deduplicate(
            tmp_path / name, rows_per_run=[100, 1000, 57][number], rows_per_shard=30, by=by, earlier=earlier
        )
        dropped.append(sum(step.dropped["in_earlier_crawl"] for step in counts))
        earlier.append(str(tmp_path / name))
    write_candidates(tmp_path / "all" / "candidates", crawls)
    deduplicate(tmp_path / "all", rows_per_run=200, by=by)
    column = "uid" if by == DeduplicateBy.pair else "url"
    one_by_one = [key for name in crawls for key in keys(tmp_path / name, column)]
    assert len(one_by_one) == len(set(one_by_one))
    assert set(one_by_one) == set(keys(tmp_path / "all", column))
    seen: set[str] = set()
    for part, count in zip(crawls.values(), dropped, strict=True):
        found = {row[column] for row in part}
        assert count == len(found & seen)
        seen |= found


def test_a_crawl_without_anything_new_is_an_error_that_says_so(tmp_path):
    for name in "ab":
        write_candidates(tmp_path / name / "candidates", {"x": many(20, repeated=0)})
    deduplicate(tmp_path / "a")
    with pytest.raises(DataError, match=r"stage 'deduplicate/shards' has nothing to do.*dropped every row"):
        deduplicate(tmp_path / "b", earlier=[str(tmp_path / "a")])
    stats = read_stats(tmp_path / "b" / "deduplicated" / "ranges", "00000-00001")
    assert stats["counts"]["dropped"] == {"in_earlier_crawl": 20}


def test_a_damaged_earlier_run_is_named(tmp_path):
    for name in "ab":
        write_candidates(tmp_path / name / "candidates", {"x": many(20, repeated=0)})
    deduplicate(tmp_path / "a")
    path = tmp_path / "a" / "deduplicated" / "00000000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        TooManyFailures, match=r"a/deduplicated/00000000\.parquet cannot be read as deduplicated"
    ):
        deduplicate(tmp_path / "b", earlier=[str(tmp_path / "a")])


# Bad candidates


def test_bad_candidate_files_are_named(tmp_path):
    whole = pa.Table.from_pylist(many(3000, repeated=0), CANDIDATE_SCHEMA)
    pq.write_table(whole, tmp_path / "whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()
    bad_uid = pa.Table.from_pylist(
        [candidate("http://h/", "a") | {"uid": uid} for uid in ("0" * 32, "z" * 32)]
    )
    short_uid = pa.Table.from_pylist([candidate("http://h/", "a") | {"uid": "00"}])
    no_url = pa.Table.from_pylist([candidate("http://h/", "a") | {"url": None}])
    cases = {
        "cut": (data[: len(data) // 2], "cannot be read as candidates"),
        "empty": (b"", "cannot be read as candidates"),
        "html": (b"<html>not found</html>" * 9, "cannot be read as candidates"),
        "damaged": (data[:500] + bytes(len(data) - 4000) + data[-3500:], "cannot be read as candidates"),
        "columns": (
            whole.drop_columns(["url", "offset"]),
            "lacks the columns url, offset; candidates come from",
        ),
        "types": (whole.set_column(1, "url", pa.array([[1]] * 3000)), "cannot be read as candidates"),
        "bad_uid": (bad_uid, "holds what is no candidate"),
        "short_uid": (short_uid, r"holds what is no candidate \(a uid is not 32 hex digits\)"),
        "no_url": (no_url, "has rows without url; make it again"),
    }
    for name, (content, message) in cases.items():
        folder = tmp_path / name / "candidates"
        write_candidates(folder, {"good": many(5, repeated=0), "bad": many(5, repeated=0)})
        if isinstance(content, bytes):
            (folder / "bad.parquet").write_bytes(content)
        else:
            pq.write_table(content, folder / "bad.parquet")
        with pytest.raises(TooManyFailures, match=rf"/{name}/candidates/bad\.parquet {message}"):
            deduplicate(tmp_path / name)


def test_a_damaged_run_is_named(tmp_path):
    write_candidates(tmp_path / "candidates", {"x": many(3000, repeated=0)})
    asked = DeduplicateConfig(rows_per_run=1000, rows_per_shard=100)
    runs, ranges, _ = make_stages(SimpleNamespace(output_dir=str(tmp_path), deduplicate=asked))
    run_stage(runs, InlineExecutor(), max_failed_fraction=0)
    path = runs.folder / "00001-1000-2000.arrow"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(TooManyFailures, match=r"runs/00001-1000-2000\.arrow cannot be read as a sorted run"):
        run_stage(ranges, InlineExecutor(), max_failed_fraction=0)


def test_columns_beside_the_schema_are_left_and_null_dates_kept(tmp_path):
    rows = [candidate("http://h/a", "one", date=None), candidate("http://h/b", "two", date=None)]
    write_candidates(tmp_path / "candidates", {"x": rows})
    table = pa.Table.from_pylist(rows, CANDIDATE_SCHEMA).append_column("more", pa.array([1, 2]))
    pq.write_table(table, tmp_path / "candidates" / "x.parquet")
    shards, _ = deduplicate(tmp_path)
    (table,) = shards.values()
    assert table.schema.equals(CANDIDATE_SCHEMA)
    assert sorted(table.to_pylist(), key=str) == sorted(rows, key=str)


# Blocklists


def test_blocked_rows_are_dropped_and_counted_by_reason(tmp_path):
    rows = [
        candidate("http://h/a.jpg", "a"),
        candidate("http://h/a.jpg", "a", offset=1),
        candidate("http://h/b.jpg", "b"),
        candidate("http://h/b.jpg", "c"),
        candidate("http://www.bad.org:8080/c.jpg", "d"),
        candidate("https://bad.org/d.jpg", "e"),
        candidate("http://notbad.org/e.jpg", "f"),
        candidate("http://bad.org.uk/f.jpg", "g"),
    ]
    write_candidates(tmp_path / "candidates", {"x": rows})
    entries = [
        f"uid:{uid_of('http://h/a.jpg', 'a').upper()}",
        f"url:{hash_of(BlockKind.url, 'HTTP://h:80/b.jpg#x')}",
        f"domain:{hash_of(BlockKind.domain, 'Bad.org')}",
    ]
    listed = tmp_path / "blocked.txt"
    listed.write_text("# a list\n\n" + "\n".join(entries) + "\n")
    shards, counts = deduplicate(tmp_path, blocklist=[str(listed)])
    assert {row["text"] for table in shards.values() for row in table.to_pylist()} == {"f", "g"}
    assert counts[0].extra == {"uid_hashes": 1, "url_hashes": 1, "domain_hashes": 1}
    assert counts[1].dropped == {"blocked_uid": 2, "blocked_url": 2, "blocked_domain": 2}
    assert (counts[1].rows_in, counts[1].rows_out) == (8, 2)


def test_another_text_takes_the_place_of_a_blocked_one(tmp_path):
    rows = [candidate("http://h/a", "blocked", date="2020"), candidate("http://h/a", "later", date="2021")]
    write_candidates(tmp_path / "candidates", {"x": rows})
    listed = tmp_path / "blocked.npy"
    np.save(listed, uids_to_array([rows[0]["uid"]]))
    shards, counts = deduplicate(tmp_path, by=DeduplicateBy.url, blocklist=[str(listed)])
    assert [row["text"] for table in shards.values() for row in table.to_pylist()] == ["later"]
    assert counts[1].dropped == {"blocked_uid": 1}


def test_a_list_that_blocks_nothing_or_everything(tmp_path):
    listed = tmp_path / "blocked.txt"
    for name, entry in (
        ("nothing", "# nothing"),
        ("everything", f"domain:{hash_of(BlockKind.domain, 'org')}"),
    ):
        listed.write_text(entry)
        rows = [candidate(f"http://h{index}.org/a.jpg", "a") for index in range(5)]
        write_candidates(tmp_path / name / "candidates", {"x": rows})
        if name == "nothing":
            shards, _ = deduplicate(tmp_path / name, blocklist=[str(listed)])
            assert sum(table.num_rows for table in shards.values()) == 5
        else:
            with pytest.raises(DataError, match="shards' has nothing to do"):
                deduplicate(tmp_path / name, blocklist=[str(listed)])


def test_another_content_of_a_blocklist_is_noticed(tmp_path):
    write_candidates(tmp_path / "candidates", {"x": many(20, repeated=0)})
    listed = tmp_path / "blocked.txt"
    listed.write_text(f"domain:{hash_of(BlockKind.domain, 'host1')}")
    deduplicate(tmp_path, blocklist=[str(listed)])
    listed.write_text(f"domain:{hash_of(BlockKind.domain, 'host2')}")
    with pytest.raises(ConfigError, match=r"was made by another run .*setting blocklist was"):
        deduplicate(tmp_path, blocklist=[str(listed)])

"""Deduplication as it runs: kills in every step, any number of workers, and the real command on crawl after crawl."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawl_files import image, member, wat_record, wat_value
from toy_stages import InlineExecutor, outputs

from crawl2clip.files import read_json, write_json
from crawl2clip.schema import CANDIDATE_SCHEMA, uid_of
from data_pipeline.blocklist import BlockKind, hash_of
from data_pipeline.deduplicate import DeduplicateConfig, make_stages
from data_pipeline.executors.local import LocalExecutor
from data_pipeline.stage import MANIFEST, STATS_SUFFIX, finished_shards, run_stage

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"blocklist": "blocklist", "runs": "runs", "earlier": "earlier", "ranges": "ranges", "shards": ""}

PROGRAM = """
import sys
from pathlib import Path
from test_pipeline_deduplicate import deduplicate
from toy_stages import DyingExecutor

if __name__ == "__main__":
    output_dir, given, dies_in = sys.argv[1:]
    executor = DyingExecutor(f"deduplicate/{dies_in}", 1, num_workers=2, retries=0, shard_timeout_s=60)
    deduplicate(Path(output_dir), Path(given), {dies_in: executor})
"""


def deduplicate(output_dir, given, executors=None):
    """Runs all steps, in this process where `executors` names no other for a step."""
    asked = DeduplicateConfig(
        rows_per_run=300,
        rows_per_shard=100,
        earlier=[str(given / "earlier")],
        blocklist=[str(given / "blocked.txt")],
    )
    for stage in make_stages(SimpleNamespace(output_dir=str(output_dir), deduplicate=asked)):
        executor = (executors or {}).get(stage.name.rpartition("/")[2], InlineExecutor())
        run_stage(stage, executor, max_failed_fraction=0)


def run_until_killed(output_dir, given, dies_in):
    """The exit status of a process that is killed when the step has made one shard."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "integration")))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(output_dir), str(given), dies_in]
    return subprocess.run(
        command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, check=False
    ).returncode


def write_stage(folder, files):
    """What a finished stage leaves: files of candidates with their stats and a manifest."""
    folder.mkdir(parents=True)
    for name, numbers in files.items():
        rows = [
            (
                uid_of(url, "text"),
                url,
                "text",
                "alt",
                f"http://p/{number}",
                None,
                None,
                name,
                number,
                "2024-05-01T00:00:00Z",
            )
            for number in numbers
            for url in [f"http://h{number % 5}.org/{number % 1000}.jpg"]
        ]
        names = (
            "uid",
            "url",
            "text",
            "text_source",
            "page_url",
            "page_language",
            "license",
            "crawl_file",
            "offset",
            "page_date",
        )
        values = [dict(zip(names, row, strict=True)) for row in rows]
        pq.write_table(pa.Table.from_pylist(values, CANDIDATE_SCHEMA), folder / f"{name}.parquet")
        counts = {"rows_in": len(rows), "rows_out": len(rows), "dropped": {}, "extra": {}}
        write_json(folder / f"{name}{STATS_SUFFIX}", {"counts": counts, "seconds": 0.0, "files": {}})
    shards = [{"name": name, "inputs": []} for name in files]
    write_json(folder / MANIFEST, {"settings": {}, "upstream": {}, "shards": shards})


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Candidates 0..1000 in six files of repeats, an earlier run with some of them, and a blocklist."""
    folder = tmp_path_factory.mktemp("given")
    write_stage(
        folder / "candidates", {f"{index}": range(index * 170, index * 170 + 500) for index in range(6)}
    )
    early = [range(start, start + 50) for start in range(0, 1000, 100)]
    write_stage(
        folder / "earlier" / "deduplicated", {f"{index}": numbers for index, numbers in enumerate(early * 3)}
    )
    (folder / "blocked.txt").write_text(f"domain:{hash_of(BlockKind.domain, 'h3.org')}\n")
    return folder


def start(given, output_dir):
    """An output folder with the extract stage done."""
    output_dir.mkdir()
    (output_dir / "candidates").symlink_to(given / "candidates")
    return output_dir


def made(output_dir):
    found = outputs(output_dir / "deduplicated")
    return {name: content for name, content in found.items() if not name.endswith(MANIFEST)}


@pytest.fixture(scope="module")
def unbroken(given, tmp_path_factory):
    folder = start(given, tmp_path_factory.mktemp("unbroken") / "out")
    deduplicate(folder, given)
    files = made(folder)
    shards = [name for name in files if "/" not in name]
    uids = [
        uid
        for name in shards
        for uid in pq.read_table(folder / "deduplicated" / name).column("uid").to_pylist()
    ]
    expected = [number for number in range(1000) if number % 100 >= 50 and number % 5 != 3]
    assert sorted(uids) == sorted(
        uid_of(f"http://h{number % 5}.org/{number}.jpg", "text") for number in expected
    )
    return files


@pytest.mark.parametrize("step", STEPS)
def test_kill_and_rerun_give_the_bytes_of_an_unbroken_run(step, given, unbroken, tmp_path):
    """kill -9 in the middle of every step; the next run finishes what is missing."""
    output_dir = start(given, tmp_path / "out")
    assert run_until_killed(output_dir, given, step) == -signal.SIGKILL
    assert len(finished_shards(output_dir / "deduplicated" / STEPS[step])) >= 1
    assert made(output_dir) != unbroken or step in ("shards", "blocklist")
    deduplicate(output_dir, given)
    assert made(output_dir) == unbroken
    # Of a step whose only shard was in place, the empty folder in which it was made stays.
    assert not [path for folder in output_dir.rglob(".tmp") for path in folder.rglob("*") if path.is_file()]


def test_the_bytes_do_not_depend_on_the_number_of_workers(given, unbroken, tmp_path):
    output_dir = start(given, tmp_path / "out")
    workers = LocalExecutor(num_workers=3, retries=0, shard_timeout_s=60)
    deduplicate(output_dir, given, dict.fromkeys(("runs", "ranges"), workers))
    assert made(output_dir) == unbroken


# The command


def crawl(folder, pages):
    """A WAT file with a page for each number."""
    values = [
        wat_value([image("a.jpg", f"the picture {page}")], url=f"https://h{page}.org/") for page in pages
    ]
    path = folder / f"{pages[0]}.wat.gz"
    path.write_bytes(b"".join(member(wat_record(value)) for value in values))
    return path


def command(crawl_file, output_dir, *more):
    words = [
        "recipe=datacomp_basic",
        f"source.files=['{crawl_file}']",
        f"output_dir={output_dir}",
        "executor.num_workers=1",
    ]
    return subprocess.run(
        [sys.executable, "-m", "data_pipeline", *words, *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_second_crawl_through_the_command(tmp_path):
    first, second = crawl(tmp_path, range(0, 10)), crawl(tmp_path, range(5, 20))
    plain = tmp_path / "domains.txt"
    plain.write_text("h7.org\nh11.org\n")
    blocked = tmp_path / "blocked.parquet"
    made_list = [
        sys.executable,
        "-m",
        "data_pipeline.blocklist",
        "--output",
        str(blocked),
        "--domains",
        str(plain),
    ]
    subprocess.run(made_list, cwd=ROOT, check=True, capture_output=True)
    for path, name, more in (
        (first, "a", []),
        (second, "b", [f"deduplicate.earlier=[{tmp_path / 'a'}]", f"deduplicate.blocklist=[{blocked}]"]),
    ):
        for stage in ("extract", "deduplicate"):
            done = command(path, tmp_path / name, f"stage={stage}", *more, "deduplicate.by=url")
            assert done.returncode == 0, done.stderr[-2000:]
    row = read_json(tmp_path / "b" / "funnel.json")["stages"][1]
    assert (row["rows_in"], row["rows_out"]) == (15, 9)
    assert row["dropped"] == {"in_earlier_crawl": 4, "blocked_domain": 2}
    urls = [
        url
        for path in (tmp_path / "b" / "deduplicated").glob("*.parquet")
        for url in pq.read_table(path).column("url").to_pylist()
    ]
    assert sorted(urls) == sorted(f"https://h{page}.org/a.jpg" for page in range(10, 20) if page != 11)


def test_errors_come_before_any_work(tmp_path):
    path = crawl(tmp_path, range(3))
    for words, message in (
        ([f"deduplicate.earlier=[{tmp_path}/nowhere]"], "error: deduplicate.earlier names"),
        ([f"deduplicate.blocklist=[{tmp_path}/nowhere.txt]"], "error: deduplicate.blocklist names"),
        (["deduplicate.by=text"], "by"),
    ):
        done = command(
            path, tmp_path / "out", *words, "download.user_agent='tests/1.0 (+https://example.org/bot)'"
        )
        assert done.returncode == 2
        assert message in done.stderr
        assert not (tmp_path / "out" / "candidates").exists()

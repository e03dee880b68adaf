"""Our download stage on one list, for benchmarks/download.py.

    python download_ours.py FOLDER LIST.json SETTINGS.json

LIST is [[url, text], ...]; SETTINGS overrides the composed ones, as {"download.images.decoding": "scaled"}. Runs the
stage by the local executor and prints what came of the rows.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(folder: Path, pairs: list[list[str]], settings: dict[str, object]) -> dict[str, object]:
    """Downloads the list."""
    from hydra import compose, initialize_config_dir

    from crawl2clip.config import CONFIG_DIR, register, typed
    from data_pipeline.config import PipelineConfig
    from data_pipeline.download import make_stage
    from data_pipeline.executors import make_executor
    from data_pipeline.stage import run_stage

    register("data_pipeline_schema", PipelineConfig)
    words = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        composed = compose("data_pipeline", overrides=[f"output_dir={folder}", "source.files=[none]", *words])
    config = typed(composed, PipelineConfig)
    shards = write_candidates(folder / "deduplicated", pairs, config.executor.num_workers or 1)
    started = time.monotonic()
    report = run_stage(make_stage(config), make_executor(config.executor), max_failed_fraction=0.0)
    lost: Counter[str] = report.counts.dropped
    return {
        "rows": report.counts.rows_in, "stored": report.counts.rows_out, "lost": dict(lost),
        "shards": shards, "wall_s": round(time.monotonic() - started, 2),
    }  # fmt: skip


def write_candidates(folder: Path, pairs: list[list[str]], num_workers: int) -> int:
    """The folder of a finished deduplicate stage, with a shard for each worker or for 2,500 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from crawl2clip.files import write_json
    from crawl2clip.schema import CANDIDATE_SCHEMA, uid_of
    from data_pipeline.stage import Counts

    folder.mkdir(parents=True)
    rows = [{"uid": uid_of(url, text), "url": url, "text": text, "text_source": "alt"} for url, text in pairs]
    rows.sort(key=lambda row: row["uid"])
    number = max(num_workers, -(-len(rows) // 2500))
    names = [f"{index:08d}" for index in range(number)]
    for index, name in enumerate(names):
        table = pa.Table.from_pylist(rows[index::number], schema=CANDIDATE_SCHEMA)
        pq.write_table(table, folder / f"{name}.parquet")
        write_json(folder / f"{name}.stats.json", {"counts": Counts().to_json(), "seconds": 0.0})
    shards = [{"name": name, "inputs": []} for name in names]
    write_json(folder / "manifest.json", {"settings": {}, "upstream": {}, "shards": shards})
    return number


if __name__ == "__main__":
    print(
        json.dumps(
            main(
                Path(sys.argv[1]),
                json.loads(Path(sys.argv[2]).read_text()),
                json.loads(Path(sys.argv[3]).read_text()),
            )
        )
    )

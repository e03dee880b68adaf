"""`python -m data_pipeline.executors.slurm_task FOLDER`: one task of a job array, started by slurm/array.sbatch.

It makes its shards with the local executor, a worker a core or a GPU that Slurm granted, and then writes
`ended-N.json`. A task that is started again, after a requeue, does what is missing.
"""

import os
import pickle
import signal
import sys
from pathlib import Path
from types import FrameType

from crawl2clip.errors import Crawl2ClipError
from crawl2clip.files import read_json, write_json
from crawl2clip.logs import setup_logging
from crawl2clip.node_check import node_name, problems_of_node
from data_pipeline.completion import is_finished, record_failure, remove_temporary
from data_pipeline.executors.local import LocalExecutor
from data_pipeline.stage import Shard, Stage


def run_task(folder: Path, number: int) -> int:
    """Makes what is missing of a task's shards; returns the exit status."""
    ended = folder / f"ended-{number}.json"
    ended.unlink(missing_ok=True)
    stage: Stage = pickle.loads((folder / "stage.pickle").read_bytes())
    shards: list[Shard] = pickle.loads((folder / f"task-{number}.pickle").read_bytes())
    settings = read_json(folder / "settings.json")
    needs_gpu = os.environ.get("CRAWL2CLIP_NEEDS_GPU") == "1"
    problems = problems_of_node(needs_gpu, [str(stage.folder)])
    if problems:
        print(f"preflight: {node_name()}: {'; '.join(problems)}", file=sys.stderr)
        write_json(ended, {"node": node_name(), "node_problem": "; ".join(problems)})
        return 3
    remove_temporary(stage)
    missing = [shard for shard in shards if not is_finished(stage.folder, shard.name)]
    workers = int(os.environ.get("SLURM_GPUS_ON_NODE" if needs_gpu else "SLURM_CPUS_PER_TASK") or 1)
    print(
        f"{stage.name}: task {number} on {node_name()}: {len(missing)} of {len(shards)} shards, {workers} workers"
    )
    executor = LocalExecutor(num_workers=workers, **settings)
    failed = {}
    try:
        for outcome in executor.run(stage, missing) if missing else ():
            if outcome.error is not None:
                failed[outcome.shard.name] = outcome.error
                record_failure(stage.folder, outcome.shard, outcome.error)
                print(f"{stage.name}: shard {outcome.shard.name} failed: {outcome.error}", file=sys.stderr)
    except Crawl2ClipError as error:
        print(f"error: {error}", file=sys.stderr)
        write_json(ended, {"node": node_name(), "setup": str(error)})
        return 2
    remove_temporary(stage)
    write_json(ended, {"node": node_name(), "failed": failed})
    return 0


def _stop(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)  # the executor's `finally` ends its workers; finished shards are in place


if __name__ == "__main__":
    setup_logging()
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(run_task(Path(sys.argv[1]), int(os.environ["SLURM_ARRAY_TASK_ID"])))

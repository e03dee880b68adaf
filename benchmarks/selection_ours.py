"""Our select stage on a tagged run, in a process of its own, for benchmarks/selection.py.

python selection_ours.py FOLDER RECIPE
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipeline.recipe_diff import load_recipe, run_schema
from data_pipeline.rules import compile_rules
from data_pipeline.select import SelectStage
from data_pipeline.stage import make_shard, publish_shard, temporary_folder


def main(folder: str, recipe_name: str) -> None:
    """Runs the stage as a worker does."""
    root = Path(folder)
    recipe = load_recipe(recipe_name)
    schema, columns = run_schema(root)
    target = root / "subset" / recipe_name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    stage = SelectStage(
        "select", target, {}, root / "raw", root / "tags", recipe, columns, compile_rules(recipe, schema)
    )
    (shard,) = stage.shards()
    temporary = temporary_folder(stage, shard)
    make_shard(stage, None, shard, temporary)
    publish_shard(stage, shard, temporary)
    counts = __import__("json").loads((target / "subset.stats.json").read_text())["counts"]
    print("rows", counts["rows_in"], "kept", counts["rows_out"])


if __name__ == "__main__":
    main(*sys.argv[1:])

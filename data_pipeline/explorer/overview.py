"""What the explorer says of itself and of the runs as a whole: for the page, and for whoever writes to the API."""

from collections.abc import Sequence
from typing import Any

from data_pipeline.explorer.config import ExplorerConfig
from data_pipeline.explorer.detail import recipes_of
from data_pipeline.explorer.images import SIZES
from data_pipeline.explorer.library import Library, Run
from data_pipeline.explorer.safety import JUDGED_BY, SafetyPolicy
from data_pipeline.report_data import read_stage_rows

_SHOWN_LIMITS = ("upload_bytes", "upload_pixels", "results", "export_rows")


def describe(
    library: Library,
    policy: SafetyPolicy,
    towers: Sequence[str],
    recipes: Sequence[str],
    config: ExplorerConfig,
) -> dict[str, Any]:
    """Rows, runs, model, columns, recipes, policy and limits."""
    return {
        "rows": library.num_rows,
        "runs": [{"name": run.name, "rows": run.num_rows, "index": run.record} for run in library.runs],
        "model": {key: library.model[key] for key in ("name", "model", "weights_sha256")},
        "modalities": library.modalities,
        "towers": list(towers),
        "columns": {name: "categories" if kind else "numbers" for name, kind in library.columns.items()},
        "recipes": list(recipes),
        "safety": policy.describe(),
        "safety_tags": [name for name in JUDGED_BY if name in library.columns],
        "hides_violence": bool(towers and config.safety.violent_prompts),
        "image_sizes": list(SIZES),
        "limits": {name: getattr(config.limits, name) for name in _SHOWN_LIMITS},
    }


def funnel_of(run: Run) -> dict[str, Any]:
    """A run's stages with rows in and out by reason, and its recipes with what each rule dropped."""
    stages = [
        {
            "stage": stage.stage,
            "rows_in": stage.counts.rows_in,
            "rows_out": stage.counts.rows_out,
            "dropped": dict(stage.counts.dropped.most_common()),
            "seconds": stage.wall_seconds,
        }
        for stage in read_stage_rows(run.folder)
    ]
    recipes = [
        {
            **{name: told["recipe"][name] for name in ("name", "version", "source")},
            **{name: told[name] for name in ("rows_in", "rows_out", "conditions")},
            "rules": told["funnel"],
        }
        for told in recipes_of(run.folder)
    ]
    return {"run": run.name, "stages": stages, "recipes": recipes}

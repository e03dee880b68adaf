"""`python -m data_pipeline output_dir=... [recipe=...] [stage=...]`: see `--help`."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from crawl2clip.config import command, save_config
from crawl2clip.errors import ConfigError
from crawl2clip.files import write_json
from crawl2clip.logs import provenance
from data_pipeline.config import PipelineConfig
from data_pipeline.own_recipe import with_own_recipe
from data_pipeline.pipeline import describe_files, run_pipeline


def run(config: PipelineConfig, composed: DictConfig) -> None:
    """Runs the pipeline; its folder gets the settings and what made it, the terminal gets the funnel."""
    funnel = run_pipeline(config)
    output_dir = Path(config.output_dir)
    save_config(composed, output_dir)
    write_json(output_dir / "provenance.json", provenance())
    print(funnel)
    print(describe_files(output_dir))


if __name__ == "__main__":
    try:
        sys.argv = with_own_recipe(sys.argv)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    command("data_pipeline", PipelineConfig, run)

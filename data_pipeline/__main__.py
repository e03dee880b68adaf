"""`python -m data_pipeline output_dir=... [recipe=...] [stage=...]`: see `--help`.

Worker processes import this file too, to find what they are sent; so all it imports at once is what they need.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from data_pipeline.config import PipelineConfig


def run(config: "PipelineConfig", composed: "DictConfig") -> None:
    """Runs the pipeline; its folder gets the settings and what made it, the terminal gets the funnel."""
    from crawl2clip import storage
    from crawl2clip.config import save_config
    from crawl2clip.files import write_json
    from crawl2clip.logs import provenance
    from data_pipeline.pipeline import describe_files, run_pipeline

    funnel = run_pipeline(config)
    output_dir = storage.local_path(config.output_dir)
    save_config(composed, output_dir)
    write_json(output_dir / "provenance.json", provenance())
    for name in ("config.yaml", "provenance.json"):
        storage.publish(output_dir / name)
    print(funnel)
    print(describe_files(output_dir))


if __name__ == "__main__":
    if sys.argv[1:2] == ["status"]:
        from data_pipeline import status

        sys.exit(status.main(sys.argv[2:]))
    from crawl2clip.config import command
    from crawl2clip.errors import ConfigError
    from data_pipeline.config import PipelineConfig
    from data_pipeline.own_recipe import with_own_recipe

    try:
        sys.argv = with_own_recipe(sys.argv)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    command("data_pipeline", PipelineConfig, run)

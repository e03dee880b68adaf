"""`python -m data_pipeline output_dir=... [recipe=...] [stage=...]`: see `--help`."""

import sys

from omegaconf import DictConfig

from crawl2clip.config import command, save_config
from crawl2clip.files import write_json
from crawl2clip.logs import provenance
from data_pipeline import status, storage
from data_pipeline.config import PipelineConfig
from data_pipeline.pipeline import describe_files, run_pipeline


def run(config: PipelineConfig, composed: DictConfig) -> None:
    """Runs the pipeline; its folder gets the settings and what made it, the terminal gets the funnel."""
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
        sys.exit(status.main(sys.argv[2:]))
    command("data_pipeline", PipelineConfig, run)

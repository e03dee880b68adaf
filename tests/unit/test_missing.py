"""A setting without a value is what omegaconf takes for one."""

import subprocess
import sys

import omegaconf

from crawl2clip.missing import MISSING


def test_it_is_omegaconfs():
    assert MISSING == omegaconf.MISSING


def test_decoders_and_workers_start_without_what_they_do_not_use():
    code = "import sys, {0}; print(*sorted({{'omegaconf', 'polars', 'tqdm', 'hydra', 'cv2'}} & sys.modules.keys()))"
    for modules, allowed in (
        ("data_pipeline.decode_process, data_pipeline.images", "cv2"),
        ("data_pipeline.download", ""),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(modules)], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == allowed

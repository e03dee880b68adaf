"""The shape of the repository that users rely on."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["crawl2clip", "data_pipeline", "train", "evaluate"])
def test_the_names_resolve_inside_the_checkout(name):
    # Another package called `evaluate` may be installed; run from the checkout, ours must win.
    program = f"import importlib.util; print(importlib.util.find_spec({name!r}).origin)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(ROOT)


def test_the_wheel_holds_the_core_only():
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^packages = \["crawl2clip"\]$', text, re.M)


def test_the_version_is_said_once():
    spec = importlib.util.find_spec("crawl2clip")
    assert spec is not None
    from crawl2clip import __version__

    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_shell_files_pass_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    files = [*sorted((ROOT / "slurm").glob("*.s*")), ROOT / ".ci" / "run"]
    assert len(files) >= 4
    done = subprocess.run(
        ["shellcheck", "-x", *map(str, files)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "slurm").glob("*.sbatch")), ids=lambda path: path.name)
def test_sbatch_files_refuse_a_folder_that_is_no_checkout(path, tmp_path):
    done = subprocess.run(
        ["bash", str(path)], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "is not a checkout of crawl2clip; call sbatch from its root" in done.stderr

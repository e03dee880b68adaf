"""The language detectors through the real commands: the agreement report, and the exact recipe."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from crawl_files import image, member, wat_record, wat_value

from crawl2clip.files import read_json

ROOT = Path(__file__).resolve().parents[2]
HAS_CLD3 = importlib.util.find_spec("gcld3") is not None
CAPTIONS = [
    "a photo of a dog on the grass", "two people ride their bicycles along the beach",
    "ein Foto von einem Hund auf der Wiese", "草地上的一只狗的照片", "12345 67",
    "большая собака сидит на зелёной траве в парке", "IMG_1234.JPG", "un chien noir court dans le jardin",
]  # fmt: skip
STAND_IN = """
class Result:
    def __init__(self, text):
        self.language = "und" if not any(map(str.isalpha, text.decode())) else "en" if text.isascii() else "ru-Latn"
        self.probability, self.is_reliable = (0.0, False) if self.language == "und" else (0.8, True)

class NNetLanguageIdentifier:
    def __init__(self, min_num_bytes, max_num_bytes):
        pass

    def FindLanguage(self, text):
        return Result(text)
"""

HIDDEN = """
import importlib.util

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "gcld3" else find(name, package)
"""
"""As if cld3-py were not installed."""


@pytest.fixture
def crawl(tmp_path):
    """A WAT whose images have the captions."""
    links = [image(f"{index}.jpg", text) for index, text in enumerate(CAPTIONS)]
    (tmp_path / "a.wat.gz").write_bytes(member(wat_record(wat_value(links))))
    return tmp_path


def command(module, *arguments, path=None):
    run = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(path or "")},
    )  # fmt: skip
    return run.returncode, run.stdout, run.stderr


def extract(crawl):
    status, _, errors = command(
        "data_pipeline", f"output_dir={crawl}/out", f"source.files=['{crawl}/a.wat.gz']", "stage=extract",
        "executor.num_workers=1",
    )  # fmt: skip
    assert status == 0, errors
    return crawl / "out" / "candidates"


def test_the_agreement_report_of_a_run(crawl):
    (crawl / "modules").mkdir()
    (crawl / "modules" / "gcld3.py").write_text(STAND_IN)
    candidates = extract(crawl)
    arguments = [f"candidates={candidates}", "sample=100", f"output={crawl}/agreement.md"]
    status, printed, errors = command("data_pipeline.language_agreement", *arguments, path=crawl / "modules")
    assert status == 0, errors
    numbers = read_json(crawl / "agreement.json")
    assert (numbers["rows"], numbers["sample"]) == (len(CAPTIONS), len(CAPTIONS))
    # The stand-in takes German and French without accents, and a file name, for English.
    assert numbers["buckets"]["en"] == {"en": 2, "other": 0, "unknown": 0}
    assert numbers["buckets"]["other"]["other"] == 2
    assert numbers["buckets"]["unknown"]["unknown"] == 1
    assert f"{numbers['same_bucket']['count']:,} of 8 captions are in the same bucket" in printed
    page = (crawl / "agreement.md").read_text()
    assert "## Examples of different buckets" in page
    assert "ein Foto von einem Hund auf der Wiese" in page
    assert not (ROOT / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["candidates=nowhere", "output=x.md"], "error: candidates is 'nowhere', which is no folder"),
        (
            ["candidates=nowhere"],
            "error: setting without a value: output|error: settings without a value: output",
        ),
        (["candidates=x", "output=x.md", "smaple=3"], "unknown setting 'smaple'; did you mean 'sample'"),
    ],
)
def test_errors_of_the_agreement_command(arguments, message):
    status, printed, errors = command("data_pipeline.language_agreement", *arguments)
    assert (status, printed) == (2, "")
    assert any(part in errors for part in message.split("|"))
    assert "Traceback" not in errors


def test_the_help_says_what_to_give():
    status, printed, _ = command("data_pipeline.language_agreement", "--help")
    assert status == 0
    for words in ("candidates=data/laion5b/candidates", "sample=", "seed=", 'pip install -e ".[data,cld3]"'):
        assert words in printed


def test_the_exact_recipe_without_its_package_ends_before_any_work(crawl):
    (crawl / "hidden").mkdir()
    (crawl / "hidden" / "sitecustomize.py").write_text(HIDDEN)
    status, _, errors = command(
        "data_pipeline", f"output_dir={crawl}/out", f"source.files=['{crawl}/a.wat.gz']", "recipe=laion5b_exact",
        "stage=extract", path=crawl / "hidden",
    )  # fmt: skip
    assert (status, (crawl / "out").exists()) == (0, True)  # extraction asks for no detector
    status, _, errors = command(
        "data_pipeline", f"output_dir={crawl}/new", f"source.files=['{crawl}/a.wat.gz']", "recipe=laion5b_exact",
        "download.user_agent='tests/1.0 (+https://example.org/bot)'", path=crawl / "hidden",
    )  # fmt: skip
    assert status == 2
    assert "error: language detector 'cld3' needs the package cld3-py" in errors
    assert 'pip install -e ".[data,cld3]"' in errors
    assert not (crawl / "new" / "candidates").exists()


@pytest.mark.skipif(not HAS_CLD3, reason='needs the extra cld3: pip install -e ".[data,cld3]"')
def test_the_agreement_report_with_cld3_itself(crawl):
    candidates = extract(crawl)
    arguments = [f"candidates={candidates}", f"output={crawl}/agreement.md"]
    status, _, errors = command("data_pipeline.language_agreement", *arguments)
    assert status == 0, errors
    numbers = read_json(crawl / "agreement.json")
    assert numbers["detectors"]["cld3"].startswith(("cld3-py ", "gcld3 "))
    assert numbers["buckets"]["en"]["en"] == 2
    assert pl.read_parquet(candidates / "a_wat.parquet").height == len(CAPTIONS)

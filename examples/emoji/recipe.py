"""The whole story on one page: from a small real web to a CLIP model with a score.

    python -m examples.emoji.recipe output_dir=runs/emoji

builds a web of emoji, serves it, crawls it, makes training shards of it with `python -m data_pipeline`, trains with
`torchrun -m train`, scores with `python -m evaluate` on drawings that are nowhere on that web, and writes report.html.
Every step leaves its result in the output folder; running again does what is missing. The three commands
are the ones a cluster would run, and each is printed before it runs.

No pretrained CLIP is assumed. The pairs are filtered by a network of our own, trained first on the small trusted
part of the web (Fang et al. 2023, "Data Filtering Networks", arXiv 2309.17425). With internet, the filter of
LAION-400M and LAION-5B takes its place: tagger.model=ViT-B-32 tagger.pretrained=openai, threshold 0.28.
"""

import logging
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crawl2clip.config import explain
from crawl2clip.errors import ConfigError, Crawl2ClipError
from crawl2clip.files import read_json, write_json
from crawl2clip.logs import setup_logging

logger = logging.getLogger("examples.emoji")
ROOT = Path(__file__).resolve().parents[2]
DOWNLOAD = (
    "download.allow_loopback=true",  # the web is on this machine; by default no private address is ever fetched
    "download.user_agent='crawl2clip-emoji/0.1 (+http://localhost/about)'",
    "download.per_host_requests_per_s=2000",  # our own server; strangers' get 20
    "download.per_host_connections=16",
    "download.images.resize_mode='no'",  # drawings of 64 to 160 pixels stay as they are
    "download.images.format=keep",
    "deduplicate.rows_per_shard=1000",
    "reshard.samples_per_shard=500",
)
"""What differs from a crawl of the open web."""


@dataclass
class FilterSettings:
    """Which model judges the pairs; both null trains one on the trusted part of the web."""

    model: str | None = None  # an open_clip name, for example ViT-B-32
    pretrained: str | None = None  # its weights, for example openai


@dataclass
class DemoSettings:
    """What can be changed from the command line, as key=value."""

    output_dir: str = "runs/emoji"  # results; a rerun with the same folder continues
    seed: int = 0  # of the web: what is shown where, and what is wrong with it
    fraction: float = 1.0  # of the themes, above 0 to 1; less is quicker and scores lower
    num_workers: int = 2  # processes of the data pipeline
    epochs: int | None = None  # of the training; null is the experiment's own
    filter_epochs: int | None = None  # of the filter's training; null is the experiment's own
    tagger: FilterSettings = field(default_factory=FilterSettings)


def main(words: list[str]) -> int:
    """Runs the demo; returns the exit status."""
    if any(word in ("-h", "--help") for word in words):
        print(__doc__)
        print("Settings (key=value):\n" + OmegaConf.to_yaml(OmegaConf.structured(DemoSettings)))
        return 0
    setup_logging()
    try:
        run(read_settings(words))
    except Crawl2ClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StepFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_settings(words: list[str]) -> DemoSettings:
    """The settings on the command line.

    Raises:
        ConfigError: an unknown key or a value of the wrong type.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(DemoSettings), OmegaConf.from_cli(words))
        settings = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    assert isinstance(settings, DemoSettings)
    if settings.tagger.model is not None and settings.tagger.pretrained is None:
        raise ConfigError(f"tagger.model={settings.tagger.model} has no weights; give tagger.pretrained too")
    return settings


def run(settings: DemoSettings) -> None:
    """The story."""
    from examples.emoji.crawl import crawl
    from examples.emoji.evaluation_sets import write_evaluation_sets
    from examples.emoji.report import write_report
    from examples.emoji.server import serve
    from examples.emoji.web import build_web

    folder = Path(settings.output_dir)
    demo = Demo(folder)

    with demo.step("1/8 build the web"):
        web = build_web(folder / "web", seed=settings.seed, fraction=settings.fraction)
        write_evaluation_sets(web, folder / "evaluation")
    with serve(web.folder):
        with demo.step("2/8 crawl it into WARC and WAT"):
            crawled = crawl(web, folder / "crawl")
        if settings.tagger.pretrained is None:
            with demo.step("3/8 the trusted part becomes training shards"):
                demo.data_pipeline(
                    "recipe=trusted", f"recipe.parameters.page_prefix={web.trusted_prefix}", *sources(crawled.trusted),
                    *DOWNLOAD, f"output_dir={folder / 'trusted'}", f"executor.num_workers={settings.num_workers}",
                )  # fmt: skip
            with demo.step("4/8 train the filter on it"):
                demo.train(
                    "experiment=emoji_filter", f"data.shards={folder / 'trusted' / 'shards'}",
                    f"run_folder={folder / 'filter'}", "run_name=emoji_filter", *epochs(settings.filter_epochs),
                )  # fmt: skip
            judge = ["recipe=emoji", f"tagger.pretrained={folder / 'filter' / 'export'}"]
        else:
            judge = ["recipe=emoji_pretrained", f"tagger.pretrained={settings.tagger.pretrained}"]
            judge += [f"tagger.model={settings.tagger.model}"] if settings.tagger.model else []
        with demo.step("5/8 the whole web becomes training shards"):
            demo.data_pipeline(
                *judge, *sources(crawled.everything), *DOWNLOAD,
                f"output_dir={folder / 'data'}", f"executor.num_workers={settings.num_workers}",
            )  # fmt: skip
            demo.data_pipeline(
                *judge, *sources(crawled.everything), *DOWNLOAD,
                f"output_dir={folder / 'data'}", f"executor.num_workers={settings.num_workers}", "stage=index",
            )  # fmt: skip
    with demo.step("6/8 train CLIP"):
        demo.train(
            "experiment=emoji", f"data.shards={folder / 'data' / 'shards'}", f"run_folder={folder / 'clip'}",
            "run_name=emoji", f"evaluation.data_root={folder / 'evaluation'}", *epochs(settings.epochs),
        )  # fmt: skip
    with demo.step("7/8 score it on drawings that are nowhere on the web"):
        demo.evaluate(
            f"pretrained={folder / 'clip' / 'export'}", "suite=emoji", f"data_root={folder / 'evaluation'}",
            f"output_dir={folder / 'results'}",
        )  # fmt: skip
    with demo.step("8/8 report"):
        table = write_report(folder, web, demo.seconds)
    print(table)
    print(f"report: {folder / 'report.html'}")
    print(f"explorer: python -m data_pipeline.explorer 'runs=[{folder / 'data'}]'")


def sources(files: list[Path]) -> list[str]:
    """The source settings for a list of WARC and WAT files."""
    return [f"source.files=[{','.join(map(str, files))}]"]


def epochs(count: int | None) -> list[str]:
    """The override for a shorter or longer training."""
    # A short run has no room for the experiment's warm-up.
    return [] if count is None else [f"train.epochs={count}", "schedule.warmup_steps=0"]


class StepFailedError(RuntimeError):
    """One of the three commands exited non-zero; it has said why."""


class Demo:
    """Runs the commands from the checkout's root and keeps the time of each step."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._times = folder / "seconds.json"
        self.seconds: dict[str, float] = read_json(self._times) if self._times.is_file() else {}

    def step(self, title: str) -> "_Step":
        """A part of the story: its title is shown, its time is kept."""
        return _Step(self, title)

    def data_pipeline(self, *overrides: str) -> None:
        """python -m data_pipeline ..."""
        self._command("-m", "data_pipeline", *overrides)

    def train(self, *overrides: str) -> None:
        """torchrun -m train ..., one process that uses every core."""
        self._command(
            "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "-m", "train", *overrides
        )

    def evaluate(self, *overrides: str) -> None:
        """python -m evaluate ..."""
        self._command("-m", "evaluate", *overrides)

    def _command(self, *words: str) -> None:
        shown = shlex.join(["python", *words]).replace("python -m torch.distributed.run", "torchrun")
        print(f"$ {shown}", file=sys.stderr, flush=True)
        environment = dict(os.environ)
        if "train" in words:
            # torchrun would set one thread a process, and here one process has the machine.
            environment.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
            # Threads that spin while they wait make a busy machine three times slower at steps this small.
            environment.setdefault("OMP_WAIT_POLICY", "passive")
        done = subprocess.run([sys.executable, *words], cwd=ROOT, check=False, env=environment)
        if done.returncode != 0:
            raise StepFailedError(
                f"`{shown}` exited with status {done.returncode}; what went wrong stands above"
            )


class _Step:
    def __init__(self, demo: Demo, title: str) -> None:
        self._demo, self._title = demo, title

    def __enter__(self) -> None:
        print(f"\n== {self._title} ==", file=sys.stderr, flush=True)
        self._start = time.monotonic()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return
        # A rerun finds most steps done in a moment; the time worth keeping is that of the work.
        spent = time.monotonic() - self._start
        self._demo.seconds[self._title] = max(spent, self._demo.seconds.get(self._title, 0.0))
        write_json(self._demo._times, self._demo.seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

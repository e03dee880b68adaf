"""Small stages that misbehave on request, for tests of the frame; importable by spawned workers."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crawl2clip.errors import DataError
from data_pipeline.executors.local import LocalExecutor
from data_pipeline.stage import Counts, Outcome, Shard, Stage, make_shard, publish_shard, temporary_folder


@dataclass
class ToyStage(Stage):
    """Shards 000, 001, ... of ten rows, one dropped. `faults` names what goes wrong with some of them.

    Faults: raise, raise_once, kill, kill_once, sleep (until the time limit), stray_file; `setup` takes
    raise or kill.
    """

    folder: Path
    num_shards: int = 4
    name: str = "toy"
    settings: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    shard_seconds: float = 0.0

    def shards(self) -> Iterable[Shard]:
        return [Shard(f"{index:03d}", self.inputs) for index in range(self.num_shards)]

    def setup(self):
        fault = self.faults.get("setup")
        if fault == "raise":
            raise DataError("the model is missing")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return os.environ.get("CRAWL2CLIP_WORKER_SLOT", "inline")

    def run(self, context, shard, temporary):
        fault = self.faults.get(shard.name, "")
        (temporary / f"{shard.name}.part").write_text("half of it")
        time.sleep(self.shard_seconds)
        if fault.endswith("_once"):
            trace = self.folder / f"{shard.name}.tried"
            fault = "" if trace.exists() else fault.removesuffix("_once")
            trace.touch()
        if fault == "raise":
            raise RuntimeError(f"shard {shard.name} is cursed")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "sleep":
            time.sleep(600)
        if fault == "stray_file":
            (temporary / "elsewhere.txt").touch()
        (temporary / f"{shard.name}.part").unlink()
        (temporary / f"{shard.name}.txt").write_text(f"contents of {shard.name}\n")
        with open(self.folder / "log.txt", "a") as log:
            log.write(shard.name + "\n")
        return Counts(10, 9, Counter(odd=1), Counter(bytes=100))


@dataclass
class ManyShards(ToyStage):
    """As many shards as asked, with nothing in them and one input each."""

    def shards(self):
        for number in range(self.num_shards):
            yield Shard(f"{number:08d}", (f"/crawl/segment/{number:08d}.warc.wat.gz",))

    def run(self, context, shard, temporary):
        return Counts(10, 9)


@dataclass
class CountingSetup(ToyStage):
    """Notes each time that it is set up."""

    def setup(self):
        with open(self.folder / "log.txt", "a") as log:
            log.write("setup\n")
        return super().setup()


class Inline:
    """Runs shards in this process, once each; an error leaves as it is."""

    def run(self, stage, shards):
        context = stage.setup()
        for shard in shards:
            temporary = temporary_folder(stage, shard)
            make_shard(stage, context, shard, temporary)
            publish_shard(stage, shard, temporary)
            yield Outcome(shard, None)


class InlineExecutor:
    """Runs shards in this process, once each; an error is the shard's outcome."""

    def run(self, stage, shards):
        context = stage.setup()
        for shard in shards:
            temporary = temporary_folder(stage, shard)
            try:
                make_shard(stage, context, shard, temporary)
            except Exception as error:
                yield Outcome(shard, f"{type(error).__name__}: {error}")
            else:
                publish_shard(stage, shard, temporary)
                yield Outcome(shard, None)


class DyingExecutor(LocalExecutor):
    """Ends its own process by SIGKILL once `num_shards` of a stage are in place and others are under way."""

    def __init__(self, stage_name, num_shards, **settings):
        super().__init__(**settings)
        self.stage_name, self.num_left = stage_name, num_shards

    def run(self, stage, shards):
        for outcome in super().run(stage, shards):
            self.num_left -= stage.name == self.stage_name
            if self.num_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            yield outcome


def outputs(folder):
    """The bytes of a folder's output files by path, without what differs between runs: times, locks, logs."""
    skipped = (".stats.json", ".lock", ".tried", "log.txt")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not path.name.endswith(skipped)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }

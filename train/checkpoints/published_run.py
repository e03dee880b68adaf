"""A run whose folder is in an object store: it works in a local folder, and what it saves is published from there.

`run_folder=s3://bucket/run` is worked on in `<scratch>/s3:/bucket/run` (crawl2clip/storage.py), which all ranks must
see. A thread of rank 0 puts each saved checkpoint into the store, and metrics.jsonl before it, for a checkpoint says
that all before it is in the log. Nothing of training waits for the store, and nothing ends because of it: what could
not be put is told, counted, and tried again with the next checkpoint. A machine that has nothing of the run, or less
than another one has done since, begins with what the store has.
"""

import logging
import threading
from pathlib import Path

from crawl2clip import storage
from crawl2clip.errors import DataError
from crawl2clip.models import CONFIG_NAME
from crawl2clip.store_objects import bring_folder, object_exists, put_folder, read_object
from train.checkpoints.checkpoint_folder import checkpoint_path, list_checkpoints, remove_checkpoint, step_of
from train.checkpoints.saving import SaveConfig
from train.checkpoints.state_files import StateFiles
from train.checkpoints.state_manifest import MANIFEST_NAME
from train.checkpoints.stored_checkpoints import NOTE_NAME, Stored, StoredCheckpoints
from train.monitoring.metrics import METRICS_NAME

CHECKPOINTS, EXPORT, LOG_NAME = "checkpoints", "export", "log.txt"
_SMALL = ("config.yaml", "provenance.json", LOG_NAME, METRICS_NAME)
_CLOSE_S = 60.0  # how long a run that ends by an error waits for what is on its way

logger = logging.getLogger(__name__)


class PublishedRun:
    """Publishes a run from rank 0, and brings what the store has of it; the other ranks have none.

    Attributes:
        folder: where the run works, on this machine.
        failures: how many times publishing has failed.
    """

    def __init__(self, folder: Path, config: SaveConfig) -> None:
        """Asks nothing yet.

        Args:
            folder: the local path of an address.
            config: which checkpoints are kept; the same ones are in the store.
        """
        self.folder = folder
        self.failures = 0
        self._config = config
        self._checkpoints = folder / CHECKPOINTS
        self._stored = StoredCheckpoints(self._checkpoints, folder / NOTE_NAME)
        self._now: int | None = None
        self._one_at_a_time = threading.Lock()
        self._woken, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)

    @property
    def being_put(self) -> int | None:
        """The step whose files are on their way and must stay, or None."""
        return self._now

    def bring(self) -> None:
        """Makes the local folder go on where the store is, when another machine has written there since.

        As long as the store has nothing but what this machine has put there, the local folder is as new at least.
        Otherwise the store's checkpoints replace the local ones, with its metrics.jsonl and export.

        Raises:
            DataError: the store cannot be asked; nobody can know then where the run is.
        """
        there, here = self._stored.known(), self._whole_here()
        if any(there[step].sha256 not in self._stored.ours | {here.get(step)} for step in there):
            self._stored.rolled_back_to = None  # another machine went on, from before or after that
        else:
            self._stored.take_back()
            if not there or max(here, default=-1) >= max(there):
                return
        logger.info("going on from step %d of %s", max(there), storage.address_of(self.folder))
        for path in list_checkpoints(self._checkpoints):
            step = step_of(path)
            if step not in there or here.get(step) != there[step].sha256:
                logger.warning("%s is not what the store has, where the run went on, and is removed", path)
                remove_checkpoint(path)
        # Milestones stay where they are: nobody goes on from them.
        for step in sorted(self._stored.wanted(self._config, milestones=False)):
            path = checkpoint_path(self._checkpoints, step)
            if not path.exists():
                bring_folder(path)
        storage.fetch_newest(self.folder / METRICS_NAME)
        if object_exists(self.folder / EXPORT / CONFIG_NAME):
            bring_folder(self.folder / EXPORT)
        self._stored.all_are_ours()

    def start(self) -> None:
        """Begins to publish: the settings, and what an earlier start could not."""
        self._thread.start()
        self.wake()

    def wake(self) -> None:
        """Says that there is something new; returns at once."""
        self._woken.set()

    def roll_back(self, step: int) -> None:
        """Says that the run went back to a step: nobody may go on from behind it. Returns at once."""
        self._stored.rolled_back_to = step
        self._stored.note()  # if this process is killed before the store knows, its next start does
        self.wake()

    def publish(self) -> None:
        """Publishes all there is, the export too, and waits for it.

        Raises:
            DataError: the store does not take it.
        """
        with self._one_at_a_time:
            try:
                self._publish()
                self._publish_export()
            except DataError as error:
                self._stored.there = None
                raise DataError(
                    f"{error}. The run is whole in {self.folder}, and not in the store; the same command puts it there"
                ) from error

    def try_to_publish(self) -> bool:
        """As `publish` without the export; a failure is told and counted. Returns whether it went well."""
        with self._one_at_a_time:
            try:
                self._publish()
                return True
            except Exception as error:
                self.failures += 1
                logger.warning(
                    "publishing the run has failed (%d time%s so far): %s. %s; the next checkpoint tries again",
                    self.failures, "" if self.failures == 1 else "s", error, self._newest_there(),
                    exc_info=None if isinstance(error, (DataError, OSError)) else error,
                )  # fmt: skip
                self._stored.there = None  # what of it arrived is not known
                return False

    def close(self) -> None:
        """Ends the thread; what is on its way gets a little time."""
        self._ended.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while True:
            self._woken.wait()
            self._woken.clear()
            self.try_to_publish()
            if self._ended.is_set() and not self._woken.is_set():
                return

    def _publish(self) -> None:
        self._stored.take_back()
        here = list_checkpoints(self._checkpoints)  # before the log: it then says all that these rest on
        for name in _SMALL:
            storage.publish(self.folder / name)
        for path in reversed(here):
            self._now = step_of(path)
            try:
                if self._stored.put(path):
                    logger.info("published %s", storage.address_of(path))
            except (DataError, OSError):
                if path.exists():
                    raise
                self._stored.clear(path)  # removed here meanwhile
            finally:
                self._now = None
        self._stored.keep(self._stored.wanted(self._config, milestones=True))
        self._stored.all_are_ours()

    def _publish_export(self) -> None:
        export = self.folder / EXPORT
        if not (export / CONFIG_NAME).is_file():
            return
        there = object_exists(export / CONFIG_NAME)
        if not there or read_object(export / CONFIG_NAME) != (export / CONFIG_NAME).read_bytes():
            put_folder(export, last=CONFIG_NAME)
            logger.info("published %s", storage.address_of(export))

    def _whole_here(self) -> dict[int, str]:
        """The local checkpoints by the hash of their manifests; without the newest ones when those are damaged."""
        found = {}
        for path in reversed(list_checkpoints(self._checkpoints)):
            try:
                if not found:
                    StateFiles(path).verify()  # all of its bytes: a damaged one must not hide the store's
                found[step_of(path)] = Stored.of((path / MANIFEST_NAME).read_bytes()).sha256
            except (DataError, OSError) as error:
                logger.warning("%s is not whole: %s", path, error)
        return found

    def _newest_there(self) -> str:
        there = self._stored.there
        if there is None:
            return "What the store has is not known"
        return (
            f"The newest checkpoint in the store is of step {max(there)}"
            if there
            else "No checkpoint is in the store"
        )

"""One checkpoint on its way to the disk, in a thread of each rank.

Every rank writes its part into `step_0000100.tmp-<token>`; rank 0 waits for all of them, writes the manifest and
renames the folder. The threads exchange nothing but files: the process group belongs to training.
"""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crawl2clip.errors import DataError
from crawl2clip.files import flush_to_disk
from train.checkpoints.checkpoint_folder import replaced_path, temporary_path
from train.checkpoints.state_manifest import missing_ranks, write_manifest
from train.checkpoints.state_parts import StagedPart, write_part

_POLL_S = 0.05

logger = logging.getLogger(__name__)


class CheckpointWrite:
    """Writes this rank's part of one checkpoint, and on rank 0 the checkpoint; starts at once.

    Attributes:
        step: optimizer steps that the checkpoint is of.
        error: what went wrong in the thread; None so far.
    """

    def __init__(
        self,
        target: Path,
        staged: StagedPart,
        about: Mapping[str, Any],
        *,
        rank: int,
        world_size: int,
        token: str,
        timeout_s: float,
        committed: Callable[[], None],
    ) -> None:
        """Starts the thread.

        Args:
            target: the checkpoint's own name.
            staged: this rank's part; stays as it is until `join` returns.
            about: the manifest's step, identity, progress and scores.
            rank: this rank.
            world_size: how many write.
            token: distinguishes this attempt from all others at the same step; the same on all ranks.
            timeout_s: how long rank 0 waits for the other parts.
            committed: called by rank 0's thread when the checkpoint has its own name.
        """
        self.step: int = about["step"]
        self.error: Exception | None = None
        self._target = target
        self._temporary = temporary_path(target, token)
        self._staged = staged
        self._about = about
        self._rank = rank
        self._world_size = world_size
        self._timeout_s = timeout_s
        self._give_up_at = time.monotonic() + timeout_s
        self._committed = committed
        self._part_done = threading.Event()  # written, or failed
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait_for_part(self) -> None:
        """Waits until this rank's part is written or has failed."""
        self._part_done.wait()

    def abandon(self) -> None:
        """Tells rank 0 that a part will not come."""
        self._abandoned.set()

    def join(self, at_most_s: float | None = None) -> None:
        """Waits for the end of the thread; with a limit, rank 0 gives up on other ranks' parts after it."""
        if at_most_s is not None:
            self._give_up_at = min(self._give_up_at, time.monotonic() + at_most_s)
        self._thread.join()

    def clear(self) -> None:
        """Removes what was written; nothing is left of it once the checkpoint has its own name."""
        shutil.rmtree(self._temporary, ignore_errors=True)

    def problem(self) -> str | None:
        """What went wrong, with the place and the space there; None when nothing did."""
        error = self.error
        if error is None:
            return None
        if not isinstance(error, OSError):
            return str(error) if isinstance(error, DataError) else repr(error)
        words = f"{error.strerror or error} ({self._temporary})"
        try:
            free = shutil.disk_usage(self._temporary.parent).free
        except OSError:
            return words
        return f"{words}; its part needs {self._staged.num_bytes} bytes, {free} bytes are free there"

    def _run(self) -> None:
        started = time.monotonic()
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
            write_part(self._temporary, self._staged, self._rank, self._world_size)
        except Exception as error:
            self._carry(error)
        self._part_done.set()
        if self._rank != 0:
            return
        try:
            if self.error is None and self._all_parts_come():
                self._commit()
                logger.info("%s is saved, %.1f s after its step", self._target, time.monotonic() - started)
        except Exception as error:
            self._carry(error)
        finally:
            self.clear()

    def _carry(self, error: Exception) -> None:
        """Keeps an error for training's thread; a fault of ours leaves its traceback in the log."""
        self.error = error
        if not isinstance(error, (OSError, DataError)):
            logger.error("the writer of the checkpoint of step %d failed", self.step, exc_info=error)

    def _all_parts_come(self) -> bool:
        """Waits for the other ranks' parts; False when the checkpoint is abandoned.

        Raises:
            DataError: a part did not come in time.
        """
        while missing := missing_ranks(self._temporary, self._world_size):
            if self._abandoned.wait(_POLL_S):
                return False
            if time.monotonic() > self._give_up_at:
                raise DataError(
                    f"no part came from rank {', '.join(map(str, missing))} within {self._timeout_s:g} s; see that "
                    f"rank's log, and that {self._target.parent} is on a file system that all ranks share"
                )
        return True

    def _commit(self) -> None:
        write_manifest(self._temporary, self._world_size, self._about)
        replaced = replaced_path(self._temporary)
        if self._target.exists():
            os.rename(self._target, replaced)
        os.rename(self._temporary, self._target)
        flush_to_disk(self._target.parent)
        shutil.rmtree(replaced, ignore_errors=True)
        self._committed()

"""A file of published weights, by path or address, never loaded unless its SHA-256 is the one that was named."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import sha256_of
from data_pipeline.transfer import Patience, fetch

logger = logging.getLogger(__name__)

_PATIENCE = Patience(retries=3, backoff_s=1.0, timeout_s=30.0, deadline_s=600.0)


@dataclass(frozen=True)
class WeightsFile:
    """Where weights are.

    Attributes:
        place: a path, or an http(s) address that is fetched once, when a worker first needs it, and kept.
        sha256: of the file, 64 hex digits.
        cache: folder where fetched files are kept, under their hash.
    """

    place: str
    sha256: str
    cache: str

    def check(self, what: str) -> None:
        """Checks what can be checked without fetching anything.

        Args:
            what: whose weights they are, for messages.

        Raises:
            ConfigError: the hash is no SHA-256.
            DataError: the file is not there, or has another hash.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ConfigError(
                f"{what} has sha256 {self.sha256!r}; give the 64 hex digits, lower case, that `sha256sum` prints for "
                "its weights"
            )
        if not self._is_remote:
            if not Path(self.place).is_file():
                raise DataError(
                    f"the weights {self.place!r} of {what} do not exist; give a path, or an http(s) address"
                )
            self._check_hash(Path(self.place))
        elif self._kept.is_file():
            self._check_hash(self._kept)

    def is_here(self) -> bool:
        """Whether nothing has to be fetched."""
        return not self._is_remote or self._kept.is_file()

    def path(self) -> Path:
        """The file, fetched if need be, whose hash is right.

        Raises:
            DataError: it is missing, cannot be fetched, or has another hash.
        """
        path = self._kept if self._is_remote else Path(self.place)
        if self._is_remote and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            logger.info("fetching %s to %s", self.place, path)
            arriving = path.with_name(f"{path.name}.{os.getpid()}")
            try:
                fetch(self.place, arriving, _PATIENCE)
                self._check_hash(arriving)
                os.replace(arriving, path)
            finally:
                arriving.unlink(missing_ok=True)
        elif not path.is_file():
            raise DataError(f"the weights {self.place!r} do not exist; give a path, or an http(s) address")
        else:
            self._check_hash(path)
        return path

    @property
    def _is_remote(self) -> bool:
        return self.place.startswith(("http://", "https://"))

    @property
    def _kept(self) -> Path:
        return Path(self.cache).expanduser() / self.sha256

    def _check_hash(self, path: Path) -> None:
        found = sha256_of(path)
        if found != self.sha256:
            raise DataError(
                f"the weights {self.place} have SHA-256 {found}, and {self.sha256} was asked for; the file has "
                "changed or is damaged: fetch it from its source, or, if you trust it, name its hash"
            )

"""Reading parts of many files without having them all open."""

from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from crawl2clip import storage
from crawl2clip.errors import DataError


class OpenFiles:
    """Reads byte ranges of many files with at most `limit` of them open, the last used ones."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._files: OrderedDict[Path, tuple[BinaryIO, ExitStack]] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """The bytes.

        Raises:
            DataError: the file is missing or ends before them.
        """
        if path not in self._files:
            stack = ExitStack()  # closed in __exit__ or when its turn is over
            try:
                self._files[path] = stack.enter_context(storage.reading(path)), stack
            except OSError as error:
                raise DataError(
                    f"{path} cannot be opened ({error}); it was there when stage=reshard began"
                ) from error
            if len(self._files) > self._limit:
                self._files.popitem(last=False)[1][1].close()
        self._files.move_to_end(path)
        file = self._files[path][0]
        file.seek(offset)
        data = file.read(size)
        if len(data) < size:
            raise DataError(
                f"{path} ends before byte {offset + size}; it has changed since it was indexed: delete the folder "
                "reshard of this run and run stage=reshard again"
            )
        return data

    def __enter__(self) -> "OpenFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, stack in self._files.values():
            stack.close()

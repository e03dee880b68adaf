"""The most memory that a process and all its descendants held at one time."""

import threading

import psutil

_EVERY_S = 0.5


class TreeMemory:
    """Watches from a thread, inside a `with`; a page that several processes share counts once (Pss)."""

    def __init__(self, pid: int) -> None:
        self.peak_mb = 0.0  # 10^6 bytes
        self._root = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "TreeMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            self.peak_mb = max(self.peak_mb, self._now() / 1e6)

    def _now(self) -> int:
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        return sum(map(_bytes_of, processes))


def _bytes_of(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0  # it ended while we asked

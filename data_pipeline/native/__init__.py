"""The compiled parts of extraction and of shrinking images: C without Python in it, built by one command, never needed.

    python -m data_pipeline.native

Any C compiler will do; nothing else is needed, not even Python's headers. Without it everything is done in Python and
by OpenCV, more slowly and with the same rows and pixels. The library's name holds a hash of its sources, so that one
which was built of others is never loaded.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from crawl2clip.errors import ConfigError

_FOLDER = Path(__file__).parent
_FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fPIC", "-shared")


class Buffer(ctypes.Structure):
    """Bytes that grow: `buffer` in buffer.h."""

    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("capacity", ctypes.c_size_t)]

    def read(self) -> bytes:
        """What is in it now."""
        return ctypes.string_at(self.data, self.size) if self.size else b""


def library_path(folder: Path = _FOLDER / "build") -> Path:
    """Where the library of these sources is, or would be."""
    digest = hashlib.sha256()
    for source in sorted(_FOLDER.glob("*.[ch]")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return folder / f"native-{digest.hexdigest()[:16]}-{os.uname().machine}.so"


def build(folder: Path = _FOLDER / "build") -> Path:
    """Compiles the library, unless it is there.

    Args:
        folder: where to; made when it is missing.

    Raises:
        ConfigError: there is no C compiler, or it fails.
    """
    target = library_path(folder)
    if target.exists():
        return target
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        raise ConfigError(
            "compiled code needs a C compiler; of cc, gcc and clang none is on the PATH; install one (Debian: apt-get "
            "install gcc) or set CC; without it extraction is done in Python, with the same rows"
        )
    folder.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(".tmp-build", dir=folder)
    os.close(handle)
    sources = [str(source) for source in sorted(_FOLDER.glob("*.c"))]
    command = [*compiler.split(), *_FLAGS, *sources, "-o", made]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(
                f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-500:]}; set CC to a compiler "
                "that knows C11; without it extraction is done in Python, with the same rows"
            )
        os.replace(made, target)  # whole or not at all, whoever else builds at the same time
    finally:
        Path(made).unlink(missing_ok=True)
    return target


@cache
def load() -> ctypes.CDLL | None:
    """The library; None when it has not been built, or not for this machine."""
    try:
        return ctypes.CDLL(str(library_path()))
    except OSError:
        return None

"""Images that a list refers to by name: in a folder, or still in the zip that they are published in."""

import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from crawl2clip.errors import DataError
from crawl2clip.files import sha256_of
from evaluate.data.samples import ImageFault, decode_image

MAX_IMAGE_BYTES = 100_000_000  # of a member of an archive, unpacked; the sets' largest image has under 10 MB


class ImageFiles:
    """Images in a folder, or in a zip where there is one; never outside of either."""

    def __init__(self, folder: Path, archive: Path | None = None) -> None:
        """Looks for the archive.

        Args:
            folder: with the images.
            archive: with the same images, in a folder of that name or at its top; used where it exists.

        Raises:
            DataError: the archive is none.
        """
        self._folder = folder
        self._archive = archive if archive is not None and archive.is_file() else None
        self._prefix = ""
        if self._archive is not None:
            with self._open() as opened:
                self._members = set(opened.namelist())
            inner = f"{folder.name}/"
            self._prefix = inner if any(name.startswith(inner) for name in self._members) else ""

    def check(self, names: list[str]) -> None:
        """Looks for every file.

        Raises:
            DataError: one is missing, or its name leads out of the folder.
        """
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise DataError(
                    f"the image file {name!r} is not below {self._folder}; correct the list of examples"
                )
        if self._archive is None:
            missing = [name for name in names if not (self._folder / name).is_file()]
            at = self._folder
        else:
            missing = [name for name in names if self._prefix + name not in self._members]
            at = self._archive
        if missing:
            raise DataError(
                f"{at}: {len(missing)} of {len(names)} images are missing, the first is {missing[0]}; fetch the "
                "images again"
            )

    def image(self, name: str, where: str) -> Image.Image | ImageFault:
        """A file's image, or why there is none."""
        try:
            return decode_image(self._read(name), where)
        # zlib.error: damaged; RuntimeError: encrypted; NotImplementedError: packed in a way that Python cannot unpack
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            return ImageFault(where, f"{type(error).__name__}: {error}")

    def _read(self, name: str) -> bytes:
        if self._archive is None:
            return (self._folder / name).read_bytes()
        with self._open() as archive:
            size = archive.getinfo(self._prefix + name).file_size
            if size > MAX_IMAGE_BYTES:
                raise OSError(f"it unpacks to {size} bytes, more than the {MAX_IMAGE_BYTES} that are read")
            return archive.read(self._prefix + name)

    def hashes(self, names: list[str]) -> Any:
        """SHA-256 of the archive, or of each file."""
        if self._archive is not None:
            return sha256_of(self._archive)
        return [(name, sha256_of(self._folder / name)) for name in names]

    def _open(self) -> zipfile.ZipFile:
        assert self._archive is not None
        try:
            return zipfile.ZipFile(self._archive)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{self._archive} is not a zip archive ({error}); fetch it again") from error

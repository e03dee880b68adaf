"""Shrinking by compiled code: each pixel is OpenCV's, no byte outside the pictures is touched, the rest is OpenCV's."""

import ctypes
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import cv2
import numpy as np
import pytest
from crawl_files import compiled_library
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sample_images import image_file, pixels

from data_pipeline import area_resize, native
from data_pipeline.area_resize import bind, compiled_shrink, shrink, shrink_grey
from data_pipeline.image_config import Decoding, ImageConfig, ResizeMode, StoredFormat, Upscaling
from data_pipeline.images import process_image

LIBRARY = compiled_library()


def is_used() -> bool:
    """Whether this machine and its OpenCV are ones that the compiled code is for."""
    if LIBRARY is None:
        return False
    compiled_shrink.cache_clear()
    return compiled_shrink() is not None


needs_compiled = pytest.mark.skipif(
    not is_used(), reason="needs a C compiler and an x86-64 processor with AVX2"
)


def opencv(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def noise(width: int, height: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


sides = st.one_of(st.integers(1, 40), st.integers(1, 300))


@needs_compiled
@given(sides, sides, sides, sides, st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=600, deadline=None)
def test_pixels_are_opencvs(width, height, new_width, new_height, seed, extreme):
    width, new_width = max(width, new_width), min(width, new_width)
    height, new_height = max(height, new_height), min(height, new_height)
    picture = noise(width, height, seed)
    if extreme:
        picture = np.where(picture < 128, np.uint8(0), np.uint8(255))
    compiled = bind(LIBRARY)(picture, new_width, new_height)
    if compiled is None:
        assert width < 6 or (width % new_width == 0 and height % new_height == 0) or width // new_width >= 40
    else:
        assert np.array_equal(compiled, opencv(picture, new_width, new_height))


@needs_compiled
@pytest.mark.parametrize(
    ("width", "height", "new_width", "new_height"),
    [
        (640, 480, 341, 256),  # a column of the result has 2 or 3 of the source
        (1000, 750, 341, 256),
        (1023, 767, 256, 192),
        (3000, 2000, 384, 256),
        (2000, 300, 256, 256),
        (257, 257, 256, 256),
        (512, 500, 256, 256),  # whole on one axis
        (60, 60, 50, 50),  # sums that lie within a rounding error of a half
        (700, 700, 600, 600),
        (65_535, 3, 100, 2),
        (6, 65_535, 5, 100),
        (4801, 7, 2, 3),
    ],
)
def test_pixels_of_usual_and_of_odd_sizes_are_opencvs(width, height, new_width, new_height):
    for picture in (
        noise(width, height, 1),
        pixels(width, height),
        np.full((height, width, 3), 255, np.uint8),
    ):
        compiled = bind(LIBRARY)(picture, new_width, new_height)
        assert compiled is not None
        assert np.array_equal(compiled, opencv(picture, new_width, new_height))


@pytest.mark.skipif(LIBRARY is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    "picture",
    [
        noise(64, 64, 0),  # whole factors
        noise(5, 70, 0),  # too narrow
        noise(31, 70, 0),  # enlarged on one side
        noise(65_536, 7, 0),
        noise(100, 70, 0)[:, ::-1],
        noise(100, 70, 0)[:, :, ::-1],
        noise(100, 70, 0)[:, :, :1].copy(),
        noise(100, 70, 0).astype(np.float32),
    ],
)
def test_what_compiled_code_does_not_know_is_opencvs(picture):
    assert bind(LIBRARY)(picture, 32, 32) is None
    assert np.array_equal(shrink(picture, 32, 32), opencv(picture, 32, 32))


@needs_compiled
@given(sides, sides, st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_grey_pixels_are_opencvs_too(width, height, seed):
    grey = noise(width, height, seed)[:, :, 1].copy()
    for side in (1, 7, 32):
        assert np.array_equal(shrink_grey(grey, side, side), opencv(grey, side, side))


# A picture between two pages that may not be read, at the end of the allowed ones and at their beginning.
_GUARDED = """
import ctypes, mmap, sys
from data_pipeline import native
page, allowed, none = mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, 0
libc, resize = ctypes.CDLL(None), native.load().area_resize
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
def guarded(size):
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for edge in (start, start + (pages + 1) * page):
        assert libc.mprotect(edge, page, none) == 0
    return memory, start + page, start + (pages + 1) * page - size
tried = 0
for width in (*range(6, 40), 640):
    for height in (1, 2, 3, 4, 7):
        for new_width, new_height in ((1, 1), (5, 1), (max(1, width - 1), height), (width // 2 + 1, (height + 1) // 2)):
            kept, *sources = guarded(3 * width * height)
            kept_too, *results = guarded(3 * new_width * new_height)
            for source, result in zip(sources, results):
                arguments = (ctypes.c_void_p(source), width, height, ctypes.c_void_p(result), new_width, new_height)
                tried += resize(*arguments) == 0
print(tried)
"""


@needs_compiled
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's mprotect")
def test_no_byte_outside_the_pictures_is_touched():
    done = subprocess.run([sys.executable, "-c", _GUARDED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 500


@pytest.mark.skipif(LIBRARY is None, reason="needs a C compiler")
def test_compiled_code_that_rounds_otherwise_is_not_used():
    def other(library: ctypes.CDLL):
        def compiled(picture, width, height):
            found = opencv(picture, width, height)
            found[7, 7] ^= 1
            return found

        return compiled

    picture = noise(100, 70, 0)
    with mock.patch.object(area_resize, "bind", other):
        compiled_shrink.cache_clear()
        assert compiled_shrink() is None
        assert np.array_equal(shrink(picture, 33, 44), opencv(picture, 33, 44))
    compiled_shrink.cache_clear()


@needs_compiled
@pytest.mark.parametrize("mode", ResizeMode)
@pytest.mark.parametrize("decoding", Decoding)
def test_stored_files_are_the_same_without_compiled_code(mode, decoding):
    config = ImageConfig(
        resize_mode=mode, size=64, only_if_bigger=True, upscaling=Upscaling.lanczos, decoding=decoding,
        format=StoredFormat.jpg, quality=95, min_size=0, max_aspect_ratio=None, max_pixels=10**6, max_frames=1,
    )  # fmt: skip
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, body in (
        ("JPEG", image_file(200, 151)),
        ("PNG", image_file(333, 90, "PNG")),
        ("turned", image_file(150, 100, exif=turned)),
    ):
        with mock.patch.object(native, "load", return_value=LIBRARY):
            compiled_shrink.cache_clear()
            compiled = process_image(body, config, min_bytes=0)
        with mock.patch.object(native, "load", return_value=None):
            compiled_shrink.cache_clear()
            assert process_image(body, config, min_bytes=0) == compiled, name
            assert process_image(body, replace(config, size=63), min_bytes=0).data is not None
    compiled_shrink.cache_clear()

"""Shrinks pixels by area averaging: by compiled code where it gives what OpenCV gives, by OpenCV otherwise.

OpenCV is the rule; the compiled code (native/area_resize.c) is several times as fast and knows only factors that are
not whole. The surprising part: before it is used, each process compares it once with the OpenCV that is installed, on
a picture where sums added in another order, or multiplied and added in one step, would show. So an OpenCV that rounds
otherwise costs speed and changes no pixel.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import cv2
import numpy as np

from data_pipeline import native

_TRIED = (60, 50)
"""Pixels of a side, before and after: weights are sixths, so that many sums lie within a rounding error of a half."""

Shrink = Callable[[np.ndarray, int, int], np.ndarray | None]


def shrink(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixels averaged over the area of each new pixel, as `cv2.resize` with INTER_AREA does it.

    Args:
        pixels: [H, W, 3] uint8.
        width: of the result, pixels; may be more than before on one side.
        height: the same.

    Returns:
        [height, width, 3] uint8.
    """
    compiled = compiled_shrink()
    shrunk = None if compiled is None else compiled(pixels, width, height)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA) if shrunk is None else shrunk


def shrink_grey(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """As `shrink`, for [H, W] uint8 to [height, width]."""
    compiled = compiled_shrink()
    if compiled is not None and (pixels.shape[1] % width or pixels.shape[0] % height):
        # Three channels at once take less time than OpenCV takes for one.
        shrunk = compiled(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), width, height)
        if shrunk is not None:
            return np.ascontiguousarray(shrunk[:, :, 0])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


@cache
def compiled_shrink() -> Shrink | None:
    """`shrink` by compiled code, which gives None for what it leaves to OpenCV; None where it cannot be used."""
    library = native.load()
    if library is None:
        return None
    compiled = bind(library)
    before, after = _TRIED
    pixels = np.random.default_rng(0).integers(0, 256, (before, before, 3), np.uint8)
    shrunk = compiled(pixels, after, after)
    expected = cv2.resize(pixels, (after, after), interpolation=cv2.INTER_AREA)
    return compiled if shrunk is not None and np.array_equal(shrunk, expected) else None


def bind(library: ctypes.CDLL) -> Shrink:
    """The library's own function, not compared with anything."""
    function = library.area_resize
    side = ctypes.c_int32
    function.argtypes = [ctypes.c_void_p, side, side, ctypes.c_void_p, side, side]
    function.restype = ctypes.c_int

    def compiled(pixels: np.ndarray, width: int, height: int) -> np.ndarray | None:
        if pixels.dtype != np.uint8 or pixels.shape[2:] != (3,) or not pixels.flags.c_contiguous:
            return None
        shrunk = np.empty((height, width, 3), np.uint8)
        left = function(
            pixels.ctypes.data, pixels.shape[1], pixels.shape[0], shrunk.ctypes.data, width, height
        )
        return None if left else shrunk

    return compiled

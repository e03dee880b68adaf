"""Blurs faces at boxes that a list gives, as DataComp's lists do; nothing is detected here.

The image is blurred where the boxes are, before it is resized, so no sharp face is ever stored.
"""

import math
from collections.abc import Sequence

import numpy as np

_MARGIN = 0.1  # of a box's longer side, added around it: detectors cut foreheads and chins off
_STRENGTH = 0.1  # standard deviation of the blur, of the box's diagonal


def blur_boxes(pixels: np.ndarray, boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """The image with its boxes blurred; `pixels` itself when there are none.

    Args:
        pixels: [H, W, 3] uint8, upright.
        boxes: (left, top, right, bottom) each, as fractions of width and height.
    """
    height, width = pixels.shape[:2]
    if not boxes:
        return pixels
    import cv2  # workers read boxes without it

    blurred = pixels.copy()
    for left, top, right, bottom in boxes:
        margin = _MARGIN * max((right - left) * width, (bottom - top) * height)
        x0, x1 = _span(left * width - margin, right * width + margin, width)
        y0, y1 = _span(top * height - margin, bottom * height + margin, height)
        if x1 <= x0 or y1 <= y0:
            continue
        sigma = max(1.0, _STRENGTH * math.hypot(x1 - x0, y1 - y0))
        reach = math.ceil(3 * sigma)  # what the blur draws on, around the box
        left_edge, top_edge = max(0, x0 - reach), max(0, y0 - reach)
        around = blurred[top_edge : y1 + reach, left_edge : x1 + reach]
        soft = cv2.GaussianBlur(around, (0, 0), sigma)
        inside = np.s_[y0 - top_edge : y1 - top_edge, x0 - left_edge : x1 - left_edge]
        blurred[y0:y1, x0:x1] = soft[inside]
    return blurred


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    return max(0, math.floor(low)), min(size, math.ceil(high))


def read_boxes(value: object) -> list[list[float]] | None:
    """Boxes as a list gives them, checked; [] for none, None for what is no list of boxes."""
    if value is None:
        return []
    if not isinstance(value, list):
        return None
    boxes: list[list[float]] = []
    for box in value:
        if not isinstance(box, list) or len(box) != 4:
            return None
        if not all(isinstance(side, int | float) and math.isfinite(side) for side in box):
            return None
        boxes.append([min(1.0, max(0.0, float(side))) for side in box])
    return boxes

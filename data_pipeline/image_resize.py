"""Brings decoded images to their stored size. The modes are img2dataset's; shrinking is by area averaging."""

import cv2
import numpy as np

from crawl2clip.download_status import DownloadStatus
from data_pipeline.area_resize import shrink
from data_pipeline.image_config import ImageConfig, ResizeMode, Upscaling
from data_pipeline.image_headers import ImageRefused


def fitted_size(width: int, height: int, config: ImageConfig) -> tuple[int, int]:
    """The size that an image is brought to before it is cropped or gets a border; its own when nothing changes.

    Raises:
        ImageRefused: it would have more than `max_pixels`.
    """
    mode, size = config.resize_mode, config.size
    if mode == ResizeMode.no:
        return width, height
    shorter_side = mode in (ResizeMode.keep_ratio, ResizeMode.center_crop)
    fitted = min(width, height) if shorter_side else max(width, height)
    if fitted == size or (fitted < size and config.only_if_bigger):
        return width, height
    width, height = (max(1, round(side * size / fitted)) for side in (width, height))
    if width * height > config.max_pixels:
        raise ImageRefused(DownloadStatus.bad_aspect_ratio, f"would be resized to {width} x {height} pixels")
    return width, height


def resize(pixels: np.ndarray, config: ImageConfig, original: tuple[int, int]) -> np.ndarray:
    """The image at its stored size.

    Args:
        pixels: [H, W, 3] uint8.
        config: resize_mode, size, only_if_bigger and upscaling say how; max_pixels caps the result.
        original: (width, height), upright; that of `pixels`, unless they were decoded at a smaller scale.

    Returns:
        [H', W', 3] uint8; `pixels` itself when nothing changes.
    """
    width, height = fitted_size(*original, config)
    if (height, width) != pixels.shape[:2]:
        enlarging = cv2.INTER_LANCZOS4 if config.upscaling == Upscaling.lanczos else cv2.INTER_CUBIC
        shrinking = height < pixels.shape[0] or width < pixels.shape[1]
        if shrinking:
            pixels = shrink(pixels, width, height)
        else:
            pixels = cv2.resize(pixels, (width, height), interpolation=enlarging)
    if config.resize_mode == ResizeMode.center_crop:
        return _center_crop(pixels, config.size)
    return _pad_white(pixels, config.size) if config.resize_mode == ResizeMode.border else pixels


def _center_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    if height <= size and width <= size:
        return pixels
    top, left = max(0, (height - size) // 2), max(0, (width - size) // 2)
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])


def _pad_white(pixels: np.ndarray, size: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    if height >= size and width >= size:
        return pixels
    top, left = (size - height) // 2, (size - width) // 2
    padded = np.full((size, size, 3), 255, np.uint8)
    padded[top : top + height, left : left + width] = pixels
    return padded

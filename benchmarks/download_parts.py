"""What each part of a download costs alone, on the benchmark's images; for benchmarks/download.py."""

import hashlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROUNDS = 3


def print_parts(folder: Path) -> None:
    """Prints CPU ms an image for decode, resize, encode, hashes and perceptual hash, of both sizes."""
    import cv2
    import simplejpeg

    from data_pipeline.image_config import Decoding, ImageConfig, ResizeMode, StoredFormat, Upscaling
    from data_pipeline.image_decode import decode
    from data_pipeline.image_resize import fitted_size, resize
    from data_pipeline.images import encode, perceptual_hash

    cv2.setNumThreads(1)
    config = ImageConfig(
        resize_mode=ResizeMode.keep_ratio, size=256, only_if_bigger=True, upscaling=Upscaling.lanczos,
        decoding=Decoding.exact, format=StoredFormat.jpg, quality=95, min_size=0, max_aspect_ratio=None,
        max_pixels=89_478_484, max_frames=200,
    )  # fmt: skip
    for kind, limit in (("small", 100), ("large", 8)):
        bodies = [path.read_bytes() for path in sorted(folder.glob(f"{kind}-*.jpg"))[:limit]]
        height, width = simplejpeg.decode_jpeg_header(bodies[0])[:2]
        size = (width, height)
        at_least = fitted_size(width, height, config)
        full = [decode(body, "jpeg", 10**9).pixels for body in bodies[:16]]
        scaled = [decode(body, "jpeg", 10**9, at_least).pixels for body in bodies[:16]]
        small = [resize(pixels, config, size) for pixels in full]
        parts: dict[str, tuple[list, Callable]] = {
            "decode, exact": (bodies, partial(decode, name="jpeg", max_pixels=10**9)),
            "decode, scaled": (bodies, partial(decode, name="jpeg", max_pixels=10**9, at_least=at_least)),
            "resize, exact": (full, partial(resize, config=config, original=size)),
            "resize, scaled": (scaled, partial(resize, config=config, original=size)),
            "encode": (small, partial(encode, extension="jpg", quality=95)),
            "md5 and sha256": (bodies, _hashes),
            "perceptual hash, exact": (full, perceptual_hash),
            "perceptual hash, scaled": (scaled, perceptual_hash),
            "OpenCV's decode, for comparison": (bodies, _opencv_decode),
        }
        _print_times(kind, parts)


def _print_times(kind: str, parts: dict[str, tuple[list, Callable]]) -> None:
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(ROUNDS):
        for name, (items, work) in parts.items():
            started = time.process_time()
            for item in items:
                work(item)
            times[name].append(1e3 * (time.process_time() - started) / len(items))
    for name, values in times.items():
        print(f"part {kind} {name}: {sorted(values)[ROUNDS // 2]:.3f} CPU ms", flush=True)


def _hashes(body: bytes) -> None:
    hashlib.md5(body, usedforsecurity=False).hexdigest()
    hashlib.sha256(body).hexdigest()


def _opencv_decode(body: bytes) -> object:
    import cv2
    import numpy as np

    return cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)


if __name__ == "__main__":
    print_parts(Path(sys.argv[1]))

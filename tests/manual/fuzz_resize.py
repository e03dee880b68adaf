"""Fuzzes the compiled area averaging: random sizes, thin and long ones among them, compared with OpenCV pixel by pixel.

    python tests/manual/fuzz_resize.py [seconds=60] [seed=0]

Prints how many pictures were tried; the first that differs ends it with its sizes. The seconds are CPU time. Together
with a sanitizer it looks for faults of memory, see docs/extraction.md.
"""

import random
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_pipeline import native
from data_pipeline.area_resize import bind


def main(words: list[str]) -> None:
    """Runs until the time is over."""
    options = {"seconds": "60", "seed": "0"} | dict(word.split("=", 1) for word in words)
    library = native.load()
    if library is None:
        raise SystemExit("there is no compiled code; python -m data_pipeline.native builds it")
    compiled, chance = bind(library), random.Random(int(options["seed"]))
    generator = np.random.default_rng(int(options["seed"]))
    tried = left = 0
    end = time.process_time() + float(options["seconds"])
    while time.process_time() < end:
        (width, new_width), (height, new_height) = _sides(chance), _sides(chance)
        picture = generator.integers(0, 256, (height, width, 3), np.uint8)
        if chance.random() < 0.2:
            picture[picture < 250] = 255
        found = compiled(picture, new_width, new_height)
        if found is None:
            left += 1
            continue
        expected = cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_AREA)
        if not np.array_equal(found, expected):
            raise SystemExit(f"{width} x {height} to {new_width} x {new_height} differs from OpenCV")
        tried += 1
    print(f"{tried} pictures are as OpenCV's, {left} were left to it")


def _sides(chance: random.Random) -> tuple[int, int]:
    """Pixels of a side before and after; rarely enlarged."""
    before = int(10 ** chance.uniform(0, chance.choice((1.0, 2.0, 2.7))))
    after = chance.choice((chance.randint(1, before), max(1, before - chance.randint(0, 3))))
    return before, after + chance.choice((0,) * 20 + (1,))


if __name__ == "__main__":
    main(sys.argv[1:])

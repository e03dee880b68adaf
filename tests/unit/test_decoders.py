"""Decoding in processes: a file may end one of them, and nothing else."""

import asyncio
import hashlib
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
from sample_images import image_file, png_bomb

from data_pipeline import decode_process
from data_pipeline import decoders as decoders_module
from data_pipeline.decode_process import describe, undescribe
from data_pipeline.decoders import DecoderLimits, Decoders
from data_pipeline.image_config import Decoding, ImageConfig, ResizeMode, StoredFormat, Upscaling
from data_pipeline.images import process_image
from data_pipeline.processed import Processed

CONFIG = ImageConfig(
    resize_mode=ResizeMode.keep_ratio,
    size=32,
    only_if_bigger=True,
    upscaling=Upscaling.lanczos,
    decoding=Decoding.exact,
    format=StoredFormat.jpg,
    quality=95,
    min_size=0,
    max_aspect_ratio=None,
    max_pixels=89_478_484,
    max_frames=100,
)
LIMITS = DecoderLimits(memory_bytes=1_000_000_000, seconds=60.0)

# A decoder that some files drive mad, as a fault in a C library would.
MAD = """
import os, signal, sys, time
import data_pipeline.images as images
sane = images.process_image
def process_image(body, *arguments, **options):
    if body.startswith(b"crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if body.startswith(b"hang"):
        time.sleep(1000)
    if body.startswith(b"lie"):
        os.write(int(sys.argv[1]), b"\\0\\0\\0\\x02\\0\\0\\0\\0[]")
    if body.startswith(b"once"):
        path = body.split(b" ")[1]
        if not os.path.exists(path):
            open(path, "w").close()
            os._exit(3)
        body = body.split(b" ", 2)[2]
    return sane(body, *arguments, **options)
images.process_image = process_image
from data_pipeline.decode_process import main
main(int(sys.argv[1]))
"""


def process(*bodies: bytes, number: int = 2, config=CONFIG, limits=LIMITS) -> list[Processed]:
    """What comes of files that are all given at once."""

    async def main():
        decoders = Decoders(number, config, 0, limits)
        try:
            return await asyncio.gather(*(decoders.process(body) for body in bodies))
        finally:
            decoders.close()

    return asyncio.run(main())


def test_the_answers_are_those_of_a_call():
    bodies = [image_file(64, 48, seed=seed) for seed in range(9)] + [b"no image", png_bomb(30_000, 30_000)]
    assert process(*bodies) == [process_image(body, CONFIG, min_bytes=0) for body in bodies]


def test_a_file_that_crashes_its_decoder_costs_itself(monkeypatch):
    monkeypatch.setattr(decoders_module, "_START", MAD)
    good = [image_file(64, 48, seed=seed) for seed in range(6)]
    results = process(*good[:3], b"crash", *good[3:], number=1)
    assert [result.status.value for result in results] == ["success"] * 3 + ["decoder_failed"] + [
        "success"
    ] * 3
    assert results[3].error == "the decoder ended (SIGSEGV)"
    assert results[3].sha256 == hashlib.sha256(b"crash").hexdigest()


def test_a_file_that_hangs_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(decoders_module, "_START", MAD)
    good = image_file(64, 48)
    results = process(b"hang", good, number=1, limits=replace(LIMITS, seconds=1.5))
    assert [(result.status.value, result.error) for result in results] == [
        ("decoder_failed", "decoding took more than 1.5 s"),
        ("success", None),
    ]


def test_an_answer_that_is_none_ends_the_decoder(monkeypatch):
    monkeypatch.setattr(decoders_module, "_START", MAD)
    lied, good = process(b"lie", image_file(64, 48), number=1)
    assert (lied.status.value, good.status.value) == ("decoder_failed", "success")


def test_a_decoder_that_the_system_ended_costs_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(decoders_module, "_START", MAD)
    image = image_file(64, 48)
    (result,) = process(b"once %s " % str(tmp_path / "mark").encode() + image, number=1)
    assert result.status.value == "success"


def test_memory_is_limited():
    config = replace(CONFIG, resize_mode=ResizeMode.no, format=StoredFormat.png)
    bomb = png_bomb(8_000, 8_000)  # 192 MB of pixels
    refused, good = process(
        bomb, image_file(64, 48), number=1, config=config, limits=replace(LIMITS, memory_bytes=100_000_000)
    )
    assert refused.status.value in ("decoder_failed", "undecodable")
    assert refused.data is None
    assert good.status.value == "success"


def test_decoders_that_cannot_start_are_an_error(monkeypatch):
    monkeypatch.setattr(decoders_module, "_START", "raise SystemExit(1)")

    async def main():
        decoders = Decoders(2, CONFIG, 0, LIMITS)
        try:
            await decoders.wait_until_ready()
        finally:
            decoders.close()

    with pytest.raises(RuntimeError, match="decoding processes in a row ended before they were ready"):
        asyncio.run(main())


def test_closing_leaves_no_process():
    async def main():
        decoders = Decoders(2, CONFIG, 0, LIMITS)
        await decoders.wait_until_ready()
        processes = [decoder.process for decoder in decoders._decoders]
        decoders.close()
        return processes

    assert all(process.poll() is not None for process in asyncio.run(main()))


@pytest.mark.parametrize(
    "description",
    [b"[]", b"{}", b'"x"', b"not JSON", b"\xff", b'{"status": "success"}'],
)
def test_descriptions_are_checked(description):
    with pytest.raises(ValueError):  # noqa: PT011 - of any kind
        undescribe(description, b"")


def test_descriptions_with_wrong_types_are_refused():
    good = describe(process_image(image_file(64, 48), CONFIG, min_bytes=0))
    assert undescribe(good, b"data").data == b"data"
    for old, new in ((b'"width": 43', b'"width": "43"'), (b'"jpg"', b'"../x"'), (b'"success"', b'"fine"')):
        assert old in good
        with pytest.raises(ValueError):  # noqa: PT011
            undescribe(good.replace(old, new), b"data")


def test_speed_does_not_depend_on_the_order(monkeypatch):
    """A slow decoder does not hold up files that another could take: idle ones are served first."""
    monkeypatch.setattr(decoders_module, "_START", MAD)
    started = time.monotonic()
    results = process(
        b"hang", *(image_file(64, 48, seed=n) for n in range(8)), limits=replace(LIMITS, seconds=1.5)
    )
    assert sum(result.status.value == "success" for result in results) == 8
    assert time.monotonic() - started < 60


def test_want_of_memory_is_the_files_and_a_fault_of_the_code_is_not():
    def without_memory(kind):
        def process(body, config, min_bytes, blurred):
            if kind == "opencv":
                cv2.resize(np.zeros((8, 8, 3), np.uint8), (1 << 20, 1 << 20))  # 3 TB
            raise MemoryError if kind == "python" else TypeError("a fault of ours")

        return process

    for kind in ("opencv", "python"):
        refused = decode_process._process(b"a file", CONFIG, 0, (), without_memory(kind))
        assert (refused.status.value, refused.error) == ("decoder_failed", "not enough memory")
        assert refused.sha256 == hashlib.sha256(b"a file").hexdigest()
    with pytest.raises(TypeError, match="a fault of ours"):
        decode_process._process(b"a file", CONFIG, 0, (), without_memory("code"))

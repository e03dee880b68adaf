"""Untrusted bytes to pixels, or to a reason from the closed list."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

from crawl2clip.errors import ConfigError
from train.data import decode
from train.data.decode import (
    BAD_SAMPLE_REASONS,
    NUM_UNIFORMS,
    BadSample,
    Box,
    RandomCropConfig,
    centre_square,
    decode_image,
    random_box,
)
from train.data.sample_order import uniforms

RED, WHITE = (255, 0, 0), (255, 255, 255)


def decoded(*arguments):
    return decode_image(*arguments).numpy()


def encoded(image, form="PNG", **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def corner_marked(width, height, mode="RGB"):
    """White with a red top-left quarter."""
    image = Image.new(mode, (width, height), WHITE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    return image


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_square_images_of_every_format(form):
    pixels = decoded(encoded(corner_marked(64, 64), form), 16, 10**6)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels[:, 3, 3].astype(int) - RED).max() < 12  # JPEG is lossy
    assert np.abs(pixels[:, 12, 12].astype(int) - WHITE).max() < 12


def test_long_sides_are_cut_evenly():
    image = Image.new("RGB", (96, 32), "blue")
    image.paste("lime", (32, 0, 64, 32))
    pixels = decoded(encoded(image), 32, 10**6)
    assert (pixels == np.array([0, 255, 0], dtype=np.uint8)[:, None, None]).all()


def test_small_images_are_enlarged():
    assert decode_image(encoded(corner_marked(4, 6)), 32, 10**6).shape == (3, 32, 32)


def test_a_large_jpeg_is_decoded_at_a_smaller_scale_with_the_same_look():
    image = corner_marked(512, 512)
    small = decoded(encoded(image, "JPEG", quality=95), 32, 10**6).astype(int)
    exact = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1).astype(int)
    assert np.abs(small - exact).mean() < 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    options = {"transparency": image.getpixel((0, 0))} if mode == "P" else {}
    assert (decoded(encoded(image, **options), 8, 10**6) == 255).all()


@pytest.mark.parametrize("transparency", [None, 300])
def test_grey_of_sixteen_bits_keeps_its_upper_eight(transparency):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    options = {} if transparency is None else {"transparency": transparency}
    pixels = decoded(encoded(Image.fromarray(values), **options), 256, 10**6)
    expected = np.where(values == transparency, 255, values >> 8)
    assert (pixels == expected).all()


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_colour_modes(mode):
    form = "JPEG" if mode == "CMYK" else "PNG"
    assert decode_image(encoded(Image.new(mode, (8, 8)), form), 8, 10**6).shape == (3, 8, 8)


def photograph(width, height):
    """A smooth image with detail at every scale, as photographs have: noise of several sizes, added up."""
    rng = np.random.default_rng(0)
    total = np.zeros((height, width, 3))
    for cells in (3, 7, 15, 40, 90):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), dtype=float) / cells**0.5
    total -= total.min()
    return Image.fromarray((total / total.max() * 255).astype(np.uint8))


BOXES = [Box(0, 0, 200, 150), Box(13, 7, 180, 140), Box(1, 0, 199, 149)]


@pytest.mark.parametrize("box", BOXES)
def test_crop_and_resize_are_torchvisions(box):
    """One grey level: torch and PIL, which torchvision calls, round their weights differently."""
    image = photograph(200, 150)
    ours = decoded(encoded(image), 64, 10**6, lambda w, h: box).astype(int)
    theirs = tv.resized_crop(
        image, box.top, box.left, box.height, box.width, [64, 64], InterpolationMode.BICUBIC
    )
    assert np.abs(ours - np.asarray(theirs).transpose(2, 0, 1).astype(int)).max() <= 1


def test_a_jpeg_is_decoded_as_pil_does():
    """Both are libjpeg-turbo, at times of different versions; a level or two, where chroma is interpolated."""
    image = photograph(200, 150)
    data = encoded(image, "JPEG", quality=90)
    ours = decoded(data, 64, 10**6, lambda w, h: BOXES[1]).astype(int)
    box = BOXES[1]
    pil = Image.open(io.BytesIO(data)).convert("RGB")
    theirs = tv.resized_crop(
        pil, box.top, box.left, box.height, box.width, [64, 64], InterpolationMode.BICUBIC
    )
    assert np.abs(ours - np.asarray(theirs).transpose(2, 0, 1).astype(int)).mean() < 0.5


def test_a_large_jpeg_cropped_at_a_smaller_scale_looks_the_same():
    """Half the size leaves more than 1.5 times the output: within two grey levels of the full decode on average."""
    image = photograph(640, 480)
    box = Box(30, 10, 560, 450)
    ours = decoded(encoded(image, "JPEG", quality=95), 96, 10**6, lambda w, h: box).astype(int)
    exact = tv.resized_crop(
        image, box.top, box.left, box.height, box.width, [96, 96], InterpolationMode.BICUBIC
    )
    assert np.abs(ours - np.asarray(exact).transpose(2, 0, 1).astype(int)).mean() < 2


def with_orientation(image, value):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "camera"
    if value is not None:
        exif[ExifTags.Base.Orientation] = value
    return encoded(image, "JPEG", quality=90, exif=exif)


@pytest.mark.parametrize(
    ("width", "height", "allowed"), [(200, 150, 0.5), (640, 480, 2)], ids=["full", "half"]
)
@pytest.mark.parametrize("value", [None, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_a_jpeg_is_set_upright_as_pil_does(value, width, height, allowed, monkeypatch):
    """Crops are chosen on the upright picture; the limits are those of the two tests above."""
    image = photograph(width, height)
    image.paste(RED, (0, 0, width // 4, height // 4))  # no symmetry
    data = with_orientation(image, value)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    box = Box(10, 5, int(upright.width * 0.9), int(upright.height * 0.8))
    asked = []

    def choose(w, h):
        asked.append((w, h))
        return box

    monkeypatch.setattr(decode, "_decode_with_pil", None)  # the fast path must do
    ours = decoded(data, 96 if width == 640 else 64, 10**6, choose).astype(int)
    theirs = tv.resized_crop(
        upright, box.top, box.left, box.height, box.width, list(ours.shape[1:]), InterpolationMode.BICUBIC
    )
    assert asked == [upright.size]
    assert np.abs(ours - np.asarray(theirs).transpose(2, 0, 1).astype(int)).mean() < allowed


def test_exif_without_a_turn_changes_no_pixel():
    image = photograph(640, 480)
    plain, tagged = encoded(image, "JPEG", quality=90), with_orientation(image, 1)
    assert (decoded(plain, 96, 10**6) == decoded(tagged, 96, 10**6)).all()


def test_the_centre_square_is_in_the_middle():
    assert centre_square(96, 32) == Box(32, 0, 32, 32)
    assert centre_square(5, 8) == Box(0, 2, 5, 5)


CROP = RandomCropConfig(min_area=0.9, max_ratio=4 / 3)


@pytest.mark.parametrize(("width", "height"), [(100, 100), (320, 200), (200, 260), (7, 5), (1, 1)])
def test_crops_keep_area_and_ratio(width, height):
    for u in uniforms(0, np.arange(300), 1, NUM_UNIFORMS):
        box = random_box(width, height, CROP, u)
        assert box.left >= 0
        assert box.top >= 0
        assert box.left + box.width <= width
        assert box.top + box.height <= height
        rounding = (1 + 1 / box.width) * (1 + 1 / box.height)
        if max(width, height) <= 4 / 3 * min(width, height):  # else no box of that area has such a ratio
            assert box.width * box.height * rounding >= 0.9 * width * height
        assert 3 / 4 / rounding <= box.width / box.height <= 4 / 3 * rounding


def test_crops_have_torchvisions_distribution():
    """Means and spreads of area, ratio and place over 3,000 draws, to four standard errors."""
    torch.manual_seed(0)
    image = torch.empty(3, 300, 340)
    theirs = [RandomResizedCrop.get_params(image, (0.5, 1.0), (3 / 4, 4 / 3)) for _ in range(3000)]
    crop = RandomCropConfig(min_area=0.5, max_ratio=4 / 3)
    ours = [random_box(340, 300, crop, u) for u in uniforms(1, np.arange(3000), 1, NUM_UNIFORMS)]
    a = np.array([(box.top, box.left, box.height, box.width) for box in ours], dtype=float)
    b = np.array(theirs, dtype=float)
    error = np.sqrt((a.var(0) + b.var(0)) / 3000)
    assert (np.abs(a.mean(0) - b.mean(0)) < 4 * error).all()
    assert np.allclose(a.std(0), b.std(0), rtol=0.08)


def test_an_extreme_shape_gets_the_largest_box_in_range():
    assert random_box(
        1000, 10, RandomCropConfig(min_area=0.9, max_ratio=1.0), np.full(NUM_UNIFORMS, 0.5)
    ) == Box(495, 0, 10, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_area": 0.0}, r"data.random_crop.min_area is 0.0; give a fraction above 0 up to 1"),
        ({"max_ratio": 0.5}, r"data.random_crop.max_ratio is 0.5; give 1 to 10"),
    ],
)
def test_crop_settings_out_of_range(change, message):
    with pytest.raises(ConfigError, match=message):
        RandomCropConfig(**{"min_area": 0.9, "max_ratio": 1.0, **change})


def huge_png(width, height):
    """A PNG whose header claims more pixels than its few bytes hold."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "undecodable"),
        (b"<html>not found</html>", "undecodable"),
        (encoded(corner_marked(64, 64), "JPEG")[:400], "undecodable"),
        (encoded(corner_marked(64, 64))[:100], "undecodable"),
        (encoded(corner_marked(64, 64), "GIF"), "undecodable"),
        (encoded(corner_marked(64, 64), "TIFF"), "undecodable"),
        (huge_png(12000, 12000), "too_many_pixels"),
        (huge_png(60000, 60000), "too_many_pixels"),
        (huge_png(100, 100), "undecodable"),
        (huge_png(0, 0), "undecodable"),
    ],
)
def test_bad_images_have_a_reason(data, reason):
    with pytest.raises(BadSample) as caught:
        decode_image(data, 16, 10**8)
    assert caught.value.reason == reason
    assert reason in BAD_SAMPLE_REASONS


def test_the_pixel_limit_is_inclusive():
    data = encoded(corner_marked(10, 10))
    assert decode_image(data, 8, 100).shape == (3, 8, 8)
    with pytest.raises(BadSample, match="10 x 10, allowed are 99 pixels"):
        decode_image(data, 8, 99)

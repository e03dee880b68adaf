"""Images: what is refused before it is decoded, what is stored, and that nothing but pixels is."""

import hashlib
import resource
import struct
from dataclasses import replace
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, features
from sample_images import SVG, animated_gif, image_file, pixels, png_bomb, png_chunk

from crawl2clip.errors import ConfigError
from data_pipeline.image_config import PIXEL_LIMIT, Decoding, ImageConfig, ResizeMode, StoredFormat, Upscaling
from data_pipeline.image_decode import fast_dct_scale
from data_pipeline.image_headers import Header, read_header, sniff
from data_pipeline.image_metadata import CannotStrip, strip_metadata
from data_pipeline.images import Processed, perceptual_hash, process_image

CONFIG = ImageConfig(
    resize_mode=ResizeMode.no,
    size=256,
    only_if_bigger=False,
    upscaling=Upscaling.lanczos,
    decoding=Decoding.exact,
    format=StoredFormat.keep,
    quality=95,
    min_size=0,
    max_aspect_ratio=None,
    max_pixels=PIXEL_LIMIT,
    max_frames=100,
)
PNG = replace(CONFIG, format=StoredFormat.png)


def process(body: bytes, config: ImageConfig = CONFIG, min_bytes: int = 0) -> Processed:
    return process_image(body, config, min_bytes=min_bytes)


def stored(body: bytes, config: ImageConfig = PNG) -> np.ndarray:
    """[H, W, 3] uint8: what a plain reader sees in the stored file."""
    processed = process(body, config)
    assert processed.data is not None, processed.error
    return np.asarray(Image.open(BytesIO(processed.data)).convert("RGB"))


def saved(image: Image.Image, format: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


# Refused


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (SVG, "unsupported_type", "svg"),
        (b"<!DOCTYPE html><html></html>", "unsupported_type", "html"),
        (b"%PDF-1.7 ...", "unsupported_type", "pdf"),
        (b"no image", "unsupported_type", "not an image by its first bytes"),
        (b"\xff", "unsupported_type", "not an image by its first bytes"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "unsupported_type", "not an image by its first bytes"),
        (image_file(9, 9, "TIFF"), "unsupported_type", "tiff"),
        (png_bomb(30_000, 30_000), "too_many_pixels", "30000 x 30000 pixels"),
        (animated_gif(10_000), "too_many_frames", "10000 frames"),
        (image_file(1, 1, "GIF"), "too_small", "1 x 1 pixels"),
        (image_file(100, 31), "too_small", "100 x 31 pixels"),
        (image_file(100, 32), "bad_aspect_ratio", "100 x 32 pixels"),
        (image_file(32, 100, "PNG"), "bad_aspect_ratio", "32 x 100 pixels"),
        (image_file(64, 64)[:-400], "undecodable", "jpeg: "),
        (image_file(64, 64)[:100], "undecodable", "jpeg"),
        (image_file(64, 64, "PNG")[:-400], "undecodable", "png: "),
        (image_file(64, 64, "PNG")[:20], "undecodable", "the png header cannot be read"),
        (image_file(64, 64, "WEBP")[:-200], "undecodable", "webp: "),
        (image_file(64, 64, "GIF")[:-200], "undecodable", "gif: "),
        (b"GIF89a", "undecodable", "the gif header cannot be read"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, "undecodable", "the jpeg header cannot be read"),
        (b"GIF89a" + bytes(7) + b"\x3b", "undecodable", "the gif header says 0 x 0 pixels"),
    ],
)
def test_what_is_refused_and_why(body, status, error):
    processed = process(body, replace(CONFIG, min_size=32, max_aspect_ratio=3.0))
    assert processed.status.value == status
    assert error in str(processed.error)
    assert "\n" not in str(processed.error)
    assert processed.data is None
    assert processed.sha256 == hashlib.sha256(body).hexdigest()
    assert processed.md5 == hashlib.md5(body).hexdigest()


def test_limits_hold_on_both_sides():
    config = replace(CONFIG, min_size=32, max_aspect_ratio=3.0, max_pixels=96 * 32, max_frames=3)
    assert process(image_file(96, 32), config).status.value == "success"
    assert process(image_file(97, 32), config).status.value == "too_many_pixels"
    body = image_file(96, 32)
    assert process(body, min_bytes=len(body)).status.value == "success"
    too_small = process(body, min_bytes=len(body) + 1)
    assert (too_small.status.value, too_small.error) == (
        "too_small_bytes",
        f"{len(body)} bytes, at least {len(body) + 1} are wanted",
    )


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP"])
def test_animations_within_the_limit_give_their_first_frame(format):
    frames = [Image.fromarray(pixels(32, 32, seed)) for seed in range(3)]
    options = {"lossless": True} if format == "WEBP" else {}
    body = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert read_header(body, format.lower()).frames == 3
    assert process(body, replace(CONFIG, max_frames=2)).error == "3 frames"
    data = process(body).data
    assert data is not None
    with Image.open(BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 1
    if format != "GIF":  # which has 256 colours only
        assert np.array_equal(stored(body), np.asarray(frames[0]))


def test_a_bomb_costs_no_memory():
    body = png_bomb(30_000, 30_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert process(body).status.value == "too_many_pixels"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kilobytes


def test_a_webp_canvas_is_judged_by_its_header():
    body = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (16_382).to_bytes(3, "little") * 2
    assert process(body).status.value == "too_many_pixels"


def test_a_gif_is_as_large_as_its_first_frame_makes_it():
    body = animated_gif(1)
    frame = body.index(b"\x2c")
    grown = body[: frame + 5] + struct.pack("<HH", 60_000, 60_000) + body[frame + 9 :]
    assert read_header(grown, "gif") == Header(60_000, 60_000, 1)
    assert process(grown).status.value == "too_many_pixels"


def test_damaged_files_never_raise():
    generator = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        body = image_file(24, 20, format)
        for _ in range(120):
            damaged = bytearray(body)
            for position in generator.integers(0, len(body), 4):
                damaged[position] = generator.integers(0, 256)
            cut = bytes(damaged[: generator.integers(1, len(body) + 1)])
            config = replace(CONFIG, max_pixels=1_000_000)
            assert process(cut, config).status.value in (
                "success",
                "undecodable",
                "unsupported_type",
                "too_many_pixels",
                "too_many_frames",
            )


# Decoded


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_headers_and_types_agree_with_pillow(format):
    body = image_file(37, 21, format)
    assert sniff(body) == format.lower()
    assert read_header(body, format.lower()) == Header(37, 21, 1)
    processed = process(body)
    assert (processed.original_width, processed.original_height, processed.format) == (37, 21, format.lower())


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"quality": 80}, {"quality": 80, "exif": b"Exif\0\0x"}]
)
def test_webp_headers_of_all_three_kinds(options):
    assert read_header(image_file(37, 21, "WEBP", **options), "webp") == Header(37, 21, 1)


def test_avif_is_decoded_where_pillow_can():
    if not features.check("avif"):
        pytest.skip("needs a Pillow built with AVIF")
    processed = process(image_file(40, 30, "AVIF"))
    assert (processed.format, processed.extension, processed.width) == ("avif", "jpg", 40)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "SecretCamera"
    options = {"lossless": True} if format == "WEBP" else {}
    body = image_file(40, 24, format, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(body))).convert("RGB"))
    processed = process(body, PNG)
    assert np.array_equal(stored(body), expected)
    assert (processed.original_width, processed.original_height) == (expected.shape[1], expected.shape[0])
    for config in (CONFIG, PNG):
        data = process(body, config).data
        assert data is not None
        assert b"SecretCamera" not in data
        assert not dict(Image.open(BytesIO(data)).getexif())


def test_transparency_lies_over_white():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4] = (10, 20, 30, 255)
    rgba[4:6] = (0, 0, 0, 128)
    expected = np.full((8, 8, 3), 255, np.uint8)
    expected[:4] = (10, 20, 30)
    expected[4:6] = 127
    for format in ("PNG", "WEBP"):
        options = {"lossless": True, "exact": True} if format == "WEBP" else {}
        body = saved(Image.fromarray(rgba), format, **options)
        assert np.abs(stored(body).astype(int) - expected).max() <= 1
    grey = saved(Image.fromarray(rgba).convert("LA"), "PNG")
    assert stored(grey)[7, 7].tolist() == [255, 255, 255]


def test_a_transparent_palette_lies_over_white():
    image = Image.new("P", (6, 6), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 3, 6))
    for format in ("PNG", "GIF"):
        result = stored(saved(image, format, transparency=0))
        assert result[0, 0].tolist() == [255, 255, 255]
        assert result[0, 5].tolist() == [0, 0, 255]


def test_sixteen_bits_are_scaled_not_clipped():
    grey = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    result = stored(saved(Image.fromarray(grey), "PNG"))
    assert np.abs(result[..., 0].astype(int) - (grey / 257).round()).max() <= 1
    assert result[..., 0].max() == 255


def test_sixteen_bit_colour_is_stored_in_eight():
    rgb = (pixels(16, 16).astype(np.uint16) * 257)[..., ::-1]
    body = cv2.imencode(".png", rgb)[1].tobytes()
    assert body[24] == 16
    processed = process(body)
    assert processed.data is not None
    assert processed.data[24] == 8
    assert np.array_equal(stored(body), pixels(16, 16))


@pytest.mark.parametrize(
    ("format", "mode"), [("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "1"), ("PNG", "P"), ("PNG", "L")]
)
def test_other_colour_modes_become_rgb(format, mode):
    body = image_file(32, 32, format, mode=mode)
    assert np.array_equal(stored(body), np.asarray(Image.open(BytesIO(body)).convert("RGB")))


def test_progressive_and_odd_sized_jpegs():
    body = image_file(33, 17, progressive=True, subsampling=2)
    assert stored(body).shape == (17, 33, 3)


# Stored as it came


def test_an_unchanged_jpeg_keeps_its_coded_data_and_loses_its_metadata():
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[1] = "N"
    options = {"exif": exif, "comment": b"a comment", "icc_profile": b"p" * 200, "xmp": b"<x:xmpmeta secret>"}
    body = image_file(64, 48, progressive=True, **options) + b"PK\x03\x04 glued on"
    processed = process(body)
    data = processed.data
    assert data is not None
    assert (processed.extension, processed.width) == ("jpg", 64)
    for secret in (b"SecretCamera", b"a comment", b"ppppp", b"xmpmeta", b"glued on", b"Exif"):
        assert secret in body
        assert secret not in data
    before = np.asarray(Image.open(BytesIO(body)))
    assert np.array_equal(np.asarray(Image.open(BytesIO(data))), before)
    assert data[-2:] == b"\xff\xd9"


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("WEBP", {"quality": 80}), ("WEBP", {"lossless": True})]
)
def test_an_unchanged_png_or_webp_as_well(format, options):
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    body = image_file(33, 17, format, exif=exif, icc_profile=b"p" * 200, **options) + b"glued on"
    data = process(body).data
    assert data is not None
    assert b"SecretCamera" in body
    for secret in (b"SecretCamera", b"ppppp", b"glued on"):
        assert secret not in data
    assert np.array_equal(np.asarray(Image.open(BytesIO(data))), np.asarray(Image.open(BytesIO(body))))
    assert len(data) < len(body)


def test_a_plain_small_png_is_stored_byte_for_byte():
    body = image_file(72, 72, "PNG", mode="P")
    assert process(body).data == body


def test_a_jfif_thumbnail_is_dropped():
    body = image_file(32, 32)
    assert body[6:11] == b"JFIF\0"
    thumbnail = (
        body[:2] + b"\xff\xe0" + struct.pack(">H", 16 + 12) + body[6:18] + b"\2\2" + b"T" * 12 + body[20:]
    )
    assert stored(thumbnail, CONFIG).shape == (32, 32, 3)
    assert process(thumbnail).data == process(body).data


def test_files_with_an_odd_layout_are_not_stripped():
    body = image_file(32, 32, "PNG")
    with pytest.raises(CannotStrip, match="ends too early"):
        strip_metadata(body[:-12], "png")
    with pytest.raises(CannotStrip, match="no marker at byte 2"):
        strip_metadata(b"\xff\xd8nonsense", "jpeg")
    with pytest.raises(CannotStrip, match="goes past the end"):
        strip_metadata(body[:8] + struct.pack(">I4s", 2**31, b"tEXt") + b"x", "png")
    text = body[:33] + png_chunk(b"tEXt", b"k\0v") + body[33:]
    assert strip_metadata(text, "png") == body


# Resized


def resized_shape(width: int, height: int, **change) -> tuple[int, ...]:
    return stored(image_file(width, height, "PNG"), replace(PNG, **change)).shape[:2]


@pytest.mark.parametrize(
    ("mode", "size", "only_if_bigger", "shape"),
    [
        (ResizeMode.no, 10, False, (40, 60)),
        (ResizeMode.keep_ratio, 20, False, (20, 30)),
        (ResizeMode.keep_ratio, 80, False, (80, 120)),
        (ResizeMode.keep_ratio, 80, True, (40, 60)),
        (ResizeMode.keep_ratio_largest, 30, False, (20, 30)),
        (ResizeMode.keep_ratio_largest, 90, False, (60, 90)),
        (ResizeMode.keep_ratio_largest, 90, True, (40, 60)),
        (ResizeMode.center_crop, 20, False, (20, 20)),
        (ResizeMode.center_crop, 80, False, (80, 80)),
        (ResizeMode.center_crop, 80, True, (40, 60)),
        (ResizeMode.center_crop, 50, True, (40, 50)),
        (ResizeMode.border, 30, False, (30, 30)),
        (ResizeMode.border, 90, False, (90, 90)),
        (ResizeMode.border, 90, True, (90, 90)),
    ],
)
def test_resize_modes(mode, size, only_if_bigger, shape):
    assert resized_shape(60, 40, resize_mode=mode, size=size, only_if_bigger=only_if_bigger) == shape
    turned = resized_shape(40, 60, resize_mode=mode, size=size, only_if_bigger=only_if_bigger)
    assert turned == shape[::-1]


def test_shrinking_is_opencvs_area_average():
    config = replace(PNG, resize_mode=ResizeMode.keep_ratio, size=31)
    expected = cv2.resize(pixels(90, 62), (45, 31), interpolation=cv2.INTER_AREA)
    assert np.array_equal(stored(image_file(90, 62, "PNG"), config), expected)


@pytest.mark.parametrize(
    ("upscaling", "flag"), [(Upscaling.lanczos, cv2.INTER_LANCZOS4), (Upscaling.cubic, cv2.INTER_CUBIC)]
)
def test_enlarging_is_lanczos_or_cubic(upscaling, flag):
    config = replace(PNG, resize_mode=ResizeMode.keep_ratio, size=50, upscaling=upscaling)
    expected = cv2.resize(pixels(40, 25), (80, 50), interpolation=flag)
    assert np.array_equal(stored(image_file(40, 25, "PNG"), config), expected)


def test_the_border_is_white_and_the_crop_is_central():
    body = image_file(60, 40, "PNG")
    padded = stored(body, replace(PNG, resize_mode=ResizeMode.border, size=60))
    assert (padded[:10] == 255).all()
    assert (padded[50:] == 255).all()
    assert np.array_equal(padded[10:50], pixels(60, 40))
    cropped = stored(body, replace(PNG, resize_mode=ResizeMode.center_crop, size=40))
    assert np.array_equal(cropped, pixels(60, 40)[:, 10:50])


def test_a_thin_image_does_not_grow_without_bound():
    body = image_file(60_000, 1, "PNG")
    processed = process(body, replace(PNG, resize_mode=ResizeMode.keep_ratio, size=2048))
    assert processed.status.value == "bad_aspect_ratio"
    assert processed.error == "would be resized to 122880000 x 2048 pixels"
    for mode in (ResizeMode.border, ResizeMode.keep_ratio_largest):
        assert process(body, replace(PNG, resize_mode=mode)).status.value == "success"


@pytest.mark.parametrize(("format", "side"), [(StoredFormat.webp, 16_384), (StoredFormat.jpg, 65_501)])
def test_sides_that_a_format_cannot_hold(format, side):
    processed = process(image_file(side, 2, "PNG"), replace(CONFIG, format=format))
    assert processed.status.value == "too_many_pixels"
    assert f"{side} x 2 pixels, more than {format.value} can hold" == processed.error


@pytest.mark.parametrize("format", [StoredFormat.jpg, StoredFormat.png, StoredFormat.webp])
def test_stored_formats(format):
    body = image_file(64, 48, "GIF")
    processed = process(body, replace(CONFIG, format=format))
    assert processed.data is not None
    assert (processed.extension, sniff(processed.data)) == (
        format.value,
        {"jpg": "jpeg"}.get(format.value, format.value),
    )
    assert processed.data == process(body, replace(CONFIG, format=format)).data


def test_quality_is_obeyed():
    sizes = [
        len(
            process(image_file(64, 64, "PNG"), replace(CONFIG, format=StoredFormat.jpg, quality=q)).data
            or b""
        )
        for q in (50, 95)
    ]
    assert sizes[0] < sizes[1]


# Hashes


def distance(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def test_the_perceptual_hash_survives_recoding_and_tells_pictures_apart():
    original = process(image_file(200, 150, "PNG")).phash
    assert original is not None
    assert len(original) == 16
    for body in (image_file(200, 150, quality=60), image_file(200, 150, "WEBP", quality=60)):
        assert distance(original, str(process(body).phash)) <= 6
    smaller = saved(Image.fromarray(pixels(200, 150)).resize((100, 75)), "PNG")
    assert distance(original, str(process(smaller).phash)) <= 6
    for seed in range(1, 6):
        assert distance(original, str(process(image_file(200, 150, "PNG", seed=seed)).phash)) >= 16


def test_the_perceptual_hash_is_the_textbook_one():
    """A DCT-II computed by its formula gives the same bits."""
    image = pixels(32, 32)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    n = np.arange(32)
    basis = (
        np.cos(np.pi * (2 * n[None] + 1) * n[:, None] / 64) * np.where(n[:, None] == 0, 1 / 32, 1 / 16) ** 0.5
    )
    low = (basis @ grey @ basis.T)[:8, :8]
    bits = "".join("1" if value > np.median(low) else "0" for value in low.ravel())
    assert perceptual_hash(image) == f"{int(bits, 2):016x}"


def test_the_hash_does_not_depend_on_the_stored_size():
    body = image_file(200, 150, "PNG")
    small = process(body, replace(PNG, resize_mode=ResizeMode.center_crop, size=32))
    assert small.phash == process(body).phash


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quality": 101}, "download.images.quality is 101; give a number from 1 to 100"),
        ({"max_pixels": 10**9}, "download.images.max_pixels is 1000000000"),
        ({"max_aspect_ratio": 0.5}, "download.images.max_aspect_ratio is 0.5"),
        ({"size": 0}, "download.images.size is 0"),
    ],
)
def test_settings_are_checked(change, words):
    with pytest.raises(ConfigError) as raised:
        replace(CONFIG, **change)
    assert words in str(raised.value)


# Decoding at a scale


SCALED = replace(
    CONFIG, resize_mode=ResizeMode.keep_ratio, size=100, only_if_bigger=True, format=StoredFormat.png
)


@pytest.mark.parametrize(
    ("width", "height", "mode"),
    [
        (640, 480, ResizeMode.keep_ratio),
        (481, 640, ResizeMode.keep_ratio),
        (3001, 1999, ResizeMode.center_crop),
        (999, 333, ResizeMode.keep_ratio_largest),
        (700, 701, ResizeMode.border),
        (90, 80, ResizeMode.keep_ratio),
        (800, 800, ResizeMode.keep_ratio),
        (640, 480, ResizeMode.no),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_decoding_at_a_scale_gives_the_size_of_an_exact_one_and_nearly_its_pixels(
    width, height, mode, orientation
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = image_file(width, height, quality=92, exif=exif)
    config = replace(SCALED, resize_mode=mode)
    exact, scaled = (
        process(body, replace(config, decoding=decoding)) for decoding in (Decoding.exact, Decoding.scaled)
    )
    same = (
        "status",
        "md5",
        "sha256",
        "original_width",
        "original_height",
        "width",
        "height",
        "extension",
        "format",
    )
    assert [getattr(scaled, name) for name in same] == [getattr(exact, name) for name in same]
    one, other = (
        np.asarray(Image.open(BytesIO(found.data)).convert("RGB"), np.int16) for found in (exact, scaled)
    )
    assert np.abs(one - other).mean() < 3
    differing = (int(exact.phash, 16) ^ int(scaled.phash, 16)).bit_count()
    assert differing <= 6


@pytest.mark.parametrize(
    ("size", "at_least", "scaled"),
    [
        (
            (640, 480),
            (341, 256),
            None,
        ),  # 1/2 is too small; 5/8, which libjpeg has too, takes longer than all of it
        ((640, 512), (320, 256), (320, 256)),
        ((639, 511), (320, 256), (320, 256)),
        ((3000, 2000), (384, 256), (750, 500)),
        ((3000, 2048), (375, 256), (375, 256)),
        ((8000, 6000), (341, 256), (1000, 750)),
        ((100, 4000), (100, 4000), None),
        ((100, 4000), (90, 600), None),
    ],
)
def test_the_scales_are_those_with_fast_code(size, at_least, scaled):
    assert fast_dct_scale(size, at_least) == scaled


def test_decoding_at_a_scale_changes_nothing_where_nothing_is_shrunk():
    for body in (image_file(90, 80), image_file(90, 80, "PNG"), image_file(640, 480, "PNG")):
        exact, scaled = (process(body, replace(SCALED, decoding=decoding)) for decoding in Decoding)
        assert exact == scaled


def test_exact_means_the_pixels_of_opencv():
    body = image_file(640, 480, quality=90)
    size = (round(640 * 100 / 480), 100)
    expected = cv2.resize(cv2.imdecode(np.frombuffer(body, np.uint8), 1), size, interpolation=cv2.INTER_AREA)
    assert (stored(body, SCALED) == expected[..., ::-1]).all()


# HEIC


def heic(width: int, height: int, **options) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif; install the heic extra")
    file = BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels(width, height))).save(file, quality=95, **options)
    return file.getvalue()


def test_heic_is_decoded_where_its_decoder_is_installed(monkeypatch):
    body = heic(64, 48)
    processed = process(body)
    assert (processed.status.value, processed.format, processed.extension) == ("success", "heic", "jpg")
    assert (processed.original_width, processed.original_height) == (64, 48)
    assert np.abs(stored(body).astype(int) - pixels(64, 48)).mean() < 8
    assert process(body, replace(CONFIG, max_pixels=1000)).status.value == "too_many_pixels"
    assert process(body[:-200]).status.value == "undecodable"
    assert process(body[:40]).status.value == "undecodable"
    monkeypatch.setattr("data_pipeline.image_headers.heic_is_installed", lambda: False)
    assert process(body).status.value == "unsupported_type"


def test_boxes_are_blurred_before_the_image_is_made_smaller():
    body = image_file(400, 300)
    config = replace(SCALED, decoding=Decoding.exact)
    plain = process_image(body, config, min_bytes=0)
    blurred = process_image(body, config, min_bytes=0, blurred=[[0.2, 0.2, 0.6, 0.6]])
    assert (blurred.sha256, blurred.width, blurred.height) == (plain.sha256, plain.width, plain.height)
    one, other = (np.asarray(Image.open(BytesIO(found.data)), np.int16) for found in (plain, blurred))
    changed = (one != other).any(axis=2)
    assert changed[25:55, 30:75].mean() > 0.5
    assert not changed[80:].any()
    kept = process_image(body, CONFIG, min_bytes=0, blurred=[[0.2, 0.2, 0.6, 0.6]])
    assert kept.data != process(body).data  # the original's coded data would show the face

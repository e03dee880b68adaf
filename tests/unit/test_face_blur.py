import numpy as np
import pytest
from sample_images import pixels

from data_pipeline.face_blur import blur_boxes, read_boxes


def test_the_inside_is_blurred_and_the_rest_stays():
    image = pixels(120, 80)
    blurred = blur_boxes(image, [[0.25, 0.25, 0.5, 0.5]])
    changed = (blurred != image).any(axis=2)
    assert changed[20:40, 30:60].mean() > 0.9
    outside = np.ones((80, 120), bool)
    outside[15:45, 24:66] = False  # the box and its margin
    assert not changed[outside].any()
    inner = blurred[22:38, 34:56].astype(float)
    assert inner.std(axis=(0, 1)).max() < image[22:38, 34:56].astype(float).std(axis=(0, 1)).max()
    assert (image == pixels(120, 80)).all()  # the original is not touched


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1], [1.0, 1.0, 1.0, 1.0]])
def test_empty_boxes_do_little(box):
    assert blur_boxes(pixels(40, 30), [box]).shape == (30, 40, 3)


def test_boxes_at_the_edge_and_the_whole_image():
    image = pixels(40, 30)
    for box in ([0, 0, 0.1, 0.1], [0.9, 0.9, 1, 1], [0, 0, 1, 1]):
        assert (blur_boxes(image, [box]) != image).any()
    assert blur_boxes(image, []) is image


@pytest.mark.parametrize(
    ("value", "boxes"),
    [
        (None, []),
        ([], []),
        ([[0, 0.1, 0.5, 2]], [[0.0, 0.1, 0.5, 1.0]]),
        ("x", None),
        ([[0, 0, 1]], None),
        ([[0, 0, 1, "1"]], None),
        ([[0, 0, 1, float("nan")]], None),
        ([0, 0, 1, 1], None),
    ],
)
def test_boxes_are_checked(value, boxes):
    assert read_boxes(value) == boxes

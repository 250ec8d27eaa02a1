"""The picture shows the right planes, the right way round."""

import io

import numpy as np
from PIL import Image

from medseg.core import Grid, LabelMap, LabelScheme, Volume, reorient
from medseg.core.scheme import Label
from medseg.studies.preview import three_plane_png

RED = (250, 10, 10)
SCHEME = LabelScheme("test", (Label(1, "cube", RED),))


def scene():
    """A cube at the patient's right, front and top of an otherwise dark box."""
    labels = np.zeros((20, 20, 20), dtype=np.uint8)
    labels[14:18, 14:18, 14:18] = 1
    grid = Grid((20, 20, 20), np.eye(4))
    image = np.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(np.float32)
    return Volume(image, grid), LabelMap(labels, grid, SCHEME)


def picture(volume, labels):
    content = three_plane_png(volume, labels, caption="caption")
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def reddish(pixels):
    return (pixels[..., 0] > 180) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)


def test_right_and_front_and_top_are_left_and_up():
    red = reddish(picture(*scene()))
    for column in range(3):
        left = 12 + column * 312
        rows, columns = np.nonzero(red[12:312, left : left + 300])
        assert rows.size > 50
        assert rows.mean() < 120
        assert columns.mean() < 120


def test_the_orientation_of_the_file_does_not_change_the_picture():
    volume, labels = scene()
    turned = picture(reorient(volume, "PSL"), reorient(labels, "PSL"))
    np.testing.assert_array_equal(turned, picture(volume, labels))


def test_an_empty_segmentation_is_drawn_too():
    volume, labels = scene()
    empty = LabelMap(np.zeros_like(labels.data_ijk), labels.grid, SCHEME)
    pixels = picture(volume, empty)
    assert not reddish(pixels[:320]).any()
    assert reddish(pixels[320:]).any()  # the legend

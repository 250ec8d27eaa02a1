"""Corrections without a window: what they leave with the layer, scribbles, far-off strokes."""

# ruff: noqa: PLC0415 - napari takes seconds to import

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from medseg.core import LabelScheme
from medseg.errors import ConfigError, ShapeError
from medseg_napari import _edit_session
from medseg_napari._edit_keys import KEYS
from medseg_napari._edit_session import correct, correction_of, labels_were_saved, unsaved
from medseg_napari._origin import METADATA_KEY, LayerOrigin
from medseg_napari._provenance import Beginning
from medseg_napari._writer import EDITED_KEY
from medseg_napari.editing import brush, logic
from medseg_napari.editing.controller import EditController
from medseg_napari.editing.history import ArrayLayer
from medseg_napari.editing.repair import intensities_around
from medseg_napari.editing.scribbles import Scribbles
from medseg_napari.editing.table import free_values, with_pieces
from tests.plugin.sources import oblique_grid

SHAPE = (8, 10, 12)
SCHEME = LabelScheme.plain("organs", {1: "liver", 2: "spleen", 3: "kidney"})


@pytest.fixture
def model(monkeypatch, tmp_path):
    """A viewer without a window."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    from napari.components import ViewerModel

    viewer = ViewerModel()
    yield viewer
    viewer.layers.clear()


def labels():
    data = np.zeros(SHAPE, dtype=np.uint8)
    data[2:5, 2:6, 2:6] = 1
    data[5:7, 6:9, 6:9] = 2
    return data


def by_model(model, types=None):
    """Labels that a model gave, as a layer, and their correction."""
    grid = oblique_grid(SHAPE)
    beginning = Beginning.by_model(labels(), "tiny", "1", weights_sha256="", seconds=1.0)
    if types is not None:
        beginning = Beginning.opened(labels(), types=types)
    origin = LayerOrigin.of(grid, _Nowhere(), scheme=SCHEME, beginning=beginning)
    data = np.ascontiguousarray(origin.shown_array(labels()))
    layer = model.add_labels(data, metadata={METADATA_KEY: origin})
    return layer, correct(model, layer)


class _Nowhere:
    path = Path("nowhere.nii.gz")


def test_a_label_that_was_touched_is_corrected_and_one_drawn_anew_is_by_hand(model):
    layer, correction = by_model(model)
    controller = correction.controller
    assert EDITED_KEY not in layer.metadata
    at = tuple(np.argwhere(layer.data == 1)[0])
    controller.run(brush.paint, 0, at, size_mm=1, spacing_mm=(1, 1, 1), axis=0)
    assert layer.metadata[EDITED_KEY] == {1: "SEMIAUTOMATIC"}
    controller.run(logic.erase_label, 1)
    assert layer.metadata[EDITED_KEY] == {1: "MANUAL"}
    layer.undo()
    assert layer.metadata[EDITED_KEY] == {1: "SEMIAUTOMATIC"}
    layer.redo()
    controller.run(brush.paint, 1, at, size_mm=3, spacing_mm=(1, 1, 1), axis=0)
    controller.run(brush.paint, 3, (0, 0, 0), size_mm=3, spacing_mm=(1, 1, 1), axis=0)
    assert layer.metadata[EDITED_KEY] == {1: "MANUAL", 3: "MANUAL"}
    for _ in range(4):
        layer.undo()
    assert layer.metadata[EDITED_KEY] == {}
    assert not controller.modified


def test_what_was_drawn_by_hand_in_a_file_stays_by_hand(model):
    layer, correction = by_model(model, types={1: "MANUAL", 2: "AUTOMATIC"})
    correction.controller.run(logic.merge, 2, 1)
    assert layer.metadata[EDITED_KEY] == {1: "MANUAL", 2: "MANUAL"}
    layer.undo()
    at = tuple(np.argwhere(layer.data == 2)[0])
    correction.controller.run(brush.paint, 0, at, size_mm=1, spacing_mm=(1, 1, 1), axis=0)
    assert layer.metadata[EDITED_KEY] == {2: "SEMIAUTOMATIC"}


def test_labels_that_were_saved_are_not_unsaved_until_the_next_edit(model):
    layer, other = model.add_labels(labels()), model.add_labels(labels())
    for one in (layer, other):
        correct(model, one).controller.run(logic.erase_label, 2)
    assert [one.layer for one in unsaved(model)] == [layer, other]
    labels_were_saved(layer.data)
    assert [one.layer for one in unsaved(model)] == [other]
    layer.undo()
    assert [one.layer for one in unsaved(model)] == [layer, other]


def test_a_correction_goes_on_until_its_layer_is_taken_away(model):
    layer = model.add_labels(labels())
    correction = correct(model, layer)
    assert correct(model, layer) is correction
    assert correction.is_open
    closed = []
    correction.closed.connect(lambda: closed.append(True))
    model.layers.remove(layer)
    assert correction_of(layer) is None
    assert closed == [True]
    assert correction not in _edit_session._corrections
    correction.close()
    assert closed == [True]


def test_the_slice_that_is_shown_is_known_on_every_axis(model):
    correction = correct(model, model.add_labels(labels(), scale=(2, 1, 0.5), translate=(5, 6, 7)))
    for axis, index in ((0, 3), (1, 7), (2, 11)):
        model.dims.order = [axis, *(other for other in range(3) if other != axis)]
        correction.show_slice(axis, index)
        assert correction.shown_slice() == (axis, index)
    model.dims.ndisplay = 3
    assert correction.shown_slice() is None


def test_scribbles_go_into_a_layer_that_any_tool_can_draw_in(model):
    layer = model.add_labels(labels(), scale=(2, 1, 1))
    correction = correct(model, layer)
    controller = correction.controller
    controller.brush_mm = 1
    controller.tool = "scribble inside"
    controller.press((3, 4, 4), 0)
    controller.end_stroke()
    marks = correction.scribbles_layer
    assert np.argwhere(marks.data).tolist() == [[3, 4, 4]]
    assert marks.scale.tolist() == layer.scale.tolist()
    marks.data[6, 9, 11] = 2
    drawn = correction.drawn_scribbles()
    assert drawn.around(0.1) == (slice(2, 8), slice(3, 10), slice(3, 12))
    model.layers.remove(marks)
    assert len(correction.drawn_scribbles()) == 0


def test_marks_of_a_layer_keep_to_the_boxes_that_they_lie_in():
    marks = np.zeros((40, 300, 300), dtype=np.uint8)
    marks[20, 100:103, 100] = 1
    marks[21, 100, 104] = 2
    found = Scribbles(marks.shape, (1.0, 1.0, 1.0))
    found.add_layer(marks)
    box = found.around(2.0)
    assert box == (slice(18, 24), slice(98, 105), slice(98, 107))
    np.testing.assert_array_equal(found.drawn(box), marks[box])


@pytest.mark.parametrize("far", [1e5, 1e9, 1e15])
def test_a_stroke_to_a_far_off_place_takes_no_more_than_its_boxes(far):
    shape, spacing = (6, 40, 40), (2.0, 1.0, 1.0)
    blank = np.zeros(shape, dtype=np.uint8)
    tracemalloc.start()
    change = brush.paint(
        blank, 1, (3, 20, 10), (3, 20, far), size_mm=0.5, spacing_mm=spacing, axis=0
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    change.apply(blank)
    assert np.argwhere(blank).tolist() == [[3, 20, last] for last in range(10, 40)]
    assert peak < 4e6
    across = brush.paint(
        blank, 2, (-far, -far, -far), (far, far, far), size_mm=3, spacing_mm=spacing
    )
    across.apply(blank)
    assert all(blank[(at, at, at)] == 2 for at in range(6))


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_a_line_that_is_cut_off_at_the_image_is_the_line_through_it(axis):
    """The voxels inside do not depend on how much of the line lies outside."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        start, stop = rng.uniform(-20, 30, (2, 3))
        small, large = np.zeros((8, 9, 10), np.uint8), np.zeros((68, 69, 70), np.uint8)
        given = {"size_mm": 0.2, "spacing_mm": (1.0, 1.0, 1.0), "axis": axis}
        brush.paint(small, 1, start, stop, **given).apply(small)
        brush.paint(large, 1, start + 30, stop + 30, **given).apply(large)
        np.testing.assert_array_equal(small, large[30:38, 30:39, 30:40])


def test_free_values_and_names_of_pieces():
    assert free_values(SCHEME, 255, 3) == [4, 5, 6]
    with pytest.raises(ConfigError, match="the highest that these labels hold"):
        free_values(SCHEME, 4, 2)
    named = with_pieces(SCHEME, 1, [5, 4])
    assert [(one.value, one.name) for one in named.labels[3:]] == [(4, "liver 2"), (5, "liver 3")]
    again = with_pieces(named, 1, [6])
    assert again.by_value(6).name == "liver 4"


def test_the_point_tool_tells_where_was_clicked_and_edits_nothing():
    layer = ArrayLayer(labels())
    controller = EditController(layer, SCHEME, (2.0, 1.0, 1.0))
    told = []
    controller.pointed.connect(told.append)
    controller.tool = "point"
    controller.press((3.4, 4.6, 5.5), 0)
    controller.press((-1, 4, 5), 0)
    controller.end_stroke()
    assert told == [(3, 5, 6)]
    assert not controller.modified


def test_the_range_round_a_voxel_is_that_of_its_ball():
    image = np.zeros((9, 9, 9))
    image[4, 4, 3:6] = (10, 20, 30)
    low, high = intensities_around(
        image, (4, 4, 4), spacing_mm=(5.0, 5.0, 1.0), sample_mm=1.0, deviations=2.0
    )
    spread = 2 * np.sqrt(200 / 3)
    assert (low, high) == pytest.approx((20 - spread, 20 + spread))
    with pytest.raises(ShapeError, match="click inside the image"):
        intensities_around(image, (9, 4, 4), spacing_mm=(1.0, 1.0, 1.0))


def test_the_keys_stand_in_the_documents():
    page = Path(__file__).resolve().parents[2] / "docs" / "napari-editing.md"
    text = page.read_text(encoding="utf-8")
    for key, what in KEYS.values():
        assert f"| {key.replace('-', '+')} | {what} |" in text

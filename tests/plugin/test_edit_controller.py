"""The controller on a plain array: strokes, undo, the label table, effort, the state of saving."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import Label, LabelScheme
from medseg.core.labelmap import label_counts
from medseg.errors import ConfigError, FormatError
from medseg_napari.editing import brush, morphology
from medseg_napari.editing.controller import EditController
from medseg_napari.editing.edited_layer import check_editable
from medseg_napari.editing.history import ArrayLayer
from medseg_napari.editing.rules import IntensityRange
from tests.plugin.label_maps import edits, label_maps

SPACING = (2.0, 1.0, 0.5)
SCHEME = LabelScheme.plain("organs", {1: "liver", 2: "spleen", 3: "kidney", 4: "lesion"})


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def editor(labels, **given):
    layer = ArrayLayer(labels)
    return layer, EditController(layer, SCHEME, SPACING, **given)


def blank(shape=(12, 20, 24), dtype=np.uint8):
    return np.zeros(shape, dtype=dtype)


actions = st.one_of(
    st.tuples(st.just("edit"), edits()),
    st.tuples(st.just("undo"), st.integers(1, 3)),
    st.tuples(st.just("redo"), st.integers(1, 3)),
    st.tuples(st.just("stroke"), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("merge"), st.permutations([1, 2, 3, 4])),
)


def act(controller, action, value):
    if action == "edit":
        controller.commit(controller.plan(value))
    elif action in ("undo", "redo"):
        for _ in range(value):
            getattr(controller, action)()
    elif action == "stroke":
        rng = np.random.default_rng(value)
        controller.tool = str(rng.choice(["brush", "eraser"]))
        controller.brush_mm = float(rng.uniform(0.5, 4))
        points = rng.uniform(0, 9, (4, 3))
        controller.press(points[0], int(rng.integers(0, 3)))
        for point in points[1:]:
            controller.drag(point)
        controller.end_stroke()
    elif {value[0], value[1]} <= {*controller.scheme.values}:
        controller.merge_labels(value[0], value[1])


@settings(max_examples=40)
@given(label_maps(), st.lists(actions, min_size=1, max_size=8))
def test_after_any_actions_undo_leads_back_to_the_start_and_numbers_are_those_of_the_array(
    labels, row
):
    start = labels.copy()
    _, controller = editor(labels, made="AUTOMATIC")
    counts = label_counts(labels)
    for action, value in row:
        act(controller, action, value)
        np.testing.assert_array_equal(controller.labels_table.counts, label_counts(labels))
        for label in controller.scheme.values:
            work = controller.effort.of(label)
            gain = int((labels == label).sum()) - int((start == label).sum())
            assert work.added_voxels - work.removed_voxels == gain
    end, scheme = labels.copy(), controller.scheme
    steps = 0
    while controller.undo() is not None:
        steps += 1
    np.testing.assert_array_equal(labels, start)
    np.testing.assert_array_equal(controller.labels_table.counts, counts)
    assert controller.scheme == SCHEME
    assert not controller.modified
    assert controller.effort.edits == 0
    assert controller.provenance(1) == "AUTOMATIC"
    for _ in range(steps):
        controller.redo()
    np.testing.assert_array_equal(labels, end)
    assert controller.scheme == scheme
    assert controller.modified == (steps > 0)


def test_a_stroke_is_one_undo_step_however_many_moves_it_has():
    labels = blank()
    _, controller = editor(labels)
    controller.tool = "brush"
    controller.brush_mm = 4
    controller.press((6, 3, 3), 0)
    for place in range(4, 18):
        controller.drag((6, place, place))
    assert controller.in_stroke
    assert controller.modified
    controller.end_stroke()
    whole = brush.paint(blank(), 1, (6, 3, 3), (6, 17, 17), size_mm=4, spacing_mm=SPACING, axis=0)
    assert (labels[6] == 1).sum() == whole.voxels
    assert not labels[[5, 7]].any()
    controller.undo()
    assert not labels.any()
    assert controller.undo() is None


def test_a_stroke_in_three_dimensions_reaches_the_neighbouring_slices():
    labels = blank()
    _, controller = editor(labels)
    controller.tool, controller.brush_mm, controller.in_3d = "brush", 8, True
    controller.press((6, 10, 12), 0)
    controller.end_stroke()
    assert [bool(labels[index].any()) for index in range(3, 10)] == [
        *(False, True, True, True, True, True, False)
    ]


def test_a_stroke_that_is_cancelled_leaves_nothing():
    labels = blank()
    _, controller = editor(labels)
    heard = []
    controller.written.connect(lambda change, forward: heard.append(forward))
    controller.tool = "brush"
    controller.press((6, 3, 3), 0)
    controller.drag((6, 9, 3))
    controller.cancel_stroke()
    assert not labels.any()
    assert not controller.modified
    assert heard == [True, True, False, False]
    assert controller.undo() is None


def test_changing_the_tool_ends_the_stroke():
    labels = blank()
    _, controller = editor(labels)
    controller.tool = "brush"
    controller.press((6, 3, 3), 0)
    controller.tool = "eraser"
    controller.drag((6, 9, 3))
    assert labels[6, 3, 3] == 1
    controller.undo()
    assert not labels.any()


def test_the_eraser_takes_the_active_label_or_all():
    labels = blank()
    labels[:, :10], labels[:, 10:] = 1, 2
    _, controller = editor(labels)
    controller.tool, controller.brush_mm = "eraser", 30
    controller.press((6, 10, 12), 0)
    controller.end_stroke()
    assert (labels[6] == 2).sum() == 240
    assert (labels[6] == 1).sum() == 0
    controller.erase_all = True
    controller.press((6, 10, 12), 0)
    controller.end_stroke()
    assert not labels[6].any()


def test_the_bucket_fills_the_slice_that_is_shown_and_the_eyedropper_picks():
    labels = blank()
    labels[:, 4] = 3
    _, controller = editor(labels)
    controller.tool = "pick"
    controller.press((6, 4.2, 8), 2)
    assert controller.active == 3
    assert controller.pick((0, 0, 0)) is None
    assert controller.pick((50, 0, 0)) is None
    controller.tool = "fill"
    controller.press((6, 10, 8), 2)
    assert (labels[:, 5:, 8] == 3).all()
    assert not labels[:, 5:, 7].any()


def test_a_locked_active_label_is_refused_in_a_sentence_and_the_stroke_ends():
    labels = blank()
    _, controller = editor(labels)
    heard = []
    controller.refused.connect(heard.append)
    controller.lock(1)
    controller.tool = "brush"
    controller.press((6, 3, 3), 0)
    controller.drag((6, 9, 3))
    assert not labels.any()
    assert len(heard) == 1
    assert heard[0].endswith("unlock it in the label table or choose another label")
    rules = controller.rules()
    assert controller.run(morphology.grow, 1, by_mm=1, spacing_mm=SPACING, rules=rules) is None
    assert len(heard) == 2
    controller.lock(1, False)
    controller.press((6, 3, 3), 0)
    assert labels.any()


def test_painting_keeps_to_the_range_of_intensities_and_to_background():
    labels = blank()
    labels[6, :, :6] = 2
    image = np.zeros(labels.shape)
    image[:, 10:] = 5
    _, controller = editor(labels)
    controller.within = IntensityRange(image, 4, 6)
    controller.paint_over = "background"
    controller.tool, controller.brush_mm = "brush", 100
    controller.press((6, 10, 10), 0)
    controller.end_stroke()
    expected = np.zeros((20, 24), dtype=bool)
    expected[10:, 6:] = True
    np.testing.assert_array_equal(labels[6] == 1, expected)


def test_scribbles_are_no_edits():
    labels = blank()
    _, controller = editor(labels)
    controller.tool = "scribble inside"
    controller.press((6, 3, 3), 0)
    controller.drag((6, 9, 3))
    controller.end_stroke()
    assert len(controller.scribbles) == 2
    assert not labels.any()
    assert not controller.modified


# ---- planning


def test_an_edit_computed_on_other_labels_is_not_made():
    labels = blank()
    labels[6, 6, 6] = 1
    _, controller = editor(labels)
    planned = controller.plan(morphology.grow, 1, by_mm=3, spacing_mm=SPACING)
    assert labels.sum() == 1
    controller.run(brush.paint, 1, (2, 2, 2), size_mm=3, spacing_mm=SPACING)
    with pytest.raises(ConfigError, match="labels that were edited since; run it again"):
        controller.commit(planned)


# ---- the table


def test_labels_are_added_renamed_recoloured_and_removed_with_undo():
    labels = blank()
    labels[:, :5] = 1
    _, controller = editor(labels)
    added = controller.add_label()
    assert (added.value, added.name, controller.active) == (5, "label 5", 5)
    assert added.rgb not in {label.rgb for label in SCHEME.labels}
    controller.rename_label(5, "cyst")
    controller.recolour_label(5, (1, 2, 3))
    assert controller.scheme.by_value(5) == Label(5, "cyst", (1, 2, 3))
    controller.remove_label(1)
    assert not labels.any()
    assert 1 not in controller.scheme.values
    controller.undo()
    assert (labels[:, :5] == 1).all()
    assert 1 in controller.scheme.values
    for _ in range(3):
        controller.undo()
    assert controller.scheme == SCHEME
    assert controller.active in SCHEME.values
    assert not controller.modified


def test_a_table_that_cannot_be_is_refused():
    _, controller = editor(blank())
    with pytest.raises(ConfigError, match="every value and name once"):
        controller.add_label("liver")
    with pytest.raises(ConfigError, match="from 1 to 255, the highest that these labels hold"):
        controller.add_label(value=256)
    with pytest.raises(ConfigError, match="one of the values"):
        controller.active = 77
    controller.lock(2)
    with pytest.raises(ConfigError, match="label 2: expected a label that is not locked"):
        controller.remove_label(2)
    for value in (1, 3, 4):
        controller.remove_label(value)
    controller.lock(2, False)
    with pytest.raises(
        ConfigError, match="a table that keeps at least one label, found the only one"
    ):
        controller.remove_label(2)


def test_volumes_are_in_millilitres_and_follow_edits():
    labels = blank()
    labels[:5, :10, :10] = 2
    _, controller = editor(labels)
    rows = {row.label.value: row for row in controller.labels_table.rows()}
    assert rows[2].voxels == 500
    assert rows[2].volume_ml == pytest.approx(0.5)  # 2 x 1 x 0.5 mm a voxel
    controller.remove_label(2)
    controller.undo()
    controller.merge_labels(2, 1)
    assert controller.labels_table.volume_ml(1) == pytest.approx(0.5)


def test_labels_that_the_scheme_lacks_get_a_name():
    labels = blank(dtype=np.uint16)
    labels[0, 0, 0] = 700
    _, controller = editor(labels)
    assert controller.scheme.by_value(700).name == "label 700"
    controller.run(brush.paint, 900, (5, 5, 5), size_mm=3, spacing_mm=SPACING)
    assert controller.scheme.by_value(900).name == "label 900"
    controller.undo()
    assert 900 not in controller.scheme.values


# ---- effort and saving


def test_effort_counts_voxels_that_stand_and_time_without_pauses():
    labels, clock = blank(), Clock()
    labels[:, :5] = 1
    _, controller = editor(labels, made="AUTOMATIC", clock=clock)
    controller.active = 2
    clock.now += 10
    controller.run(brush.paint, 2, (6, 10, 12), size_mm=4, spacing_mm=SPACING)
    painted = controller.effort.of(2).added_voxels
    assert painted == (labels == 2).sum()
    clock.now += 3600
    controller.run(brush.paint, 2, (6, 2, 12), size_mm=4, spacing_mm=SPACING)
    assert controller.effort.of(2).seconds == pytest.approx(10 + 30)
    assert controller.effort.of(1).removed_voxels > 0
    assert [controller.provenance(value) for value in (1, 2, 3)] == [
        *("SEMIAUTOMATIC", "MANUAL", "AUTOMATIC")
    ]
    controller.undo()
    assert controller.effort.of(2).added_voxels == painted
    assert controller.provenance(1) == "AUTOMATIC"


def test_modified_says_whether_the_labels_are_those_that_were_saved():
    _, controller = editor(blank())
    states = []

    def paint(place):
        controller.run(brush.paint, 1, place, size_mm=3, spacing_mm=SPACING)
        states.append(controller.modified)

    paint((2, 2, 2))
    controller.saved()
    states.append(controller.modified)
    controller.undo()
    states.append(controller.modified)
    controller.redo()
    states.append(controller.modified)
    paint((8, 8, 8))
    controller.undo()
    states.append(controller.modified)
    controller.undo()
    paint((4, 4, 4))
    assert states == [True, False, True, False, True, False, True]


def test_a_models_output_is_taken_over_in_one_step():
    labels = blank()
    _, controller = editor(labels)
    output = np.random.default_rng(0).integers(0, 3, labels.shape).astype(np.uint8)
    other = LabelScheme.plain("model", {1: "a", 2: "b"})
    controller.replace_labels(output, other)
    np.testing.assert_array_equal(labels, output)
    assert controller.scheme == other
    controller.undo()
    assert not labels.any()
    assert controller.scheme == SCHEME


def test_a_hundred_steps_on_a_large_volume_take_little_memory():
    labels = np.zeros((40, 160, 160), dtype=np.uint8)
    layer, controller = editor(labels)
    controller.tool, controller.in_3d = "brush", True
    rng = np.random.default_rng(0)
    for step in range(110):
        controller.brush_mm = float(rng.uniform(5, 40))
        controller.active = 1 + step % 4
        controller.press(rng.uniform(0, labels.shape), 0)
        controller.drag(rng.uniform(0, labels.shape))
        controller.end_stroke()
    assert layer.nbytes < 8 << 20
    for _ in range(100):
        assert controller.undo() is not None
    assert controller.undo() is None


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.zeros((3, 3), dtype=np.uint8), "2 axes"),
        (np.zeros((3, 3, 3)), "type float64"),
        (np.broadcast_to(np.uint8(0), (3, 3, 3)), "an array that is read only"),
        ([[[0]]], "data of type list"),
    ],
)
def test_what_cannot_be_edited_is_refused(labels, found):
    with pytest.raises(FormatError, match=f"labels of type uint8 or uint16 .*, found {found}"):
        check_editable(labels)


def test_editing_needs_neither_qt_nor_napari_nor_torch():
    modules = "controller autosave binding brush fill islands morphology between logic repair"
    code = "\n".join(
        [
            *(f"import medseg_napari.editing.{name}" for name in modules.split()),
            "import sys",
            "print({'qtpy', 'PyQt6', 'napari', 'torch', 'itk', 'SimpleITK'} & {*sys.modules})",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "set()"

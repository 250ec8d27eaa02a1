"""Drawing: brush, eraser, fill, pick; the range of intensities that edits keep to; threshold."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image
from qtpy.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QPushButton

from medseg.errors import ConfigError
from medseg_napari import _layer_boxes
from medseg_napari._edit_section import Section, button, length_box, row, switch
from medseg_napari._layers import DOUBT_KEY
from medseg_napari.editing import brush
from medseg_napari.editing.boxes import whole
from medseg_napari.editing.repair import intensities_around
from medseg_napari.editing.rules import IntensityRange

if TYPE_CHECKING:
    from medseg_napari._edit_bench import Bench
    from medseg_napari._edit_session import Correction
    from medseg_napari.editing.choices import Tool

__all__ = ["DrawSection", "RangeSection", "ToolButtons"]

MOST_BRUSH_MM = 300.0


class ToolButtons:
    """Buttons for tools of the mouse, of which one is down: that of the tool that is chosen.

    Pressing it once more lays the tool down.

    Args:
        bench: Whose correction they are for.
        tools: Tool to title and tip.
    """

    def __init__(self, bench: Bench, tools: dict[Tool, tuple[str, str]]) -> None:
        self._bench = bench
        self.buttons: dict[Tool, QPushButton] = {}
        for tool, (title, tip) in tools.items():
            made = switch(title, partial(self._clicked, tool), tip)
            self.buttons[tool] = made

    def _clicked(self, tool: Tool, checked: bool) -> None:
        correction = self._bench.correction
        if correction is not None:
            correction.viewer.layers.selection.active = correction.layer
            correction.controller.tool = tool if checked else "none"

    def follow(self) -> None:
        """Show which tool is chosen."""
        correction = self._bench.correction
        chosen = "none" if correction is None else correction.controller.tool
        for tool, made in self.buttons.items():
            made.setChecked(tool == chosen)


class DrawSection(Section):
    """Brush, eraser, fill and eyedropper."""

    def build(self) -> None:
        """See :class:`Section`."""
        self._shown: Correction | None = None
        self._before_pick: Tool = "none"
        self.tools = ToolButtons(
            self.bench,
            {
                "brush": ("Brush", "Paint with the chosen label"),
                "eraser": ("Eraser", "Take labels away"),
                "fill": ("Fill", "Give the chosen label to the region that is clicked"),
                "pick": ("Pick", "Choose the label that is clicked (eyedropper)"),
            },
        )
        self.size_box = length_box(10.0, most=MOST_BRUSH_MM)
        self.size_box.setToolTip("Diameter of brush, eraser and scribbles")
        self.size_box.valueChanged.connect(partial(self._choose, "brush_mm"))
        self.three_d_check = QCheckBox("3D")
        self.three_d_check.setToolTip("Through the slices: a ball in place of a disc")
        self.three_d_check.toggled.connect(partial(self._choose, "in_3d"))
        self.over_box = QComboBox()
        self.over_box.addItem("everything not locked", "everything")
        self.over_box.addItem("background alone", "background")
        self.over_box.currentIndexChanged.connect(
            lambda _: self._choose("paint_over", self.over_box.currentData())
        )
        self.erase_box = QComboBox()
        self.erase_box.addItem("the chosen label", False)
        self.erase_box.addItem("all labels not locked", True)
        self.erase_box.currentIndexChanged.connect(
            lambda _: self._choose("erase_all", self.erase_box.currentData())
        )
        self.form.addRow(row(list(self.tools.buttons.values())))
        self.form.addRow("size", row([self.size_box, self.three_d_check]))
        self.form.addRow("paint over", self.over_box)
        self.form.addRow("erase", self.erase_box)

    def follow(self) -> None:
        """See :class:`Section`."""
        if self._shown is not self.bench.correction:
            self.let_go()
            self._shown = self.bench.correction
            if self._shown is not None:
                self._shown.controller.chosen.connect(self._chosen)
        for name in ("tool", "brush_mm", "in_3d", "paint_over", "erase_all"):
            self._chosen(name)

    def let_go(self) -> None:
        """Hear no more of the correction."""
        if self._shown is not None:
            self._shown.controller.chosen.disconnect(self._chosen)
            self._shown = None

    def _choose(self, name: str, value: Any) -> None:  # noqa: ANN401 - as the choice has it
        if self._shown is not None:
            setattr(self._shown.controller, name, value)

    def _chosen(self, name: str) -> None:
        if self._shown is None:
            return
        controller = self._shown.controller
        if name == "tool":
            self.tools.follow()
            if controller.tool not in ("pick", "point"):
                self._before_pick = controller.tool
        elif name == "active" and controller.tool == "pick":
            controller.tool = self._before_pick
        elif name == "brush_mm":
            self.size_box.setValue(controller.brush_mm)
        elif name == "in_3d":
            self.three_d_check.setChecked(controller.in_3d)
        elif name == "paint_over":
            self.over_box.setCurrentIndex(self.over_box.findData(controller.paint_over))
        elif name == "erase_all":
            self.erase_box.setCurrentIndex(self.erase_box.findData(controller.erase_all))


class RangeSection(Section):
    """A range of intensities of an image: a limit for edits, or a threshold."""

    def build(self) -> None:
        """See :class:`Section`."""
        self._shown: Correction | None = None
        self.image_box = QComboBox()
        self.image_box.currentIndexChanged.connect(self._image_changed)
        self.low_box, self.high_box = QDoubleSpinBox(), QDoubleSpinBox()
        for box in (self.low_box, self.high_box):
            box.setRange(-1e9, 1e9)
            box.setDecimals(1)
            box.valueChanged.connect(lambda _: self._limit())
        self.limit_check = QCheckBox("limit drawing and growing to it")
        self.limit_check.setToolTip(
            "Brush, eraser, fill, grow, close, smooth and repair then leave\n"
            "voxels of other intensities as they are"
        )
        self.limit_check.toggled.connect(lambda _: self._limit())
        self.point_button = switch(
            "From a click",
            self._point,
            "Then click in the image: mean and 2.5 standard deviations\nof what is within 3 mm",
        )
        self.bench.pointing_changed.connect(self._follow_pointing)
        self.slice_button = button(
            "Label it in this slice",
            lambda: self.threshold(in_slice=True),
            "Give the chosen label to all voxels of the range",
        )
        self.whole_button = button(
            "In the whole image",
            lambda: self.threshold(in_slice=False),
            "Give the chosen label to all voxels of the range",
        )
        self.form.addRow("image", self.image_box)
        self.form.addRow("from, to", row([self.low_box, self.high_box, self.point_button]))
        self.form.addRow(self.limit_check)
        self.form.addRow(row([self.slice_button, self.whole_button]))

    # ---- the image

    def follow(self) -> None:
        """See :class:`Section`."""
        if self._shown is not self.bench.correction:
            self._shown = self.bench.correction
            self.list_images()
            self._limit()

    def list_images(self) -> None:
        """List the images on the voxels of the labels."""
        correction = self.bench.correction
        images = [] if correction is None else images_on(correction)
        wanted = self.image_box.currentData()
        _layer_boxes.fill(self.image_box, [(one.name, one) for one in images], wanted)
        if self.image_box.currentData() is not wanted:
            self._image_changed()

    @property
    def image(self) -> Image | None:
        """The image that is chosen."""
        return self.image_box.currentData()

    def pixels(self) -> Any:  # noqa: ANN401 - an array
        """The voxels of the chosen image.

        Raises:
            ConfigError: ``edit-no-image`` if there is none on the voxels of the labels.
        """
        if self.image is None:
            raise ConfigError(
                "image of the edit",
                expected="an image on the voxels of the labels",
                found="none that is open",
                remedy="open the image that the labels were made on",
                code="edit-no-image",
            )
        return self.image.data

    def _image_changed(self) -> None:
        if self.image is not None:
            low, high = (float(end) for end in self.image.contrast_limits)
            self.set_range(low, high)
        self._limit()

    # ---- the range

    def set_range(self, low: float, high: float) -> None:
        """Choose a range."""
        for box, value in ((self.low_box, low), (self.high_box, high)):
            box.blockSignals(True)
            box.setValue(value)
            box.blockSignals(False)
        self._limit()

    def within(self) -> IntensityRange:
        """The image and the range that are chosen.

        Raises:
            ConfigError: ``edit-no-image``, ``edit-range``.
        """
        return IntensityRange(self.pixels(), self.low_box.value(), self.high_box.value())

    def _limit(self) -> None:
        if self._shown is None:
            return
        wanted = self.limit_check.isChecked()
        try:
            self._shown.controller.within = self.within() if wanted else None
        except ConfigError as error:
            self.limit_check.setChecked(False)
            self._shown.controller.within = None
            self.bench.tell(str(error), trouble=True)

    def take_from(self, at_vox: tuple[int, ...]) -> bool:
        """Choose the range of what lies round a voxel; whether it was done."""

        def action(one: Correction) -> str:
            spacing_mm = one.controller.spacing_mm
            low, high = intensities_around(self.pixels(), at_vox, spacing_mm=spacing_mm)
            self.set_range(low, high)
            return f"Range {low:.1f} to {high:.1f}"

        return self.bench.attempt(action)

    def _point(self, checked: bool) -> None:
        if checked:
            self.bench.await_point(self.take_from)
        else:
            self.bench.stop_pointing()

    def _follow_pointing(self) -> None:
        self.point_button.setChecked(self.bench.awaiting == self.take_from)

    # ---- threshold

    def threshold(self, *, in_slice: bool) -> None:
        """Give the chosen label to all voxels of the range."""

        def action(one: Correction) -> None:
            controller = one.controller
            box = None
            if in_slice:
                axis, index = slice_of(one)
                ends = list(whole(controller.labels.shape))
                ends[axis] = slice(index, index + 1)
                box = (ends[0], ends[1], ends[2])
            self.bench.run(
                "threshold",
                brush.threshold,
                controller.active,
                within=self.within(),
                box=box,
                rules=controller.rules(),
            )

        self.bench.attempt(action)


def images_on(correction: Correction) -> list[Image]:
    """The images on the voxels of the labels that are corrected; maps of doubt come last."""
    layer = correction.layer
    found = [
        one
        for one in correction.viewer.layers
        if isinstance(one, Image)
        and isinstance(one.data, np.ndarray)
        and not one.rgb
        and one.data.shape == layer.data.shape
        and np.allclose(one.scale, layer.scale, rtol=1e-3)
        and np.allclose(one.translate, layer.translate, atol=1e-2)
    ]
    return sorted(found, key=lambda one: DOUBT_KEY in one.metadata)


def slice_of(correction: Correction) -> tuple[int, int]:
    """Axis and number of the slice that is shown.

    Raises:
        ConfigError: ``edit-no-slice`` if none is, or the slider stands beside the labels.
    """
    shown = correction.shown_slice()
    if shown is None or not 0 <= shown[1] < correction.controller.labels.shape[shown[0]]:
        raise ConfigError(
            "edit in a slice",
            expected="a view that shows one slice of the labels",
            found="a view in three dimensions" if shown is None else "a place beside the labels",
            remedy="switch to slices (Ctrl+Y) and move the slider onto the labels",
            code="edit-no-slice",
        )
    return shown

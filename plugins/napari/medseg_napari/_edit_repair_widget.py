"""Fast repair: region growing from a click, and fills from scribbles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QCheckBox

from medseg_napari._edit_draw_widget import ToolButtons
from medseg_napari._edit_section import Section, button, length_box, row, switch
from medseg_napari.editing import repair

if TYPE_CHECKING:
    from medseg_napari._edit_bench import Bench
    from medseg_napari._edit_session import Correction
    from medseg_napari.editing.boxes import LabelArray
    from medseg_napari.editing.change import Change

__all__ = ["RepairSection"]


class RepairSection(Section):
    """Scribbles inside and outside of a structure, and what fills from them; growing from a click.

    Args:
        title: Of the section.
        bench: Whose correction it works on.
        pixels: Gives the voxels of the image that is looked at, or raises.
    """

    def __init__(self, title: str, bench: Bench, pixels: Callable[[], Any]) -> None:
        self._pixels = pixels
        super().__init__(title, bench)

    def build(self) -> None:
        """See :class:`Section`."""
        self._shown: Correction | None = None
        self.tools = ToolButtons(
            self.bench,
            {
                "scribble inside": ("Scribble inside", "Rough strokes on what belongs to it"),
                "scribble outside": ("outside", "Rough strokes on what does not"),
            },
        )
        self.clear_button = button("Clear", self.clear, "Take all scribbles away")
        self.margin_box = length_box(10.0)
        self.margin_box.setToolTip("How far round the scribbles is looked")
        self.keep_check = QCheckBox("keep scribbles")
        self.keep_check.setToolTip("To add more strokes after undoing the fill")
        self.reach_box = length_box(30.0, most=300.0)
        self.reach_box.setToolTip("Not further from the click than this")
        self.grow_button = switch(
            "Grow from a click",
            self._point,
            "Like intensities, connected to what is clicked: as the range says\n"
            "if drawing is limited to it, else as what is within 3 mm",
        )
        self.bench.pointing_changed.connect(self._follow_pointing)
        self.form.addRow(row([*self.tools.buttons.values(), self.clear_button]))
        self.form.addRow("margin", row([self.margin_box, self.keep_check]))
        self.form.addRow(
            row(
                [
                    button(
                        "Fill by edges",
                        partial(self.fill, "geodesic fill", repair.geodesic_fill),
                        "Geodesic: each voxel goes to the scribble with the cheapest way to it",
                    ),
                    button(
                        "Random walker",
                        partial(self.fill, "random walker", repair.walk_randomly),
                        "Smoother and slower; for small structures",
                    ),
                ]
            )
        )
        self.form.addRow(row([self.grow_button, self.reach_box]))

    def follow(self) -> None:
        """See :class:`Section`."""
        if self._shown is not self.bench.correction:
            self.let_go()
            self._shown = self.bench.correction
            if self._shown is not None:
                self._shown.controller.chosen.connect(self._chosen)
        self.tools.follow()

    def let_go(self) -> None:
        """Hear no more of the correction."""
        if self._shown is not None:
            self._shown.controller.chosen.disconnect(self._chosen)
            self._shown = None

    def _chosen(self, name: str) -> None:
        if name == "tool":
            self.tools.follow()
            if self._shown is not None and self._shown.controller.tool.startswith("scribble"):
                self._shown.show_scribbles()

    def clear(self) -> None:
        """Take all scribbles away."""
        self.bench.attempt(lambda one: one.clear_scribbles())

    def fill(self, name: str, edit: Callable[..., Change]) -> None:
        """Divide the surroundings of the scribbles."""

        def action(one: Correction) -> None:
            controller = one.controller
            value, rules, image = controller.active, controller.rules(), self._pixels()
            margin_mm = self.margin_box.value()

            def filled(labels: LabelArray) -> Change:
                scribbles = one.drawn_scribbles()
                return edit(labels, value, scribbles, image=image, margin_mm=margin_mm, rules=rules)

            def clear(_: Change) -> None:
                if not self.keep_check.isChecked():
                    one.clear_scribbles()

            self.bench.run(name, filled, then=clear)

        self.bench.attempt(action)

    def _point(self, checked: bool) -> None:
        if checked:
            self.bench.await_point(self.grow_from)
        else:
            self.bench.stop_pointing()

    def _follow_pointing(self) -> None:
        self.grow_button.setChecked(self.bench.awaiting == self.grow_from)

    def grow_from(self, at_vox: tuple[int, ...]) -> bool:
        """Give the chosen label to the region round a voxel; whether that has begun."""

        def action(one: Correction) -> None:
            controller = one.controller
            within = controller.within
            self.bench.run(
                "grow region",
                repair.grow_region,
                controller.active,
                at_vox,
                image=self._pixels() if within is None else within.image,
                spacing_mm=controller.spacing_mm,
                reach_mm=self.reach_box.value(),
                low=None if within is None else within.low,
                high=None if within is None else within.high,
                rules=controller.rules(),
            )

        return self.bench.attempt(action)

"""The part of *See it* that leads to the slices worth a second look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from qtpy.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QListWidget,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from medseg.errors import MedsegError
from medseg_napari._layers import DOUBT_KEY
from medseg_napari._worker import start_worker
from medseg_napari.viewing.comparison import Comparison, Side
from medseg_napari.viewing.doubt import DoubtWalk, RankedSlice, by_difference, by_doubt, spot_of
from medseg_napari.viewing.sides import scheme_of

__all__ = ["DoubtSection"]

_ROWS = 6
_NDIM = 3
_NOTHING = (
    "Run a model with *show doubt*, or compare two labels layers, to have slices ranked."
).replace("*", "")

Going = Callable[[RankedSlice, tuple[int, int, int] | None, Any], None]


class DoubtSection(QWidget):  # type: ignore[misc] # Qt is untyped here
    """Slices in the order of their doubt, or of how much two label maps differ there.

    Args:
        viewer: napari's viewer.
        labels: The labels that the doubt is about; None where there are none.
        comparison: Of what is compared; None where nothing is.
        go: Called with a slice, the voxel to look at, and a layer on whose voxels these are.
    """

    def __init__(
        self,
        viewer: Any,  # noqa: ANN401 - napari's
        labels: Callable[[], Any],
        comparison: Callable[[], Comparison | None],
        go: Going,
    ) -> None:
        super().__init__()
        self._viewer = viewer
        self._labels = labels
        self._comparison = comparison
        self._go = go
        self.walk = DoubtWalk()
        self._ranked: tuple[Any, ...] = ()
        self._is_busy = False
        self._then: int | None = None
        self._build()

    def _build(self) -> None:
        self.about = QLabel()
        self.about.setWordWrap(True)
        self.list = QListWidget()
        self.list.itemClicked.connect(self._clicked)
        self.next_button = QPushButton("Next (N)")
        self.next_button.clicked.connect(lambda: self.step(1))
        self.back_button = QPushButton("Back (Shift-N)")
        self.back_button.clicked.connect(lambda: self.step(-1))
        self.rank_button = QPushButton("Rank again")
        self.rank_button.clicked.connect(self.rank)
        buttons = QHBoxLayout()
        for button in (self.next_button, self.back_button, self.rank_button):
            buttons.addWidget(button)
        layout = QVBoxLayout()
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.about)
        layout.addLayout(buttons)
        layout.addWidget(self.list)
        self.setLayout(layout)
        self.list.setFixedHeight(_ROWS * (self.fontMetrics().height() + 8))
        self._show()

    # ---- what is ranked

    @property
    def axis(self) -> int:
        """The axis across the slices that are shown; the first in a view of the whole."""
        hidden = self._viewer.dims.not_displayed
        axis = hidden[-1] if hidden else 0
        return max(0, int(axis) - max(0, int(self._viewer.dims.ndim) - _NDIM))

    def _doubt_layer(self) -> Any:  # noqa: ANN401 - napari's
        found = [
            layer
            for layer in self._viewer.layers
            if DOUBT_KEY in (layer.metadata or {}) and layer.data.ndim == _NDIM
        ]
        return found[-1] if found else None

    def _source(self) -> tuple[Any, ...]:
        """What a ranking now would be of: the axis, and the doubt or the comparison's figures."""
        doubt = self._doubt_layer()
        if doubt is not None:
            return (self.axis, "doubt", id(doubt), id(doubt.data), id(self._labels()))
        comparison = self._comparison()
        if comparison is None:
            return ()
        return (self.axis, "difference", comparison.differing(self.axis).tobytes())

    @property
    def is_stale(self) -> bool:
        """Whether a ranking now would be another."""
        return self._source() != self._ranked

    def rank(self, *ignored: Any) -> None:  # noqa: ANN401, ARG002 - Qt's
        """Rank the slices across the axis that is shown."""
        doubt, axis = self._doubt_layer(), self.axis
        source = self._source()
        if doubt is None:
            comparison = self._comparison()
            slices = () if comparison is None else by_difference(comparison, axis)
            self._take((source, slices, ""))
            return
        if self._is_busy:
            return
        self._is_busy = True
        self.about.setText("Ranking...")
        origin = doubt.metadata[DOUBT_KEY]
        grid, data = origin.shown_grid, np.asarray(doubt.data)
        layer = self._labels()
        side = None
        if layer is not None and layer.data.shape == data.shape:
            side = Side(layer.name, np.asarray(layer.data), grid, scheme_of(layer))

        def work() -> Iterator[tuple[tuple[Any, ...], tuple[RankedSlice, ...], str]]:
            try:
                yield source, by_doubt(data, grid, side, axis), ""
            except MedsegError as error:
                yield source, (), str(error)

        start_worker(work, yielded=self._take, finished=self._finished)

    def _finished(self) -> None:
        self._is_busy = False
        if self._then is not None:
            by, self._then = self._then, None
            self._step(by)

    def _take(self, given: tuple[tuple[Any, ...], tuple[RankedSlice, ...], str]) -> None:
        source, slices, message = given
        here = None if self.walk.place is None else self.walk.slices[self.walk.place]
        self._ranked = source
        self.walk.begin(slices)
        if here is not None:  # go on from where the user is, if it is still in the list
            same = [
                place
                for place, one in enumerate(slices)
                if (one.axis, one.index) == (here.axis, here.index)
            ]
            self.walk.place = same[0] if same else None
        self._show(message)

    def _show(self, message: str = "") -> None:
        self.list.clear()
        for place, one in enumerate(self.walk.slices, start=1):
            self.list.addItem(f"{place}. slice {one.index}: {one.words}")
        kind = self._ranked[1] if self._ranked else ""
        if message:
            self.about.setText(message)
        elif not kind:
            self.about.setText(_NOTHING)
        elif not self.walk.slices:
            none = {"doubt": "Nothing is in doubt.", "difference": "The labels do not differ."}
            self.about.setText(none[kind])
        else:
            by = {"doubt": "the model's doubt", "difference": "how much the labels differ"}
            self.about.setText(f"Ranked by {by[kind]}, across the axis that is shown.")
        self._mark()

    def _mark(self) -> None:
        if self.walk.place is not None:
            self.list.setCurrentRow(self.walk.place)

    def compared(self) -> None:
        """There are new figures of a comparison: a list by differences follows them at once."""
        if self._doubt_layer() is None and self.is_stale:
            self.rank()

    # ---- the walk

    def step(self, by: int) -> None:
        """Go to the next slice (1) or the one before (-1), ranking anew where that is due."""
        if self.is_stale:
            self._then = by if self._doubt_layer() is not None else None
            self.rank()
            if self._then is not None:
                return  # once they are ranked
        self._step(by)

    def _step(self, by: int) -> None:
        one = self.walk.step(by)
        if one is not None:
            self._arrive(one)

    def _clicked(self, item: Any) -> None:  # noqa: ANN401 - Qt's
        place = self.list.row(item)
        if 0 <= place < len(self.walk.slices):
            self._arrive(self.walk.at(place))

    def _arrive(self, one: RankedSlice) -> None:
        self._mark()
        doubt = self._doubt_layer()
        comparison = self._comparison()
        if doubt is not None:
            values, layer = np.asarray(doubt.data), doubt
        elif comparison is not None:
            values, layer = comparison.difference, self._labels()
        else:
            return
        if layer is None or one.index >= values.shape[one.axis]:
            return
        plane = np.take(values, one.index, axis=one.axis)
        others = [axis for axis in range(_NDIM) if axis != one.axis]
        if doubt is None:
            plane = plane != 0
        spot = spot_of(plane, [float(layer.scale[axis]) for axis in others])
        voxel = None
        if spot is not None:
            place = dict(zip(others, spot, strict=True)) | {one.axis: one.index}
            voxel = (place[0], place[1], place[2])
        self._go(one, voxel, layer)

"""The common cursor on a canvas: two lines with a gap, or three in a view of the whole.

Drawn by vispy beside napari's layers, so that nothing is added to the list of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Cross", "cross_lines"]

_COLOUR = (0.25, 0.95, 0.45, 0.75)
_ON_TOP = 1_000_000
_GAP_SHARE = 0.03

Floats = npt.NDArray[np.float64]


def cross_lines(
    point: Sequence[float],
    ranges: Sequence[tuple[float, float]],
    displayed: Sequence[int],
) -> Floats:
    """Ends of the line segments of a cross, with a gap round the point.

    Args:
        point: World coordinates of the cursor.
        ranges: First and last world coordinate of every axis.
        displayed: Axes on the canvas: downwards and to the right, or three.

    Returns:
        ``(segments * 2, 2 or 3)`` in the order of vispy, the last axis first.
    """
    lengths = [ranges[axis][1] - ranges[axis][0] for axis in displayed]
    gap = _GAP_SHARE * min(lengths) / 2 if len(displayed) == 2 else 0.0
    middle = [float(point[axis]) for axis in displayed]
    ends = []
    for number, axis in enumerate(displayed):
        first, last = ranges[axis]
        for start, stop in ((first, middle[number] - gap), (middle[number] + gap, last)):
            if start < stop:
                for at in (start, stop):
                    end = list(middle)
                    end[number] = at
                    ends.append(end[::-1])
    return np.array(ends, dtype=np.float64).reshape(-1, len(displayed))


class Cross:
    """The cursor on one canvas.

    Args:
        canvas: napari's canvas of vispy.
    """

    def __init__(self, canvas: Any) -> None:  # noqa: ANN401 - napari's
        from vispy.scene.visuals import Line  # type: ignore[import-untyped] # noqa: PLC0415

        self._line = Line(
            pos=np.zeros((2, 2), np.float32),
            color=_COLOUR,
            connect="segments",
            width=1,
            method="gl",
            antialias=False,
            parent=canvas.view.scene,
        )
        self._line.order = _ON_TOP
        self._line.set_gl_state("translucent", depth_test=False)

    def move(
        self,
        point: Sequence[float],
        ranges: Sequence[tuple[float, float]],
        displayed: Sequence[int],
    ) -> None:
        """Draw it, see :func:`cross_lines`."""
        ends = cross_lines(point, ranges, displayed)
        self._line.visible = len(ends) > 0
        if len(ends):
            self._line.set_data(pos=ends.astype(np.float32))

    def close(self) -> None:
        """Take it off the canvas."""
        self._line.parent = None

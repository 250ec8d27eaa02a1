"""Editing labels in napari: time per mouse move, undo, and memory of a hundred undo steps.

A labels layer of 512 x 512 x 400 voxels (0.7 x 0.7 x 1 mm, uint8) lies in a real napari window,
two organs in it. A stroke of a brush of 20 mm is drawn move by move, by our brush and by napari's,
in slices of each axis and as a ball; the time of a move is from the mouse event to the end of
drawing. Then a hundred edits of several kinds are made and all undone: the array must be the first
one again, bit by bit, and the history's bytes are counted.

    xvfb-run -a python -m benchmarks.editing [--shape I,P,L] [--moves N] [--json FILE]

Exits with 1 if undo does not lead back, a median move takes more than 30 ms or the steps take more
than 500 MB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from medseg.core import LabelScheme
from medseg_napari.editing import islands, logic, morphology
from medseg_napari.editing.autosave import Autosave
from medseg_napari.editing.binding import LayerEditing, start_editing
from medseg_napari.editing.history import change_in
from pipelines.tables import print_table

SHAPE = (400, 512, 512)
SPACING_MM = (1.0, 0.7, 0.7)
BRUSH_MM = 20.0
MOST_MS = 30.0
MOST_BYTES = 500_000_000


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: str
    side: str
    median_ms: float
    worst_ms: float


def made_labels(shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Two ellipsoids, made slab by slab."""
    labels = np.zeros(tuple(shape), dtype=np.uint8)
    i, p, l = np.ogrid[: shape[0], : shape[1], : shape[2]]  # noqa: E741 - the axes' names
    for value, centre, radius in ((1, (0.5, 0.4, 0.35), 0.25), (2, (0.5, 0.6, 0.7), 0.15)):
        for start in range(0, shape[0], 16):
            part = slice(start, start + 16)
            distance = sum(
                np.square((axis / extent - at) / radius)
                for axis, extent, at in zip((i[part], p, l), shape, centre, strict=True)
            )
            labels[part][distance <= 1] = value
    return labels


def path(shape: Sequence[int], axis: int, moves: int) -> npt.NDArray[np.float64]:
    """Positions of the mouse in the middle slice of an axis, in voxels."""
    turn = np.linspace(0, 1.5 * np.pi, moves)
    points = np.empty((moves, 3))
    one, other = (a for a in range(3) if a != axis)
    points[:, axis] = shape[axis] // 2
    points[:, one] = shape[one] * (0.5 + 0.3 * np.cos(turn))
    points[:, other] = shape[other] * (0.5 + 0.3 * np.sin(turn))
    return points


def draw(
    viewer: Any,  # noqa: ANN401 - napari's
    layer: Any,  # noqa: ANN401 - napari's
    points: npt.NDArray[np.float64],
    shown: Sequence[int],
) -> list[float]:
    """Draw a stroke by mouse events; milliseconds of each move."""
    from napari.utils._proxies import ReadOnlyWrapper  # noqa: PLC0415
    from napari.utils.interactions import (  # noqa: PLC0415 - napari takes seconds to import
        mouse_move_callbacks,
        mouse_press_callbacks,
        mouse_release_callbacks,
    )
    from qtpy.QtWidgets import QApplication  # noqa: PLC0415

    class Event:
        button, view_direction, is_dragging = 1, None, True
        dims_displayed, modifiers, handled = list(shown), (), False
        type = "mouse_press"
        position: tuple[float, ...] = ()

    event = Event()
    times: list[float] = []
    for number, point in enumerate(points):
        event.position = tuple(layer.data_to_world(point))
        start = time.perf_counter()
        if number == 0:
            mouse_press_callbacks(layer, ReadOnlyWrapper(event))
            event.type = "mouse_move"
        else:
            mouse_move_callbacks(layer, event)
        QApplication.processEvents()
        times.append((time.perf_counter() - start) * 1000)
    event.type = "mouse_release"
    mouse_release_callbacks(layer, event)
    viewer.screenshot(flash=False)
    return times[1:]


def strokes(viewer: Any, editing: LayerEditing, moves: int) -> list[Row]:  # noqa: ANN401
    """Time strokes of both brushes along every axis."""
    layer, controller = editing.layer, editing.controller
    rows = []
    for axis, ball in ((0, False), (1, False), (2, False), (0, True)):
        viewer.dims.order = (axis, *(other for other in range(3) if other != axis))
        shape = layer.data.shape
        viewer.dims.set_current_step(axis, shape[axis] // 2)
        points, shown = path(shape, axis, moves), viewer.dims.displayed
        work = f"{'ball' if ball else 'disc'} of {BRUSH_MM:g} mm across {'IPL'[axis]}"
        controller.tool, controller.brush_mm, controller.in_3d = "brush", BRUSH_MM, ball
        times = draw(viewer, layer, points, shown)
        rows.append(Row(work, "medseg", statistics.median(times), max(times)))
        layer.undo()
        controller.tool = "none"
        layer.mode = "paint"
        layer.n_edit_dimensions = 3 if ball else 2
        layer.brush_size = round(BRUSH_MM / min(SPACING_MM))
        times = draw(viewer, layer, points, shown)
        rows.append(Row(work, "napari", statistics.median(times), max(times)))
        layer.undo()
        layer.mode = "pan_zoom"
    return rows


def hundred_edits(editing: LayerEditing) -> None:
    """A hundred undo steps: strokes, margins, smoothing, islands, whole labels."""
    controller = editing.controller
    spacing = controller.spacing_mm
    rng = np.random.default_rng(0)
    whole: list[Callable[[], object]] = [
        lambda: controller.run(morphology.grow, 1, by_mm=3, spacing_mm=spacing),
        lambda: controller.run(morphology.shrink, 1, by_mm=2, spacing_mm=spacing),
        lambda: controller.run(morphology.smooth, [1, 2], sigma_mm=2, spacing_mm=spacing),
        lambda: controller.run(islands.keep_largest, 1, spacing_mm=spacing),
        lambda: controller.run(logic.merge, 2, 1),
    ]
    controller.tool, controller.in_3d = "brush", True
    for step in range(100):
        if step % 10 == 9:
            whole[step // 10 % len(whole)]()
            continue
        controller.active = 1 + step % 2
        controller.press(rng.uniform(0, controller.labels.shape).tolist(), 0)
        for _ in range(5):
            controller.drag(rng.uniform(0, controller.labels.shape).tolist())
        controller.end_stroke()
    controller.tool = "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default=",".join(map(str, SHAPE)))
    parser.add_argument("--moves", type=int, default=60)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    shape = [int(extent) for extent in chosen.shape.split(",")]
    import napari  # noqa: PLC0415 - it takes seconds to import

    viewer = napari.Viewer(show=True)
    layer = viewer.add_labels(made_labels(shape), scale=SPACING_MM)
    scheme = LabelScheme.plain("organs", {1: "liver", 2: "spleen"})
    editing = start_editing(layer, scheme=scheme, autosave=False)
    with tempfile.TemporaryDirectory() as folder:
        editing.autosave = Autosave(editing.controller, "benchmark", folder=Path(folder))
        rows = strokes(viewer, editing, chosen.moves)
        first = layer.data.copy()
        before = psutil.Process().memory_info().rss
        hundred_edits(editing)
        grown = psutil.Process().memory_info().rss - before
        steps = list(layer._undo_history)
        changes = [change for step in steps if (change := change_in(step)) is not None]
        held = sum(change.nbytes for change in changes)
        editing.autosave.flush()
        start = time.perf_counter()
        for _ in steps:
            layer.undo()
        undo_ms = (time.perf_counter() - start) * 1000 / max(len(steps), 1)
        exact = bool(np.array_equal(layer.data, first))
        editing.autosave.saved()
        editing.close()
    viewer.close()
    print_table(
        ["work", "side", "median ms", "worst ms"],
        [[row.work, row.side, f"{row.median_ms:.1f}", f"{row.worst_ms:.1f}"] for row in rows],
    )
    print(
        f"{len(changes)} undo steps: {held / 1e6:.1f} MB by count, {grown / 1e6:.0f} MB more of "
        f"the process; {undo_ms:.0f} ms a step to undo; {'exact' if exact else 'NOT EXACT'}"
    )
    if chosen.json:
        content = {
            "rows": [asdict(row) for row in rows],
            "steps": len(changes),
            "held_bytes": held,
            "grown_bytes": grown,
            "undo_ms": undo_ms,
            "exact": exact,
        }
        chosen.json.write_text(json.dumps(content, indent=1))
    slow = any(row.side == "medseg" and row.median_ms > MOST_MS for row in rows)
    return int(not exact or slow or max(held, grown) > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())

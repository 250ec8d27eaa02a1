"""The viewer on a large CT: opening it, painting on it, and scrolling while a model runs.

A CT of 512 x 512 x 400 voxels (0.7 x 0.7 x 1 mm, int16) and its labels are made and written as
NIfTI. Printed are

- what opening both in a napari window takes beyond reading both, until the first frame is drawn;
- the time of a mouse move with a brush of 20 mm over that image, from the event to the end of
  drawing, of our brush and of napari's;
- the time of a frame while scrolling through the slices, from the step until the window has drawn
  it: of the same arrays added by napari's own methods, of the opened files at rest, then while a
  model runs on the image as the dock runs it. Under Xvfb the processor draws, and most of a frame
  is that.

    xvfb-run -a python -m benchmarks.viewer [--shape I,P,L] [--moves N] [--frames N]
        [--model FOLDER] [--json FILE]

Exits with 1 if opening takes more than 3 s beyond reading, a median move more than 30 ms or a
median frame beside the model more than 50 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from benchmarks.editing import BRUSH_MM, MOST_MS, SHAPE, SPACING_MM, made_labels, strokes
from medseg.core import LabelScheme
from medseg.io.nifti import read_nifti
from medseg.io.reading import read_image
from pipelines.tables import print_table

MOST_OPENING_S = 3.0
MOST_FRAME_MS = 50.0
SECONDS_OF_RUN = 600.0


def made_ct(labels_kji: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Air, soft tissue and two organs with the noise of a CT, in HU, slab by slab."""
    image = np.empty(labels_kji.shape, dtype=np.int16)
    rng = np.random.default_rng(0)
    of_label = np.array([20, 110, 160], dtype=np.int16)
    for start in range(0, len(image), 16):
        part = slice(start, start + 16)
        noise = rng.integers(-40, 40, size=image[part].shape, dtype=np.int16)
        image[part] = of_label[labels_kji[part]] + noise
        image[part, :20] = image[part, -20:] = -1000
    return image


def write_study(shape: Sequence[int], folder: Path) -> tuple[Path, Path]:
    """The image and its labels as files, axes i, j, k."""
    labels_kji = made_labels(shape)
    affine = np.diag([*SPACING_MM[::-1], 1.0])
    paths = folder / "ct.nii", folder / "labels.nii"
    nibabel.save(nibabel.Nifti1Image(made_ct(labels_kji).T, affine), paths[0])
    nibabel.save(nibabel.Nifti1Image(labels_kji.T, affine), paths[1])
    return paths


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def draw_now(viewer: Any) -> None:  # noqa: ANN401 - napari's
    """Let Qt do what is due, and draw the canvas to the end."""
    from qtpy.QtWidgets import QApplication  # noqa: PLC0415 - napari takes seconds to import

    QApplication.processEvents()
    viewer.screenshot(canvas_only=True, flash=False)


def scroll(viewer: Any, frames: int, axis: int = 0) -> list[float]:  # noqa: ANN401 - napari's
    """Milliseconds of each frame: a step to the next slice until it is drawn."""
    from qtpy.QtWidgets import QApplication  # noqa: PLC0415

    extent = int(viewer.dims.nsteps[axis])
    times = []
    drawn: list[float] = []
    # vispy's word that the canvas was drawn; Qt has then still to bring it to the screen, which it
    # has done when it gives the control back
    canvas = viewer.window._qt_viewer.canvas._scene_canvas

    def note(_: object) -> None:
        drawn.append(time.perf_counter())

    canvas.events.draw.connect(note)
    for number in range(frames):
        # as often as a hand turns the wheel
        until = time.perf_counter() + 0.02
        while time.perf_counter() < until:
            QApplication.processEvents()
        drawn.clear()
        start = time.perf_counter()
        viewer.dims.set_current_step(axis, (extent // 4 + number) % extent)
        while not drawn:
            QApplication.processEvents()
        times.append((time.perf_counter() - start) * 1000)
    canvas.events.draw.disconnect(note)
    return times


def scroll_plain(viewer: Any, shape: Sequence[int], frames: int) -> list[float]:  # noqa: ANN401
    """The same through arrays that medseg has nothing to do with; then they are taken away."""
    labels_kji = made_labels(shape)
    viewer.add_image(made_ct(labels_kji), scale=SPACING_MM)
    viewer.add_labels(labels_kji, scale=SPACING_MM)
    draw_now(viewer)
    times = scroll(viewer, frames)
    viewer.layers.clear()
    return times


def scroll_beside_model(viewer: Any, frames: int, models: Path | None) -> list[float]:  # noqa: ANN401
    """The same while the dock runs a model on what is open; then the run is stopped."""
    from qtpy.QtWidgets import QApplication  # noqa: PLC0415

    _, dock = viewer.window.add_plugin_dock_widget("medseg", "Run a model")
    if models is not None:
        dock.look_for_models(models.parent)
        dock.choose_model(models.name)
    dock.run()
    end = time.perf_counter() + SECONDS_OF_RUN
    while dock.controller.state.phase != "running":
        if not dock.controller.state.is_busy or time.perf_counter() > end:
            raise RuntimeError(f"the model did not run: {dock.message.text()}")
        QApplication.processEvents()
    times = scroll(viewer, frames)
    if not dock.controller.state.is_busy:
        raise RuntimeError("the run ended before the scrolling did; give a larger --shape")
    dock.stop()
    while dock.controller.state.is_busy and time.perf_counter() < end:
        QApplication.processEvents()
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--shape", default=",".join(map(str, SHAPE)))
    parser.add_argument("--moves", type=int, default=60)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--model", type=Path, help="its folder; else the first packaged one")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    shape = [int(extent) for extent in chosen.shape.split(",")]
    import napari  # noqa: PLC0415 - it takes seconds to import

    from medseg_napari.editing.binding import start_editing  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        image_path, labels_path = write_study(shape, Path(folder))
        viewer = napari.Viewer(show=True)
        draw_now(viewer)
        plain = scroll_plain(viewer, shape, chosen.frames)
        # once unmeasured, so that the files are in memory for both
        read_image(image_path)
        read_nifti(labels_path)
        reading = seconds(lambda: (read_image(image_path), read_nifti(labels_path)))

        def open_both() -> None:
            viewer.open(str(image_path), plugin="medseg")
            viewer.open(str(labels_path), plugin="medseg")
            draw_now(viewer)

        opening = seconds(open_both)
        layer = viewer.layers[-1]
        scheme = LabelScheme.plain("organs", {1: "liver", 2: "spleen"})
        at_rest = scroll(viewer, chosen.frames)
        beside = scroll_beside_model(viewer, chosen.frames, chosen.model)
        editing = start_editing(layer, scheme=scheme, autosave=False)
        moves = strokes(viewer, editing, chosen.moves)
        editing.close()
        viewer.close()
    print_table(
        ["work", "side", "median ms", "worst ms"],
        [[row.work, row.side, f"{row.median_ms:.1f}", f"{row.worst_ms:.1f}"] for row in moves]
        + [
            [words, side, f"{statistics.median(times):.1f}", f"{max(times):.1f}"]
            for words, side, times in (
                ("scrolling, a frame", "napari", plain),
                ("scrolling, a frame", "medseg", at_rest),
                ("scrolling while a model runs", "medseg", beside),
            )
        ],
    )
    print(
        f"opening image and labels took {opening:.2f} s, reading them {reading:.2f} s: "
        f"{opening - reading:.2f} s more; brush of {BRUSH_MM:g} mm"
    )
    if chosen.json:
        content = {
            "reading_s": reading,
            "opening_s": opening,
            "frame_napari_ms": statistics.median(plain),
            "frame_ms": statistics.median(at_rest),
            "frame_beside_model_ms": statistics.median(beside),
            "moves_ms": {f"{row.work}, {row.side}": row.median_ms for row in moves},
        }
        chosen.json.write_text(json.dumps(content, indent=1))
    return int(
        opening - reading > MOST_OPENING_S
        or any(row.side == "medseg" and row.median_ms > MOST_MS for row in moves)
        or statistics.median(beside) > MOST_FRAME_MS
    )


if __name__ == "__main__":
    sys.exit(main())

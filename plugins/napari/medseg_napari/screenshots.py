"""The pictures of the viewer in the documents, each made by the program it shows.

    xvfb-run -a -s "-screen 0 1600x1200x24" python -m medseg_napari.screenshots --out docs/images

A scene starts with an empty viewer, does what a user would do, and ends with a picture of the
whole window. Everything comes from the packaged sample, so that nothing else is needed.
"""

# ruff: noqa: PLC0415 - napari takes seconds to import, and reads NAPARI_CONFIG then

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from napari import Viewer

__all__ = ["SCENES", "main", "take"]

_SIZE = (1400, 900)
_LONGEST_S = 300.0
_MOST_BYTES = 2_000_000

Scene = Callable[["Viewer", Path], None]


def wait_until(condition: Callable[[], bool]) -> None:
    """Let the viewer work until something is so.

    Raises:
        TimeoutError: If it is not so after five minutes.
    """
    from qtpy.QtWidgets import QApplication

    end = time.perf_counter() + _LONGEST_S
    while not condition():
        if time.perf_counter() > end:
            raise TimeoutError("the viewer did not come to an end")
        QApplication.processEvents()
        time.sleep(0.01)


def _dock(viewer: Viewer, title: str) -> Any:  # noqa: ANN401 - a dock's widget
    return viewer.window.add_plugin_dock_widget("medseg", title, tabify=True)[1]


def _run_model(viewer: Viewer, dock: Any) -> Any:  # noqa: ANN401 - a dock's widget; a layer
    """Run the packaged model on the sample; its labels."""
    from napari.layers import Labels

    before = {id(layer) for layer in viewer.layers}
    dock.run()
    wait_until(lambda: not dock.controller.state.is_busy)
    new = [one for one in viewer.layers if id(one) not in before and isinstance(one, Labels)]
    if not new:
        raise RuntimeError(f"the model gave nothing: {dock.message.text()}")
    return new[0]


def _sample(viewer: Viewer) -> None:
    """The hippocampus with its labels hidden, at a slice that shows both parts."""
    viewer.open_sample("medseg", "hippocampus")
    viewer.layers[-1].visible = False
    viewer.layers.selection.active = viewer.layers[0]
    viewer.dims.set_current_step(0, int(viewer.dims.nsteps[0]) // 2)
    viewer.reset_view()


def run_a_model(viewer: Viewer, folder: Path) -> None:  # noqa: ARG001 - a scene's arguments
    """The packaged model has run on the sample."""
    _sample(viewer)
    _run_model(viewer, _dock(viewer, "Run a model"))


def send_it_back(viewer: Viewer, folder: Path) -> None:  # noqa: ARG001
    """A correction, what it amounts to, and where it can go."""
    _sample(viewer)
    labels = _run_model(viewer, _dock(viewer, "Run a model"))
    at = np.argwhere(np.asarray(labels.data) == 1).mean(axis=0).round()
    labels.selected_label = 1
    labels.brush_size = 5
    labels.paint((at[0], at[1] + 6, at[2]), 1)
    _dock(viewer, "Send it back").refresh()


def correct_it(viewer: Viewer, folder: Path) -> None:  # noqa: ARG001
    """A correction is going on, with the brush in hand."""
    _sample(viewer)
    labels = _run_model(viewer, _dock(viewer, "Run a model"))
    dock = _dock(viewer, "Correct it")
    viewer.layers.selection.active = labels
    dock.start()
    dock.draw.tools.buttons["brush"].click()


def see_it(viewer: Viewer, folder: Path) -> None:  # noqa: ARG001
    """Three planes and a surface; the model beside the expert, at the most doubtful slice."""
    _sample(viewer)
    expert = viewer.layers[-1]
    labels = _run_model(viewer, _dock(viewer, "Run a model"))
    dock = _dock(viewer, "See it")
    viewer.layers.selection.active = labels
    for role, layer in (("corrected", labels), ("reference", expert)):
        box = dock.compare.boxes[role]
        box.setCurrentIndex(box.findText(layer.name))
    dock.compare.difference_check.setChecked(True)
    dock.toggle_views()
    wait_until(lambda: dock.compare.comparison is not None)
    dock.next_doubtful()
    _pause(3.0)  # the surface comes from a worker


def work_list(viewer: Viewer, folder: Path) -> None:
    """A batch of the two sample images, one of them accepted."""
    import medseg

    samples = Path(medseg.__file__).parent / "resources" / "samples" / "hippocampus" / "images"
    out = folder / "results"
    command = [sys.executable, "-m", "pipelines.cli", "predict", str(samples)]
    command += ["-m", "reversible_hippocampus", "-o", str(out), "--uncertainty", "--names", "input"]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own words
    dock = _dock(viewer, "Work list")
    if not dock.open_folder(out):
        raise RuntimeError("the work list did not open")
    for judged in ("accepted", None):
        dock.next_button.click()
        wait_until(lambda: not dock.is_opening)
        if judged is not None:
            dock.judge(judged)


def fine_tune(viewer: Viewer, folder: Path) -> None:  # noqa: ARG001
    """What a fine-tuning asks for."""
    _sample(viewer)
    _dock(viewer, "Fine-tune").choose_target(Path("models"))


SCENES: dict[str, Scene] = {
    "napari-run": run_a_model,
    "napari-correct": correct_it,
    "napari-see": see_it,
    "napari-send": send_it_back,
    "napari-worklist": work_list,
    "napari-finetune": fine_tune,
}


def _pause(seconds: float) -> None:
    until = time.perf_counter() + seconds
    wait_until(lambda: time.perf_counter() > until)


def take(name: str, out: Path) -> Path:
    """Play one scene and write its picture.

    Args:
        name: One of :data:`SCENES`.
        out: The folder.

    Returns:
        The picture, a PNG file.
    """
    import napari
    from PIL import Image
    from qtpy.QtWidgets import QApplication

    with tempfile.TemporaryDirectory() as folder:
        viewer = napari.Viewer(title="napari with medseg", show=True)
        try:
            viewer.window._qt_window.resize(*_SIZE)
            SCENES[name](viewer, Path(folder))
            _pause(1.0)
            picture = viewer.screenshot(canvas_only=False, flash=False)
        finally:
            viewer.close()
            QApplication.processEvents()
    path = out / f"{name}.png"
    out.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(picture).convert("RGB").quantize(256)
    small.save(path, optimize=True)
    if path.stat().st_size > _MOST_BYTES:
        raise RuntimeError(f"{path} is larger than {_MOST_BYTES / 1e6:g} MB")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the pictures; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help=f"of {', '.join(SCENES)}")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    given = parser.parse_args(arguments)
    if unknown := set(given.scenes) - set(SCENES):
        parser.error(f"no such scene: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as settings:
        # neither the user's settings nor his models belong in a picture
        os.environ["NAPARI_CONFIG"] = str(Path(settings) / "settings.yaml")
        os.environ["XDG_DATA_HOME"] = os.environ["XDG_CACHE_HOME"] = settings
        for name in given.scenes or SCENES:
            sys.stdout.write(f"{take(name, given.out)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""napari with medseg's docks and what is to be opened."""

# ruff: noqa: PLC0415 - napari takes seconds to import: after the arguments were understood

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg import NOTICE
from medseg.errors import MedsegError

if TYPE_CHECKING:
    from napari import Viewer

__all__ = ["SAMPLES", "main", "open_viewer"]

SAMPLES = ("hippocampus", "ct", "heart")
DOCKS = ("Run a model", "Correct it", "See it", "Send it back", "Work list", "Fine-tune")
_WORK_LIST, _FINE_TUNE = DOCKS[4:]


def open_viewer(
    paths: Sequence[Path] = (),
    *,
    sample: str | None = None,
    models: Path | None = None,
    ledger: Path | None = None,
    show: bool = True,
) -> Viewer:
    """A viewer with the docks, and something opened in it.

    What cannot be opened is told in the viewer, which stays.

    Args:
        paths: Files, folders and zips; the output folder of a batch run is opened in the work
            list.
        sample: One of :data:`SAMPLES`.
        models: Folder with models of the user.
        ledger: Ledger of the batch run, if it is not in its output folder.
        show: Whether the window is to be seen.
    """
    import napari
    from napari.utils.notifications import show_error
    from qtpy.QtCore import QTimer

    viewer = napari.Viewer(title=f"napari with medseg. {NOTICE}", show=show)
    if sample is not None:
        viewer.open_sample("medseg", sample)
    from medseg_napari._worklist import is_batch_folder

    batches = [path for path in paths if path.is_dir() and (ledger or is_batch_folder(path))]
    for path in paths:
        if path in batches:
            continue
        try:
            viewer.open(str(path), plugin="medseg")
        except MedsegError as error:
            show_error(str(error))
        except Exception as error:  # npe2 wraps what a reader raises
            cause = error.__cause__ or error.__context__
            show_error(str(cause if isinstance(cause, MedsegError) else error))
    widgets: dict[str, Any] = {}
    first = None
    for title in DOCKS:
        dock, widgets[title] = viewer.window.add_plugin_dock_widget("medseg", title, tabify=True)
        dock.setWindowTitle(title)  # as short as its tab is
        first = first or dock
        if batches and title == _WORK_LIST:
            first = dock
    if first is not None:  # after napari has shown the last one
        QTimer.singleShot(0, first.raise_)
    if models is not None:
        for title in (DOCKS[0], _FINE_TUNE):
            widgets[title].look_for_models(models)
        widgets[_WORK_LIST].models = models
    if batches:
        widgets[_WORK_LIST].open_folder(batches[-1], ledger)
    return viewer


def main(arguments: Sequence[str] | None = None) -> None:
    """Start napari and return when it is closed."""
    parser = argparse.ArgumentParser(prog="medseg napari", description="napari with medseg")
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--sample", choices=SAMPLES)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--ledger", type=Path)
    given = parser.parse_args(arguments)
    open_viewer(given.paths, sample=given.sample, models=given.models, ledger=given.ledger)
    import napari

    napari.run()

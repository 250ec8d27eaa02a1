"""Windows need a screen: without one these tests are skipped, except in CI, where they fail."""

import gc
import os
from functools import cache

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("gui") is None or os.environ.get("DISPLAY"):
        return
    if os.environ.get("CI"):
        pytest.fail("CI must give the viewer tests a display: run them under xvfb-run")
    pytest.skip("needs a display: set DISPLAY or run under xvfb-run")


@pytest.fixture
def viewer(qtbot, monkeypatch, tmp_path):
    """A visible viewer with settings and data of its own, closed after the test."""
    monkeypatch.setenv("NAPARI_CONFIG", str(tmp_path / "settings.yaml"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    import napari  # noqa: PLC0415 - it takes seconds, and reads NAPARI_CONFIG then

    _keep_what_is_loaded()
    viewer = napari.Viewer(show=True)
    qtbot.wait_exposed(viewer.window._qt_window)
    yield viewer
    viewer.close()


@cache
def _keep_what_is_loaded() -> None:
    """Once, napari and its window: each layer that comes or goes has garbage collected."""
    import napari._qt.qt_main_window  # noqa: F401, PLC0415

    gc.collect()
    gc.freeze()

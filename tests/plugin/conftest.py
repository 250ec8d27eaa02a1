"""Windows need a screen: without one these tests are skipped, except in CI, where they fail."""

import os

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("gui") is None or os.environ.get("DISPLAY"):
        return
    if os.environ.get("CI"):
        pytest.fail("CI must give the viewer tests a display: run them under xvfb-run")
    pytest.skip("needs a display: set DISPLAY or run under xvfb-run")

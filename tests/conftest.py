"""Fixtures that several test folders share."""

import contextlib
import gc
import os
from pathlib import Path

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads this when it is imported and when a kernel is defined: kernels then run on CPU
    # tensors. Any test that compiles something imports Triton, so it is said before them all.
    os.environ["TRITON_INTERPRET"] = "1"

# Triton and the software renderer under a viewer's window each bring an LLVM. Loaded after the
# renderer's, Triton's crashes the process; which tests come first is not ours to say.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

# How long an example takes says how busy the machine is, not whether a law holds.
# where nobody is there to look at a new example, the examples are the same every time
hypothesis.settings.register_profile(
    "medseg",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("medseg")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; its absence is a skip with a reason."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared/data beside the checkout, which is absent here")
    return folder


def pytest_collection_finish() -> None:
    """What is imported by now stays; napari collects garbage whenever layers come and go, and would
    look through all of it each time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Processes that share the tests must know them by the same names."""
    for item in items:
        if " at 0x" in item.nodeid:
            message = "its name holds a place in memory, another one in every process: give ids"
            raise pytest.UsageError(f"{item.nodeid}: {message}")

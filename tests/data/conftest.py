"""Small phantoms of every kind, written once for all tests of this folder."""

import shutil

import pytest

from medseg.data.phantoms import KINDS, write_phantom

CASES = {"synapse": 4, "transunet": 3, "acdc": 5, "brats": 2, "msd": 5}


@pytest.fixture(scope="session")
def phantom(tmp_path_factory):
    """Kind to the folder of a phantom; the folder is shared, so tests only read it."""
    root = tmp_path_factory.mktemp("phantoms")

    def of(kind):
        if not (root / kind).exists():
            write_phantom(kind, root / kind, cases=CASES.get(kind, 2), size="small")
        return root / kind

    assert set(CASES) <= set(KINDS)
    return of


@pytest.fixture
def copy(phantom, tmp_path):
    """A phantom that a test may break."""

    def of(kind):
        return shutil.copytree(phantom(kind), tmp_path / kind)

    return of

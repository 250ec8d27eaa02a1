"""Made volumes in the layouts of public datasets, for trying things out and for tests."""

from medseg.data.phantoms.write import KINDS, PHANTOM_SIZES, write_phantom

__all__ = ["KINDS", "PHANTOM_SIZES", "write_phantom"]

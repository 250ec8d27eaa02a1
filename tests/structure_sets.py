"""Labels, a grid and contours for tests of RT structure sets."""

from __future__ import annotations

import numpy as np

from medseg.core import Code, Grid, Label, LabelScheme
from medseg.io.dicom_seg import Algorithm
from medseg.io.rtstruct_reading import Contour, Roi

MODEL = Algorithm("test model", "1.2")
ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
SCHEME = LabelScheme(
    "organs",
    (
        Label(1, "Liver", (153, 76, 51), ANATOMY, Code("10200004", "SCT", "Liver")),
        Label(2, "Größe \\ left", (10, 200, 30)),
        Label(300, "läsion", (0, 0, 0)),
    ),
)
GRID = Grid((24, 20, 6), np.diag([-1.5, -1.25, 2.0, 1.0]))


def blocks(grid=GRID):
    """Two structures, one with a hole and one in that hole, one at the border of the image."""
    data = np.zeros(grid.shape_ijk, dtype=np.uint16)
    data[4:16, 3:15, 1:5] = 1
    data[8:12, 7:11, 1:5] = 0
    data[9:11, 8:10, 2:4] = 300
    data[20:, 16:, 0:2] = 2
    return data


def box_roi(lows, name="box", **changes):
    """A square in each plane, given by its lowest corner in world mm."""
    steps = np.array([[0, 0, 0], [6, 0, 0], [6, 5, 0], [0, 5, 0]], dtype=float)
    contours = tuple(Contour(np.array(low, dtype=float) + steps) for low in lows)
    values = {"number": 1, "rgb": None, "interpreted_type": "", "generation_algorithm": ""}
    values |= {"concept": None, "frame_of_reference": "1.2", "contours": contours}
    return Roi(name=name, **(values | changes))

"""Small label maps for the tests of edits, and edits to draw from."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scipy import ndimage

from medseg_napari.editing import brush, fill, islands, logic, morphology
from medseg_napari.editing.rules import IntensityRange, Rules

SPACINGS = [(1.0, 1.0, 1.0), (2.5, 0.7, 0.9), (0.8, 1.1, 3.0)]


@st.composite
def label_maps(draw, dtype=None):
    """Blobs of labels 0 to 4 in uint8 or uint16."""
    shape = draw(st.tuples(*[st.integers(3, 9)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.integers(0, 5, shape)
    if draw(st.booleans()):
        values = ndimage.median_filter(values, 3)
    return values.astype(dtype or draw(st.sampled_from([np.uint8, np.uint16])))


@st.composite
def edits(draw, locked=frozenset(), with_range=True):
    """A function that computes a change of labels it is given."""
    value = draw(st.sampled_from([v for v in range(1, 5) if v not in locked]))
    other = draw(st.sampled_from([v for v in range(1, 5) if v != value]))
    spacing = draw(st.sampled_from(SPACINGS))
    axis = draw(st.sampled_from([None, 0, 1, 2]))
    mm = draw(st.sampled_from([0.3, 1.0, 1.9, 4.0]))
    over = draw(st.sampled_from([None, frozenset({0}), frozenset({0, 3})]))
    seed = draw(st.integers(0, 2**32 - 1))
    limited = with_range and draw(st.booleans())
    kind = draw(st.sampled_from(sorted(EDITS)))

    def edit(labels):
        rng = np.random.default_rng(seed)
        image = rng.normal(size=labels.shape).astype(np.float32)
        within = IntensityRange(image, -0.6, 0.9) if limited else None
        rules = Rules(frozenset(locked), over, within)
        points = rng.uniform(-1, np.array(labels.shape) + 1, (2, 3))
        voxel = tuple(int(v) for v in rng.integers(0, labels.shape))
        given = {"spacing_mm": spacing, "axis": axis, "rules": rules}
        return EDITS[kind](labels, value, other, mm, points, voxel, given)

    return edit


def _slice_pair(labels, given):
    axis = given["axis"] or 0
    return axis, 0, labels.shape[axis] - 1


def _only(given, *names):
    return {name: given[name] for name in names}


EDITS = {
    "paint": lambda lab, v, o, mm, p, x, g: brush.paint(lab, v, *p, size_mm=mm, **g),
    "erase": lambda lab, v, o, mm, p, x, g: brush.erase(lab, *p, size_mm=mm, of=v, **g),
    "fill": lambda lab, v, o, mm, p, x, g: fill.fill(lab, v, x, **_only(g, "axis", "rules")),
    "keep largest": lambda lab, v, o, mm, p, x, g: islands.keep_largest(
        lab, v, **_only(g, "spacing_mm", "rules")
    ),
    "remove small": lambda lab, v, o, mm, p, x, g: islands.remove_small(
        lab, v, min_ml=mm / 1000, **_only(g, "spacing_mm", "rules")
    ),
    "fill holes": lambda lab, v, o, mm, p, x, g: islands.fill_holes(
        lab, v, **_only(g, "axis", "rules")
    ),
    "grow": lambda lab, v, o, mm, p, x, g: morphology.grow(lab, v, by_mm=mm, **g),
    "shrink": lambda lab, v, o, mm, p, x, g: morphology.shrink(lab, v, by_mm=mm, **g),
    "close": lambda lab, v, o, mm, p, x, g: morphology.close(lab, v, by_mm=mm, **g),
    "smooth": lambda lab, v, o, mm, p, x, g: morphology.smooth(lab, v, sigma_mm=mm, **g),
    "union": lambda lab, v, o, mm, p, x, g: logic.combine(lab, v, "union", o, rules=g["rules"]),
    "copy slice": lambda lab, v, o, mm, p, x, g: logic.copy_slice(
        lab, *_slice_pair(lab, g), value=v, rules=g["rules"]
    ),
}

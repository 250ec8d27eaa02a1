"""Cleaning of label maps: close gaps, fill holes, keep the largest piece, drop small ones.

Everything happens inside the bounding box of one label at a time: neither closing nor filling can
leave it, and removal only makes it smaller. Boxes are worked through in slabs, so that beside the
result and the masks of one box only some hundred megabytes are needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from scipy import ndimage

from medseg.core import Grid, LabelMap
from medseg.errors import ConfigError, one_of
from medseg.events import Cancelled, Listener, Silent
from medseg.inference.ball import closed
from medseg.inference.pieces import (
    CORNERS,
    Mask,
    find_pieces,
    find_scattered,
    holes,
    largest_piece,
)
from medseg.models.card import LabelCleaning

__all__ = ["clean_labels", "parse_cleaning"]

STAGE = "post-processing"
_ROUNDING = 1e-6
_SCATTERED = 256  # a box of this many voxels for each of the mask: list the voxels


def clean_labels(
    labels: LabelMap, steps: Sequence[LabelCleaning], listener: Listener | None = None
) -> tuple[LabelMap, tuple[str, ...]]:
    """Clean a label map, step by step; within a step label by label in rising order of value.

    For each label the fields of :class:`~medseg.models.card.LabelCleaning` act in their order:

    - ``closing_mm``: dilation, then erosion, by the ball of that radius: every voxel whose centre
      is at most that far away, measured through the affine. The image is taken to go on as
      background beyond its edge, so that nothing is lost there.
    - ``fill_holes``: background that no path over voxel faces leads out of the label from. What
      touches the edge of the image is not enclosed.
    - ``keep_largest``: the piece of the most voxels, connected by faces, edges or corners; among
      equals the one whose centre has the lowest world coordinates.
    - ``min_mm3``: pieces of less than that volume are removed, one of just that volume stays.

    Only background becomes the label; what is removed becomes background. Other labels lose no
    voxel; where two labels could close over the same background, the one of lower value gets it.

    Closing a gap and filling holes twice changes nothing more, and so do the other two. The whole
    is not idempotent in general: filling a hole can make another gap closable.

    Args:
        labels: Left as it is.
        steps: What to do, in order.
        listener: Hears of the labels done; asked between two of them whether to go on.

    Returns:
        The cleaned map (``labels`` itself where nothing changed), and a sentence for each change:
        name of the label, voxels added or removed, and by what.

    Raises:
        ConfigError: If a step names a label that the scheme does not have.
        Cancelled: If the listener asks to stop.
    """
    listener = listener or Silent()
    names = [label.name for label in labels.scheme.labels]
    for number, step in enumerate(steps):
        if step.label != "*" and step.label not in names:
            raise _unknown_label(f"post-processing step {number + 1}", step.label, names)
    tasks = [
        (step, label)
        for step in steps
        for label in labels.scheme.labels
        if step.label in ("*", label.name)
    ]
    boxes = ndimage.find_objects(labels.data_ijk, max_label=max(labels.scheme.values))
    data = labels.data_ijk
    notes: list[str] = []
    listener.started(STAGE, len(tasks))
    for done, (step, label) in enumerate(tasks):
        if listener.cancelled():
            raise Cancelled
        box = boxes[label.value - 1]
        mask = data[box] == label.value if box is not None else np.zeros((1, 1, 1), dtype=bool)
        if mask.any():
            cleaned, said = _cleaned(mask, data[box], step, labels.grid)
            if said:
                if data is labels.data_ijk:
                    data = data.copy()
                part = data[box]
                part[mask & ~cleaned] = 0
                part[cleaned] = label.value
                notes += [f"{label.name}: {sentence}" for sentence in said]
        listener.advanced(STAGE, done + 1)
    if data is labels.data_ijk:
        return labels, ()
    return labels.on_grid(data, labels.grid), tuple(notes)


def parse_cleaning(text: str, names: Sequence[str]) -> LabelCleaning:
    """Read one cleaning step as the command line writes it.

    The form is ``NAME:OPTION,OPTION,...``, where NAME is a label or ``*`` for every one, and an
    OPTION is one of ``closing_mm=NUMBER``, ``fill_holes``, ``keep_largest``, ``min_mm3=NUMBER``.
    Options act in this order, however they are written. The last colon ends the name.

    Args:
        text: Such as ``liver:keep_largest,min_mm3=50``.
        names: The labels that exist.

    Raises:
        ConfigError: If the form, the name, an option or a number is wrong.

    >>> parse_cleaning("liver:keep_largest,min_mm3=50", ["liver"]).min_mm3
    50.0
    """
    where = f"post-processing {text!r}"
    name, colon, options = (part.strip() for part in text.rpartition(":"))
    if not (name and colon and options):
        raise ConfigError(
            where,
            expected="NAME:OPTION,OPTION,...",
            found="no name" if colon and not name else "no option" if colon else "no colon",
            remedy="write for example liver:keep_largest,min_mm3=50 or *:fill_holes",
            code="cleaning-form",
        )
    if name != "*" and name not in names:
        raise _unknown_label(where, name, names)
    content: dict[str, Any] = {"label": name}
    for option in options.split(","):
        key, equals, figure = (part.strip() for part in option.partition("="))
        if key in content:
            raise ConfigError(
                where,
                expected="every option once",
                found=f"{key} again",
                remedy="give it once; for another radius or volume add a second step",
                code="cleaning-option",
            )
        if key in ("keep_largest", "fill_holes"):
            if equals:
                raise ConfigError(
                    where,
                    expected=f"{key} without a value",
                    found=option.strip(),
                    remedy=f"write {key} alone, or leave it out",
                    code="cleaning-option",
                )
            content[key] = True
        elif key in ("closing_mm", "min_mm3"):
            content[key] = _number(where, key, figure)
        else:
            raise ConfigError(
                where,
                expected=one_of(key, ("closing_mm", "fill_holes", "keep_largest", "min_mm3")),
                found=repr(key),
                remedy="correct the option",
                code="cleaning-option",
            )
    return _checked(where, content)


def _number(where: str, key: str, figure: str) -> float:
    try:
        number = float(figure)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(
            where,
            expected=f"{key}=NUMBER",
            found=f"{key}={figure}" if figure else f"{key} without a number",
            remedy="write for example closing_mm=2 or min_mm3=50",
            code="cleaning-number",
        )
    return number


def _checked(where: str, content: dict[str, Any]) -> LabelCleaning:
    try:
        return LabelCleaning.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            where,
            expected="closing_mm from 0 to 100 and min_mm3 of at least 0",
            found=f"{key}={first['input']:g}",
            remedy="give millimetres and cubic millimetres of the patient",
            code="cleaning-number",
        ) from error


def _unknown_label(where: str, name: str, names: Sequence[str]) -> ConfigError:
    return ConfigError(
        where,
        expected=one_of(name, [*names, "*"]),
        found=repr(name),
        remedy="use a name of the label scheme, or * for every label",
        code="cleaning-label",
    )


def _cleaned(
    mask: Mask, data: npt.NDArray[Any], step: LabelCleaning, grid: Grid
) -> tuple[Mask, list[str]]:
    """The mask of one label after one step, and what was changed.

    ``data`` holds the labels in the same box; only its zeros may be added.
    """
    said: list[str] = []
    voxel_mm3 = grid.voxel_volume_mm3
    if step.closing_mm > 0:
        without_gaps = closed(mask, grid, step.closing_mm)
        without_gaps &= data == 0
        if added := int(np.count_nonzero(without_gaps & ~mask)):
            mask = mask | without_gaps
            said.append(f"{_voxels(added)} added by closing of {step.closing_mm:g} mm")
    if step.fill_holes:
        enclosed = holes(mask) & (data == 0)
        if added := int(np.count_nonzero(enclosed)):
            mask = mask | enclosed
            said.append(f"{_voxels(added)} added by filling holes")
    if step.keep_largest or step.min_mm3 > 0:
        scattered = np.count_nonzero(mask) * _SCATTERED < mask.size
        pieces = find_scattered(mask) if scattered else find_pieces(mask, CORNERS)
        kept = np.arange(len(pieces.sizes)) > 0
        if step.keep_largest and pieces.sizes.size > 2:
            kept = largest_piece(pieces, grid)
            gone = pieces.sizes.sum() - pieces.sizes[kept].sum()
            said.append(
                f"{_voxels(gone)} removed in {_pieces(len(kept) - 2)} by keeping the largest piece"
            )
        small = kept & (pieces.sizes * voxel_mm3 < step.min_mm3 * (1.0 - _ROUNDING))
        if small.any():
            kept &= ~small
            said.append(
                f"{_voxels(pieces.sizes[small].sum())} removed in "
                f"{_pieces(int(np.count_nonzero(small)))} of less than {step.min_mm3:g} mm3"
            )
        if not kept[1:].all():
            mask = pieces.chosen(kept)
    return mask, said


def _voxels(number: int) -> str:
    return "1 voxel" if number == 1 else f"{number} voxels"


def _pieces(number: int) -> str:
    return "1 piece" if number == 1 else f"{number} pieces"

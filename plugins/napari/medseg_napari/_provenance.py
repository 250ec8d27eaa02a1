"""What made a layer's labels, and what became of them since: automatic, corrected or by hand.

The labels as they came are kept beside the layer, compressed. What is saved is compared with them,
voxel by voxel, so that it does not matter by which tool something was changed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medseg.core.labelmap import label_counts

if TYPE_CHECKING:
    from medseg.io.dicom_seg import AlgorithmType

__all__ = ["Beginning", "Change", "StoredLabels", "changes", "segment_types"]


@dataclass(frozen=True, slots=True)
class StoredLabels:
    """A label map, compressed without loss.

    Args:
        content: What numcodecs made of it.
        shape: Extents.
        dtype: ``uint8`` or ``uint16``.
        order: In which the voxels follow one another, ``C`` or ``F``: that of the array, so that
            none has to be turned.
    """

    content: bytes = field(repr=False)
    shape: tuple[int, ...]
    dtype: str
    order: Literal["C", "F"] = "C"

    @classmethod
    def of(cls, labels: npt.NDArray[Any]) -> StoredLabels:
        """Compress a label map."""
        from numcodecs import Zstd  # noqa: PLC0415 - with the first result

        order: Literal["C", "F"] = "F" if labels.flags.f_contiguous else "C"
        in_order = labels.T if order == "F" else np.ascontiguousarray(labels)
        content: bytes = Zstd(level=1).encode(in_order)
        return cls(bytes(content), labels.shape, str(labels.dtype), order)

    def labels(self) -> npt.NDArray[Any]:
        """The label map."""
        from numcodecs import Zstd  # noqa: PLC0415

        content = Zstd().decode(self.content)
        return np.frombuffer(content, dtype=self.dtype).reshape(self.shape, order=self.order)


@dataclass(frozen=True, slots=True)
class Beginning:
    """The labels as they came: from a model, or from a file.

    Args:
        labels: On the grid of the image as read.
        algorithm: Name and version of what made them, as DICOM writes them; None where that is not
            recorded.
        types: How each label came about; labels that are not listed, as ``others`` says.
        others: See ``types``.
        weights_sha256: Of the model; those of all members of an ensemble, joined by spaces.
        seconds: How long the model took.
        began_s: When they came, in seconds since 1970.
    """

    labels: StoredLabels
    algorithm: tuple[str, str] | None = None
    types: Mapping[int, AlgorithmType] = field(default_factory=dict)
    others: AlgorithmType = "SEMIAUTOMATIC"
    weights_sha256: str = ""
    seconds: float = 0.0
    began_s: float = field(default_factory=time.time)

    @classmethod
    def opened(
        cls,
        labels_ijk: npt.NDArray[Any],
        *,
        algorithm: tuple[str, str] | None = None,
        types: Mapping[int, AlgorithmType] | None = None,
    ) -> Beginning:
        """Labels that were opened from a file.

        Where the file does not tell how they came about they count as semi-automatic: whatever made
        them, a person has had them in hand.
        """
        return cls(StoredLabels.of(labels_ijk), algorithm, dict(types or {}))

    @classmethod
    def by_model(
        cls,
        labels_ijk: npt.NDArray[Any],
        name: str,
        version: str,
        *,
        weights_sha256: str,
        seconds: float,
    ) -> Beginning:
        """Labels that a model of medseg gave."""
        return cls(
            StoredLabels.of(labels_ijk),
            (f"medseg {name}"[:64], version),
            others="AUTOMATIC",
            weights_sha256=weights_sha256,
            seconds=seconds,
        )

    def type_of(self, value: int) -> AlgorithmType:
        """How a label came about."""
        return self.types.get(value, self.others)


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one label.

    Args:
        model_voxels: Voxels that it had as it came.
        voxels: Those that it has now.
        common: Those that it has had from the beginning.
    """

    model_voxels: int
    voxels: int
    common: int

    @property
    def added(self) -> int:
        """Voxels that it has and did not have."""
        return self.voxels - self.common

    @property
    def removed(self) -> int:
        """Voxels that it had and has no more."""
        return self.model_voxels - self.common

    @property
    def dice(self) -> float | None:
        """Dice of the two; None where both are empty."""
        both = self.model_voxels + self.voxels
        return 2 * self.common / both if both else None


def changes(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> dict[int, Change]:
    """Label value to what became of it; for every label that is in one of the two.

    Args:
        before: As they came; uint8 or uint16.
        after: What there is now, of the same shape.
    """
    wide = np.promote_types(before.dtype, after.dtype)
    was = label_counts(before.astype(wide, copy=False))
    now = label_counts(after.astype(wide, copy=False))
    same = np.zeros_like(was)
    slowest = int(np.argmax(np.abs(before.strides)))
    planes = (np.moveaxis(labels, slowest, 0) for labels in (before, after))
    for first, second in zip(*planes, strict=True):  # a slice at a time: no second volume
        same += label_counts(second[first == second].astype(wide, copy=False))
    return {
        int(value): Change(int(was[value]), int(now[value]), int(same[value]))
        for value in np.flatnonzero(was + now)
        if value
    }


def segment_types(
    labels_ijk: npt.NDArray[Any],
    beginning: Beginning | None,
    edited: Mapping[int, AlgorithmType] | None = None,
) -> dict[int, AlgorithmType]:
    """Label value to how it came about (DICOM's Segment Algorithm Type), for those present.

    A label that is in every voxel as it came is what it was; one that differs is SEMIAUTOMATIC, or
    MANUAL if it was that; one that was not there is MANUAL. Without a beginning, labels were drawn
    in the viewer and are MANUAL.

    Args:
        labels_ijk: On the grid of the image as read.
        beginning: The labels as they came.
        edited: What an editor knows better, such as that a label was erased and drawn anew. It
            cannot make a label AUTOMATIC that has changed.
    """
    if beginning is None:
        present = [int(value) for value in np.flatnonzero(label_counts(labels_ijk)) if value]
        found: dict[int, AlgorithmType] = dict.fromkeys(present, "MANUAL")
    else:
        found = {}
        for value, change in changes(beginning.labels.labels(), labels_ijk).items():
            if change.voxels == 0:
                continue
            if change.model_voxels == 0:
                found[value] = "MANUAL"
            elif change.added == 0 and change.removed == 0:
                found[value] = beginning.type_of(value)
            else:
                found[value] = "MANUAL" if beginning.type_of(value) == "MANUAL" else "SEMIAUTOMATIC"
    for value, kind in (edited or {}).items():
        if value in found and kind != "AUTOMATIC":
            found[value] = kind
    return found

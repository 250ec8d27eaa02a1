"""Labels layers saved on the grid of the image they belong to."""

# ruff: noqa: PLC0415 - the libraries of a format take long to import: not before its first file

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg.core import LabelMap, LabelScheme
from medseg.core.labelmap import present_values
from medseg.errors import FormatError, GeometryError, MedsegError, ResourceError, ShapeError
from medseg.io.scan import DicomSource
from medseg_napari._layers import LayerData, plain_scheme
from medseg_napari._origin import LayerOrigin, origin_of

if TYPE_CHECKING:
    from medseg.io.dicom_seg import AlgorithmType

__all__ = ["NotSavedError", "write_labels", "write_labels_on_image"]

_SUFFIXES = (".nii.gz", ".nii", ".dcm")
_SAME_PLACE_MM = 0.01
_PLACEMENT = ("scale", "translate", "rotate", "shear", "affine")


class NotSavedError(MedsegError, RuntimeError):
    """Labels that were not saved, with the error of medseg as its cause.

    The plugin manager takes a ``ValueError`` from a writer to mean that no writer was found and
    goes on, and most errors of medseg are that; this one reaches the user.
    """


def write_labels(path: str, data: npt.ArrayLike, meta: Mapping[str, Any]) -> list[str]:
    """Save one labels layer that was read by medseg, on the grid it was read on.

    A SEG names such labels semi-automatic: whatever made them, a person has had them in hand.

    Args:
        path: Ends in ``.nii.gz``, ``.nii``, or ``.dcm`` for DICOM SEG, which needs a layer that
            comes from a DICOM series. A name without an ending gets ``.nii.gz``.
        data: Labels as napari holds them, axes I, P, L.
        meta: The layer's settings.

    Returns:
        The file written.

    Raises:
        NotSavedError: ``layer-origin`` if the layer does not come from medseg (this function sees
            no other layer whose grid it could take); otherwise with the code of its cause.
    """
    with _reported():
        origin = origin_of(meta)
        if origin is None:
            raise FormatError(
                path,
                expected="labels that were opened with medseg",
                found="a layer that carries no grid of its own",
                remedy="select the labels together with the image they belong to, and save both "
                "by File > Save Selected Layers with medseg",
                code="layer-origin",
            )
        return _write(path, np.asarray(data), origin, origin.scheme, "SEMIAUTOMATIC")


def write_labels_on_image(path: str, layer_data: list[LayerData]) -> list[str]:
    """Save a labels layer on the grid of an image layer; the image itself is not written.

    A SEG names labels drawn in napari manual, and those that were opened from a file
    semi-automatic.

    Args:
        path: As for :func:`write_labels`; ``.dcm`` needs an image from a DICOM series.
        layer_data: One image layer read by medseg and one labels layer, in any order. Labels drawn
            in napari must have the placement of the image, labels that were opened with medseg the
            same voxels in the world.

    Returns:
        The file written.

    Raises:
        NotSavedError: ``layer-origin`` if the image does not come from medseg, ``layer-placement``
            if the labels lie elsewhere; otherwise with the code of its cause.
    """
    with _reported():
        layers = {kind: (data, meta) for data, meta, kind in layer_data}
        image_meta = layers["image"][1]
        data, meta = layers["labels"]
        origin = origin_of(image_meta)
        if origin is None:
            raise FormatError(
                path,
                expected="an image that was opened with medseg",
                found="an image layer that carries no grid of its own",
                remedy="open the image with medseg, or select the labels alone if they were",
                code="layer-origin",
            )
        own = origin_of(meta)
        array = np.asarray(data)
        _check_shape(path, array, origin)
        apart = _apart_by_placement(meta, image_meta) if own is None else _apart(own, origin)
        if apart:
            raise GeometryError(
                path,
                expected="labels that lie on the voxels of the image",
                found=apart,
                remedy="select the image that the labels were drawn on",
                code="layer-placement",
            )
        if own is None:
            return _write(path, array, origin, None, "MANUAL")
        return _write(path, array, origin, own.scheme, "SEMIAUTOMATIC")


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except MedsegError as error:
        raise NotSavedError(
            error.where,
            expected=error.expected,
            found=error.found,
            remedy=error.remedy,
            code=error.code,
        ) from error


def _write(
    path: str,
    data_shown: npt.NDArray[Any],
    origin: LayerOrigin,
    scheme: LabelScheme | None,
    made: AlgorithmType,
) -> list[str]:
    target = _target(path)
    labels = _label_map(path, data_shown, origin, scheme)
    if target.suffix.lower() == ".dcm":
        _write_seg(labels, target, origin, made)
    else:
        from medseg.io.nifti import write_nifti_labels

        write_nifti_labels(labels, target, origin.source)
    return [str(target)]


def _write_seg(labels: LabelMap, target: Path, origin: LayerOrigin, made: AlgorithmType) -> None:
    if not isinstance(origin.source, DicomSource):
        raise FormatError(
            str(target),
            expected="labels on a DICOM series, which a DICOM segmentation refers to",
            found="labels on an image from another format",
            remedy="save as .nii.gz",
            code="seg-source",
        )
    from medseg.io.dicom_seg import write_seg

    write_seg(labels, target, origin.source, algorithm=None, algorithm_type=made)


def _target(path: str) -> Path:
    target = Path(path)
    if target.name.lower().endswith(_SUFFIXES):
        return target
    if target.suffix:
        raise FormatError(
            path,
            expected=f"a name that ends in {', '.join(_SUFFIXES)}",
            found=f"the ending {target.suffix}",
            remedy="rename the output",
            code="output-suffix",
        )
    target = target.with_name(target.name + ".nii.gz")
    if target.exists():  # the dialog asked about the name without the ending
        raise ResourceError(
            str(target),
            expected="a name that is still free",
            found="an existing file",
            remedy="give the full name to replace it",
            code="output-exists",
        )
    return target


def _label_map(
    path: str, data_shown: npt.NDArray[Any], origin: LayerOrigin, scheme: LabelScheme | None
) -> LabelMap:
    _check_shape(path, data_shown, origin)
    low, high = int(data_shown.min()), int(data_shown.max())
    if low < 0 or high > 65535:
        raise FormatError(
            path,
            expected="labels from 0 to 65535",
            found=f"values from {low} to {high}",
            remedy="renumber the labels",
            code="labels-range",
        )
    narrow = data_shown.astype(np.uint8 if high <= 255 else np.uint16)
    return LabelMap(
        origin.original_array(narrow), origin.grid, _scheme_for(present_values(narrow), scheme)
    )


def _check_shape(path: str, data_shown: npt.NDArray[Any], origin: LayerOrigin) -> None:
    wanted = origin.shown_grid.shape_ijk
    if data_shown.shape != wanted:
        raise ShapeError(
            path,
            expected=f"a labels layer of shape {wanted}, that of its image",
            found=f"shape {data_shown.shape}",
            remedy="draw on a labels layer that was made from the image alone",
            code="layer-shape",
        )


def _scheme_for(values: list[int], known: LabelScheme | None) -> LabelScheme:
    """The known scheme, and plain entries for values that it lacks."""
    plain = plain_scheme(values)
    if known is None:
        return plain
    strangers = tuple(
        label for label in plain.labels if label.value in values and label.value not in known.values
    )
    return LabelScheme(known.name, known.labels + strangers) if strangers else known


def _apart(own: LayerOrigin, other: LayerOrigin) -> str:
    apart_mm = own.shown_grid.distance_mm(other.shown_grid)
    return f"voxels up to {apart_mm:.3f} mm away" if apart_mm > _SAME_PLACE_MM else ""


def _apart_by_placement(meta: Mapping[str, Any], image_meta: Mapping[str, Any]) -> str:
    for key in _PLACEMENT:
        if not np.allclose(
            np.asarray(meta.get(key, 0.0)), np.asarray(image_meta.get(key, 0.0)), atol=1e-4
        ):
            return f"a layer with another {key}"
    return ""

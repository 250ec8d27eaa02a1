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
from medseg_napari._label_names import write_names_beside
from medseg_napari._layers import LayerData, plain_scheme
from medseg_napari._origin import LayerOrigin, open_images, origin_of
from medseg_napari._provenance import Beginning, segment_types

if TYPE_CHECKING:
    from medseg.io.dicom_seg import AlgorithmType

__all__ = [
    "EDITED_KEY",
    "NotSavedError",
    "image_below",
    "labels_to_save",
    "save_labels",
    "write_labels",
    "write_labels_on_image",
    "write_rtstruct",
    "write_rtstruct_on_image",
]

EDITED_KEY = "medseg_edited"
"""Where an editor leaves, in a layer's metadata, label value to how it came about; see
:func:`medseg_napari._provenance.segment_types`."""

_SUFFIXES = (".nii.gz", ".nii", ".dcm")
_RTSTRUCT_END = "rtstruct.dcm"
_SAME_PLACE_MM = 0.01
_PLACEMENT = ("scale", "translate", "rotate", "shear", "affine")


class NotSavedError(MedsegError, RuntimeError):
    """Labels that were not saved, with the error of medseg as its cause.

    The plugin manager takes a ``ValueError`` from a writer to mean that no writer was found and
    goes on, and most errors of medseg are that; this one reaches the user.
    """


def write_labels(path: str, data: npt.ArrayLike, meta: Mapping[str, Any]) -> list[str]:
    """Save one labels layer on the grid it was read on, or on that of the image it was drawn on.

    How each segment of a DICOM object came about is found by comparison with the labels as they
    came, see :func:`medseg_napari._provenance.segment_types`.

    Args:
        path: Ends in ``.nii.gz``, ``.nii``, or ``.dcm``, which needs labels on a DICOM series:
            ``rtstruct.dcm`` for an RT structure set, else a DICOM SEG. A name without an ending
            gets ``.nii.gz``.
        data: Labels as napari holds them, axes I, P, L.
        meta: The layer's settings.

    Returns:
        The file written.

    Raises:
        NotSavedError: ``layer-origin`` if the layer neither comes from medseg nor lies on one image
            alone that was opened with it; otherwise with the code of its cause.
    """
    with _reported():
        return _write_alone(path, data, meta, rtstruct=False)


def write_rtstruct(path: str, data: npt.ArrayLike, meta: Mapping[str, Any]) -> list[str]:
    """As :func:`write_labels`, as an RT structure set whatever the name is."""
    with _reported():
        return _write_alone(path, data, meta, rtstruct=True)


def write_labels_on_image(path: str, layer_data: list[LayerData]) -> list[str]:
    """Save a labels layer on the grid of an image layer; the image itself is not written.

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
        return _write_on_image(path, layer_data, rtstruct=False)


def write_rtstruct_on_image(path: str, layer_data: list[LayerData]) -> list[str]:
    """As :func:`write_labels_on_image`, as an RT structure set whatever the name is."""
    with _reported():
        return _write_on_image(path, layer_data, rtstruct=True)


def _write_alone(
    path: str, data: npt.ArrayLike, meta: Mapping[str, Any], *, rtstruct: bool
) -> list[str]:
    array = np.asarray(data)
    own = origin_of(meta)
    origin = own or image_below(array, meta)
    if origin is None:
        raise FormatError(
            path,
            expected="labels that were opened with medseg, or drawn on an image that was",
            found="a layer that carries no grid of its own",
            remedy="select the labels together with the image they belong to, and save both "
            "by File > Save Selected Layers with medseg",
            code="layer-origin",
        )
    return _write(path, array, origin, own, meta, rtstruct=rtstruct)


def image_below(data_shown: npt.NDArray[Any], meta: Mapping[str, Any]) -> LayerOrigin | None:
    """The origin of the only open image on whose voxels labels without an own origin lie.

    Args:
        data_shown: The labels.
        meta: Their layer's settings; ``scale`` and ``translate`` count.
    """
    found: list[LayerOrigin] = []
    for origin in open_images():
        settings = origin.layer_settings("")
        placed = {key: settings[key] for key in ("scale", "translate")}
        own = {key: meta.get(key, 0.0) for key in placed}
        same_shape = origin.shown_grid.shape_ijk == data_shown.shape
        if same_shape and not _apart_by_placement(own, placed):
            found.append(origin)
    sources = {id(origin.source) for origin in found}
    return found[0] if len(sources) == 1 else None


def _write_on_image(path: str, layer_data: list[LayerData], *, rtstruct: bool) -> list[str]:
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
    return _write(path, array, origin, own, meta, rtstruct=rtstruct)


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
    own: LayerOrigin | None,
    meta: Mapping[str, Any],
    *,
    rtstruct: bool,
) -> list[str]:
    target = _target(path, ".dcm" if rtstruct else ".nii.gz")
    scheme = None if own is None else own.scheme
    labels = labels_to_save(path, data_shown, origin, scheme)
    beginning = None if own is None else own.beginning
    types: dict[int, AlgorithmType] = {}
    if target.suffix.lower() == ".dcm":
        edited = (meta.get("metadata") or {}).get(EDITED_KEY)
        # the beginning lies on the grid that the labels were read on
        on_own = labels.data_ijk if own is None else own.original_array(data_shown)
        types = segment_types(_narrow(path, on_own), beginning, edited)
    save_labels(labels, target, origin, types=types, beginning=beginning, rtstruct=rtstruct)
    from medseg_napari._edit_session import labels_were_saved

    labels_were_saved(data_shown)
    return [str(target)]


def save_labels(
    labels: LabelMap,
    target: Path,
    origin: LayerOrigin,
    *,
    types: Mapping[int, AlgorithmType],
    beginning: Beginning | None,
    rtstruct: bool = False,
) -> None:
    """Write labels, read them back, and only then give the file its name.

    A NIfTI file gets a table of names and colours beside it, where there are any.

    Args:
        labels: On the grid of the origin.
        target: The ending chooses the format, as for :func:`write_labels`.
        origin: Of the image.
        types: For DICOM, how each label that is present came about.
        beginning: Names what made those that are not by hand.
        rtstruct: Whether ``.dcm`` means an RT structure set.

    Raises:
        MedsegError: As the writers of the formats; ``seg-source`` for DICOM on an image that comes
            from another format.
    """
    lower = target.name.lower()
    if not lower.endswith(".dcm"):
        from medseg.io.nifti import write_nifti_labels

        write_nifti_labels(labels, target, origin.source)
        write_names_beside(target, labels.scheme)
        return
    if not isinstance(origin.source, DicomSource):
        raise FormatError(
            str(target),
            expected="labels on a DICOM series, which a DICOM segmentation refers to",
            found="labels on an image from another format",
            remedy="save as .nii.gz",
            code="seg-source",
        )
    from medseg.io.dicom_seg import Algorithm, write_seg
    from medseg.io.rtstruct import write_rtstruct as write_contours

    made_by = beginning.algorithm if beginning is not None else None
    if made_by is None and "AUTOMATIC" in types.values():
        made_by = ("not recorded", "not recorded")
    algorithm = (
        None if made_by is None or set(types.values()) == {"MANUAL"} else Algorithm(*made_by)
    )
    write = write_contours if rtstruct or lower.endswith(_RTSTRUCT_END) else write_seg
    write(labels, target, origin.source, algorithm=algorithm, algorithm_type=types)


def _target(path: str, ending: str) -> Path:
    target = Path(path)
    wanted = (".dcm",) if ending == ".dcm" else _SUFFIXES
    if target.name.lower().endswith(wanted):
        return target
    if target.suffix:
        raise FormatError(
            path,
            expected=f"a name that ends in {', '.join(wanted)}",
            found=f"the ending {target.suffix}",
            remedy="rename the output",
            code="output-suffix",
        )
    target = target.with_name(target.name + ending)
    if target.exists():  # the dialog asked about the name without the ending
        raise ResourceError(
            str(target),
            expected="a name that is still free",
            found="an existing file",
            remedy="give the full name to replace it",
            code="output-exists",
        )
    return target


def labels_to_save(
    where: str, data_shown: npt.NDArray[Any], origin: LayerOrigin, scheme: LabelScheme | None
) -> LabelMap:
    """What a layer holds as a label map on the grid of its image.

    Args:
        where: Named in errors.
        data_shown: Along I, P, L.
        origin: Of the image.
        scheme: Names and colours, where known; other values get plain ones.

    Raises:
        ShapeError: ``layer-shape``.
        FormatError: ``labels-range``.
    """
    _check_shape(where, data_shown, origin)
    narrow = _narrow(where, data_shown)
    return LabelMap(
        origin.original_array(narrow), origin.grid, _scheme_for(present_values(narrow), scheme)
    )


def _narrow(where: str, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Labels in one or two bytes; the same array where they are."""
    low, high = int(data.min()), int(data.max())
    if low < 0 or high > 65535:
        raise FormatError(
            where,
            expected="labels from 0 to 65535",
            found=f"values from {low} to {high}",
            remedy="renumber the labels",
            code="labels-range",
        )
    return data.astype(np.uint8 if high <= 255 else np.uint16, copy=False)


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

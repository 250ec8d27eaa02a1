"""The sample that ships with medseg, as napari layers."""

from __future__ import annotations

from importlib.resources import as_file, files

from medseg.core import Label, LabelScheme
from medseg.io.nifti import read_nifti
from medseg_napari._layers import LayerData, image_layers, labels_layer

__all__ = ["hippocampus"]

_CASE = "hippocampus_034"
_SCHEME = LabelScheme(
    "msd_hippocampus",
    (
        Label(1, "anterior hippocampus", (230, 159, 0)),
        Label(2, "posterior hippocampus", (86, 180, 233)),
    ),
)


def hippocampus() -> list[LayerData]:
    """One T1 MR crop round a hippocampus, and the expert's labels on top.

    From Task04 of the Medical Segmentation Decathlon, CC BY-SA 4.0; see
    ``medseg/resources/samples/hippocampus/LICENSE.md``.
    """
    samples = files("medseg") / "resources" / "samples" / "hippocampus"
    with (
        as_file(samples / "images" / f"{_CASE}.nii.gz") as image_path,
        as_file(samples / "labels" / f"{_CASE}.nii.gz") as labels_path,
    ):
        image = image_layers(read_nifti(image_path), "hippocampus T1")
        labels = read_nifti(labels_path)
        expert = labels_layer(labels, "hippocampus expert", str(labels_path), scheme=_SCHEME)
    return [*image, expert]

"""A sample that ships with medseg and two that are made, as napari layers."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core import Grid, Label, LabelScheme, Volume
from medseg.io.nifti import read_nifti
from medseg.io.scan import ItkSource, Scan
from medseg_napari._layers import LayerData, image_layers, labels_layer, layer_of_labels
from medseg_napari._origin import LayerOrigin
from medseg_napari._provenance import Beginning

__all__ = ["abdomen_ct", "heart_mr", "hippocampus"]

_SEED = 20

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


def abdomen_ct() -> list[LayerData]:
    """A made abdominal CT with thirteen organs; no patient."""
    from medseg.data.phantoms.abdomen import abdomen  # noqa: PLC0415 - pulls in scipy
    from medseg.data.schemes import find_scheme  # noqa: PLC0415

    image, labels, grid = abdomen(np.random.default_rng(_SEED), "standard")
    return _made(image, labels, grid, "CT phantom", find_scheme("btcv-13"))


def heart_mr() -> list[LayerData]:
    """A made short-axis cine MR at end-diastole and end-systole, as ACDC's are; no patient."""
    from medseg.data.phantoms.heart import heart  # noqa: PLC0415 - pulls in scipy
    from medseg.data.schemes import find_scheme  # noqa: PLC0415

    beat = heart(np.random.default_rng(_SEED), "standard")
    layers: list[LayerData] = []
    for frame, title in ((beat.systole, "end-systole"), (beat.diastole, "end-diastole")):
        image, labels = beat.frames[frame]
        layers += _made(image, labels, beat.grid, f"heart {title}", find_scheme("acdc"))
    for _, settings, _ in layers[:2]:
        settings["visible"] = False  # one phase at a time
    return layers


def _made(
    image_ijk: npt.NDArray[Any],
    labels_ijk: npt.NDArray[Any],
    grid: Grid,
    name: str,
    scheme: LabelScheme,
) -> list[LayerData]:
    source = ItkSource(Path(name))  # no file: results are saved with the grid alone
    layers = image_layers(Scan(Volume(image_ijk[None], grid), source), name)
    origin = LayerOrigin.of(grid, source, scheme=scheme, beginning=Beginning.opened(labels_ijk))
    return [*layers, layer_of_labels(labels_ijk, origin, f"{name} truth")]

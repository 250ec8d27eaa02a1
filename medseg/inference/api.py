"""One call from an image to labels, for scripts and notebooks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.core import Grid, LabelMap, Volume
from medseg.errors import ConfigError, FormatError, ShapeError
from medseg.events import Listener
from medseg.inference.predictor import Predictor
from medseg.inference.settings import PredictionSettings
from medseg.inference.sweep import Box
from medseg.models.zoo import find_model

__all__ = ["check_voxels", "predict"]


def predict(
    image: Volume | npt.ArrayLike,
    model: Predictor | Path | str | Sequence[Path | str],
    *,
    spacing_mm: Sequence[float] | None = None,
    affine_ras: npt.ArrayLike | None = None,
    settings: PredictionSettings | None = None,
    device: str = "auto",
    roi: Box | None = None,
    listener: Listener | None = None,
) -> LabelMap:
    """Segment an image.

    >>> from medseg.inference import predict
    >>> labels = predict(volume, "runs/my_run")  # doctest: +SKIP
    >>> labels.volumes_ml()  # doctest: +SKIP

    Args:
        image: A :class:`~medseg.core.Volume`, or an array ``(i, j, k)`` or ``(c, i, j, k)``, which
            needs ``affine_ras`` or ``spacing_mm`` to say where its voxels are.
        model: A shipped model's name or a folder, several for an ensemble, or a :class:`Predictor`,
            which saves loading the model again for each image.
        spacing_mm: Distance between voxel centres along i, j, k; the axes are then taken to point
            right, front and up (RAS). Where that is not so, give ``affine_ras``.
        affine_ras: ``(4, 4)``, voxel centre to world millimetres, RAS.
        settings: How the prediction is made; not with a :class:`Predictor`, which has its own.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; as ``settings``.
        roi: Box of voxels to look at; the rest is background.
        listener: Told of progress; asked between windows whether to stop.

    Returns:
        Labels on the image's own grid.

    Raises:
        ShapeError: ``predict-array`` if the array is not one of numbers with three or four axes.
        FormatError: ``voxels-not-finite``, or ``image-constant`` if all voxels are alike.
        ConfigError: ``predict-grid`` if an array comes without its place in the world, or a volume
            with one; ``predict-settings`` if a predictor comes with settings.
        MedsegError: As :meth:`Predictor.load` and :meth:`Predictor.predict`.
    """
    volume = _volume(image, spacing_mm, affine_ras)
    check_voxels(volume)
    if isinstance(model, Predictor):
        if settings is not None or device != "auto":
            raise ConfigError(
                "predict",
                expected="settings and device with the Predictor alone",
                found="some beside it",
                remedy="give them to Predictor.load",
                code="predict-settings",
            )
        predictor = model
    else:
        names = [model] if isinstance(model, str | Path) else list(model)
        folders = [find_model(str(name)) for name in names]
        predictor = Predictor.load(folders, settings, device=device)
    return predictor.predict(volume, listener, roi=roi).labels


def _volume(
    image: Volume | npt.ArrayLike,
    spacing_mm: Sequence[float] | None,
    affine_ras: npt.ArrayLike | None,
) -> Volume:
    given = (spacing_mm is not None) + (affine_ras is not None)
    wanted = 0 if isinstance(image, Volume) else 1
    if given != wanted:
        raise ConfigError(
            "predict",
            expected="no spacing or affine beside a Volume, which has its grid"
            if wanted == 0
            else "either spacing_mm or affine_ras beside an array",
            found=("neither", "one", "both")[given],
            remedy="leave it out" if wanted == 0 else "say where the voxels are",
            code="predict-grid",
        )
    if isinstance(image, Volume):
        return image
    data = np.asarray(image)
    if data.dtype.kind not in "iuf" or data.ndim not in (3, 4):
        raise ShapeError(
            "image",
            expected="numbers along the axes (i, j, k), or (channel, i, j, k)",
            found=f"type {data.dtype}, shape {data.shape}",
            remedy="hand in a numpy array or a Volume",
            code="predict-array",
        )
    if data.ndim == 3:
        data = data[None]
    if spacing_mm is not None:
        _check_spacing(spacing_mm)
    affine = (
        np.diag([*(float(step) for step in spacing_mm), 1.0])
        if spacing_mm is not None
        else np.asarray(affine_ras, dtype=np.float64)
    )
    shape = data.shape[1:]
    names = ("image",) if data.shape[0] == 1 else tuple(f"channel {n}" for n in range(len(data)))
    return Volume(data, Grid(shape, affine), names)


def _check_spacing(spacing_mm: Sequence[float]) -> None:
    if len(spacing_mm) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise ConfigError(
            "spacing_mm",
            expected="three distances above 0, in millimetres along i, j, k",
            found=str(tuple(spacing_mm)),
            remedy="for axes that point another way give affine_ras instead",
            code="predict-grid",
        )


def check_voxels(volume: Volume) -> None:
    """Refuse what the readers of files refuse.

    Raises:
        FormatError: ``voxels-not-finite``, or ``image-constant`` if all voxels of a channel are
            alike.
    """
    for name, data_ijk in zip(volume.channels, volume.data_cijk, strict=True):
        least, most = data_ijk.min(), data_ijk.max()
        # the network computes in float32
        most_there_is = float(np.finfo(np.float32).max)
        if not (abs(float(least)) <= most_there_is and abs(float(most)) <= most_there_is):
            finite = np.isfinite(least) and np.isfinite(most)
            raise FormatError(
                f"image, channel {name}",
                expected="finite voxels that float32 can hold",
                found=f"values up to {max(abs(least), abs(most)):g}"
                if finite
                else "NaN or infinity",
                remedy="replace them, by the value of air for instance",
                code="voxels-not-finite",
            )
        if least == most:
            raise FormatError(
                f"image, channel {name}",
                expected="an image with some contrast",
                found="the same value in every voxel",
                remedy="check where it comes from",
                code="image-constant",
            )

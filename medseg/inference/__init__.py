"""From a volume and a model folder to a label map.

``predict`` is loaded on first use: it brings torch with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.inference.api import predict
    from medseg.inference.predictor import Prediction, Predictor
    from medseg.inference.settings import PredictionSettings

__all__ = ["Prediction", "PredictionSettings", "Predictor", "predict"]

_PLACES = {
    "predict": "medseg.inference.api",
    "Prediction": "medseg.inference.predictor",
    "Predictor": "medseg.inference.predictor",
    "PredictionSettings": "medseg.inference.settings",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is asked for
    import importlib  # noqa: PLC0415

    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)

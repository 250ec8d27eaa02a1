"""Combo boxes that layers are chosen in."""

# ruff: noqa: PLC0415 - Qt is there with the first dock

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari.layers import Image

from medseg_napari._origin import origin_of

if TYPE_CHECKING:
    from napari.layers import Layer
    from qtpy.QtWidgets import QComboBox

    from medseg_napari._models import FoundModel

__all__ = ["fill", "index_of", "is_ours", "likely", "make_narrow", "narrow_box"]

_LETTERS = 12


def narrow_box() -> QComboBox:
    """An empty box that a long entry does not make wider than its dock."""
    from qtpy.QtWidgets import QComboBox

    box = QComboBox()
    make_narrow(box)
    return box


def make_narrow(box: QComboBox) -> None:
    """Keep a long entry from making a box wider than its dock."""
    box.setSizeAdjustPolicy(box.AdjustToMinimumContentsLengthWithIcon)
    box.setMinimumContentsLength(_LETTERS)


def is_ours(layer: Layer | None) -> bool:
    """Whether a layer is an image that was opened with medseg."""
    return (
        isinstance(layer, Image)
        and not getattr(layer, "multiscale", False)
        and origin_of({"metadata": layer.metadata}) is not None
    )


def likely(
    images: list[Image], model: FoundModel | None, number: int, active: Layer | None
) -> Image | None:
    """The image whose name tells that it is the channel; else the selected one, or the last."""
    if model is not None and len(model.channels) > 1:
        channel = model.channels[number].lower()
        named = [layer for layer in images if channel in layer.name.lower().split()]
        if named:
            return named[-1]
        return images[number] if number < len(images) else None
    if active in images:
        return active
    return images[-1] if images else None


def fill(box: QComboBox, choices: list[tuple[str, Any]], wanted: Any) -> None:  # noqa: ANN401
    """Replace the entries; the first is chosen where the wanted one is not among them."""
    box.blockSignals(True)
    box.clear()
    for name, value in choices:
        box.addItem(name, value)
    found = next((n for n, (_, value) in enumerate(choices) if value is wanted), 0)
    box.setCurrentIndex(found if choices else -1)
    box.blockSignals(False)


def index_of(box: Any, value: Any) -> int:  # noqa: ANN401 - a combo box of Qt
    """The place of an entry that holds this very object; -1 if there is none."""
    return next((n for n in range(box.count()) if box.itemData(n) is value), -1)

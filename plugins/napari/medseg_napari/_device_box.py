"""A box to choose where a network computes."""

from __future__ import annotations

from collections.abc import Iterator

from qtpy.QtWidgets import QComboBox

from medseg_napari._layer_boxes import make_narrow
from medseg_napari._worker import start_worker

__all__ = ["DeviceBox"]


class DeviceBox(QComboBox):  # type: ignore[misc] # Qt is untyped here
    """``auto``, ``cpu`` and, once torch was asked in another thread, the devices that there are."""

    def __init__(self) -> None:
        super().__init__()
        make_narrow(self)
        self.addItems(["auto", "cpu"])
        start_worker(device_names, yielded=self.list_devices)

    def list_devices(self, names: list[str]) -> None:
        """Replace the entries; what is chosen stays so, if it is still there."""
        chosen = self.currentText()
        self.blockSignals(True)
        self.clear()
        self.addItems(names)
        self.setCurrentIndex(max(0, self.findText(chosen)))
        self.blockSignals(False)


def device_names() -> Iterator[list[str]]:
    """The devices of this machine, as ``medseg predict --device`` names them."""
    import torch  # noqa: PLC0415 - takes seconds, hence in a worker

    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    yield ["auto", "cpu", *gpus, *mps]

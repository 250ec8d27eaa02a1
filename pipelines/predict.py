"""The command ``medseg predict``: options in, outcomes out."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medseg.errors import ConfigError
from medseg.events import Cancelled, Listener
from medseg.inference.memory import MemoryPlan, in_words
from medseg.inference.post_processing import parse_cleaning
from medseg.inference.predictor import Predictor
from medseg.inference.settings import PredictionSettings
from medseg.models.card import LabelCleaning, ModelCard, load_card
from medseg.models.zoo import find_members
from medseg.studies.devices import Place, run_on_devices
from medseg.studies.runner import Outcome, run_cases
from pipelines.infer import (
    Case,
    CaseResult,
    Region,
    check_channel_names,
    plan_case,
    prepare_output,
    segment_case,
)
from pipelines.results import Wishes

__all__ = [
    "Order",
    "make_order",
    "parse_bytes",
    "parse_mirror",
    "parse_region",
    "plan_rows",
    "plans",
    "predictions",
    "settings_from_options",
    "store_path",
]

_RANGES = {
    "overlap": "a number from 0 to below 1",
    "batch": "1 to 64 windows at a time",
    "coarser": "a factor from 1 to 8",
    "threads": "at least 1 thread",
}
_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ti": 2**40,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
}


@dataclass(frozen=True, slots=True)
class Order:
    """Everything that a worker must know; picklable.

    Args:
        models: Model folders; more than one make an ensemble.
        settings: How predictions are made.
        device: One device, or several separated by commas.
        out: Folder for the results.
        overwrite: Whether earlier results may be replaced.
        wishes: What is made beside the segmentation.
        roi: Box of voxels to look at.
        store: File that keeps measured choices of precision.
    """

    models: tuple[Path, ...]
    settings: PredictionSettings
    device: str
    out: Path
    overwrite: bool
    wishes: Wishes
    roi: Region | None
    store: Path | None


def make_order(
    models: Sequence[str],
    options: dict[str, Any],
    *,
    device: str,
    out: Path,
    overwrite: bool,
    wishes: Wishes,
    roi: str | None,
) -> Order:
    """Everything checked that can be checked before a model is loaded.

    Raises:
        ConfigError: If an option or a model's name is wrong.
    """
    folders = tuple(folder for name in models for folder in find_members(name))
    return Order(
        models=folders,
        settings=settings_from_options(load_card(folders[0]), options),
        device=device,
        out=out,
        overwrite=overwrite,
        wishes=wishes,
        roi=parse_region(roi),
        store=store_path(),
    )


def predictions(
    order: Order, cases: Sequence[Case], listener: Listener
) -> Iterator[Outcome[Case, CaseResult]]:
    """Segment every case, on one device here or on several in processes of their own.

    Yields:
        One outcome per case as it ends.

    Raises:
        MedsegError: If models, device or output folder cannot be used.
    """
    card = load_card(order.models[0])
    check_channel_names(cases, card)
    devices = [name.strip() for name in order.device.split(",")]
    if len(devices) == 1:
        predictor = _predictor(order)
        prepare_output(order.out)

        def process(case: Case) -> CaseResult:
            if listener.cancelled():
                raise Cancelled
            return _segment(order, predictor, case, listener)

        yield from run_cases(cases, process)
        return
    from medseg.ops.device import choose_devices  # noqa: PLC0415 - loads torch

    names = [str(device) for device in choose_devices(order.device)]
    prepare_output(order.out)
    threads = order.settings.threads or os.cpu_count() or 1
    outcomes = run_on_devices(
        cases, names, partial(_worker, order), threads=max(threads, len(names)), listener=listener
    )
    with contextlib.closing(outcomes):  # type: ignore[type-var]
        yield from outcomes


def plans(order: Order, cases: Sequence[Case]) -> Iterator[Outcome[Case, MemoryPlan]]:
    """What segmenting every case would hold in memory; nothing is segmented or written.

    Yields:
        One outcome per case.
    """
    if "," in order.device:  # the plan of one case is that of the device that gets it
        from medseg.ops.device import choose_devices  # noqa: PLC0415 - loads torch

        order = replace(order, device=str(choose_devices(order.device)[0]))
    predictor = _predictor(order)
    check_channel_names(cases, predictor.card)
    wanted = order.wishes.probabilities
    yield from run_cases(
        cases, lambda case: plan_case(case, predictor, roi=order.roi, probabilities=wanted)
    )


def plan_rows(plan: MemoryPlan) -> list[list[str]]:
    """A plan as lines of a table: what, where, how much."""
    rows = [[item.name, item.place.upper(), in_words(item.bytes)] for item in plan.items]
    rows.append(["predicted peak", "RAM", in_words(plan.ram_bytes)])
    if plan.vram_bytes:
        rows.append(["predicted peak", "VRAM", in_words(plan.vram_bytes)])
    return rows


def settings_from_options(card: ModelCard, options: dict[str, Any]) -> PredictionSettings:
    """Settings from the command line's words.

    Args:
        card: The first model's, whose labels post-processing names.
        options: As :class:`~medseg.inference.settings.PredictionSettings`, but ``mirror``,
            ``max_ram_bytes``, ``max_vram_bytes`` and ``post_processing`` as the user wrote them.

    Raises:
        ConfigError: If an option cannot be read or is out of range.
    """
    content = dict(options)
    content["mirror"] = parse_mirror(options["mirror"])
    for key, name in (("max_ram_bytes", "--max-memory"), ("max_vram_bytes", "--max-vram")):
        content[key] = None if options[key] is None else parse_bytes(options[key], name)
    content["post_processing"] = _cleanings(options["post_processing"], card)
    try:
        return PredictionSettings(**content)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise ConfigError(
            "--" + key.replace("_", "-"),
            expected=_RANGES.get(key, str(first["msg"]).removeprefix("Input should be ")),
            found=str(first["input"]),
            remedy="see `medseg predict --help`",
            code="overlap" if key == "overlap" else "config-value",
        ) from error


def parse_bytes(text: str, name: str) -> int:
    """``2GB``, ``1500MiB`` or a plain number of bytes.

    Raises:
        ConfigError: If it is none of these.

    >>> parse_bytes("2GB", "--max-memory"), parse_bytes("1.5GiB", "--max-memory")
    (2000000000, 1610612736)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    count = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if not 1 <= count < 1 << 60:
        raise ConfigError(
            name,
            expected="an amount of memory, such as 2GB, 1500MB or 4GiB",
            found=repr(text),
            remedy="write a number above 0 and a unit; beyond any machine's memory leave it out",
            code="config-value",
        )
    return count


def parse_mirror(text: str) -> tuple[str, ...] | str:
    """``none``, ``model`` or letters of axes such as ``ij``.

    Raises:
        ConfigError: If it is none of these.
    """
    if text == "none":
        return ()
    if text == "model":
        return text
    if not text or set(text) - set("ijk") or len(set(text)) != len(text):
        raise ConfigError(
            "--tta",
            expected="none, model (the axes it was trained with), or axes such as ij or ijk",
            found=repr(text),
            remedy="name each axis to mirror once",
            code="config-value",
        )
    return tuple(text)


def parse_region(text: str | None) -> Region | None:
    """``10:60,0:50,5:25``: first and, exclusive, last voxel on each axis of the image.

    Either number may be left out for the image's end: ``:,:,10:20``.

    Raises:
        ConfigError: If it is something else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d*):(\d*),(\d*):(\d*),(\d*):(\d*)", text.replace(" ", ""))
    if not found:
        raise ConfigError(
            "--roi",
            expected="first:last on each voxel axis, such as 10:30,0:40,5:25 or :,:,10:20",
            found=repr(text),
            remedy="count voxels of the image from 0; the last one is not included",
            code="roi",
        )
    numbers = [int(number) if number else None for number in found.groups()]
    return (
        (numbers[0], numbers[1]),
        (numbers[2], numbers[3]),
        (numbers[4], numbers[5]),
    )


def store_path() -> Path:
    """Where measured choices are kept between runs: the user's cache folder."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home())
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "medseg" / "numerics.json"


def _cleanings(texts: Sequence[str] | None, card: ModelCard) -> tuple[LabelCleaning, ...] | None:
    if not texts:
        return None
    if list(texts) == ["none"]:
        return ()
    if "none" in texts:
        raise ConfigError(
            "--post",
            expected="none by itself, or steps such as liver:keep_largest",
            found="none beside steps",
            remedy="leave one of them out; steps replace the model's own",
            code="cleaning-form",
        )
    names = [label.name for label in card.scheme().labels]
    return tuple(parse_cleaning(text, names) for text in texts)


def _predictor(order: Order) -> Predictor:
    return Predictor.load(order.models, order.settings, device=order.device, store=order.store)


def _segment(order: Order, predictor: Predictor, case: Case, listener: Listener) -> CaseResult:
    return segment_case(
        case,
        predictor,
        order.out,
        listener=listener,
        overwrite=order.overwrite,
        wishes=order.wishes,
        roi=order.roi,
    )


class _Worker:
    """What a process of its own does with one case."""

    def __init__(self, order: Order, predictor: Predictor) -> None:
        self._order = order
        self._predictor = predictor

    def __call__(self, case: Case, listener: Listener, /) -> CaseResult:
        """Segment it."""
        return _segment(self._order, self._predictor, case, listener)


def _worker(order: Order, place: Place) -> _Worker:
    settings = order.settings.model_copy(update={"threads": place.threads})
    predictor = Predictor.load(order.models, settings, device=place.device, store=order.store)
    return _Worker(order, predictor)

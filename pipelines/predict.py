"""The command ``medseg predict``: options in, outcomes out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medseg.errors import ConfigError
from medseg.inference.memory import MemoryPlan, in_words
from medseg.inference.post_processing import parse_cleaning
from medseg.inference.predictor import Predictor
from medseg.inference.settings import PredictionSettings
from medseg.inference.store import choices_path
from medseg.models.card import LabelCleaning, ModelCard, load_card
from medseg.models.zoo import find_members
from medseg.studies.devices import Place
from medseg.studies.inputs import series_choices
from medseg.studies.runner import Outcome, run_cases
from pipelines.discovery import expected_bytes
from pipelines.infer import Case, Picking, Region, check_channel_names, plan_case
from pipelines.results import Wishes

__all__ = [
    "Order",
    "device_names",
    "load_predictor",
    "make_order",
    "parse_bytes",
    "parse_mirror",
    "parse_region",
    "parse_shard",
    "plan_rows",
    "plans",
    "settings_from_options",
    "store_path",
]

_RANGES = {
    "overlap": "a number from 0 to below 1",
    "batch": "1 to 64 windows at a time",
    "coarser": "a factor from 1 to 8",
    "threads": "at least 1 thread",
}
_MOST_JOBS = 64
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
        jobs: Cases that are read, and that are written, at a time.
        shard: Which part of the cases is done here, from 1, and of how many; None for all.
        ledger: File of the ledger, if it is not in ``out``.
        trust_times: Whether an image whose files have their size and time still is not read again
            to see if it is the same.
        salt: What identifiers in a new ledger are made with; random if None.
        picking: What is taken of DICOM studies.
    """

    models: tuple[Path, ...]
    settings: PredictionSettings
    device: str
    out: Path
    overwrite: bool
    wishes: Wishes
    roi: Region | None
    store: Path | None
    jobs: int = 1
    shard: tuple[int, int] | None = None
    ledger: Path | None = None
    trust_times: bool = False
    salt: bytes | None = None
    picking: Picking = field(default_factory=Picking)


def make_order(
    models: Sequence[str],
    options: dict[str, Any],
    *,
    device: str,
    out: Path,
    overwrite: bool,
    wishes: Wishes,
    roi: str | None,
    jobs: int = 1,
    shard: str | None = None,
    ledger: Path | None = None,
    trust_times: bool = False,
    series: Sequence[str] = (),
    allow_gaps: bool = False,
) -> Order:
    """Everything checked that can be checked before a model is loaded.

    Raises:
        ConfigError: If an option or a model's name is wrong.
    """
    folders = tuple(folder for name in models for folder in find_members(name))
    card = load_card(folders[0])
    choices = series_choices(series, card.inputs.channels)
    return Order(
        models=folders,
        settings=settings_from_options(card, options),
        device=device,
        out=out,
        overwrite=overwrite,
        wishes=wishes,
        roi=parse_region(roi),
        store=store_path(),
        jobs=_checked_jobs(jobs),
        shard=parse_shard(shard),
        ledger=ledger,
        trust_times=trust_times,
        picking=Picking(tuple(sorted(choices.items())), allow_gaps),
    )


def load_predictor(order: Order, place: Place | None = None) -> Predictor:
    """The models of an order, on its device or where a worker has its place.

    Raises:
        MedsegError: If models or device cannot be used.
    """
    settings, device = order.settings, order.device
    if place is not None:
        settings = settings.model_copy(update={"threads": place.threads})
        device = place.device
    return Predictor.load(order.models, settings, device=device, store=order.store)


def device_names(order: Order) -> list[str]:
    """The devices of an order, each known to be there.

    Raises:
        ConfigError: If one is not.
    """
    from medseg.ops.device import choose_devices  # noqa: PLC0415 - loads torch

    return [str(device) for device in choose_devices(order.device)]


def plans(order: Order, cases: Sequence[Case]) -> Iterator[Outcome[Case, MemoryPlan]]:
    """What segmenting every case would hold in memory; nothing is segmented or written.

    Yields:
        One outcome per case.
    """
    if "," in order.device:  # the plan of one case is that of the device that gets it
        order = replace(order, device=device_names(order)[0])
    predictor = load_predictor(order)
    check_channel_names(cases, predictor.card)
    if len(cases) > 1:  # while one is worked on others are in memory, of which the largest counts
        # as medseg.studies.flight promises: a case holds twice its voxels while it is read
        room = 2 * order.jobs * 2 * max(map(expected_bytes, cases))
        predictor.elsewhere = lambda: (0, room)
    wanted = order.wishes.probabilities
    yield from run_cases(
        cases,
        lambda case: plan_case(
            case, predictor, roi=order.roi, probabilities=wanted, picking=order.picking
        ),
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


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """``2/8`` for the second of eight parts; None for all.

    Raises:
        ConfigError: If it is something else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(
            "--shard",
            expected="part/parts, such as 1/8 to 8/8",
            found=repr(text),
            remedy="count the parts from 1",
            code="config-value",
        )
    return int(found[1]), int(found[2])


def _checked_jobs(jobs: int) -> int:
    if not 1 <= jobs <= _MOST_JOBS:
        raise ConfigError(
            "--jobs",
            expected=f"1 to {_MOST_JOBS} cases that are read, and written, at a time",
            found=str(jobs),
            remedy="see `medseg predict --help`",
            code="config-value",
        )
    return jobs


def store_path() -> Path:
    """Where measured choices are kept between runs: the user's cache folder."""
    return choices_path(os.environ)


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

"""One case or a hundred thousand: the ledger is asked what is left, and told how it went."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medseg import __version__
from medseg.cores import usable_cores
from medseg.errors import MedsegError, ResourceError
from medseg.events import Listener
from medseg.models.card import CARD_NAME, load_card, model_folder
from medseg.studies.devices import Place, run_on_devices
from medseg.studies.ledger import Ledger
from medseg.studies.ledger_file import LEDGER_NAME
from medseg.studies.ledger_rows import CaseRow, Entry, shard_of
from medseg.studies.liveness import Watch
from pipelines.discovery import Found
from pipelines.earlier import find_reports, has_reports
from pipelines.infer import check_channel_names
from pipelines.output import prepare_output
from pipelines.same_study import SameStudy, same_study

if TYPE_CHECKING:
    from medseg.inference.predictor import Predictor
    from pipelines.cluster import Cluster
    from pipelines.predict import Order

__all__ = ["Batch", "Job", "open_batch", "place_of", "settings_of", "vanished"]

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp([.-].*)?")
_OLD_S = 60.0
_LOST = (
    "the folder has results, but no ledger: those that their reports prove to be of these images, "
    "models and options are taken over, all others are left as they are"
)
_WITHOUT_EFFECT = {"batch", "max_ram_bytes", "max_vram_bytes", "responsive", "threads"}
"""Settings that change how, not what."""


@dataclass(frozen=True, slots=True)
class Job:
    """What every process that works on a run must know; picklable.

    Args:
        order: How cases are segmented.
        ledger: File of the ledger.
        run: Name of the run in it.
        settings: Hash of the settings.
        since: The turn of the ledger at which the run began.
        roots: Folders that were there when it began, to tell a share that vanished.
        reports: Fingerprint of an image to names of results that the ledger does not know.
        together: Cases of one DICOM study.
    """

    order: Order
    ledger: Path
    run: str
    settings: str
    since: int
    roots: tuple[Path, ...]
    reports: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    together: SameStudy = field(default_factory=SameStudy)


@dataclass(slots=True)
class Batch:
    """A run that is ready to begin.

    Attributes:
        job: What its processes know.
        ledger: Open.
        numbers: The cases of the run, in order.
        notes: What a careful reader should know of the ledger.
    """

    job: Job
    ledger: Ledger
    numbers: list[int]
    notes: tuple[str, ...] = ()

    def rows(self) -> list[CaseRow]:
        """The cases of the run as they are now."""
        return [self.ledger.row(number) for number in self.numbers]

    def run(self, place: Predictor | Sequence[str] | Cluster, listener: Listener) -> None:
        """Do all that is left to do.

        Args:
            place: The loaded models; the names of devices, of which each gets a process; or a
                cluster.
            listener: Told of progress and of every case that fails; asked whether to stop.

        Raises:
            MedsegError: If models cannot be used, or the run had to stop because a disk is full, a
                share vanished or the ledger cannot be used. What was done is kept.
            Cancelled: If the listener asked to stop.
        """
        from medseg.inference.predictor import Predictor  # noqa: PLC0415 - loads torch
        from pipelines.cluster import Cluster  # noqa: PLC0415 - both ways
        from pipelines.share import work_on_share  # noqa: PLC0415 - loads torch

        for note in self.notes:
            listener.noted(note)
        listener.started("cases", len(self.numbers))
        if isinstance(place, Predictor):
            work_on_share(self.job, self.ledger, place, listener)
            return
        if isinstance(place, Cluster):
            place.run(self.job, self.ledger, listener)
            return
        threads = self.job.order.settings.threads or usable_cores()
        outcomes = run_on_devices(
            _Shares(self, len(place)),
            place,
            partial(_worker, self.job),
            threads=max(threads, len(place)),
            listener=listener,
        )
        with contextlib.closing(outcomes):  # type: ignore[type-var]
            for outcome in outcomes:
                if outcome.result is not None:
                    raise outcome.result[0]
        self.ledger.recover(Watch())


def place_of(order: Order) -> Predictor | list[str]:
    """Where a run takes place, for :meth:`Batch.run`: the models on their one device, or devices.

    Raises:
        MedsegError: If models or device cannot be used.
    """
    from pipelines.predict import device_names, load_predictor  # noqa: PLC0415 - loads torch

    if "," in order.device:
        return device_names(order)
    return load_predictor(order)


class _Shares:
    """A share of the work for whoever asks, for as long as there is work.

    Not exhausted for good: what a worker held that died is work again.
    """

    def __init__(self, batch: Batch, first: int) -> None:
        self._batch = batch
        self._first = min(first, len(batch.numbers))
        self._watch = Watch()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self._batch.ledger.recover(self._watch)
        if self._first > 0:
            self._first -= 1
        elif not self._batch.ledger.has_left(self._batch.job.run):
            raise StopIteration
        return 0


class _Worker:
    """A process of its own that takes cases from the ledger until none is left."""

    def __init__(self, job: Job, place: Place) -> None:
        from pipelines.predict import load_predictor  # noqa: PLC0415 - both ways

        self._job = job
        self._ledger = Ledger.open(job.ledger)
        self._predictor = load_predictor(job.order, place)

    def __call__(self, _share: int, listener: Listener, /) -> tuple[MedsegError] | None:
        """Work; the reason is the result if the whole run has to stop."""
        from pipelines.share import work_on_share  # noqa: PLC0415 - loads the engine

        try:
            work_on_share(self._job, self._ledger, self._predictor, listener)
        except MedsegError as error:
            return (error,)
        return None


def _worker(job: Job, place: Place) -> _Worker:
    return _Worker(job, place)


@contextmanager
def open_batch(order: Order, cases: Sequence[Found]) -> Iterator[Batch]:
    """Open the ledger of an order and enter its cases.

    Args:
        order: What is to be done.
        cases: All cases, also where only those of a shard are done here: so names are the same
            whichever shard comes first.

    Raises:
        MedsegError: If the output folder or the ledger cannot be used, or channels are not the
            model's.
    """
    check_channel_names([found.case for found in cases], load_card(order.models[0]))
    prepare_output(order.out)
    path = order.ledger or order.out / LEDGER_NAME
    settings, content = settings_of(order)
    began_s = _moment(order.out)
    was_there = path.exists()
    with Ledger.open(path, create=True, salt=order.salt) as ledger:
        ledger.recover(Watch())
        if not ledger.workers():
            _clear_temporary(order.out, began_s - _OLD_S)
        since = ledger.now()
        rows = ledger.register([_entry(found) for found in cases])
        mine = [
            (row.number, _absolute(found))
            for row, found in zip(rows, cases, strict=True)
            if order.shard is None or shard_of(row.key, order.shard[1]) == order.shard[0]
        ]
        run = ledger.begin_run(mine, settings, content)
        token = ledger.enlist(run)
        roots = tuple({found.root.absolute() for found in cases if found.root.exists()})
        job = Job(
            order,
            path,
            run,
            settings,
            since,
            roots,
            reports=_reports(order.out, ledger, rows),
            together=same_study(
                (row.name, Path(_absolute(found)[""]))
                for row, found in zip(rows, cases, strict=True)
                if "" in found.case.channels
            ),
        )
        notes = () if was_there or not has_reports(order.out) else (_LOST,)
        try:
            yield Batch(job, ledger, list(dict.fromkeys(number for number, _ in mine)), notes)
        finally:
            with suppress(MedsegError):  # whatever ended the run is told, not this
                ledger.dismiss(token)
                ledger.end_run(run)
                if not ledger.workers():
                    _clear_temporary(order.out, began_s)


def _reports(out: Path, ledger: Ledger, rows: Sequence[CaseRow]) -> dict[str, tuple[str, ...]]:
    """Results to look among for those of cases that the ledger has never worked on."""
    if not any(row.attempts == 0 and row.name == f"case-{row.id}" for row in rows):
        return {}
    return find_reports(out, {row.name for row in ledger.rows()})


def settings_of(order: Order) -> tuple[str, str]:
    """Hash, and JSON, of all that changes a result: models, options, the kinds of files wanted.

    Devices, threads, limits of memory and windows per call are left out.
    """
    content = {
        "medseg": __version__,
        "models": [_model(folder) for folder in order.models],
        "settings": order.settings.model_dump(mode="json", exclude=_WITHOUT_EFFECT),
        "roi": order.roi,
        "wishes": asdict(order.wishes),
        "picking": asdict(order.picking),
    }
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest(), text


def _model(folder: Path) -> dict[str, str]:
    card = (model_folder(folder) / CARD_NAME).read_bytes()
    return {
        "weights_sha256": load_card(folder).weights_sha256,
        "card_sha256": hashlib.sha256(card).hexdigest(),
    }


def _entry(found: Found) -> Entry:
    return Entry(found.key, found.names, _absolute(found))


def _absolute(found: Found) -> dict[str, str]:
    return {name: os.path.abspath(path) for name, path in found.case.channels.items()}  # noqa: PTH100


def _moment(out: Path) -> float:
    """Now, by the clock of the disk that holds a folder."""
    probe = out / f".{secrets.token_hex(8)}.tmp"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return 0.0  # told when something has to be written
    finally:
        with suppress(OSError):
            probe.unlink()


def _clear_temporary(out: Path, before_s: float) -> None:
    """Remove what a killed run left half written, while no other run is at work.

    One that begins at the same time has such files for a moment, so only those count that were
    there before.
    """
    with suppress(OSError):
        for path in out.iterdir():
            if not _TEMPORARY.fullmatch(path.name) or not path.is_file():
                continue
            with suppress(OSError):
                if path.stat().st_mtime <= before_s:
                    path.unlink()


def vanished(roots: Sequence[Path]) -> ResourceError | None:
    """The error for a folder of images that is no longer there; None if all are.

    A share may be away for a moment: it is looked for again after a second.
    """
    for attempt in range(2):
        if all(root.exists() for root in roots):
            return None
        if attempt == 0:
            time.sleep(1.0)
    return ResourceError(
        "input",
        expected="the folder of the images to stay where it was",
        found="nothing of that name any more",
        remedy="mount the share again and run the same command: it goes on where it stopped",
        code="input-vanished",
    )

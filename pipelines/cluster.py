"""A run on the nodes of a Ray cluster: one process per device, cases as tasks.

This process alone has the ledger. It hands a case to a device, asks for one step after the other
and notes what came of each before it asks for the next. A device that is lost gives its cases back.

Ray comes with the extra ``cluster``. Its version is pinned: three things that Ray does to a program
that connects are undone here (its name in the cluster's tables, which would hold the command line;
its handling of SIGTERM; what it prints of nodes that fail, on standard output, where JSON may be
expected), and where it does them is no part of its documented interface.
"""

from __future__ import annotations

import importlib
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from medseg.atomic import write_text
from medseg.errors import ConfigError, MedsegError, ResourceError
from medseg.events import Cancelled, Listener
from medseg.studies.devices import Place
from medseg.studies.ledger import Ledger
from medseg.studies.ledger_rows import CaseRow
from medseg.studies.liveness import BEAT_EVERY_S, Watch
from medseg.studies.reviews import latest_review
from pipelines.batch import Job, vanished
from pipelines.cluster_worker import DeviceWorker, Probe, Reply
from pipelines.output import prepare_output
from pipelines.result_names import RESULTS
from pipelines.share import settled_by_another, tell_ending

__all__ = ["Cluster", "check_device", "connected"]

_DEVICES = ("auto", "cpu", "cuda")
_TICK_S = 0.1
_LOOK_EVERY_S = 2.0
_POLL_S = 0.5
_CANCEL_GRACE_S = 30.0
_BUSY_S = 30.0
_MOST_LOSSES = 3


def check_device(device: str) -> None:
    """Refuse a device that does not name one of every node.

    Raises:
        ConfigError: ``device-unknown``.
    """
    if device not in _DEVICES:
        raise ConfigError(
            "--device",
            expected=f"{', '.join(_DEVICES)} with --executor ray",
            found=repr(device),
            remedy="the cluster tells which devices its nodes have; cuda takes every GPU",
            code="device-unknown",
        )


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Join a Ray cluster for the length of the block; none is ever started.

    Args:
        address: ``HOST:PORT`` of its head; ``auto`` for that of the environment variable
            ``RAY_ADDRESS``, else the one that runs on this machine.

    Raises:
        ConfigError: ``cluster-extra`` if Ray is not installed.
        ResourceError: ``cluster-unreachable`` if there is no such cluster.
    """
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            "--executor ray",
            expected="the package ray",
            found="none",
            remedy="install it with: pip install 'medseg[cluster]'",
            code="cluster-extra",
        ) from error
    try:
        with _unnamed(), _signals_kept():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        raise ResourceError(
            "--ray-address",
            expected="a Ray cluster that answers, of the same versions of Ray and Python",
            found=f"none at {address!r} ({type(error).__name__})",
            remedy="run the command on a node of the cluster, or start one with `ray start --head`",
            code="cluster-unreachable",
        ) from error
    try:
        with _unprinted():
            yield Cluster()
    finally:
        with _signals_kept():
            ray.shutdown()


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster that this process has joined."""

    def run(self, job: Job, ledger: Ledger, listener: Listener) -> None:
        """Do all that is left of a run.

        Raises:
            MedsegError: If no node can be used, or the run had to stop. What was done is kept.
            Cancelled: If the listener asked to stop.
        """
        probe = Probe(f".{secrets.token_hex(8)}.tmp", secrets.token_hex(16))
        place = job.order.out / probe.name
        write_text(place, probe.content)
        try:
            _Run(job, ledger, listener, probe).until_done()
        finally:
            with suppress(OSError):
                place.unlink()


@dataclass(frozen=True, slots=True)
class _Slot:
    """A device of a node.

    Args:
        node: Ray's identifier of the node.
        number: Which of the node's devices.
        device: ``cpu`` or ``cuda``; Ray shows a process only the GPU that is its own.
        threads: CPU threads that it may use.
        cpus: Of the node that are asked for.
        host: Name of the node's machine.
    """

    node: str
    number: int
    device: str
    threads: int
    cpus: int
    host: str


@dataclass(slots=True, eq=False)
class _Member:
    """The process on a device, as seen from here."""

    slot: _Slot
    name: str
    actor: Any
    token: str
    ready: bool = False
    began_s: float = field(default_factory=time.monotonic)
    told_busy: bool = False
    cases: dict[int, tuple[CaseRow, dict[str, str]]] = field(default_factory=dict)


class _Run:
    """One run: its devices, and what each was asked for."""

    def __init__(self, job: Job, ledger: Ledger, listener: Listener, probe: Probe) -> None:
        self._ray: Any = importlib.import_module("ray")
        self._job = job
        self._ledger = ledger
        self._listener = listener
        self._probe = probe
        self._most = 1 + 2 * job.order.jobs
        self._members: dict[tuple[str, int], _Member] = {}
        self._asked: dict[Any, tuple[_Member, int | None]] = {}
        self._losses: Counter[tuple[str, int]] = Counter()
        self._given_up: dict[tuple[str, int], MedsegError] = {}
        self._started = 0
        self._ended = 0
        self._looked_s = self._polled_s = -_LOOK_EVERY_S
        self._beat_s = time.monotonic()
        self._watch = Watch()
        self._stopping_s: float | None = None
        self._reason: MedsegError | None = None

    def until_done(self) -> None:
        """See :meth:`Cluster.run`."""
        try:
            while not self._is_done():
                if self._stopping_s is None:
                    if self._listener.cancelled():
                        self._stop(None)
                    else:
                        self._look_for_devices()
                        self._hand_out()
                self._listen()
                self._beat()
        finally:
            for member in list(self._members.values()):
                self._part_from(member, died=False)
        if self._reason is not None:
            raise self._reason
        if self._stopping_s is not None:
            raise Cancelled

    def _is_done(self) -> bool:
        if any(member.cases for member in self._members.values()):
            late = self._stopping_s is not None
            return late and time.monotonic() - (self._stopping_s or 0.0) > _CANCEL_GRACE_S
        return self._stopping_s is not None or not self._ledger.has_left(self._job.run)

    def _stop(self, reason: MedsegError | None) -> None:
        """Begin nothing more; what is being written is finished."""
        if self._stopping_s is not None:
            return
        self._stopping_s, self._reason = time.monotonic(), reason
        for member in list(self._members.values()):
            if member.ready:
                _ask(member, "stop")
            else:
                self._part_from(member, died=False)

    # -- devices

    def _look_for_devices(self) -> None:
        """Start a process on every device that has none, be it new or its process lost."""
        if time.monotonic() - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = time.monotonic()
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        there = {node["NodeID"] for node in nodes}
        for member in list(self._members.values()):
            if member.slot.node not in there:
                self._lose(member)
            elif not member.ready and not member.told_busy:
                self._tell_if_busy(member)
        slots = {(slot.node, slot.number): slot for slot in _slots(nodes, self._job)}
        for key in slots.keys() - self._members.keys() - self._given_up.keys():
            self._start(slots[key])
        if not self._members:
            raise next(iter(self._given_up.values()), _no_device(self._job.order.device))

    def _tell_if_busy(self, member: _Member) -> None:
        if time.monotonic() - member.began_s > _BUSY_S:
            member.told_busy = True
            self._listener.noted(f"{member.name} is not ready yet: loading, or in use by others")

    def _start(self, slot: _Slot) -> None:
        self._started += 1
        name = f"device {self._started} ({slot.device} of {slot.host})"
        place = Place(slot.device, slot.threads, self._started, name)
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        jobs = self._job.order.jobs
        on_device = self._ray.remote(
            num_cpus=slot.cpus,
            num_gpus=1 if slot.device == "cuda" else 0,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"ask": 2, "check": jobs, "read": jobs, "work": 1, "write": jobs},
            scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(slot.node, soft=False),
        )(DeviceWorker)
        actor = on_device.remote(self._job, place, self._probe)
        member = _Member(slot, name, actor, self._ledger.enlist(self._job.run))
        self._members[slot.node, slot.number] = member
        self._asked[_ask(member, "refused")] = (member, None)

    def _lose(self, member: _Member) -> None:
        """A process died, or its node: what it had goes back."""
        key = (member.slot.node, member.slot.number)
        count = len(member.cases)
        self._part_from(member, died=True)
        self._losses[key] += 1
        if self._stopping_s is None:
            back = f"; {count} case{'' if count == 1 else 's'} that it had are done again"
            self._listener.noted(f"{member.name} was lost{back if count else ''}")
        if self._losses[key] >= _MOST_LOSSES:
            self._given_up[key] = ResourceError(
                member.name,
                expected="a process that stays",
                found=f"one that died {_MOST_LOSSES} times before it had done a case",
                remedy="see the memory of that node, or give --max-memory",
                code="worker-died",
            )

    def _give_up(self, member: _Member, error: MedsegError) -> None:
        self._part_from(member, died=False)
        self._given_up[member.slot.node, member.slot.number] = error
        self._listener.noted(f"{member.name} is left out: {error} [{error.code}]")

    def _part_from(self, member: _Member, *, died: bool) -> None:
        self._members.pop((member.slot.node, member.slot.number), None)
        for reference in [ref for ref, (one, _) in self._asked.items() if one is member]:
            del self._asked[reference]
        with suppress(Exception):  # it may be gone
            self._ray.kill(member.actor)
        member.cases.clear()
        with suppress(MedsegError):  # whatever ended the work is told, not this
            self._ledger.dismiss(member.token, died=died)

    # -- cases

    def _hand_out(self) -> None:
        """Give cases to the devices that have the fewest, as long as they may have more."""
        now = time.monotonic()
        while now >= self._polled_s:
            free = [
                member
                for member in self._members.values()
                if member.ready and len(member.cases) < self._most
            ]
            if not free or not self._ledger.has_left(self._job.run):
                return
            member = min(free, key=lambda one: len(one.cases))
            found = self._ledger.claim(self._job.run, member.token)
            if found is None:  # other runs hold the rest
                self._polled_s = now + _POLL_S
                self._ledger.recover(self._watch)
                return
            row, channels = found
            if settled_by_another(self._job, row):
                self._ledger.release(row.number, member.token)
                self._count()
                continue
            member.cases[row.number] = (row, channels)
            self._check(member, row.number, take_over=True)

    def _check(self, member: _Member, number: int, *, take_over: bool) -> None:
        row, channels = member.cases[number]
        outputs = self._ledger.outputs(number)
        review = latest_review(self._ledger, number)
        self._next(member, "check", number, row, channels, outputs, take_over, review)

    def _next(self, member: _Member, step: str, number: int, *arguments: object) -> None:
        self._asked[_ask(member, step, *arguments)] = (member, number)

    def _listen(self) -> None:
        """Take the answers that are there; wait a moment for one."""
        if not self._asked:
            time.sleep(_TICK_S)
            return
        waiting = list(self._asked)
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=_TICK_S)
        if ready:
            ready, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for reference in ready:
            if reference not in self._asked:
                continue  # of a process that was lost meanwhile
            member, number = self._asked.pop(reference)
            try:
                reply = self._ray.get(reference)
            except self._ray.exceptions.RayError:
                self._lose(member)
                continue
            if number is None and reply is not None:
                self._give_up(member, reply)
            elif number is None:
                member.ready = True
                self._listener.noted(f"{member.name} is ready")
            else:
                self._take(member, number, reply)

    def _take(self, member: _Member, number: int, reply: Reply) -> None:
        """Note what came of a step, and ask for the next."""
        ledger, token = self._ledger, member.token
        row, channels = member.cases[number]
        if reply.reason is not None:
            self._judge(member, number, reply.reason)
        elif reply.kind == "complete":
            ledger.confirm(number, token, reply.stamp, channels)
            if reply.note:
                self._listener.noted(reply.note)
            self._done(member, number)
        elif reply.kind == "earlier":
            if any(
                ledger.adopt(number, token, one.name, self._job.settings, one.ending, channels)
                for one in reply.earlier
            ):
                self._done(member, number)
            else:
                self._check(member, number, take_over=False)
        elif reply.kind == "worked":  # finished also where the run is to stop
            ledger.announce(number, reply.names)
            self._next(member, "write", number, number)
        elif reply.ending is not None:
            ledger.finish(number, token, self._job.settings, reply.ending)
            tell_ending(self._listener, row.name, reply.ending)
            self._done(member, number)
        elif reply.kind == "cancelled" or self._stopping_s is not None:
            _ask(member, "forget", number)
            self._return(member, number)
        elif reply.kind == "due":
            ledger.begin(number, token, channels)
            self._next(member, "read", number, number, not ledger.has_left(self._job.run))
        else:
            if self._job.order.wishes.probabilities:
                kind = "probabilities"
                ledger.announce(number, {kind: f"{row.name}{RESULTS[kind]}"})
            self._next(member, "work", number, number)

    def _judge(self, member: _Member, number: int, reason: MedsegError) -> None:
        """Stop the run, unless only that node lacks what it needs."""
        self._return(member, number)
        if self._stopping_s is not None:
            return
        here: MedsegError | None = reason
        if reason.code == "input-vanished":
            here = vanished(self._job.roots)
        elif reason.code != "disk-full":
            here = None
            try:
                prepare_output(self._job.order.out)
            except MedsegError as error:
                here = error
        if here is None:
            self._give_up(member, reason)
        else:
            self._stop(here)

    def _return(self, member: _Member, number: int) -> None:
        del member.cases[number]
        self._ledger.release(number, member.token)

    def _done(self, member: _Member, number: int) -> None:
        del member.cases[number]
        self._losses[member.slot.node, member.slot.number] = 0
        self._count()

    def _count(self) -> None:
        self._ended += 1
        self._listener.advanced("cases", self._ended)

    def _beat(self) -> None:
        """Say now and then that the processes live, and look whether those of other runs do."""
        if time.monotonic() - self._beat_s < BEAT_EVERY_S:
            return
        self._beat_s = time.monotonic()
        for member in self._members.values():
            self._ledger.beat(member.token)
        self._ledger.recover(self._watch)


def _ask(member: _Member, method: str, *arguments: object) -> Any:  # noqa: ANN401 - Ray's reference
    group = method if method in ("check", "read", "work", "write") else "ask"
    return getattr(member.actor, method).options(concurrency_group=group).remote(*arguments)


def _slots(nodes: list[dict[str, Any]], job: Job) -> Iterator[_Slot]:
    """Every GPU of the cluster; every node's CPUs where it has none, or they are asked for."""
    device, threads = job.order.device, job.order.settings.threads
    gpus = {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in nodes}
    on_gpus = device == "cuda" or (device == "auto" and any(gpus.values()))
    for node in nodes:
        name, host = node["NodeID"], node["NodeManagerHostname"]
        cpus = int(node["Resources"].get("CPU", 0))
        if on_gpus:
            share = threads or max(1, cpus // max(1, gpus[name]))
            for number in range(gpus[name]):
                yield _Slot(name, number, "cuda", share, min(1, cpus), host)
        elif cpus >= 1:
            share = min(threads or cpus, cpus)
            yield _Slot(name, 0, "cpu", share, share, host)


def _no_device(device: str) -> ResourceError:
    wanted = {"cuda": "a GPU", "cpu": "a CPU"}.get(device, "a GPU or a CPU")
    return ResourceError(
        "--executor ray",
        expected=f"a node of the cluster with {wanted} to offer",
        found="none",
        remedy="add a node with `ray start --address=HOST:PORT`; the same command goes on",
        code="cluster-no-device",
    )


@contextmanager
def _unnamed() -> Iterator[None]:
    """Have Ray enter the verb alone in its tables, not the command line with the paths in it."""
    module: Any = importlib.import_module("ray._private.utils")
    before = module.get_entrypoint_name
    module.get_entrypoint_name = lambda: "medseg predict"
    try:
        yield
    finally:
        module.get_entrypoint_name = before


@contextmanager
def _unprinted() -> Iterator[None]:
    """Have Ray keep to itself what it would print of its nodes; what matters is noted here."""
    module: Any = importlib.import_module("ray._private.worker")
    before = module.print_to_stdstream
    module.print_to_stdstream = lambda *_arguments, **_more: None
    try:
        yield
    finally:
        module.print_to_stdstream = before


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Have Ray leave alone what this program does at SIGTERM and Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

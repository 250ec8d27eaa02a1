"""Model, corrected and reference labels against each other, kept up to date while one is edited.

Lives in the thread of the user; :func:`steps` of a task runs in another. What is edited meanwhile
is read in the next task, so that the last one has seen everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from medseg.core import LabelScheme
from medseg.errors import MedsegError
from medseg_napari.editing.boxes import Box
from medseg_napari.viewing.comparison import Agreement, Comparison, Side
from medseg_napari.viewing.sides import Chosen, check_same_grid

__all__ = ["PAIRS", "ROLES", "CompareController", "Pair", "Row", "Task", "Update", "steps"]

ROLES = ("corrected", "model", "reference")

Pair = tuple[str, str]
PAIRS: tuple[Pair, ...] = (
    ("corrected", "reference"),
    ("model", "reference"),
    ("corrected", "model"),
)
"""What is compared with what, the first being judged by the second."""


@dataclass(slots=True, eq=False)
class Job:
    """One comparison to make or to bring up to date.

    Args:
        pair: Which.
        makers: Of both sides, where it is to be made.
        comparison: Where it is there.
        slices: To read again; None for all.
    """

    pair: Pair
    makers: tuple[Callable[[], Side], Callable[[], Side]] | None = None
    comparison: Comparison | None = None
    slices: frozenset[int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What one run of the worker does.

    Args:
        number: Of the choice of layers that it belongs to.
        jobs: In order.
    """

    number: int
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """How far a task is.

    Args:
        task: Which.
        done: Slices that are read, over all jobs so far.
        total: Slices of the job at work.
        comparisons: All of them when the task is done, else None.
        message: Why it failed, or empty.
    """

    task: Task
    done: int = 0
    total: int = 0
    comparisons: Mapping[Pair, Comparison] | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One structure in the table.

    Args:
        name: Of the structure.
        rgb: Its colour, 0 to 255.
        agreements: By pair, where the pair is compared and either map has the structure.
    """

    name: str
    rgb: tuple[int, int, int]
    agreements: Mapping[Pair, Agreement] = field(default_factory=dict)


def steps(task: Task) -> Iterator[Update]:
    """Do a task, in any thread."""
    comparisons: dict[Pair, Comparison] = {}
    try:
        for job in task.jobs:
            comparison = job.comparison
            if comparison is None:
                assert job.makers is not None  # noqa: S101 - one of the two is given
                comparison = Comparison(job.makers[0](), job.makers[1]())
            for done, total in comparison.update(job.slices):
                yield Update(task, done, total)
            comparisons[job.pair] = comparison
    except MedsegError as error:
        yield Update(task, message=str(error))
        return
    yield Update(task, comparisons=comparisons)


class CompareController:
    """Which layers are compared, what is known of them, and what is to be done."""

    def __init__(self) -> None:
        self.chosen: dict[str, Chosen] = {}
        self.comparisons: dict[Pair, Comparison] = {}
        self.message = ""
        self._number = 0
        self._dirty: dict[str, set[int] | None] = {}
        self._is_new = False
        self._known: dict[str, tuple[object, LabelScheme | None]] = {}

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """What is compared with what, of the roles that are taken."""
        return tuple(pair for pair in PAIRS if all(role in self.chosen for role in pair))

    def choose(self, chosen: Mapping[str, Chosen | None]) -> bool:
        """Take layers for the roles; whether they can be compared.

        What cannot is told by :attr:`message`, in one sentence.
        """
        self.chosen = {role: one for role, one in chosen.items() if one is not None}
        self._number += 1
        self.comparisons = {}
        self._dirty = {}
        self._is_new = False
        self.message = ""
        try:
            for first, second in self.pairs:
                check_same_grid(self.chosen[first], self.chosen[second])
        except MedsegError as error:
            self.message = str(error)
            self.chosen = {}
            return False
        self._is_new = bool(self.pairs)
        return self._is_new

    def mark(self, role: str, box: Box | None) -> None:
        """The labels of a role were edited within a box; anywhere, where it is None."""
        if role not in self.chosen:
            return
        layer = self.chosen[role].layer
        known = self._known.get(role)
        if known is not None and (layer.data is not known[0] or self._scheme(role) != known[1]):
            self.choose(self.chosen)  # other voxels or names: begin anew
            return
        before = self._dirty.get(role, set())
        if box is None or before is None:
            self._dirty[role] = None
        else:
            self._dirty[role] = before | set(range(box[0].start, box[0].stop))

    def _scheme(self, role: str) -> LabelScheme | None:
        return self.chosen[role].scheme

    @property
    def is_due(self) -> bool:
        """Whether there is something to do."""
        return self._is_new or any(dirty is None or dirty for dirty in self._dirty.values())

    def begin(self) -> Task:
        """What is to be done now; what is marked from now on is for the next task."""
        jobs = []
        if self._is_new:
            makers = self._makers()
            jobs = [Job(pair, (makers[pair[0]], makers[pair[1]])) for pair in self.pairs]
        else:
            for pair, comparison in self.comparisons.items():
                parts = [self._dirty.get(role, set()) for role in pair]
                if any(part is None or part for part in parts):
                    everything = any(part is None for part in parts)
                    slices = None if everything else frozenset().union(*(p or () for p in parts))
                    jobs.append(Job(pair, comparison=comparison, slices=slices))
        self._is_new = False
        self._dirty = {}
        return Task(self._number, tuple(jobs))

    def _makers(self) -> dict[str, Callable[[], Side]]:
        """Makers of the sides, each of which is made once for all comparisons."""
        found = {}
        self._known = {}
        for role, one in self.chosen.items():
            partner = next(pair for pair in self.pairs if role in pair)
            grids = check_same_grid(self.chosen[partner[0]], self.chosen[partner[1]])
            found[role] = _once(one.maker(grids[partner.index(role)]))
            self._known[role] = (one.layer.data, one.scheme)
        return found

    def take(self, update: Update) -> bool:
        """Take what the worker gives; whether there are new figures."""
        if update.task.number != self._number:
            return False
        self.message = update.message
        if update.comparisons is None:
            return False
        self.comparisons |= update.comparisons
        if any(one.is_outdated for one in update.comparisons.values()):
            self._is_new = True  # a label came up that had no name: list the labels anew
        return True

    def rows(self) -> tuple[Row, ...]:
        """The structures that any of the maps has."""
        found: dict[str, Row] = {}
        for pair in PAIRS:
            comparison = self.comparisons.get(pair)
            for one in () if comparison is None else comparison.agreements():
                if one.first_ml or one.second_ml:
                    row = found.setdefault(one.label.name, Row(one.label.name, one.label.rgb, {}))
                    found[one.label.name] = Row(row.name, row.rgb, {**row.agreements, pair: one})
        return tuple(found.values())


def _once(make: Callable[[], Side]) -> Callable[[], Side]:
    made: list[Side] = []

    def give() -> Side:
        if not made:
            made.append(make())
        return made[0]

    return give
